//! Parses an `.env` file. Variables in it are not expanded, because a password may contain a `$`.

use crate::config::{Diagnostic, Location};

/// One `NAME=value`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) location: Location,
}

/// Parses `NAME=value` lines, with an optional `export`, quotes (`'`, `"` or a backtick, also over several lines) and comments (a
/// line, or the text after a blank and `#`). Adds a diagnostic for each invalid line to `problems`.
pub(super) fn parse(text: &str, file: &str, problems: &mut Vec<Diagnostic>) -> Vec<Variable> {
    let mut variables = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let location = Location::line(file, line);
        let used = match declaration(rest) {
            Ok((declared, used)) => {
                variables.extend(declared.map(|(name, value)| Variable { name, value, location }));
                used
            }
            Err(message) => {
                problems.push(Diagnostic::new(location, message));
                line_length(rest)
            }
        };
        line += rest[..used].matches('\n').count();
        rest = &rest[used..];
    }
    variables
}

/// A name and its value.
type Declared = (String, String);

/// Parses the first variable of `text`, none for a blank line or a comment, and returns it with the length of its lines.
fn declaration(text: &str) -> Result<(Option<Declared>, usize), &'static str> {
    let length = line_length(text);
    let line = text[..length].trim_end();
    let content = line.trim_start();
    if content.is_empty() || content.starts_with('#') {
        return Ok((None, length));
    }
    let exported = content.strip_prefix("export").filter(|rest| rest.starts_with(char::is_whitespace));
    let (name, value) = exported.unwrap_or(content).split_once('=').ok_or("expected NAME=value")?;
    let name = name.trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || !name.chars().all(is_name) {
        return Err("expected NAME=value, where a name is of letters, digits and `_`");
    }
    let value = value.trim_start();
    let start = line.len() - value.len();
    let (value, length) = match value.chars().next() {
        Some(quote @ ('"' | '\'' | '`')) => {
            let (value, end) = quoted(&text[start + 1..], quote)?;
            let end = start + 1 + end;
            let length = line_length(&text[end..]);
            let tail = text[end..end + length].trim();
            if !tail.is_empty() && !tail.starts_with('#') {
                return Err("there is text after the closing quote");
            }
            (value, end + length)
        }
        _ => (unquoted(value).to_owned(), length),
    };
    Ok((Some((name.to_owned(), value)), length))
}

/// Returns the value before the next `quote`, and the end of that quote.
fn quoted(text: &str, quote: char) -> Result<(String, usize), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Ok((value, at + c.len_utf8()));
        }
        if c != '\\' || quote != '"' {
            value.push(c);
            continue;
        }
        match chars.next() {
            Some((_, 'n')) => value.push('\n'),
            Some((_, 'r')) => value.push('\r'),
            Some((_, 't')) => value.push('\t'),
            Some((_, c @ ('"' | '\\' | '$'))) => value.push(c),
            Some((_, c)) => value.extend(['\\', c]),
            None => break,
        }
    }
    Err("the quote is not closed")
}

fn unquoted(value: &str) -> &str {
    let comment = value
        .char_indices()
        .find(|(at, c)| *c == '#' && value[..*at].chars().next_back().is_none_or(char::is_whitespace));
    comment.map_or(value, |(at, _)| &value[..at]).trim_end()
}

/// Returns the length of the first line with its line break.
fn line_length(text: &str) -> usize {
    text.find('\n').map_or(text.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &[(&str, &str, usize)], expected_problems: &[&str]) {
        let mut problems = Vec::new();
        let variables = parse(text, ".env", &mut problems);
        let read: Vec<_> = variables
            .iter()
            .map(|variable| {
                (variable.name.as_str(), variable.value.as_str(), variable.location.line.unwrap_or_default())
            })
            .collect();
        assert_eq!(read, expected, "{text}");
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, expected_problems, "{text}");
    }

    #[test]
    fn valid_lines_are_parsed() {
        check("", &[], &[]);
        check("A=1\nB=2", &[("A", "1", 1), ("B", "2", 2)], &[]);
        check("\u{feff}A=1\r\n\r\n# note\r\n  export B = 2 \r\n", &[("A", "1", 1), ("B", "2", 4)], &[]);
        check(
            "A=a b # note\nB=a#b\nC=# note\nD=",
            &[("A", "a b", 1), ("B", "a#b", 2), ("C", "", 3), ("D", "", 4)],
            &[],
        );
        check("A=postgres://u:p$w=@h/d?a=b", &[("A", "postgres://u:p$w=@h/d?a=b", 1)], &[]);
        check(
            "A='a # \\n$b' # note\nB=\"a\\n\\\"b\\\" \\d\"",
            &[("A", "a # \\n$b", 1), ("B", "a\n\"b\" \\d", 2)],
            &[],
        );
        check(
            "A=\"one\ntwo\"\nB=`it's`\nexport=3",
            &[("A", "one\ntwo", 1), ("B", "it's", 3), ("export", "3", 4)],
            &[],
        );
    }

    #[test]
    fn invalid_lines_are_reported_with_their_number() {
        check(
            "A=1\nnonsense\n=2\nB C=3\nD=\"x\" y\nE=4\nF=\"",
            &[("A", "1", 1), ("E", "4", 6)],
            &[
                ".env:2: expected NAME=value",
                ".env:3: expected NAME=value, where a name is of letters, digits and `_`",
                ".env:4: expected NAME=value, where a name is of letters, digits and `_`",
                ".env:5: there is text after the closing quote",
                ".env:7: the quote is not closed",
            ],
        );
    }

    proptest! {
        #[test]
        fn parser_never_panics(text in r#"[A=#'"`\\ \nü]*"#) {
            parse(&text, ".env", &mut Vec::new());
        }
    }
}
