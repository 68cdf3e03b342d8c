//! A list of facts: a column of keys, and one of text, which is wrapped to the width of the terminal.

use super::text::wrapped;
use crate::escape::escaped;

/// The narrowest column of text that is still readable.
const NARROWEST: usize = 30;

/// Facts in the order in which they are printed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(&'static str, String)>,
}

impl Report {
    /// Adds a fact. An empty key continues the one before; leading blanks of the text are kept.
    pub(crate) fn add(&mut self, key: &'static str, text: impl Into<String>) {
        self.rows.push((key, text.into()));
    }

    /// Adds a fact if there is one.
    pub(crate) fn add_some(&mut self, key: &'static str, text: Option<impl Into<String>>) {
        if let Some(text) = text {
            self.add(key, text);
        }
    }

    /// Adds a list under one key.
    pub(crate) fn add_list(&mut self, key: &'static str, texts: impl IntoIterator<Item = String>) {
        for (n, text) in texts.into_iter().enumerate() {
            self.add(if n == 0 { key } else { "" }, text);
        }
    }

    /// Renders the facts for a terminal of that width; without a width, each is one line.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let keys = self.rows.iter().map(|(key, _)| key.len()).max().unwrap_or_default() + 2;
        let room = width.map(|width| width.saturating_sub(keys).max(NARROWEST));
        let mut rendered = String::new();
        for (key, text) in &self.rows {
            let indent = text.len() - text.trim_start().len();
            for (n, line) in wrapped(&escaped(text), room, indent + 2).iter().enumerate() {
                let key = if n == 0 { key } else { "" };
                rendered.extend([format!("{key:keys$}{line}").trim_end(), "\n"]);
            }
        }
        rendered
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn report_is_wrapped_only_for_terminals() {
        let mut report = Report::default();
        report.add("job", "billing");
        report.add_some("lease", None::<String>);
        report.add_list(
            "problems",
            ["- the first".to_owned(), "- the second one is a long sentence".to_owned()],
        );
        assert_eq!(
            report.render(None),
            "job       billing\nproblems  - the first\n          - the second one is a long sentence\n"
        );
        assert_eq!(
            report.render(Some(40)),
            "job       billing\nproblems  - the first\n          - the second one is a long\n            sentence\n"
        );
    }
}
