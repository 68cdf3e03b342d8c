//! The text forms of parameters, and their patterns for the JSON Schema.

/// A factor with at most one decimal, such as `"1.5"`, in tenths.
pub(crate) mod tenths {
    use rust_decimal::Decimal;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// The pattern for the JSON Schema.
    pub(crate) const PATTERN: &str = r"^\+?([0-9]+(\.[0-9]0*)?|\.[0-9]0*)$";

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let factor = text.parse::<Decimal>().ok().and_then(|factor| factor.checked_mul(Decimal::TEN));
        factor
            .filter(|tenths| tenths.fract().is_zero() && !tenths.is_sign_negative())
            .and_then(|tenths| i64::try_from(tenths).ok())
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "`{text}` is not a factor with at most one decimal, such as \"1.5\""
                ))
            })
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(tenths: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Decimal::new(*tenths, 1).normalize())
    }
}

/// The same where it may be missing.
pub(crate) mod maybe_tenths {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize, Serialize)]
    struct Tenths(#[serde(with = "super::tenths")] i64);

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
        Option::<Tenths>::deserialize(deserializer).map(|tenths| tenths.map(|Tenths(tenths)| tenths))
    }

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(tenths: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
        tenths.map(Tenths).serialize(serializer)
    }
}

/// An amount of money with at most four decimals, such as `"10.00"`.
pub(crate) mod money {
    use serde::{Deserialize, Deserializer, de};

    use crate::money::Money;
    pub(crate) use crate::money::as_decimal_text::serialize;

    /// The pattern for the JSON Schema.
    pub(crate) const PATTERN: &str = r"^\+?([0-9]+(\.[0-9]{0,4}0*)?|\.[0-9]{1,4}0*)$";

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Money, D::Error> {
        let text = String::deserialize(deserializer)?;
        let amount = text.parse::<Money>().ok().filter(|amount| amount.0 >= 0);
        amount.ok_or_else(|| de::Error::custom(format!("`{text}` is not an amount such as \"10.00\"")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    #[derive(serde::Deserialize)]
    struct Params(#[serde(with = "super::tenths")] i64);

    #[derive(serde::Deserialize)]
    struct Amount(#[serde(with = "super::money")] crate::money::Money);

    fn tenths(text: &str) -> Result<i64, String> {
        from_value(json!(text)).map(|Params(tenths)| tenths).map_err(|error| error.to_string())
    }

    #[test]
    fn factor_parsing_rejects_invalid_text() {
        for (text, expected) in
            [("1", 10), ("1.5", 15), ("+.50", 5), ("0", 0), ("922337203685477580.7", i64::MAX)]
        {
            assert_eq!(tenths(text), Ok(expected), "{text}");
        }
        for text in ["1.55", "-1", "one", "", "922337203685477580.8", "79228162514264337593543950335"] {
            let error = tenths(text).expect_err(text);
            assert!(error.contains(&format!("`{text}` is not a factor")), "{error}");
        }
    }

    #[test]
    fn amount_parsing_rejects_invalid_text() {
        let amount = |text: &str| from_value(json!(text)).map(|Amount(amount)| amount.0);
        for (text, expected) in [("10.00", 100_000), ("0", 0), ("0.0001", 1), ("+1.5", 15_000)] {
            assert_eq!(amount(text).expect(text), expected, "{text}");
        }
        for text in ["-1", "0.00001", "ten", "", "922337203685477.5808"] {
            let error = amount(text).expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}` is not an amount")), "{error}");
        }
    }
}
