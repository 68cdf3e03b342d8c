//! When a schedule is due, across the days on which clocks change.

use std::time::Duration;

use billing_scheduler::{
    Schedule, ScheduleError, ScheduleGap,
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
        at = schedule.next_after(at).expect("computable").expect("the schedule has a next time");
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
fn every_is_anchored_to_epoch() {
    let hourly = Schedule::every(Duration::from_hours(1)).expect("valid");
    check(&hourly, "2026-01-01T13:59:59.999Z", &["2026-01-01T14:00:00Z", "2026-01-01T15:00:00Z"]);
    check(&hourly, "2026-01-01T14:00:00Z", &["2026-01-01T15:00:00Z"]);
    check(&hourly, "1969-12-31T23:30:00Z", &["1970-01-01T00:00:00Z"]);
}

#[test]
fn offset_moves_every_scheduled_time() {
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
fn single_time_is_due_once() {
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
fn list_is_due_when_any_schedule_is() {
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
fn window_excludes_times_outside() {
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
fn schedule_formats_as_text() {
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
fn shortest_gap_is_found() {
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
fn extreme_instants_are_accepted() {
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
            // Any result is valid, but not a panic.
            let _ = (schedule.next_after(instant), schedule.last_until(instant));
            let _ = schedule.count(instant, instant, 10);
        }
    }
}

#[test]
fn skipped_fixed_time_runs_after_gap() {
    check(
        &cron("30 2 * * *", "Europe/Berlin"),
        "2026-03-27T12:00:00Z",
        &["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
    );
    // The search may also begin one second before the gap.
    check(&cron("30 2 * * *", "Europe/Berlin"), "2026-03-29T00:59:59Z", &["2026-03-29T01:00:00Z"]);
}

#[test]
fn repeated_fixed_time_runs_once() {
    check(
        &cron("0 30 2 * * *", "Europe/Berlin"),
        "2026-10-24T12:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
    );
}

#[test]
fn wildcard_hour_follows_wall_clock() {
    let half_past = cron("30 * * * *", "Europe/Berlin");
    check(
        &half_past,
        "2026-10-25T00:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
    );
    check(&half_past, "2026-03-29T00:00:00Z", &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"]);
}

#[test]
fn hourly_job_runs_every_hour_of_year() {
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
fn last_until_inverts_next_after() {
    for (text, zone) in
        [("*/7 * * * * *", "UTC"), ("30 2 * * *", "Europe/Berlin"), ("0 12 29 2 *", "Asia/Tokyo")]
    {
        let schedule = cron(text, zone);
        let mut at = utc("2026-03-28T00:00:00Z");
        for _ in 0..40 {
            let next = schedule.next_after(at).expect("computable").expect("it has a next time");
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
fn invalid_schedules_are_rejected() {
    assert_eq!(
        Schedule::cron("@daily", "Mars/Olympus").err(),
        Some(ScheduleError::Zone("Mars/Olympus".to_owned()))
    );
    for period in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(u64::MAX)] {
        assert_eq!(Schedule::every(period).err(), Some(ScheduleError::Period(period)));
    }
}

#[test]
fn first_gap_above_limit_is_found() {
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
        let gap = ScheduleGap { after: utc(after), until: Some(utc(until)) };
        assert_eq!(cron(text, "UTC").gap_above(limit, from), Ok(Some(gap)), "{text}");
    }
    let slow = Schedule::every(Duration::from_hours(2)).expect("valid");
    assert!(slow.gap_above(limit, from).expect("computable").is_some());
}

#[test]
fn dst_policy_applies_at_clock_changes() {
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
        // A list of hours has times of day: a skipped one is due at the end of the gap, once with the time that is due there.
        (with("0 1,2,3 * * *", None, None), spring, ["2026-03-29T01:00:00Z", "2026-03-29T23:00:00Z"]),
    ];
    for (schedule, after, expected) in rows {
        check(&schedule, after, &expected);
    }
}

#[test]
fn schedule_is_described_in_words() {
    for (text, words) in [
        ("30 2 * * *", "at 02:30 every day"),
        ("15 30 2 * * *", "at 02:30:15 every day"),
        ("0 9,17 * * MON-FRI", "at 09:00 and 17:00 on Monday to Friday"),
        ("0 9 * * SAT,SUN", "at 09:00 on Saturday and Sunday"),
        ("@hourly", "at minute 0, in every hour"),
        ("*/5 * * * *", "every 5 minutes"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("1,5 * * * * *", "at seconds 1 and 5"),
        ("* * * * *", "every minute"),
        ("0,30 9-17 * * *", "every 30 minutes, in hours 9 to 17"),
        ("5 */2 * * *", "at minute 5, in every 2nd hour"),
        ("0 0 1,15 * *", "at 00:00 on the 1st and 15th of the month"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        (
            "0 0 15W JAN-MAR,DEC *",
            "at 00:00 on the weekday nearest to the 15th of the month in January to March and December",
        ),
        ("0 0 * * MON#2,FRIL", "at 00:00 on the second Monday of the month and the last Friday of the month"),
        ("0 0 13 * FRI", "at 00:00 on the 13th of the month or on Friday"),
    ] {
        let schedule = Schedule::cron(text, "Europe/Berlin").expect(text);
        assert_eq!(schedule.words(), format!("{words}, Europe/Berlin"), "{text}");
    }
    assert_eq!(Schedule::every(Duration::from_mins(90)).expect("valid").words(), "every 1h 30m");
}
