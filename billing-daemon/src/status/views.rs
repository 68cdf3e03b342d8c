//! What the command line prints as JSON and HTTP answers: one type for each fact.

use std::{fmt, time::Duration};

use billing_jobs::{
    billing::{RunDetails, Totals},
    currency::Amounts,
    panel_guard::PanelGuardStatus,
    uncharged::Debt,
};
use billing_scheduler::{Holder, Pause, Retrying, RunCause, RunRow, RunStatus, ScheduleAhead, StoreClock};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{HaltView, PrepaidStatus};
use crate::format::age_of;

/// The status of billing. Amounts are decimal texts.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// Whether there are no problems.
    pub ok: bool,
    /// What an operator should do something about.
    pub problems: Vec<Problem>,
    /// When the status was read, by the database's clock.
    pub observed_at: DateTime<Utc>,
    /// The version of this program.
    pub version: String,
    /// The kind of database.
    pub engine: String,
    /// The newest migration that is applied.
    pub schema: String,
    /// Whether a daemon is configured to bill: the problems of billing count only then.
    pub has_billing: bool,
    /// Why no daemon bills, if a committed batch is missing.
    pub halt: Option<HaltView>,
    /// The panel that uses the same database.
    pub panel: PanelStatus,
    /// When the last successful billing run ended.
    pub last_success_at: Option<DateTime<Utc>>,
    /// The number of seconds without a success after which the panel may bill.
    pub hand_back_after_seconds: u64,
    /// The last billing run.
    pub last_run: Option<RunView>,
    /// The last audit that was completed. A later one that failed has no result.
    pub last_audit: Option<RunView>,
    /// The debts of instances that are held because their wallets are too small.
    pub arrears: AmountDue,
    /// The held instances, by reason.
    pub holds: Vec<HoldSummary>,
    /// The standings of the prepaid policy, and its deliveries that wait or are dead.
    pub prepaid: PrepaidStatus,
    /// The debts that were closed without a charge during the last 30 days, by reason.
    pub uncharged: Vec<Uncharged>,
    /// The daemons that this database knows, newest first.
    pub daemons: Vec<Daemon>,
    /// The jobs that the database or the configuration knows.
    pub jobs: Vec<JobView>,
}

impl Status {
    /// Whether the panel could charge the hours that a daemon of this project charges: because it bills without reading a heartbeat, or
    /// because billing found that the panel guard is gone.
    #[must_use]
    pub fn lacks_guard(&self) -> bool {
        let panel = &self.panel;
        let panel_bills = panel.present && panel.generation != "G1" && !panel.billing_off;
        let found_gone = self.last_run.as_ref().is_some_and(|run| run.billing_details().unguarded);
        self.has_billing && !panel.guard.effective && (panel_bills || found_gone)
    }

    /// The job with that name.
    pub(crate) fn job(&self, name: &str) -> Option<&JobView> {
        self.jobs.iter().find(|job| job.job == name)
    }
}

/// Something that an operator should do something about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// One word, for programs.
    pub kind: &'static str,
    /// One sentence, for people.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The panel that uses the same database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PanelStatus {
    /// The generation of the tables: `G1`, `G2` or `G3`.
    pub generation: String,
    /// Whether a panel made these tables, and not the migration of this project.
    pub present: bool,
    /// Whether the panel's own billing is switched off, according to the configuration.
    pub billing_off: bool,
    /// The state of the panel guard.
    pub guard: PanelGuardView,
}

/// The state of the panel guard.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate fact about the triggers")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PanelGuardView {
    /// Whether there is one.
    pub installed: bool,
    /// Whether none of its triggers is disabled.
    pub enabled: bool,
    /// Whether billing may rely on it: it is complete, enabled, and of this version.
    pub effective: bool,
    /// Whether it differs from what this program would install.
    pub outdated: bool,
}

impl From<PanelGuardStatus> for PanelGuardView {
    fn from(status: PanelGuardStatus) -> Self {
        let PanelGuardStatus { installed, enabled, effective, outdated } = status;
        Self { installed, enabled, effective, outdated }
    }
}

/// A daemon that wrote a status row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Daemon {
    /// The name of the process.
    pub daemon_id: String,
    /// The name of its host.
    pub host: Option<String>,
    /// The version of the program.
    pub version: Option<String>,
    /// Whether the daemon is alive.
    pub liveness: Liveness,
    /// When the daemon last wrote its status row. A dead daemon is dead since then.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// The last heartbeat to the panel: that billing works.
    pub heartbeat_at: Option<DateTime<Utc>>,
    /// When the daemon started.
    pub started_at: Option<DateTime<Utc>>,
    /// The daemon's part in billing.
    pub billing_role: BillingRole,
    /// Whether the daemon is configured to bill, even if it is dead.
    pub has_billing: bool,
    /// The database's clock minus that of the daemon's host, in milliseconds, as the daemon last measured it: positive if the host's
    /// clock is behind. Null on SQLite, which uses the host's clock.
    pub clock_offset_ms: Option<i64>,
    /// The error that the daemon reports.
    pub error: Option<String>,
}

