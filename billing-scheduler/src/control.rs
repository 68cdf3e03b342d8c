//! What people ask of a job beside its schedule: to pause, to go on, to run now, to stop, to run again.

use std::{fmt, sync::Arc};

use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    Claim, Clock, FencingToken, JobState, RunRecord, RunStatus, Store, StoreError, Trigger, store::Plan,
};

/// One thing that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Unique; the run that answers it carries it.
    pub id: Uuid,
    /// Of which job.
    pub job: String,
    /// What.
    pub what: What,
    /// Who.
    pub by: String,
    /// Why, in that person's words.
    pub reason: Option<String>,
    /// When, by the clock of whoever asked, in whole microseconds.
    pub at: DateTime<Utc>,
}

/// What can be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Run nothing by schedule until it is resumed.
    Pause,
    /// Go on with the next scheduled time.
    Resume,
    /// Run once now, beside the schedule.
    Trigger,
    /// Run this scheduled time again, beside the schedule.
    Replay {
        /// Which.
        scheduled_at: DateTime<Utc>,
    },
    /// Continue the schedule from the present, if it was finished up to a future time: a clock that was ahead was set back.
    Reset,
    /// Stop the run under way; it is not run again. What was asked for and has not begun is withdrawn.
    Cancel {
        /// The claim that is meant, which the store fills in; 0 for the runs of a job that each node runs by itself.
        fence: FencingToken,
    },
}

impl What {
    /// The word kept in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Trigger => "trigger",
            Self::Replay { .. } => "replay",
            Self::Reset => "reset",
            Self::Cancel { .. } => "cancel",
        }
    }
}

impl Request {
    /// As the reason of a run's row: `asked for by ada@desk: after the outage`.
    #[must_use]
    pub fn sentence(&self) -> String {
        let verb = match self.what {
            What::Cancel { .. } => "cancelled",
            What::Reset => "reset",
            _ => "asked for",
        };
        signed(verb, &self.by, self.reason.as_deref())
    }
}

fn signed(verb: &str, by: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{verb} by {by}: {reason}"),
        None => format!("{verb} by {by}"),
    }
}

/// A time in which a job runs nothing by schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Scheduled times from here on are not run.
    pub since: DateTime<Utc>,
    /// Scheduled times from here on are; `None` while it is paused.
    pub until: Option<DateTime<Utc>>,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

impl Pause {
    /// Whether it is over, and this scheduled time came while it lasted.
    pub(crate) fn has_passed_over(&self, at: DateTime<Utc>) -> bool {
        self.since <= at && self.until.is_some_and(|until| at < until)
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&signed("paused", &self.by, self.reason.as_deref()))
    }
}

/// What is asked of all jobs at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Grows with each request.
    pub revision: i64,
    /// Which jobs are paused.
    pub paused: Vec<(String, Pause)>,
    /// What is to be run or stopped, oldest first.
    pub requests: Vec<Request>,
}

impl Wishes {
    /// The pause of a job that is in force.
    #[must_use]
    pub fn pause_of(&self, job: &str) -> Option<&Pause> {
        self.paused.iter().find(|(paused, _)| paused == job).map(|(_, pause)| pause)
    }
}

/// Whether a request changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is written down, and obeyed within two seconds by a process that runs the job.
    Accepted,
    /// Nothing had to be done, and why.
    Unchanged(String),
}

/// How a job stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// Its name.
    pub job: String,
    /// Where its schedule stands.
    pub state: JobState,
    /// What is expected of it, as its last turn left it.
    pub plan: Option<Plan>,
    /// Who runs it now. A lease that has expired holds nothing.
    pub held: Option<Holder>,
    /// Whether it is paused.
    pub paused: Option<Pause>,
    /// The newest row of its history.
    pub last: Option<RunRow>,
}

/// Who has a job's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process, as it calls itself.
    pub name: String,
    /// Under which claim.
    pub fence: FencingToken,
    /// Until when, unless it is renewed.
    pub until: DateTime<Utc>,
}

/// A row of the history, and which process wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    /// What happened.
    pub run: RunRecord,
    /// Who wrote it.
    pub daemon: String,
}

/// Which rows of the history. Every condition that is set holds for each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// With this id.
    pub id: Option<Uuid>,
    /// Of this job.
    pub job: Option<String>,
    /// That ended so.
    pub status: Option<RunStatus>,
    /// That started then or later.
    pub since: Option<DateTime<Utc>>,
    /// Of this scheduled time, or of a stretch of them that holds it.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// That answers this request.
    pub request: Option<Uuid>,
    /// At most so many, the newest; 0 is no limit.
    pub limit: u32,
}

