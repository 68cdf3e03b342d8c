//! What a run's result means for the job's row: pure, the counterpart of `due`.

use chrono::{DateTime, TimeDelta, Utc};

use super::spec::JobSpec;
use crate::{
    job::{JobError, Outcome},
    runtime::store::{JobState, Retrying, RunStatus},
};

/// What to write down about a run.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedOutcome {
    /// How the run's row reads.
    pub status: RunStatus,
    /// Where the schedule stands from now on.
    pub state: JobState,
    /// How many things were worked on.
    pub items: u64,
    /// What failed, in a sentence.
    pub error: Option<String>,
    /// The job's own figures.
    pub details: serde_json::Value,
}

/// Turns the result of `attempt` at `scheduled_at` into the run's status and the job's next state.
#[must_use]
pub fn apply_outcome(
    spec: &JobSpec,
    state: &JobState,
    scheduled_at: DateTime<Utc>,
    attempt: u32,
    result: Result<Outcome, JobError>,
    now: DateTime<Utc>,
) -> AppliedOutcome {
    // A cursor never goes back: a retried occurrence may be older than what was finished since.
    let finished = JobState::at(state.cursor.max(scheduled_at));
    let failed = |error: &JobError, status, state| AppliedOutcome {
        status,
        state,
        items: 0,
        error: Some(error.to_string()),
        details: serde_json::Value::Null,
    };
    match result {
        Ok(Outcome::Done { items, details }) => {
            AppliedOutcome { status: RunStatus::Done, state: finished, items, error: None, details }
        }
        Ok(Outcome::Interrupted { items }) => AppliedOutcome {
            status: RunStatus::Interrupted,
            state: state.clone(),
            items,
            error: None,
            details: serde_json::Value::Null,
        },
        Err(error @ JobError::Retry(_)) if attempt < spec.retry.max_attempts => {
            let wait = TimeDelta::from_std(spec.wait_after(scheduled_at, attempt)).unwrap_or(TimeDelta::MAX);
            let not_before = now.checked_add_signed(wait).unwrap_or(DateTime::<Utc>::MAX_UTC);
            let retrying = Retrying { scheduled_at, failed_attempts: attempt, not_before };
            let state = JobState { cursor: state.cursor, retrying: Some(retrying) };
            failed(&error, RunStatus::Retrying, state)
        }
        Err(error) => failed(&error, RunStatus::Dead, finished),
    }
}
