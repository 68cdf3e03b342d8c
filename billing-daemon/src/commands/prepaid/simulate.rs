//! `prepaid simulate`: what the policy would send and order if no one paid.

use billing_jobs::prepaid::{Decision, Level, notice_type, order_type};
use chrono::{DateTime, Utc};
use clap::{Args, value_parser};
use serde::Serialize;

use super::{open, selected};
use crate::{
    commands::session::Session,
    exit::Failure,
    format::instant,
    output::{Left, json_element, line as say, table},
    prepaid::{level_in_words, time},
};

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Number of hours from now [default: 96]
    #[arg(long, value_name = "HOURS", default_value_t = 96, hide_default_value = true, value_parser = value_parser!(u32).range(1..=2160))]
    hours: u32,
    /// Only this organization: its id, slug or name
    #[arg(long, value_name = "ORGANIZATION")]
    organization: Option<String>,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// What would be sent.
#[derive(Debug, Serialize)]
struct EventView {
    at: DateTime<Utc>,
    organization: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The level of a notice.
    level: Option<i32>,
}

pub(super) async fn execute(session: &Session<'_>, options: &SimulateArgs) -> Result<(), Failure> {
    let (prepaid, opened) = open(session).await?;
    let mut events = Vec::new();
    selected(&prepaid, &opened.db, options.organization.as_deref(), |found| {
        for (at, decision) in found.simulate(prepaid.rules(), options.hours, opened.panel.unit) {
            events.extend(sent(&decision).map(|(kind, level)| EventView {
                at: time(at),
                organization: found.organization.clone(),
                kind,
                level,
            }));
        }
    })
    .await?;
    events.sort_by_key(|event| event.at);
    if options.json {
        for (n, event) in events.iter().enumerate() {
            json_element(if n == 0 { '[' } else { ',' }, event);
        }
        say(if events.is_empty() { "[]" } else { "]" });
        return Ok(());
    }
    if events.is_empty() {
        say(format!("nothing would be sent in the next {} hours", options.hours));
        return Ok(());
    }
    let rows: Vec<_> = events.iter().map(row).collect();
    table([Left("AT"), Left("ORGANIZATION"), Left("EVENT"), Left("NOTICE")], &rows);
    Ok(())
}

fn row(event: &EventView) -> [String; 4] {
    let level = event.level.map(|level| level_in_words(Level(level))).unwrap_or_default();
    [instant(event.at), event.organization.clone(), event.kind.to_owned(), level]
}

/// The events of a decision, each with the level of its notice.
fn sent(decision: &Decision) -> impl Iterator<Item = (&'static str, Option<i32>)> + '_ {
    let notices = decision.notices.iter().filter(|notice| !notice.passed);
    let notices = notices.map(|notice| (notice_type(notice.level), Some(notice.level.0)));
    notices.chain(decision.order.iter().map(|order| (order_type(order.desired), None)))
}
