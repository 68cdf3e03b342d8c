//! Money as integers, from a monthly price to a wallet's balance: nothing is ever rounded twice or lost.
//!
//! The smallest unit, *u*, is 1/730 of a millionth of the currency. A monthly price of `p` costs `p / 730` an hour (a month
//! counts 730 hours), so an hour at a price known to the millionth is a whole number of u. A charge takes the u that are
//! owed, rounds *down* to what the wallet can hold and carries the rest: 730 hours of a $5 plan cost exactly $5.00.

use std::{fmt, str::FromStr};

use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde::{Deserialize, Serialize};

/// Hours in a billing month.
const HOURS_PER_MONTH: i64 = 730;
/// u in a ten-thousandth of the currency.
pub(crate) const U_PER_TEN_THOUSANDTH: i64 = 100 * HOURS_PER_MONTH;

/// An amount of the wallet's currency, in ten-thousandths of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(pub i64);

/// A price per hour, in u.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(pub i64);

/// A price per hour with its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HourlyRate {
    /// The whole price.
    pub total: Rate,
    /// The part of `total` that pays for backups.
    pub backup: Rate,
}

impl HourlyRate {
    /// The part that does not pay for backups.
    #[must_use]
    pub fn base(self) -> Rate {
        Rate(self.total.0.saturating_sub(self.backup.0))
    }
}

impl From<Rate> for HourlyRate {
    /// The price of an instance without backups.
    fn from(total: Rate) -> Self {
        Self { total, backup: Rate(0) }
    }
}

/// The owed amount that is smaller than the unit of the wallet, in u.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Carry(pub i64);

/// A price as the panel writes one, in millionths of the currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price(pub i64);

/// The smallest amount that a wallet can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalletUnit {
    /// A hundredth of the currency: two decimals.
    Cent,
    /// A ten-thousandth of the currency: four decimals.
    HundredthOfCent,
}

impl WalletUnit {
    pub(crate) fn ten_thousandths(self) -> i64 {
        match self {
            Self::Cent => 100,
            Self::HundredthOfCent => 1,
        }
    }

    pub(crate) fn u(self) -> i64 {
        self.ten_thousandths() * U_PER_TEN_THOUSANDTH
    }
}

/// Text that is not a valid amount of money.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an amount with at most {decimals} decimals")]
pub struct NoAmount {
    text: String,
    decimals: u32,
}

impl Price {
    /// The most decimals that a price can have.
    pub(crate) const DECIMALS: usize = 6;

    /// The hourly rate of a monthly price.
    #[must_use]
    pub fn monthly(self) -> Rate {
        Rate(self.0)
    }

    /// The rate of a price that is per hour already; `None` if it is too large to count in u.
    #[must_use]
    pub fn hourly(self) -> Option<Rate> {
        self.0.checked_mul(HOURS_PER_MONTH).map(Rate)
    }
}

impl FromStr for Price {
    type Err = NoAmount;

    fn from_str(text: &str) -> Result<Self, NoAmount> {
        scaled(text, 6).map(Self)
    }
}

impl FromStr for Money {
    type Err = NoAmount;

    fn from_str(text: &str) -> Result<Self, NoAmount> {
        scaled(text, 4).map(Self)
    }
}

impl Money {
    /// The balance of a wallet, as PostgreSQL writes a `numeric`.
    ///
    /// # Errors
    /// Why it is not one that can be charged.
    pub(crate) fn of_wallet(text: &str) -> Result<Self, &'static str> {
        text.parse().map_err(|_| {
            let number = text.strip_prefix('-').unwrap_or(text);
            let is_number = number.chars().all(|c| c.is_ascii_digit() || c == '.');
            let fraction = number.split_once('.').map_or("", |(_, fraction)| fraction.trim_end_matches('0'));
            match fraction.len() {
                _ if !is_number => "is not an amount of money",
                0..=4 => "is larger than a wallet holds",
                _ => "has more decimals than a wallet keeps",
            }
        })
    }
}

fn scaled(text: &str, decimals: u32) -> Result<i64, NoAmount> {
    let exact = Decimal::from_str_exact(text).ok().and_then(|amount| {
        let units = amount.checked_mul(Decimal::from(10_i64.pow(decimals)))?;
        units.fract().is_zero().then(|| units.to_i64())?
    });
    exact.ok_or_else(|| NoAmount { text: text.to_owned(), decimals })
}

impl fmt::Display for Money {
    /// Two decimals, or four where two are not enough: `12.50`, `0.0068`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = if self.0 % 100 == 0 { 2 } else { 4 };
        f.pad(&decimal_text(i128::from(self.0), 4, decimals))
    }
}

impl Rate {
    /// The price of an hour with `decimals` decimals, rounded half up: for people, never for a charge.
    #[must_use]
    pub fn per_hour(self, decimals: u32) -> String {
        let scale = 6_u32.max(decimals);
        let u_per_last_digit = i128::from(HOURS_PER_MONTH);
        let scaled = i128::from(self.0) * 10_i128.pow(scale - 6);
        decimal_text((scaled * 2 + u_per_last_digit).div_euclid(2 * u_per_last_digit), scale, decimals)
    }
}

