//! Billing: every due hour charged once, batch by batch, each batch in one transaction under the panel guard.

mod approvals;
mod batch_sizing;
mod decide;
mod deleted;
mod fencing;
mod findings;
mod fleet_run;
mod id;
mod job;
mod panel_time;
mod post;
mod read;
mod refusals;
mod seen_rates;
pub mod spike_guard;
mod sql;
mod totals;
mod transfer;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use billing_scheduler::{FencingToken, StopReason};
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, Value};
use serde::Serialize;
use tracing::{Instrument as _, warn};
use uuid::Uuid;

use self::{
    batch_sizing::AdaptiveLimits,
    decide::BeyondLimitRow,
    fleet_run::{FleetRun, LISTED, RunSummary},
    spike_guard::SpendLimit,
    sql::{postgres, sqlite},
};
use crate::{
    BILLING_JOB,
    currency::Currency,
    fault_injection,
    hold::Reason,
    money::Money,
    panel::Panel,
    price::{DailyBackupFactor, Plan, PriceList},
    restore_detection::CommitMarker,
    spans,
    uncharged::{Closed, Debt, Uncharged, uncharged as uncharged_in},
};
use billing_store::{begin_read, exclusive_writer, execute, query_all, query_one, statement, with_help};

pub(crate) use self::sql::{
    Statements,
    postgres::{is_amount as is_postgres_amount, milliseconds},
    sqlite::{is_amount as is_sqlite_amount, micros as sqlite_micros},
};
pub use self::{
    approvals::{APPROVED_FOR, Scope, approve_catch_up},
    findings::{Findings, FindingsByKind},
    job::{Billing, BillingParams, details, spike, unfinished},
    seen_rates::FirstSeenPrice,
    spike_guard::Spike,
    totals::{Sum, Sums, Totals},
    transfer::{Adoption, HandoverError, PriceDifference, Release},
};

/// How long billing must not have worked before the panel may bill, unless the configuration sets another time.
pub const HAND_BACK_AFTER: Duration = Duration::from_mins(75);

/// How a fleet is billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BillingSettings {
    /// An instance with more due hours is held until approved.
    pub max_catch_up_hours: u32,
    /// What daily backups cost, in tenths of the price of weekly ones; unset: what the panel's generation charges.
    pub daily_backup_factor: Option<DailyBackupFactor>,
    /// About how many instances one transaction bills; it adapts if this is not set.
    pub batch_instances: Option<u32>,
    /// How many transactions are under way at once; it adapts if this is not set.
    pub connections: Option<u32>,
    /// A run that charges more for an hour than the recent ones by this factor, in tenths, waits for an approval; 0: none does.
    pub spike_factor: i64,
    /// What a run may charge in any case.
    pub spike_floor: Money,
    /// When billing has not worked for this long, the panel may bill.
    pub hand_back_after: Duration,
}

impl BillingSettings {
    /// The same for billing at this interval: a time of less than five quarters of it would hand billing back between two runs that
    /// work.
    #[must_use]
    pub fn at_interval(self, interval: Duration) -> Self {
        Self { hand_back_after: self.hand_back_after.max(interval * 5 / 4), ..self }
    }
}

impl Default for BillingSettings {
    fn default() -> Self {
        Self {
            max_catch_up_hours: 72,
            daily_backup_factor: None,
            batch_instances: None,
            connections: None,
            spike_factor: 30,
            spike_floor: Money(100_000),
            hand_back_after: HAND_BACK_AFTER,
        }
    }
}

/// One pass over the fleet.
pub struct BillingOptions<'a> {
    /// The id of the run's row.
    pub id: Uuid,
    /// The claim under which it writes.
    pub mode: Mode,
    /// Hours that ended by then are due; the database's clock decides if it is not given.
    pub as_of: Option<DateTime<Utc>>,
    /// What is approved beyond the catch-up limit besides the approvals on record: a dry run tries an approval.
    pub approved: Option<&'a Scope>,
    /// Whether the instances with more hours than the catch-up limit are listed.
    pub lists_beyond_limit: bool,
    /// Asked before each batch.
    pub stop: &'a (dyn Fn() -> Option<StopReason> + Sync),
    /// Told after each batch how many instances it looked at.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Receives the first prices of plans once they are written: they are in force however the run ends.
    pub first_prices: &'a (dyn Fn(&[FirstSeenPrice]) + Sync),
}

