//! Invalid cron texts: the reported part, the message and the correction.

use std::time::Duration;

use billing_scheduler::{Schedule, ScheduleError};

/// Invalid cron texts with the invalid part marked, the message, and the correction.
const REFUSED: [(&str, &str, &str, &str); 53] = [
    ("/5 * * * *", "/5", "minute `/5` has a step without a range", "write `*/5`"),
    ("61 * * * *", "61", "minute `61` is not within 0-59", "use a number from 0 to 59"),
    ("0 24 * * *", "24", "hour `24` is not within 0-23", "use a number from 0 to 23"),
    ("0 0 0 * *", "0", "day of month `0` is not within 1-31", "use a number from 1 to 31"),
    (
        "0 0 * 13 *",
        "13",
        "month `13` is not within 1-12",
        "use a number from 1 to 12 or a name from JAN to DEC",
    ),
    (
        "0 0 * * 8",
        "8",
        "day of week `8` is not within 0-7",
        "use a number from 0 to 7 or a name from SUN to SAT",
    ),
    (
        "5,99999999999999999999 * * * *",
        "99999999999999999999",
        "minute `99999999999999999999` is not within 0-59",
        "use a number from 0 to 59",
    ),
    ("-5 * * * *", "-5", "minute `-5` is a range without both ends", "use a number from 0 to 59"),
    // Lists.
    ("15, 45 * * * *", "15, 45", "minute `15, 45` has a space in its list", "write `15,45` without a space"),
    ("0 8 ,17 * * *", "8 ,17", "hour `8 ,17` has a space in its list", "write `8,17` without a space"),
    ("0 0 8, 17 * * *", "8, 17", "hour `8, 17` has a space in its list", "write `8,17` without a space"),
    ("15, * * * *", "15,", "minute `15,` ends with a comma", "remove the comma"),
    ("0 ,8 * * *", ",8", "hour `,8` begins with a comma", "remove the comma"),
    ("0 8,,17 * * *", "8,,17", "hour `8,,17` has an empty item in its list", "remove the comma"),
    ("*,5 * * * *", "*", "minute `*` is in a list", "write `*` alone, which includes every value"),
    ("5,*/20 * * * *", "*/20", "minute `*/20` is in a list", "write it as a range: `0-59/20`"),
    ("0 0 1,? * *", "?", "day of month `?` is in a list", "write `?` alone, which includes every value"),
    // Ranges.
    ("0 22-2 * * *", "22-2", "hour `22-2` is a range that goes backwards", "write `22-23,0-2`"),
    ("0 22-0 * * *", "22-0", "hour `22-0` is a range that goes backwards", "write `22-23,0`"),
    ("59-5 * * * *", "59-5", "minute `59-5` is a range that goes backwards", "write `59,0-5`"),
    ("0 22-4/3 * * *", "22-4/3", "hour `22-4/3` is a range that goes backwards", "write `22,1,4`"),
    (
        "0 0 * NOV-FEB *",
        "NOV-FEB",
        "month `NOV-FEB` is a range that goes backwards",
        "write `NOV-DEC,JAN-FEB`",
    ),
    (
        "0 0 * * FRI-MON",
        "FRI-MON",
        "day of week `FRI-MON` is a range that goes backwards",
        "write `FRI-SUN,MON`",
    ),
    ("0 0 * * 5-0", "5-0", "day of week `5-0` is a range that goes backwards", "write `5-7`"),
    ("0 0 * * 7-2", "7-2", "day of week `7-2` is a range that goes backwards", "write `7,1-2`"),
    ("0 0 * * 6-2/2", "6-2/2", "day of week `6-2/2` is a range that goes backwards", "write `6,1`"),
    (
        "1-2-3 * * * *",
        "1-2-3",
        "minute `1-2-3` has more than one `-`",
        "write one range such as `0-59`, or a list of ranges",
    ),
    // Steps.
    ("*/0 * * * *", "*/0", "minute `*/0` has a step of 0", "use a step from 1 to 60"),
    (
        "*/90 * * * *",
        "*/90",
        "minute `*/90` has a step above the 60 values of the field",
        "use a step from 1 to 60, or `every = \"90m\"` for such a period",
    ),
    (
        "0 */36 * * *",
        "*/36",
        "hour `*/36` has a step above the 24 values of the field",
        "use a step from 1 to 24, or `every = \"36h\"` for such a period",
    ),
    (
        "0 0 * 1-12/13 *",
        "1-12/13",
        "month `1-12/13` has a step above the 12 values of the field",
        "use a step from 1 to 12",
    ),
    (
        "0 0 * * */8",
        "*/8",
        "day of week `*/8` has a step above the 7 values of the field",
        "use a step from 1 to 7",
    ),
    ("5/15 * * * *", "5/15", "minute `5/15` has a step without a range", "write `5-59/15`"),
    ("*/ * * * *", "*/", "minute `*/` has a step that is not a number", "use a step from 1 to 60"),
    ("*/5/5 * * * *", "*/5/5", "minute `*/5/5` has more than one `/`", "write `0-59/5`"),
    // Names.
    (
        "0 7 * SUN *",
        "SUN",
        "month `SUN` is the name of a day of the week",
        "move it to the field `day of week`, which is the last one",
    ),
    (
        "0 7 * * jan",
        "jan",
        "day of week `jan` is the name of a month",
        "move it to the field `month`, which is the last but one",
    ),
    ("0 7 * * MONDAY", "MONDAY", "day of week `MONDAY` is not a known name", "write `MON`"),
    ("nonsense * * * *", "nonsense", "minute `nonsense` is not within 0-59", "use a number from 0 to 59"),
    // L, W, # and ?.
    (
        "0 0 L-2 * *",
        "L",
        "day of month `L` is not supported",
        "write `L` alone for the last day, or the days as numbers",
    ),
    (
        "0 0 20-L * *",
        "L",
        "day of month `L` is not supported",
        "write `L` alone for the last day, or the days as numbers",
    ),
    (
        "0 0 L,LW * *",
        "L,LW",
        "day of month `L,LW` has both `L` and `LW`",
        "write `L` or `LW`, or a schedule for each of them",
    ),
    ("0 0 32W * *", "32", "day of month `32` is not within 1-31", "use a number from 1 to 31"),
    (
        "0 0 * * L",
        "L",
        "day of week `L` does not say which day",
        "write the day before `L`, such as `FRIL` for the last Friday of a month",
    ),
    (
        "0 0 * * 1#6",
        "1#6",
        "day of week `1#6` does not say which one of a month",
        "write a number from 1 to 5 after `#`, such as `MON#1` for the first Monday",
    ),
    ("? * * * *", "?", "minute `?` is for day of month and day of week only", "write `*`"),
    // The text as a whole.
    (
        "* * *",
        "* * *",
        "it has 3 fields",
        "write 5 fields (minute, hour, day of month, month, day of week), 6 with the second first, or a nickname such as @hourly",
    ),
    (
        "0 0 0 1 1 * 2027",
        "2027",
        "it has 7 fields",
        "remove the seventh field: the years are limited by `not-before` and `not-after`",
    ),
    ("TZ=UTC 0 0 * * *", "TZ=UTC", "`TZ=UTC` is not a field", "use `timezone` for the zone"),
    (
        "@every 90m",
        "@every 90m",
        "`@every 90m` is not a nickname",
        "use `every` for a period: { every = \"90m\" }",
    ),
    ("@reboot", "@reboot", "`@reboot` is an unknown nickname", "use `run-at-start` for a run at the start"),
    (
        "0 0 30,31 2 *",
        "30,31",
        "day of month `30,31` never comes: month `2` has at most 29 days",
        "write an earlier day, or `L` for the last day of a month",
    ),
    (
        "0 0 31W 4,jun *",
        "31W",
        "day of month `31W` never comes: month `4,jun` has at most 30 days",
        "write an earlier day, or `L` for the last day of a month",
    ),
];

