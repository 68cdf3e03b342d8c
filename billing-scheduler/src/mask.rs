//! Replaces secrets in text, in the forms in which programs, libraries and servers print them.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use serde_json::Value;

/// The text that replaces a secret.
pub const MASK: &str = "***";

/// Shorter values are not replaced: that would garble other words and protect nothing.
const SHORTEST: usize = 4;
/// The shortest line of a multi-line value, and the shortest piece of base64, that is replaced alone.
const SHORTEST_LINE: usize = 8;
const SHORTEST_BASE64: usize = 6;
/// The longest form of a character is `\u00e9`, which replaces one or two bytes.
const LONGEST_ESCAPE: usize = 6;

/// Secrets to replace in text.
///
/// A value of at least four characters is replaced by [`MASK`] where it occurs
///
/// - verbatim, without surrounding white space; of a multi-line value, each line of at least eight characters as well,
/// - with any of its bytes percent-encoded, or a `+` for a space, as in a URL,
/// - with backslash escapes, as in JSON and in source code,
/// - within base64 of either alphabet, at any position, as in `Authorization: Basic`.
///
/// ```
/// use billing_scheduler::Mask;
///
/// let mask = Mask::new(["pass word"]);
/// assert_eq!(mask.apply("pass word, ?q=pass%20word&r=1, am9lOnBhc3Mgd29yZA=="), "***, ?q=***&r=1, am9lO***==");
/// assert_eq!(Mask::new(["abc"]).apply("too short: abc"), "too short: abc");
/// ```
#[derive(Clone, Default)]
pub struct Mask {
    /// In parts that several masks share.
    parts: Vec<Arc<[Needle]>>,
}

/// One form of a secret.
struct Needle {
    form: Form,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Verbatim, percent-encoded, or with backslashes.
    Text,
    Base64,
}

/// How to decode the bytes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Plain,
    Percent,
    Backslash,
    /// With line breaks at any position.
    Base64,
}

impl Mask {
    /// Returns a mask that replaces `values`.
    #[must_use]
    pub fn new<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> Self {
        let mut mask = Self::default();
        mask.add(values);
        mask
    }

    /// Adds `values` to the mask.
    pub fn add<T: AsRef<str>>(&mut self, values: impl IntoIterator<Item = T>) {
        let mut needles = Vec::new();
        for value in values {
            needles_of(value.as_ref(), &mut needles);
        }
        if !needles.is_empty() {
            self.parts.push(needles.into());
        }
    }

    /// Adds the values of `other` to the mask.
    pub fn join(&mut self, other: &Self) {
        self.parts.extend(other.parts.iter().cloned());
    }

    /// Whether the mask replaces nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns the maximum length of an occurrence in bytes. A caller that truncates a text needs this many bytes beyond the cut to
    /// recognize a secret that the cut divides.
    #[must_use]
    pub fn reach(&self) -> usize {
        self.needles().map(|needle| needle.bytes.len() * LONGEST_ESCAPE).max().unwrap_or_default()
    }