/// Whether a run is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Commit under this claim of the billing job.
    Commit(FencingToken),
    /// Do everything and roll it back. Needs no claim.
    DryRun,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillReport {
    /// The sums of what was committed (or, in a dry run, would have been).
    pub totals: Totals,
    /// Until when hours were due.
    pub as_of: DateTime<Utc>,
    /// Why it ended before the whole fleet was looked at.
    pub stopped: Option<StopReason>,
    /// The debts that this run closed without a charge, by reason.
    pub uncharged: Vec<Uncharged>,
    /// The instances with more hours than the catch-up limit, by organization, if they are listed.
    pub beyond_limit: Vec<BeyondLimit>,
    /// Of a dry run: whether the run itself would wait for an approval.
    pub spike: Option<Spike>,
    /// Rows that something is wrong with: `unreadable`, `refused`.
    pub findings: FindingsByKind,
    /// The prices that plans have for the first time: hours that had ended before pay them too.
    pub first_seen_prices: Vec<FirstSeenPrice>,
}

/// An instance with more hours due than the catch-up limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BeyondLimit {
    /// The organization that pays for it.
    pub organization: String,
    /// The instance.
    pub instance: String,
    /// Its label.
    pub label: String,
    /// The beginning of the due hours.
    pub start: DateTime<Utc>,
    /// The due hours.
    pub hours: i64,
    /// Their price as decimal text; unset if it is unknown.
    pub amount: Option<String>,
    /// Whether an approval covers them. Otherwise the instance is held.
    pub approved: bool,
}

impl From<&BeyondLimitRow<'_>> for BeyondLimit {
    fn from(row: &BeyondLimitRow<'_>) -> Self {
        Self {
            organization: row.instance.organization.to_string(),
            instance: row.instance.id.to_string(),
            label: row.instance.label.clone(),
            start: DateTime::from_timestamp_micros(row.start).unwrap_or_default(),
            hours: row.hours,
            amount: row.amount.map(|amount| amount.to_string()),
            approved: row.approved,
        }
    }
}

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    /// Another daemon has claimed the job since.
    #[error("the panel guard of this run is no longer the newest: another daemon bills")]
    Fenced,
    /// The panel could charge the same hours.
    #[error(
        "the panel guard that billing relies on is missing, disabled or not the one of this version, so the panel could charge the \
         same hours: nothing more is charged. Run `billing-daemon guard install`; or, if the panel's billing is switched off, set \
         `panel-billing = \"off\"` in the [daemon] section of jobs.toml and restart the daemon"
    )]
    Unguarded,
    /// The database failed.
    #[error("could not {doing}: {}", with_help(source))]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        source: DbErr,
    },
    /// The database is older than what was committed to it.
    #[error(
        "the database ends at batch {here}, but this machine committed batch {remembered}: a backup was restored, or this is \
         another database; see what is missing, then say `billing-daemon accept-restore`"
    )]
    Restored {
        /// The last batch in the database.
        here: i64,
        /// The last one that this machine knows of.
        remembered: i64,
    },
    /// What this machine committed last cannot be read.
    #[error(
        "cannot read {file}, which says what was committed last: {source}; mend it, or remove it if it is lost"
    )]
    CommitMarker {
        /// Where it is.
        file: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Nothing was charged.
    #[error("nothing was charged, because {0}, then run `billing-daemon bill {approve}`", approve = .0.approval())]
    Spike(Spike),
    /// What was announced does not cover the batches that are left.
    #[error(
        "this run charged {charged} {currency}, and its next batch would go beyond the {ceiling} that it may charge by what was due \
         when it began: the rest waits for the next run"
    )]
    Overrun {
        /// The currency of both.
        currency: Currency,
        /// What is charged already.
        charged: Money,
        /// What may be charged.
        ceiling: Money,
    },
    /// The database refuses what is charged, whoever pays.
    #[error(
        "the database refuses charges, so the run ends ({instances} instances were refused): {complaint}"
    )]
    Refused {
        /// How many instances were refused.
        instances: u64,
        /// What the database said of the last one.
        complaint: String,
    },
    /// Some batches found somebody in their way each time. Everything else is billed.
    #[error("{batches} batches could not be posted, everything else was: {last}")]
    Unposted {
        /// How many.
        batches: usize,
        /// The last reason.
        last: String,
    },
}

