//! Building blocks of the generated pages.

/// Text for a cell of a table or a paragraph: on one line, with the characters escaped that Markdown would interpret.
pub(crate) fn text(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let spans = line.split('`').enumerate().map(|(number, span)| {
        let span = span.replace('|', "\\|");
        // Every second span is code, where `<` is literal.
        if number % 2 == 0 { span.replace('<', "\\<") } else { span }
    });
    spans.collect::<Vec<_>>().join("`")
}

/// A sentence from a fragment: a capital letter and a final period.
pub(crate) fn sentence(fragment: &str) -> String {
    let fragment = text(fragment);
    let mut characters = fragment.chars();
    let Some(first) = characters.next() else { return fragment };
    let end = if fragment.ends_with(['.', ':', '?']) { "" } else { "." };
    format!("{}{}{end}", first.to_uppercase(), characters.as_str())
}

pub(crate) fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

/// A table without the columns whose cells are all empty.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let kept: Vec<usize> =
        (0..heads.len()).filter(|&column| rows.iter().any(|row| !row[column].is_empty())).collect();
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut table = line(kept.iter().map(|&column| heads[column]).collect());
    table += &format!("|{}\n", "---|".repeat(kept.len()));
    for row in rows {
        table += &line(kept.iter().map(|&column| row[column].as_str()).collect());
    }
    table + "\n"
}
