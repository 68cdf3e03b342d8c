//! `bill`: one billing run, now, under the same lease and fence as the daemon's.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use billing_jobs::{
    BILLING_JOB,
    billing::{
        BillReport, Biller, BillingError, BillingOptions, BillingParams, BillingSettings, FirstSeenPrice,
        Mode, RunDetails, Scope,
    },
    restore_detection::CommitMarker,
};
use billing_scheduler::{
    Claim, Clock, JobContext, Lease, Occurrence, RunCause, RunRecord, RunStatus, StopHandle, StopReason,
    Store, StoreError, SystemClock,
};
use billing_store::audit_log::{self, AuditEvent};
use chrono::{DateTime, SubsecRound, Utc};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sea_orm::DatabaseConnection;
use serde_json::json;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{approvals, bill_report::Report, complain, jobs::control::needs_force, session::Session, width};
use crate::{
    config::Config,
    exit::{Exit, Failure},
    host::identity::{Identity, operator_name},
    output::{json as say_json, layout as say_lines},
    panel_database::{self, PanelDatabase},
    runtime::signals::Signals,
    status::panel_presence::PanelPresence,
};
use billing_store::{Database, QueryFailed, SeaOrmStore, read_control_state};

#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Debug, Args)]
pub(crate) struct BillArgs {
    /// Do everything and roll it back
    #[arg(long)]
    dry_run: bool,
    /// Approve, for 24 hours, the hours beyond the catch-up limit of these instances and organizations: an id, a label,
    /// a slug or a name
    #[arg(long, value_name = "INSTANCE|ORGANIZATION", num_args = 0..)]
    pub(super) approve_catch_up: Option<Vec<String>>,
    /// Approve the catch-up of every instance
    #[arg(long, requires = "approve_catch_up")]
    pub(super) all: bool,
    /// Do not approve an instance with more hours due than this
    #[arg(long, value_name = "N", requires = "approve_catch_up")]
    pub(super) hours: Option<u32>,
    /// Reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Approve a run that waits because it would charge far more than usual: the announced amount, and its currency if
    /// there are several
    #[arg(
        long, value_names = ["AMOUNT", "CURRENCY"], num_args = 1..=2, action = clap::ArgAction::Append,
        conflicts_with = "dry_run"
    )]
    approve: Vec<String>,
    /// Bill although the job is paused
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How long the lease of a run by hand lasts without renewal.
const LEASE_TTL: Duration = Duration::from_secs(10);

pub(super) async fn execute(session: &Session<'_>, options: &BillArgs) -> Result<(), Failure> {
    let config = session.announced_config()?;
    let (settings, daemon) = (settings(config)?, &config.daemon);
    let database = session.database()?;
    let opened = panel_database::open(&database).await?;
    let presence = PanelPresence::detect(&opened).await?;
    if !options.dry_run {
        presence.ensure_may_charge(daemon.panel_billing)?;
        refuse_paused(&opened.db, options.force).await?;
    }
    if presence.is_relevant() {
        complain(&presence.to_string());
    }
    let scope = approvals::scope(&opened.db, options).await?;
    if !options.approve.is_empty() {
        let biller = Biller::new(opened.db.clone(), opened.panel, settings);
        approvals::approve_spike(&opened.db, &biller, &options.approve).await?;
    }
    let approved_until = match &scope {
        Some(scope) if !options.dry_run => {
            Some(approvals::record(&opened.db, scope, options.reason.as_deref()).await?)
        }
        _ => None,
    };
    let bar = progress_bar(None);
    let once = Once {
        as_of: None,
        dry_run: options.dry_run,
        approved: scope.filter(|_| options.dry_run),
        reason: options.reason.clone(),
        settings,
        needs_guard: presence.needs_guard(daemon.panel_billing),
        last_commit: panel_database::last_commit(daemon, &database),
        progress: &|instances| bar.inc(instances),
    };
    let (bill, took) = bill_once(&opened, &database, &once).await?;
    bar.finish_and_clear();
    let report = Report {
        bill: &bill,
        took,
        dry_run: options.dry_run,
        approved_until,
        max_catch_up_hours: settings.max_catch_up_hours,
    };
    if options.json {
        say_json(&report.in_json());
    } else {
        say_lines(report.in_words(width()).trim_end());
    }
    match bill.stopped {
        None if bill.spike.is_some() => Err(Failure::silent(Exit::Negative)),
        None => Ok(()),
        Some(reason) => {
            let message = format!(
                "stopped before the end: {reason}; what was charged stays, run it again for the rest"
            );
            Err(Failure::new(Exit::TryAgain, message))
        }
    }
}

