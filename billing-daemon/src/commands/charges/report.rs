//! The text of `charges explain`.

use billing_jobs::money::{Carry, Rate};

use crate::{
    charges::{ChargeExplanation, ChargeView, HoldView},
    format::{count, instant},
    output::Report,
};

/// A carry as an amount in the currency.
fn carried(carry: i64) -> String {
    Rate(Carry(carry).0).per_hour(8)
}

/// The explanation for a terminal.
pub(super) fn report(explanation: &ChargeExplanation) -> Report {
    let mut report = Report::default();
    let label = explanation.label.as_deref().map_or_else(String::new, |label| format!(" ({label})"));
    let deleted = if explanation.deleted { ", deleted" } else { "" };
    report.add("instance", format!("{}{label}{deleted}", explanation.instance));
    report.add_some(
        "plan now",
        explanation.plan.as_ref().map(|plan| {
            let price =
                plan.monthly.as_ref().map_or("no price".to_owned(), |monthly| format!("{monthly} per month"));
            format!("{}, {price}", plan.name)
        }),
    );
    report.add_some("billed through", explanation.billed_through.map(instant));
    report.add_list("unreadable", explanation.unreadable.iter().cloned());
    if let Some(charge) = &explanation.charge {
        report_charge(charge, &mut report);
        let applied = explanation.prices.iter().find(|price| price.applied);
        report.add_some("  price since", applied.map(|price| instant(price.seen_at)));
    }
    if let Some(hold) = &explanation.hold {
        report_hold(hold, &mut report);
    }
    report
}

fn report_hold(hold: &HoldView, report: &mut Report) {
    let detail = hold.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    report.add("held", format!("{}{detail}", hold.reason));
    let currency = hold.currency.as_ref().map_or_else(String::new, |currency| format!(" {currency}"));
    let amount =
        hold.amount_due.as_ref().map_or("an unknown amount".to_owned(), |due| format!("{due}{currency}"));
    let hours = hold
        .hours_due
        .map_or("an unknown number of hours".to_owned(), |hours| count(hours.unsigned_abs(), "hour"));
    report.add("  due", format!("{amount} for {hours}"));
    report.add("  from", hold.organization.to_string());
    report.add("  since", format!("{}, last seen {}", instant(hold.opened_at), instant(hold.seen_at)));
    report.add_some(
        "  until",
        hold.closed_at.map(|closed| {
            let reason = hold.closed_reason.as_ref();
            let reason =
                reason.map_or_else(String::new, |reason| format!(", closed without a charge: {reason}"));
            format!("{}{reason}", instant(closed))
        }),
    );
}

fn report_charge(charge: &ChargeView, report: &mut Report) {
    let whose = if charge.by_panel { " by the panel's built-in biller" } else { "" };
    let hours = count(charge.hours.unsigned_abs().into(), "hour");
    report.add("charged", format!("{} {} for {hours}{whose}", charge.amount, charge.currency));
    report.add("  paid by", charge.organization.to_string());
    report.add("  from", instant(charge.period_start));
    report.add("  to", instant(charge.period_end));
    let monthly = monthly(charge.rate);
    report.add(
        "  per hour",
        format!("{} ({monthly} per month of 730 hours, with backups)", charge.hourly_price),
    );
    report.add(
        "  carry",
        format!("{} before, {} after", carried(charge.carry_before), carried(charge.carry_after)),
    );
    let verdict = if charge.adds_up { "exactly" } else { "NO: run `billing-daemon audit`" };
    report.add("  adds up", format!("{verdict} (carry before + hours x price = amount + carry after)"));
    if let Some(ledger) = &charge.ledger {
        let balance = |balance: &Option<String>| balance.clone().unwrap_or_else(|| "unknown".to_owned());
        let (before, after) = (balance(&ledger.balance_before), balance(&ledger.balance_after));
        report.add("  balance", format!("{before} before, {after} after"));
        report.add(
            "  ledger",
            format!("{} `{}`", ledger.id, ledger.description.as_deref().unwrap_or_default()),
        );
    }
    report.add("  cycle", charge.cycle.as_ref().map_or("none".to_owned(), |cycle| cycle.id.to_string()));
    if let Some(batch) = &charge.batch {
        let at = instant(batch.created_at);
        report.add("  batch", format!("{} at {at}, fencing token {}", batch.id, batch.fencing_token));
        report.add("  run", batch.run.to_string());
        if let (Some(daemon), Some(scheduled)) = (&batch.daemon_id, batch.scheduled_at) {
            let cause = batch.cause.as_deref().unwrap_or_default();
            report.add("", format!("on {daemon} ({cause}), for {}", instant(scheduled)));
        }
    }
}

/// A rate as a price per month.
fn monthly(rate: i64) -> String {
    // The unit of a rate is 1/730 of a millionth per hour, which is a millionth per month of 730 hours.
    let decimals = if rate % 10_000 == 0 { 2 } else { 6 };
    let scale = 10_i64.pow(6 - decimals);
    let units = rate / scale;
    let one = 10_i64.pow(decimals);
    format!("{}.{:0width$}", units / one, units % one, width = decimals as usize)
}
