//! When a schedule is due, across the days on which clocks change.

use std::time::Duration;

use billing_scheduler::{
    Gap, Schedule, ScheduleError,
    chrono::{DateTime, TimeDelta, Utc},
};

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().expect("an RFC 3339 instant")
}

#[track_caller]
fn check(schedule: &Schedule, after: &str, expected: &[&str]) {
    let mut at = utc(after);
    let mut times = Vec::new();
    for _ in expected {
        at = schedule.next_after(at).expect("computable").expect("the schedule goes on");
        times.push(at);
    }
    assert_eq!(
        times,
        expected.iter().map(|text| utc(text)).collect::<Vec<_>>(),
        "{schedule:?} after {after}"
    );
}

fn cron(text: &str, zone: &str) -> Schedule {
    Schedule::cron(text, zone).expect("a valid cron text")
}

#[test]
fn every_is_anchored_to_full_periods_in_utc() {
    let hourly = Schedule::every(Duration::from_hours(1)).expect("valid");
    check(&hourly, "2026-01-01T13:59:59.999Z", &["2026-01-01T14:00:00Z", "2026-01-01T15:00:00Z"]);
    check(&hourly, "2026-01-01T14:00:00Z", &["2026-01-01T15:00:00Z"]);
    check(&hourly, "1969-12-31T23:30:00Z", &["1970-01-01T00:00:00Z"]);
}

#[test]
fn an_offset_moves_every_time_of_a_period() {
    let hourly = Schedule::every(Duration::from_hours(1)).expect("valid");
    let five_past = hourly.clone().offset(Duration::from_mins(5)).expect("valid");
    check(&five_past, "2026-01-01T14:05:00Z", &["2026-01-01T15:05:00Z", "2026-01-01T16:05:00Z"]);
    check(&five_past, "1970-01-01T00:00:00Z", &["1970-01-01T00:05:00Z"]);
    assert_eq!(five_past.last_until(utc("2026-01-01T15:04:59Z")), Ok(Some(utc("2026-01-01T14:05:00Z"))));
    for offset in [Duration::from_hours(1), Duration::from_millis(1), Duration::MAX] {
        assert_eq!(hourly.clone().offset(offset), Err(ScheduleError::Offset(offset)));
    }
    let daily = cron("@daily", "UTC");
    assert!(matches!(daily.offset(Duration::from_mins(5)), Err(ScheduleError::Offset(_))));
}

#[test]
fn a_single_time_comes_once() {
    let once = Schedule::at(utc("2026-12-01T00:00:00Z")).expect("whole");
    check(&once, "2026-01-01T00:00:00Z", &["2026-12-01T00:00:00Z"]);
    assert_eq!(once.next_after(utc("2026-12-01T00:00:00Z")), Ok(None));
    assert_eq!(once.last_until(utc("2027-01-01T00:00:00Z")), Ok(Some(utc("2026-12-01T00:00:00Z"))));
    assert_eq!(once.last_until(utc("2026-11-30T23:59:59Z")), Ok(None));
    assert!(once.is_once());
    let half = utc("2026-12-01T00:00:00.5Z");
    assert_eq!(Schedule::at(half), Err(ScheduleError::Fraction(half)));
}

#[test]
fn a_list_is_due_whenever_one_of_it_is_and_once_if_several_are() {
    let list = Schedule::any([
        cron("0 12 * * *", "UTC"),
        Schedule::every(Duration::from_hours(8)).expect("valid"),
        Schedule::at(utc("2026-01-01T16:00:00Z")).expect("whole"),
        Schedule::at(utc("2026-01-01T13:30:00Z")).expect("whole"),
    ])
    .expect("not empty");
    check(
        &list,
        "2026-01-01T08:00:00Z",
        &["2026-01-01T12:00:00Z", "2026-01-01T13:30:00Z", "2026-01-01T16:00:00Z", "2026-01-02T00:00:00Z"],
    );
    assert_eq!(list.count(utc("2026-01-01T08:00:00Z"), utc("2026-01-02T00:00:00Z"), 9), Ok(4));
    assert_eq!(Schedule::any([]), Err(ScheduleError::Empty));
}

#[test]
fn a_window_leaves_out_what_is_before_and_after_it() {
    let hourly = Schedule::every(Duration::from_hours(1)).expect("valid");
    let (begin, end) = (utc("2026-01-01T14:00:00Z"), utc("2026-01-01T16:00:00Z"));
    let window = hourly.clone().within(Some(begin), Some(end)).expect("valid");
    check(
        &window,
        "2025-01-01T00:00:00Z",
        &["2026-01-01T14:00:00Z", "2026-01-01T15:00:00Z", "2026-01-01T16:00:00Z"],
    );
    assert_eq!(window.next_after(end), Ok(None));
    assert_eq!(window.last_until(utc("2030-01-01T00:00:00Z")), Ok(Some(end)));
    assert_eq!(window.last_until(begin - TimeDelta::seconds(1)), Ok(None));
    assert_eq!(
        hourly.within(Some(end), Some(begin)),
        Err(ScheduleError::Window { not_before: end, not_after: begin })
    );
    let leap_day = cron("0 0 29 2 *", "UTC");
    let never = ScheduleError::NeverWithin("0 0 29 2 * in UTC".to_owned());
    assert_eq!(
        leap_day.within(Some(utc("2025-01-01T00:00:00Z")), Some(utc("2027-12-31T00:00:00Z"))),
        Err(never)
    );
}

