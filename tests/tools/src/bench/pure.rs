//! The pure decisions in a loop of fixed length, for a tool that counts instructions: `valgrind --tool=callgrind`.

use std::{hint::black_box, time::Duration};

use billing_jobs::{
    money::{Carry, Money, Rate, WalletUnit, cost, covered_hours},
    price::{DailyBackupFactor, Plan, PriceKey, PriceList},
};
use billing_scheduler::{JobSpec, JobState, Schedule, due};
use chrono::{DateTime, TimeDelta, Utc};

/// Decides `iterations` times: whether jobs are due, what instances cost and what a wallet covers.
pub fn decide(iterations: u32) {
    let now: DateTime<Utc> = "2026-03-28T13:45:12Z".parse().expect("a valid instant");
    let schedules = [
        Schedule::every(Duration::from_hours(1)).expect("whole seconds"),
        Schedule::cron("0 30 2 * * 1-5", "Europe/Berlin").expect("a valid cron expression"),
    ];
    let specs = schedules.map(|schedule| JobSpec::new("billing", "billing", schedule));
    let states = [TimeDelta::zero(), TimeDelta::days(1)].map(|behind| JobState::at(now - behind));
    let plans = (0..20).map(|number| Plan {
        id: format!("70000000-0000-4000-8000-{number:012}"),
        provider_plan_id: format!("g6-{number}"),
        provider_id: None,
        base_price: Some(format!("{number}.00")),
        markup_price: Some("1.50".to_owned()),
        backups: None,
        unreadable: None,
    });
    let prices = PriceList::new(plans, DailyBackupFactor::ONE);
    let key = PriceKey { plan_id: "g6-7", provider_id: None, backup_frequency: None };
    let (rate, unit) = (Rate(5_000_000), WalletUnit::HundredthOfCent);
    for iteration in 0..iterations {
        for spec in &specs {
            for state in &states {
                let _ = black_box(due(spec, state, black_box(now)));
            }
        }
        let _ = black_box(prices.rate(black_box(key)));
        let balance = Money(1_000 + i64::from(iteration % 7));
        black_box(covered_hours(black_box(balance), rate, 72, Carry(12_345), unit));
        let _ = black_box(cost(black_box(rate), 1, Carry(12_345), unit));
    }
}
