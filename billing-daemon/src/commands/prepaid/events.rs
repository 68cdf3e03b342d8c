//! `events`: what the prepaid policy sends, and how the receivers answered.

use clap::{Args, Subcommand, ValueEnum, value_parser};
use sea_orm::{DatabaseConnection, DbErr};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::{
    commands::{
        args::{AuthorArgs, JsonArgs},
        session::Session,
    },
    exit::{Exit, Failure},
    format::instant,
    output::{self, Left, Report, Right, json as say_json, json_element, line as say, table},
    prepaid::{Author, DeliveryChange, DeliveryFilter, DeliveryView, change_deliveries, read_deliveries},
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
    /// Send an event again to each endpoint that has not accepted it
    #[command(
        after_help = "Example:\n  billing-daemon events redeliver 0198c5f2-7d5a-7000-8000-000000000001"
    )]
    Redeliver(RedeliverArgs),
    /// Give up the deliveries of an event that are pending or dead
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

#[derive(Debug, Args)]
pub(crate) struct RedeliverArgs {
    /// Only this endpoint, even if it has accepted the event
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatusArg {
    Pending,
    Sent,
    Dead,
    Superseded,
    Cancelled,
}

pub(crate) async fn execute(session: &Session<'_>, action: &EventsCommand) -> Result<(), Failure> {
    match action {
        EventsCommand::List(options) => list(session, options).await,
        EventsCommand::Show(options) => show(session, options).await,
        EventsCommand::Redeliver(RedeliverArgs { endpoint, change: options }) => {
            change(session, options, DeliveryChange::Redeliver(endpoint.as_deref())).await
        }
        EventsCommand::Cancel(options) => change(session, options, DeliveryChange::Cancel).await,
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
    let filter = DeliveryFilter {
        status: &status,
        organization: &organization,
        limit: options.limit,
        ..DeliveryFilter::default()
    };
    let found = read_deliveries(&db, filter).await.map_err(|error| failed(&error))?;
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
        found.answer(),
    ]
}

async fn show(session: &Session<'_>, options: &ShowArgs) -> Result<(), Failure> {
    let db = session.panel_for_reading().await?.db;
    let id = options.event.to_string();
    let found = deliveries(&db, &id).await?;
    let first = &found[0];
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
        format!("{endpoint}: {status} after {attempts} attempts {}", one.answer()).trim_end().to_owned()
    };
    report.add_list("deliveries", deliveries.iter().map(in_words));
    report.add_list("body", format!("{body:#}").lines().map(str::to_owned));
    output::report(&report);
    Ok(())
}

async fn change(
    session: &Session<'_>,
    options: &ChangeArgs,
    change: DeliveryChange<'_>,
) -> Result<(), Failure> {
    let db = session.panel_without_retry().await?.db;
    let id = options.event.to_string();
    let found = deliveries(&db, &id).await?;
    if let DeliveryChange::Redeliver(Some(endpoint)) = change {
        let names: Vec<&str> = found.iter().filter_map(|one| one.endpoint.as_deref()).collect();
        if !names.contains(&endpoint) {
            let message = format!("event {id} has no delivery to endpoint `{endpoint}`");
            return Err(Failure::new(Exit::Usage, message).help(format!("it has: {}", names.join(", "))));
        }
    }
    let author = Author { name: &options.author.name(), reason: None, request: None };
    let changed = change_deliveries(&db, &id, change, author).await;
    let changed = changed.map_err(|error| Failure::database("change the deliveries", &error))?;
    let changed = changed.unwrap_or_default();
    if options.format.json {
        say_json(&json!({ "deliveries": changed }));
        return Ok(());
    }
    say(match change {
        DeliveryChange::Redeliver(None) if changed == 0 => {
            "every endpoint has accepted the event; `--endpoint NAME` sends it to one again".to_owned()
        }
        DeliveryChange::Redeliver(_) => format!("{changed} deliveries are to be sent again"),
        DeliveryChange::Cancel => format!("{changed} deliveries are given up"),
    });
    Ok(())
}

/// The deliveries of an event; one row without an endpoint if it has none.
async fn deliveries(db: &DatabaseConnection, event: &str) -> Result<Vec<DeliveryView>, Failure> {
    let filter = DeliveryFilter { event, limit: 10_000, ..DeliveryFilter::default() };
    let found = read_deliveries(db, filter).await.map_err(|error| failed(&error))?;
    if found.is_empty() {
        let unknown = Failure::new(Exit::Usage, format!("no event has the id {event}"));
        return Err(unknown.help("`billing-daemon events list` shows the newest"));
    }
    Ok(found)
}

fn failed(error: &DbErr) -> Failure {
    Failure::database("read the events", error)
}