/// Refuses to bill while the job is paused, unless the operator insists.
async fn refuse_paused(db: &DatabaseConnection, force: bool) -> Result<(), Failure> {
    let wishes = read_control_state(db).await;
    let wishes = wishes.map_err(|error| Failure::database("read whether billing is paused", &error))?;
    match wishes.pause_of(BILLING_JOB) {
        Some(pause) if !force => Err(Failure::new(Exit::Usage, needs_force(BILLING_JOB, pause))),
        _ => Ok(()),
    }
}

/// The settings of the billing job in the configuration, if it has one.
pub(super) fn settings(config: &Config) -> Result<BillingSettings, Failure> {
    let Some((_, params)) = config.jobs.iter().find(|(spec, _)| spec.kind == BILLING_JOB) else {
        return Ok(BillingSettings::default());
    };
    let params: BillingParams = serde_json::from_value(params.clone()).map_err(|error| {
        Failure::new(Exit::Configuration, format!("parameters of `{BILLING_JOB}`: {error}"))
    })?;
    Ok(BillingSettings::from(&params).at_interval(config.billing_interval_or_default()))
}

/// One run by hand.
pub(super) struct Once<'a> {
    pub(super) as_of: Option<DateTime<Utc>>,
    pub(super) dry_run: bool,
    /// What a dry run is to take as approved beyond the catch-up limit.
    pub(super) approved: Option<Scope>,
    /// Why, for the audit log.
    pub(super) reason: Option<String>,
    pub(super) settings: BillingSettings,
    pub(super) needs_guard: bool,
    pub(super) last_commit: Option<CommitMarker>,
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
}

/// Bills once; returns what it came to and how long it took.
pub(super) async fn bill_once(
    opened: &PanelDatabase,
    database: &Database,
    once: &Once<'_>,
) -> Result<(BillReport, Duration), Failure> {
    let biller = Biller::new(opened.db.clone(), opened.panel, once.settings)
        .with_restore_detection(once.last_commit.clone())
        .relying_on_guard(once.needs_guard);
    if once.dry_run {
        let started = Instant::now();
        let stop = || None;
        let bill = biller.bill(&run(once, Uuid::now_v7(), Mode::DryRun, &stop, &|_| {})).await;
        let bill = bill.map_err(failed)?;
        return Ok((bill, started.elapsed()));
    }
    let signals = Signals::listen()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot listen to signals: {error}")))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let holder = Identity::from_process(None).daemon_id;
    let store = SeaOrmStore::new(opened.db.clone(), database.clone(), holder, LEASE_TTL, Arc::clone(&clock));
    let sent = clock.monotonic();
    let lease = match store.acquire(BILLING_JOB, clock.now().trunc_subsecs(0)).await.map_err(store_failure)? {
        Claim::Held(lease) => lease,
        Claim::Busy { holder } => {
            let message = format!("billing is being run by {holder}: try again when it is done");
            return Err(Failure::new(Exit::TryAgain, message));
        }
    };
    let stop = StopHandle::new();
    stop.trust_lease_until(lease.trusted_until(sent));
    let occurrence = Occurrence { job: BILLING_JOB.to_owned(), scheduled_at: clock.now().trunc_subsecs(0) };
    let ctx = JobContext::new(occurrence, 1, lease.fencing_token, Arc::clone(&clock), stop);
    let done = Notify::new();
    let billing = async {
        let result = bill_and_record(&opened.db, &biller, &store, &lease, &ctx, once).await;
        done.notify_one();
        result
    };
    // The renewal in hand is finished and not dropped.
    let (result, ()) = tokio::join!(billing, keep(&store, &lease, &ctx, &*clock, signals, &done));
    store.release(&lease).await.map_err(store_failure)?;
    result
}

