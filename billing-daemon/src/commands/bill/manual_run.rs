//! One billing run outside of the schedule, under the lease and the fencing token of the billing job.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use billing_jobs::{
    BILLING_JOB,
    billing::{BillReport, Biller, BillingError, BillingOptions, Mode, RunDetails},
    restore_detection::RestoreError,
};
use billing_scheduler::{
    Clock, Job, JobContext, JobError, JobSpec, Outcome, Registry, RunOnceError, RunStatus, Schedule,
    Scheduler, SystemClock,
};
use billing_store::{Database, SeaOrmStore};
use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};

use crate::{
    commands::append_to_audit_log,
    exit::{Exit, Failure},
    host::identity::Identity,
    panel_database::PanelDatabase,
    runtime::signals::Signals,
};

/// How long the lease lasts without renewal.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// A run by hand has no timeout; the operator can stop it.
const TIMEOUT: Duration = Duration::from_hours(365 * 24);

/// What a run bills, and for whom.
pub(in crate::commands) struct ManualRun {
    pub(in crate::commands) biller: Biller,
    /// Hours that have ended by then are due; now if it is not set.
    pub(in crate::commands) as_of: Option<DateTime<Utc>>,
    /// Who runs it, for the audit log.
    pub(in crate::commands) by: String,
    /// The reason, for the audit log.
    pub(in crate::commands) reason: Option<String>,
    /// Receives the number of further instances that are billed.
    pub(in crate::commands) progress: Box<dyn Fn(u64) + Send + Sync>,
}

/// The report of a run and its duration.
pub(in crate::commands) type Billed = (BillReport, Duration);

/// The run as a job of a scheduler that runs nothing else. The result is shared, because a run's record has no exit code.
#[derive(Clone)]
struct ManualJob {
    db: DatabaseConnection,
    run: Arc<ManualRun>,
    result: Arc<Mutex<Option<Result<Billed, Failure>>>>,
}

/// Bills once under the job's lease; a signal stops the run between two batches.
pub(in crate::commands) async fn bill_once(
    opened: &PanelDatabase,
    database: &Database,
    run: ManualRun,
) -> Result<Billed, Failure> {
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot listen for signals: {error}")))?;
    let job = ManualJob { db: opened.db.clone(), run: Arc::new(run), result: Arc::default() };
    let scheduler = scheduler(&job, database)?;
    let mut recorded = pin!(scheduler.run_once(BILLING_JOB, Some("billed by hand")));
    let recorded = loop {
        tokio::select! {
            recorded = &mut recorded => break recorded,
            _ = signals.next() => scheduler.interrupt(),
        }
    };
    let record = recorded.map_err(not_run)?;
    let result = job.result.lock().unwrap_or_else(PoisonError::into_inner).take();
    result.unwrap_or_else(|| {
        // The job was not called, or it panicked.
        let exit = if record.status == RunStatus::Interrupted { Exit::TryAgain } else { Exit::Internal };
        let cause = record.error.unwrap_or_else(|| "stopped by a signal".to_owned());
        Err(Failure::new(exit, format!("cannot bill: {cause}")))
    })
}

fn scheduler(job: &ManualJob, database: &Database) -> Result<Scheduler, Failure> {
    let internal =
        |error: &dyn fmt::Display| Failure::new(Exit::Internal, format!("cannot start billing: {error}"));
    let mut registry = Registry::new();
    registry.conceal(database.url().secrets());
    let job = job.clone();
    let db = job.db.clone();
    registry.register(BILLING_JOB, move |_: Value| job.clone());
    // The schedule is never used, because nothing ticks this scheduler.
    let schedule = Schedule::every(Duration::from_hours(1)).map_err(|error| internal(&error))?;
    let spec = JobSpec { timeout: TIMEOUT, ..JobSpec::new(BILLING_JOB, BILLING_JOB, schedule) };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let holder = Identity::from_process(None).daemon_id;
    let store = SeaOrmStore::new(db, database.clone(), holder, LEASE_TTL, Arc::clone(&clock));
    Scheduler::build(&registry, [(spec, Value::Null)], Arc::new(store), clock)
        .map_err(|error| internal(&error))
}

#[async_trait]
impl Job for ManualJob {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let result = self.bill(ctx).await;
        let outcome = match &result {
            Ok((BillReport { totals, stopped: Some(_), .. }, _)) => {
                Ok(Outcome::Interrupted { items: totals.charged })
            }
            Ok((bill, _)) => Ok(Outcome::Done {
                items: bill.totals.charged,
                details: RunDetails::finished(bill).to_json(),
            }),
            Err(failure) => Err(JobError::fatal(failure.message.clone())),
        };
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        outcome
    }
}

impl ManualJob {
    async fn bill(&self, ctx: &JobContext) -> Result<Billed, Failure> {
        let ManualRun { biller, as_of, by, reason, progress } = &*self.run;
        let about = (BILLING_JOB, reason.as_deref());
        append_to_audit_log(&self.db, by.clone(), "bill", about, json!({ "run": ctx.run_id })).await?;
        let started = Instant::now();
        let first_prices = Mutex::new(Vec::new());
        let options = BillingOptions {
            id: ctx.run_id,
            mode: Mode::Commit(ctx.fencing_token),
            as_of: *as_of,
            approved: None,
            lists_beyond_limit: true,
            stop: &|| ctx.stop_requested(),
            progress,
            first_prices: &|first| {
                ctx.report(RunDetails::unfinished(first, None).to_json());
                first_prices.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(first);
            },
        };
        let result = biller.bill(&options).await;
        let took = started.elapsed();
        let bill = result.map_err(|error| {
            let first_prices = first_prices.lock().unwrap_or_else(PoisonError::into_inner);
            ctx.report(RunDetails::unfinished(&first_prices, Some(&error)).to_json());
            billing_failure(error)
        })?;
        if bill.stopped.is_none() {
            biller
                .record_success(ctx.fencing_token)
                .await
                .map_err(|error| Failure::database("record that billing works", &error))?;
        }
        Ok((bill, took))
    }
}

/// The exit code of a failed billing run.
pub(in crate::commands) fn billing_failure(error: BillingError) -> Failure {
    match error {
        BillingError::Database { doing, source } => Failure::database(doing, &source),
        BillingError::Fenced | BillingError::Unposted { .. } | BillingError::CeilingExceeded(_) => {
            Failure::new(Exit::TryAgain, error)
        }
        BillingError::Spike(_) | BillingError::Refused { .. } => Failure::new(Exit::Negative, error),
        BillingError::Restore(RestoreError::Database(source)) => {
            Failure::database("check for a restored database", &source)
        }
        BillingError::Restore(_) | BillingError::Unguarded => Failure::new(Exit::Configuration, error),
    }
}

fn not_run(error: RunOnceError) -> Failure {
    match error {
        RunOnceError::Busy { holder, .. } => Failure::new(
            Exit::TryAgain,
            format!("billing is being run by {holder}: try again when it is done"),
        ),
        RunOnceError::Claim(error) | RunOnceError::Record(error) => {
            Failure::store("use the lease of billing", error)
        }
        RunOnceError::ShuttingDown => Failure::new(Exit::TryAgain, error),
        RunOnceError::UnknownJob { .. } | RunOnceError::AlreadyRunning { .. } => {
            Failure::new(Exit::Internal, error)
        }
    }
}
