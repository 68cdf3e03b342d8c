//! What the parameters of several kinds have in common, as people write it and as editors are told.

use billing_scheduler::duration;
use schemars::{Schema, SchemaGenerator, json_schema};

/// A duration, to an editor.
pub(crate) fn duration_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": duration::PATTERN })
}

/// A factor with at most one decimal, to an editor.
pub(crate) fn tenths_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": r"^\+?([0-9]+(\.[0-9]0*)?|\.[0-9]0*)$" })
}

/// A factor with at most one decimal, such as `"1.5"`, in tenths.
pub(crate) mod tenths {
    use rust_decimal::Decimal;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let factor = text.parse::<Decimal>().ok().map(|factor| factor * Decimal::TEN);
        factor
            .filter(|tenths| tenths.fract().is_zero() && !tenths.is_sign_negative())
            .and_then(|tenths| i64::try_from(tenths).ok())
            .ok_or_else(|| {
                de::Error::custom(format!("`{text}` is no factor with at most one decimal, such as \"1.5\""))
            })
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(tenths: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Decimal::new(*tenths, 1).normalize())
    }
}
