//! `demo`: generates a fleet, bills it twice and audits it, on a separate database.

mod fleet;
#[cfg(feature = "console")]
mod history;
#[cfg(feature = "console")]
mod serve;

pub use fleet::PLANS;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use billing_entities::{billing_holds, organizations, vps_plans};
use billing_jobs::{
    audit::{Audit, audit},
    billing::{Biller, BillingSettings, Totals},
};
use billing_scheduler::duration::format_rounded;
use billing_store::{Database, DatabaseUrl, Pool, StatementLimit, begin_read};
use chrono::{DateTime, Utc};
use clap::Args;
use indicatif::ProgressBar;
use sea_orm::{ColumnTrait, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QuerySelect};
use serde_json::json;

use super::{
    bill::{ManualRun, bill_once, progress_bar},
    engine, seconds,
    session::Session,
    warn_of,
};
use crate::{
    config::DaemonSettings,
    exit::{Exit, Failure},
    host::identity::operator_name,
    output::{json as say_json, line as say},
    panel_database::{self, PanelDatabase},
};

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Number of instances; five share one organization [default: 1000]
    #[arg(
        long, value_name = "N", default_value_t = 1_000, hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(10..=5_000_000)
    )]
    instances: u32,
    /// Seed of the generated fleet; the same seed generates the same fleet [default: 1]
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    seed: u64,
    /// Empty database to use instead of a temporary SQLite file
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Generate the fleet unless the database has one, and leave it to a daemon to bill it
    #[arg(long, requires = "database_url")]
    generate_only: bool,
    /// Run a daemon on the demo's database, with a console, until Ctrl+C
    #[cfg(feature = "console")]
    #[arg(long, conflicts_with = "database_url")]
    serve: bool,
    /// Print one JSON object as the last line, or with --serve as the first one
    #[arg(long)]
    json: bool,
}

/// The results of the demo.
struct DemoResult {
    first: Totals,
    took: Duration,
    second: Totals,
    audit: Audit,
    reasons: BTreeMap<String, i64>,
}

pub(super) async fn execute(session: &Session<'_>, options: &DemoArgs) -> Result<(), Failure> {
    let target = DemoDatabase::of(options)?;
    #[cfg(feature = "console")]
    if options.serve {
        let served = Box::pin(serve::serve(&target, session, options)).await;
        target.remove();
        return served;
    }
    let done = execute_at(&target, session, options).await;
    // Without --json, the lines "Try next" need the database.
    if options.json || done.as_ref().is_err_and(|failure| !failure.message.is_empty()) {
        target.remove();
    }
    done
}

/// Opens the demo's database with its tables.
async fn prepare(target: &DemoDatabase, session: &Session<'_>) -> Result<(PanelDatabase, Database), Failure> {
    // A valid jobs.toml may permit a database on another host that does not prove its identity.
    let default = DaemonSettings::default();
    let daemon = session.load_if_valid().map_or(&default, |loaded| &loaded.config.daemon);
    let database = session.verified_database(&target.url, daemon)?.creating();
    session.start_log(Some(&database))?;
    let db = database.connect(Pool::Single).await?;
    migration::up(&db, None).await?;
    db.close().await.map_err(|error| Failure::database("close the database", &error))?;
    Ok((panel_database::open(&database).await?, database))
}

async fn execute_at(target: &DemoDatabase, session: &Session<'_>, options: &DemoArgs) -> Result<(), Failure> {
    let (opened, database) = prepare(target, session).await?;
    if options.generate_only {
        return generate_only(&opened, options).await;
    }
    if is_in_use(&opened).await? {
        let message = "cannot use this database for the demo: it has organizations or plans";
        return Err(Failure::new(Exit::Configuration, message));
    }
    let shown = show(&opened, &database, options).await?;
    let engine = engine(opened.panel);
    opened.db.close().await.map_err(|error| Failure::database("close the database", &error))?;
    if options.json {
        say_json(&json!({
            "instances": options.instances,
            "charged": shown.first.charged,
            "held": shown.first.held,
            "hours": shown.first.hours,
            "amounts": shown.first.amounts(),
            "seconds": seconds(shown.took),
            "second_run_charged": shown.second.charged,
            "audit": { "checked": shown.audit.checked, "violations": shown.audit.violations.len() },
        }));
    } else {
        report(options, engine, target, &shown);
    }
    let double = shown.second.charged > 0;
    if double || !shown.audit.violations.is_empty() { Err(Failure::silent(Exit::Negative)) } else { Ok(()) }
}

