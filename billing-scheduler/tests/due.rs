//! The decision [`due`] as a table.

use std::time::Duration;

use billing_scheduler::{
    Due, JobError, JobSpec, JobState, Misfire, Outcome, Retry, Retrying, RunStatus, Schedule, SkipReason,
    Skipped, apply_outcome,
    chrono::{DateTime, TimeDelta, Utc},
    due,
};
use proptest::prelude::*;

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

fn hourly(misfire: Misfire) -> JobSpec {
    let schedule = Schedule::every(Duration::from_hours(1)).expect("valid");
    JobSpec { misfire, ..JobSpec::new("billing", "billing", schedule) }
}

fn now(clock: &str, attempt: u32, coalesced_from: Option<&str>) -> Due {
    Due::Now { scheduled_at: at(clock), attempt, coalesced_from: coalesced_from.map(at) }
}

fn skip(from: &str, until: &str, count: u32, reason: SkipReason) -> Due {
    Due::Skip(Skipped { from: at(from), until: at(until), count, reason })
}

#[test]
fn due_follows_cursor_policy_and_time() {
    use Misfire::{CatchUp, Coalesce, Skip};
    use SkipReason::Policy;
    let rows = [
        (Coalesce, "13:00:00", "13:59:59", Due::Later(at("14:00:00"))),
        (Coalesce, "13:00:00", "14:00:00", now("14:00:00", 1, None)),
        (Coalesce, "13:00:00", "14:59:59", now("14:00:00", 1, None)),
        (Coalesce, "13:00:00", "17:10:00", now("17:00:00", 1, Some("14:00:00"))),
        (CatchUp, "13:00:00", "17:10:00", now("14:00:00", 1, None)),
        (CatchUp, "16:00:00", "17:10:00", now("17:00:00", 1, None)),
        (Skip, "13:00:00", "14:00:30", now("14:00:00", 1, None)),
        (Skip, "13:00:00", "14:10:00", skip("14:00:00", "14:00:00", 1, Policy)),
        (Skip, "13:00:00", "17:10:00", skip("14:00:00", "17:00:00", 4, Policy)),
        // The fresh time runs although older ones are skipped.
        (Skip, "13:00:00", "17:00:10", skip("14:00:00", "16:00:00", 3, Policy)),
        // A clock that was set back finds the cursor in the future: nothing runs twice.
        (Coalesce, "14:00:00", "12:30:00", Due::Later(at("15:00:00"))),
    ];
    for (misfire, cursor, clock, expected) in rows {
        let decided = due(&hourly(misfire), &JobState::at(at(cursor)), at(clock));
        assert_eq!(decided, Ok(expected), "{misfire:?} at {clock} with the cursor at {cursor}");
    }
}

#[test]
fn time_beyond_grace_is_missed() {
    use Misfire::{CatchUp, Coalesce, Skip};
    let (ten_minutes, two_hours) = (Duration::from_mins(10), Duration::from_hours(2));
    let (short, long) = (SkipReason::Grace(ten_minutes), SkipReason::Grace(two_hours));
    let rows = [
        (Coalesce, ten_minutes, "14:10:00", now("14:00:00", 1, None)),
        (Coalesce, ten_minutes, "14:10:01", skip("14:00:00", "14:00:00", 1, short)),
        (Coalesce, ten_minutes, "17:00:00", now("17:00:00", 1, Some("14:00:00"))),
        (Coalesce, ten_minutes, "17:30:00", skip("14:00:00", "17:00:00", 4, short)),
        (CatchUp, ten_minutes, "14:10:01", skip("14:00:00", "14:00:00", 1, short)),
        (CatchUp, two_hours, "15:59:00", now("14:00:00", 1, None)),
        // 15:00 is just within its grace.
        (CatchUp, two_hours, "17:00:00", skip("14:00:00", "14:00:00", 1, long)),
        (Skip, two_hours, "15:59:00", skip("14:00:00", "14:00:00", 1, SkipReason::Policy)),
        (Skip, ten_minutes, "14:09:00", now("14:00:00", 1, None)),
        (Skip, ten_minutes, "14:11:00", skip("14:00:00", "14:00:00", 1, short)),
    ];
    for (misfire, grace, clock, expected) in rows {
        let spec = JobSpec { misfire_grace: Some(grace), ..hourly(misfire) };
        let decided = due(&spec, &JobState::at(at("13:00:00")), at(clock));
        assert_eq!(decided, Ok(expected), "{misfire:?} within {grace:?} at {clock}");
    }
}

