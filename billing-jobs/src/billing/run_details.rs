//! The details of a billing run: the JSON in its row of `scheduler_runs`, which metrics, `status` and the spike guard read.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BillReport, BillingError, FindingsByKind, FirstSeenPrice, spike::Spike, totals::Totals};
use crate::{
    currency::{Amounts, Currency},
    money::{Money, as_decimal_text},
    uncharged::Debt,
};

/// The details list at most this many first prices.
const MAX_LISTED_PRICES: usize = 20;

/// The details of a billing run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunDetails {
    /// What the run charged; unset if it did not finish.
    #[serde(flatten)]
    pub totals: Option<Totals>,
    /// Hours that ended by then were due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<DateTime<Utc>>,
    /// The debts that the run closed without a charge, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub uncharged: BTreeMap<String, Debt>,
    /// The rows that could not be read or were refused.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub findings: FindingsByKind,
    /// The first prices of plans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen_prices: Option<FirstSeenPrices>,
    /// The amounts that wait for an approval.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub spike: BTreeMap<Currency, SpikeAmount>,
    /// Whether the run ended because the panel guard was missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unguarded: bool,
}

/// The first prices that a run saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstSeenPrices {
    /// The number of all of them.
    pub count: usize,
    /// The first of them.
    pub listed: Vec<FirstSeenPrice>,
}

/// An amount in one currency that waits for an approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpikeAmount {
    /// The due amount.
    #[serde(with = "as_decimal_text")]
    pub amount: Money,
    /// The due hours.
    pub hours: i64,
    /// The amount that a run may charge without an approval.
    #[serde(with = "as_decimal_text")]
    pub limit: Money,
}

impl RunDetails {
    /// The details in a row of the history; empty if `details` belong to a run of another kind or are damaged.
    #[must_use]
    pub fn from_json(details: &Value) -> Self {
        Self::deserialize(details).unwrap_or_default()
    }

    /// The JSON of these details; null if there is nothing to show.
    ///
    /// # Panics
    /// Never: every key is a text.
    #[must_use]
    pub fn to_json(&self) -> Value {
        if *self == Self::default() {
            return Value::Null;
        }
        serde_json::to_value(self).expect("details have text keys")
    }

    /// The details of a run that finished.
    #[must_use]
    pub fn finished(report: &BillReport) -> Self {
        let uncharged = report.uncharged.iter();
        Self {
            totals: Some(report.totals.clone()),
            as_of: Some(report.as_of),
            uncharged: uncharged.map(|closed| (closed.reason.clone(), closed.debt.clone())).collect(),
            findings: report.findings.clone(),
            first_seen_prices: FirstSeenPrices::new(&report.first_seen_prices),
            ..Self::default()
        }
    }

    /// The details of a run that has not finished, or that `error` ended: the first prices that it recorded, amounts that wait for an
    /// approval, a missing panel guard.
    #[must_use]
    pub fn unfinished(first_prices: &[FirstSeenPrice], error: Option<&BillingError>) -> Self {
        let first_seen_prices = FirstSeenPrices::new(first_prices);
        let spike = match error {
            Some(BillingError::Spike(spike)) => Self::of_spike(spike).spike,
            _ => BTreeMap::new(),
        };
        let unguarded = matches!(error, Some(BillingError::Unguarded));
        Self { first_seen_prices, spike, unguarded, ..Self::default() }
    }

    /// The details of a run that waits for an approval of `spike`.
    #[must_use]
    pub fn of_spike(spike: &Spike) -> Self {
        let amounts = spike.excesses.iter().map(|excess| {
            let amount =
                SpikeAmount { amount: excess.due.amount, hours: excess.due.hours, limit: excess.limit };
            (excess.currency, amount)
        });
        Self { spike: amounts.collect(), ..Self::default() }
    }

    /// The amounts that wait for an approval, if any do.
    #[must_use]
    pub fn pending_amounts(&self) -> Option<Amounts> {
        let mut amounts = Amounts::default();
        self.spike.iter().for_each(|(currency, spike)| amounts.add(*currency, spike.amount));
        Some(amounts).filter(|_| !self.spike.is_empty())
    }
}

impl FirstSeenPrices {
    fn new(prices: &[FirstSeenPrice]) -> Option<Self> {
        let listed = prices.iter().take(MAX_LISTED_PRICES).cloned().collect();
        (!prices.is_empty()).then_some(Self { count: prices.len(), listed })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn run_details_survive_json() {
        let finished = json!({
            "charged": 2, "charges": 3, "held": 1, "hours": 9, "as_of": "2026-01-01T00:00:00Z",
            "currencies": { "EUR": { "charges": 3, "hours": 9, "amount": "0.0901" } },
            "uncharged": {
                "instance_deleted": { "instances": 1, "hours": 4, "amounts": { "EUR": "0.02" }, "unpriced": 0 },
            },
            "findings": { "unreadable": { "count": 1, "listed": ["plan `x`"] } },
            "first_seen_prices": {
                "count": 1, "listed": [{ "plan": "x", "backups": "none", "hourly_price": "0.01" }],
            },
        });
        let waiting = json!({ "spike": { "USD": { "amount": "20.00", "hours": 2, "limit": "10.00" } } });
        for details in [finished, waiting, json!({ "unguarded": true }), Value::Null] {
            assert_eq!(RunDetails::from_json(&details).to_json(), details);
        }
    }

    #[test]
    fn foreign_details_are_empty() {
        for details in [json!({ "checked": 5 }), json!("text"), json!({ "charged": "x", "hours": 3 })] {
            assert_eq!(RunDetails::from_json(&details), RunDetails::default(), "{details}");
        }
    }
}