impl From<spike_guard::Overrun> for BillingError {
    fn from(spike_guard::Overrun { currency, charged, ceiling }: spike_guard::Overrun) -> Self {
        Self::Overrun { currency, charged, ceiling }
    }
}

/// SQL for the microseconds since 1970 of an instant of the panel's; NULL for NULL and for what is not an instant.
#[must_use]
pub fn micros(backend: DbBackend, column: &str) -> String {
    match backend {
        DbBackend::Sqlite => sqlite::micros(column),
        _ => postgres::micros(column),
    }
}

impl BillingError {
    fn database(doing: &'static str) -> impl Fn(DbErr) -> Self {
        move |source| Self::Database { doing, source }
    }
}

/// Bills the fleet of one database.
#[derive(Debug)]
pub struct Biller {
    db: DatabaseConnection,
    panel: Panel,
    sql: Statements,
    settings: BillingSettings,
    last_commit: Option<CommitMarker>,
    /// Whether nothing may be charged without the panel guard.
    needs_guard: bool,
    /// What was learned about how the database answers.
    limits: Mutex<AdaptiveLimits>,
}

impl Biller {
    /// A biller for the database behind `db`, whose schema is `panel`.
    #[must_use]
    pub fn new(db: DatabaseConnection, panel: Panel, settings: BillingSettings) -> Self {
        let one_writer = panel.backend == DbBackend::Sqlite;
        let limits = AdaptiveLimits::new(settings.batch_instances, settings.connections, one_writer);
        Self {
            sql: Statements::of(panel),
            db,
            panel,
            settings,
            last_commit: None,
            needs_guard: false,
            limits: Mutex::new(limits),
        }
    }

    /// The same biller, which refuses a database that is older than what this machine committed to it.
    #[must_use]
    pub fn with_restore_detection(self, last_commit: Option<CommitMarker>) -> Self {
        Self { last_commit, ..self }
    }

    /// The same biller, which charges nothing without the panel guard if `needs_guard`. That is checked in every batch.
    #[must_use]
    pub fn relying_on_guard(self, needs_guard: bool) -> Self {
        Self { needs_guard, ..self }
    }

    /// The clock by which hours end: the database's.
    pub async fn now(&self) -> Result<DateTime<Utc>, DbErr> {
        let row = query_one(&self.db, statement(&self.db, &self.sql.now, [])).await?;
        let micros: i64 = row.ok_or_else(|| DbErr::RecordNotFound("now".to_owned()))?.try_get("", "now")?;
        DateTime::from_timestamp_micros(micros).ok_or_else(|| DbErr::Type(format!("{micros} is no time")))
    }

