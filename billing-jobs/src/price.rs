//! The price of an hour of an instance, or why it is unknown.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    hold::{Hold, Reason},
    money::{HourlyRate, Price, Rate},
    panel::Generation,
    period::{Micros, Rates},
};

/// A plan's prices in the panel: text, because a price may be missing or not be a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The plan's own id.
    pub id: String,
    /// The provider's name for it; instances may refer to either.
    pub provider_plan_id: String,
    /// The provider that offers it.
    pub provider_id: Option<String>,
    /// The monthly price.
    pub base_price: Option<String>,
    /// The monthly markup, which is added to it.
    pub markup_price: Option<String>,
    /// The hourly prices of backups; `None` where the panel has no backups.
    pub backups: Option<BackupPrices>,
    /// Why its row cannot be read; then it has no price.
    pub unreadable: Option<String>,
}

/// What backups of an instance cost per hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupPrices {
    /// The hourly price.
    pub price: Option<String>,
    /// The hourly upcharge, which is added to it.
    pub upcharge: Option<String>,
}

/// The factor on the price of daily backups, in tenths: exact, so that a rate stays a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DailyBackupFactor(pub i64);

impl DailyBackupFactor {
    /// Daily backups cost as much as weekly ones.
    pub const ONE: Self = Self(10);

    /// The factor by which a panel of this generation bills.
    #[must_use]
    pub fn of(generation: Generation) -> Self {
        match generation {
            Generation::G2 => Self(15),
            Generation::G1 | Generation::G3 => Self::ONE,
        }
    }
}

/// Which backups of an instance are paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backups {
    /// The instance has no backups.
    None,
    /// One backup a week.
    Weekly,
    /// One backup a day.
    Daily,
}

impl Backups {
    /// All backup frequencies, from none to daily.
    pub const ALL: [Self; 3] = [Self::None, Self::Weekly, Self::Daily];

    /// The panel's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Weekly => "weekly",
            Self::Daily => "daily",
        }
    }

    /// The one with this word; no backups for any other word.
    #[must_use]
    pub fn of(backup_frequency: Option<&str>) -> Self {
        match backup_frequency {
            Some("weekly") => Self::Weekly,
            Some("daily") => Self::Daily,
            _ => Self::None,
        }
    }
}

/// The columns of an instance that decide its price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriceKey<'a> {
    /// A plan's own id, or the provider's name for it.
    pub plan_id: &'a str,
    /// The provider of the instance, which decides between plans of the same name.
    pub provider_id: Option<&'a str>,
    /// `daily` or `weekly`; any other value means no backups.
    pub backup_frequency: Option<&'a str>,
}

/// A price that a run saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRate {
    /// The plan's own id.
    pub plan: String,
    /// The frequency of the backups that the rate includes.
    pub backups: Backups,
    /// When it was first seen.
    pub seen_at: Micros,
    /// The price of an hour.
    pub rate: HourlyRate,
}

/// A price that differs from the one that runs saw last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceChange {
    /// The plan's own id.
    pub plan: String,
    /// The frequency of the backups that both rates include.
    pub backups: Backups,
    /// The rate that runs saw last.
    pub before: Rate,
    /// The rate of the plan's row, which the next run uses.
    pub now: Rate,
}

/// Prices that no run saw before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRates {
    /// Of plans that never had another price.
    pub first: Vec<SeenRate>,
    /// Of plans that had another price before.
    pub changed: Vec<SeenRate>,
}

/// Of several plans with the same name, no more than these are named.
const NAMED: usize = 5;

/// All plans of the panel, with their rates, by both names that an instance may use.
#[derive(Clone, Debug, Default)]
pub struct PriceList {
    /// Ordered by id.
    plans: Vec<Priced>,
    by_id: HashMap<String, usize>,
    by_provider_plan_id: HashMap<String, Vec<usize>>,
}

