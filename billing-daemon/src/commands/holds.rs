//! `holds`: the held instances, and the decisions of operators about them.

use billing_jobs::hold::Reason;
use billing_scheduler::{Clock, SystemClock};
use chrono::{DateTime, Utc};
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use sea_orm::DatabaseConnection;
use serde_json::json;

use super::{
    args::{AuthorArgs, parse_time},
    session::Session,
};
use crate::{
    escape::escaped,
    exit::{Exit, Failure},
    format::instant,
    holds::{Acceptance, Filter, HeldInstance, Pages, accept, write_off},
    output::{
        Left, Right, json as say_json, json_element, layout as say_lines, line as say, render_table, width,
        wrapped,
    },
    subjects,
};

#[derive(Debug, Subcommand)]
pub(crate) enum HoldsCommand {
    /// List every held instance with the amount due and what to do
    #[command(after_help = "Example:\n  billing-daemon holds list --reason no_price --csv")]
    List(HoldsListArgs),
    /// Accept holds, so that `status` does not count them as problems
    #[command(
        after_help = "Example:\n  billing-daemon holds accept web-1 --reason 'free' --until 2027-03-01"
    )]
    Accept {
        #[command(flatten)]
        decision: DecisionArgs,
        /// End of the acceptance [default: when the hold is closed]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        until: Option<DateTime<Utc>>,
    },
    /// Close the holds of deleted instances permanently, without charging their hours
    #[command(after_help = "Example:\n  billing-daemon holds write-off web-1 --reason 'customer left'")]
    WriteOff {
        #[command(flatten)]
        decision: DecisionArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct HoldsListArgs {
    /// Only instances that are held for this reason
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    reason: Option<Reason>,
    /// Only instances of this organization: its id, slug or name
    #[arg(long, value_name = "ORGANIZATION")]
    organization: Option<String>,
    /// Print one JSON array
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV with a header line
    #[arg(long)]
    csv: bool,
}

/// An operator's decision about holds.
#[derive(Debug, Args)]
pub(crate) struct DecisionArgs {
    /// The held instances: their ids, or labels that are unique among held instances
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,
    /// Reason for the decision, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    author: AuthorArgs,
    /// Print one JSON object for each instance
    #[arg(long)]
    json: bool,
}

fn reasons() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)).map(|text| {
        let known = Reason::ALL.into_iter().find(|reason| reason.as_str() == text);
        known.expect("clap accepts the words of reasons alone")
    })
}

const CSV_HEAD: &str = "reason,since,instance,label,deleted,organization,organization_name,hours,amount,currency,detail,advice,\
                        accepted_by,accepted_until,accepted_note";

pub(super) async fn execute(session: &Session<'_>, action: &HoldsCommand) -> Result<(), Failure> {
    if let HoldsCommand::List(options) = action {
        return list(&session.panel_for_reading().await?.db, options).await;
    }
    let db = session.panel_without_retry().await?.db;
    match action {
        HoldsCommand::List(_) => Ok(()),
        HoldsCommand::Accept { decision, until } => {
            if until.is_some_and(|until| until <= now()) {
                return Err(Failure::new(Exit::Usage, "`--until` is in the past"));
            }
            let acceptance =
                Acceptance { by: &decision.author.name(), note: &decision.reason, until: *until };
            let holds = accept(&db, &decision.instances, acceptance).await?;
            let end = until
                .map_or_else(|| "until it is closed".to_owned(), |until| format!("until {}", instant(until)));
            for hold in &holds {
                report(
                    decision,
                    &hold.instance,
                    &hold.label,
                    &format!("`{}` is accepted {end}", hold.reason),
                );
            }
            Ok(())
        }
        HoldsCommand::WriteOff { decision } => {
            let holds =
                write_off(&db, &decision.instances, &decision.author.name(), &decision.reason).await?;
            for hold in &holds {
                let amount = hold.amount().unwrap_or_else(|| "an unknown amount".to_owned());
                report(decision, &hold.instance, &hold.label, &format!("{amount} written off"));
            }
            Ok(())
        }
    }
}

fn report(decision: &DecisionArgs, instance: &str, label: &str, outcome: &str) {
    if decision.json {
        say_json(&json!({ "instance": instance, "label": label, "outcome": outcome }));
    } else {
        say(format!("instance {instance} ({label}): {outcome}"));
    }
}

async fn list(db: &DatabaseConnection, options: &HoldsListArgs) -> Result<(), Failure> {
    let failed = |error| Failure::database("read the holds", &error);
    let organization = match &options.organization {
        Some(name) => Some(subjects::organization(db, name).await?),
        None => None,
    };
    let reason = options.reason.map(|reason| reason.to_string());
    let mut pages = Pages::of(db, Filter { reason, organization }).await.map_err(failed)?;
    let mut shown = Shown { options, width: width(), listed: 0, reason: None };
    shown.begin();
    loop {
        let page = pages.next().await.map_err(failed)?;
        if page.is_empty() {
            break;
        }
        shown.page(&page);
    }
    shown.end();
    Ok(())
}

