//! What a configuration says about one job, parsed.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{schedule::Schedule, stable_hash::StableHash};

/// One job: which code runs, when, and what happens when it does not go well.
#[derive(Clone, Debug, PartialEq)]
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
    /// How late a run may start, counted from its scheduled time. A scheduled time that is older is not run. `None`: however
    /// late, but for [`Misfire::Skip`], which has [`JobSpec::grace`] of its own.
    pub misfire_grace: Option<Duration>,
    /// With [`Misfire::CatchUp`]: how many scheduled times may wait at most, from 1 to [`Skipped::MAX_COUNTED`](crate::Skipped::MAX_COUNTED).
    /// Older ones are passed over.
    pub catch_up_limit: u32,
    /// Each run starts up to this long after its scheduled time. How long exactly is the same on every machine and at every
    /// try, and the scheduled time stays what it is. Zero: at the scheduled time.
    pub jitter: Duration,
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
    /// None runs, unless it is due just now: within its grace, which is a minute if none is set.
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
    /// By how many percent a wait is shortened at most, so that what failed together is not tried again together. How much
    /// exactly is the same on every machine.
    pub jitter_percent: u8,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            backoff: Duration::from_secs(15),
            max_backoff: Duration::from_mins(5),
            jitter_percent: 20,
        }
    }
}

impl Retry {
    /// How long to wait after `failed_attempts` failures, before it is shortened by chance.
    #[must_use]
    pub fn wait_after(&self, failed_attempts: u32) -> Duration {
        let doublings = failed_attempts.saturating_sub(1).min(31);
        self.backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

impl JobSpec {
    /// How many scheduled times a job catches up at most, if nothing else is said.
    pub const CATCH_UP_LIMIT: u32 = 1_000;

    /// How long one run may take, if nothing else is said.
    pub const TIMEOUT: Duration = Duration::from_mins(10);

    /// A job with the defaults: cluster scope, coalesced misfires, ten minutes, five attempts.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: impl Into<String>, schedule: Schedule) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            schedule,
            scope: Scope::default(),
            misfire: Misfire::default(),
            misfire_grace: None,
            catch_up_limit: Self::CATCH_UP_LIMIT,
            jitter: Duration::ZERO,
            run_at_start: false,
            timeout: Self::TIMEOUT,
            retry: Retry::default(),
        }
    }

    /// How late a run may start, counted from its scheduled time; `None`: however late.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        // Younger than this it is late, not missed.
        let just_now = Duration::from_mins(1);
        let of_its_own = (self.misfire == Misfire::Skip).then(|| self.jitter.saturating_add(just_now));
        self.misfire_grace.or(of_its_own)
    }

    /// When the run of `scheduled_at` starts at the earliest: that much later as its jitter says.
    #[must_use]
    pub fn starts_at(&self, scheduled_at: DateTime<Utc>) -> DateTime<Utc> {
        if self.jitter.is_zero() {
            return scheduled_at;
        }
        let delay = StableHash::of(&self.name, scheduled_at, 0).below(self.jitter);
        TimeDelta::from_std(delay)
            .ok()
            .and_then(|delay| scheduled_at.checked_add_signed(delay))
            .unwrap_or(scheduled_at)
    }

    /// How long to wait after `failed_attempts` failures of `scheduled_at`.
    #[must_use]
    pub fn wait_after(&self, scheduled_at: DateTime<Utc>, failed_attempts: u32) -> Duration {
        let longest = self.retry.wait_after(failed_attempts);
        let share = u32::from(self.retry.jitter_percent.min(100));
        let jitter = longest.saturating_mul(share) / 100;
        longest.saturating_sub(StableHash::of(&self.name, scheduled_at, failed_attempts).below(jitter))
    }
}
