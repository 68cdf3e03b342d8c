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
    for (text, zone) in [("61 * * * *", "UTC"), ("nonsense", "UTC"), ("* * *", "UTC"), ("", "UTC")] {
        assert!(matches!(Schedule::cron(text, zone), Err(ScheduleError::Cron { .. })), "{text}");
    }
    assert_eq!(
        Schedule::cron("0 0 30 2 *", "UTC").err(),
        Some(ScheduleError::NeverComes("0 0 30 2 *".to_owned()))
    );
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
