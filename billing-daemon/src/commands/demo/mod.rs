//! `demo`: a made-up fleet billed twice and audited, on a database of its own.

mod fleet;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use billing_entities::{billing_holds, organizations, vps_plans};
use billing_jobs::{
    audit::{Audit, audit},
    billing::{Biller, BillingSettings, Totals},
};
use billing_store::begin_read;
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
    output::{json as say_json, line as say},
    panel_database::{self, PanelDatabase},
};
use billing_store::{Database, DatabaseUrl, Pool};

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Number of instances; there is one organization for five of them
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=5_000_000))]
    instances: u32,
    /// Seed of the generated fleet; the same seed generates the same fleet
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// An empty database to use instead of a temporary file
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// What the demo showed.
struct Shown {
    first: Totals,
    took: Duration,
    second: Totals,
    audit: Audit,
    reasons: BTreeMap<String, i64>,
}

pub(super) async fn execute(session: &Session<'_>, options: &DemoArgs) -> Result<(), Failure> {
    let place = Place::of(options)?;
    let done = execute_at(&place, session, options).await;
    // After a demo for a person, the lines "Try next" need the database.
    if options.json || done.as_ref().is_err_and(|failure| !failure.message.is_empty()) {
        place.remove();
    }
    done
}

async fn execute_at(place: &Place, session: &Session<'_>, options: &DemoArgs) -> Result<(), Failure> {
    let database = session.verified_database(&place.url, &DaemonSettings::default())?.creating();
    session.start_log(Some(&database))?;
    let db = database.connect(Pool::Single).await?;
    migration::up(&db, None).await?;
    db.close().await.map_err(|error| Failure::database("close the database", &error))?;
    let opened = panel_database::open(&database).await?;
    refuse_what_is_in_use(&opened).await?;
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
        report(options, engine, place, &shown);
    }
    let double = shown.second.charged > 0;
    if double || !shown.audit.violations.is_empty() { Err(Failure::silent(Exit::Negative)) } else { Ok(()) }
}

/// Where the demo's database is.
struct Place {
    url: DatabaseUrl,
    folder: Option<PathBuf>,
}

impl Place {
    fn of(options: &DemoArgs) -> Result<Self, Failure> {
        let bad = |error: &dyn std::fmt::Display| Failure::new(Exit::Configuration, error);
        if let Some(url) = &options.database_url {
            let url: DatabaseUrl = url.parse().map_err(|error| bad(&error))?;
            return Ok(Self { url: url.creating(), folder: None });
        }
        let folder = tempfile::Builder::new()
            .prefix("billing-demo-")
            .tempdir()
            .map_err(|error| Failure::new(Exit::Internal, format!("no temporary folder: {error}")))?
            .keep();
        let url = format!("sqlite://{}?mode=rwc", folder.join("demo.db").display());
        Ok(Self { url: url.parse().map_err(|error| bad(&error))?, folder: Some(folder) })
    }

    /// Removes the temporary folder, if the database is in one.
    fn remove(&self) {
        if let Some(folder) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            warn_of(&format!("cannot remove {}: {error}; the demo's database stays there", folder.display()));
        }
    }
}

async fn refuse_what_is_in_use(opened: &PanelDatabase) -> Result<(), Failure> {
    let used = async {
        let txn = begin_read(&opened.db).await?;
        let used = organizations::Entity::find().count(&txn).await? > 0
            || vps_plans::Entity::find().count(&txn).await? > 0;
        txn.rollback().await?;
        Ok(used)
    };
    match used.await {
        Ok(false) => Ok(()),
        Ok(true) => {
            let message =
                "this database has organizations or plans already: the demo only fills an empty one";
            Err(Failure::new(Exit::Configuration, message))
        }
        Err(error) => Err(Failure::database("look whether the database is empty", &error)),
    }
}

