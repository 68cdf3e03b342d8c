//! `bill`: bills once, now, or shows what a run would do.

mod approvals;
mod manual_run;
mod report;

use std::{io::IsTerminal, time::Instant};

use billing_jobs::{
    BILLING_JOB,
    billing::{Biller, BillingOptions, BillingParams, BillingSettings, Mode, Scope},
};
use billing_store::read_control_state;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sea_orm::DatabaseConnection;
use uuid::Uuid;

use self::{manual_run::Billed, report::Report};
pub(super) use self::{
    manual_run::{ManualRun, bill_once, billing_failure},
    report::uncharged,
};
use super::{args::AuthorArgs, complain, jobs::control::needs_force, session::Session};
use crate::{
    config::Config,
    exit::{Exit, Failure},
    output::{json as say_json, layout as say_lines, width},
    panel_database,
    status::panel_presence::PanelPresence,
};

#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Debug, Args)]
pub(crate) struct BillArgs {
    /// Print what would be charged, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Approve, for 24 hours, the hours beyond the catch-up limit of these instances and organizations: an id, a label,
    /// a slug or a name
    #[arg(long, value_name = "INSTANCE|ORGANIZATION", num_args = 0..)]
    approve_catch_up: Option<Vec<String>>,
    /// With --approve-catch-up: approve every instance
    #[arg(long, requires = "approve_catch_up")]
    all: bool,
    /// With --approve-catch-up: leave out instances with more due hours than this
    #[arg(long, value_name = "N", requires = "approve_catch_up")]
    hours: Option<u32>,
    /// Reason for the run and its approvals, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    author: AuthorArgs,
    /// Approve a run that waits because it would charge far more than usual: the announced amount, and its currency if
    /// there are several
    #[arg(
        long, value_names = ["AMOUNT", "CURRENCY"], num_args = 1..=2, action = clap::ArgAction::Append,
        conflicts_with = "dry_run"
    )]
    approve: Vec<String>,
    /// Bill even if the job is paused
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

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
        approvals::approve_spike(&opened.db, &biller, options).await?;
    }
    let approved_until = match &scope {
        Some(scope) if !options.dry_run => Some(approvals::record(&opened.db, scope, options).await?),
        _ => None,
    };
    let biller = Biller::new(opened.db.clone(), opened.panel, settings)
        .with_restore_detection(panel_database::restore_detection(
            daemon,
            &database,
            opened.db.clone(),
            &options.author.name(),
        ))
        .relying_on_guard(presence.needs_guard(daemon.panel_billing));
    let bar = progress_bar(None);
    let counted = bar.clone();
    let progress = Box::new(move |instances| counted.inc(instances));
    let (bill, took) = if options.dry_run {
        dry_run(&biller, scope.as_ref(), &progress).await?
    } else {
        let run = ManualRun {
            biller,
            as_of: None,
            by: options.author.name(),
            reason: options.reason.clone(),
            progress,
        };
        bill_once(&opened, &database, run).await?
    };
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
        say_lines(&report.in_words(width()));
    }
    match bill.stopped {
        None if bill.spike.is_some() => Err(Failure::silent(Exit::Negative)),
        None => Ok(()),
        Some(reason) => Err(Failure::new(Exit::TryAgain, format!("stopped before the end: {reason}"))
            .help("run it again for the rest; what was charged stays charged")),
    }
}

/// Does everything and rolls it back; needs no lease.
async fn dry_run(
    biller: &Biller,
    approved: Option<&Scope>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Billed, Failure> {
    let started = Instant::now();
    let options = BillingOptions {
        id: Uuid::now_v7(),
        mode: Mode::DryRun,
        as_of: None,
        approved,
        lists_beyond_limit: true,
        stop: &|| None,
        progress,
        first_prices: &|_| {},
    };
    let bill = biller.bill(&options).await.map_err(billing_failure)?;
    Ok((bill, started.elapsed()))
}

/// Refuses to bill while the job is paused, unless the operator forces it.
async fn refuse_paused(db: &DatabaseConnection, force: bool) -> Result<(), Failure> {
    let state = read_control_state(db).await;
    let state = state.map_err(|error| Failure::database("read the pauses of jobs", &error))?;
    match state.pause_of(BILLING_JOB) {
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
        Failure::new(Exit::Configuration, format!("invalid parameters of job `{BILLING_JOB}`: {error}"))
    })?;
    Ok(BillingSettings::from(&params).at_interval(config.billing_interval_or_default()))
}

/// A progress bar on a terminal, nothing elsewhere.
pub(super) fn progress_bar(length: Option<u64>) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let template = match length {
        Some(_) => "{msg} {wide_bar} {human_pos}/{human_len} instances",
        None => "{spinner} {human_pos} instances billed",
    };
    let style = ProgressStyle::with_template(template).expect("a template of this program is valid");
    ProgressBar::with_draw_target(length, target).with_style(style)
}