impl RunFilter {
    /// Whether every condition holds for `run`.
    #[must_use]
    pub fn matches(&self, run: &RunRecord) -> bool {
        let from = run.stretch.map_or(run.scheduled_at, |stretch| stretch.from);
        self.id.is_none_or(|id| id == run.id)
            && self.job.as_ref().is_none_or(|job| *job == run.job)
            && self.status.is_none_or(|status| status == run.status)
            && self.since.is_none_or(|since| since <= run.started_at)
            && self.scheduled_at.is_none_or(|at| (from..=run.scheduled_at).contains(&at))
            && self.request.is_none_or(|request| Some(request) == run.request)
    }
}

/// A job that should have run and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// Its name.
    pub job: String,
    /// Which scheduled time is waited for.
    pub scheduled_at: DateTime<Utc>,
    /// Who is at it, and does not come to an end.
    pub held_by: Option<String>,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, scheduled_at, held_by } = self;
        match held_by {
            None => write!(f, "job `{job}` is late: nobody runs what was due at {scheduled_at}"),
            Some(holder) => {
                write!(
                    f,
                    "job `{job}` is late: {holder} is at what was due at {scheduled_at} and does not end"
                )
            }
        }
    }
}

impl JobRow {
    /// Whether its schedule is finished up to a time after `now`.
    #[must_use]
    pub fn ahead(&self, now: DateTime<Utc>) -> Option<Ahead> {
        Ahead::of(self.state.cursor, self.plan.as_ref().and_then(|plan| plan.next_at), now)
    }

    /// Whether it should have run by `now` and did not: its plan's grace is over and nobody is at it, or whoever is at it has
    /// been for longer than a run may take. A paused job is not late.
    #[must_use]
    pub fn late(&self, now: DateTime<Utc>) -> Option<Late> {
        let plan = self.plan.as_ref().filter(|_| self.paused.is_none())?;
        let scheduled_at = plan.next_at?;
        let deadline = if self.held.is_some() { plan.stuck_at } else { plan.late_at };
        (deadline? < now).then(|| Late {
            job: self.job.clone(),
            scheduled_at,
            held_by: self.held.as_ref().map(|held| held.name.clone()),
        })
    }
}

/// Why a reset is not needed.
pub const NOT_AHEAD: &str = "its schedule is not finished up to a future time";

/// A schedule that is finished up to a time still to come, because a clock was ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Up to here it is finished.
    pub cursor: DateTime<Utc>,
    /// When the job runs next; `None` if its schedule has ended by then.
    pub until: Option<DateTime<Utc>>,
}

impl Ahead {
    /// Clocks of two hosts differ by less than this.
    const TOLERANCE: TimeDelta = TimeDelta::seconds(10);

    /// What `cursor` says at `now`, if it is in the future.
    #[must_use]
    pub fn of(cursor: DateTime<Utc>, until: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Self> {
        Self::is_ahead(cursor, now).then_some(Self { cursor, until })
    }

    pub(crate) fn is_ahead(cursor: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        cursor - now > Self::TOLERANCE
    }
}

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
        match self.until {
            Some(until) => write!(f, "waits until {}", shown(until))?,
            None => f.write_str("has no scheduled time left")?,
        }
        write!(f, ": its schedule is finished up to {}, and the clock was set back since", shown(self.cursor))
    }
}

/// Controls jobs through the store alone, in the name of somebody: the processes that run them see it there.
///
/// A request to run a job that neither the store nor this process knows is refused with [`StoreError::UnknownJob`]. A job may
/// be paused before it exists.
#[derive(Clone)]
pub struct Control {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    by: String,
    is_known: IsKnown,
}