/// `units` of 10^-`scale` with `decimals` decimals, rounded half up.
pub(crate) fn decimal_text(units: i128, scale: u32, decimals: u32) -> String {
    let drop = 10_i128.pow(scale - decimals);
    let rounded = (units + drop / 2).div_euclid(drop);
    let one = 10_i128.pow(decimals);
    let sign = if rounded < 0 { "-" } else { "" };
    let (whole, fraction) = (rounded.abs() / one, rounded.abs() % one);
    format!("{sign}{whole}.{fraction:0width$}", width = decimals as usize)
}

/// Serde form of an amount: decimal text, such as `"12.50"`.
pub(crate) mod as_decimal_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Money;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Money, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(amount: &Money, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(amount)
    }
}

/// What `hours` at `rate` cost on top of `carry`: whole units of the wallet, and the rest. `None` if the amount is too large
/// for a wallet.
#[must_use]
pub fn cost(rate: Rate, hours: i64, carry: Carry, unit: WalletUnit) -> Option<(Money, Carry)> {
    let owed = i128::from(carry.0) + i128::from(rate.0) * i128::from(hours);
    let unit_u = i128::from(unit.u());
    let amount = (owed / unit_u) * i128::from(unit.ten_thousandths());
    let rest = owed % unit_u;
    Some((Money(i64::try_from(amount).ok()?), Carry(i64::try_from(rest).ok()?)))
}

/// How many of `hours` at `rate` a `balance` covers, on top of `carry`. Hours that cost nothing yet are always covered.
#[must_use]
pub fn covered_hours(balance: Money, rate: Rate, hours: i64, carry: Carry, unit: WalletUnit) -> i64 {
    if rate.0 <= 0 {
        return hours;
    }
    let units = i128::from(balance.0.max(0) / unit.ten_thousandths());
    // The last u before one more unit than there is would be due.
    let limit = (units + 1) * i128::from(unit.u()) - 1 - i128::from(carry.0);
    let most = limit.max(0) / i128::from(rate.0);
    i64::try_from(most).unwrap_or(i64::MAX).min(hours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(text: &str) -> Price {
        text.parse().expect("an amount")
    }

    #[test]
    fn a_month_costs_exactly_its_price() {
        // The original charged 7.30, 0.00 and 21.90 for these.
        for (monthly, expected) in
            [("5.00", "5.00"), ("2.00", "2.00"), ("20.00", "20.00"), ("160.37", "160.37")]
        {
            for unit in [WalletUnit::Cent, WalletUnit::HundredthOfCent] {
                let (mut total, mut carry) = (Money(0), Carry(0));
                for _ in 0..730 {
                    let (amount, rest) = cost(price(monthly).monthly(), 1, carry, unit).expect("small");
                    (total, carry) = (Money(total.0 + amount.0), rest);
                }
                assert_eq!((total.to_string().as_str(), carry), (expected, Carry(0)), "{unit:?}");
            }
        }
    }

    #[test]
    fn price_parsing_is_exact() {
        let rows = [
            ("5.00", Some(5_000_000)),
            ("0.001370", Some(1_370)),
            ("-1", Some(-1_000_000)),
            ("0.0000001", None),
            ("NaN", None),
            ("", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Price>().ok(), expected.map(Price), "{text}");
        }
    }

    #[test]
    fn unusable_balance_has_reason() {
        let rows = [
            ("12.3400", Ok(Money(123_400))),
            ("-0.0001", Ok(Money(-1))),
            ("12.34567891", Err("has more decimals than a wallet keeps")),
            ("12.340000000", Ok(Money(123_400))),
            ("NaN", Err("is not an amount of money")),
            ("-Infinity", Err("is not an amount of money")),
            ("100000000000000000000", Err("is larger than a wallet holds")),
            ("100000000000000000000000000000000.00", Err("is larger than a wallet holds")),
        ];
        for (text, expected) in rows {
            assert_eq!(Money::of_wallet(text), expected, "{text}");
        }
    }

    #[test]
    fn amounts_show_their_decimals() {
        for (money, text) in
            [(125_000, "12.50"), (68, "0.0068"), (-68, "-0.0068"), (0, "0.00"), (-10_000, "-1.00")]
        {
            assert_eq!(Money(money).to_string(), text);
        }
        assert_eq!(price("5.00").monthly().per_hour(4), "0.0068");
        assert_eq!(price("5.00").monthly().per_hour(6), "0.006849");
        assert_eq!(price("0.001370").hourly().expect("small").per_hour(6), "0.001370");
    }

    #[test]
    fn a_balance_covers_whole_hours() {
        let five = price("5.00").monthly();
        let unit = WalletUnit::HundredthOfCent;
        // An hour costs 68.49 ten-thousandths: 68, then 69, then 68 ...
        for (balance, hours) in [(0, 0), (67, 0), (68, 1), (135, 1), (136, 2), (-5, 0), (1_000_000, 72)] {
            let covered = covered_hours(Money(balance), five, 72, Carry(0), unit);
            assert_eq!(covered, hours, "{balance}");
        }
        assert_eq!(covered_hours(Money(0), Rate(0), 5, Carry(0), unit), 5, "what is free needs no money");
        assert_eq!(covered_hours(Money(0), price("2.00").monthly(), 5, Carry(0), WalletUnit::Cent), 3);
    }
}
