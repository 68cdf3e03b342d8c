//! The page of the exit codes, from the variants of `Exit` and their documentation.

use super::markdown;

pub(crate) fn page(source: &str) -> String {
    let body = source.split_once("pub enum Exit {").expect("exit.rs has the enum").1;
    let body = body.split_once("\n}").expect("the enum has an end").0;
    let mut rows = vec![vec!["0".to_owned(), "The command did what was requested.".to_owned()]];
    let mut documentation = String::new();
    for line in body.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            documentation = format!("{documentation} {}", comment.trim());
        } else if let Some((_, code)) = line.trim_end_matches(',').split_once(" = ") {
            rows.push(vec![code.to_owned(), markdown::sentence(&std::mem::take(&mut documentation))]);
        }
    }
    assert!(rows.len() > 5, "exit.rs has the form that this test reads: {rows:?}");
    format!(
        "# Exit codes\n\nEvery command exits with one of these codes, which are those of `sysexits.h` where it has one.\n\n{}",
        markdown::table(&["code", "meaning"], &rows)
    )
}
