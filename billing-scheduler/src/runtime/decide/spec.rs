//! The specification of one job, as parsed from a configuration.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{schedule::Schedule, stable_hash::StableHash};

/// One job: the code to run, when to run it, and how to handle misfires and failures.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobSpec {
    /// The job's name, unique among the daemons that share a store.
    pub name: String,
    /// The registered job kind.
    pub kind: String,
    /// The rule that yields the scheduled times.
    pub schedule: Schedule,
    /// Whether one daemon or each daemon runs an occurrence.
    pub scope: Scope,
    /// The policy for scheduled times that passed without a run.
    pub misfire: Misfire,
    /// How late a run may start after its scheduled time; an older scheduled time is recorded as missed. `None` is without limit,
    /// except for [`Misfire::Skip`]: see [`JobSpec::grace`].
    pub misfire_grace: Option<Duration>,
    /// The maximum number of scheduled times that wait to be caught up with [`Misfire::CatchUp`], from 1 to
    /// [`Skipped::MAX_COUNTED`](crate::Skipped::MAX_COUNTED). Older ones are skipped.
    pub catch_up_limit: u32,
    /// The longest delay of a run after its scheduled time. The delay of an occurrence is the same on every host and for every
    /// attempt; the scheduled time itself does not change. The default is zero.
    pub jitter: Duration,
    /// Whether a job that never ran is due immediately instead of at its next scheduled time.
    pub run_at_start: bool,
    /// The maximum duration of one run.
    pub timeout: Duration,
    /// The policy for failed runs.
    pub retry: Retry,
}

/// Which daemons run an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// One of the daemons that share a store, under a lease.
    #[default]
    Cluster,
    /// Every daemon, without a lease.
    Node,
}

/// The policy for scheduled times that passed without a run, for any reason: the process was down, the host was suspended, the
/// clock jumped, an earlier run took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Misfire {
    /// The latest runs once for all of them.
    #[default]
    Coalesce,
    /// Each runs, the oldest first.
    CatchUp,
    /// None runs, except a fresh one: within the misfire grace, or within a minute if none is set.
    Skip,
}

/// How often and how soon a failed occurrence is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Retry {
    /// The maximum number of attempts, including the first one; at least 1.
    pub max_attempts: u32,
    /// The wait after the first failure. It doubles with each further one.
    pub backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// The percentage by which a wait is shortened at most, so that jobs that failed together are not retried together. The exact
    /// share is the same on every host.
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
    /// Returns the wait after `failed_attempts` failures, before jitter.
    #[must_use]
    pub fn wait_after(&self, failed_attempts: u32) -> Duration {
        let doublings = failed_attempts.saturating_sub(1).min(31);
        self.backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

impl JobSpec {
    /// The default of [`JobSpec::catch_up_limit`].
    pub const CATCH_UP_LIMIT: u32 = 1_000;

    /// The default of [`JobSpec::timeout`].
    pub const TIMEOUT: Duration = Duration::from_mins(10);

    /// Returns a job with the defaults: cluster scope, coalesced misfires, a timeout of ten minutes, five attempts.
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

    /// Returns how late a run may start after its scheduled time; `None` is without limit. With [`Misfire::Skip`] the default is a
    /// minute plus the jitter.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        let minute = Duration::from_mins(1);
        let default = (self.misfire == Misfire::Skip).then(|| self.jitter.saturating_add(minute));
        self.misfire_grace.or(default)
    }

    /// Returns the earliest start of the run of `scheduled_at`: the scheduled time plus its jitter.
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

    /// Returns the wait after `failed_attempts` failures of `scheduled_at`, with jitter.
    #[must_use]
    pub fn wait_after(&self, scheduled_at: DateTime<Utc>, failed_attempts: u32) -> Duration {
        let longest = self.retry.wait_after(failed_attempts);
        let share = u32::from(self.retry.jitter_percent.min(100));
        let jitter = longest.saturating_mul(share) / 100;
        longest.saturating_sub(StableHash::of(&self.name, scheduled_at, failed_attempts).below(jitter))
    }
}
