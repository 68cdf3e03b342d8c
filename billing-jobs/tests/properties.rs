//! Money, periods and prices against an exact model: fractions of whole numbers of any size, worked out the long way.

use billing_jobs::{
    money::{Carry, Money, Price, Rate, WalletUnit, cost, covered_hours},
    period::{Change, HOUR, Micros, Rates, whole_hours},
    price::{BackupPrices, DailyBackupFactor, Plan, PriceKey, PriceList},
};
use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::{collection::vec, option, prelude::*};

/// An exact amount of the currency.
fn exact(numerator: i128, denominator: i128) -> BigRational {
    BigRational::new(BigInt::from(numerator), BigInt::from(denominator))
}

/// 1/730 of a millionth each.
fn of_u(u: i64) -> BigRational {
    exact(u.into(), 730_000_000)
}

fn of_money(money: Money) -> BigRational {
    exact(money.0.into(), 10_000)
}

fn times(rate: Rate, hours: i64) -> BigRational {
    of_u(rate.0) * BigRational::from(BigInt::from(hours))
}

/// What a wallet can hold at least.
fn smallest(unit: WalletUnit) -> BigRational {
    match unit {
        WalletUnit::Cent => exact(1, 100),
        WalletUnit::HundredthOfCent => exact(1, 10_000),
    }
}

fn round_down(amount: &BigRational, unit: WalletUnit) -> BigRational {
    (amount / smallest(unit)).floor() * smallest(unit)
}

fn units() -> impl Strategy<Value = WalletUnit> + Clone {
    prop_oneof![Just(WalletUnit::Cent), Just(WalletUnit::HundredthOfCent)]
}

/// Any number of at least 0, as often a usual one as a tiny or a huge one.
fn positive(usual: i64) -> impl Strategy<Value = i64> + Clone {
    prop_oneof![3 => 0..usual, 1 => 0..3_i64, 1 => Just(i64::MAX), 1 => 0..=i64::MAX]
}

fn rates() -> impl Strategy<Value = Rate> + Clone {
    positive(1_000_000_000).prop_map(Rate)
}

