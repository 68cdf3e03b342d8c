//! What batches and runs charged, for each currency apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    currency::{Amounts, Currency},
    money::Money,
};

/// What a batch, or a run, charged and held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Instances with at least one charged hour.
    pub charged: u64,
    /// Charges, of which an instance has several if its price changed.
    pub charges: u64,
    /// Instances with hours that are due and not charged.
    pub held: u64,
    /// Charged hours.
    pub hours: u64,
    /// What was charged in each currency.
    pub sums: Sums,
}

impl Totals {
    /// The charged money.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        self.sums.amounts()
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.charged += other.charged;
        self.charges += other.charges;
        self.held += other.held;
        self.hours += other.hours;
        for (currency, sum) in other.sums.iter() {
            self.sums.add(currency, sum);
        }
    }
}

/// What was charged in one currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// How many charges.
    pub charges: i64,
    /// For how many hours of instances.
    pub hours: i64,
    /// How much, in ten-thousandths.
    pub amount: Money,
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.charges = self.charges.saturating_add(other.charges);
        self.hours = self.hours.saturating_add(other.hours);
        self.amount.0 = self.amount.0.saturating_add(other.amount.0);
    }
}

/// What was charged in each currency. As JSON it is an object, with amounts in ten-thousandths: the form in `billing_batches`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sums(BTreeMap<Currency, Sum>);

impl Sums {
    /// Adds `sum` to what there is in `currency`.
    pub fn add(&mut self, currency: Currency, sum: Sum) {
        *self.0.entry(currency).or_default() += sum;
    }

    /// What there is in `currency`.
    #[must_use]
    pub fn of(&self, currency: Currency) -> Option<Sum> {
        self.0.get(&currency).copied()
    }

    /// Of each currency the sum with the larger amount.
    #[must_use]
    pub(super) fn larger_of_each(&self, other: &Self) -> Self {
        let mut larger = self.clone();
        for (currency, sum) in other.iter() {
            let kept = larger.0.entry(currency).or_default();
            if sum.amount > kept.amount {
                *kept = sum;
            }
        }
        larger
    }

    /// The sums in the order of the currencies' codes.
    pub fn iter(&self) -> impl Iterator<Item = (Currency, Sum)> {
        self.0.iter().map(|(currency, sum)| (*currency, *sum))
    }

    /// The amounts alone.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        let mut amounts = Amounts::default();
        self.iter().for_each(|(currency, sum)| amounts.add(currency, sum.amount));
        amounts
    }

    /// The currency with the most charges, for a place that holds only one; of several the first. Free charges of organizations
    /// without a wallet count only if there is nothing else.
    #[must_use]
    pub fn main(&self) -> Option<(Currency, Money)> {
        let rank = |currency, sum: Sum| (currency != Currency::NONE, sum.charges);
        let first = self.iter().map(|(currency, sum)| rank(currency, sum)).max()?;
        self.iter()
            .find(|(currency, sum)| rank(*currency, *sum) == first)
            .map(|(currency, sum)| (currency, sum.amount))
    }

    /// The form in a run's details: an object with amounts as decimal texts.
    #[must_use]
    pub fn to_details(&self) -> Value {
        let sums = self.iter().map(|(currency, Sum { charges, hours, amount })| {
            (
                currency.to_string(),
                json!({ "charges": charges, "hours": hours, "amount": amount.to_string() }),
            )
        });
        Value::Object(sums.collect::<Map<_, _>>())
    }

    /// The sums in a run's details; what is not one is left out.
    #[must_use]
    pub fn of_details(details: &Value) -> Self {
        let mut sums = Self::default();
        let Some(currencies) = details.get("currencies").and_then(Value::as_object) else { return sums };
        for (currency, sum) in currencies {
            let count = |key| sum.get(key).and_then(Value::as_i64).unwrap_or_default();
            let amount = sum.get("amount").and_then(Value::as_str).and_then(|text| text.parse().ok());
            if let (Ok(currency), Some(amount)) = (currency.parse(), amount) {
                sums.add(currency, Sum { charges: count("charges"), hours: count("hours"), amount });
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stay_apart_by_currency() {
        let code = |code: &str| code.parse::<Currency>().expect("a code");
        let sum = |charges, amount| Sum { charges, hours: 2 * charges, amount: Money(amount) };
        let mut sums = Sums::default();
        assert_eq!(sums.main(), None);
        for (currency, charges, amount) in [("USD", 2, 100), ("EUR", 3, 40_000), ("USD", 1, 1)] {
            sums.add(code(currency), sum(charges, amount));
        }
        assert_eq!(sums.of(code("USD")), Some(sum(3, 101)));
        assert_eq!(sums.amounts().to_string(), "4.00 EUR, 0.0101 USD");
        assert_eq!(sums.main(), Some((code("EUR"), Money(40_000))), "the first of two with as many charges");
        let details = json!({ "currencies": sums.to_details(), "hours": 12 });
        assert_eq!(details["currencies"]["EUR"], json!({ "charges": 3, "hours": 6, "amount": "4.00" }));
        assert_eq!(Sums::of_details(&details), sums);
        let text = serde_json::to_string(&sums).expect("numbers are JSON");
        assert_eq!(serde_json::from_str::<Sums>(&text).expect("its own form"), sums);
    }
}
