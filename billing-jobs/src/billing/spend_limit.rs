//! The counter of a run: what its batches charged, and the ceiling that they may not exceed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    error::CeilingExceeded,
    totals::{CurrencyTotals, TotalsByCurrency},
};
use crate::{currency::Currency, money::Money};

/// What one run may charge.
#[derive(Debug, Default)]
pub(super) struct SpendLimit {
    /// A currency that is not in it has no limit, because no recent run charged anything in it.
    ceilings: BTreeMap<Currency, Money>,
    charged: Mutex<TotalsByCurrency>,
}

impl SpendLimit {
    /// A limit for each currency of `ceilings`; the others have none.
    pub(super) fn new(ceilings: BTreeMap<Currency, Money>) -> Self {
        Self { ceilings, charged: Mutex::default() }
    }

    /// Takes `sums` from what may still be charged.
    ///
    /// # Errors
    /// They are too much, and nothing was taken.
    pub(super) fn reserve(&self, sums: &TotalsByCurrency) -> Result<(), CeilingExceeded> {
        let mut charged = self.charged();
        for (currency, sum) in sums.iter() {
            let already = charged.of(currency).unwrap_or_default().amount;
            match self.ceilings.get(&currency) {
                Some(&ceiling) if already.0.saturating_add(sum.amount.0) > ceiling.0 => {
                    return Err(CeilingExceeded { currency, charged: already, ceiling });
                }
                _ => {}
            }
        }
        sums.iter().for_each(|(currency, sum)| charged.add(currency, sum));
        Ok(())
    }

    /// A batch that was admitted was rolled back.
    pub(super) fn cancel_reservation(&self, sums: &TotalsByCurrency) {
        let mut charged = self.charged();
        for (currency, CurrencyTotals { charges, hours, amount }) in sums.iter() {
            charged
                .add(currency, CurrencyTotals { charges: -charges, hours: -hours, amount: Money(-amount.0) });
        }
    }

    fn charged(&self) -> MutexGuard<'_, TotalsByCurrency> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::billing) fn code(code: &str) -> Currency {
        code.parse().expect("a code")
    }

    pub(in crate::billing) fn sums(sums: &[(&str, i64, i64)]) -> TotalsByCurrency {
        let mut all = TotalsByCurrency::default();
        for &(currency, amount, hours) in sums {
            all.add(code(currency), CurrencyTotals { charges: 1, hours, amount: Money(amount) });
        }
        all
    }

    #[test]
    fn batches_stay_below_ceiling_of_currency() {
        let ceilings = BTreeMap::from([(code("USD"), Money(100)), (code("EUR"), Money(7))]);
        let spend_limit = SpendLimit::new(ceilings);
        let usd = |amount| sums(&[("USD", amount, 1)]);
        spend_limit.reserve(&usd(60)).expect("within the ceiling");
        let exceeded = CeilingExceeded { currency: code("USD"), charged: Money(60), ceiling: Money(100) };
        assert_eq!(spend_limit.reserve(&sums(&[("EUR", 1, 1), ("USD", 41, 1)])), Err(exceeded));
        spend_limit.reserve(&usd(40)).expect("nothing was taken by what was refused");
        spend_limit.reserve(&usd(1)).expect_err("the ceiling is reached");
        spend_limit.cancel_reservation(&usd(60));
        spend_limit
            .reserve(&sums(&[("EUR", 7, 1), ("GBP", i64::MAX, 1), ("USD", 60, 1)]))
            .expect("GBP has no limit");
        SpendLimit::default().reserve(&usd(i64::MAX)).expect("nothing to compare with");
    }
}
