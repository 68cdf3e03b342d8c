//! Prints what commands answer. A text of a customer or of the database may be part of any line, so everything that is written to
//! a terminal is escaped here: no text can move the cursor, change colours, hide or reorder what follows, or begin a line of its own.

pub(crate) mod table;

use std::{
    fmt::Display,
    io::{self, Write},
};

use crate::escape::{escaped, escaped_json};

/// Prints one line. A reader that has gone away is not an error.
pub(crate) fn line(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{}", escaped(&line.to_string()));
}

/// Prints the lines of a layout, such as a table: what put it together has escaped the values in it.
pub(crate) fn layout(text: &str) {
    let mut out = io::stdout().lock();
    for line in text.lines() {
        let _ = writeln!(out, "{}", escaped(line));
    }
}

/// Prints a value as one line of JSON. The data is what it is; characters that a terminal would obey are written as `\u....`.
pub(crate) fn json(value: &impl serde::Serialize) {
    let text = serde_json::to_string(value).expect("text and numbers are always JSON");
    let _ = writeln!(io::stdout().lock(), "{}", escaped_json(&text));
}

/// Prints the next element of a list, each on a line: `lead` is `[` or `,`.
pub(crate) fn json_element(lead: char, value: &impl serde::Serialize) {
    let text = serde_json::to_string(value).expect("text and numbers are always JSON");
    let _ = writeln!(io::stdout().lock(), "{lead}{}", escaped_json(&text));
}

/// Prints a message for the person at the terminal on the standard error.
pub(crate) fn error_lines(text: &str) {
    let mut err = io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(err, "{}", escaped(line));
    }
}
