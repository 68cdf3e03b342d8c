//! Prints the results of commands. Any line may contain text of a customer or of the database, so everything that is printed is
//! escaped here: no text can move the cursor, change colours, hide or reorder what follows, or begin a separate line.
//!
//! On a terminal, text is wrapped and tables are arranged to its width; in a pipe or a file every row is one line.

mod report;
mod status;
mod table;
mod text;

use std::{
    fmt::Display,
    io::{self, Write},
};

use console::{StyledObject, Term, style};

pub(crate) use self::{
    report::Report,
    status::render_status,
    table::{
        Column::{Left, Right},
        render_table,
    },
    text::wrapped,
};
use crate::escape::{escaped, escaped_json};

/// Returns the number of columns of the terminal, or of `COLUMNS` in a pipe or a file; `None` if nothing limits the lines.
pub(crate) fn width() -> Option<usize> {
    let terminal = Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    terminal.or_else(|| std::env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0))
}

/// Prints one line. A reader that has closed the pipe is not an error.
pub(crate) fn line(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{}", escaped(&line.to_string()));
}

/// Prints lines whose values are escaped already.
pub(crate) fn layout(text: &str) {
    let mut out = io::stdout().lock();
    for line in text.lines() {
        let _ = writeln!(out, "{}", escaped(line));
    }
}

/// Prints one line, or as many as the width of the terminal makes necessary.
pub(crate) fn paragraph(text: &str) {
    layout(&wrapped(&escaped(text), width(), 0).join("\n"));
}

/// Prints a value as one line of JSON. Characters that a terminal would interpret are written as `\u....`.
pub(crate) fn json(value: &impl serde::Serialize) {
    let text = serde_json::to_string(value).expect("text and numbers are always JSON");
    let _ = writeln!(io::stdout().lock(), "{}", escaped_json(&text));
}

/// Prints one element of a JSON array on its own line; `lead` is `[` or `,`.
pub(crate) fn json_element(lead: char, value: &impl serde::Serialize) {
    let text = serde_json::to_string(value).expect("text and numbers are always JSON");
    let _ = writeln!(io::stdout().lock(), "{lead}{}", escaped_json(&text));
}

/// Prints a table for the width of the terminal.
pub(crate) fn table<const N: usize>(columns: [table::Column; N], rows: &[[String; N]]) {
    layout(&render_table(columns, rows, width()));
}

/// Prints a report for the width of the terminal.
pub(crate) fn report(report: &Report) {
    layout(&report.render(width()));
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Ok,
    Warn,
    Fail,
}

impl Mark {
    /// The word of four columns, coloured where the terminal and `NO_COLOR` allow it.
    fn styled(self) -> StyledObject<&'static str> {
        match self {
            Self::Ok => style("ok  ").green(),
            Self::Warn => style("warn").yellow(),
            Self::Fail => style("FAIL").red().bold(),
        }
    }
}

/// Prints the result of a check, and below it what to do about it.
pub(crate) fn checked(mark: Mark, text: &str, advice: Option<&str>) {
    let mut out = io::stdout().lock();
    let room = width().map(|width| width.saturating_sub(6));
    for (n, line) in wrapped(&escaped(text), room, 2).iter().enumerate() {
        let _ =
            if n == 0 { writeln!(out, "{}  {line}", mark.styled()) } else { writeln!(out, "      {line}") };
    }
    for line in advice.iter().flat_map(|advice| wrapped(&format!("-> {}", escaped(advice)), room, 3)) {
        let _ = writeln!(out, "      {line}");
    }
}

/// Prints a note for the person at the terminal on the standard error.
pub(crate) fn note(text: &str) {
    let mut err = io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(err, "{}", escaped(line));
    }
}

/// Prints why a command failed on the standard error.
pub(crate) fn error(text: &str) {
    let _ = write!(io::stderr().lock(), "{} ", style("error:").for_stderr().red().bold());
    note(text);
}

/// Prints a warning on the standard error.
pub(crate) fn warning(text: &str) {
    let _ = write!(io::stderr().lock(), "{} ", style("warning:").for_stderr().yellow());
    note(text);
}
