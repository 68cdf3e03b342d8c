//! The front door of billing: one run over the fleet of a database.

use std::sync::{Mutex, MutexGuard, PoisonError};

use billing_scheduler::FencingToken;
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, Value};
use tracing::{Instrument as _, warn};
use uuid::Uuid;

use super::{
    BillReport, BillingError, BillingOptions, BillingSettings, Findings, FindingsByKind, Mode, Totals,
    approvals,
    batch_sizing::AdaptiveLimits,
    deleted,
    fleet_run::{FleetRun, LISTED, RunSummary},
    read, seen_rates,
    spend_limit::SpendLimit,
    spike::Spike,
    spike_guard,
    sql::Statements,
};
use crate::{
    BILLING_JOB, fault_injection,
    hold::Reason,
    panel::Panel,
    price::{DailyBackupFactor, Plan, PriceList},
    restore_detection::CommitMarker,
    spans,
    uncharged::{Closed, Debt, Uncharged, uncharged as uncharged_in},
};
use billing_store::{begin_read, exclusive_writer, execute, query_all, query_one, statement};

/// Bills the fleet of one database.
#[derive(Debug)]
pub struct Biller {
    pub(super) db: DatabaseConnection,
    pub(super) panel: Panel,
    pub(super) sql: Statements,
    pub(super) settings: BillingSettings,
    pub(super) last_commit: Option<CommitMarker>,
    /// Whether nothing may be charged without the panel guard.
    pub(super) needs_guard: bool,
    /// What was learned about how the database answers.
    pub(super) limits: Mutex<AdaptiveLimits>,
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
            pass.spend_limit = spike_guard::limit_of(&pass, &spike).await?;
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
                findings.insert(kind.to_owned(), found);
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

    pub(super) fn limits(&self) -> MutexGuard<'_, AdaptiveLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn daily_backup_factor(&self) -> DailyBackupFactor {
        let by_panel = || DailyBackupFactor::of(self.panel.generation);
        self.settings.daily_backup_factor.unwrap_or_else(by_panel)
    }

    pub(super) async fn plans(&self) -> Result<Vec<Plan>, DbErr> {
        let rows = query_all(&self.db, statement(&self.db, &self.sql.plans, [])).await?;
        Ok(rows.iter().map(|row| read::plan(row, self.panel)).collect())
    }

    /// What every plan costs, and which ones cannot be read.
    pub(super) async fn prices(&self) -> Result<(PriceList, Findings), DbErr> {
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