#[test]
fn catch_up_limit_skips_oldest_times() {
    let rows = [
        (1, "14:59:00", now("14:00:00", 1, None)),
        (1, "16:10:00", skip("14:00:00", "15:00:00", 2, SkipReason::CatchUpLimit(1))),
        (3, "16:10:00", now("14:00:00", 1, None)),
        (3, "20:10:00", skip("14:00:00", "17:00:00", 4, SkipReason::CatchUpLimit(3))),
    ];
    for (catch_up_limit, clock, expected) in rows {
        for schedule in
            [Schedule::every(Duration::from_hours(1)), Schedule::cron("0 * * * *", "Europe/Berlin")]
        {
            let schedule = schedule.expect("valid");
            let spec = JobSpec { catch_up_limit, schedule, ..hourly(Misfire::CatchUp) };
            let decided = due(&spec, &JobState::at(at("13:00:00")), at(clock));
            assert_eq!(decided, Ok(expected.clone()), "{catch_up_limit} at {clock}");
        }
    }
}

#[test]
fn skipped_times_format_as_sentence() {
    let rows = [
        (1, SkipReason::Policy, "a scheduled time was missed, and the job's misfire policy is to skip"),
        (
            4,
            SkipReason::Grace(Duration::from_mins(10)),
            "4 scheduled times were missed since 2026-01-05 14:00:00 UTC by more than the grace of 600 s",
        ),
        (
            Skipped::MAX_COUNTED,
            SkipReason::CatchUpLimit(24),
            "10000 scheduled times or more were missed since 2026-01-05 14:00:00 UTC, and only the latest 24 are caught up",
        ),
    ];
    for (count, reason, expected) in rows {
        let skipped = Skipped { from: at("14:00:00"), until: at("17:00:00"), count, reason };
        assert_eq!(skipped.to_string(), expected);
    }
}

#[test]
fn jitter_delays_start_only() {
    let jitter = Duration::from_mins(20);
    let spec = JobSpec { jitter, ..hourly(Misfire::CatchUp) };
    let state = JobState::at(at("13:00:00"));
    let starts_at = spec.starts_at(at("14:00:00"));
    assert!((at("14:00:01")..at("14:20:00")).contains(&starts_at), "{starts_at}");
    assert_eq!(due(&spec, &state, at("14:00:00")), Ok(Due::Later(starts_at)));
    assert_eq!(due(&spec, &state, starts_at - TimeDelta::milliseconds(1)), Ok(Due::Later(starts_at)));
    assert_eq!(due(&spec, &state, starts_at), Ok(now("14:00:00", 1, None)));
    let other = JobSpec { name: "heartbeat".to_owned(), ..spec.clone() };
    assert_ne!(other.starts_at(at("14:00:00")), starts_at);
    assert_ne!(spec.starts_at(at("15:00:00")) - at("15:00:00"), starts_at - at("14:00:00"));
    // A scheduled time that waits for its jitter is neither run early nor coalesced into an earlier one.
    let coalesced = JobSpec { misfire: Misfire::Coalesce, ..spec };
    let decided = due(&coalesced, &state, at("16:00:00"));
    assert_eq!(decided, Ok(now("15:00:00", 1, Some("14:00:00"))));
}

#[test]
fn single_time_runs_once() {
    let spec =
        JobSpec { schedule: Schedule::at(at("14:00:00")).expect("valid"), ..hourly(Misfire::Coalesce) };
    let rows = [
        ("13:00:00", "13:30:00", Due::Later(at("14:00:00"))),
        ("13:00:00", "19:30:00", now("14:00:00", 1, None)),
        ("14:00:00", "19:30:00", Due::Never),
    ];
    for (cursor, clock, expected) in rows {
        assert_eq!(due(&spec, &JobState::at(at(cursor)), at(clock)), Ok(expected), "{cursor}, {clock}");
    }
}

