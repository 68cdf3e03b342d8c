//! What `adopt` and `release` share.

use std::borrow::Cow;

use billing_jobs::billing::HandoverError;

use crate::{
    escape::escaped,
    exit::{Exit, Failure},
};

pub(super) fn failed(error: HandoverError) -> Failure {
    match error {
        HandoverError::Busy { .. } | HandoverError::Alive { .. } => Failure::new(Exit::TryAgain, error),
        HandoverError::Database { doing, source } => Failure::database(doing, &source),
    }
}

/// Lines of three columns: what, how many, and about it.
pub(super) fn table(rows: &[[String; 3]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (what, count) = (width(0), width(1));
    let line = |row: &[Cow<'_, str>; 3]| format!("{:what$}  {:>count$}  {}", row[0], row[1], row[2]);
    rows.iter().map(|row| line(row).trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["wallets", "7", ""], ["  drifting", "12", "by 1.00"], ["", "", "and more"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        let expected = "wallets      7\n  drifting  12  by 1.00\n                and more\n";
        assert_eq!(table(&rows), expected);
    }
}