/// Whether this process knows a job of that name.
type IsKnown = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl Control {
    /// What is done through it is signed with `by`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, by: impl Into<String>) -> Self {
        Self { store, clock, by: by.into(), is_known: Arc::new(|_| false) }
    }

    /// The same, which also runs jobs that the store has never seen: those for which `is_known` returns true.
    #[must_use]
    pub fn knowing(self, is_known: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { is_known: Arc::new(is_known), ..self }
    }

    /// Runs nothing of `job` by schedule until it is resumed. A run under way goes on.
    pub async fn pause(&self, job: &str, reason: &str) -> Result<Receipt, StoreError> {
        self.ask(job, What::Pause, Some(reason)).await.map(|(receipt, _)| receipt)
    }

    /// Goes on with the first scheduled time that is still to come. What came while the job was paused is recorded as paused.
    pub async fn resume(&self, job: &str, reason: Option<&str>) -> Result<Receipt, StoreError> {
        self.ask(job, What::Resume, reason).await.map(|(receipt, _)| receipt)
    }

    /// Runs `job` once, now, even if it is paused. The id is that of the request: [`RunFilter::request`] finds its run.
    ///
    /// # Errors
    /// [`StoreError::UnknownJob`] if no job has that name.
    pub async fn trigger(&self, job: &str, reason: Option<&str>) -> Result<Uuid, StoreError> {
        self.check_known(job).await?;
        self.ask(job, What::Trigger, reason).await.map(|(_, id)| id)
    }

    /// Runs one scheduled time of `job` again.
    ///
    /// # Errors
    /// [`StoreError::UnknownJob`] if no job has that name.
    pub async fn replay(
        &self,
        job: &str,
        scheduled_at: DateTime<Utc>,
        reason: Option<&str>,
    ) -> Result<Uuid, StoreError> {
        self.check_known(job).await?;
        self.ask(job, What::Replay { scheduled_at }, reason).await.map(|(_, id)| id)
    }

    /// Continues the schedule of `job` from the present, if it was finished up to a future time because a clock was ahead. A
    /// scheduled time that has run already runs once more when it comes, under the same idempotency key.
    ///
    /// # Errors
    /// [`StoreError::UnknownJob`] if no job has that name.
    pub async fn reset(&self, job: &str, reason: &str) -> Result<Receipt, StoreError> {
        self.check_known(job).await?;
        self.ask(job, What::Reset, Some(reason)).await.map(|(receipt, _)| receipt)
    }

    /// Stops the run of `job` that is under way, or gives up one that waits to be tried again, and withdraws what was asked for
    /// and has not begun.
    pub async fn cancel(&self, job: &str, reason: Option<&str>) -> Result<Receipt, StoreError> {
        let what = What::Cancel { fence: FencingToken(0) };
        let (receipt, id) = self.ask(job, what, reason).await?;
        let row = self.jobs().await?.into_iter().find(|row| row.job == job);
        let waits = |row: &JobRow| row.state.retrying.is_some() && row.held.is_none();
        let Some(row) = row.filter(waits) else { return Ok(receipt) };
        // Nobody is at it, so there is nobody to ask: the retry is given up here, as a turn of the job would do it.
        let Claim::Held(lease) = self.store.acquire(job, row.state.cursor).await? else {
            // Somebody has begun with it since, and is asked.
            return self.ask(job, what, reason).await.map(|(receipt, _)| receipt);
        };
        let given_up = match lease.state.retrying {
            None => Ok(receipt),
            Some(retrying) => {
                let now = self.clock.now();
                let state = JobState::at(lease.state.cursor.max(retrying.scheduled_at));
                let run = RunRecord {
                    fence: lease.fence,
                    attempt: retrying.failed_attempts,
                    reason: Some(signed("cancelled", &self.by, reason)),
                    request: Some(id),
                    ..RunRecord::new(
                        job,
                        retrying.scheduled_at,
                        RunStatus::Interrupted,
                        Trigger::Schedule,
                        now,
                    )
                };
                self.store.record(Some(&lease), &run, &state).await.map(|()| Receipt::Accepted)
            }
        };
        self.store.release(&lease).await?;
        given_up
    }

    /// How every job stands that the store knows, by name.
    pub async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.store.jobs().await
    }

    /// The jobs that should have run and did not, whoever should have run them.
    pub async fn late(&self) -> Result<Vec<Late>, StoreError> {
        self.store.late(self.clock.now()).await
    }

    /// Rows of the history, newest first.
    pub async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        self.store.runs(filter).await
    }

    /// Refuses a job that nothing runs: its request would wait for an hour and be missed.
    async fn check_known(&self, job: &str) -> Result<(), StoreError> {
        if (self.is_known)(job) || self.store.jobs().await?.iter().any(|row| row.job == job) {
            return Ok(());
        }
        // A job that runs on every node has a history, but no row.
        let any = RunFilter { job: Some(job.to_owned()), limit: 1, ..RunFilter::default() };
        if self.store.runs(&any).await?.is_empty() {
            return Err(StoreError::UnknownJob { job: job.to_owned() });
        }
        Ok(())
    }

    async fn ask(&self, job: &str, what: What, reason: Option<&str>) -> Result<(Receipt, Uuid), StoreError> {
        let request = Request {
            id: Uuid::now_v7(),
            job: job.to_owned(),
            what,
            by: self.by.clone(),
            reason: reason.map(str::to_owned),
            at: self.clock.now().trunc_subsecs(6),
        };
        Ok((self.store.request(&request).await?, request.id))
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("by", &self.by).finish_non_exhaustive()
    }
}