#[test]
fn missed_decade_costs_no_more() {
    let (cursor, clock) = (at("14:00:00") - TimeDelta::days(3_652), at("14:00:00"));
    for text in ["* * * * * *", "* * * * * 1-5", "*/7 1-59 * * * *", "0 0 29 2 *"] {
        for misfire in [Misfire::Coalesce, Misfire::CatchUp, Misfire::Skip] {
            for misfire_grace in [None, Some(Duration::from_hours(30 * 24))] {
                let schedule = Schedule::cron(text, "America/New_York").expect("valid");
                let spec = JobSpec { schedule: schedule.clone(), misfire_grace, ..hourly(misfire) };
                let mut state = JobState::at(cursor);
                // A few decisions at most lead to a run or to an end.
                let ended = (0..4).any(|_| match due(&spec, &state, clock).expect("computable") {
                    Due::Skip(skipped) => {
                        assert!(skipped.until > state.cursor && skipped.until <= clock, "{skipped:?}");
                        state = JobState::at(skipped.until);
                        false
                    }
                    Due::Now { scheduled_at, .. } => {
                        assert!(scheduled_at > state.cursor && scheduled_at <= clock, "{scheduled_at}");
                        true
                    }
                    Due::Later(at) => at > clock,
                    Due::Never => false,
                });
                assert!(ended, "{text}, {misfire:?}, {misfire_grace:?}");
            }
        }
    }
}

/// A schedule, a policy and a period without any run.
fn outages() -> impl Strategy<Value = (JobSpec, DateTime<Utc>, DateTime<Utc>)> {
    const TEXTS: [&str; 5] =
        ["*/10 * * * *", "0 1,2,3 * * *", "30 2 * * *", "*/45 */5 * * * *", "0 9 * * 1-5"];
    let schedule =
        (prop::sample::select(&TEXTS[..]), any::<bool>(), 60_u64..7_200).prop_map(|(text, every, period)| {
            let schedule = if every {
                Schedule::every(Duration::from_secs(period))
            } else {
                Schedule::cron(text, "Europe/Berlin")
            };
            schedule.expect("valid")
        });
    let misfire = prop::sample::select(&[Misfire::Coalesce, Misfire::CatchUp, Misfire::Skip][..]);
    let grace = prop::option::of((60_u64..200_000).prop_map(Duration::from_secs));
    // Around the night when clocks go back, and the one when they go forward.
    let begin = prop::sample::select(&[1_792_800_000_i64, 1_774_700_000, 1_767_600_000][..]);
    (schedule, misfire, grace, 1_u32..30, 0_u64..60, begin, 0_i64..90_000, 1_i64..200_000).prop_map(
        |(schedule, misfire, misfire_grace, catch_up_limit, jitter, begin, after, length)| {
            let jitter = Duration::from_secs(jitter);
            let spec =
                JobSpec { misfire_grace, catch_up_limit, jitter, ..JobSpec::new("job", "kind", schedule) };
            let begin = DateTime::from_timestamp(begin + after, 0).expect("in range");
            (JobSpec { misfire, ..spec }, begin, begin + TimeDelta::seconds(length))
        },
    )
}

proptest! {
    /// Suspended, down, busy, or with a clock that jumped: after any period without runs, each scheduled time in it is
    /// covered exactly once, in order: it ran, it was coalesced into a later run, or a record has the reason why it was skipped.
    #[test]
    fn passed_times_are_covered_exactly_once((spec, begin, end) in outages()) {
        let mut missed = Vec::new();
        let mut at = begin;
        while let Some(next) = spec.schedule.next_after(at).expect("computable").filter(|next| *next <= end) {
            missed.push(next);
            at = next;
        }
        let mut accounted = Vec::new();
        let between = |from, until| missed.iter().copied().filter(move |time| (from..=until).contains(time));
        let (mut state, mut runs) = (JobState::at(begin), 0);
        loop {
            match due(&spec, &state, end).expect("computable") {
                Due::Now { scheduled_at, coalesced_from, .. } => {
                    accounted.extend(between(coalesced_from.unwrap_or(scheduled_at), scheduled_at));
                    prop_assert!(spec.starts_at(scheduled_at) <= end);
                    if let Some(grace) = spec.grace() {
                        prop_assert!(end - scheduled_at <= TimeDelta::from_std(grace).expect("short"));
                    }
                    runs += 1;
                    state = JobState::at(scheduled_at);
                }
                Due::Skip(skipped) => {
                    let passed: Vec<_> = between(skipped.from, skipped.until).collect();
                    prop_assert_eq!(passed.len(), skipped.count as usize);
                    accounted.extend(passed);
                    state = JobState::at(skipped.until);
                }
                Due::Later(starts_at) => {
                    prop_assert!(starts_at > end);
                    break;
                }
                Due::Never => prop_assert!(false, "these schedules never end"),
            }
        }
        // Only times that wait for their jitter are left.
        let waiting = missed.split_off(accounted.len());
        prop_assert!(waiting.iter().all(|time| end - *time < TimeDelta::from_std(spec.jitter).expect("short")));
        prop_assert_eq!(&accounted, &missed);
        match spec.misfire {
            Misfire::Coalesce | Misfire::Skip => prop_assert!(runs <= 1),
            Misfire::CatchUp => prop_assert!(runs <= spec.catch_up_limit),
        }
    }
}

