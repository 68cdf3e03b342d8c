//! The front door of billing: one run over the fleet of a database.

use std::sync::{Arc, Mutex};

use billing_scheduler::FencingToken;
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, Value};
use tracing::{Instrument as _, warn};
use uuid::Uuid;

use super::{
    BillReport, BillingError, BillingOptions, BillingSettings, Findings, FindingsByKind, FirstSeenPrice,
    Forecast, Mode, Spike, Totals, approvals,
    batch_sizing::AdaptiveLimits,
    deleted,
    findings::LISTED,
    fleet_run::FleetRun,
    read,
    refusals::Refusals,
    run_context::RunContext,
    seen_rates,
    spend_limit::SpendLimit,
    spike_guard::{self, Assessment},
    sql::Statements,
    summary::RunSummary,
};
use crate::{
    BILLING_JOB, fault_injection,
    hold::Reason,
    panel::Panel,
    price::{DailyBackupFactor, Plan, PriceChange, PriceList},
    restore_detection::RestoreDetection,
    spans,
    uncharged::{Closed, Debt, Uncharged, uncharged as uncharged_in},
};
use billing_store::{StatementLimit, begin_read, exclusive_writer, execute, query_all, query_one, statement};

/// Bills the fleet of one database.
#[derive(Debug)]
pub struct Biller {
    pub(super) db: DatabaseConnection,
    pub(super) panel: Panel,
    pub(super) sql: Statements,
    pub(super) settings: BillingSettings,
    restores: Arc<RestoreDetection>,
    needs_guard: bool,
    /// What earlier runs measured of the database.
    limits: Mutex<AdaptiveLimits>,
}

/// What a run did, apart from its summary.
struct Finished {
    summary: RunSummary,
    deleted: Debt,
    refusals: Refusals,
}

impl Biller {
    /// A biller for the database behind `db`, whose schema is `panel`.
    #[must_use]
    pub fn new(db: DatabaseConnection, panel: Panel, settings: BillingSettings) -> Self {
        let one_writer = panel.backend == DbBackend::Sqlite;
        let limits = AdaptiveLimits::new(settings.batch_instances, settings.connections, one_writer);
        let restores = Arc::new(RestoreDetection::new(db.clone(), "a process"));
        Self {
            sql: Statements::of(panel),
            db,
            panel,
            settings,
            restores,
            needs_guard: false,
            limits: Mutex::new(limits),
        }
    }

    /// The same biller with the note of its process. Otherwise the biller keeps one in memory.
    #[must_use]
    pub fn with_restore_detection(self, restores: Arc<RestoreDetection>) -> Self {
        Self { restores, ..self }
    }

    /// The same biller, which charges nothing without the panel guard if `needs_guard`. Every batch checks that.
    #[must_use]
    pub fn relying_on_guard(self, needs_guard: bool) -> Self {
        Self { needs_guard, ..self }
    }

    /// The current time of the database, which decides when hours end.
    pub async fn now(&self) -> Result<DateTime<Utc>, DbErr> {
        let row = query_one(&self.db, statement(&self.db, &self.sql.now, [])).await?;
        let micros: i64 = row.ok_or_else(|| DbErr::RecordNotFound("now".to_owned()))?.try_get("", "now")?;
        DateTime::from_timestamp_micros(micros)
            .ok_or_else(|| DbErr::Type(format!("{micros} is not a valid time")))
    }

    /// Charges every hour that is due, or holds its instance with a reason.
    ///
    /// # Errors
    /// Batches that were committed before an error stay committed; the next run continues from there.
    pub async fn bill(&self, options: &BillingOptions<'_>) -> Result<BillReport, BillingError> {
        if options.mode == Mode::DryRun {
            return self.run_fleet(options).await;
        }
        self.restores.check().await?;
        let result = self.run_fleet(options).await;
        self.restores.save().await;
        result
    }

    /// Bills all organizations once.
    async fn run_fleet(&self, options: &BillingOptions<'_>) -> Result<BillReport, BillingError> {
        if self.needs_guard && options.mode != Mode::DryRun {
            self.check_guard().await?;
        }
        let (context, unreadable) = self.begin_run(options).await?;
        let assessment = spike_guard::assess(&context).await?;
        let (spend_limit, spike) = match options.mode {
            Mode::DryRun => (SpendLimit::default(), assessment.spike),
            Mode::Commit(_) => (spike_guard::limit_of(&context, &assessment).await?, None),
        };
        let first_seen_prices = seen_rates::record(&context).await?;
        (options.first_prices)(&first_seen_prices);
        let finished = self.bill_fleet(&context, spend_limit, unreadable).await;
        context.close().await;
        self.report(&context, finished?, spike, first_seen_prices).await
    }