/// The demo's database; `folder` is the temporary folder that contains it.
struct DemoDatabase {
    url: DatabaseUrl,
    folder: Option<PathBuf>,
}

impl DemoDatabase {
    fn of(options: &DemoArgs) -> Result<Self, Failure> {
        let bad = |error: &dyn std::fmt::Display| Failure::new(Exit::Configuration, error);
        if let Some(url) = &options.database_url {
            let url: DatabaseUrl = url.parse().map_err(|error| bad(&error))?;
            return Ok(Self { url: url.creating(), folder: None });
        }
        let folder = tempfile::Builder::new()
            .prefix("billing-demo-")
            .tempdir()
            .map_err(|error| {
                Failure::new(Exit::Internal, format!("cannot create a temporary folder: {error}"))
            })?
            .keep();
        let url = format!("sqlite://{}?mode=rwc", folder.join("demo.db").display());
        Ok(Self { url: url.parse().map_err(|error| bad(&error))?, folder: Some(folder) })
    }

    /// Removes the temporary folder, if there is one.
    fn remove(&self) {
        if let Some(folder) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            warn_of(&format!(
                "cannot remove {}, which contains the demo's database: {error}",
                folder.display()
            ));
        }
    }
}

/// Generates the fleet in an empty database. A database that is in use stays as it is.
async fn generate_only(opened: &PanelDatabase, options: &DemoArgs) -> Result<(), Failure> {
    let instances = if is_in_use(opened).await? { 0 } else { options.instances };
    if instances > 0 {
        let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
        generate(opened, options, now(&biller).await?, &ProgressBar::hidden()).await?;
    }
    opened.db.clone().close().await.map_err(|error| Failure::database("close the database", &error))?;
    if options.json {
        say_json(&json!({ "generated": instances }));
    } else if instances == 0 {
        say("The database has organizations or plans: nothing was generated");
    } else {
        say(format!("Generated a fleet of {} instances", grouped(u64::from(instances))));
    }
    Ok(())
}

async fn is_in_use(opened: &PanelDatabase) -> Result<bool, Failure> {
    let used = async {
        let txn = begin_read(&opened.db, StatementLimit::Report).await?;
        let used = organizations::Entity::find().count(&txn).await? > 0
            || vps_plans::Entity::find().count(&txn).await? > 0;
        txn.rollback().await?;
        Ok(used)
    };
    used.await.map_err(|error| Failure::database("check whether the database is empty", &error))
}

async fn now(biller: &Biller) -> Result<DateTime<Utc>, Failure> {
    biller.now().await.map_err(|error| Failure::database("read the database's clock", &error))
}

async fn generate(
    opened: &PanelDatabase,
    options: &DemoArgs,
    as_of: DateTime<Utc>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    fleet::seed(&opened.db, options.instances, options.seed, as_of, &|made| bar.inc(made))
        .await
        .map_err(|error| Failure::database("generate a fleet", &error))
}

async fn show(
    opened: &PanelDatabase,
    database: &Database,
    options: &DemoArgs,
) -> Result<DemoResult, Failure> {
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let as_of = now(&biller).await?;
    let bar = progress_bar(Some(u64::from(options.instances)));
    bar.set_message("generating");
    generate(opened, options, as_of, &bar).await?;
    bar.set_position(0);
    bar.set_message("billing");
    let (first, took) = bill(opened, database, as_of, &bar).await?;
    bar.finish_and_clear();
    let (second, _) = bill(opened, database, as_of, &ProgressBar::hidden()).await?;
    let audit = audit(&opened.db).await.map_err(|error| Failure::database("audit", &error))?;
    let reasons =
        reasons(opened).await.map_err(|error| Failure::database("count the held instances", &error))?;
    Ok(DemoResult { first, took, second, audit, reasons })
}

