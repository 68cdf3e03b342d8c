//! `policy`: what applies to one organization alone.

use billing_jobs::{PREPAID_KIND, money::Money, prepaid::PolicyMode};
use billing_store::{
    audit_log::{self, AuditEvent},
    begin_command, query_one, statement,
};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::json;

use super::{standing::ShowArgs, time};
use crate::{
    commands::{
        args::{AuthorArgs, JsonArgs, parse_time},
        session::Session,
    },
    exit::{Exit, Failure},
    format::instant,
    output::{self, Report, json as say_json},
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

/// What is set for one organization.
#[derive(Clone, Debug, Serialize)]
struct PolicyView {
    organization: String,
    mode: String,
    credit_limit: String,
    never_suspend_until: Option<DateTime<Utc>>,
    contact: Option<String>,
    changed_by: Option<String>,
    reason: Option<String>,
    changed_at: Option<DateTime<Utc>>,
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

async fn set(db: &DatabaseConnection, organization: &str, options: &SetArgs) -> Result<(), Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    if options.reason.trim().is_empty() {
        return Err(usage("`--reason` is empty".to_owned()));
    }
    let before = read(db, organization).await?;
    let mut after = before.clone();
    if let Some(mode) = options.mode {
        let mode = match mode {
            ModeArg::Prepaid => PolicyMode::Prepaid,
            ModeArg::Postpaid => PolicyMode::Postpaid,
            ModeArg::Exempt => PolicyMode::Exempt,
        };
        mode.as_str().clone_into(&mut after.mode);
    }
    if let Some(limit) = &options.credit_limit {
        after.credit_limit.clone_from(limit);
    }
    let limit: Money =
        after.credit_limit.parse().ok().filter(|limit: &Money| limit.0 >= 0).ok_or_else(|| {
            usage(format!(
                "`{}` is not an amount of money of zero or more, such as 25.00",
                after.credit_limit
            ))
        })?;
    let set = |value: &String| Some(value.clone()).filter(|value| value != "none");
    if let Some(until) = &options.never_suspend_until {
        after.never_suspend_until = set(until).map(|until| parse_time(&until)).transpose().map_err(usage)?;
    }
    if let Some(contact) = &options.contact {
        after.contact = set(contact);
        if after.contact.as_ref().is_some_and(|contact| !contact.contains('@')) {
            return Err(usage(format!("`{contact}` is not a mail address")));
        }
    }
    store(db, &before, &after, limit, options)
        .await
        .map_err(|error| Failure::database("set the policy", &error))
}

async fn store(
    db: &DatabaseConnection,
    before: &PolicyView,
    after: &PolicyView,
    limit: Money,
    options: &SetArgs,
) -> Result<(), DbErr> {
    let (id, until, now) = match db.get_database_backend() {
        DbBackend::Sqlite => ("$1", "$4", billing_store::SQLITE_NOW),
        _ => ("$1::uuid", "timestamptz 'epoch' + $4::bigint * interval '1 microsecond'", "now()"),
    };
    let sql = format!(
        "INSERT INTO billing_policies (organization_id, mode, credit_limit, never_suspend_until, contact, changed_by, reason, changed_at)
         VALUES ({id}, $2, $3, {until}, $5, $6, $7, {now})
         ON CONFLICT (organization_id) DO UPDATE
            SET mode = excluded.mode, credit_limit = excluded.credit_limit, never_suspend_until = excluded.never_suspend_until,
                contact = excluded.contact, changed_by = excluded.changed_by, reason = excluded.reason, changed_at = excluded.changed_at"
    );
    let by = options.author.name();
    let values: [Value; 7] = [
        after.organization.as_str().into(),
        after.mode.as_str().into(),
        limit.0.into(),
        after.never_suspend_until.map(|until| until.timestamp_micros()).into(),
        after.contact.clone().into(),
        by.as_str().into(),
        options.reason.as_str().into(),
    ];
    let details = json!({ "organization": after.organization, "before": before, "after": after });
    let event = AuditEvent {
        reason: Some(options.reason.clone()),
        ..AuditEvent::new(&by, "set policy", PREPAID_KIND, details)
    };
    let txn = begin_command(db).await?;
    txn.execute_raw(statement(&txn, &sql, values)).await?;
    audit_log::append(&txn, &event).await?;
    txn.commit().await
}

async fn read(db: &DatabaseConnection, organization: &str) -> Result<PolicyView, Failure> {
    let failed = |error| Failure::database("read the policy", &error);
    let micros = |column: &str| match db.get_database_backend() {
        DbBackend::Sqlite => column.to_owned(),
        _ => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
    };
    let sql = format!(
        "SELECT mode, credit_limit, {} AS until, contact, changed_by, reason, {} AS changed_at
           FROM billing_policies WHERE CAST(organization_id AS text) = $1",
        micros("never_suspend_until"),
        micros("changed_at")
    );
    let row = query_one(db, statement(db, &sql, [organization.into()])).await.map_err(failed)?;
    let policy = row.map_or_else(|| Ok(none(organization)), |row| view(organization, &row));
    policy.map_err(failed)
}

/// What applies to an organization without a row.
fn none(organization: &str) -> PolicyView {
    PolicyView {
        organization: organization.to_owned(),
        mode: PolicyMode::default().as_str().to_owned(),
        credit_limit: Money(0).to_string(),
        never_suspend_until: None,
        contact: None,
        changed_by: None,
        reason: None,
        changed_at: None,
    }
}

fn view(organization: &str, row: &QueryResult) -> Result<PolicyView, DbErr> {
    Ok(PolicyView {
        organization: organization.to_owned(),
        mode: row.try_get("", "mode")?,
        credit_limit: Money(row.try_get("", "credit_limit")?).to_string(),
        never_suspend_until: row.try_get::<Option<i64>>("", "until")?.map(time),
        contact: row.try_get("", "contact")?,
        changed_by: row.try_get("", "changed_by")?,
        reason: row.try_get("", "reason")?,
        changed_at: Some(time(row.try_get("", "changed_at")?)),
    })
}

fn print(policy: &PolicyView, format: JsonArgs) {
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
