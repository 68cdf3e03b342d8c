//! What the last billing runs charged, as sums of their batches, and the price of an instance hour from run to run.

use std::collections::BTreeMap;

use billing_jobs::{
    BILLING_JOB,
    billing::{CurrencyTotals, TotalsByCurrency},
    currency::Currency,
    money::Money,
};
use billing_scheduler::{RunFilter, RunStatus};
use sea_orm::{DbBackend, DbErr, QueryResult};
use serde::Serializer;
use uuid::Uuid;

use super::prelude::*;
use crate::status::RunView;

/// How many runs are shown.
const RUNS: u32 = 24;

#[derive(Serialize)]
pub(in crate::console) struct BillingPage {
    /// At most [`RUNS`] runs of billing, the newest first.
    runs: Vec<BilledRun>,
    /// What an instance hour may cost without an approval, as decimal text; none without a spike guard.
    limit_per_hour: Option<String>,
    #[serde(skip)]
    limit: Option<(Currency, i64)>,
}

#[derive(Serialize)]
struct BilledRun {
    #[serde(flatten)]
    run: RunView,
    /// The sums of its batches.
    charged: Charged,
    /// Whether the run recorded the sums of its batches.
    adds_up: bool,
}

#[derive(Default, Serialize)]
struct Charged {
    charges: i64,
    hours: i64,
    #[serde(serialize_with = "as_decimal_texts")]
    amounts: TotalsByCurrency,
}

fn as_decimal_texts<S: Serializer>(totals: &TotalsByCurrency, serializer: S) -> Result<S::Ok, S::Error> {
    totals.amounts().serialize(serializer)
}

impl Charged {
    /// The price of an instance hour in the main currency, in hundredths of a ten-thousandth.
    fn price(&self) -> Option<(Currency, i64)> {
        let (currency, _) = self.amounts.main()?;
        let totals = self.amounts.of(currency).filter(|totals| totals.hours > 0)?;
        let price = i128::from(totals.amount.0) * 100 / i128::from(totals.hours);
        Some((currency, i64::try_from(price).unwrap_or(i64::MAX)))
    }
}

/// A price in millionths as decimal text.
fn price_in_words((currency, millionths): (Currency, i64)) -> String {
    format!("{}.{:06} {currency}", millionths / 1_000_000, millionths % 1_000_000)
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<BillingPage, Problem> {
    let filter = RunFilter { job: Some(BILLING_JOB.to_owned()), limit: RUNS, ..RunFilter::default() };
    let runs = visit.runs(&filter).await?;
    let mut sums = sums(visit, &runs).await?;
    let billed = |run: RunView| {
        let charged = sums.remove(&run.id).unwrap_or_default();
        let recorded = run.billing_details().totals;
        let adds_up = recorded.is_none_or(|recorded| recorded.amounts() == charged.amounts.amounts());
        BilledRun { run, charged, adds_up }
    };
    let runs: Vec<BilledRun> = runs.into_iter().map(billed).collect();
    let limit = limit(&runs, visit.console.shared.expected().billing.spike_factor);
    Ok(BillingPage { runs, limit_per_hour: limit.map(price_in_words), limit })
}

/// The highest price of an hour in the main currency, times the factor of the spike guard in tenths.
fn limit(runs: &[BilledRun], factor: i64) -> Option<(Currency, i64)> {
    let mut prices = runs.iter().filter(|run| run.run.status == RunStatus::Done);
    let prices = prices.by_ref().filter_map(|run| run.charged.price());
    let (main, _) = runs.iter().find_map(|run| run.charged.price())?;
    let highest = prices.filter(|(currency, _)| *currency == main).map(|(_, price)| price).max()?;
    (factor > 0).then(|| (main, highest.saturating_mul(factor) / 10))
}

async fn sums(visit: &Visit, runs: &[RunView]) -> Result<BTreeMap<Uuid, Charged>, Problem> {
    let (each, field) = match visit.db().get_database_backend() {
        DbBackend::Sqlite => ("json_each(b.currencies)", "c.value ->> '$."),
        _ => ("jsonb_each(b.currencies)", "c.value ->> '"),
    };
    let sum = |name: &str| format!("CAST(sum(CAST({field}{name}' AS bigint)) AS bigint) AS {name}");
    let ids: Vec<_> = runs.iter().map(|run| format!("'{}'", run.id)).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT CAST(b.run_id AS text) AS run, c.key AS currency, {}, {}, {} FROM billing_batches b, {each} AS c
          WHERE b.run_id IN ({}) GROUP BY b.run_id, c.key",
        sum("charges"),
        sum("hours"),
        sum("amount"),
        ids.join(", ")
    );
    let row = |row: &QueryResult| -> Result<_, DbErr> {
        let (run, currency): (String, String) = (row.try_get("", "run")?, row.try_get("", "currency")?);
        let totals = CurrencyTotals {
            charges: row.try_get("", "charges")?,
            hours: row.try_get("", "hours")?,
            amount: Money(row.try_get("", "amount")?),
        };
        Ok((run.parse::<Uuid>().unwrap_or_default(), currency.parse().unwrap_or(Currency::NONE), totals))
    };
    let mut sums: BTreeMap<Uuid, Charged> = BTreeMap::new();
    for (run, currency, totals) in visit.rows("sum up the batches", &sql, [], row).await? {
        let sum = sums.entry(run).or_default();
        sum.charges += totals.charges;
        sum.hours += totals.hours;
        sum.amounts.add(currency, totals);
    }
    Ok(sums)
}

impl View for BillingPage {
    fn title(&self) -> String {
        "Billing".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let priced =
            self.runs.iter().rev().filter_map(|run| Some((run.run.scheduled_at, run.charged.price()?)));
        let main = self.runs.iter().find_map(|run| run.charged.price()).map(|(currency, _)| currency);
        let points: Vec<_> = priced
            .filter(|(_, (currency, _))| Some(*currency) == main)
            .map(|(at, price)| (at, price.1, price_in_words(price)))
            .collect();
        let rows = self.runs.iter().map(|BilledRun { run, charged, adds_up }| {
            let held = run.billing_details().totals.map(|totals| grouped(totals.held));
            [
                run_link(visit, run.id, run.scheduled_at),
                run_badge(run),
                text(milliseconds(run.duration_ms)),
                text(grouped(charged.charges.unsigned_abs())),
                text(held.unwrap_or_else(|| "-".to_owned())),
                text(grouped(charged.hours.unsigned_abs())),
                html! {
                    (charged.amounts.amounts().to_string())
                    @if !adds_up { " " (badge(Tone::Bad, "the run recorded another sum")) }
                },
                text(charged.price().map_or_else(|| "-".to_owned(), price_in_words)),
            ]
        });
        let headings =
            ["scheduled", "status", "#took", "#charged", "#held", "#hours", "#amount", "#per hour"];
        let limit = self.limit.map(|limit| (limit.1, price_in_words(limit)));
        html! {
            @if visit.may(Right::Operate) {
                p { a.button href=(visit.link("billing/dry-run")) { "Dry run" } }
            }
            @if points.len() > 1 {
                h2 { "Amount per instance hour" }
                (chart::line("amount per instance hour", &points, limit.as_ref()))
                p.hint {
                    "Newest " (points.last().map_or("", |(.., text)| text)) "."
                    @if let Some((_, text)) = &limit {
                        " The dashed line is the limit of the spike guard: a run at more than " (text) " waits for an approval."
                    }
                }
            }
            h2 { "Last " (self.runs.len()) " runs" }
            (table(headings, rows, "No billing run yet."))
        }
    }
}
