//! Tables whose columns are as wide as their content. If a table is wider than the terminal, its widest columns move to a second
//! line of each row, so that nothing is cut off and an id is never broken.

use super::text::{columns, wrapped};
use crate::escape::escaped;

/// A column with its head.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// A column of text, aligned at its start.
    Left(&'static str),
    /// A column of numbers, aligned at their end.
    Right(&'static str),
}

impl Column {
    fn head(self) -> &'static str {
        match self {
            Self::Left(head) | Self::Right(head) => head,
        }
    }
}

/// The blanks between two columns.
const GAP: usize = 2;
/// The indentation of the second line of a row.
const INDENT: usize = 2;
/// The last column is wrapped in its place if it has at least this room.
const NARROWEST: usize = 30;

/// Renders a table for a terminal of that width; without a width, each row is one line. A table whose heads are all empty has no
/// line of heads.
pub(crate) fn render_table<const N: usize>(
    heads: [Column; N],
    rows: &[[String; N]],
    width: Option<usize>,
) -> String {
    let head = heads.map(|column| column.head().to_owned());
    let head = head.iter().any(|head| !head.is_empty()).then_some(head);
    let cells = rows.iter().map(|row| row.each_ref().map(|cell| on_one_line(cell)));
    let rows: Vec<[String; N]> = head.into_iter().chain(cells).collect();
    let widths: [usize; N] =
        std::array::from_fn(|n| rows.iter().map(|row| columns(&row[n])).max().unwrap_or_default());
    let Arrangement { moved, last } = arrange(&widths, width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for n in (0..N).filter(|n| !moved.contains(n)) {
            let blanks = " ".repeat(widths[n] - columns(&row[n]));
            match heads[n] {
                Column::Left(_) if n == N - 1 => {
                    let indent = columns(&line);
                    line += &wrapped(&row[n], last, 0).join(&format!("\n{}", " ".repeat(indent)));
                }
                Column::Left(_) => line.extend([&*row[n], &blanks]),
                Column::Right(_) => line.extend([&*blanks, &row[n]]),
            }
            line.push_str(&" ".repeat(GAP));
        }
        text.extend([line.trim_end(), "\n"]);
        let below: Vec<&str> = moved.iter().map(|n| row[*n].trim()).filter(|cell| !cell.is_empty()).collect();
        if !below.is_empty() {
            let below = format!("{}{}", " ".repeat(INDENT), below.join("  "));
            for line in wrapped(&below, width, INDENT + 2) {
                text.extend([&*line, "\n"]);
            }
        }
    }
    text
}

/// Where the columns of a table are printed.
#[derive(Default)]
struct Arrangement {
    /// The columns of the second line, in their order.
    moved: Vec<usize>,
    /// The room of the last column, if it is limited.
    last: Option<usize>,
}

/// Wraps the last column if there is room for it, or else moves the widest columns but the first until the others fit.
fn arrange(widths: &[usize], width: Option<usize>) -> Arrangement {
    let mut arrangement = Arrangement::default();
    let Some(width) = width else { return arrangement };
    let last = widths.len() - 1;
    let mut needed = widths.iter().sum::<usize>() + GAP * last;
    while needed > width {
        let room = (width + widths[last]).saturating_sub(needed);
        if room >= NARROWEST && !arrangement.moved.contains(&last) {
            arrangement.last = Some(room);
            break;
        }
        let rest = (1..=last).filter(|n| !arrangement.moved.contains(n));
        let Some(widest) = rest.max_by_key(|n| widths[*n]) else { break };
        arrangement.moved.push(widest);
        needed -= widths[widest] + GAP;
    }
    arrangement.moved.sort_unstable();
    arrangement
}

/// The escaped text on one line, with one blank for each white space; leading blanks are kept.
fn on_one_line(text: &str) -> String {
    let indent = text.len() - text.trim_start_matches(' ').len();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}{}", &text[..indent], escaped(&words))
}

#[cfg(test)]
mod tests {
    use super::{
        Column::{Left, Right},
        render_table,
    };

    fn table(width: Option<usize>) -> String {
        let rows =
            [["billing", "1", "done"], ["\u{fc}", "12345", "the run\nfailed: the database\u{1b} is gone"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        render_table([Left("JOB"), Right("N"), Left("ABOUT")], &rows, width)
    }

    #[test]
    fn table_in_a_pipe_has_whole_rows() {
        assert_eq!(
            table(None),
            "JOB          N  ABOUT\n\
             billing      1  done\n\
             \u{fc}        12345  the run failed: the database\\u{1b} is gone\n"
        );
        assert_eq!(table(Some(80)), table(None));
    }

    #[test]
    fn last_column_with_room_is_wrapped() {
        let rows = [["  drifting", "12", "one wallet, by 1.00 USD, and another one"], ["all", "7", ""]];
        let rows = rows.map(|row| row.map(str::to_owned));
        assert_eq!(
            render_table([Left(""), Right(""), Left("")], &rows, Some(46)),
            "  drifting  12  one wallet, by 1.00 USD, and\n                another one\nall          7\n"
        );
    }

    #[test]
    fn wide_columns_move_to_second_line() {
        assert_eq!(
            table(Some(30)),
            "JOB          N\n  ABOUT\n\
             billing      1\n  done\n\
             \u{fc}        12345\n  the run failed: the\n    database\\u{1b} is gone\n"
        );
    }
}
