//! `policy`: what applies to one organization alone.

use billing_jobs::prepaid::PolicyMode;
use clap::{Args, Subcommand, ValueEnum};
use sea_orm::DatabaseConnection;

use super::standing::ShowArgs;
use crate::{
    commands::{
        args::{AuthorArgs, JsonArgs, parse_time},
        session::Session,
    },
    exit::{Exit, Failure},
    format::instant,
    output::{self, Report, json as say_json},
    prepaid::{Author, Policy, PolicyEdit, PolicyError, read_policy, set_policy},
    subjects,
};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show what is set for an organization
    #[command(after_help = "Example:\n  billing-daemon policy show acme")]
    Show(ShowArgs),
    /// Exempt an organization, or give it credit or time
    #[command(after_help = "Example:\n  billing-daemon policy set acme --mode exempt --reason internal")]
    Set(SetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The organization: its id, slug or name
    #[arg(value_name = "ORGANIZATION")]
    organization: String,
    /// Whether the rules apply, it pays by invoice, or it is notified and never suspended
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Amount that it may owe before its wallet counts as exhausted
    #[arg(long, value_name = "AMOUNT")]
    credit_limit: Option<String>,
    /// Time before which it is not suspended, or `none`
    #[arg(long, value_name = "TIME")]
    never_suspend_until: Option<String>,
    /// Address for mails instead of the owner's, or `none`
    #[arg(long, value_name = "ADDRESS")]
    contact: Option<String>,
    /// Reason for the change
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    author: AuthorArgs,
    #[command(flatten)]
    format: JsonArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    Prepaid,
    Postpaid,
    Exempt,
}

pub(crate) async fn execute(session: &Session<'_>, action: &PolicyCommand) -> Result<(), Failure> {
    match action {
        PolicyCommand::Show(options) => {
            let db = session.panel_for_reading().await?.db;
            let organization = subjects::organization(&db, &options.organization).await?;
            print(&read(&db, &organization).await?, options.format);
        }
        PolicyCommand::Set(options) => {
            let db = session.panel_without_retry().await?.db;
            let organization = subjects::organization(&db, &options.organization).await?;
            set(&db, &organization, options).await?;
            print(&read(&db, &organization).await?, options.format);
        }
    }
    Ok(())
}

/// The value of an option, which `none` removes.
fn given(value: &str) -> Option<&str> {
    Some(value).filter(|value| *value != "none")
}

async fn set(db: &DatabaseConnection, organization: &str, options: &SetArgs) -> Result<(), Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    if options.reason.trim().is_empty() {
        return Err(usage("`--reason` is empty".to_owned()));
    }
    let mode = options.mode.map(|mode| match mode {
        ModeArg::Prepaid => PolicyMode::Prepaid,
        ModeArg::Postpaid => PolicyMode::Postpaid,
        ModeArg::Exempt => PolicyMode::Exempt,
    });
    let until = match &options.never_suspend_until {
        Some(until) => Some(given(until).map(parse_time).transpose().map_err(usage)?),
        None => None,
    };
    let edit = PolicyEdit {
        mode,
        credit_limit: options.credit_limit.as_deref(),
        never_suspend_until: until,
        contact: options.contact.as_deref().map(given),
        changed_at: None,
    };
    let author = Author { name: &options.author.name(), reason: Some(&options.reason), request: None };
    match set_policy(db, organization, edit, author).await {
        Ok(_) => Ok(()),
        Err(PolicyError::Invalid(message)) => Err(usage(message)),
        Err(PolicyError::Conflict) => {
            Err(Failure::new(Exit::TryAgain, "another policy was set meanwhile: show it, and try again"))
        }
        Err(PolicyError::Database(error)) => Err(Failure::database("set the policy", &error)),
    }
}

async fn read(db: &DatabaseConnection, organization: &str) -> Result<Policy, Failure> {
    read_policy(db, organization).await.map_err(|error| Failure::database("read the policy", &error))
}

fn print(policy: &Policy, format: JsonArgs) {
    if format.json {
        return say_json(policy);
    }
    let mut report = Report::default();
    report.add("organization", policy.organization.clone());
    report.add("mode", policy.mode.clone());
    report.add("credit limit", policy.credit_limit.clone());
    report.add(
        "not suspended before",
        policy.never_suspend_until.map_or_else(|| "not set".to_owned(), instant),
    );
    report.add_some("contact", policy.contact.clone());
    if let (Some(by), Some(at)) = (&policy.changed_by, policy.changed_at) {
        let reason = policy.reason.as_deref().unwrap_or_default();
        report.add("set", format!("by {by} at {}: {reason}", instant(at)));
    }
    output::report(&report);
}
