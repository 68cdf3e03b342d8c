//! What `bill` prints.

use std::time::Duration;

use billing_jobs::{
    billing::{BeyondLimit, Bill, Spike},
    uncharged::{Debt, Uncharged},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use super::{seconds, table::table};

/// No more instances beyond the catch-up limit are printed than these.
const PRINTED: usize = 50;
/// From this width on the ids are printed.
const WIDE: usize = 110;

/// A bill, and what the command line said of it.
pub(super) struct Report<'a> {
    pub(super) bill: &'a Bill,
    pub(super) took: Duration,
    pub(super) dry_run: bool,
    /// When the approval that was recorded ends.
    pub(super) approved_until: Option<DateTime<Utc>>,
    /// More hours need an approval.
    pub(super) max_catch_up_hours: u32,
}

impl Report<'_> {
    pub(super) fn in_json(&self) -> Value {
        let Bill { totals, uncharged, beyond_limit, spike, .. } = self.bill;
        let spike = spike.map(|Spike { sum, limit }| {
            json!({ "amount": sum.amount.to_string(), "hours": sum.hours, "limit": limit.to_string() })
        });
        let uncharged: Map<_, _> =
            uncharged.iter().map(|of_one| (of_one.reason.clone(), json!(of_one.debt))).collect();
        json!({
            "charged": totals.charged,
            "held": totals.held,
            "hours": totals.hours,
            "amount": totals.amount.to_string(),
            "seconds": seconds(self.took),
            "dry_run": self.dry_run,
            "approved_until": self.approved_until,
            "beyond_limit": beyond_limit,
            "uncharged": uncharged,
            "waits_for_approval": spike,
        })
    }

    /// Lines for a terminal of `width` columns.
    pub(super) fn in_words(&self, width: usize) -> String {
        let totals = self.bill.totals;
        let verb = if self.dry_run { "would charge" } else { "charged" };
        let mut text = format!(
            "{verb} {} for {} hours of {} machines; {} held; {} s\n",
            totals.amount,
            totals.hours,
            totals.charged,
            totals.held,
            seconds(self.took)
        );
        text += &self.bill.uncharged.iter().map(uncharged).collect::<String>();
        if self.dry_run || self.approved_until.is_some() {
            text += &self.beyond_limit(width);
        }
        text += &self.bill.spike.map(waits).unwrap_or_default();
        text
    }

    fn beyond_limit(&self, width: usize) -> String {
        let listed = &self.bill.beyond_limit;
        if listed.is_empty() {
            return String::new();
        }
        let instances =
            if listed.len() == 1 { "1 instance has" } else { &format!("{} instances have", listed.len()) };
        let mut text = format!("\n{instances} more than {} hours due:\n", self.max_catch_up_hours);
        text += &in_table(&listed[..listed.len().min(PRINTED)], width);
        match listed.len().saturating_sub(PRINTED) {
            0 => text,
            more => format!("{text}and {more} more: `--json` lists all\n"),
        }
    }
}

fn waits(Spike { sum, limit }: Spike) -> String {
    format!(
        "a run would wait for an approval: at the current prices {} is due for {} hours, more than the {limit} that \
         recent runs allow\nhelp: check the prices, then run `billing-daemon bill --approve {}`\n",
        sum.amount, sum.hours, sum.amount
    )
}

/// One line about debts that were closed without a charge.
pub(super) fn uncharged(Uncharged { reason, debt }: &Uncharged) -> String {
    let Debt { instances, hours, .. } = debt;
    let plural = if *instances == 1 { "instance" } else { "instances" };
    let amount = debt.amount_in_words();
    match reason.as_str() {
        "instance_deleted" => {
            format!("{instances} {plural} deleted with up to {hours} hours uncharged ({amount})\n")
        }
        reason => format!("{instances} {plural} with {hours} hours uncharged ({amount}): {reason}\n"),
    }
}

fn in_table(listed: &[BeyondLimit], width: usize) -> String {
    let cells = |of_one: &BeyondLimit| {
        let amount = of_one.amount.as_deref().unwrap_or("unknown");
        let state = if of_one.approved { "approved" } else { "held" };
        let start = of_one.start.to_rfc3339_opts(SecondsFormat::Secs, true);
        [
            start,
            format!("{:>5}", of_one.hours),
            format!("{amount:>8}"),
            state.to_owned(),
            of_one.instance.clone(),
            format!("{:?}", of_one.label).trim_matches('"').to_owned(),
        ]
    };
    let rows: Vec<_> = listed.iter().map(cells).collect();
    if width >= WIDE {
        return table(["SINCE", "HOURS", "  AMOUNT", "STATE", "ID", "INSTANCE"], &rows, width);
    }
    let narrow = |[start, hours, amount, state, _, label]: [String; 6]| [start, hours, amount, state, label];
    let rows: Vec<_> = rows.into_iter().map(narrow).collect();
    table(["SINCE", "HOURS", "  AMOUNT", "STATE", "INSTANCE"], &rows, width)
}

#[cfg(test)]
mod tests {
    use billing_jobs::{billing::Totals, billing::brake::Sum, money::Money};

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
        let bill = Bill {
            totals: Totals { charged: 1, charges: 1, held: 1, hours: 100, amount: Money(10_000) },
            as_of: DateTime::from_timestamp_secs(1_800_360_000).expect("a time"),
            stopped: None,
            uncharged: vec![Uncharged {
                reason: "instance_deleted".to_owned(),
                debt: Debt { instances: 2, hours: 3, amount: Money(300), unpriced: 1 },
            }],
            beyond_limit: vec![beyond("web-1", Some("1.00"), true), beyond("we\u{1b}b", None, false)],
            spike: Some(Spike { sum: Sum { amount: Money(1_000_000), hours: 100 }, limit: Money(300_000) }),
        };
        let report = Report {
            bill: &bill,
            took: Duration::from_millis(100),
            dry_run: true,
            approved_until: None,
            max_catch_up_hours: 72,
        };
        assert_eq!(
            report.in_words(80),
            "would charge 1.00 for 100 hours of 1 machines; 1 held; 0.1 s\n\
             2 instances deleted with up to 3 hours uncharged (0.03 and an unknown amount of 1)\n\
             \n\
             2 instances have more than 72 hours due:\n\
             SINCE                 HOURS    AMOUNT  STATE     INSTANCE\n\
             2027-01-15T08:00:00Z    100      1.00  approved  web-1\n\
             2027-01-15T08:00:00Z    100   unknown  held      we\\u{1b}b\n\
             a run would wait for an approval: at the current prices 100.00 is due for 100 hours, more than the 30.00 that \
             recent runs allow\n\
             help: check the prices, then run `billing-daemon bill --approve 100.00`\n"
        );
        let shown = report.in_json();
        assert_eq!(shown["beyond_limit"][1]["amount"], Value::Null);
        assert_eq!(shown["waits_for_approval"]["amount"], "100.00");
        assert_eq!(shown["uncharged"]["instance_deleted"]["hours"], 3);
        assert!(report.in_words(140).contains("00000000-0000-4000-8000-000000000001  web-1"));
    }
}
