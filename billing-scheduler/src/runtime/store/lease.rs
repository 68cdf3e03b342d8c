//! The right to run a job, and where the job's schedule is.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::request::{ControlRequest, Pause};
use crate::job::FencingToken;

/// How long before its end a lease is no longer trusted by its holder.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// The answer to a claim.
#[derive(Clone, Debug)]
pub enum Claim {
    /// The job is yours until the lease ends.
    Held(Lease),
    /// Somebody has it.
    Busy {
        /// Whose it is, as that process calls itself.
        holder: String,
    },
}

/// The right to run one job for a while.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The job's name.
    pub job: String,
    /// The number of this claim.
    pub fencing_token: FencingToken,
    /// How long it holds from the moment a claim or renewal was *sent*.
    pub ttl: Duration,
    /// Where the job's schedule stands.
    pub state: JobState,
    /// What the last turn expected, and, once this one has changed it, what is left at its release.
    pub claim_hint: Option<ClaimHint>,
    /// The pauses that concern what is not finished with, oldest first.
    pub pauses: Vec<Pause>,
    /// What is to be run beside the schedule, oldest first.
    pub requests: Vec<ControlRequest>,
}

/// What is expected of a job, so that anybody can tell from its row if it is late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHint {
    /// The schedule that says so, as text: another text is another schedule.
    pub schedule: String,
    /// The first scheduled time that is not finished with.
    pub next_at: Option<DateTime<Utc>>,
    /// When it is late, if nobody runs it.
    pub late_at: Option<DateTime<Utc>>,
    /// When it is late even if somebody does.
    pub stuck_at: Option<DateTime<Utc>>,
}

impl Lease {
    /// Until when, by [`Clock::monotonic`](crate::Clock::monotonic), the holder may start work if the claim or the last
    /// renewal was sent at `sent`: two seconds less than the lease, or half of a short one.
    #[must_use]
    pub fn trusted_until(&self, sent: Duration) -> Duration {
        sent + self.ttl.saturating_sub(LEASE_MARGIN).max(self.ttl / 2)
    }
}

/// Where the schedule of a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// Every scheduled time up to here is finished with.
    pub cursor: DateTime<Utc>,
    /// An occurrence that failed and will be tried again.
    pub retrying: Option<Retrying>,
}

/// An occurrence between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retrying {
    /// Its scheduled time.
    pub scheduled_at: DateTime<Utc>,
    /// How many attempts failed.
    pub failed_attempts: u32,
    /// When the next one may start.
    pub not_before: DateTime<Utc>,
}

impl JobState {
    /// Finished with everything up to `cursor`.
    #[must_use]
    pub fn at(cursor: DateTime<Utc>) -> Self {
        Self { cursor, retrying: None }
    }
}
