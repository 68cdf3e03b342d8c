//! What the result of a one-off job means, and how many jobs a worker may claim: pure functions.

use std::time::Duration;

use crate::{
    job::{JobError, Outcome},
    runtime::{
        decide::{Retry, stable_hash::StableHash},
        store::{QueueNext, QueuedJob, RunStatus},
    },
};

/// The time until the next attempt of a job that needs an unavailable service.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(2);

/// What the result of a run means for the history and for the job.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// The status for the run's record.
    pub status: RunStatus,
    /// The job's state after the run.
    pub next: QueueNext,
    /// The number of processed items.
    pub items: u64,
    /// The error message of a failed run.
    pub error: Option<String>,
    /// The job's own figures, for the run's record.
    pub details: serde_json::Value,
}

/// Returns what the `result` of the next attempt of `job` means.
#[must_use]
pub fn settle(retry: &Retry, job: &QueuedJob, result: Result<Outcome, JobError>) -> Settled {
    let attempt = job.failed_attempts.saturating_add(1);
    let again = |after, failed_attempts| QueueNext::Again { after, failed_attempts };
    let failed = |status, next, error: JobError| Settled {
        status,
        next,
        items: 0,
        error: Some(error.to_string()),
        details: serde_json::Value::Null,
    };
    match result {
        Ok(Outcome::Done { items, details }) => {
            Settled { status: RunStatus::Done, next: QueueNext::Finished, items, error: None, details }
        }
        Ok(Outcome::Interrupted { items }) => Settled {
            status: RunStatus::Interrupted,
            next: again(Duration::ZERO, job.failed_attempts),
            items,
            error: None,
            details: serde_json::Value::Null,
        },
        Err(error @ JobError::Unavailable(_)) => {
            failed(RunStatus::Retrying, again(UNAVAILABLE_RETRY, job.failed_attempts), error)
        }
        Err(error @ JobError::Retry(_)) if attempt < retry.max_attempts => {
            failed(RunStatus::Retrying, again(wait_after(retry, job, attempt), attempt), error)
        }
        Err(error) => failed(RunStatus::Dead, QueueNext::Finished, error),
    }
}

/// Returns why a claimed job must not run again: its last attempt was lost. An attempt whose process ended or lost the claim leaves
/// no result, so a job that ends its process would otherwise run without limit.
pub(super) fn last_attempt_is_lost(retry: &Retry, job: &QueuedJob) -> Option<JobError> {
    let attempts = job.failed_attempts;
    (attempts >= retry.max_attempts.max(1)).then(|| {
        JobError::fatal(format!(
            "attempt {attempts} of {} left no result: its process ended, or lost the claim, during the run",
            retry.max_attempts
        ))
    })
}

/// Returns the wait after `failed_attempts` failures. Its jitter depends on the id: many jobs have one scheduled time.
fn wait_after(retry: &Retry, job: &QueuedJob, failed_attempts: u32) -> Duration {
    let longest = retry.wait_after(failed_attempts);
    let jitter = longest.saturating_mul(u32::from(retry.jitter_percent.min(100))) / 100;
    let hash = StableHash::of(&job.id.to_string(), job.scheduled_at, failed_attempts);
    longest.saturating_sub(hash.below(jitter))
}

/// Returns how many jobs of each kind a worker may claim, without the kinds that are at their limit: `kinds` has the name, the
/// limit and the number of claimed jobs of each.
#[must_use]
pub fn claim_limits<'a>(kinds: impl IntoIterator<Item = (&'a str, u32, u32)>) -> Vec<(String, u32)> {
    let free = kinds.into_iter().map(|(kind, limit, claimed)| (kind, limit.saturating_sub(claimed)));
    let mut limits: Vec<_> =
        free.filter(|(_, free)| *free > 0).map(|(kind, free)| (kind.to_owned(), free)).collect();
    limits.sort_unstable();
    limits
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::job::FencingToken;

    fn job(failed_attempts: u32) -> QueuedJob {
        QueuedJob {
            id: Uuid::nil(),
            kind: "mail".to_owned(),
            payload: serde_json::Value::Null,
            scheduled_at: DateTime::UNIX_EPOCH,
            failed_attempts,
            fencing_token: FencingToken(1),
        }
    }

    #[test]
    fn result_decides_the_next_state() {
        let retry = Retry {
            max_attempts: 3,
            backoff: Duration::from_secs(10),
            max_backoff: Duration::from_mins(1),
            jitter_percent: 0,
        };
        let again = |seconds, failed_attempts| QueueNext::Again {
            after: Duration::from_secs(seconds),
            failed_attempts,
        };
        let cases: [(u32, Result<Outcome, JobError>, RunStatus, QueueNext); 7] = [
            (0, Ok(Outcome::done(1)), RunStatus::Done, QueueNext::Finished),
            (1, Ok(Outcome::Interrupted { items: 0 }), RunStatus::Interrupted, again(0, 1)),
            (0, Err(JobError::retry("x")), RunStatus::Retrying, again(10, 1)),
            (1, Err(JobError::retry("x")), RunStatus::Retrying, again(20, 2)),
            (2, Err(JobError::retry("x")), RunStatus::Dead, QueueNext::Finished),
            (2, Err(JobError::unavailable("x")), RunStatus::Retrying, again(2, 2)),
            (0, Err(JobError::fatal("x")), RunStatus::Dead, QueueNext::Finished),
        ];
        for (failed_attempts, result, status, next) in cases {
            let case = format!("{failed_attempts} failures, then {result:?}");
            let settled = settle(&retry, &job(failed_attempts), result);
            assert_eq!((settled.status, settled.next), (status, next), "{case}");
        }
    }

    #[test]
    fn lost_attempts_are_bounded() {
        let retry = Retry { max_attempts: 3, ..Retry::default() };
        for (failed_attempts, is_lost) in [(0, false), (2, false), (3, true), (4, true)] {
            let error = last_attempt_is_lost(&retry, &job(failed_attempts));
            assert_eq!(error.is_some(), is_lost, "{failed_attempts}: {error:?}");
        }
    }

    #[test]
    fn retry_jitter_differs_between_jobs() {
        let retry = Retry { jitter_percent: 50, ..Retry::default() };
        let wait = |id| wait_after(&retry, &QueuedJob { id, ..job(0) }, 1);
        let waits: std::collections::HashSet<_> = (0..20).map(|n| wait(Uuid::from_u128(n))).collect();
        assert!(waits.len() > 10, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= retry.backoff && *wait >= retry.backoff / 2), "{waits:?}");
    }

    #[test]
    fn kinds_at_their_limit_claim_nothing() {
        let limits = claim_limits([("b", 4, 1), ("full", 2, 2), ("over", 1, 3), ("a", 5, 0)]);
        assert_eq!(limits, [("a".to_owned(), 5), ("b".to_owned(), 3)]);
    }
}
