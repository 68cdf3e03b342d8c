//! A fleet with random events, drawn from a seed: after each run the audit passes, and at the end every hour of
//! every instance was charged exactly once.

use std::sync::atomic::{AtomicU64, Ordering};

use billing_jobs::billing::{BillingSettings, Mode};
use billing_scheduler::StopReason;
use billing_test_support::{Db, Fleet, Instance, Plan, on_variants};
use chrono::TimeDelta;
use uuid::Uuid;

use super::{Daemon, Order, assert_sound, charged, minute};

const SEED: u64 = 1;
const STEPS: u64 = 40;

/// `SplitMix64`: small, and identical on every host and in every release.
struct Dice(u64);

impl Dice {
    /// One of the numbers from 0 to `sides` - 1.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        let sides = u64::try_from(among.len()).expect("a few");
        among[usize::try_from(self.roll(sides)).expect("a few")]
    }
}

struct World<'a> {
    db: &'a Db,
    fleet: Fleet<'a>,
    dice: Dice,
    orgs: Vec<Uuid>,
    plans: Vec<Uuid>,
    /// Instances, with the minute in which each was created.
    instances: Vec<(Uuid, i64)>,
    minute: i64,
}

impl<'a> World<'a> {
    async fn new(db: &'a Db) -> Self {
        let fleet = Fleet::new(db);
        let (mut orgs, mut plans) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            orgs.push(fleet.wallet("1.00").await);
        }
        for price in ["5.00", "73.00", "160.37"] {
            plans.push(fleet.plan(Plan::monthly(price)).await);
        }
        Self { db, fleet, dice: Dice(SEED), orgs, plans, instances: Vec::new(), minute: 0 }
    }

    /// Applies one random event to the fleet.
    async fn step(&mut self) {
        let (org, plan) = (self.dice.pick(&self.orgs), self.dice.pick(&self.plans));
        match self.dice.roll(12) {
            0..=2 => {
                let instance = Instance::new(org, plan, minute(self.minute));
                let instance = self.fleet.instance(instance).await;
                self.instances.push((instance, self.minute));
            }
            3 if !self.instances.is_empty() => {
                let (instance, _) = self.dice.pick(&self.instances);
                self.instances.retain(|(other, _)| *other != instance);
                self.fleet.delete(instance).await;
            }
            4 => self.fleet.reprice(plan, None).await,
            5 | 6 => {
                let cents = self.dice.roll(20_000);
                let price = format!("{}.{:02}", cents / 100, cents % 100);
                self.fleet.reprice(plan, Some(&price)).await;
            }
            7 if !self.instances.is_empty() => self.change("plan_id", plan).await,
            8 if !self.instances.is_empty() => self.change("organization_id", org).await,
            // The panel forgets how far its instance was billed.
            9 => self.db.execute("UPDATE vps_instances SET last_billed_at = NULL").await,
            _ => self.fleet.top_up(org, i64::try_from(self.dice.roll(200) * 100).expect("small")).await,
        }
    }

    async fn change(&mut self, column: &str, to: Uuid) {
        let (instance, _) = self.dice.pick(&self.instances);
        self.db.execute(&format!("UPDATE vps_instances SET {column} = '{to}' WHERE id = '{instance}'")).await;
    }

    /// A run that may stop between its batches, or a dry run; returns whether it finished.
    async fn bill(&mut self) -> bool {
        let settings = BillingSettings {
            batch_instances: self.dice.pick(&[Some(1), Some(2), None]),
            connections: self.dice.pick(&[Some(1), Some(3), None]),
            max_catch_up_hours: self.dice.pick(&[4, 1_000]),
            // Plans are changed at random here, for any other.
            spike_factor: 0,
            ..BillingSettings::default()
        };
        let daemon = Daemon::with(self.db, settings).await;
        let left = AtomicU64::new(self.dice.pick(&[1, 2, u64::MAX]));
        let stop = || (left.fetch_sub(1, Ordering::Relaxed) == 0).then_some(StopReason::Drain);
        let order = Order { stop: &stop, ..Order::by(minute(self.minute)) };
        if self.dice.roll(4) == 0 {
            daemon.run(Uuid::now_v7(), Mode::DryRun, &order).await.expect("a dry run finishes");
            return false;
        }
        daemon.carry_out(&order).await.expect("a run finishes").stopped.is_none()
    }

    /// Everything is paid for and priced again, and what is owed is charged.
    async fn settle(&mut self) {
        for org in &self.orgs {
            self.fleet.top_up(*org, "100000.00").await;
        }
        for plan in &self.plans {
            self.fleet.reprice(*plan, Some("73.00")).await;
        }
        let order = Order::approved_by(minute(self.minute));
        let bill = Daemon::of(self.db).await.carry_out(&order).await.expect("the last run finishes");
        assert_eq!(bill.totals.held, 0);
        for (instance, made) in &self.instances {
            let (_, hours, _) = charged(&self.fleet, *instance).await;
            assert_eq!(hours, (self.minute - made) / 60, "instance {instance}");
            let billed = self.fleet.last_billed_at(*instance).await;
            assert_eq!(billed, (hours > 0).then(|| minute(*made) + TimeDelta::hours(hours)));
        }
    }
}

async fn simulated_fleet_is_charged_exactly_once(db: &Db) {
    let mut world = World::new(db).await;
    for step in 0..STEPS {
        for _ in 0..world.dice.roll(4) {
            world.step().await;
        }
        world.minute += i64::try_from(world.dice.roll(150)).expect("small");
        if world.bill().await {
            println!("step {step}");
            assert_sound(db).await;
        }
    }
    world.settle().await;
    assert_sound(db).await;
}

on_variants!(simulated_fleet_is_charged_exactly_once: sqlite, g1_owner, g3_role);
