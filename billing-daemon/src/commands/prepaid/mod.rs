//! The commands of the prepaid policy: how long the money of each organization lasts, what follows from it, and what was sent.

mod events;
mod policy;
mod simulate;
mod standing;
mod wallets;
mod webhook;

use billing_jobs::prepaid::{Assessment, DeliverySettings, EvaluationError, Prepaid};
use clap::{Args, Subcommand};
use sea_orm::DatabaseConnection;
use serde_json::json;

pub(super) use self::{
    events::{EventsCommand, execute as events},
    policy::{PolicyCommand, execute as policy},
    wallets::{WalletsArgs, execute as wallets},
    webhook::{WebhookCommand, execute as webhook},
};
use self::{simulate::SimulateArgs, standing::ShowArgs};
use super::{
    args::{AuthorArgs, JsonArgs},
    session::Session,
};
use crate::{
    exit::{Exit, Failure},
    output::{json as say_json, line as say},
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
    /// Send the wanted state of every organization again, after `accept-restore`
    #[command(after_help = "Example:\n  billing-daemon prepaid reconcile")]
    Reconcile(ReconcileArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReconcileArgs {
    #[command(flatten)]
    author: AuthorArgs,
    #[command(flatten)]
    format: JsonArgs,
}

pub(super) async fn standing(session: &Session<'_>, action: &StandingCommand) -> Result<(), Failure> {
    let StandingCommand::Show(options) = action;
    standing::show(session, options).await
}

pub(super) async fn execute(session: &Session<'_>, action: &PrepaidCommand) -> Result<(), Failure> {
    match action {
        PrepaidCommand::Simulate(options) => simulate::execute(session, options).await,
        PrepaidCommand::Reconcile(options) => reconcile(session, options).await,
    }
}

async fn reconcile(session: &Session<'_>, options: &ReconcileArgs) -> Result<(), Failure> {
    let config = &session.load()?.config;
    let DeliverySettings { endpoints, params } = config.deliveries();
    let interval = config.billing_interval_or_default();
    let opened = session.panel_without_retry().await?;
    let prepaid = Prepaid::new(opened.db, opened.panel, &params, interval).with_endpoints(endpoints);
    let sent = prepaid.reconcile(&options.author.name(), None).await.map_err(|error| match error {
        EvaluationError::Database(error) => Failure::database("order the wanted states", &error),
        other => Failure::new(Exit::TryAgain, other),
    })?;
    if options.format.json {
        say_json(&json!({ "sent": sent }));
    } else {
        say(format!("the wanted state of {sent} organizations is sent again"));
    }
    Ok(())
}

/// The policy as the configuration sets it, on an opened database.
async fn open(session: &Session<'_>) -> Result<(Prepaid, PanelDatabase), Failure> {
    let config = &session.load()?.config;
    let params = config.deliveries().params;
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
