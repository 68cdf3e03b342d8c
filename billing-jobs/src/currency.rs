//! Currencies, and amounts that are never added up across them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::money::Money;

/// A currency by its ISO 4217 code: three letters, A to Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

/// A text that is not a currency, or NULL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the currency {} is not three letters A to Z", .0.as_ref().map_or("NULL".to_owned(), |text| format!("`{text}`")))]
pub struct InvalidCurrency(pub Option<String>);

impl Currency {
    /// The code for "no currency": of an amount whose wallet is missing or names none.
    pub const NONE: Self = Self(*b"XXX");
    /// The default of the panel's wallets.
    pub const USD: Self = Self(*b"USD");

    /// The three letters of the code.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Letters from A to Z are UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The currency of a column, which may be NULL.
    ///
    /// # Errors
    /// The column is NULL or not three letters.
    pub fn of_column(text: Option<String>) -> Result<Self, InvalidCurrency> {
        text.as_deref().and_then(|text| text.parse().ok()).ok_or(InvalidCurrency(text))
    }
}

impl FromStr for Currency {
    type Err = InvalidCurrency;

    fn from_str(text: &str) -> Result<Self, InvalidCurrency> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_uppercase) => Ok(Self(code)),
            _ => Err(InvalidCurrency(Some(text.to_owned()))),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// One amount for each currency. As JSON it is an object of decimal texts: `{"EUR": "1.50", "USD": "12.00"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<Currency, Money>);

impl Amounts {
    /// Adds `amount` to what there is in `currency`.
    pub fn add(&mut self, currency: Currency, amount: Money) {
        let sum = self.0.entry(currency).or_default();
        sum.0 = sum.0.saturating_add(amount.0);
    }

    /// The amounts in the order of the currencies' codes.
    pub fn iter(&self) -> impl Iterator<Item = (Currency, Money)> {
        self.0.iter().map(|(currency, amount)| (*currency, *amount))
    }

    /// The amount in `currency`, which may be zero.
    #[must_use]
    pub fn of(&self, currency: Currency) -> Money {
        self.0.get(&currency).copied().unwrap_or_default()
    }
}

impl fmt::Display for Amounts {
    /// Each amount that is not zero with its currency: `1.50 EUR, 12.00 USD`; an amount without a currency is only a number. `0.00` if
    /// all are zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (currency, amount) in self.iter().filter(|(_, amount)| amount.0 != 0) {
            write!(f, "{separator}{amount}")?;
            if currency != Currency::NONE {
                write!(f, " {currency}")?;
            }
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("0.00") } else { Ok(()) }
    }
}

impl Serialize for Amounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(currency, amount)| (currency, amount.to_string())))
    }
}

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = BTreeMap::<Currency, String>::deserialize(deserializer)?.into_iter();
        let amounts = texts.map(|(currency, text)| Ok((currency, text.parse().map_err(D::Error::custom)?)));
        amounts.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currency_is_three_capital_letters() {
        for (text, is_one) in [
            ("USD", true),
            ("EUR", true),
            ("usd", false),
            ("US", false),
            ("USDT", false),
            ("U D", false),
            ("Ü", false),
        ] {
            assert_eq!(
                text.parse::<Currency>().map(|currency| currency.to_string()).ok().as_deref() == Some(text),
                is_one
            );
        }
        let missing = Currency::of_column(None).expect_err("NULL is not a currency");
        assert_eq!(missing.to_string(), "the currency NULL is not three letters A to Z");
    }

    #[test]
    fn amounts_stay_apart_by_currency() {
        let [eur, usd] = ["EUR", "USD"].map(|code| code.parse::<Currency>().expect("a code"));
        let mut amounts = Amounts::default();
        assert_eq!(amounts.to_string(), "0.00");
        for (currency, amount) in [(usd, 120_000), (eur, 15_000), (usd, 1), (Currency::NONE, 0)] {
            amounts.add(currency, Money(amount));
        }
        assert_eq!(amounts.to_string(), "1.50 EUR, 12.0001 USD");
        assert_eq!(
            serde_json::to_value(&amounts).expect("texts are JSON"),
            serde_json::json!({ "EUR": "1.50", "USD": "12.0001", "XXX": "0.00" })
        );
        amounts.add(Currency::NONE, Money(8_161));
        assert_eq!(amounts.to_string(), "1.50 EUR, 12.0001 USD, 0.8161");
    }
}
