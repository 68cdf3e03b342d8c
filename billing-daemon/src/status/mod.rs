//! How billing stands: read once, judged by one pure function, and shown alike by the command line, the HTTP interface and
//! the metrics.

pub(crate) mod jobs;
pub(crate) mod panel_presence;
mod problems;
mod read;
#[cfg(test)]
pub(crate) mod testing;

use std::{fmt, time::Duration};

use billing_jobs::{
    BILLING_JOB,
    billing::{RunDetails, Totals},
    currency::Amounts,
    panel_guard::PanelGuardStatus,
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub use problems::problems;
pub(crate) use read::daemons_alive;
pub use read::{read, runs};

use crate::{
    config::{Config, PanelBilling},
    format::count,
};

/// What the configuration says that a judgement needs. Without a configuration, the rows alone are judged.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The enabled jobs.
    pub jobs: Vec<billing_scheduler::JobSpec>,
    /// The time between two billings.
    pub billing_interval: Option<Duration>,
    /// What is known of the panel's own billing.
    pub panel_billing: PanelBilling,
}

impl Expected {
    /// Whether billing is one of the jobs; unknown without a configuration.
    pub(crate) fn has_billing(&self) -> Option<bool> {
        (!self.jobs.is_empty()).then(|| self.jobs.iter().any(|spec| spec.kind == BILLING_JOB))
    }
}

impl From<&Config> for Expected {
    fn from(config: &Config) -> Self {
        Self {
            jobs: config.jobs.iter().map(|(spec, _)| spec.clone()).collect(),
            billing_interval: config.billing_interval,
            panel_billing: config.daemon.panel_billing,
        }
    }
}

/// How billing stands. Amounts are decimal text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// Whether there is nothing to do about it.
    pub ok: bool,
    /// What there is to do about it.
    pub problems: Vec<Problem>,
    /// When this was read, by the database's clock.
    pub observed_at: DateTime<Utc>,
    /// Of this program.
    pub version: String,
    /// Which database.
    pub engine: String,
    /// The newest migration that is applied.
    pub schema: String,
    /// Whether a daemon is configured to bill: the problems of billing count only then.
    pub has_billing: bool,
    /// Who else bills here.
    pub panel: PanelStatus,
    /// When a billing run last ended well.
    pub last_success_at: Option<DateTime<Utc>>,
    /// After how many seconds without another success the panel may bill.
    pub hand_back_after_seconds: u64,
    /// The last run of billing.
    pub last_run: Option<RunStatus>,
    /// The last audit by a job that came to its end. One that failed since says nothing of the books.
    pub last_audit: Option<RunStatus>,
    /// What machines owe that are held because their wallets are too small.
    pub arrears: AmountDue,
    /// What is held, by reason.
    pub holds: Vec<HoldSummary>,
    /// What was closed without a charge during the last 30 days, by reason.
    pub uncharged: Vec<Uncharged>,
    /// The daemons that this database knows, the newest first.
    pub daemons: Vec<Daemon>,
    /// The jobs that the database or the configuration knows.
    pub jobs: Vec<JobStatus>,
}

impl Status {
    /// Whether the panel could charge the hours that a daemon of ours charges: it bills itself, or billing found the panel guard gone that it relies
    /// on.
    #[must_use]
    pub fn lacks_guard(&self) -> bool {
        let panel = &self.panel;
        let panel_bills = panel.present && panel.generation != "G1" && !panel.billing_off;
        let found_gone = self.last_run.as_ref().is_some_and(|run| run.details().unguarded);
        self.has_billing && !panel.guard.effective && (panel_bills || found_gone)
    }
}

/// Something that somebody should do something about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// One word, for programs.
    pub kind: &'static str,
    /// One sentence, for people.
    pub message: String,
}

/// The panel beside us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PanelStatus {
    /// `G1`, `G2` or `G3`.
    pub generation: String,
    /// Whether a panel made these tables, or our own migration did.
    pub present: bool,
    /// Whether the panel's own billing is said to be off.
    pub billing_off: bool,
    /// What holds the panel's own biller back.
    pub guard: PanelGuardView,
}

/// The state of the panel guard.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the triggers")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PanelGuardView {
    /// Whether there is one.
    pub installed: bool,
    /// Whether no trigger of it is disabled.
    pub enabled: bool,
    /// Whether billing may rely on it: it is complete, enabled, and the one of this version.
    pub effective: bool,
    /// Whether it is not the one that this program would install.
    pub outdated: bool,
}

impl From<PanelGuardStatus> for PanelGuardView {
    fn from(status: PanelGuardStatus) -> Self {
        let PanelGuardStatus { installed, enabled, effective, outdated } = status;
        Self { installed, enabled, effective, outdated }
    }
}

