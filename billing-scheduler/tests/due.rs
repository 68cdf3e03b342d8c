//! The decision of when, as a table.

use std::time::Duration;

use billing_scheduler::{
    Due, JobError, JobSpec, JobState, Misfire, Outcome, Retrying, RunStatus, Schedule,
    chrono::{DateTime, Utc},
    due, settle,
};

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

#[test]
fn due_is_decided_by_cursor_policy_and_time_alone() {
    use Misfire::{CatchUp, Coalesce, Skip};
    let rows = [
        (Coalesce, "13:00:00", "13:59:59", Due::Later(at("14:00:00"))),
        (Coalesce, "13:00:00", "14:00:00", now("14:00:00", 1, None)),
        (Coalesce, "13:00:00", "14:59:59", now("14:00:00", 1, None)),
        (Coalesce, "13:00:00", "17:10:00", now("17:00:00", 1, Some("14:00:00"))),
        (CatchUp, "13:00:00", "17:10:00", now("14:00:00", 1, None)),
        (CatchUp, "16:00:00", "17:10:00", now("17:00:00", 1, None)),
        (Skip, "13:00:00", "14:00:30", now("14:00:00", 1, None)),
        (Skip, "13:00:00", "14:10:00", Due::Skip { from: at("14:00:00"), until: at("14:00:00") }),
        (Skip, "13:00:00", "17:10:00", Due::Skip { from: at("14:00:00"), until: at("17:00:00") }),
        // A fresh one stays when older ones are passed over.
        (Skip, "13:00:00", "17:00:10", Due::Skip { from: at("14:00:00"), until: at("16:00:00") }),
        // A clock that was set back finds the cursor in the future: nothing runs twice.
        (Coalesce, "14:00:00", "12:30:00", Due::Later(at("15:00:00"))),
    ];
    for (misfire, cursor, clock, expected) in rows {
        let decided = due(&hourly(misfire), &JobState::at(at(cursor)), at(clock));
        assert_eq!(decided, Ok(expected), "{misfire:?} at {clock} with the cursor at {cursor}");
    }
}

#[test]
fn a_failed_occurrence_is_tried_again_after_its_wait_and_before_newer_ones() {
    let spec = hourly(Misfire::Coalesce);
    let retrying = Retrying { scheduled_at: at("14:00:00"), failed_attempts: 2, not_before: at("14:00:45") };
    let state = JobState { cursor: at("13:00:00"), retrying: Some(retrying) };
    assert_eq!(due(&spec, &state, at("14:00:44")), Ok(Due::Later(at("14:00:45"))));
    assert_eq!(due(&spec, &state, at("15:30:00")), Ok(now("14:00:00", 3, None)));
}

#[test]
fn a_result_moves_the_cursor_only_when_the_occurrence_is_finished_with() {
    let spec = hourly(Misfire::Coalesce);
    let state = JobState::at(at("13:00:00"));
    let settle = |attempt, result| settle(&spec, &state, at("14:00:00"), attempt, result, at("14:00:10"));

    let done = settle(1, Ok(Outcome::done(7)));
    assert_eq!((done.status, done.state, done.items), (RunStatus::Done, JobState::at(at("14:00:00")), 7));

    let interrupted = settle(1, Ok(Outcome::Interrupted { items: 3 }));
    assert_eq!((interrupted.status, interrupted.state), (RunStatus::Interrupted, state.clone()));

    let failed = settle(1, Err(JobError::retry("boom")));
    let retrying = Retrying { scheduled_at: at("14:00:00"), failed_attempts: 1, not_before: at("14:00:25") };
    assert_eq!(failed.status, RunStatus::Retrying);
    assert_eq!(failed.state, JobState { cursor: at("13:00:00"), retrying: Some(retrying) });
    assert_eq!(failed.error.as_deref(), Some("boom"));

    for (attempt, error) in [(5, JobError::retry("boom")), (1, JobError::fatal("boom"))] {
        let dead = settle(attempt, Err(error));
        assert_eq!((dead.status, dead.state), (RunStatus::Dead, JobState::at(at("14:00:00"))));
    }
}

#[test]
fn waits_between_attempts_double_up_to_a_cap() {
    let retry = billing_scheduler::Retry::default();
    let waits: Vec<u64> = [1, 2, 3, 4, 5, 6, 40].iter().map(|n| retry.wait_after(*n).as_secs()).collect();
    assert_eq!(waits, [15, 30, 60, 120, 240, 300, 300]);
}
