//! Events on the standard input of a program.

use std::{collections::BTreeMap, time::Duration};

use billing_kinds::Secret;

use super::answer::Answer;

/// Runs the program with the event as its input.
#[cfg(unix)]
pub(super) async fn send(
    argv: &[String],
    environment: &BTreeMap<String, Secret>,
    body: String,
    limit: Duration,
) -> Answer {
    use super::answer::Verdict;

    /// "Permission denied" and "configuration error" of sysexits.h: the same program does not succeed later.
    const FINAL: [i32; 2] = [77, 78];

    let mut variables = Vec::new();
    for (name, secret) in environment {
        match secret.read() {
            Ok(value) => variables.push((name.clone(), value)),
            Err(error) => return Answer::none(error.to_string()),
        }
    }
    let finished = match billing_kinds::run_with_input(argv, variables, body, limit).await {
        Ok(finished) => finished,
        Err(error) => return Answer::none(format!("cannot run `{}`: {error}", argv[0])),
    };
    let code = finished.status.code();
    let verdict = match code {
        Some(0) => Verdict::Done,
        Some(code) if FINAL.contains(&code) => Verdict::Refused,
        // 75 states a temporary failure. Another code may be one as well.
        _ => Verdict::Failed,
    };
    let shown: String = finished.last_error.chars().filter(|c| !c.is_control()).take(200).collect();
    Answer::new(verdict, code, Some(shown).filter(|shown| !shown.is_empty()))
}

#[cfg(not(unix))]
#[expect(clippy::unused_async, reason = "as on Unix")]
pub(super) async fn send(_: &[String], _: &BTreeMap<String, Secret>, _: String, _: Duration) -> Answer {
    Answer::none("commands are run on Unix alone")
}
