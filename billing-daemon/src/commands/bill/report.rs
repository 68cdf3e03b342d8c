//! What `bill` prints.

use std::time::Duration;

use billing_jobs::{
    billing::{BeyondLimit, BillReport, Findings, FirstSeenPrice, RunDetails, Spike},
    price::Backups,
    uncharged::Uncharged,
};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::{
    commands::seconds,
    escape::escaped,
    format::{count, instant},
    output::{Left, Right, render_table},
};
use billing_scheduler::duration::format_rounded;

/// The most instances beyond the catch-up limit that are printed.
const PRINTED: usize = 50;
/// The most first prices that are printed.
const PRICES_PRINTED: usize = 5;

/// The result of a run, and the options that change its text.
pub(super) struct Report<'a> {
    pub(super) bill: &'a BillReport,
    pub(super) took: Duration,
    pub(super) dry_run: bool,
    /// The end of the recorded approval.
    pub(super) approved_until: Option<DateTime<Utc>>,
    /// An instance with more hours due needs an approval.
    pub(super) max_catch_up_hours: u32,
}

impl Report<'_> {
    pub(super) fn in_json(&self) -> Value {
        let BillReport { totals, uncharged, beyond_limit, spike, findings, first_seen_prices, .. } =
            self.bill;
        let spike = spike.as_ref().map(|spike| RunDetails::of_spike(spike).spike);
        let uncharged: Map<_, _> =
            uncharged.iter().map(|listed| (listed.reason.clone(), json!(listed.debt))).collect();
        json!({
            "charged": totals.charged,
            "held": totals.held,
            "hours": totals.hours,
            "amounts": totals.amounts(),
            "seconds": seconds(self.took),
            "dry_run": self.dry_run,
            "approved_until": self.approved_until,
            "beyond_limit": beyond_limit,
            "uncharged": uncharged,
            "findings": findings,
            "first_seen_prices": first_seen_prices,
            "waits_for_approval": spike,
        })
    }

    /// Lines for a terminal of that width.
    pub(super) fn in_words(&self, width: Option<usize>) -> String {
        let totals = &self.bill.totals;
        let verb = if self.dry_run { "would charge" } else { "charged" };
        let mut text = format!(
            "{verb} {} for {} of {}; {} held; {}\n",
            totals.amounts(),
            count(totals.hours, "hour"),
            count(totals.charged, "instance"),
            totals.held,
            format_rounded(self.took)
        );
        text += &self.bill.uncharged.iter().map(uncharged).collect::<String>();
        text += &self.findings();
        text += &first_seen(&self.bill.first_seen_prices);
        if self.dry_run || self.approved_until.is_some() {
            text += &self.beyond_limit(width);
        }
        text += &self.bill.spike.as_ref().map(waits).unwrap_or_default();
        text
    }

    /// Rows with a problem, one per line.
    fn findings(&self) -> String {
        let mut text = String::new();
        for (kind, Findings { count, listed }) in &self.bill.findings {
            text.extend(listed.iter().map(|sentence| format!("{kind}: {}\n", escaped(sentence))));
            let more = count.saturating_sub(listed.len() as u64);
            text.extend((more > 0).then(|| format!("{kind}: and {more} more\n")));
        }
        text
    }

    fn beyond_limit(&self, width: Option<usize>) -> String {
        let listed = &self.bill.beyond_limit;
        if listed.is_empty() {
            return String::new();
        }
        let have = if listed.len() == 1 { "has" } else { "have" };
        let instances = count(listed.len() as u64, "instance");
        let mut text = format!("\n{instances} {have} more than {} hours due:\n", self.max_catch_up_hours);
        text += &in_table(&listed[..listed.len().min(PRINTED)], width);
        match listed.len().saturating_sub(PRINTED) {
            0 => text,
            more => format!("{text}and {more} more: `--json` lists all\n"),
        }
    }
}

/// The first prices of plans, one per line.
fn first_seen(prices: &[FirstSeenPrice]) -> String {
    if prices.is_empty() {
        return String::new();
    }
    let line = |price: &FirstSeenPrice| {
        let FirstSeenPrice { plan, backups, hourly_price } = price;
        let backups = match backups {
            Backups::None => String::new(),
            backups => format!(" with {} backups", backups.as_str()),
        };
        format!("  plan {}{backups}: {hourly_price}\n", escaped(plan))
    };
    let listed: String = prices.iter().take(PRICES_PRINTED).map(line).collect();
    let more = match prices.len().saturating_sub(PRICES_PRINTED) {
        0 => String::new(),
        more => format!("  and {more} more: see --json\n"),
    };
    format!("prices seen for the first time, per hour:\n{listed}{more}")
}

fn waits(spike: &Spike) -> String {
    format!(
        "a run would wait for an approval: {spike}\nhelp: if the prices are right, run `billing-daemon bill {}`\n",
        spike.approval()
    )
}

