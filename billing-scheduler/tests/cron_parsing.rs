//! Every cron text is accepted or rejected, and the times of an accepted one ascend. `PROPTEST_CASES` tries more.

use billing_scheduler::{Schedule, ScheduleError};
use chrono::{DateTime, Utc};
use proptest::prelude::*;

/// Whole seconds, some of them near a clock change in Paris.
const INSTANTS: [i64; 4] = [0, 1_774_746_000, 1_792_890_000, 1_800_000_000];

fn check(text: &str) {
    let schedule = match Schedule::cron(text, "Europe/Paris") {
        Ok(schedule) => schedule,
        Err(ScheduleError::Cron(error)) => {
            let part = text.get(error.at.clone());
            assert!(part.is_some(), "`{text}`: {:?} is not a part of it", error.at);
            assert!(!error.problem.contains("library"), "`{text}` is refused by the library alone: {error}");
            assert!(!error.help.is_empty(), "`{text}`: {error}");
            return;
        }
        Err(error) => panic!("`{text}`: {error}"),
    };
    for at in INSTANTS.map(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0).expect("an instant")) {
        if let Ok(Some(next)) = schedule.next_after(at) {
            assert!(next > at, "`{text}`: {next} comes after {at}");
        }
        if let Ok(Some(last)) = schedule.last_until(at) {
            assert!(last <= at, "`{text}`: {last} comes until {at}");
        }
    }
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        check(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn cron_like_text_never_panics(text in "[-0-9*/,?LW#@A-Z ]{0,24}") {
        check(&text);
    }

    #[test]
    fn fields_never_panic(fields in prop::collection::vec(r"\*|\*/[0-9]{1,2}|[0-9]{1,2}(-[0-9]{1,2})?|[0-9],[0-9]|L|LW|[1-7]#[1-5]|[0-7]L|15W|[1-9],L|MON|(sun|MON)-(FRI|SUN)|JAN-(MAR|dec)(/2)?", 5..7)) {
        check(&fields.join(" "));
    }
}