#[test]
fn retry_runs_before_newer_times() {
    let spec = hourly(Misfire::Coalesce);
    let retrying = Retrying { scheduled_at: at("14:00:00"), failed_attempts: 2, not_before: at("14:00:45") };
    let state = JobState { cursor: at("13:00:00"), retrying: Some(retrying) };
    assert_eq!(due(&spec, &state, at("14:00:44")), Ok(Due::Later(at("14:00:45"))));
    assert_eq!(due(&spec, &state, at("15:30:00")), Ok(now("14:00:00", 3, None)));
}

#[test]
fn unfinished_result_keeps_cursor() {
    let retry = Retry { jitter_percent: 0, ..Retry::default() };
    let spec = JobSpec { retry, ..hourly(Misfire::Coalesce) };
    let state = JobState::at(at("13:00:00"));
    let apply_outcome =
        |attempt, result| apply_outcome(&spec, &state, at("14:00:00"), attempt, result, at("14:00:10"));

    let done = apply_outcome(1, Ok(Outcome::done(7)));
    assert_eq!((done.status, done.state, done.items), (RunStatus::Done, JobState::at(at("14:00:00")), 7));

    let interrupted = apply_outcome(1, Ok(Outcome::Interrupted { items: 3 }));
    assert_eq!((interrupted.status, interrupted.state), (RunStatus::Interrupted, state.clone()));

    let failed = apply_outcome(1, Err(JobError::retry("boom")));
    let retrying = Retrying { scheduled_at: at("14:00:00"), failed_attempts: 1, not_before: at("14:00:25") };
    assert_eq!(failed.status, RunStatus::Retrying);
    assert_eq!(failed.state, JobState { cursor: at("13:00:00"), retrying: Some(retrying) });
    assert_eq!(failed.error.as_deref(), Some("boom"));

    for (attempt, error) in [(5, JobError::retry("boom")), (1, JobError::fatal("boom"))] {
        let dead = apply_outcome(attempt, Err(error));
        assert_eq!((dead.status, dead.state), (RunStatus::Dead, JobState::at(at("14:00:00"))));
    }
}

#[test]
fn backoff_doubles_up_to_maximum() {
    let retry = Retry::default();
    let waits: Vec<u64> = [1, 2, 3, 4, 5, 6, 40].iter().map(|n| retry.wait_after(*n).as_secs()).collect();
    assert_eq!(waits, [15, 30, 60, 120, 240, 300, 300]);
}

#[test]
fn retry_jitter_separates_jobs() {
    let job = |name: &str| JobSpec { name: name.to_owned(), ..hourly(Misfire::Coalesce) };
    let names: Vec<String> = (0..20).map(|number| format!("job {number}")).collect();
    let mut waits: Vec<_> = names.iter().map(|name| job(name).wait_after(at("14:00:00"), 1)).collect();
    assert!(waits.iter().all(|wait| (12_000..=15_000).contains(&wait.as_millis())), "{waits:?}");
    assert_eq!(waits[3], job("job 3").wait_after(at("14:00:00"), 1), "the wait is the same on every host");
    waits.sort();
    waits.dedup();
    assert!(waits.len() > 15, "{waits:?}");
    assert_ne!(job("a").wait_after(at("14:00:00"), 9), job("a").wait_after(at("14:00:00"), 10));
}