/// A plan with its rate for each of [`Backups::ALL`].
#[derive(Clone, Debug)]
struct Priced {
    id: String,
    provider_id: Option<String>,
    rates: [Result<HourlyRate, Hold>; 3],
    /// Whether an instance can have other backups than none.
    has_backups: bool,
    /// The rates that runs saw; unset where none was seen.
    seen: [Option<Rates>; 3],
}

impl PriceList {
    /// Prices every plan once.
    #[must_use]
    pub fn new(plans: impl IntoIterator<Item = Plan>, daily_factor: DailyBackupFactor) -> Self {
        let mut plans: Vec<Plan> = plans.into_iter().collect();
        plans.sort_by(|one, other| one.id.cmp(&other.id));
        let mut list = Self::default();
        for (place, plan) in plans.into_iter().enumerate() {
            let rates = [None, Some(DailyBackupFactor::ONE), Some(daily_factor)];
            let rates = rates.map(|factor| hourly_rate(&plan, factor));
            list.by_id.insert(plan.id.clone(), place);
            // A name that is missing names nothing.
            if !plan.provider_plan_id.is_empty() {
                list.by_provider_plan_id.entry(plan.provider_plan_id).or_default().push(place);
            }
            let has_backups = plan.backups.is_some();
            let Plan { id, provider_id, .. } = plan;
            list.plans.push(Priced { id, provider_id, rates, has_backups, seen: Default::default() });
        }
        list
    }

    /// The same with what earlier runs saw, oldest first. Plans that the panel no longer has are left out.
    #[must_use]
    pub fn with_seen(mut self, seen: impl IntoIterator<Item = SeenRate>) -> Self {
        for SeenRate { plan, backups, seen_at, rate } in seen {
            let Some(place) = self.by_id.get(&plan) else { continue };
            let of_plan = &mut self.plans[*place].seen[backups as usize];
            match of_plan {
                Some(rates) => rates.see(rate, seen_at),
                None => *of_plan = Some(Rates::constant(rate)),
            }
        }
        self
    }

    /// The same as if no run had seen a price before.
    #[must_use]
    pub fn without_seen(mut self) -> Self {
        self.plans.iter_mut().for_each(|plan| plan.seen = Default::default());
        self
    }

    /// The prices that a run at `now` sees for the first time.
    #[must_use]
    pub fn unseen(&self, now: Micros) -> NewRates {
        let mut new = NewRates::default();
        for plan in &self.plans {
            for backups in
                Backups::ALL.into_iter().filter(|backups| plan.has_backups || *backups == Backups::None)
            {
                let Ok(rate) = plan.rates[backups as usize] else { continue };
                let seen_at = |at| SeenRate { plan: plan.id.clone(), backups, seen_at: at, rate };
                match &plan.seen[backups as usize] {
                    None => new.first.push(seen_at(now)),
                    Some(rates) if rates.latest() != rate => {
                        // A clock that was set back must not put a new price before an older one.
                        let last = rates.changes.last().map_or(Micros::MIN, |change| change.seen_at);
                        new.changed.push(seen_at(now.max(last.saturating_add(1))));
                    }
                    Some(_) => {}
                }
            }
        }
        new
    }

    /// The current prices that differ from those that runs saw last.
    #[must_use]
    pub fn changes(&self) -> Vec<PriceChange> {
        let change = |SeenRate { plan, backups, rate, .. }: SeenRate| {
            let seen = &self.plans[self.by_id[&plan]].seen[backups as usize];
            let before = seen.as_ref()?.latest().total;
            Some(PriceChange { plan, backups, before, now: rate.total })
        };
        self.unseen(Micros::MIN).changed.into_iter().filter_map(change).collect()
    }