impl Daemon {
    /// How much the host's clock differs from the database's, such as `2h behind`, if that is more than the clocks may differ.
    pub(crate) fn wrong_clock(&self) -> Option<String> {
        wrong_clock(TimeDelta::milliseconds(self.clock_offset_ms?))
    }
}

/// Describes a host's clock to which `offset` must be added: `2h behind`. None if it is correct enough.
pub(crate) fn wrong_clock(offset: TimeDelta) -> Option<String> {
    let direction = if offset > TimeDelta::zero() { "behind" } else { "ahead of" };
    (offset.abs() > StoreClock::TOLERANCE)
        .then(|| format!("{} {direction}", age_of(offset.abs().to_std().unwrap_or_default())))
}

/// Whether a daemon is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It is alive, and billing works.
    Alive,
    /// It is alive, and reports that billing does not work.
    Failing,
    /// It stopped, or its end was detected.
    Stopped,
    /// It has not written its status for too long.
    Dead,
}

impl Liveness {
    /// Whether the daemon can run a job.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Failing)
    }
}

/// A daemon's part in billing. There is no leader: the first daemon that claims the job runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BillingRole {
    /// It runs the billing job now.
    Active,
    /// It may run the next one.
    Standby,
    /// It is dead, or not configured to bill.
    None,
}

/// A run, or a range of scheduled times without a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunView {
    /// The run's id.
    pub id: Uuid,
    /// The job's name.
    pub job: String,
    /// The scheduled time; the last one of a range.
    pub scheduled_at: DateTime<Utc>,
    /// The first scheduled time of a range.
    pub scheduled_from: Option<DateTime<Utc>>,
    /// The number of scheduled times.
    pub scheduled_count: u32,
    /// `done`, `retrying`, `dead`, `interrupted`, `skipped`, `missed`, `paused` or `rescheduled`.
    #[serde(serialize_with = "status_as_word")]
    #[schema(value_type = String)]
    pub status: RunStatus,
    /// What started the run: `schedule`, `manual`, `replay` or `queue`.
    #[serde(serialize_with = "cause_as_word")]
    #[schema(value_type = String)]
    pub cause: RunCause,
    /// The number of the attempt, from 1; 0 if there was no run.
    pub attempt: u32,
    /// The fencing token of the claim; 0 without a lease.
    pub fencing_token: i64,
    /// The daemon that wrote the record.
    pub daemon_id: String,
    /// When the run started.
    pub started_at: DateTime<Utc>,
    /// When the run ended.
    pub finished_at: DateTime<Utc>,
    /// The delay of the start, in milliseconds.
    pub lateness_ms: i64,
    /// The duration of the run, in milliseconds.
    pub duration_ms: u64,
    /// The number of processed items.
    pub items: u64,
    /// The control request that the run answers.
    pub request_id: Option<Uuid>,
    /// Why there was no run or it was interrupted, or who requested it.
    pub reason: Option<String>,
    /// Why the run failed.
    pub error: Option<String>,
    /// The job's own figures.
    #[schema(value_type = Option<Object>)]
    pub details: Option<serde_json::Value>,
    /// The sums of the batches that the last billing run committed; only in the status.
    #[schema(value_type = Option<Object>)]
    pub totals: Option<Totals>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn status_as_word<S: Serializer>(status: &RunStatus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(status.as_str())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn cause_as_word<S: Serializer>(cause: &RunCause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.as_str())
}

impl From<RunRow> for RunView {
    fn from(RunRow { run, daemon_id }: RunRow) -> Self {
        Self {
            id: run.id,
            lateness_ms: run.lateness_ms(),
            duration_ms: u64::try_from(run.duration().as_millis()).unwrap_or(u64::MAX),
            job: run.job,
            scheduled_at: run.scheduled_at,
            scheduled_from: run.range.map(|range| range.from),
            scheduled_count: run.range.map_or(1, |range| range.count),
            status: run.status,
            cause: run.cause,
            attempt: run.attempt,
            fencing_token: run.fencing_token.0,
            daemon_id,
            started_at: run.started_at,
            finished_at: run.finished_at,
            items: run.items,
            request_id: run.request_id,
            reason: run.reason,
            error: run.error,
            details: Some(run.details).filter(|details| !details.is_null()),
            totals: None,
        }
    }
}

impl RunView {
    /// The details of a billing run; empty for any other run.
    pub(crate) fn billing_details(&self) -> RunDetails {
        self.details.as_ref().map(RunDetails::from_json).unwrap_or_default()
    }
}