async fn bill_and_record(
    db: &DatabaseConnection,
    biller: &Biller,
    store: &SeaOrmStore,
    lease: &Lease,
    ctx: &JobContext,
    once: &Once<'_>,
) -> Result<(BillReport, Duration), Failure> {
    audit_log::append_in_own_transaction(db, &entry(ctx, once))
        .await
        .map_err(|error| Failure::database("put it on record", &error))?;
    let started_at = ctx.clock().now();
    let started = Instant::now();
    let stop = || ctx.stop_requested();
    let first_prices = Mutex::new(Vec::new());
    let saw = |first: &[FirstSeenPrice]| {
        first_prices.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(first);
    };
    let result = biller.bill(&run(once, ctx.run_id, Mode::Commit(lease.fencing_token), &stop, &saw)).await;
    let first_prices = first_prices.into_inner().unwrap_or_else(PoisonError::into_inner);
    let took = started.elapsed();
    let (status, items, details, error) = match &result {
        Ok(bill) if bill.stopped.is_none() => {
            (RunStatus::Done, bill.totals.charged, RunDetails::finished(bill), None)
        }
        Ok(bill) => {
            (RunStatus::Interrupted, bill.totals.charged, RunDetails::unfinished(&first_prices, None), None)
        }
        Err(error) => {
            (RunStatus::Dead, 0, RunDetails::unfinished(&first_prices, Some(error)), Some(error.to_string()))
        }
    };
    if status == RunStatus::Done {
        biller
            .record_success(lease.fencing_token)
            .await
            .map_err(|error| Failure::database("note that billing works", &error))?;
    }
    let scheduled_at = ctx.occurrence.scheduled_at;
    let record = RunRecord {
        id: ctx.run_id,
        attempt: 1,
        fencing_token: lease.fencing_token,
        finished_at: ctx.clock().now(),
        items,
        reason: Some("billed by hand".to_owned()),
        error,
        details: details.to_json(),
        ..RunRecord::new(BILLING_JOB, scheduled_at, status, RunCause::Manual, started_at)
    };
    store.record(Some(lease), &record, &lease.state).await.map_err(store_failure)?;
    result.map(|bill| (bill, took)).map_err(failed)
}

/// What is put on record before a run by hand.
fn entry(ctx: &JobContext, once: &Once<'_>) -> AuditEvent {
    AuditEvent {
        by: operator_name(),
        action: "bill",
        job: BILLING_JOB.to_owned(),
        reason: once.reason.clone(),
        details: json!({ "run": ctx.run_id }),
    }
}

/// Renews the lease until the run is done, and passes on the wish to stop.
async fn keep(
    store: &SeaOrmStore,
    lease: &Lease,
    ctx: &JobContext,
    clock: &dyn Clock,
    mut signals: Signals,
    done: &Notify,
) {
    loop {
        tokio::select! {
            () = done.notified() => return,
            _ = signals.next() => ctx.stop_handle().stop(StopReason::Drain),
            () = clock.sleep(lease.ttl / 3) => {}
        }
        let sent = clock.monotonic();
        match store.renew(lease).await {
            Ok(()) => ctx.stop_handle().trust_lease_until(lease.trusted_until(sent)),
            Err(StoreError::LeaseLost { .. }) => ctx.stop_handle().stop(StopReason::LeaseLost),
            // The lease runs out by itself if this goes on.
            Err(_) => {}
        }
    }
}

fn run<'a>(
    once: &'a Once<'_>,
    id: Uuid,
    mode: Mode,
    stop: &'a (dyn Fn() -> Option<StopReason> + Sync),
    first_prices: &'a (dyn Fn(&[FirstSeenPrice]) + Sync),
) -> BillingOptions<'a> {
    BillingOptions {
        id,
        mode,
        as_of: once.as_of,
        approved: once.approved.as_ref(),
        lists_beyond_limit: true,
        stop,
        progress: once.progress,
        first_prices,
    }
}

pub(super) fn failed(error: BillingError) -> Failure {
    match error {
        BillingError::Database { doing, source } => Failure::database(doing, &source),
        BillingError::Fenced | BillingError::Unposted { .. } | BillingError::Overrun { .. } => {
            Failure::new(Exit::TryAgain, error)
        }
        BillingError::Spike(_) | BillingError::Refused { .. } => Failure::new(Exit::Negative, error),
        BillingError::Restored { .. } | BillingError::CommitMarker { .. } | BillingError::Unguarded => {
            Failure::new(Exit::Configuration, error)
        }
    }
}

fn store_failure(error: StoreError) -> Failure {
    match error {
        StoreError::LeaseLost { .. } => Failure::new(Exit::TryAgain, error),
        StoreError::AlreadyFinished { .. } | StoreError::UnknownJob { .. } => {
            Failure::new(Exit::Internal, error)
        }
        StoreError::Unavailable(error) => match error.downcast_ref::<QueryFailed>() {
            Some(error) => Failure::database("reach the lease of billing", &error.0),
            None => Failure::new(Exit::Unavailable, error),
        },
    }
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn progress_bar(length: Option<u64>) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let template = match length {
        Some(_) => "{msg} {wide_bar} {human_pos}/{human_len} machines",
        None => "{spinner} {human_pos} machines billed",
    };
    let style = ProgressStyle::with_template(template).expect("a template of this program is valid");
    ProgressBar::with_draw_target(length, target).with_style(style)
}
