//! Tables whose columns are as wide as what is in them, on the width of the terminal.

use crate::escape::escaped;

/// Under these heads, these rows. If all of it is wider than `width`, the last column is cut.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]], width: usize) -> String {
    let heads = heads.map(str::to_owned);
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| words(cell))).collect();
    let all = || std::iter::once(&heads).chain(&rows);
    let mut widths = [0; N];
    for row in all() {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(cell.chars().count());
        }
    }
    let before: usize = widths[..N - 1].iter().map(|width| width + 2).sum();
    let left = width.saturating_sub(before).max(20);
    let mut text = String::new();
    for row in all() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column == N - 1 {
                line.push_str(&cut(cell, left));
            } else {
                let width = widths[column];
                line.extend([format!("{cell:width$}  ")]);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The text on one line, escaped. White space is what separates its words, whatever it is; spaces before them align a number.
fn words(text: &str) -> String {
    let aligned = text.len() - text.trim_start_matches(' ').len();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}{}", &text[..aligned], escaped(&words))
}

/// The text in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_aligned_and_the_last_one_gives_way() {
        let row = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        let rows =
            [row("billing", "1", "done"), row("ü", "12345", "what went\nwrong is a long story, and cut")];
        assert_eq!(
            table(["JOB", "N", "ABOUT"], &rows, 39),
            "JOB      N      ABOUT\n\
             billing  1      done\n\
             ü        12345  what went wrong is a l…\n"
        );
    }
}