/// What a charge may carry: less than the wallet's unit.
fn with_carry() -> impl Strategy<Value = (WalletUnit, Carry)> {
    units().prop_flat_map(|unit| {
        let u = match unit {
            WalletUnit::Cent => 7_300_000_i64,
            WalletUnit::HundredthOfCent => 73_000,
        };
        (Just(unit), (0..u).prop_map(Carry))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn charge_rounds_down_and_carries_rest(
        rate in rates(),
        hours in positive(1_000),
        (unit, carry) in with_carry(),
    ) {
        let owed = of_u(carry.0) + times(rate, hours);
        let expected = round_down(&owed, unit);
        match cost(rate, hours, carry, unit) {
            Some((amount, rest)) => {
                prop_assert_eq!(of_money(amount), expected.clone());
                prop_assert_eq!(of_u(rest.0), owed - expected);
            }
            None => prop_assert!(expected > of_money(Money(i64::MAX)), "{expected} fits into a wallet"),
        }
    }

    #[test]
    fn split_hours_cost_the_same(
        spans in vec((rates(), 0..200_i64), 1..8),
        cuts in vec(1..20_i64, 1..40),
        (unit, carry) in with_carry(),
    ) {
        let spans: Vec<_> =
            spans.into_iter().map(|(rate, hours)| (Rate(rate.0 % (1 << 40)), hours)).collect();
        let owed = spans.iter().fold(of_u(carry.0), |sum, (rate, hours)| sum + times(*rate, *hours));
        let (mut total, mut rest) = (Money(0), carry);
        let mut cuts = cuts.into_iter().cycle();
        for (rate, mut hours) in spans {
            while hours > 0 {
                let part = hours.min(cuts.next().expect("a cycle has no end"));
                let (amount, carried) = cost(rate, part, rest, unit).expect("small enough");
                (total, rest) = (Money(total.0 + amount.0), carried);
                hours -= part;
            }
        }
        prop_assert_eq!(of_money(total), round_down(&owed, unit));
        prop_assert_eq!(of_money(total) + of_u(rest.0), owed);
    }

    #[test]
    fn month_costs_price_in_every_wallet(cents in 0..100_000_000_i64, unit in units()) {
        let rate = Price(cents * 10_000).monthly();
        prop_assert_eq!(cost(rate, 730, Carry(0), unit), Some((Money(cents * 100), Carry(0))));
    }

    #[test]
    fn balance_covers_exactly_payable_hours(
        balance in prop_oneof![3 => -1_000..1_000_000_i64, 1 => any::<i64>()],
        rate in rates(),
        hours in positive(1_000),
        (unit, carry) in with_carry(),
    ) {
        let covered = covered_hours(Money(balance), rate, hours, carry, unit);
        prop_assert!((0..=hours).contains(&covered));
        let costs = |hours: i64| round_down(&(of_u(carry.0) + times(rate, hours)), unit);
        let payable = of_money(Money(balance.max(0)));
        if covered > 0 && rate.0 > 0 {
            prop_assert!(costs(covered) <= payable, "{covered} hours cost {}", costs(covered));
        }
        if covered < hours {
            prop_assert!(costs(covered + 1) > payable, "one more costs {}", costs(covered + 1));
        }
    }

    #[test]
    fn covered_hours_grow_with_balance(
        balance in 0..=i64::MAX,
        more in 0..=i64::MAX,
        rate in rates(),
        dearer in rates(),
        hours in positive(1_000),
        (unit, carry) in with_carry(),
    ) {
        let covered = |balance, rate| covered_hours(Money(balance), rate, hours, carry, unit);
        prop_assert!(covered(balance.saturating_add(more), rate) >= covered(balance, rate));
        prop_assert!(covered(balance, Rate(rate.0.saturating_add(dearer.0))) <= covered(balance, rate));
    }

    #[test]
    fn any_database_value_never_overflows(
        numbers in [any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>()],
        unit in units(),
    ) {
        let [a, b, c, d] = numbers;
        for [a, b, c, d] in [[a, b, c, d], [i64::MAX, i64::MAX, i64::MAX, d], [i64::MIN, i64::MIN, i64::MIN, d]] {
            let _ = cost(Rate(a), b, Carry(c), unit);
            let _ = covered_hours(Money(d), Rate(a), b, Carry(c), unit);
            let _ = whole_hours(a, b);
            let _ = (Money(a).to_string(), Rate(a).per_hour(4), Rate(b).per_hour(6));
            let mut rates = Rates { first: Rate(a).into(), changes: vec![Change::from((b, Rate(c), Rate(d)))] };
            rates.see(Rate(d).into(), c);
            let _ = rates.rate_spans(a, b.max(0)).count();
            rates.forget_before(d);
        }
    }

    #[test]
    fn whole_hours_are_those_that_have_ended(
        start in prop_oneof![-10 * HOUR..10 * HOUR, any::<i64>()],
        now in prop_oneof![-10 * HOUR..10 * HOUR, any::<i64>()],
    ) {
        let hours = whole_hours(start, now);
        let elapsed = i128::from(now) - i128::from(start);
        let expected = (elapsed.max(0) / i128::from(HOUR)).min(i128::from(i64::MAX / HOUR));
        prop_assert_eq!(i128::from(hours), expected);
    }

    #[test]
    fn hour_has_rate_known_at_end(
        start in prop_oneof![4 => -3 * HOUR..3 * HOUR, 1 => i64::MIN..i64::MAX / 2],
        hours in 0..40_i64,
        sightings in vec((0..20 * HOUR, 0..4_i64), 0..8),
        billed in 0..40_i64,
    ) {
        let mut known = Rates::constant(Rate(7).into());
        let mut seen: Vec<(Micros, Rate)> = Vec::new();
        let mut at = start.saturating_sub(2 * HOUR);
        for (later, rate) in sightings {
            at = at.saturating_add(later);
            known.see(Rate(rate).into(), at);
            seen.push((at, Rate(rate)));
        }
        let end_of = |hour: i64| start.saturating_add((hour + 1) * HOUR);
        let expected: Vec<_> = (0..hours).map(|hour| rate_at(&seen, end_of(hour))).collect();
        prop_assert_eq!(by_hour(&known, start, hours), expected.clone());
        let highest = known.highest_after(end_of(0).saturating_sub(1));
        prop_assert!(expected.iter().all(|rate| *rate <= highest), "{:?} above {:?}", expected, highest);
        // What is billed may be forgotten.
        let billed = billed.min(hours);
        let through = start.saturating_add(billed * HOUR);
        known.forget_before(through);
        let rest = usize::try_from(billed).expect("small");
        prop_assert_eq!(by_hour(&known, through, hours - billed), &expected[rest..]);
    }

    #[test]
    fn rate_is_sum_of_prices(
        base in prices(8),
        markup in prices(8),
        hourly in prices(3),
        upcharge in prices(3),
        factor in 0..30_i64,
    ) {
        let plan = Plan {
            id: "plan".to_owned(),
            provider_plan_id: "provider".to_owned(),
            provider_id: None,
            base_price: Some(base.0),
            markup_price: Some(markup.0),
            backups: Some(BackupPrices { price: Some(hourly.0), upcharge: Some(upcharge.0) }),
            unreadable: None,
        };
        let list = PriceList::new([plan], DailyBackupFactor(factor));
        let machine = (base.1 + markup.1) / exact(730, 1);
        let backups = hourly.1 + upcharge.1;
        let rows = [
            (None, exact(0, 1)),
            (Some("none"), exact(0, 1)),
            (Some("weekly"), exact(1, 1)),
            (Some("daily"), exact(factor.into(), 10)),
        ];
        for (frequency, factor) in rows {
            let rate = list.rate(key("plan", frequency)).expect("prices that can be counted");
            prop_assert_eq!(of_u(rate.base().0), machine.clone());
            prop_assert_eq!(of_u(rate.backup.0), &backups * &factor);
            prop_assert_eq!(of_u(rate.total.0), &machine + &backups * &factor);
            prop_assert_eq!(list.rate(key("provider", frequency)), Ok(rate));
        }
    }

    #[test]
    fn price_parses_exactly_or_holds(
        text in option::of(prop_oneof![
            "-?[0-9]{1,25}(\\.[0-9]{0,12})?",
            "NaN|Infinity||1e5|0x1F|1,50| 5",
            "\\PC{0,8}",
        ]),
        other in "[0-9]{1,14}\\.[0-9]{2}",
    ) {
        let plan = |base: &Option<String>, markup: &Option<String>| Plan {
            id: "plan".to_owned(),
            base_price: base.clone(),
            markup_price: markup.clone(),
            ..Plan::default()
        };
        let number = Some(other.clone());
        for plan in [plan(&text, &number), plan(&number, &text)] {
            let Ok(rate) = PriceList::new([plan], DailyBackupFactor::ONE).rate(key("plan", None)) else { continue };
            let price = text.as_deref().and_then(decimal).expect("what is no number was priced");
            prop_assert!(price >= exact(0, 1), "{price} is negative");
            let sum = price + decimal(&other).expect("a number");
            prop_assert_eq!(of_u(rate.total.0) * exact(730, 1), sum);
        }
    }
}

fn key<'a>(plan_id: &'a str, backup_frequency: Option<&'a str>) -> PriceKey<'a> {
    PriceKey { plan_id, provider_id: None, backup_frequency }
}

/// The rule, for one hour: the last rate that was seen before the hour had ended.
fn rate_at(seen: &[(Micros, Rate)], end: Micros) -> Rate {
    seen.iter().rfind(|(at, _)| *at < end).map_or(Rate(7), |(_, rate)| *rate)
}

fn by_hour(rates: &Rates, start: Micros, hours: i64) -> Vec<Rate> {
    let spans = rates.rate_spans(start, hours);
    spans.flat_map(|span| vec![span.rate.total; usize::try_from(span.hours).expect("small")]).collect()
}

/// A price as the panel may write it, and what it is.
fn prices(digits: u32) -> impl Strategy<Value = (String, BigRational)> {
    (0..10_i64.pow(digits), 0..1_000_000_i64, 0..7_usize).prop_map(|(whole, millionths, decimals)| {
        let fraction = &format!("{millionths:06}")[..decimals];
        let text = if decimals == 0 { whole.to_string() } else { format!("{whole}.{fraction}") };
        let value = decimal(&text).expect("digits");
        (text, value)
    })
}

/// The value of a text of digits with a point.
fn decimal(text: &str) -> Option<BigRational> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{fraction}");
    if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let denominator = BigInt::from(10).pow(u32::try_from(fraction.len()).ok()?);
    Some(BigRational::new(all.parse::<BigInt>().ok()? * sign, denominator))
}