/// One line about debts that were closed without a charge.
pub(in crate::commands) fn uncharged(Uncharged { reason, debt }: &Uncharged) -> String {
    let (instances, hours) = (count(debt.instances, "instance"), count(debt.hours, "hour"));
    match reason.as_str() {
        "instance_deleted" => format!("{instances} deleted with up to {hours} uncharged ({debt})\n"),
        "instance_transferred" => {
            format!("{instances} transferred with {hours} of the previous organization uncharged ({debt})\n")
        }
        reason => format!("{instances} with {hours} uncharged ({debt}): {reason}\n"),
    }
}

fn in_table(listed: &[BeyondLimit], width: Option<usize>) -> String {
    let cells = |listed: &BeyondLimit| {
        [
            instant(listed.start),
            listed.hours.to_string(),
            listed.amount.clone().unwrap_or_else(|| "unknown".to_owned()),
            if listed.approved { "approved" } else { "held" }.to_owned(),
            listed.instance.clone(),
            listed.label.clone(),
        ]
    };
    let heads = [Left("SINCE"), Right("HOURS"), Right("AMOUNT"), Left("STATE"), Left("ID"), Left("INSTANCE")];
    render_table(heads, &listed.iter().map(cells).collect::<Vec<_>>(), width)
}

#[cfg(test)]
mod tests {
    use billing_jobs::{
        billing::{CurrencyTotals, Excess, FindingsByKind, Totals},
        currency::Currency,
        money::Money,
        uncharged::Debt,
    };

    use super::*;

    fn beyond(label: &str, amount: Option<&str>, approved: bool) -> BeyondLimit {
        BeyondLimit {
            organization: "o".to_owned(),
            instance: "00000000-0000-4000-8000-000000000001".to_owned(),
            label: label.to_owned(),
            start: DateTime::from_timestamp_secs(1_800_000_000).expect("a time"),
            hours: 100,
            amount: amount.map(str::to_owned),
            approved,
        }
    }

    #[test]
    fn dry_run_lists_what_needs_an_approval() {
        let sum = |amount| CurrencyTotals { charges: 1, hours: 100, amount: Money(amount) };
        let mut totals = Totals { charged: 1, charges: 1, held: 1, hours: 100, ..Totals::default() };
        totals.currencies.add(Currency::USD, sum(10_000));
        let mut debt = Debt { instances: 2, hours: 3, unpriced: 1, ..Debt::default() };
        debt.amounts.add(Currency::USD, Money(300));
        let excess = Excess { currency: Currency::USD, due: sum(1_000_000), limit: Money(300_000) };
        let bill = BillReport {
            totals,
            as_of: DateTime::from_timestamp_secs(1_800_360_000).expect("a time"),
            stopped: None,
            uncharged: vec![Uncharged { reason: "instance_deleted".to_owned(), debt }],
            beyond_limit: vec![beyond("web-1", Some("1.00"), true), beyond("we\u{1b}b", None, false)],
            spike: Some(Spike { excesses: vec![excess] }),
            findings: FindingsByKind::new(),
            first_seen_prices: vec![FirstSeenPrice {
                plan: "g6".to_owned(),
                backups: Backups::Daily,
                hourly_price: "0.055000".to_owned(),
            }],
        };
        let report = Report {
            bill: &bill,
            took: Duration::from_millis(100),
            dry_run: true,
            approved_until: None,
            max_catch_up_hours: 72,
        };
        assert_eq!(
            report.in_words(Some(120)),
            "would charge 1.00 USD for 100 hours of 1 instance; 1 held; 100ms\n\
             2 instances deleted with up to 3 hours uncharged (0.03 USD and an unknown amount for 1 instance)\n\
             prices seen for the first time, per hour:\n  plan g6 with daily backups: 0.055000\n\
             \n\
             2 instances have more than 72 hours due:\n\
             SINCE                 HOURS   AMOUNT  STATE     ID                                    INSTANCE\n\
             2027-01-15T08:00:00Z    100     1.00  approved  00000000-0000-4000-8000-000000000001  web-1\n\
             2027-01-15T08:00:00Z    100  unknown  held      00000000-0000-4000-8000-000000000001  we\\u{1b}b\n\
             a run would wait for an approval: at the current prices 100.00 USD is due for 100 hours, more than the 30.00 \
             that recent runs allow: check the prices and `billing-daemon bill --dry-run`\n\
             help: if the prices are right, run `billing-daemon bill --approve 100.00 USD`\n"
        );
        let shown = report.in_json();
        assert_eq!(shown["beyond_limit"][1]["amount"], Value::Null);
        assert_eq!(shown["waits_for_approval"]["USD"]["amount"], "100.00");
        assert_eq!(shown["uncharged"]["instance_deleted"]["hours"], 3);
        assert!(
            report.in_words(Some(80)).contains("approved  web-1\n  00000000-0000-4000-8000-000000000001\n")
        );
    }
}
