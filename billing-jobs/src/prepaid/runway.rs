//! How many hours a wallet covers.

use crate::money::{Carry, Money, Rate, U_PER_TEN_THOUSANDTH, WalletUnit, cost, covered_hours};

/// How many hours a wallet covers. Negative: the hours that its shortfall amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runway {
    /// A number of hours.
    Hours(i64),
    /// Nothing is spent.
    Infinite,
}

impl Runway {
    /// The runway of `available` money, of which what is due and unpaid is subtracted, at `burn` per hour.
    #[must_use]
    pub fn of(available: Money, burn: Rate, unit: WalletUnit) -> Self {
        if burn.0 <= 0 {
            return Self::Infinite;
        }
        if available.0 >= 0 {
            return Self::Hours(covered_hours(available, burn, i64::MAX, Carry(0), unit));
        }
        let shortfall = i128::from(available.0).abs() * i128::from(U_PER_TEN_THOUSANDTH);
        let hours = (shortfall + i128::from(burn.0) - 1) / i128::from(burn.0);
        Self::Hours(i64::try_from(hours).map_or(i64::MIN, |hours| -hours))
    }

    /// Whether the wallet covers at least this many hours.
    #[must_use]
    pub fn covers(self, hours: i64) -> bool {
        self >= Self::Hours(hours)
    }

    /// The number of hours; none if nothing is spent.
    #[must_use]
    pub fn hours(self) -> Option<i64> {
        match self {
            Self::Hours(hours) => Some(hours),
            Self::Infinite => None,
        }
    }
}

/// What an organization has, owes and spends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The money in the wallet.
    pub balance: Money,
    /// By how much it may be overdrawn.
    pub credit_limit: Money,
    /// What is due and unpaid.
    pub owed: Money,
    /// The sum of the rates of the instances.
    pub burn: Rate,
}

impl Account {
    /// What is left of the balance and the credit once everything that is due is paid.
    #[must_use]
    pub fn available(&self) -> Money {
        Money(self.balance.0.saturating_add(self.credit_limit.0).saturating_sub(self.owed.0))
    }

    /// How many further hours the account covers.
    #[must_use]
    pub fn runway(&self, unit: WalletUnit) -> Runway {
        Runway::of(self.available(), self.burn, unit)
    }

    /// The account after `hours` without a payment, of which each is charged at once if the money suffices.
    #[must_use]
    pub fn after(&self, hours: i64, unit: WalletUnit) -> Self {
        let spent = cost(self.burn, hours, Carry(0), unit).map_or(i64::MAX, |(amount, _)| amount.0);
        let debt = self.owed.0.saturating_add(spent);
        let paid = debt.min(self.balance.0.saturating_add(self.credit_limit.0).max(0));
        Self { balance: Money(self.balance.0 - paid), owed: Money(debt - paid), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runway_counts_whole_hours() {
        const CENT: i64 = 100;
        // Ten cents an hour.
        let rate = Rate(73_000_000);
        for (available, burn, expected) in [
            (100 * CENT, rate, Runway::Hours(10)),
            (99 * CENT, rate, Runway::Hours(9)),
            (0, rate, Runway::Hours(0)),
            (-1, rate, Runway::Hours(-1)),
            (-10 * CENT, rate, Runway::Hours(-1)),
            (-11 * CENT, rate, Runway::Hours(-2)),
            (i64::MIN, Rate(1), Runway::Hours(i64::MIN)),
            (i64::MAX, Rate(1), Runway::Hours(i64::MAX)),
            (-10 * CENT, Rate(0), Runway::Infinite),
        ] {
            assert_eq!(
                Runway::of(Money(available), burn, WalletUnit::Cent),
                expected,
                "{available} {burn:?}"
            );
        }
        assert!(Runway::Infinite.covers(i64::MAX) && !Runway::Hours(0).covers(1));
    }

    #[test]
    fn unpaid_hours_become_owed() {
        let account = Account { balance: Money(2_500), burn: Rate(73_000_000), ..Account::default() };
        let later = account.after(4, WalletUnit::Cent);
        assert_eq!((later.balance, later.owed), (Money(0), Money(1_500)));
        assert_eq!(later.runway(WalletUnit::Cent), Runway::Hours(-2));
        let credit = Account { credit_limit: Money(5_000), ..account };
        let later = credit.after(4, WalletUnit::Cent);
        assert_eq!((later.balance, later.owed), (Money(-1_500), Money(0)));
        assert_eq!(later.runway(WalletUnit::Cent), Runway::Hours(3));
    }
}
