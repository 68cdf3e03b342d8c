//! Escapes text for a terminal and for a line of a log: no text can move the cursor, change colours, hide or reorder what follows,
//! or begin a separate line.

use std::{borrow::Cow, fmt::Write as _};

/// `text` on one line, with `\u{..}` in place of each character that is not seen as itself.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// In JSON these characters can only be part of a string.
pub(crate) fn escaped_json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Whether a terminal does something else with `c` than to show it: control characters, marks of the direction of text, characters
/// without a width, and separators of lines.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_cannot_steer_a_terminal() {
        for (text, expected) in [
            ("web-1", "web-1"),
            ("Gr\u{fc}\u{df}e \u{4f60}\u{597d} \u{1f600}", "Gr\u{fc}\u{df}e \u{4f60}\u{597d} \u{1f600}"),
            ("a\nERROR b", "a\\nERROR b"),
            ("a\rb\tc\0", "a\\rb\\tc\\u{0}"),
            ("\u{1b}[2J\u{9b}31m\u{7f}", "\\u{1b}[2J\\u{9b}31m\\u{7f}"),
            ("\u{202e}evil\u{2066}", "\\u{202e}evil\\u{2066}"),
            ("a\u{200b}b\u{feff}\u{ad}", "a\\u{200b}b\\u{feff}\\u{ad}"),
            ("a\u{2028}b\u{85}c\u{e0041}", "a\\u{2028}b\\u{85}c\\u{e0041}"),
        ] {
            assert_eq!(escaped(text), expected, "{text:?}");
        }
    }

    #[test]
    fn escaped_json_keeps_its_data() {
        let value = serde_json::json!({ "label": "a\n\u{1b}\u{9b}\u{202e}\u{e0041}\u{fc}" });
        let text = value.to_string();
        let safe = escaped_json(&text);
        assert!(!safe.contains(is_unsafe), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).ok(), Some(value));
    }
}
