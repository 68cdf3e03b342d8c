//! What the next billing run would charge, at most, and whether it would wait for an approval. Nothing is locked or written.

use std::{collections::BTreeMap, time::Duration};

use billing_jobs::{
    billing::{Biller, CurrencyTotals},
    currency::Currency,
};
use billing_store::reading_within;

use super::prelude::*;

/// The most that a statement may take: one reads the whole fleet.
const STATEMENT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
pub(in crate::console) struct DryRun {
    /// Whether the run would wait for an approval.
    waits: bool,
    currencies: BTreeMap<Currency, Due>,
}

#[derive(Serialize)]
struct Due {
    instances: i64,
    hours: i64,
    amount: String,
    /// The most that a run may charge without an approval; none without a limit.
    limit: Option<String>,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<DryRun, Problem> {
    let settings = visit.console.shared.expected().billing;
    let biller = Biller::new(visit.db().clone(), visit.console.reading.panel, settings);
    let forecast = reading_within(STATEMENT, biller.forecast()).await.map_err(|error| {
        tracing::warn!("HTTP request failed: {error}");
        Problem::Unavailable
    })?;
    let due = |(currency, CurrencyTotals { charges, hours, amount }): (Currency, CurrencyTotals)| {
        let limit = forecast.ceilings.get(&currency).map(ToString::to_string);
        (currency, Due { instances: charges, hours, amount: amount.to_string(), limit })
    };
    Ok(DryRun { waits: forecast.spike.is_some(), currencies: forecast.due.iter().map(due).collect() })
}

impl View for DryRun {
    fn title(&self) -> String {
        "Dry run".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.currencies.iter().map(|(currency, due)| {
            [
                text(currency.to_string()),
                text(grouped(due.instances.unsigned_abs())),
                text(grouped(due.hours.unsigned_abs())),
                text(&due.amount),
                text(due.limit.as_deref().unwrap_or("none")),
            ]
        });
        html! {
            div.still {
                p {
                    @if self.waits {
                        (badge(Tone::Bad, "waits")) " The next run would wait for an approval: see " (link(visit, "approvals", "the approvals")) "."
                    } @else {
                        (badge(Tone::Good, "charges")) " The next run would charge this without an approval."
                    }
                }
                (table(["currency", "#instances", "#hours", "#amount at most", "#limit"], rows, "Nothing is due."))
                p.hint {
                    "What is due now, at the current prices. Instances whose wallets do not cover it are held, and charge less. "
                    "Nothing was locked or written. " (link(visit, "billing/dry-run", "Compute it again"))
                }
            }
        }
    }
}
