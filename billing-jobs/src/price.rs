//! What an hour of an instance costs, or why that cannot be said.

use std::collections::HashMap;

use crate::{
    hold::{Hold, Reason},
    money::{Price, Rate},
};

/// A plan's prices as they stand in the panel: text, because a price may be missing or be no number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The plan's own id.
    pub id: String,
    /// The provider's name for it; instances may refer to either.
    pub provider_plan_id: String,
    /// Monthly.
    pub base_price: Option<String>,
    /// Monthly, on top.
    pub markup_price: Option<String>,
    /// Hourly; `None` where the panel has no backups.
    pub backups: Option<BackupPrices>,
    /// Why its row cannot be read; then it has no price.
    pub unreadable: Option<String>,
}

/// What backups of an instance cost per hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupPrices {
    /// Hourly.
    pub price: Option<String>,
    /// Hourly, on top.
    pub upcharge: Option<String>,
}

/// What an hour costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourlyRate {
    /// All of it.
    pub total: Rate,
    /// The machine's part.
    pub base: Rate,
    /// The backups' part.
    pub backup: Rate,
}

/// The factor on the price of daily backups, in tenths: exact, so that a rate stays a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DailyBackupFactor(pub i64);

impl Default for DailyBackupFactor {
    fn default() -> Self {
        Self(10)
    }
}

/// All plans of the panel, with their rates, by both names that an instance may use.
#[derive(Debug, Default)]
pub struct PriceList {
    by_id: HashMap<String, Priced>,
    by_provider_plan_id: HashMap<String, Vec<Priced>>,
}

/// The rate without backups, with weekly ones, with daily ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Priced {
    without: Result<HourlyRate, Hold>,
    weekly: Result<HourlyRate, Hold>,
    daily: Result<HourlyRate, Hold>,
}

impl PriceList {
    /// Prices every plan once.
    #[must_use]
    pub fn new(plans: impl IntoIterator<Item = Plan>, daily_factor: DailyBackupFactor) -> Self {
        let mut list = Self::default();
        for plan in plans {
            let priced = Priced {
                without: hourly_rate(&plan, None),
                weekly: hourly_rate(&plan, Some(DailyBackupFactor::default())),
                daily: hourly_rate(&plan, Some(daily_factor)),
            };
            // A name that is missing names nothing.
            if !plan.provider_plan_id.is_empty() {
                list.by_provider_plan_id.entry(plan.provider_plan_id).or_default().push(priced.clone());
            }
            list.by_id.insert(plan.id, priced);
        }
        list
    }

    /// The rate of an instance that refers to `plan_id` and has backups as `backup_frequency` says.
    pub fn rate(&self, plan_id: &str, backup_frequency: Option<&str>) -> Result<HourlyRate, Hold> {
        let priced = match self.by_id.get(plan_id) {
            Some(priced) => priced,
            None => match self.by_provider_plan_id.get(plan_id).map(Vec::as_slice) {
                None | Some([]) => {
                    return Err(Hold::new(Reason::UnknownPlan, format!("no plan `{plan_id}`")));
                }
                Some([only]) => only,
                Some([first, rest @ ..]) if rest.iter().all(|other| other == first) => first,
                Some(several) => {
                    let detail =
                        format!("{} plans with different prices are called `{plan_id}`", several.len());
                    return Err(Hold::new(Reason::AmbiguousPlan, detail));
                }
            },
        };
        match backup_frequency {
            Some("weekly") => priced.weekly.clone(),
            Some("daily") => priced.daily.clone(),
            _ => priced.without.clone(),
        }
    }
}

