//! What a run's result means for the history and the schedule, as a pure function: the counterpart of `due`.

use chrono::{DateTime, TimeDelta, Utc};

use super::spec::JobSpec;
use crate::{
    job::{JobError, Outcome},
    runtime::store::{JobState, Retrying, RunStatus},
};

/// The time until the next attempt of a job that needs an unavailable service.
const UNAVAILABLE_RETRY: TimeDelta = TimeDelta::seconds(1);

/// The status of a run and the state of its job after it.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedOutcome {
    /// The status for the run's record.
    pub status: RunStatus,
    /// The job's state after the run.
    pub state: JobState,
    /// The number of processed items.
    pub items: u64,
    /// The error message of a failed run.
    pub error: Option<String>,
    /// The job's own figures, for the run's record.
    pub details: serde_json::Value,
}

/// Returns the status of `attempt` at `scheduled_at` with this result, and the job's next state.
#[must_use]
pub fn apply_outcome(
    spec: &JobSpec,
    state: &JobState,
    scheduled_at: DateTime<Utc>,
    attempt: u32,
    result: Result<Outcome, JobError>,
    now: DateTime<Utc>,
) -> AppliedOutcome {
    // The cursor never moves back: a retried occurrence may be older than those finished since.
    let finished = JobState::at(state.cursor.max(scheduled_at));
    let no_details = serde_json::Value::Null;
    let (status, state, items, error, details) = match result {
        Ok(Outcome::Done { items, details }) => (RunStatus::Done, finished, items, None, details),
        Ok(Outcome::Interrupted { items }) => {
            (RunStatus::Interrupted, state.clone(), items, None, no_details)
        }
        Err(error @ JobError::Unavailable(_)) => {
            let state = retrying(state, scheduled_at, attempt.saturating_sub(1), now, UNAVAILABLE_RETRY);
            (RunStatus::Retrying, state, 0, Some(error.to_string()), no_details)
        }
        Err(error @ JobError::Retry(_)) if attempt < spec.retry.max_attempts => {
            let wait = TimeDelta::from_std(spec.wait_after(scheduled_at, attempt)).unwrap_or(TimeDelta::MAX);
            let state = retrying(state, scheduled_at, attempt, now, wait);
            (RunStatus::Retrying, state, 0, Some(error.to_string()), no_details)
        }
        Err(error) => (RunStatus::Dead, finished, 0, Some(error.to_string()), no_details),
    };
    AppliedOutcome { status, state, items, error, details }
}

fn retrying(
    state: &JobState,
    scheduled_at: DateTime<Utc>,
    failed_attempts: u32,
    now: DateTime<Utc>,
    wait: TimeDelta,
) -> JobState {
    let not_before = now.checked_add_signed(wait).unwrap_or(DateTime::<Utc>::MAX_UTC);
    JobState { cursor: state.cursor, retrying: Some(Retrying { scheduled_at, failed_attempts, not_before }) }
}