#[test]
fn a_schedule_says_what_it_is() {
    let every = |seconds| Schedule::every(Duration::from_secs(seconds)).expect("valid");
    let rows = [
        (every(5_400), "every 1h 30m"),
        (every(86_400).offset(Duration::from_mins(5)).expect("valid"), "every 1d, 5m after"),
        (cron(" 0 30 2 * * * ", "Europe/Berlin"), "0 30 2 * * * in Europe/Berlin"),
        (
            Schedule::any([
                every(60),
                cron("@daily", "UTC").within(None, Some(utc("2030-01-01T00:00:00Z"))).expect("valid"),
            ])
            .expect("two"),
            "every 1m; @daily in UTC, not after 2030-01-01T00:00:00Z",
        ),
    ];
    for (schedule, expected) in rows {
        assert_eq!(schedule.to_string(), expected);
    }
    assert_eq!(cron("@daily", "UTC"), cron("@daily", "UTC"));
    assert_ne!(cron("@daily", "UTC"), cron("@daily", "Europe/Berlin"));
}

#[test]
fn the_shortest_time_between_two_runs_is_found() {
    let from = utc("2026-01-05T00:00:00Z");
    let rows = [
        (cron("0 9,17 * * *", "UTC"), Some(8 * 3_600)),
        (cron("0 0,23 * * *", "Europe/Berlin"), Some(3_600)),
        (Schedule::every(Duration::from_secs(90)).expect("valid"), Some(90)),
        (Schedule::at(utc("2026-12-01T00:00:00Z")).expect("whole"), None),
    ];
    for (schedule, seconds) in rows {
        assert_eq!(schedule.shortest_gap(from), Ok(seconds.map(TimeDelta::seconds)), "{schedule}");
    }
}

#[test]
fn no_instant_is_too_early_or_too_late_to_ask_about() {
    for schedule in [
        cron("30 2 * * *", "Europe/Berlin"),
        Schedule::every(Duration::from_hours(1)).expect("valid"),
        Schedule::any([cron("@hourly", "UTC"), Schedule::at(utc("2026-12-01T00:00:00Z")).expect("whole")])
            .expect("two"),
    ] {
        for instant in [
            DateTime::<Utc>::MIN_UTC,
            DateTime::<Utc>::MAX_UTC,
            utc("-9998-01-01T00:00:00Z"),
            utc("9998-12-31T23:59:59Z"),
        ] {
            // Whatever the answer is, there is one.
            let _ = (schedule.next_after(instant), schedule.last_until(instant));
            let _ = schedule.count(instant, instant, 10);
        }
    }
}