    /// The rates of an instance that no run has priced: those that its plan had when runs saw it, and the one of `now`. Hours before
    /// the first of them have that one.
    pub fn rates(&self, key: PriceKey<'_>, now: Micros) -> Result<Rates, Hold> {
        let plan = self.plan(key)?;
        let backups = Backups::of(key.backup_frequency) as usize;
        let rate = plan.rates[backups].clone()?;
        let mut rates = plan.seen[backups].clone().unwrap_or(Rates::constant(rate));
        rates.see(rate, now);
        Ok(rates)
    }

    /// The rates that runs saw of the plan of an instance, for hours that only the past can price; unset if none was seen.
    #[must_use]
    pub fn seen_rates(&self, key: PriceKey<'_>) -> Option<Rates> {
        self.plan(key).ok()?.seen[Backups::of(key.backup_frequency) as usize].clone()
    }

    /// The highest rate that an instance of which no run has priced an hour can have in an hour that ends after `time`.
    pub fn highest_after(&self, key: PriceKey<'_>, time: Micros) -> Result<Rate, Hold> {
        let plan = self.plan(key)?;
        let backups = Backups::of(key.backup_frequency) as usize;
        let now = plan.rates[backups].clone()?.total;
        Ok(plan.seen[backups].as_ref().map_or(now, |rates| rates.highest_after(time).max(now)))
    }

    /// The rate of an instance.
    pub fn rate(&self, key: PriceKey<'_>) -> Result<HourlyRate, Hold> {
        self.plan(key)?.rates[Backups::of(key.backup_frequency) as usize].clone()
    }

    fn plan(&self, key: PriceKey<'_>) -> Result<&Priced, Hold> {
        if let Some(place) = self.by_id.get(key.plan_id) {
            return Ok(&self.plans[*place]);
        }
        match self.by_provider_plan_id.get(key.plan_id).map_or(&[][..], Vec::as_slice) {
            [] => Err(Hold::new(Reason::UnknownPlan, format!("no plan `{}`", key.plan_id))),
            [only] => Ok(&self.plans[*only]),
            several => self.choose(key, several),
        }
    }

    /// One of several plans with the name in `key`: of those of the provider, if there are any, and only if the price is the same.
    fn choose(&self, key: PriceKey<'_>, several: &[usize]) -> Result<&Priced, Hold> {
        let mut plans: Vec<&Priced> = several.iter().map(|place| &self.plans[*place]).collect();
        let is_of_provider = |plan: &&Priced| plan.provider_id.as_deref() == key.provider_id;
        if key.provider_id.is_some() && plans.iter().any(is_of_provider) {
            plans.retain(is_of_provider);
        }
        if plans.iter().all(|plan| plan.rates == plans[0].rates) {
            return Ok(plans[0]);
        }
        let named: Vec<&str> = plans.iter().take(NAMED).map(|plan| plan.id.as_str()).collect();
        let more = plans.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let detail = format!(
            "{} plans with different prices are called `{}`, and the instance's provider_id does not decide: {}{more}",
            plans.len(),
            key.plan_id,
            named.join(", "),
        );
        Err(Hold::new(Reason::AmbiguousPlan, detail))
    }
}