    /// Charges every hour that is due, or holds its instance with a reason.
    ///
    /// # Errors
    /// Batches that were committed before an error stay committed; another run goes on from there.
    pub async fn bill(&self, run: &BillingOptions<'_>) -> Result<BillReport, BillingError> {
        let Some(last_commit) = self.last_commit.as_ref().filter(|_| run.mode != Mode::DryRun) else {
            return self.run_fleet(run).await;
        };
        self.ensure_not_restored(last_commit).await?;
        let result = self.run_fleet(run).await;
        let remembered = match self.last_batch().await {
            Ok(batch) => last_commit.set(batch).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = remembered {
            warn!(error, "could not note the last commit in {}: {error}", last_commit.file().display());
        }
        result
    }

    async fn ensure_not_restored(&self, last_commit: &CommitMarker) -> Result<(), BillingError> {
        let remembered = last_commit.batch().map_err(|source| BillingError::CommitMarker {
            file: last_commit.file().display().to_string(),
            source,
        })?;
        let here = self.last_batch().await.map_err(BillingError::database("look for the last batch"))?;
        if here < remembered { Err(BillingError::Restored { here, remembered }) } else { Ok(()) }
    }

    /// The number of the last batch in the database; 0 if there is none.
    pub async fn last_batch(&self) -> Result<i64, DbErr> {
        let sql = "SELECT coalesce(max(id), 0) AS batch FROM billing_batches";
        let row = query_one(&self.db, statement(&self.db, sql, [])).await?;
        row.map_or(Ok(0), |row| row.try_get("", "batch"))
    }

    /// One pass over all organizations.
    async fn run_fleet(&self, run: &BillingOptions<'_>) -> Result<BillReport, BillingError> {
        if self.needs_guard && run.mode != Mode::DryRun {
            self.check_guard().await?;
        }
        let as_of = match run.as_of {
            Some(as_of) => as_of,
            None => self.query_step("ask the database for its time", self.now()).await?,
        };
        let (mut pass, unreadable_plans) = self.begin_fleet_run(run, as_of).await?;
        let mut spike = spike_guard::assess(&pass).await?;
        if run.mode != Mode::DryRun {
            pass.spend_limit = SpendLimit::of(&pass, &spike).await?;
            spike.waits = None;
        }
        let first_seen_prices = seen_rates::record(&pass).await?;
        (run.first_prices)(&first_seen_prices);
        let mut summary = RunSummary { unreadable: unreadable_plans, ..RunSummary::default() };
        let mut result = pass.run(&mut summary).await;
        // In a dry run the hours of the previous organizations stay as they are, so the new ones cannot be billed.
        if result.is_ok() && run.mode != Mode::DryRun {
            result = pass.bill_new_organizations(&mut summary).await;
        }
        let mut deleted = Debt::default();
        if result.is_ok() && summary.stopped.is_none() {
            result = deleted::record_deleted(&pass, &mut summary.unreadable).await.map(|debt| deleted = debt);
        }
        if self.panel.backend == DbBackend::Sqlite {
            // Nothing is lost if that fails: the connection is closed when it is dropped, too.
            let _ = pass.db.close().await;
        }
        result?;
        let mut refusals = pass.refusals.into_inner().unwrap_or_else(PoisonError::into_inner);
        let refused = if summary.stopped.is_some() { refusals.take() } else { refusals.end()? };
        let RunSummary {
            mut totals, mut unposted, unreadable, stopped, mut beyond_limit, uncollected, ..
        } = summary;
        warn_of(&[
            ("cannot read a row, so what depends on it is held", &unreadable),
            ("the database refuses a charge, so its instance is held", &refused),
        ]);
        beyond_limit.sort_unstable();
        let mut uncharged = Vec::new();
        for (reason, debt) in [(Reason::InstanceDeleted, deleted), (Reason::InstanceTransferred, uncollected)]
        {
            if debt.instances > 0 {
                uncharged.push(Uncharged { reason: reason.to_string(), debt });
            }
        }
        if matches!(run.mode, Mode::Commit(_)) && !fault_injection::mutated("totals-from-memory") {
            // A batch whose commit was not answered is counted by its row, not by us.
            totals = self.query_step("sum up the run", self.totals_of(run.id)).await?;
            let closed = Closed::By(as_of.timestamp_micros());
            uncharged = self
                .query_step("sum up what was closed", async {
                    let txn = begin_read(&self.db).await?;
                    let found = uncharged_in(&txn, closed).await?;
                    txn.commit().await?;
                    Ok(found)
                })
                .await?;
        }
        if let Some(last) = unposted.pop() {
            return Err(BillingError::Unposted { batches: unposted.len() + 1, last });
        }
        let mut findings = FindingsByKind::new();
        for (kind, found) in [("unreadable", unreadable), ("refused", refused)] {
            if found.count > 0 {
                findings.insert(kind, found);
            }
        }
        let spike = spike.waits;
        Ok(BillReport { totals, as_of, stopped, uncharged, beyond_limit, spike, findings, first_seen_prices })
    }

    /// Reads what a pass needs to know beforehand, and the plans that cannot be read.
    async fn begin_fleet_run<'a>(
        &'a self,
        run: &'a BillingOptions<'a>,
        as_of: DateTime<Utc>,
    ) -> Result<(FleetRun<'a>, Findings), BillingError> {
        let (prices, unreadable) = self.query_step("read the plans", self.prices()).await?;
        let as_of = as_of.timestamp_micros();
        let approvals = approvals::in_force(&self.db, as_of);
        let mut approvals = self.query_step("read the approvals in force", approvals).await?;
        if let Some(scope) = run.approved {
            approvals.add(scope, as_of);
        }
        let last_write = Mutex::default();
        let spend_limit = SpendLimit::default();
        let refusals = Mutex::default();
        let db = exclusive_writer(&self.db);
        Ok((
            FleetRun { biller: self, db, last_write, run, as_of, prices, approvals, spend_limit, refusals },
            unreadable,
        ))
    }