/// A job that the database or the configuration knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobView {
    /// The job's name.
    pub job: String,
    /// The job's kind, if the configuration has the job.
    pub kind: Option<String>,
    /// What the job does now.
    pub state: JobState,
    /// The schedule as text.
    pub schedule: Option<String>,
    /// The time up to which the schedule is finished. A job that runs on every node has none.
    pub cursor: Option<DateTime<Utc>>,
    /// The earliest start of the next run, or of the next attempt of one that failed; in the past if it is late.
    pub due_at: Option<DateTime<Utc>>,
    /// How late the job is, in seconds: its grace is over and no daemon runs it, or its run does not end. A paused job is not late.
    pub late_seconds: Option<u64>,
    /// When the job runs next, if its `cursor` is in the future because it ran while a clock was ahead.
    pub ahead_until: Option<DateTime<Utc>>,
    /// The lease, while a daemon holds it.
    pub lease: Option<LeaseView>,
    /// The current pause.
    pub paused: Option<PauseView>,
    /// The occurrence that failed and will be retried.
    pub retrying: Option<RetryView>,
    /// The newest record of the job.
    pub last_run: Option<RunView>,
}

impl JobView {
    /// How late the job is and why, such as `12m late: no daemon runs it`.
    pub(crate) fn lateness(&self) -> Option<String> {
        let late = age_of(Duration::from_secs(self.late_seconds?));
        Some(match &self.lease {
            None => format!("{late} late: no daemon runs it"),
            Some(lease) => format!("{late} late: its run on {} does not end", lease.holder),
        })
    }

    /// The schedule of a job that is finished up to a future time.
    pub(crate) fn ahead(&self) -> Option<ScheduleAhead> {
        Some(ScheduleAhead { cursor: self.cursor?, until: Some(self.ahead_until?) })
    }
}

/// What a job does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// The configuration does not have the job, or has it disabled.
    NotConfigured,
    /// The job should have run and did not, or its run does not end.
    Late,
    /// A daemon holds the job's lease.
    Running,
    /// The job is paused.
    Paused,
    /// The last attempt failed and will be retried.
    Retrying,
    /// The job waits for its next scheduled time.
    Waiting,
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotConfigured => "not configured",
            Self::Late => "late",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
        })
    }
}

/// The lease of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LeaseView {
    /// The daemon that holds the lease.
    pub holder: String,
    /// The fencing token of the claim.
    pub fencing_token: i64,
    /// When the lease expires, unless it is renewed.
    pub expires_at: DateTime<Utc>,
}

impl From<Holder> for LeaseView {
    fn from(holder: Holder) -> Self {
        let Holder { name, fencing_token, expires_at } = holder;
        Self { holder: name, fencing_token: fencing_token.0, expires_at }
    }
}

/// The pause of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PauseView {
    /// Who paused the job.
    pub by: String,
    /// Scheduled times from here on are not run.
    pub since: DateTime<Utc>,
    /// Why the job was paused.
    pub reason: Option<String>,
}

impl From<Pause> for PauseView {
    fn from(Pause { since, until: _, by, reason }: Pause) -> Self {
        Self { by, since, reason }
    }
}

impl fmt::Display for PauseView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "paused by {}", self.by)?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

/// An occurrence that failed and will be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RetryView {
    /// The scheduled time.
    pub scheduled_at: DateTime<Utc>,
    /// The number of failed attempts.
    pub failed_attempts: u32,
    /// The earliest start of the next attempt.
    pub not_before: DateTime<Utc>,
}

impl From<Retrying> for RetryView {
    fn from(retrying: Retrying) -> Self {
        let Retrying { scheduled_at, failed_attempts, not_before } = retrying;
        Self { scheduled_at, failed_attempts, not_before }
    }
}

/// An amount that is due and not charged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct AmountDue {
    /// The number of instances.
    pub instances: u64,
    /// The number of hours.
    pub hours: u64,
    /// The amount in each currency, as decimal text, as far as it can be priced; in `XXX` where no wallet names a currency.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub amounts: Amounts,
    /// Instances whose hours have no known price. They are not in `amounts`.
    pub unpriced: u64,
}

impl fmt::Display for AmountDue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instances, hours, amounts, unpriced } = self.clone();
        Debt { instances, hours, amounts, unpriced }.fmt(f)
    }
}

impl From<Debt> for AmountDue {
    fn from(debt: Debt) -> Self {
        Self { instances: debt.instances, hours: debt.hours, amounts: debt.amounts, unpriced: debt.unpriced }
    }
}

/// The instances that are held for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HoldSummary {
    /// The reason's word.
    pub reason: String,
    /// When the oldest hold was opened.
    pub since: DateTime<Utc>,
    /// The hours and amounts that are due.
    #[serde(flatten)]
    pub owed: AmountDue,
    /// The number of instances whose hold an operator has accepted.
    pub accepted: u64,
    /// What to do about the others.
    pub advice: String,
}

/// The debts that were closed without a charge for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Uncharged {
    /// `instance_deleted`, `instance_transferred` or `written_off`.
    pub reason: String,
    /// The debt; an upper bound where instances were deleted between two runs.
    #[serde(flatten)]
    pub owed: AmountDue,
}
