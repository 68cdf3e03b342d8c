//! `events`: what the prepaid policy sends, and how the receivers answered.

use billing_store::{
    audit_log::{self, AuditEvent},
    begin_command, columns, query_fleet, statement,
};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum, value_parser};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::time;
use crate::{
    commands::{
        args::{AuthorArgs, JsonArgs},
        session::Session,
    },
    exit::{Exit, Failure},
    format::instant,
    output::{self, Left, Report, Right, json as say_json, json_element, line as say, table},
    subjects,
};

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// List the newest events with their deliveries
    #[command(after_help = "Example:\n  billing-daemon events list --status dead")]
    List(ListArgs),
    /// Show an event with its body and its deliveries
    #[command(after_help = "Example:\n  billing-daemon events show 0198c5f2-7d5a-7000-8000-000000000001")]
    Show(ShowArgs),
    /// Send an event again to every endpoint that receives it
    #[command(
        after_help = "Example:\n  billing-daemon events redeliver 0198c5f2-7d5a-7000-8000-000000000001"
    )]
    Redeliver(ChangeArgs),
    /// Give up the deliveries of an event that are pending
    #[command(after_help = "Example:\n  billing-daemon events cancel 0198c5f2-7d5a-7000-8000-000000000001")]
    Cancel(ChangeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only deliveries with this status
    #[arg(long, value_enum)]
    status: Option<StatusArg>,
    /// Only events of this organization: its id, slug or name
    #[arg(long, value_name = "ORGANIZATION")]
    organization: Option<String>,
    /// Maximum number of rows [default: 100]
    #[arg(long, value_name = "N", default_value_t = 100, hide_default_value = true, value_parser = value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The id of the event
    #[arg(value_name = "ID")]
    event: Uuid,
    #[command(flatten)]
    format: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// The id of the event
    #[arg(value_name = "ID")]
    event: Uuid,
    #[command(flatten)]
    author: AuthorArgs,
    #[command(flatten)]
    format: JsonArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatusArg {
    Pending,
    Sent,
    Dead,
    Superseded,
    Cancelled,
}

/// A delivery of an event; the fields of the delivery are unset for an event that no endpoint receives.
#[derive(Debug, Serialize)]
struct DeliveryView {
    event: String,
    #[serde(rename = "type")]
    kind: String,
    organization: Option<String>,
    at: DateTime<Utc>,
    endpoint: Option<String>,
    status: Option<String>,
    attempts: Option<i32>,
    next_at: Option<DateTime<Utc>>,
    code: Option<i32>,
    error: Option<String>,
    sent_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    body: String,
}

pub(crate) async fn execute(session: &Session<'_>, action: &EventsCommand) -> Result<(), Failure> {
    match action {
        EventsCommand::List(options) => list(session, options).await,
        EventsCommand::Show(options) => show(session, options).await,
        EventsCommand::Redeliver(options) => change(session, options, Change::Redeliver).await,
        EventsCommand::Cancel(options) => change(session, options, Change::Cancel).await,
    }
}

async fn list(session: &Session<'_>, options: &ListArgs) -> Result<(), Failure> {
    let db = session.panel_for_reading().await?.db;
    let organization = match &options.organization {
        Some(name) => subjects::organization(&db, name).await?,
        None => String::new(),
    };
    let status = options.status.and_then(|status| status.to_possible_value());
    let status = status.map(|status| status.get_name().to_owned()).unwrap_or_default();
    let found = read(&db, "", &status, &organization, options.limit).await.map_err(|error| failed(&error))?;
    if options.json {
        for (n, delivery) in found.iter().enumerate() {
            json_element(if n == 0 { '[' } else { ',' }, delivery);
        }
        say(if found.is_empty() { "[]" } else { "]" });
        return Ok(());
    }
    if found.is_empty() {
        say("no event");
        return Ok(());
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    let heads = [
        Left("AT"),
        Left("EVENT"),
        Left("TYPE"),
        Left("ORGANIZATION"),
        Left("ENDPOINT"),
        Left("STATUS"),
        Right("ATTEMPTS"),
        Left("ANSWER"),
    ];
    table(heads, &rows);
    Ok(())
}

fn row(found: &DeliveryView) -> [String; 8] {
    [
        instant(found.at),
        found.event.clone(),
        found.kind.clone(),
        found.organization.clone().unwrap_or_default(),
        found.endpoint.clone().unwrap_or_default(),
        found.status.clone().unwrap_or_else(|| "no endpoint".to_owned()),
        found.attempts.map(|attempts| attempts.to_string()).unwrap_or_default(),
        answer(found),
    ]
}

fn answer(found: &DeliveryView) -> String {
    let code = found.code.map(|code| code.to_string());
    let parts = [code, found.error.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

async fn show(session: &Session<'_>, options: &ShowArgs) -> Result<(), Failure> {
    let db = session.panel_for_reading().await?.db;
    let id = options.event.to_string();
    let found = read(&db, &id, "", "", 10_000).await.map_err(|error| failed(&error))?;
    let Some(first) = found.first() else { return Err(unknown(&id)) };
    let body: Json = serde_json::from_str(&first.body).unwrap_or_else(|_| first.body.clone().into());
    let deliveries: Vec<&DeliveryView> = found.iter().filter(|one| one.endpoint.is_some()).collect();
    if options.format.json {
        say_json(
            &json!({ "event": first.event, "type": first.kind, "body": body, "deliveries": deliveries }),
        );
        return Ok(());
    }
    let mut report = Report::default();
    report.add("event", first.event.clone());
    report.add("type", first.kind.clone());
    report.add("at", instant(first.at));
    report.add_some("organization", first.organization.clone());
    let in_words = |one: &&DeliveryView| {
        let [endpoint, status] = [&one.endpoint, &one.status].map(|text| text.clone().unwrap_or_default());
        let attempts = one.attempts.unwrap_or_default();
        format!("{endpoint}: {status} after {attempts} attempts {}", answer(one)).trim_end().to_owned()
    };
    report.add_list("deliveries", deliveries.iter().map(in_words));
    report.add_list("body", format!("{body:#}").lines().map(str::to_owned));
    output::report(&report);
    Ok(())
}

/// What an operator changes about the deliveries of an event.
#[derive(Clone, Copy)]
enum Change {
    Redeliver,
    Cancel,
}

async fn change(session: &Session<'_>, options: &ChangeArgs, change: Change) -> Result<(), Failure> {
    let db = session.panel_without_retry().await?.db;
    let id = options.event.to_string();
    if read(&db, &id, "", "", 1).await.map_err(|error| failed(&error))?.is_empty() {
        return Err(unknown(&id));
    }
    let now = match db.get_database_backend() {
        DbBackend::Sqlite => billing_store::SQLITE_NOW,
        _ => "now()",
    };
    let (action, done, set) = match change {
        Change::Redeliver => (
            "redeliver",
            "to be sent again",
            format!(
                "status = 'pending', attempts = 0, next_at = {now}, claimed_until = NULL, last_code = NULL, sent_at = NULL
                  WHERE true"
            ),
        ),
        Change::Cancel => {
            ("cancel delivery", "given up", "status = 'cancelled', claimed_until = NULL WHERE status = 'pending'".into())
        }
    };
    let sql = format!("UPDATE billing_deliveries SET {set} AND CAST(event_id AS text) = $1 ");
    let changed = async {
        let txn = begin_command(&db).await?;
        let changed = txn.execute_raw(statement(&txn, &sql, [id.as_str().into()])).await?.rows_affected();
        let details = json!({ "event": id, "deliveries": changed });
        audit_log::append(&txn, &AuditEvent::new(&options.author.name(), action, "deliver", details)).await?;
        txn.commit().await?;
        Ok(changed)
    };
    let changed: u64 =
        changed.await.map_err(|error: DbErr| Failure::database("change the deliveries", &error))?;
    if options.format.json {
        say_json(&json!({ "deliveries": changed }));
    } else {
        say(format!("{changed} deliveries are {done}"));
    }
    Ok(())
}

/// The newest deliveries; all for an empty id, status or organization.
async fn read(
    db: &DatabaseConnection,
    id: &str,
    status: &str,
    organization: &str,
    limit: u32,
) -> Result<Vec<DeliveryView>, DbErr> {
    let micros = |column: &str| match db.get_database_backend() {
        DbBackend::Sqlite => column.to_owned(),
        _ => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
    };
    let sql = format!(
        "SELECT CAST(e.id AS text) AS event, e.type, CAST(e.organization_id AS text) AS organization, {at} AS at, e.body, d.endpoint,
                d.status, d.attempts, {next_at} AS next_at, d.last_code, d.last_error, {sent_at} AS sent_at
           FROM billing_events e LEFT JOIN billing_deliveries d ON d.event_id = e.id
          WHERE ($1 = '' OR CAST(e.id AS text) = $1) AND ($2 = '' OR d.status = $2)
            AND ($3 = '' OR CAST(e.organization_id AS text) = $3)
          ORDER BY e.id DESC, d.endpoint LIMIT $4",
        at = micros("e.created_at"),
        next_at = micros("d.next_at"),
        sent_at = micros("d.sent_at"),
    );
    let values: [Value; 4] = [id.into(), status.into(), organization.into(), i64::from(limit).into()];
    query_fleet(db, statement(db, &sql, values)).await?.iter().map(view).collect()
}

fn view(row: &QueryResult) -> Result<DeliveryView, DbErr> {
    let at = |column| Ok::<_, DbErr>(row.try_get::<Option<i64>>("", column)?.map(time));
    let status: Option<String> = row.try_get("", "status")?;
    Ok(DeliveryView {
        event: row.try_get("", "event")?,
        kind: columns::lossy(row, "type"),
        organization: row.try_get("", "organization")?,
        at: time(row.try_get("", "at")?),
        endpoint: row.try_get("", "endpoint")?,
        attempts: row.try_get("", "attempts")?,
        // Only a pending delivery has a next attempt.
        next_at: at("next_at")?.filter(|_| status.as_deref() == Some("pending")),
        code: row.try_get("", "last_code")?,
        error: row.try_get("", "last_error")?,
        sent_at: at("sent_at")?,
        body: columns::lossy(row, "body"),
        status,
    })
}

fn unknown(id: &str) -> Failure {
    Failure::new(Exit::Usage, format!("no event has the id {id}"))
        .help("`billing-daemon events list` shows the newest")
}

fn failed(error: &DbErr) -> Failure {
    Failure::database("read the events", error)
}
