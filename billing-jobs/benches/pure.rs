//! What a run decides for one machine: its price, what its wallet covers, what is taken and what is carried on.

use std::hint::black_box;

use billing_jobs::{
    money::{Carry, Money, Rate, WalletUnit, cost, covered_hours},
    period::{HOUR, Rates},
    price::{BackupPrices, DailyBackupFactor, Plan, PriceKey, PriceList},
};
use criterion::{Criterion, criterion_group, criterion_main};

const FIVE_DOLLARS: Rate = Rate(5_000_000);
const UNIT: WalletUnit = WalletUnit::HundredthOfCent;

fn plans() -> impl Iterator<Item = Plan> {
    (0..20).map(|number| Plan {
        id: format!("70000000-0000-4000-8000-{number:012}"),
        provider_plan_id: format!("g6-{number}"),
        provider_id: None,
        base_price: Some(format!("{number}.00")),
        markup_price: Some("1.50".to_owned()),
        backups: Some(BackupPrices {
            price: Some("0.001370".to_owned()),
            upcharge: Some("0.000500".to_owned()),
        }),
        unreadable: None,
    })
}

fn price(criterion: &mut Criterion) {
    let list = PriceList::new(plans(), DailyBackupFactor::ONE);
    let by_name = PriceKey { plan_id: "g6-7", provider_id: None, backup_frequency: None };
    let plan_id = "70000000-0000-4000-8000-000000000007";
    let by_id = PriceKey { plan_id, backup_frequency: Some("daily"), ..by_name };
    criterion.bench_function("price by the plan's id", |bencher| {
        bencher.iter(|| list.rate(black_box(by_id)));
    });
    criterion.bench_function("price by the provider's name", |bencher| {
        bencher.iter(|| list.rate(black_box(by_name)));
    });
}

fn money(criterion: &mut Criterion) {
    criterion.bench_function("allocation: how many hours a wallet covers", |bencher| {
        bencher.iter(|| covered_hours(black_box(Money(1_000)), FIVE_DOLLARS, 72, Carry(12_345), UNIT));
    });
    criterion.bench_function("carry: what hours cost, and what is carried on", |bencher| {
        bencher.iter(|| cost(black_box(FIVE_DOLLARS), 1, Carry(12_345), UNIT));
    });
}

fn rates(criterion: &mut Criterion) {
    let constant = Rates::constant(FIVE_DOLLARS.into());
    let mut changed = constant.clone();
    changed.see(Rate(6_000_000).into(), 30 * HOUR);
    criterion.bench_function("72 hours at one rate", |bencher| {
        bencher.iter(|| black_box(&constant).rate_spans(0, 72).count());
    });
    criterion.bench_function("72 hours at two rates", |bencher| {
        bencher.iter(|| black_box(&changed).rate_spans(0, 72).count());
    });
}

criterion_group!(benches, price, money, rates);
criterion_main!(benches);