    /// Returns what a run by `as_of` would wait for an approval of; now, if no time is given.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn spike(&self, as_of: Option<DateTime<Utc>>) -> Result<Option<Spike>, BillingError> {
        let run = BillingOptions {
            id: Uuid::nil(),
            mode: Mode::DryRun,
            as_of,
            approved: None,
            lists_beyond_limit: false,
            stop: &|| None,
            progress: &|_| {},
            first_prices: &|_| {},
        };
        let as_of = match as_of {
            Some(as_of) => as_of,
            None => self.query_step("ask the database for its time", self.now()).await?,
        };
        let (pass, _) = self.begin_fleet_run(&run, as_of).await?;
        let assessment = spike_guard::assess(&pass).await;
        if self.panel.backend == DbBackend::Sqlite {
            // It only read.
            let _ = pass.db.close().await;
        }
        Ok(assessment?.waits)
    }

    /// Refuses to run without the panel guard, also where no batch is due that would find it missing.
    async fn check_guard(&self) -> Result<(), BillingError> {
        let Some(sql) = &self.sql.is_guarded else { return Ok(()) };
        let guarded =
            self.query_step("check the panel guard", query_one(&self.db, statement(&self.db, sql, [])));
        let guarded = guarded.await?.map_or(Ok(false), |row| row.try_get("", "guarded"));
        let guarded = guarded.map_err(BillingError::database("check the panel guard"))?;
        if guarded { Ok(()) } else { Err(BillingError::Unguarded) }
    }

    /// What the database answers, as a step of a run.
    async fn query_step<T>(
        &self,
        doing: &'static str,
        question: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, BillingError> {
        let answer = question.instrument(spans::step(self.panel.backend, doing)).await;
        answer.map_err(BillingError::database(doing))
    }

    /// What the run with this id has committed so far.
    pub async fn totals_of(&self, run: Uuid) -> Result<Totals, DbErr> {
        let values: [Value; 1] = [run.to_string().into()];
        let row = query_one(&self.db, statement(&self.db, &self.sql.run_totals, values)).await?;
        read::totals(&row.ok_or_else(|| DbErr::RecordNotFound("a sum".to_owned()))?)
    }

    /// Notes under `fence` that billing works, and after which time without that the panel may bill. Heartbeats and the panel guard
    /// read both.
    pub async fn record_success(&self, fencing_token: FencingToken) -> Result<(), DbErr> {
        // More than an interval of PostgreSQL can be is as good as without end.
        let seconds = i32::try_from(self.settings.hand_back_after.as_secs()).unwrap_or(i32::MAX);
        let values: [Value; 3] =
            [BILLING_JOB.into(), fencing_token.0.into(), i64::from(seconds.max(1)).into()];
        execute(&self.db, statement(&self.db, &self.sql.record_success, values)).await.map(drop)
    }

    fn limits(&self) -> MutexGuard<'_, AdaptiveLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn daily_backup_factor(&self) -> DailyBackupFactor {
        let by_panel = || DailyBackupFactor::of(self.panel.generation);
        self.settings.daily_backup_factor.unwrap_or_else(by_panel)
    }

    async fn plans(&self) -> Result<Vec<Plan>, DbErr> {
        let rows = query_all(&self.db, statement(&self.db, &self.sql.plans, [])).await?;
        Ok(rows.iter().map(|row| read::plan(row, self.panel)).collect())
    }

    /// What every plan costs, and which ones cannot be read.
    async fn prices(&self) -> Result<(PriceList, Findings), DbErr> {
        let plans = self.plans().await?;
        let mut unreadable = Findings::default();
        for plan in &plans {
            if let Some(problem) = &plan.unreadable {
                unreadable.add(format!("plan `{}`: {problem}", plan.id), LISTED);
            }
        }
        let (seen, problems) = seen_rates::read(&self.db, &self.sql).await?;
        for problem in problems {
            unreadable.add(problem.to_string(), LISTED);
        }
        Ok((PriceList::new(plans, self.daily_backup_factor()).with_seen(seen), unreadable))
    }
}

/// Logs the first findings of all kinds together, and how many more there are.
fn warn_of(kinds: &[(&str, &Findings)]) {
    let listed = kinds.iter().flat_map(|(what, findings)| findings.listed.iter().map(move |one| (what, one)));
    let mut shown = 0;
    for (what, sentence) in listed.take(LISTED) {
        warn!("{what}: {sentence}");
        shown += 1;
    }
    let more = kinds.iter().map(|(_, findings)| findings.count).sum::<u64>() - shown;
    if more > 0 {
        warn!(more, "{more} more rows cannot be read or were refused: see the `findings` of the run");
    }
}
