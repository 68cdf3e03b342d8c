//! What batches and runs charged, for each currency apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    currency::{Amounts, Currency},
    money::Money,
};

/// What a batch, or a run, charged and held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Instances with at least one charged hour.
    pub charged: u64,
    /// Charges; an instance has several if its price changed.
    pub charges: u64,
    /// Instances with hours that are due and not charged.
    pub held: u64,
    /// The charged hours of all instances together.
    pub hours: u64,
    /// The charges of each currency. In JSON their amounts are decimal texts.
    #[serde(with = "decimal_texts")]
    pub currencies: TotalsByCurrency,
}

impl Totals {
    /// The charged money.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        self.currencies.amounts()
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.charged += other.charged;
        self.charges += other.charges;
        self.held += other.held;
        self.hours += other.hours;
        self.currencies += &other.currencies;
    }
}

/// What was charged in one currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrencyTotals {
    /// The number of charges.
    pub charges: i64,
    /// The hours of all instances together.
    pub hours: i64,
    /// The amount, in ten-thousandths.
    pub amount: Money,
}

impl std::ops::AddAssign for CurrencyTotals {
    fn add_assign(&mut self, other: Self) {
        self.charges = self.charges.saturating_add(other.charges);
        self.hours = self.hours.saturating_add(other.hours);
        self.amount.0 = self.amount.0.saturating_add(other.amount.0);
    }
}

/// What was charged in each currency. As JSON it is an object with amounts in ten-thousandths, as in `billing_batches`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TotalsByCurrency(BTreeMap<Currency, CurrencyTotals>);

impl TotalsByCurrency {
    /// Adds `totals` to those of `currency`.
    pub fn add(&mut self, currency: Currency, totals: CurrencyTotals) {
        *self.0.entry(currency).or_default() += totals;
    }

    /// The totals of `currency`.
    #[must_use]
    pub fn of(&self, currency: Currency) -> Option<CurrencyTotals> {
        self.0.get(&currency).copied()
    }

    /// For each currency the totals with the larger amount.
    #[must_use]
    pub(super) fn larger_of_each(&self, other: &Self) -> Self {
        let mut larger = self.clone();
        for (currency, totals) in other.iter() {
            let kept = larger.0.entry(currency).or_default();
            if totals.amount > kept.amount {
                *kept = totals;
            }
        }
        larger
    }

    /// The totals in the order of the currencies' codes.
    pub fn iter(&self) -> impl Iterator<Item = (Currency, CurrencyTotals)> {
        self.0.iter().map(|(currency, totals)| (*currency, *totals))
    }

    /// The amounts in each currency, without the counts.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        let mut amounts = Amounts::default();
        self.iter().for_each(|(currency, totals)| amounts.add(currency, totals.amount));
        amounts
    }

    /// The currency with the most charges, for a place that has room for one; of several the first. Free charges of organizations
    /// without a wallet count only if there are no others.
    #[must_use]
    pub fn main(&self) -> Option<(Currency, Money)> {
        let rank = |currency, totals: CurrencyTotals| (currency != Currency::NONE, totals.charges);
        let first = self.iter().map(|(currency, totals)| rank(currency, totals)).max()?;
        self.iter()
            .find(|(currency, totals)| rank(*currency, *totals) == first)
            .map(|(currency, totals)| (currency, totals.amount))
    }
}

impl std::ops::AddAssign<&Self> for TotalsByCurrency {
    fn add_assign(&mut self, other: &Self) {
        other.iter().for_each(|(currency, totals)| self.add(currency, totals));
    }
}

/// The JSON form in the details of a run.
mod decimal_texts {
    use serde::{Deserializer, Serializer};

    use super::{BTreeMap, Currency, CurrencyTotals, Deserialize, Money, Serialize, TotalsByCurrency};
    use crate::money::as_decimal_text;

    #[derive(Serialize, Deserialize)]
    struct Entry {
        charges: i64,
        hours: i64,
        #[serde(with = "as_decimal_text")]
        amount: Money,
    }

    pub(super) fn serialize<S: Serializer>(totals: &TotalsByCurrency, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(totals.iter().map(|(currency, CurrencyTotals { charges, hours, amount })| {
            (currency, Entry { charges, hours, amount })
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<TotalsByCurrency, D::Error> {
        let entries = BTreeMap::<Currency, Entry>::deserialize(from)?.into_iter();
        let totals = entries.map(|(currency, Entry { charges, hours, amount })| {
            (currency, CurrencyTotals { charges, hours, amount })
        });
        Ok(TotalsByCurrency(totals.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_stay_separate_by_currency() {
        let code = |code: &str| code.parse::<Currency>().expect("a code");
        let totals = |charges, amount| CurrencyTotals { charges, hours: 2 * charges, amount: Money(amount) };
        let mut all = TotalsByCurrency::default();
        assert_eq!(all.main(), None);
        for (currency, charges, amount) in [("USD", 2, 100), ("EUR", 3, 40_000), ("USD", 1, 1)] {
            all.add(code(currency), totals(charges, amount));
        }
        assert_eq!(all.of(code("USD")), Some(totals(3, 101)));
        assert_eq!(all.amounts().to_string(), "4.00 EUR, 0.0101 USD");
        assert_eq!(all.main(), Some((code("EUR"), Money(40_000))), "the first of two with as many charges");
        let text = serde_json::to_string(&all).expect("numbers are JSON");
        assert_eq!(serde_json::from_str::<TotalsByCurrency>(&text).expect("the same form"), all);
    }
}
