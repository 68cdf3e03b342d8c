//! Text within a number of columns.

/// Returns the width of a text on a terminal.
pub(super) fn columns(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Returns lines of at most `room` columns, broken between words; each but the first is indented. A word that is wider than the
/// room is left whole. Without a limit there is one line.
pub(crate) fn wrapped(text: &str, room: Option<usize>, indent: usize) -> Vec<String> {
    let room = room.unwrap_or(usize::MAX);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_inclusive(' ') {
        let fits = columns(&line) + columns(word.trim_end()) <= room;
        if !fits && !line.trim().is_empty() {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        }
        line += word;
    }
    lines.push(line);
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn text_is_wrapped_between_words() {
        let text = "one two three four";
        assert_eq!(wrapped(text, Some(9), 2), ["one two", "  three", "  four"]);
        assert_eq!(wrapped("  a-very-long-word", Some(5), 4), ["  a-very-long-word"]);
        assert_eq!(wrapped("\u{4f60}\u{597d} \u{4f60}", Some(6), 0), ["\u{4f60}\u{597d}", "\u{4f60}"]);
        assert_eq!(wrapped(text, None, 2), [text]);
        assert_eq!(wrapped("", Some(5), 2), [""]);
    }
}