/// The state of a list that is printed page by page.
struct Shown<'a> {
    options: &'a HoldsListArgs,
    width: Option<usize>,
    listed: usize,
    reason: Option<String>,
}

impl Shown<'_> {
    fn begin(&self) {
        if self.options.csv {
            say(CSV_HEAD);
        }
    }

    fn page(&mut self, page: &[HeldInstance]) {
        if self.options.json {
            for held in page {
                json_element(if self.listed == 0 { '[' } else { ',' }, held);
                self.listed += 1;
            }
            return;
        }
        if self.options.csv {
            for held in page {
                say(csv(held));
            }
        } else {
            say_lines(self.in_words(page).trim_end());
        }
        self.listed += page.len();
    }

    fn end(&self) {
        match (self.options.json, self.options.csv, self.listed) {
            (true, _, 0) => say("[]"),
            (true, ..) => say("]"),
            (false, false, 0) => say("no instance is held"),
            (false, ..) => {}
        }
    }

    /// The text of a page, whose holds have one reason; the advice is printed once for each reason.
    fn in_words(&mut self, page: &[HeldInstance]) -> String {
        let mut text = String::new();
        let HeldInstance { reason, advice, .. } = &page[0];
        if self.reason.as_ref() != Some(reason) {
            text.push_str(if self.reason.is_some() { "\n" } else { "" });
            text.extend([&*escaped(reason), "\n"]);
            text.extend([&wrapped(&format!("  to do: {advice}"), self.width, 4).join("\n"), "\n"]);
            self.reason = Some(reason.clone());
        }
        text + &in_table(page, self.width)
    }
}

fn in_table(page: &[HeldInstance], width: Option<usize>) -> String {
    let cells = |held: &HeldInstance| {
        let unknown = || "unknown".to_owned();
        let hours = held.hours.map_or_else(unknown, |hours| hours.to_string());
        let amount = match (&held.amount, &held.currency) {
            (Some(amount), Some(currency)) => format!("{amount} {currency}"),
            (Some(amount), None) => amount.clone(),
            (None, _) => unknown(),
        };
        let mut about = held.detail.clone().unwrap_or_default();
        if let Some(by) = &held.accepted_by {
            let until =
                held.accepted_until.map_or_else(String::new, |until| format!(" until {}", instant(until)));
            let note = held.accepted_note.as_deref().unwrap_or_default();
            about = format!("accepted by {by}{until}: {note}");
        }
        let gone = if held.deleted { ", deleted" } else { "" };
        let organization = held.organization_name.clone().unwrap_or_else(|| "deleted".to_owned());
        [
            instant(held.since),
            hours,
            amount,
            organization,
            format!("{}{gone}", held.label),
            held.instance.clone(),
            about,
        ]
    };
    let heads = [
        Left("SINCE"),
        Right("HOURS"),
        Right("AMOUNT"),
        Left("ORGANIZATION"),
        Left("INSTANCE"),
        Left("ID"),
        Left("ABOUT"),
    ];
    render_table(heads, &page.iter().map(cells).collect::<Vec<_>>(), width)
}

fn csv(held: &HeldInstance) -> String {
    let unknown = "unknown".to_owned();
    let at = |at: Option<DateTime<Utc>>| at.map(instant).unwrap_or_default();
    let cells = [
        held.reason.clone(),
        instant(held.since),
        held.instance.clone(),
        held.label.clone(),
        held.deleted.to_string(),
        held.organization.clone(),
        held.organization_name.clone().unwrap_or_default(),
        held.hours.map_or_else(|| unknown.clone(), |hours| hours.to_string()),
        held.amount.clone().unwrap_or_else(|| unknown.clone()),
        held.currency.clone().unwrap_or_default(),
        held.detail.clone().unwrap_or_default(),
        held.advice.to_owned(),
        held.accepted_by.clone().unwrap_or_default(),
        at(held.accepted_until),
        held.accepted_note.clone().unwrap_or_default(),
    ];
    cells.map(|cell| quoted(&cell)).join(",")
}

/// A cell as RFC 4180 quotes it. A spreadsheet must not take a customer's text for a formula.
fn quoted(cell: &str) -> String {
    let formula = if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if formula.is_empty() && !cell.contains([',', '"', '\n', '\r']) {
        return escaped(cell).into_owned();
    }
    format!("\"{formula}{}\"", escaped(cell).replace('"', "\"\""))
}

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cell_is_quoted_and_harmless() {
        for (cell, expected) in [
            ("web-1", "web-1"),
            ("a,b", "\"a,b\""),
            ("a \"b\"", "\"a \"\"b\"\"\""),
            ("=1+1", "\"'=1+1\""),
            ("a\nb", "\"a\\nb\""),
            ("a\u{1b}[31mb", "a\\u{1b}[31mb"),
        ] {
            assert_eq!(quoted(cell), expected);
        }
    }
}