async fn bill(
    opened: &PanelDatabase,
    database: &Database,
    as_of: DateTime<Utc>,
    bar: &ProgressBar,
) -> Result<(Totals, Duration), Failure> {
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let bar = bar.clone();
    let progress = Box::new(move |instances| bar.inc(instances));
    let run = ManualRun { biller, as_of: Some(as_of), by: operator_name(), reason: None, progress };
    let (bill, took) = bill_once(opened, database, run).await?;
    Ok((bill.totals, took))
}

/// Counts the held instances by reason.
async fn reasons(opened: &PanelDatabase) -> Result<BTreeMap<String, i64>, DbErr> {
    let txn = begin_read(&opened.db, StatementLimit::Report).await?;
    let counted = billing_holds::Entity::find()
        .filter(billing_holds::Column::ClosedAt.is_null())
        .select_only()
        .column(billing_holds::Column::Reason)
        .column_as(billing_holds::Column::Id.count(), "instances")
        .group_by(billing_holds::Column::Reason)
        .into_tuple::<(String, i64)>()
        .all(&txn)
        .await?;
    txn.rollback().await?;
    Ok(counted.into_iter().collect())
}

fn report(options: &DemoArgs, engine: &str, target: &DemoDatabase, shown: &DemoResult) {
    let DemoResult { first, took, second, audit, reasons } = shown;
    say(format!(
        "A generated fleet of {} instances of {} organizations, on {engine}",
        grouped(u64::from(options.instances)),
        grouped(u64::from(fleet::organizations(options.instances))),
    ));
    say("");
    say(format!(
        "  charged     {:>9}  instances: {} hours for {}, in {}",
        grouped(first.charged),
        grouped(first.hours),
        first.amounts(),
        format_rounded(*took)
    ));
    say(format!("  held        {:>9}  instances, by reason:", grouped(first.held)));
    for (reason, count) in reasons {
        say(format!(
            "              {:>9}    {:<21} {}",
            grouped(count.unsigned_abs()),
            reason,
            meaning(reason)
        ));
    }
    say(format!(
        "  second run  {:>9}  charged at the same instant: no hour is charged twice",
        grouped(second.charged)
    ));
    say(format!(
        "  audit       {:>9}  rows checked, {} violations",
        grouped(audit.checked),
        audit.violations.len()
    ));
    for violation in &audit.violations {
        say(format!("              {}: {}", violation.check, violation.detail));
    }
    try_next(target);
}

/// Prints commands to paste into a shell, without comments, which not every shell accepts.
fn try_next(target: &DemoDatabase) {
    say("");
    say(
        "Try next: the instances beyond the catch-up limit, the audit, the state of billing, and the daemon:",
    );
    say("");
    if let Some(folder) = &target.folder {
        let url = format!("sqlite://{}", folder.join("demo.db").display());
        say(format!("  export DATABASE_URL={}", quoted(&url)));
    } else if target.url.secrets().is_empty() {
        say(format!("  export DATABASE_URL={}", quoted(target.url.expose())));
    }
    let program = program();
    for command in ["bill --dry-run --approve-catch-up --all", "audit", "status", "run"] {
        say(format!("  {program} {command}"));
    }
    if let Some(folder) = &target.folder {
        let folder = folder.display().to_string();
        say("");
        say(format!("The database stays in {folder} for these commands. To remove it:"));
        say("");
        say(format!("  rm -r {}", quoted(&folder)));
    }
}

/// Returns the program's name if the shell finds this program by it, else its path.
fn program() -> String {
    const NAME: &str = "billing-daemon";
    let here = std::env::current_exe().and_then(std::fs::canonicalize);
    let Ok(here) = here else { return NAME.to_owned() };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&folders).map(|folder| folder.join(NAME)).find(|path| path.is_file());
    if first.and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == here) {
        return NAME.to_owned();
    }
    quoted(&here.display().to_string())
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn meaning(reason: &str) -> &'static str {
    match reason {
        "no_wallet" => "the organization has no wallet",
        "duplicate_wallets" => "the organization has several wallets",
        "insufficient_balance" => "the wallet does not cover the next hour",
        "no_price" => "the plan's price is NULL",
        "unknown_plan" => "the instance has a plan that does not exist",
        "catch_up_limit" => "more than 72 hours are due: waits for approval",
        _ => "",
    }
}

/// Formats `12345` as `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