async fn show(opened: &PanelDatabase, database: &Database, options: &DemoArgs) -> Result<Shown, Failure> {
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let as_of =
        biller.now().await.map_err(|error| Failure::database("ask the database for its time", &error))?;
    let bar = progress_bar(Some(u64::from(options.instances)));
    bar.set_message("making up");
    fleet::seed(&opened.db, options.instances, options.seed, as_of, &|made| bar.inc(made))
        .await
        .map_err(|error| Failure::database("make up a fleet", &error))?;
    bar.set_position(0);
    bar.set_message("billing");
    let (first, took) = bill(opened, database, as_of, &bar).await?;
    bar.finish_and_clear();
    let (second, _) = bill(opened, database, as_of, &ProgressBar::hidden()).await?;
    let audit = audit(&opened.db).await.map_err(|error| Failure::database("audit", &error))?;
    let reasons = reasons(opened).await.map_err(|error| Failure::database("count what is held", &error))?;
    Ok(Shown { first, took, second, audit, reasons })
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
    let run = ManualRun { biller, as_of: Some(as_of), reason: None, progress };
    let (bill, took) = bill_once(opened, database, run).await?;
    Ok((bill.totals, took))
}

/// How many machines are held, by reason.
async fn reasons(opened: &PanelDatabase) -> Result<BTreeMap<String, i64>, DbErr> {
    let txn = begin_read(&opened.db).await?;
    let counted = billing_holds::Entity::find()
        .filter(billing_holds::Column::ClosedAt.is_null())
        .select_only()
        .column(billing_holds::Column::Reason)
        .column_as(billing_holds::Column::Id.count(), "machines")
        .group_by(billing_holds::Column::Reason)
        .into_tuple::<(String, i64)>()
        .all(&txn)
        .await?;
    txn.rollback().await?;
    Ok(counted.into_iter().collect())
}

fn report(options: &DemoArgs, engine: &str, place: &Place, shown: &Shown) {
    let Shown { first, took, second, audit, reasons } = shown;
    say(format!(
        "A made-up fleet of {} machines of {} organizations, on {engine}",
        grouped(u64::from(options.instances)),
        grouped(u64::from(fleet::organizations(options.instances))),
    ));
    say("");
    say(format!(
        "  charged     {:>9}  machines: {} hours for {}, in {} s",
        grouped(first.charged),
        grouped(first.hours),
        first.amounts(),
        seconds(*took)
    ));
    say(format!("  held        {:>9}  machines, each with its reason:", grouped(first.held)));
    for (reason, count) in reasons {
        say(format!(
            "              {:>9}    {:<21} {}",
            grouped(count.unsigned_abs()),
            reason,
            meaning(reason)
        ));
    }
    say(format!(
        "  second run  {:>9}  charged as of the same instant: no hour is charged twice",
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
    try_next(place);
}

/// Lines to paste into a shell: nothing but commands, for not every shell takes a comment after one.
fn try_next(place: &Place) {
    say("");
    say(
        "Try next: what the instances beyond the catch-up limit owe, every invariant of the ledger, what needs an operator, and",
    );
    say("the daemon itself.");
    say("");
    if let Some(folder) = &place.folder {
        let url = format!("sqlite://{}", folder.join("demo.db").display());
        say(format!("  export DATABASE_URL={}", quoted(&url)));
    } else if place.url.secrets().is_empty() {
        say(format!("  export DATABASE_URL={}", quoted(place.url.expose())));
    }
    let program = program();
    for command in ["bill --dry-run --approve-catch-up --all", "audit", "status", "run"] {
        say(format!("  {program} {command}"));
    }
    if let Some(folder) = &place.folder {
        let folder = folder.display().to_string();
        say("");
        say(format!("The database stays in {folder} for these commands. To remove it:"));
        say("");
        say(format!("  rm -r {}", quoted(&folder)));
    }
}

/// This program as a shell finds it: by its name if that leads here, else by its path.
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

/// A word as a shell reads it.
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
        "duplicate_wallets" => "the organization has several",
        "insufficient_balance" => "the wallet does not cover the next hour",
        "no_price" => "the plan's price is NULL",
        "unknown_plan" => "the machine names a plan that does not exist",
        "catch_up_limit" => "more than 72 hours are due: waits for approval",
        _ => "",
    }
}

/// `12345` as `12,345`.
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