/// Whether `text` is a number that needs more than `decimals` decimals.
fn has_more_decimals(text: &str, decimals: usize) -> bool {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(whole, fraction)| {
        is_digits(whole) && is_digits(fraction) && fraction.trim_end_matches('0').len() > decimals
    })
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
        let wrong = match text.parse::<Price>() {
            Ok(price) if price.0 >= 0 => return Ok(price),
            Err(_) if has_more_decimals(text, Price::DECIMALS) => {
                format!("{name} {text} has more than {} decimals", Price::DECIMALS)
            }
            Ok(_) | Err(_) => format!("{name} is {text}"),
        };
        Err(Hold::new(Reason::InvalidPrice, format!("plan `{}`: {wrong}", plan.id)))
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
    Ok(HourlyRate { total, backup })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(id: &str, base: Option<&str>, markup: Option<&str>, backup: Option<&str>) -> Plan {
        Plan {
            id: id.to_owned(),
            provider_plan_id: format!("provider-{id}"),
            provider_id: None,
            base_price: base.map(str::to_owned),
            markup_price: markup.map(str::to_owned),
            backups: Some(BackupPrices {
                price: backup.map(str::to_owned),
                upcharge: Some("0.000500".to_owned()),
            }),
            unreadable: None,
        }
    }

    fn key<'a>(plan_id: &'a str, backup_frequency: Option<&'a str>) -> PriceKey<'a> {
        PriceKey { plan_id, provider_id: None, backup_frequency }
    }

    #[test]
    fn rate_adds_plan_markup_and_backups() {
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
                    list.rate(key(name, frequency)).expect("priced").total,
                    Rate(total),
                    "{name} {frequency:?}"
                );
            }
        }
    }

    #[test]
    fn unpriced_plan_has_hold_reason() {
        let plans = [
            plan("null", None, Some("0"), Some("0")),
            plan("nan", Some("NaN"), Some("0"), Some("0")),
            plan("negative", Some("-5.00"), Some("0"), Some("0")),
            plan("no-markup", Some("5.00"), None, Some("0")),
            plan("fine", Some("5.0000000"), Some("0.000000120"), Some("0")),
            plan("huge", Some("9000000000000"), Some("9000000000000"), Some("0")),
            plan("no-backup-price", Some("5.00"), Some("0"), None),
        ];
        let list = PriceList::new(plans, DailyBackupFactor::ONE);
        let rows = [
            ("null", None, Reason::NoPrice, "plan `null`: base_price is NULL"),
            ("nan", None, Reason::InvalidPrice, "plan `nan`: base_price is NaN"),
            ("negative", None, Reason::InvalidPrice, "plan `negative`: base_price is -5.00"),
            ("no-markup", None, Reason::NoPrice, "plan `no-markup`: markup_price is NULL"),
            (
                "fine",
                None,
                Reason::InvalidPrice,
                "plan `fine`: markup_price 0.000000120 has more than 6 decimals",
            ),
            ("huge", None, Reason::InvalidPrice, "plan `huge`: the price is too large"),
            (
                "no-backup-price",
                Some("daily"),
                Reason::NoPrice,
                "plan `no-backup-price`: backup_price_hourly is NULL",
            ),
            ("unknown", None, Reason::UnknownPlan, "no plan `unknown`"),
        ];
        for (id, frequency, reason, detail) in rows {
            assert_eq!(list.rate(key(id, frequency)), Err(Hold::new(reason, detail)), "{id}");
        }
        assert!(
            list.rate(key("no-backup-price", Some("none"))).is_ok(),
            "a price that is not needed may be missing"
        );
    }

    #[test]
    fn shared_name_needs_price_or_provider() {
        let named = |id: &str, base: &str, provider: Option<&str>| Plan {
            provider_plan_id: "nano".to_owned(),
            provider_id: provider.map(str::to_owned),
            ..plan(id, Some(base), Some("0"), Some("0"))
        };
        let same = [named("a", "5", None), named("b", "5.00", Some("p"))];
        let different = [named("d", "5", Some("p")), named("c", "6", Some("q")), named("e", "6", Some("q"))];
        let unclear = [named("a", "5", Some("p")), named("b", "6", Some("p")), named("c", "7", None)];
        let many = (0..9).map(|number| named(&format!("n{number}"), &number.to_string(), None)).collect();
        let held = |plans: usize, named: &str| {
            let detail = format!(
                "{plans} plans with different prices are called `nano`, and the instance's provider_id does not decide: {named}"
            );
            Err(Hold::new(Reason::AmbiguousPlan, detail))
        };
        let price = |millionths| Ok(HourlyRate::from(Rate(millionths)));
        let rows = [
            (same.to_vec(), "nano", None, price(5_000_000)),
            (same.to_vec(), "nano", Some("q"), price(5_000_000)),
            (different.to_vec(), "nano", Some("p"), price(5_000_000)),
            (different.to_vec(), "nano", Some("q"), price(6_000_000)),
            (different.to_vec(), "nano", Some("r"), held(3, "c, d, e")),
            (different.to_vec(), "nano", None, held(3, "c, d, e")),
            // The plan's own id decides, whatever the provider is.
            (different.to_vec(), "c", Some("p"), price(6_000_000)),
            (unclear.to_vec(), "nano", Some("p"), held(2, "a, b")),
            (unclear.to_vec(), "nano", None, held(3, "a, b, c")),
            (many, "nano", None, held(9, "n0, n1, n2, n3, n4 and 4 more")),
        ];
        for (plans, plan_id, provider_id, expected) in rows {
            let list = PriceList::new(plans, DailyBackupFactor::ONE);
            let key = PriceKey { plan_id, provider_id, backup_frequency: None };
            assert_eq!(list.rate(key), expected, "{plan_id} of {provider_id:?}");
        }
    }

    #[test]
    fn unseen_prices_are_first_ones_or_changes() {
        let hourly = |total: i64, backup: i64| HourlyRate { total: Rate(total), backup: Rate(backup) };
        let seen =
            |plan: &str, backups, seen_at, rate| SeenRate { plan: plan.to_owned(), backups, seen_at, rate };
        let bare = |id: &str, base| Plan { backups: None, ..plan(id, base, Some("0"), None) };
        let plans = [
            bare("same", Some("5")),
            bare("dearer", Some("6")),
            bare("new", Some("7")),
            bare("unpriced", None),
            plan("backed-up", Some("5"), Some("0"), Some("0.001")),
        ];
        let list = PriceList::new(plans, DailyBackupFactor(20)).with_seen([
            seen("same", Backups::None, 10, hourly(5_000_000, 0)),
            seen("dearer", Backups::None, 10, hourly(1, 0)),
            seen("dearer", Backups::None, 20, hourly(5_000_000, 0)),
            seen("unpriced", Backups::None, 10, hourly(5_000_000, 0)),
            seen("deleted", Backups::None, 10, hourly(5_000_000, 0)),
            seen("backed-up", Backups::None, 10, hourly(5_000_000, 0)),
            seen("backed-up", Backups::Weekly, 10, hourly(6_095_000, 1_095_000)),
            seen("backed-up", Backups::Daily, 10, hourly(6_095_000, 1_095_000)),
        ]);
        let from_to = |plan: &str, backups, before, now| PriceChange {
            plan: plan.to_owned(),
            backups,
            before: Rate(before),
            now: Rate(now),
        };
        let changes = [
            from_to("backed-up", Backups::Daily, 6_095_000, 7_190_000),
            from_to("dearer", Backups::None, 5_000_000, 6_000_000),
        ];
        assert_eq!(list.changes(), changes);
        // The clock was set back before `dearer` was seen last.
        for (now, at) in [(30, 30), (15, 21)] {
            let new = list.unseen(now);
            assert_eq!(new.first, [seen("new", Backups::None, now, hourly(7_000_000, 0))]);
            let expected = [
                seen("backed-up", Backups::Daily, now, hourly(7_190_000, 2_190_000)),
                seen("dearer", Backups::None, at, hourly(6_000_000, 0)),
            ];
            assert_eq!(new.changed, expected);
        }
        let rates = list.rates(key("dearer", None), 30).expect("priced");
        assert_eq!((rates.first, rates.changes.len()), (hourly(1, 0), 2));
        let highest = |time| list.highest_after(key("dearer", None), time).expect("priced");
        assert_eq!((highest(5), highest(25)), (Rate(6_000_000), Rate(6_000_000)));
        assert_eq!(list.rates(key("new", None), 30), Ok(Rates::constant(hourly(7_000_000, 0))));
        assert!(list.rates(key("unpriced", None), 30).is_err());
    }
}
