//! `wallets`, `standing show` and `prepaid simulate`: how long the money of each organization lasts, and what follows from it.

mod simulate;
mod standing;
mod views;
mod wallets;

use billing_jobs::{
    PREPAID_KIND, PrepaidParams,
    period::Micros,
    prepaid::{Assessment, Prepaid},
};
use chrono::{DateTime, Utc};
use clap::Subcommand;
use sea_orm::DatabaseConnection;

pub(super) use self::wallets::{WalletsArgs, execute as wallets};
use self::{simulate::SimulateArgs, standing::ShowArgs};
use super::session::Session;
use crate::{
    exit::{Exit, Failure},
    panel_database::PanelDatabase,
    subjects,
};

#[derive(Debug, Subcommand)]
pub(crate) enum StandingCommand {
    /// Show what the prepaid policy has decided of an organization, and what a suspension would need
    #[command(after_help = "Example:\n  billing-daemon standing show acme --json | jq .suspension.unmet")]
    Show(ShowArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PrepaidCommand {
    /// List what the policy would send and order if no one paid
    #[command(after_help = "Example:\n  billing-daemon prepaid simulate --hours 96 --organization acme")]
    Simulate(SimulateArgs),
}

pub(super) async fn standing(session: &Session<'_>, action: &StandingCommand) -> Result<(), Failure> {
    let StandingCommand::Show(options) = action;
    standing::show(session, options).await
}

pub(super) async fn execute(session: &Session<'_>, action: &PrepaidCommand) -> Result<(), Failure> {
    let PrepaidCommand::Simulate(options) = action;
    simulate::execute(session, options).await
}

/// The policy as the configuration sets it, on an opened database.
async fn open(session: &Session<'_>) -> Result<(Prepaid, PanelDatabase), Failure> {
    let config = &session.load()?.config;
    let params = match config.jobs.iter().find(|(spec, _)| spec.kind == PREPAID_KIND) {
        None => PrepaidParams::default(),
        Some((spec, params)) => serde_json::from_value(params.clone()).map_err(|error| {
            Failure::new(Exit::Configuration, format!("invalid parameters of job `{}`: {error}", spec.name))
        })?,
    };
    let interval = config.billing_interval_or_default();
    let opened = session.panel_for_reading().await?;
    Ok((Prepaid::new(opened.db.clone(), opened.panel, &params, interval), opened))
}

/// The organization with this id, slug or name.
async fn find(prepaid: &Prepaid, db: &DatabaseConnection, name: &str) -> Result<Assessment, Failure> {
    let id = subjects::organization(db, name).await?;
    let found = prepaid.organization(&id).await.map_err(|error| failed(&error))?;
    found.ok_or_else(|| Failure::new(Exit::Usage, format!("organization {name:?} was deleted meanwhile")))
}

/// This organization, or all of them.
async fn selected(
    prepaid: &Prepaid,
    db: &DatabaseConnection,
    organization: Option<&str>,
    mut keep: impl FnMut(Assessment),
) -> Result<(), Failure> {
    if let Some(name) = organization {
        keep(find(prepaid, db, name).await?);
        return Ok(());
    }
    let all = prepaid.organizations(|page| page.into_iter().for_each(&mut keep));
    all.await.map_err(|error| failed(&error))
}

fn failed(error: &sea_orm::DbErr) -> Failure {
    Failure::database("read the wallets", error)
}

fn time(micros: Micros) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