fn hourly_rate(plan: &Plan, backup_factor: Option<DailyBackupFactor>) -> Result<HourlyRate, Hold> {
    if let Some(unreadable) = &plan.unreadable {
        return Err(Hold::new(Reason::Unreadable, format!("plan `{}`: {unreadable}", plan.id)));
    }
    let too_large = || Hold::new(Reason::InvalidPrice, format!("plan `{}`: the price is too large", plan.id));
    let price = |name: &str, text: &Option<String>| {
        let text = text
            .as_deref()
            .ok_or_else(|| Hold::new(Reason::NoPrice, format!("plan `{}`: {name} is NULL", plan.id)))?;
        match text.parse::<Price>() {
            Ok(price) if price.0 >= 0 => Ok(price),
            Ok(_) | Err(_) => {
                Err(Hold::new(Reason::InvalidPrice, format!("plan `{}`: {name} is {text}", plan.id)))
            }
        }
    };
    let base = price("base_price", &plan.base_price)?.0;
    let markup = price("markup_price", &plan.markup_price)?.0;
    let base = Price(base.checked_add(markup).ok_or_else(too_large)?).monthly();
    let backup = match (&plan.backups, backup_factor) {
        (Some(backups), Some(factor)) => {
            let hourly = price("backup_price_hourly", &backups.price)?.0;
            let upcharge = price("backup_upcharge_hourly", &backups.upcharge)?.0;
            let rate = hourly.checked_add(upcharge).and_then(|sum| Price(sum).hourly());
            // 730 u a millionth: a tenth of any such rate is a whole number.
            let rate = rate.and_then(|rate| (rate.0 / 10).checked_mul(factor.0));
            Rate(rate.ok_or_else(too_large)?)
        }
        _ => Rate(0),
    };
    let total = Rate(base.0.checked_add(backup.0).ok_or_else(too_large)?);
    Ok(HourlyRate { total, base, backup })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(id: &str, base: Option<&str>, markup: Option<&str>, backup: Option<&str>) -> Plan {
        Plan {
            id: id.to_owned(),
            provider_plan_id: format!("provider-{id}"),
            base_price: base.map(str::to_owned),
            markup_price: markup.map(str::to_owned),
            backups: Some(BackupPrices {
                price: backup.map(str::to_owned),
                upcharge: Some("0.000500".to_owned()),
            }),
            unreadable: None,
        }
    }

    #[test]
    fn a_rate_is_plan_and_markup_by_730_and_backups_where_there_are_any() {
        let list =
            PriceList::new([plan("a", Some("5.00"), Some("1.50"), Some("0.001000"))], DailyBackupFactor(15));
        let rows = [
            (None, 6_500_000),
            (Some("none"), 6_500_000),
            (Some("weekly"), 6_500_000 + 730 * 1_500),
            (Some("daily"), 6_500_000 + 730 * 1_500 * 3 / 2),
        ];
        for (frequency, total) in rows {
            for name in ["a", "provider-a"] {
                assert_eq!(
                    list.rate(name, frequency).expect("priced").total,
                    Rate(total),
                    "{name} {frequency:?}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_priced_is_held_with_a_reason() {
        let plans = [
            plan("null", None, Some("0"), Some("0")),
            plan("nan", Some("NaN"), Some("0"), Some("0")),
            plan("negative", Some("-5.00"), Some("0"), Some("0")),
            plan("no-markup", Some("5.00"), None, Some("0")),
            plan("huge", Some("9000000000000"), Some("9000000000000"), Some("0")),
            plan("no-backup-price", Some("5.00"), Some("0"), None),
        ];
        let list = PriceList::new(plans, DailyBackupFactor::default());
        let rows = [
            ("null", None, Reason::NoPrice, "plan `null`: base_price is NULL"),
            ("nan", None, Reason::InvalidPrice, "plan `nan`: base_price is NaN"),
            ("negative", None, Reason::InvalidPrice, "plan `negative`: base_price is -5.00"),
            ("no-markup", None, Reason::NoPrice, "plan `no-markup`: markup_price is NULL"),
            ("huge", None, Reason::InvalidPrice, "plan `huge`: the price is too large"),
            (
                "no-backup-price",
                Some("daily"),
                Reason::NoPrice,
                "plan `no-backup-price`: backup_price_hourly is NULL",
            ),
            ("unheard-of", None, Reason::UnknownPlan, "no plan `unheard-of`"),
        ];
        for (id, frequency, reason, detail) in rows {
            assert_eq!(list.rate(id, frequency), Err(Hold::new(reason, detail)), "{id}");
        }
        assert!(
            list.rate("no-backup-price", Some("none")).is_ok(),
            "a price that is not needed may be missing"
        );
    }

    #[test]
    fn one_provider_name_for_two_prices_is_ambiguous_and_for_one_price_it_is_not() {
        let named = |id, base| Plan {
            provider_plan_id: "nano".to_owned(),
            ..plan(id, Some(base), Some("0"), Some("0"))
        };
        let same = PriceList::new([named("a", "5"), named("b", "5.00")], DailyBackupFactor::default());
        assert!(same.rate("nano", None).is_ok());
        let different = PriceList::new([named("a", "5"), named("b", "6")], DailyBackupFactor::default());
        assert_eq!(different.rate("nano", None).expect_err("ambiguous").reason, Reason::AmbiguousPlan);
        assert!(different.rate("a", None).is_ok(), "the plan's own id decides");
    }
}
