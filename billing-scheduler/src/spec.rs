//! What a configuration says about one job, parsed.

use std::time::Duration;

use crate::Schedule;

/// One job: which code runs, when, and what happens when it does not go well.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Unique within the daemons that share a store.
    pub name: String,
    /// Which registered code runs.
    pub kind: String,
    /// When.
    pub schedule: Schedule,
    /// For whom.
    pub scope: Scope,
    /// What becomes of scheduled times that passed without a run.
    pub misfire: Misfire,
    /// Whether a job that never ran is due at once instead of at its next scheduled time.
    pub run_at_start: bool,
    /// How long one run may take.
    pub timeout: Duration,
    /// What follows a failure.
    pub retry: Retry,
}

/// Who runs an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scope {
    /// One of the daemons that share a store.
    #[default]
    Cluster,
    /// Each of them.
    Node,
}

/// What becomes of scheduled times that passed without a run, whatever the reason: the process was down, the machine was
/// suspended, the clock jumped, an earlier run took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Misfire {
    /// The latest runs, and stands for all of them.
    #[default]
    Coalesce,
    /// Each runs, oldest first.
    CatchUp,
    /// None runs, unless it is due just now (less than a minute ago).
    Skip,
}

/// How often and how soon a failed occurrence is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// With the first one; at least 1.
    pub max_attempts: u32,
    /// After the first failure. Doubles with each further one.
    pub backoff: Duration,
    /// Never longer than this.
    pub max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 5, backoff: Duration::from_secs(15), max_backoff: Duration::from_mins(5) }
    }
}

impl Retry {
    /// How long to wait after `failed_attempts` failures.
    #[must_use]
    pub fn wait_after(&self, failed_attempts: u32) -> Duration {
        let doublings = failed_attempts.saturating_sub(1).min(31);
        self.backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

impl JobSpec {
    /// A job with the defaults: cluster scope, coalesced misfires, ten minutes, five attempts.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: impl Into<String>, schedule: Schedule) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            schedule,
            scope: Scope::default(),
            misfire: Misfire::default(),
            run_at_start: false,
            timeout: Duration::from_mins(10),
            retry: Retry::default(),
        }
    }
}