#[test]
fn a_skipped_fixed_time_runs_at_the_first_instant_after_the_gap() {
    check(
        &cron("30 2 * * *", "Europe/Berlin"),
        "2026-03-27T12:00:00Z",
        &["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
    );
    // The search may also begin one second before the gap.
    check(&cron("30 2 * * *", "Europe/Berlin"), "2026-03-29T00:59:59Z", &["2026-03-29T01:00:00Z"]);
}

#[test]
fn a_repeated_fixed_time_runs_once() {
    check(
        &cron("0 30 2 * * *", "Europe/Berlin"),
        "2026-10-24T12:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
    );
}

#[test]
fn a_wildcard_hour_runs_in_both_passes_and_not_in_the_gap() {
    let half_past = cron("30 * * * *", "Europe/Berlin");
    check(
        &half_past,
        "2026-10-25T00:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
    );
    check(&half_past, "2026-03-29T00:00:00Z", &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"]);
}

#[test]
fn an_hourly_job_has_every_hour_of_a_year_with_two_clock_changes() {
    let hourly = cron("@hourly", "Europe/Paris");
    let (mut at, end) = (utc("2025-12-31T23:00:00Z"), utc("2026-12-31T23:00:00Z"));
    let mut count = 0;
    while let Some(next) = hourly.next_after(at).expect("computable").filter(|next| *next <= end) {
        assert_eq!(next - at, TimeDelta::hours(1));
        (at, count) = (next, count + 1);
    }
    assert_eq!(count, 8_760);
}

#[test]
fn last_until_is_the_inverse_of_next_after() {
    for (text, zone) in
        [("*/7 * * * * *", "UTC"), ("30 2 * * *", "Europe/Berlin"), ("0 12 29 2 *", "Asia/Tokyo")]
    {
        let schedule = cron(text, zone);
        let mut at = utc("2026-03-28T00:00:00Z");
        for _ in 0..40 {
            let next = schedule.next_after(at).expect("computable").expect("goes on");
            assert_eq!(schedule.last_until(next), Ok(Some(next)), "{text}");
            assert!(
                schedule
                    .last_until(next - TimeDelta::seconds(1))
                    .expect("computable")
                    .is_none_or(|last| last < next)
            );
            at = next;
        }
    }
}

#[test]
fn what_is_no_schedule_is_refused() {
    assert_eq!(
        Schedule::cron("@daily", "Mars/Olympus").err(),
        Some(ScheduleError::Zone("Mars/Olympus".to_owned()))
    );
    for period in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(u64::MAX)] {
        assert_eq!(Schedule::every(period).err(), Some(ScheduleError::Period(period)));
    }
}

#[test]
fn the_first_gap_wider_than_a_limit_is_found() {
    let from = utc("2026-01-05T00:00:00Z");
    let limit = TimeDelta::minutes(90);
    let none = [
        "@hourly",
        "* * * * * *",
        "*/30 * * * *",
        "0 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23 * * *",
    ];
    for text in none {
        assert_eq!(cron(text, "UTC").gap_above(limit, from), Ok(None), "{text}");
    }
    let gaps = [
        ("0 9-17 * * *", "2026-01-05T17:00:00Z", "2026-01-06T09:00:00Z"),
        ("* * * * * 1-5", "2026-01-09T23:59:59Z", "2026-01-12T00:00:00Z"),
        ("0 */2 * * *", "2026-01-05T00:00:00Z", "2026-01-05T02:00:00Z"),
        ("*/10 * * 1-11 *", "2026-11-30T23:50:00Z", "2027-01-01T00:00:00Z"),
    ];
    for (text, after, until) in gaps {
        let gap = Gap { after: utc(after), until: Some(utc(until)) };
        assert_eq!(cron(text, "UTC").gap_above(limit, from), Ok(Some(gap)), "{text}");
    }
    let slow = Schedule::every(Duration::from_hours(2)).expect("valid");
    assert!(slow.gap_above(limit, from).expect("computable").is_some());
}

#[test]
fn a_job_says_what_becomes_of_its_times_when_clocks_change() {
    use billing_scheduler::{
        Dst,
        DstFold::{self, Both, First, Last},
        DstGap::{self, Shift, Skip},
    };
    let with = |text: &str, gap: Option<DstGap>, fold: Option<DstFold>| {
        Schedule::cron_with(text, "Europe/Berlin", Dst { gap, fold }).expect("valid")
    };
    let (spring, autumn) = ("2026-03-29T00:00:00Z", "2026-10-24T23:59:59Z");
    let rows = [
        (with("30 2 * * *", Some(Shift), None), spring, ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        (with("30 2 * * *", Some(Skip), None), spring, ["2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"]),
        (with("30 * * * *", Some(Shift), None), spring, ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"]),
        (with("30 2 * * *", None, Some(First)), autumn, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        (with("30 2 * * *", None, Some(Last)), autumn, ["2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]),
        (with("30 2 * * *", None, Some(Both)), autumn, ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]),
        (with("30 * * * *", None, Some(First)), autumn, ["2026-10-25T00:30:00Z", "2026-10-25T02:30:00Z"]),
        (with("30 * * * *", None, Some(Last)), autumn, ["2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"]),
        // A list of hours names them: what is skipped comes at the end of the gap, together with what is due there anyway.
        (with("0 1,2,3 * * *", None, None), spring, ["2026-03-29T01:00:00Z", "2026-03-29T23:00:00Z"]),
    ];
    for (schedule, after, expected) in rows {
        check(&schedule, after, &expected);
    }
}

/// What is refused, marked with the part that is wrong, the message, and the correction.
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
        // Spaces around a text move nothing.
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
fn long_cron_text_is_refused_and_cut() {
    let text = format!("{} * * * *", vec!["0"; 600].join(","));
    let Err(ScheduleError::Cron(error)) = Schedule::cron(&text, "UTC") else { panic!("it is accepted") };
    assert!(error.to_string().ends_with("...`: it has 1207 bytes, and at most 1024 are allowed"), "{error}");
    assert!(error.to_string().len() < 200);
    let Err(ScheduleError::Cron(error)) = Schedule::cron("\u{1b}[2J", "UTC") else {
        panic!("it is accepted")
    };
    assert!(!error.to_string().contains('\u{1b}'), "a terminal would obey it");
}

/// In a release build each takes microseconds; the bench `due` has the figures.
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