    async fn bill_fleet(
        &self,
        context: &RunContext<'_>,
        spend_limit: SpendLimit,
        unreadable: Findings,
    ) -> Result<Finished, BillingError> {
        let run = FleetRun::new(context, spend_limit, &self.limits);
        let mut summary = RunSummary { unreadable, ..RunSummary::default() };
        run.run(&mut summary).await?;
        // In a dry run the hours of the previous organizations stay as they are, so the new ones cannot be billed.
        if context.options.mode != Mode::DryRun {
            run.bill_new_organizations(&mut summary).await?;
        }
        let deleted = match summary.stopped {
            Some(_) => Debt::default(),
            None => deleted::record_deleted(context, &mut summary.unreadable).await?,
        };
        Ok(Finished { summary, deleted, refusals: run.into_refusals() })
    }

    async fn report(
        &self,
        context: &RunContext<'_>,
        Finished { summary, deleted, mut refusals }: Finished,
        spike: Option<Spike>,
        first_seen_prices: Vec<FirstSeenPrice>,
    ) -> Result<BillReport, BillingError> {
        let refused = if summary.stopped.is_some() { refusals.take() } else { refusals.end()? };
        let RunSummary {
            mut totals, mut unposted, unreadable, stopped, mut beyond_limit, uncollected, ..
        } = summary;
        log_findings(&[
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
        if matches!(context.options.mode, Mode::Commit(_)) && !fault_injection::mutated("totals-from-memory")
        {
            // A batch may be committed although the reply to its COMMIT was lost. Its row counts it.
            totals = self.query_step("sum up the run", self.totals_of(context.options.id)).await?;
            let closed = Closed::By(context.as_of);
            uncharged = self.query_step("sum up closed debts", self.uncharged(closed)).await?;
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
        let as_of = DateTime::from_timestamp_micros(context.as_of).unwrap_or_default();
        Ok(BillReport { totals, as_of, stopped, uncharged, beyond_limit, spike, findings, first_seen_prices })
    }

    async fn uncharged(&self, closed: Closed) -> Result<Vec<Uncharged>, DbErr> {
        let txn = begin_read(&self.db, StatementLimit::Fleet).await?;
        let found = uncharged_in(&txn, closed).await?;
        txn.commit().await?;
        Ok(found)
    }

    /// Reads what a run needs before its first batch. Returns the plans that cannot be read as well.
    async fn begin_run<'a>(
        &'a self,
        options: &'a BillingOptions<'a>,
    ) -> Result<(RunContext<'a>, Findings), BillingError> {
        let as_of = match options.as_of {
            Some(as_of) => as_of,
            None => self.query_step("read the time of the database", self.now()).await?,
        };
        let as_of = as_of.timestamp_micros();
        let (prices, unreadable) = self.query_step("read the plans", self.prices()).await?;
        let approvals = approvals::in_force(&self.db, as_of);
        let mut approvals = self.query_step("read the approvals in force", approvals).await?;
        if let Some(scope) = options.approved {
            approvals.add(scope, as_of);
        }
        let context = RunContext {
            db: &self.db,
            writer: exclusive_writer(&self.db),
            panel: self.panel,
            sql: &self.sql,
            settings: self.settings,
            restores: &self.restores,
            needs_guard: self.needs_guard,
            options,
            as_of,
            prices,
            approvals,
        };
        Ok((context, unreadable))
    }

    /// Returns the spike for which a run by `as_of`, or by now, would wait.
    ///
    /// # Errors
    /// The database fails.
    pub async fn spike(&self, as_of: Option<DateTime<Utc>>) -> Result<Option<Spike>, BillingError> {
        Ok(self.assess(as_of, false).await?.spike)
    }

    /// Returns what the next run would charge, at most. Locks and writes nothing.
    ///
    /// # Errors
    /// What is due cannot be read.
    pub async fn forecast(&self) -> Result<Forecast, BillingError> {
        let Assessment { due, ceilings, spike } = self.assess(None, true).await?;
        Ok(Forecast { due: due.unwrap_or_default(), ceilings, spike })
    }

    async fn assess(
        &self,
        as_of: Option<DateTime<Utc>>,
        needs_amounts: bool,
    ) -> Result<Assessment, BillingError> {
        let options = BillingOptions {
            id: Uuid::nil(),
            mode: Mode::DryRun,
            as_of,
            approved: None,
            lists_beyond_limit: false,
            stop: &|| None,
            progress: &|_| {},
            first_prices: &|_| {},
        };
        let (context, _) = self.begin_run(&options).await?;
        let assess = async {
            let assessment = spike_guard::assess(&context).await?;
            if assessment.due.is_some() || !needs_amounts {
                return Ok(assessment);
            }
            Ok(Assessment { due: Some(spike_guard::at_most(&context).await?), ..assessment })
        };
        let assessment = assess.await;
        context.close().await;
        assessment
    }

    /// Returns the current prices that differ from those that runs saw last.
    ///
    /// # Errors
    /// The plans or the prices that runs saw cannot be read.
    pub async fn price_changes(&self) -> Result<Vec<PriceChange>, DbErr> {
        Ok(self.prices().await?.0.changes())
    }

    /// Rejects a run without the panel guard, also where no batch is due that would find it missing.
    async fn check_guard(&self) -> Result<(), BillingError> {
        const DOING: &str = "check the panel guard";
        let Some(sql) = &self.sql.is_guarded else { return Ok(()) };
        let row = self.query_step(DOING, query_one(&self.db, statement(&self.db, sql, []))).await?;
        let guarded = row.map_or(Ok(false), |row| row.try_get("", "guarded"));
        if guarded.map_err(BillingError::database(DOING))? { Ok(()) } else { Err(BillingError::Unguarded) }
    }

    /// Awaits a query as a step of a run.
    async fn query_step<T>(
        &self,
        doing: &'static str,
        query: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, BillingError> {
        let result = query.instrument(spans::step(self.panel.backend, doing)).await;
        result.map_err(BillingError::database(doing))
    }

    /// The totals that the run with this id has committed so far.
    pub async fn totals_of(&self, run: Uuid) -> Result<Totals, DbErr> {
        let values: [Value; 1] = [run.to_string().into()];
        let row = query_one(&self.db, statement(&self.db, &self.sql.run_totals, values)).await?;
        read::totals(&row.ok_or_else(|| DbErr::RecordNotFound("a sum".to_owned()))?)
    }

    /// Records under `fencing_token` that billing succeeded, and after how long without a success the panel may bill. Heartbeats and
    /// the panel guard read both.
    pub async fn record_success(&self, fencing_token: FencingToken) -> Result<(), DbErr> {
        // A PostgreSQL interval has no room for more seconds; the largest one is as good as no limit.
        let seconds = i32::try_from(self.settings.hand_back_after.as_secs()).unwrap_or(i32::MAX);
        let values: [Value; 3] =
            [BILLING_JOB.into(), fencing_token.0.into(), i64::from(seconds.max(1)).into()];
        execute(&self.db, statement(&self.db, &self.sql.record_success, values)).await.map(drop)
    }

    pub(super) fn daily_backup_factor(&self) -> DailyBackupFactor {
        let by_panel = || DailyBackupFactor::of(self.panel.generation);
        self.settings.daily_backup_factor.unwrap_or_else(by_panel)
    }

    pub(super) async fn plans(&self) -> Result<Vec<Plan>, DbErr> {
        let rows = query_all(&self.db, statement(&self.db, &self.sql.plans, [])).await?;
        Ok(rows.iter().map(|row| read::plan(row, self.panel)).collect())
    }

    /// The prices of all plans, and what cannot be read.
    pub(crate) async fn prices(&self) -> Result<(PriceList, Findings), DbErr> {
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

/// Logs the first findings of all kinds together, and the number of the others.
fn log_findings(kinds: &[(&str, &Findings)]) {
    let listed = kinds.iter().flat_map(|(what, findings)| findings.listed.iter().map(move |one| (what, one)));
    let mut logged = 0;
    for (what, sentence) in listed.take(LISTED) {
        warn!("{what}: {sentence}");
        logged += 1;
    }
    let more = kinds.iter().map(|(_, findings)| findings.count).sum::<u64>() - logged;
    if more > 0 {
        warn!(more, "{more} more rows cannot be read or were refused: see the `findings` of the run");
    }
}