    /// Returns `text` with the secrets replaced.
    #[must_use]
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let found = self.find(text.as_bytes());
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let masked = replaced(text.as_bytes(), 0..text.len(), &found);
        Cow::Owned(String::from_utf8_lossy(&masked).into_owned())
    }

    /// Returns the bytes of `text` within `range`, with the secrets replaced that begin or end there.
    #[must_use]
    pub fn apply_within(&self, text: &[u8], range: Range<usize>) -> Vec<u8> {
        replaced(text, range, &self.find(text))
    }

    /// Replaces the secrets in every string in `value`, except in the names of fields, which come from the program.
    pub fn apply_to_json(&self, value: &mut Value) {
        if self.is_empty() {
            return;
        }
        match value {
            Value::String(text) => {
                if let Cow::Owned(masked) = self.apply(text) {
                    *text = masked;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.apply_to_json(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.apply_to_json(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn needles(&self) -> impl Iterator<Item = &Needle> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// Returns the positions of secrets in `text`, sorted and without overlap.
    fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        if self.is_empty() {
            return Vec::new();
        }
        let is_encoded = |marks: &[u8]| text.iter().any(|byte| marks.contains(byte));
        let (percent, backslash) = (is_encoded(b"%+"), is_encoded(b"\\"));
        let mut found = Vec::new();
        for needle in self.needles() {
            let readings: &[_] = match needle.form {
                Form::Base64 => &[Reading::Base64],
                Form::Text => &[Reading::Plain, Reading::Percent, Reading::Backslash],
            };
            for reading in readings {
                if (*reading != Reading::Percent || percent) && (*reading != Reading::Backslash || backslash)
                {
                    occurrences(text, &needle.bytes, *reading, &mut found);
                }
            }
        }
        found.sort_unstable_by_key(|range| range.start);
        let mut apart: Vec<Range<usize>> = Vec::with_capacity(found.len());
        for range in found {
            match apart.last_mut().filter(|last| range.start <= last.end) {
                Some(last) => last.end = last.end.max(range.end),
                None => apart.push(range),
            }
        }
        apart
    }
}

/// Does not print the secrets.
impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Mask(nothing)" } else { "Mask(***)" })
    }
}

fn needles_of(value: &str, needles: &mut Vec<Needle>) {
    let value = value.trim();
    if value.chars().count() < SHORTEST {
        return;
    }
    let mut texts = vec![value];
    if value.contains('\n') {
        let lines = value.lines().map(str::trim);
        texts.extend(lines.filter(|line| line.chars().count() >= SHORTEST_LINE));
    }
    for text in texts {
        needles.push(Needle { form: Form::Text, bytes: text.as_bytes().to_owned() });
        for piece in base64_pieces(text.as_bytes()) {
            if piece.len() < SHORTEST_BASE64 {
                continue;
            }
            let in_urls: Vec<u8> = piece.iter().map(|byte| url_alphabet(*byte)).collect();
            if in_urls != piece {
                needles.push(Needle { form: Form::Base64, bytes: in_urls });
            }
            needles.push(Needle { form: Form::Base64, bytes: piece });
        }
    }
}

/// Adds every position of `needle` in `text`, decoded by `reading`.
fn occurrences(text: &[u8], needle: &[u8], reading: Reading, found: &mut Vec<Range<usize>>) {
    let mut from = 0;
    while let Some(start) = next_start(text, from, needle[0], reading) {
        if let Some(end) = end_of(text, start, needle, reading) {
            found.push(if reading == Reading::Base64 { widened(text, start..end) } else { start..end });
        }
        from = start + 1;
    }
}

/// Returns the next position at which an occurrence may begin.
fn next_start(text: &[u8], from: usize, first: u8, reading: Reading) -> Option<usize> {
    let begins = |byte: u8| match reading {
        Reading::Plain | Reading::Base64 => byte == first,
        Reading::Percent => byte == first || byte == b'%' || byte == b'+',
        Reading::Backslash => byte == first || byte == b'\\',
    };
    text.get(from..)?.iter().position(|byte| begins(*byte)).map(|at| from + at)
}

/// Returns the end of the occurrence that begins at `start`, if one does.
fn end_of(text: &[u8], start: usize, needle: &[u8], reading: Reading) -> Option<usize> {
    if reading == Reading::Plain {
        return text[start..].starts_with(needle).then_some(start + needle.len());
    }
    let (mut at, mut rest) = (start, needle);
    while let Some(expected) = rest.first() {
        let byte = *text.get(at)?;
        match reading {
            Reading::Base64 if at > start && (byte == b'\n' || byte == b'\r') => at += 1,
            Reading::Percent if byte == b'%' && escaped_byte(text, at + 1).is_some() => {
                if escaped_byte(text, at + 1)? != *expected {
                    return None;
                }
                (at, rest) = (at + 3, &rest[1..]);
            }
            Reading::Percent if byte == b'+' && *expected == b' ' => (at, rest) = (at + 1, &rest[1..]),
            Reading::Backslash if byte == b'\\' => {
                let (character, length) = escaped_character(text, at)?;
                let mut utf8 = [0; 4];
                rest = rest.strip_prefix(character.encode_utf8(&mut utf8).as_bytes())?;
                at += length;
            }
            _ if byte == *expected => (at, rest) = (at + 1, &rest[1..]),
            _ => return None,
        }
    }
    Some(at)
}

/// Returns the byte of two hexadecimal digits.
fn escaped_byte(text: &[u8], at: usize) -> Option<u8> {
    let digits = text.get(at..at + 2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Returns the character of a backslash escape, and the length of the escape.
fn escaped_character(text: &[u8], at: usize) -> Option<(char, usize)> {
    Some(match *text.get(at + 1)? {
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        b'b' => ('\u{8}', 2),
        b'f' => ('\u{c}', 2),
        b'u' => {
            let [high, low] = [escaped_byte(text, at + 2)?, escaped_byte(text, at + 4)?];
            (char::from_u32(u32::from(high) << 8 | u32::from(low))?, 6)
        }
        byte if byte.is_ascii_punctuation() => (char::from(byte), 2),
        _ => return None,
    })
}

/// Extends a match by the adjacent characters that encode a part of the secret.
fn widened(text: &[u8], found: Range<usize>) -> Range<usize> {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
    let before = found.start.checked_sub(1).filter(|at| is_base64(&text[*at]));
    let after = text.get(found.end).is_some_and(is_base64);
    before.unwrap_or(found.start)..found.end + usize::from(after)
}

/// Returns the base64 that every text containing `bytes` shares: one piece for each position within three bytes.
fn base64_pieces(bytes: &[u8]) -> [Vec<u8>; 3] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    [0, 1, 2].map(|before| {
        // Six bits each; some of the first and the last may belong to adjacent bytes.
        let bits = |at: usize| {
            let bit = |at: usize| {
                let byte = (at / 8).checked_sub(before).map_or(0, |at| bytes[at]);
                usize::from(byte >> (7 - at % 8) & 1)
            };
            (at * 6..at * 6 + 6).fold(0, |six, at| six << 1 | bit(at))
        };
        let whole = (before * 8).div_ceil(6)..(before + bytes.len()) * 8 / 6;
        whole.map(|at| ALPHABET[bits(at)]).collect()
    })
}

fn url_alphabet(byte: u8) -> u8 {
    match byte {
        b'+' => b'-',
        b'/' => b'_',
        byte => byte,
    }
}

/// Returns the bytes of `text` within `range`, with [`MASK`] in place of the ranges `found`.
fn replaced(text: &[u8], range: Range<usize>, found: &[Range<usize>]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(range.len());
    let mut at = range.start;
    for secret in found.iter().filter(|secret| secret.end > range.start && secret.start < range.end) {
        shown.extend_from_slice(&text[at..secret.start.max(at)]);
        shown.extend_from_slice(MASK.as_bytes());
        at = secret.end;
    }
    shown.extend_from_slice(text.get(at..range.end).unwrap_or_default());
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_in_every_form() {
        for (secret, text, shown) in [
            ("s3cret", "a s3cret", "a ***"),
            (" s3cret\n", "s3cret", "***"),
            ("s3c", "s3c", "s3c"),
            ("é€12", "<é€12>", "<***>"),
            // Percent-encoded in full or in part, in either case, and as a form.
            ("p@ss/wörd", "q=p%40ss%2Fw%C3%B6rd&x", "q=***&x"),
            ("p@ss/wörd", "q=p@ss%2fw%c3%b6rd", "q=***"),
            ("pass word", "pass+word pass%20word", "*** ***"),
            ("100%25x", "100%25x 100%2525x 100%x", "*** *** 100%x"),
            ("%%%%", "%%%%", "***"),
            // In JSON, in source code.
            ("c4n\"ry\\x", r#"{"a": "c4n\"ry\\x"}"#, r#"{"a": "***"}"#),
            ("käse/1", r"k\u00e4se\/1", "***"),
            ("käse/1", r"k\u00e5se\/1", r"k\u00e5se\/1"),
            // Of several lines.
            ("-----BEGIN-----\nMIIB1234\nend\n", "| MIIB1234\n| end", "| ***\n| end"),
            ("one line\r\nand two", "and two or one line", "and two or ***"),
            ("line one\nline two", r"line one\nline two", "***"),
            // Base64 at each of three positions, of both alphabets, in lines, with what is next to it.
            ("s3cret!", "czNjcmV0IQ==", "***=="),
            ("s3cret!", "OnMzY3JldCE=", "O***="),
            ("s3cret!", "YTpzM2NyZXQh", "YT***"),
            ("s3cret!", "dXNlcjpzM2NyZXQhOng=", "dXNlcj***ng="),
            ("~~~???>>>", "fn5+Pz8/Pj4+ fn5-Pz8_Pj4-", "*** ***"),
            ("s3cret!", "czNj\r\ncmV0IQ==", "***=="),
            // Overlapping and neighboring ones.
            ("abab", "xababab", "x***"),
            ("abcd", "abcdabcd", "***"),
        ] {
            assert_eq!(Mask::new([secret]).apply(text), shown, "`{secret}` in {text}");
        }
        assert_eq!(Mask::new(["abcd", "cdef"]).apply("abcdef"), "***");
        assert_eq!(Mask::new([""; 0]).apply("a"), "a");
    }

    #[test]
    fn cut_text_shows_no_secret() {
        let mask = Mask::new(["s3cret"]);
        let text = b"x s3cret s3cret y";
        for from in 0..text.len() {
            for until in from..=text.len() {
                let shown = String::from_utf8(mask.apply_within(text, from..until)).expect("text");
                let rest = shown.replace(MASK, "");
                assert!(rest.chars().all(|c| " xy".contains(c)), "{from}..{until}: {shown}");
                assert!(rest.len() <= until - from, "{from}..{until}: {shown}");
            }
        }
        assert_eq!(mask.apply_within(b"\xff s3cret", 0..8), b"\xff ***");
        assert!(mask.reach() >= "%73%33%63%72%65%74".len());
    }

    #[test]
    fn json_is_masked_in_values() {
        let mut value = json!({ "s3cret": ["a s3cret", 1, null, { "b": "s3cret" }], "c": true });
        Mask::new(["s3cret"]).apply_to_json(&mut value);
        assert_eq!(value, json!({ "s3cret": ["a ***", 1, null, { "b": "***" }], "c": true }));
    }

    #[test]
    fn masks_hide_what_they_join() {
        let mut mask = Mask::new(["s3cret"]);
        let mut other = Mask::default();
        other.join(&mask);
        mask.add(["hidden"]);
        assert_eq!(
            (mask.apply("s3cret hidden"), other.apply("s3cret hidden")),
            ("*** ***".into(), "*** hidden".into())
        );
        assert_eq!(format!("{mask:?} {:?}", Mask::default()), "Mask(***) Mask(nothing)");
    }
}
