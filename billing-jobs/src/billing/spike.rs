//! A spike: a run that would charge far more per hour than recent runs did.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::totals::CurrencyTotals;
use crate::{currency::Currency, money::Money};

/// The due amount of one currency, which exceeds the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excess {
    /// The currency of both amounts.
    pub currency: Currency,
    /// The due charges.
    #[serde(flatten)]
    pub due: CurrencyTotals,
    /// The amount that the recent runs allow.
    pub limit: Money,
}

impl fmt::Display for Excess {
    /// `20.00 USD for 2 hours`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} for {} hours", self.due.amount, self.currency, self.due.hours)
    }
}

/// A run that would charge far more than recent runs did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spike {
    /// Each currency whose due amount exceeds the limit. The amounts are at the known prices or, where that is more, at the current
    /// ones. An approval names these amounts.
    pub excesses: Vec<Excess>,
}

impl Spike {
    /// The options of `bill` that approve it.
    #[must_use]
    pub fn approval(&self) -> String {
        let option = |Excess { currency, due, .. }: &Excess| format!("--approve {} {currency}", due.amount);
        self.excesses.iter().map(option).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Spike {
    /// The due amounts, and what to check.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("at the current prices ")?;
        for (index, Excess { currency, due, limit }) in self.excesses.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(
                f,
                "{separator}{} {currency} is due for {} hours, more than the {limit} that recent runs allow",
                due.amount, due.hours
            )?;
        }
        f.write_str(": check the prices and `billing-daemon bill --dry-run`")
    }
}