#[test]
fn invalid_cron_texts_name_their_correction() {
    for (text, part, problem, help) in REFUSED {
        // Surrounding spaces are not part of the position.
        for text in [text.to_owned(), format!("  {text} ")] {
            let Err(ScheduleError::Cron(error)) = Schedule::cron(&text, "UTC") else {
                panic!("`{text}` is accepted");
            };
            let found = (&text[error.at.clone()], error.problem.as_str(), error.help.as_str());
            assert_eq!(found, (part, problem, help), "{text}");
            assert_eq!(error.to_string(), format!("invalid cron text `{text}`: {problem}"));
            let field = error.field.map(|field| format!("{field} "));
            assert!(field.is_none_or(|field| problem.starts_with(&field)), "{text}: {:?}", error.field);
        }
    }
}

#[test]
fn long_cron_text_is_rejected() {
    let text = format!("{} * * * *", vec!["0"; 600].join(","));
    let Err(ScheduleError::Cron(error)) = Schedule::cron(&text, "UTC") else { panic!("it is accepted") };
    assert!(error.to_string().ends_with("...`: it has 1207 bytes, and at most 1024 are allowed"), "{error}");
    assert!(error.to_string().len() < 200);
    let Err(ScheduleError::Cron(error)) = Schedule::cron("\u{1b}[2J", "UTC") else {
        panic!("it is accepted")
    };
    assert!(!error.to_string().contains('\u{1b}'), "a terminal would interpret it");
}

/// Each takes microseconds in a release build; the benchmark `due` measures it.
#[test]
fn kilobyte_of_cron_text_is_validated_quickly() {
    let fill = |part: &str, rest: &str| {
        let mut text = part.repeat((1_024 - rest.len()) / part.len());
        text.truncate(text.trim_end_matches([',', '-', '/', '#']).len());
        text + rest
    };
    let texts = [
        fill("0,", " * * * *"),
        fill("0-59/1,", " * * * *"),
        fill("1W,", " * *").replacen("1W", "0 0 1W", 1),
        format!("0 0 * * {}", fill("SUN#1,", "")).chars().take(1_024).collect(),
        format!("0 0 * {} *", fill("JAN-DEC/1,", " ")).chars().take(1_000).collect(),
        fill(",", ""),
        fill(" ", "* * * * *"),
        fill("* ", ""),
        fill("1-", ""),
        fill("/", " * * * *"),
        fill("@", ""),
        fill("\u{e9}", ""),
        "0 0 29 2 *".to_owned(),
        "0 0 * 2 MON#5".to_owned(),
        "0 0 30 2 *".to_owned(),
    ];
    for text in texts {
        let fastest = (0..5).map(|_| {
            let begun = std::time::Instant::now();
            let _ = Schedule::cron(&text, "UTC");
            begun.elapsed()
        });
        let fastest = fastest.min().expect("five of them");
        assert!(fastest < Duration::from_millis(10), "{fastest:?} for `{text}`");
    }
}
