//! Held instances with what resolves each, by reason.

use super::prelude::*;
use crate::{
    holds::{HeldInstance, page},
    status::{HoldSummary, Uncharged},
};

/// How many instances are shown at once.
const SHOWN: usize = 50;

#[derive(Serialize)]
pub(in crate::console) struct Holds {
    /// The reasons for which instances are held.
    reasons: Vec<HoldSummary>,
    /// The hours that were given up during the last 30 days.
    uncharged: Vec<Uncharged>,
    /// The reason of the listed instances.
    reason: Option<String>,
    held: Vec<HeldInstance>,
    /// The value of `after` for the next page.
    next: Option<i64>,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Holds, Problem> {
    let reasons = visit.status.holds.clone();
    let first = || reasons.first().map(|held| held.reason.clone());
    let reason = visit.query("reason").map(str::to_owned).or_else(first);
    let after = visit.parsed("after")?.unwrap_or_default();
    let mut held = Vec::new();
    let organization = match visit.query("organization") {
        Some(name) => Some(nearest::organization(visit, name).await?),
        None => None,
    };
    if let Some(reason) = &reason {
        let read = page(visit.db(), reason, after, organization.as_deref(), SHOWN + 1).await;
        held = read.map_err(|error| Problem::database("read the holds", &error))?;
    }
    let next = keep(&mut held, SHOWN).map(|last| last.id);
    Ok(Holds { reasons, uncharged: visit.status.uncharged.clone(), reason, held, next })
}

impl View for Holds {
    fn title(&self) -> String {
        "Holds".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let of_reason = self.reasons.iter().find(|held| Some(&held.reason) == self.reason.as_ref());
        let label = |held: &HoldSummary| format!("{} ({})", held.reason, grouped(held.owed.instances));
        let rows = self.held.iter().map(|held| row(visit, held));
        let of_organization = visit.query("organization").unwrap_or_default();
        let page = |reason: &str, after: &str| {
            let query = pairs(&[("reason", reason), ("organization", of_organization), ("after", after)]);
            format!("holds?{query}")
        };
        let headings =
            ["instance", "organization", "#hours", "#amount", "since", "what is wrong", "accepted"];
        html! {
            nav aria-label="Reasons" {
                ul {
                    @for held in &self.reasons {
                        li {
                            a href=(visit.link(page(&held.reason, "")))
                                aria-current=[(Some(&held.reason) == self.reason.as_ref()).then_some("true")] { (label(held)) }
                        }
                    }
                }
            }
            @if let Some(held) = of_reason {
                p.notice.good { b { "What resolves it: " } (prose(&held.advice)) "." }
            }
            (table(headings, rows, "No instance is held."))
            @if let (Some(next), Some(reason)) = (self.next, &self.reason) {
                p { (link(visit, page(reason, &next.to_string()), "Next instances")) }
            }
            @if !self.uncharged.is_empty() {
                h2 { "Closed without a charge in the last 30 days" }
                (table(["reason", "#instances", "#hours", "#amount"], self.uncharged.iter().map(given_up), ""))
            }
        }
    }
}

fn given_up(debt: &Uncharged) -> [Markup; 4] {
    let owed = &debt.owed;
    [
        text(&debt.reason),
        text(grouped(owed.instances)),
        text(grouped(owed.hours)),
        text(owed.amounts.to_string()),
    ]
}

fn row(visit: &Visit, held: &HeldInstance) -> [Markup; 7] {
    let amount = held.amount.as_deref().unwrap_or("unknown");
    let currency = held.currency.as_deref().unwrap_or_default();
    [
        html! { (link(visit, format!("charges/{}", held.instance), &held.label)) @if held.deleted { " (deleted)" } },
        organization(visit, &held.organization, held.organization_name.as_deref().unwrap_or_default()),
        text(held.hours.map_or_else(|| "unknown".to_owned(), |hours| hours.to_string())),
        text(format!("{amount} {currency}")),
        since(&visit.status, held.since),
        prose(held.detail.as_deref().unwrap_or_default()),
        held.accepted_by.as_deref().map_or_else(|| text("no"), |by| badge(Tone::Idle, by)),
    ]
}