/// One daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Daemon {
    /// Its name, unique to the process.
    pub daemon_id: String,
    /// Its machine.
    pub host: Option<String>,
    /// Of the program.
    pub version: Option<String>,
    /// Whether it lives.
    pub liveness: Liveness,
    /// When it was last heard of: since then it is dead, if it is.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// When it last told the panel that billing works.
    pub heartbeat_at: Option<DateTime<Utc>>,
    /// When it started.
    pub started_at: Option<DateTime<Utc>>,
    /// Whether it bills, or could be the next to do so.
    pub billing_role: BillingRole,
    /// Whether it is configured to bill, also if it is dead.
    pub has_billing: bool,
    /// What it complains of.
    pub error: Option<String>,
}

/// Whether a daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It does, and billing works.
    Alive,
    /// It does, and says that billing does not work.
    Failing,
    /// It ended, or its end was noticed.
    Stopped,
    /// It has said nothing for too long.
    Dead,
}

impl Liveness {
    /// Whether it can take a job.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Failing)
    }
}

/// A daemon's part in billing. There is no leader: of those that could, the first to look takes the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BillingRole {
    /// It is at it.
    Active,
    /// It may be the next.
    Standby,
    /// It is dead, or not configured to.
    None,
}

/// The last run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunStatus {
    /// Which.
    pub id: Uuid,
    /// Its job.
    pub job: String,
    /// Its scheduled time.
    pub scheduled_at: DateTime<Utc>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// How it ended: `done`, `retrying`, `dead`, `interrupted`, `skipped`, ...
    pub status: String,
    /// What started it: `schedule`, `manual`, ...
    pub cause: String,
    /// Which attempt it was.
    pub attempt: u32,
    /// How late it began.
    pub lateness_ms: i64,
    /// Who ran it.
    pub daemon_id: String,
    /// Why it was skipped, missed, paused or interrupted, or who asked for it.
    pub reason: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What the job tells of it.
    #[schema(value_type = Option<Object>)]
    pub details: Option<serde_json::Value>,
    /// The sums of the batches that a billing run committed.
    #[schema(value_type = Option<Object>)]
    pub totals: Option<Totals>,
}

impl RunStatus {
    /// The details of a billing run; empty for any other run.
    pub(crate) fn details(&self) -> RunDetails {
        self.details.as_ref().map(RunDetails::from_json).unwrap_or_default()
    }
}

/// What is owed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct AmountDue {
    /// By how many machines.
    pub instances: u64,
    /// For how many hours.
    pub hours: u64,
    /// How much in each currency, as decimal text and as far as it can be priced; in `XXX` where no wallet names one.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub amounts: Amounts,
    /// Instances whose hours have no known price. They are not in `amounts`.
    pub unpriced: u64,
}

impl fmt::Display for AmountDue {
    /// The amounts; what is unknown is not counted as nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instances, amounts, unpriced, .. } = self;
        match *unpriced {
            0 => write!(f, "{amounts}"),
            unpriced if unpriced == *instances => f.write_str("an unknown amount"),
            unpriced => write!(f, "{amounts} and an unknown amount for {}", count(unpriced, "instance")),
        }
    }
}

/// What is held for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HoldSummary {
    /// The reason's word.
    pub reason: String,
    /// Since when the oldest of them is held.
    pub since: DateTime<Utc>,
    /// What is owed.
    #[serde(flatten)]
    pub owed: AmountDue,
    /// Instances whose hold an operator has accepted.
    pub accepted: u64,
    /// What to do about the others.
    pub advice: String,
}

/// What was closed without a charge for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Uncharged {
    /// `instance_deleted`, `instance_transferred` or `written_off`.
    pub reason: String,
    /// The debt; an upper bound where instances were deleted between two runs.
    #[serde(flatten)]
    pub owed: AmountDue,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobStatus {
    /// Its name.
    pub name: String,
    /// Up to where its schedule is finished with.
    pub cursor: Option<DateTime<Utc>>,
    /// Who is at it.
    pub holder: Option<String>,
    /// Under which claim.
    pub fencing_token: Option<i64>,
    /// When its next run, or the next attempt at one that failed, may begin; in the past if it is late.
    pub due_at: Option<DateTime<Utc>>,
    /// How late it is, in seconds, if it is: its grace is over and nobody is at it, or whoever is at it does not end. A paused
    /// job is not late.
    pub late_seconds: Option<u64>,
    /// When it runs next, if it waits because it ran while a clock was ahead: `cursor` is in the future.
    pub ahead_until: Option<DateTime<Utc>>,
    /// Who paused it and why, if it is paused.
    pub paused: Option<String>,
    /// How many attempts at the current occurrence failed.
    pub failed_attempts: u32,
    /// How its last run ended.
    pub last_run: Option<RunStatus>,
}
