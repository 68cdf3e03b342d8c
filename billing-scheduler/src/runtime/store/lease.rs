//! The lease of a job: the right to run it, with the state to continue from.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    StoreError,
    request::{ControlRequest, Pause},
};
use crate::job::FencingToken;

/// How long before its end the holder stops relying on a lease.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// The result of a claim.
#[derive(Clone, Debug)]
pub enum Claim {
    /// The caller holds the lease.
    Held(Lease),
    /// Another process holds the lease.
    Busy {
        /// The name of that process.
        holder: String,
    },
}

/// The time-limited right to run one job.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The job's name.
    pub job: String,
    /// The fencing token of this claim.
    pub fencing_token: FencingToken,
    /// The lifetime of the lease, counted from the moment a claim or renewal was *sent*.
    pub ttl: Duration,
    /// The job's state at the claim.
    pub state: JobState,
    /// The claim hint that the last lease cycle left; at the release, the one to leave.
    pub claim_hint: Option<ClaimHint>,
    /// The pauses that affect unfinished scheduled times, oldest first.
    pub pauses: Vec<Pause>,
    /// The open requests other than cancellations, oldest first.
    pub requests: Vec<ControlRequest>,
}

/// What the next claim of a job is expected to find. It shows in the job's row whether the job is late.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimHint {
    /// The schedule as text. A different text is a different schedule.
    pub schedule: String,
    /// The first unfinished scheduled time.
    pub next_at: Option<DateTime<Utc>>,
    /// When the job is late if no process holds its lease.
    pub late_at: Option<DateTime<Utc>>,
    /// When the job is late even if a process holds its lease.
    pub stuck_at: Option<DateTime<Utc>>,
    /// The schedules before this one that still have times to decide, oldest first.
    #[serde(default)]
    pub replaced: Vec<ReplacedSchedule>,
}

/// A schedule that another one has replaced, or that ended because the job was removed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplacedSchedule {
    /// The schedule as text.
    pub schedule: String,
    /// When it was replaced: times up to then are due by it.
    pub until: DateTime<Utc>,
}

impl Lease {
    /// Returns the error of a call with this lease after another claim.
    #[must_use]
    pub fn lost(&self) -> StoreError {
        StoreError::LeaseLost { job: self.job.clone(), fencing_token: self.fencing_token }
    }

    /// Returns until when, by [`Clock::monotonic`](crate::Clock::monotonic), the holder may start work if the claim or the last
    /// renewal was sent at `sent`: two seconds before the end of the lease, or after half of a short lease.
    #[must_use]
    pub fn trusted_until(&self, sent: Duration) -> Duration {
        trusted_until(sent, self.ttl)
    }
}

pub(crate) fn trusted_until(sent: Duration, ttl: Duration) -> Duration {
    sent + ttl.saturating_sub(LEASE_MARGIN).max(ttl / 2)
}

/// The position of a job in its schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// The last finished scheduled time: this one and all earlier ones are finished.
    pub cursor: DateTime<Utc>,
    /// An occurrence that failed and will be retried.
    pub retrying: Option<Retrying>,
}

/// An occurrence between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrying {
    /// The occurrence's scheduled time.
    pub scheduled_at: DateTime<Utc>,
    /// The number of failed attempts.
    pub failed_attempts: u32,
    /// The earliest start of the next attempt.
    pub not_before: DateTime<Utc>,
}

impl JobState {
    /// Returns the state of a job that has finished everything up to `cursor`.
    #[must_use]
    pub fn at(cursor: DateTime<Utc>) -> Self {
        Self { cursor, retrying: None }
    }
}
