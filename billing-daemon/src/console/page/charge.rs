//! The charge of one instance as a sum: hours x rate + carry = amount + carry.

use super::prelude::*;
use crate::charges::{ChargeExplanation, ChargeView, HoldView, explain};

#[derive(Serialize)]
#[serde(transparent)]
pub(in crate::console) struct Charge(ChargeExplanation);

pub(in crate::console) async fn read(visit: &Visit) -> Result<Charge, Problem> {
    let invalid = || Problem::BadRequest("`at` must be a time such as `2026-11-22T15:00:00Z`".to_owned());
    let at = visit.query("at").map(|at| parse_time(at).ok_or_else(invalid)).transpose()?;
    Ok(Charge(explain(&visit.console.reading, visit.param("instance"), at).await?))
}

/// An amount in 1/730 of a millionth.
fn units(amount: i128) -> Markup {
    let sign = if amount < 0 { "-" } else { "" };
    text(format!("{sign}{} u", grouped(u64::try_from(amount.unsigned_abs()).unwrap_or(u64::MAX))))
}

impl View for Charge {
    fn title(&self) -> String {
        let instance = self.0.instance.to_string();
        format!("Charge of {}", self.0.label.as_deref().unwrap_or(&instance))
    }

    fn body(&self, visit: &Visit) -> Markup {
        let explained = &self.0;
        html! {
            @for unreadable in &explained.unreadable { p.notice.bad { (unreadable) } }
            @match &explained.charge {
                Some(charge) => { (sum(charge)) (charge_facts(visit, charge)) },
                None => { p.empty { "No hour of this instance was charged at that time." } },
            }
            @if let Some(hold) = &explained.hold { h2 { "Held" } (held(hold)) }
            @if !explained.prices.is_empty() { h2 { "Prices of the plan" } (prices(explained)) }
            h2 { "Instance" }
            (facts(&[
                ("id", html! { code { (explained.instance) } }),
                ("deleted", text(if explained.deleted { "yes" } else { "no" })),
                ("plan now", text(explained.plan.as_ref().map_or("unknown", |plan| &plan.name))),
                ("price per month", text(explained.plan.as_ref().and_then(|plan| plan.monthly.as_deref()).unwrap_or("unknown"))),
                ("billed through", explained.billed_through.map_or_else(|| text("never"), time)),
            ]))
            form.filter method="get" action=(visit.link(format!("charges/{}", explained.instance))) {
                label { "Charge at (UTC) " input name="at" placeholder="2026-11-22T15:00:00Z"; }
                button { "Show" }
            }
            p.hint { "1 u is 1/730 of a millionth of the currency: the exact price of an hour has no smaller part." }
        }
    }
}

fn sum(charge: &ChargeView) -> Markup {
    let price = i128::from(charge.rate) * i128::from(charge.hours);
    let before = i128::from(charge.carry_before);
    let after = i128::from(charge.carry_after);
    let verdict =
        if charge.adds_up { badge(Tone::Good, "adds up") } else { badge(Tone::Bad, "does not add up") };
    let row = |label: Markup, value: Markup, class: Option<&str>| {
        html! { tr class=[class] { td data-label="part" { (label) } td data-label="amount" { (value) } } }
    };
    html! {
        p { (time(charge.period_start)) " to " (time(charge.period_end)) " " (verdict) }
        table.sum {
            thead { tr { th scope="col" { "part" } th scope="col" { "amount" } } }
            tbody {
                (row(html! { (charge.hours) " h × " (charge.hourly_price) " per hour" }, units(price), None))
                (row(html! { "+ carried from the charge before" }, units(before), None))
                (row(html! { "= owed" }, units(price + before), Some("total")))
                (row(html! { "− carried to the next charge" }, units(after), None))
                (row(
                    html! { "= taken from the wallet: " (charge.amount) " " (charge.currency) },
                    units(price + before - after),
                    Some("total"),
                ))
            }
        }
    }
}

fn charge_facts(visit: &Visit, charge: &ChargeView) -> Markup {
    let balance = |balance: &Option<String>| balance.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut shown = vec![
        ("paid by", organization(visit, &charge.organization.to_string(), "")),
        ("made by", text(if charge.by_panel { "the panel's own biller" } else { "billing-daemon" })),
    ];
    if let Some(ledger) = &charge.ledger {
        let (before, after) = (balance(&ledger.balance_before), balance(&ledger.balance_after));
        shown.push(("wallet", text(format!("{before} → {after}"))));
        shown.push(("debit", text(ledger.description.as_deref().unwrap_or_default())));
    }
    if let Some(batch) = &charge.batch {
        shown.push(("batch", html! { (batch.id) ", token " (batch.fencing_token) }));
        shown.push(("run", run_link(visit, batch.run, batch.created_at)));
        shown.push(("daemon", text(batch.daemon_id.as_deref().unwrap_or("unknown"))));
    }
    facts(&shown)
}

/// The versions of the price. A charge at none of them was made for another plan, or other backups.
fn prices(explained: &ChargeExplanation) -> Markup {
    let rows = explained.prices.iter().map(|price| {
        [
            time(price.seen_at),
            text(&price.backups),
            text(&price.hourly_price),
            if price.applied { badge(Tone::Good, "applied to this charge") } else { text("") },
        ]
    });
    let is_known = explained.charge.is_none() || explained.prices.iter().any(|price| price.applied);
    html! {
        (table(["first seen", "backups", "#per hour", "charge"], rows, ""))
        @if !is_known { p.hint { "None of these is the price of this charge: the instance had another plan then." } }
    }
}

fn held(hold: &HoldView) -> Markup {
    let hours = hold.hours_due.map_or_else(|| "unknown".to_owned(), |hours| hours.to_string());
    let amount = hold.amount_due.as_deref().unwrap_or("unknown");
    let currency = hold.currency.as_deref().unwrap_or_default();
    facts(&[
        ("reason", html! { code { (hold.reason) } }),
        ("detail", text(hold.detail.as_deref().unwrap_or("none"))),
        ("hours due", text(hours)),
        ("amount due", text(format!("{amount} {currency}"))),
        ("since", time(hold.opened_at)),
        ("closed", hold.closed_at.map_or_else(|| text("no"), time)),
    ])
}
