//! Checks `decide` against a model that charges hour by hour in exact fractions: every hour is charged once, at its price. The model is
//! one file of more than 500 lines because it is read as a whole.

use std::collections::HashMap;

use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    billing::{
        approvals::{Approvals, Scope},
        model::Meter,
        panel_time::PanelTime,
        totals::{CurrencyTotals, Totals},
    },
    money::Rate,
    price::{DailyBackupFactor, NewRates, Plan, SeenRate},
};

/// The organizations, in order: two that can pay, and three that cannot.
const ORGANIZATIONS: [&str; 5] = ["a", "b", "no-wallet", "null", "two"];

/// 2026-01-01T00:00:00Z.
const EPOCH: Micros = 1_767_225_600_000_000;

/// Something that happens between two runs, or a run.
#[derive(Clone, Debug)]
enum Event {
    TimePasses(Micros),
    TopUp { organization: usize, amount: i64 },
    PriceChanges { plan: usize, price: Option<i64> },
    PanelMovesAnchor { instance: usize, hours: i64 },
    Deleted { instance: usize },
    Run { approved: bool, refused: bool },
}

fn events() -> impl Strategy<Value = Event> {
    let instance = 0..6_usize;
    prop_oneof![
        4 => (0..5 * HOUR).prop_map(Event::TimePasses),
        1 => (0..200 * HOUR).prop_map(Event::TimePasses),
        2 => (0..2_usize, 0..100_000_i64).prop_map(|(organization, amount)| Event::TopUp { organization, amount }),
        2 => (0..3_usize, option::weighted(0.8, 0..90_000_000_i64))
            .prop_map(|(plan, price)| Event::PriceChanges { plan, price }),
        1 => (instance.clone(), 1..4_i64).prop_map(|(instance, hours)| Event::PanelMovesAnchor { instance, hours }),
        1 => instance.prop_map(|instance| Event::Deleted { instance }),
        6 => (any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(approved, refused)| Event::Run { approved, refused }),
    ]
}

/// What the database holds, and what it should.
struct World {
    now: Micros,
    unit: WalletUnit,
    /// The monthly price of each plan, in millionths of a currency unit.
    plans: [Option<i64>; 3],
    /// What runs have seen of them.
    seen: Vec<SeenRate>,
    balances: HashMap<&'static str, Money>,
    opened: HashMap<String, bool>,
    instances: Vec<ModelInstance>,
}

struct ModelInstance {
    row: Instance,
    plan: usize,
    /// Where the next hour begins that is not charged.
    next: Option<Micros>,
    /// What was seen when; hours before the first one have that rate.
    seen: Vec<(Micros, i64)>,
    /// When it was last seen with hours due.
    seen_at: Micros,
    carry: BigRational,
}

/// An amount of the currency.
fn exact(numerator: i64, denominator: i64) -> BigRational {
    BigRational::new(BigInt::from(numerator), BigInt::from(denominator))
}

fn of_money(money: Money) -> BigRational {
    exact(money.0, 10_000)
}

fn of_u(u: i64) -> BigRational {
    exact(u, 730_000_000)
}

impl World {
    fn new(unit: WalletUnit, balances: [i64; 2], instances: &[(usize, usize, Micros)]) -> Self {
        let instance =
            |(place, &(organization, plan, age)): (usize, &(usize, usize, Micros))| ModelInstance {
                row: Instance {
                    id: format!("instance {place}").into(),
                    organization: ORGANIZATIONS[organization].into(),
                    label: "web".to_owned(),
                    plan: format!("plan {plan}"),
                    backup_frequency: None,
                    provider: None,
                    last_billed_at: PanelTime::Null,
                    created_at: PanelTime::At(EPOCH - age),
                    gone: false,
                    meter: None,
                    held: None,
                    transfer: None,
                    unreadable: None,
                },
                plan,
                next: None,
                seen: Vec::new(),
                seen_at: 0,
                carry: exact(0, 1),
            };
        let mut instances: Vec<_> = instances.iter().enumerate().map(instance).collect();
        instances.sort_by_key(|instance| (instance.row.organization.clone(), instance.row.created_at.at()));
        Self {
            now: EPOCH,
            unit,
            plans: [Some(5_000_000), Some(123_456_789), Some(0)],
            seen: Vec::new(),
            balances: HashMap::from([("a", Money(balances[0])), ("b", Money(balances[1]))]),
            opened: HashMap::new(),
            instances,
        }
    }

    fn wallets(&self) -> Vec<Wallet> {
        let wallet = |id: &str, organization: &str, balance| Wallet {
            id: id.into(),
            organization: organization.into(),
            balance,
            currency: Ok(Currency::USD),
            opened: self.opened.contains_key(id),
        };
        vec![
            wallet("a", "a", Ok(self.balances["a"])),
            wallet("b", "b", Ok(self.balances["b"])),
            wallet("null", "null", Err(Hold::invalid_balance("null", "NULL", "is not an amount of money"))),
            wallet("first", "two", Ok(Money(1_000_000))),
            wallet("second", "two", Ok(Money(1_000_000))),
        ]
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::TimePasses(micros) => self.now += micros,
            Event::TopUp { organization, amount } => {
                let cents = if self.unit == WalletUnit::Cent { amount / 100 * 100 } else { amount };
                self.balances.entry(ORGANIZATIONS[organization]).and_modify(|balance| balance.0 += cents);
            }
            Event::PriceChanges { plan, price } => self.plans[plan] = price,
            Event::PanelMovesAnchor { instance, hours } => {
                let Some(ModelInstance { row, .. }) = self.instances.get_mut(instance) else { return Ok(()) };
                let anchor =
                    row.last_billed_at.at().or(row.created_at.at()).unwrap_or_default() + hours * HOUR;
                if anchor <= self.now {
                    row.last_billed_at = PanelTime::At(anchor);
                }
            }
            Event::Deleted { instance } => {
                if let Some(instance) = self.instances.get_mut(instance) {
                    instance.row.gone = true;
                    instance.row.last_billed_at = PanelTime::Null;
                    instance.row.created_at = PanelTime::Null;
                }
            }
            Event::Run { approved, refused } => return self.run(approved, refused),
        }
        Ok(())
    }

    fn run(&mut self, approved: bool, refused: bool) -> Result<(), TestCaseError> {
        let plans = self.plans.iter().enumerate().map(|(place, price)| Plan {
            id: format!("plan {place}"),
            base_price: price.map(|price| format!("{}.{:06}", price / 1_000_000, price % 1_000_000)),
            markup_price: Some("0".to_owned()),
            ..Plan::default()
        });
        let prices = PriceList::new(plans, DailyBackupFactor::ONE).with_seen(self.seen.clone());
        let mut approvals = Approvals::default();
        if approved {
            approvals.add(&Scope { all: true, ..Scope::default() }, self.now);
        }
        let terms = BillingTerms {
            as_of: self.now,
            prices: &prices,
            unit: self.unit,
            max_catch_up_hours: 72,
            approvals: &approvals,
            refused: refused.then_some("no"),
        };
        // What is gone is only read while it is held.
        let instances: Vec<_> = self
            .instances
            .iter()
            .map(|instance| &instance.row)
            .filter(|row| !row.gone || row.held.is_some())
            .cloned()
            .collect();
        let read: Vec<_> = instances.iter().map(|instance| instance.id.clone()).collect();
        let wallets = self.wallets();
        let posting = decide(&terms, &wallets, &instances);
        let mut balances = self.balances.clone();
        let mut expected_totals = Totals::default();
        let mut expected_amount = 0;
        let mut model = std::mem::take(&mut self.instances);
        for instance in model.iter_mut().filter(|instance| read.contains(&instance.row.id)) {
            let price = self.plans[instance.plan];
            let balance =
                if refused { None } else { balances.get_mut(instance.row.organization.to_string().as_str()) };
            let seen = self.seen.iter().filter(|seen| seen.plan == instance.row.plan);
            let seen: Vec<_> = seen.map(|seen| (seen.seen_at, seen.rate.total.0)).collect();
            let expected = instance.bill(&terms, &seen, price, balance);
            expected.compare(instance, &posting)?;
            expected_totals.charged += u64::from(!expected.charged.is_empty());
            expected_totals.held += u64::from(expected.left > 0 || expected.repair_refused);
            expected_totals.hours += expected.charged.len() as u64;
            instance.store(&posting);
        }
        for (organization, balance) in &balances {
            let before = self.balances[organization];
            let row = posting.wallets.iter().find(|row| row.wallet == Id::from(*organization));
            let written = row.map(|row| (row.before, row.after));
            prop_assert_eq!(written, (before != *balance).then_some((before, *balance)));
            prop_assert!(balance.0 >= before.0.min(0), "{organization} owes");
            let opening = posting.openings.iter().any(|wallet| *wallet == Id::from(*organization));
            prop_assert_eq!(opening, row.is_some() && !self.opened.contains_key(*organization));
            if opening {
                self.opened.insert((*organization).to_owned(), true);
            }
            expected_amount += before.0 - balance.0;
        }
        expected_totals.charges = posting.charges.len() as u64;
        for charge in &posting.charges {
            // Without one wallet only free hours are charged, and they have no currency.
            let payer = charge.instance.organization.to_string();
            let pays =
                self.wallets().iter().filter(|wallet| wallet.organization.to_string() == payer).count();
            let currency = if pays == 1 { Currency::USD } else { Currency::NONE };
            prop_assert_eq!(charge.currency, currency);
            expected_totals
                .currencies
                .add(currency, CurrencyTotals { charges: 1, hours: charge.hours, amount: charge.amount });
        }
        prop_assert_eq!(&posting.totals, &expected_totals);
        prop_assert_eq!(posting.charges.iter().map(|charge| charge.amount.0).sum::<i64>(), expected_amount);
        let NewRates { first, changed } = prices.unseen(self.now);
        self.seen.extend(first.into_iter().chain(changed));
        self.balances = balances;
        self.instances = model;
        Ok(())
    }
}

/// What one run should do about one instance.
struct Expected {
    /// The start and the rate of each hour.
    charged: Vec<(Micros, i64)>,
    amount: BigRational,
    /// Hours that are due and not charged, and what they cost.
    left: i64,
    left_amount: Option<BigRational>,
    /// Where the hours of this run begin; none if none is due.
    start: Option<Micros>,
    repair_refused: bool,
}

impl ModelInstance {
    /// The rule, hour by hour.
    fn bill(
        &mut self,
        terms: &BillingTerms<'_>,
        seen_before: &[(Micros, i64)],
        price: Option<i64>,
        balance: Option<&mut Money>,
    ) -> Expected {
        let mut expected = Expected {
            charged: Vec::new(),
            amount: exact(0, 1),
            left: 0,
            left_amount: None,
            start: None,
            repair_refused: false,
        };
        let start = if self.row.gone {
            self.next
        } else {
            match self.next {
                Some(next) => Some(self.row.last_billed_at.at().map_or(next, |billed| billed.max(next))),
                None => self.row.last_billed_at.at().max(self.row.created_at.at()),
            }
        };
        let until = if self.row.gone { self.seen_at } else { terms.as_of };
        let Some(start) = start.filter(|start| until - start >= HOUR) else {
            expected.repair_refused = terms.refused.is_some();
            return expected;
        };
        let hours = (until - start) / HOUR;
        // Hours that a run has evaluated and that only money is missing for wait for no approval.
        let unseen = match self.row.held {
            Some(Reason::InsufficientBalance) => (until - start.max(self.seen_at)).max(0) / HOUR,
            _ => hours,
        };
        if !self.row.gone {
            let Some(price) = price else {
                expected.left = hours;
                if self.next.is_some() {
                    self.seen_at = terms.as_of;
                }
                return expected;
            };
            if self.next.is_none() {
                self.seen.extend(seen_before);
            }
            self.seen.push((terms.as_of, price));
            self.seen_at = terms.as_of;
        }
        let rate_of = |hour: i64| {
            let end = start + (hour + 1) * HOUR;
            self.seen.iter().rfind(|(at, _)| *at < end).or(self.seen.first()).map_or(0, |(_, rate)| *rate)
        };
        let may = unseen <= terms.max_catch_up_hours || !terms.approvals.is_empty();
        let mut hour = 0;
        if terms.refused.is_none() && (0..hours).all(|hour| rate_of(hour) == 0) {
            expected.charged.extend((0..hours).map(|hour| (start + hour * HOUR, 0)));
            hour = hours;
        }
        if let Some(balance) = balance.filter(|_| may) {
            while hour < hours {
                let (amount, carry) = due_now(&self.carry, rate_of(hour), terms.unit);
                if amount > of_money(Money(balance.0.max(0))) {
                    break;
                }
                let cost = (&amount * exact(10_000, 1)).to_integer();
                balance.0 -= i64::try_from(cost).expect("less than the balance");
                expected.charged.push((start + hour * HOUR, rate_of(hour)));
                expected.amount += amount;
                self.carry = carry;
                hour += 1;
            }
        }
        expected.left = hours - hour;
        let owed = (hour..hours).fold(self.carry.clone(), |sum, hour| sum + of_u(rate_of(hour)));
        expected.left_amount = Some(due_now(&owed, 0, terms.unit).0);
        expected.start = Some(start);
        self.next = Some(start + hour * HOUR);
        expected
    }

    /// Writes what was posted into the instance's rows.
    fn store(&mut self, posting: &Posting<'_>) {
        let id = self.row.id.clone();
        if let Some(row) = posting.new_meters.iter().chain(&posting.meters).find(|row| row.instance == id) {
            let changes = row.rate_changes.as_deref().map(|text| serde_json::from_str(text).expect("ours"));
            let rates = row.rate.map(|first| Rates { first, changes: changes.unwrap_or_default() });
            self.row.meter = Some(Meter {
                billed_through: row.billed_through,
                carry: row.carry,
                rates,
                seen_at: row.seen_at,
                panel_debited_at: None,
            });
        }
        if let Some(row) = posting.anchors.iter().find(|row| row.instance == id) {
            self.row.last_billed_at = PanelTime::At(row.after);
        }
        self.row.held = match posting.holds.iter().find(|row| row.instance.id == id) {
            Some(hold) => Some(hold.reason.parse().expect("a reason")),
            None => {
                self.row.held.filter(|_| !posting.releases.contains(&id) && !posting.deleted.contains(&id))
            }
        };
    }
}

/// What is due for one more hour, and what is carried on.
fn due_now(carry: &BigRational, rate: i64, unit: WalletUnit) -> (BigRational, BigRational) {
    let smallest = match unit {
        WalletUnit::Cent => exact(1, 100),
        WalletUnit::HundredthOfCent => exact(1, 10_000),
    };
    let owed = carry + of_u(rate);
    let amount = (&owed / &smallest).floor() * smallest;
    (amount.clone(), owed - amount)
}

impl Expected {
    fn compare(&self, instance: &ModelInstance, posting: &Posting<'_>) -> Result<(), TestCaseError> {
        let id = &instance.row.id;
        let charges: Vec<_> = posting.charges.iter().filter(|charge| charge.instance.id == *id).collect();
        let hours: Vec<_> = charges
            .iter()
            .flat_map(|charge| {
                (0..charge.hours).map(|hour| (charge.start + hour * HOUR, charge.rate.total.0))
            })
            .collect();
        prop_assert_eq!(&hours, &self.charged, "{} is charged for other hours", id);
        let amount = charges.iter().fold(exact(0, 1), |sum, charge| sum + of_money(charge.amount));
        prop_assert_eq!(&amount, &self.amount, "{} is charged otherwise", id);
        let hold = posting.holds.iter().find(|hold| hold.instance.id == *id);
        prop_assert_eq!(hold.is_some(), self.left > 0 || self.repair_refused, "hold of {}", id);
        if let Some(hold) = hold {
            prop_assert_eq!(hold.hours, Some(self.left));
            prop_assert_eq!(hold.amount.map(of_money), self.left_amount.clone());
        }
        let released = posting.releases.contains(id) || posting.deleted.contains(id);
        prop_assert_eq!(
            released,
            instance.row.held.is_some() && self.left == 0 && !self.repair_refused,
            "release of {}",
            id
        );
        let mut meters = posting.new_meters.iter().chain(&posting.meters).filter(|row| row.instance == *id);
        let meter = meters.next();
        prop_assert!(meters.next().is_none(), "{id} has two meters");
        let before = instance.row.meter.as_ref().map(|meter| meter.billed_through);
        if let Some(meter) = meter {
            prop_assert_eq!(meter.billed_through_before, before);
            prop_assert_eq!(of_u(meter.carry.0), instance.carry.clone());
            prop_assert_eq!(meter.seen_at, instance.seen_at);
        }
        if self.start.is_some() {
            let through = meter.map(|meter| meter.billed_through);
            prop_assert_eq!(through, instance.next, "the watermark of {}", id);
            // The anchor is written, unless the panel has it.
            let anchor = posting.anchors.iter().find(|row| row.instance == *id).map(|row| row.after);
            let written = anchor.or(instance.row.last_billed_at.at()).or(instance.row.created_at.at());
            prop_assert!(instance.row.gone || posting_refused(posting, id) || written == instance.next);
        }
        Ok(())
    }
}

fn posting_refused(posting: &Posting<'_>, id: &Id) -> bool {
    posting.holds.iter().any(|hold| hold.instance.id == *id && hold.reason == Reason::Failed.as_str())
}

proptest! {
    #[test]
    fn every_hour_is_charged_once(
        unit in prop_oneof![Just(WalletUnit::Cent), Just(WalletUnit::HundredthOfCent)],
        balances in [-50..20_000_i64, 0..2_000_000_i64],
        instances in vec((0..5_usize, 0..3_usize, 0..30 * HOUR), 1..6),
        story in vec(events(), 1..40),
    ) {
        let mut world = World::new(unit, balances, &instances);
        for event in &story {
            world.happen(event)?;
        }
    }
}

#[test]
fn hours_since_approval_count_against_limit() {
    let plan = Plan {
        id: "plan".to_owned(),
        base_price: Some("5.00".to_owned()),
        markup_price: Some("0".to_owned()),
        ..Plan::default()
    };
    let prices = PriceList::new([plan], DailyBackupFactor::ONE);
    let world = World::new(WalletUnit::Cent, [1_000_000, 0], &[(0, 0, 0)]);
    let mut instance = world.instances[0].row.clone();
    instance.plan = "plan".to_owned();
    let instances = [instance];
    let wallets = world.wallets();
    let mut approvals = Approvals::default();
    approvals.add(&Scope { all: true, ..Scope::default() }, EPOCH + 100 * HOUR + 1);
    for (hours, charged) in [(72, 1), (100, 1), (172, 1), (173, 0)] {
        let terms = BillingTerms {
            as_of: EPOCH + hours * HOUR,
            prices: &prices,
            unit: WalletUnit::Cent,
            max_catch_up_hours: 72,
            approvals: &approvals,
            refused: None,
        };
        let posting = decide(&terms, &wallets, &instances);
        assert_eq!(posting.charges.len(), charged, "{hours} h after the start, approved after 100 h");
        let listed: Vec<_> = posting.beyond_limit.iter().map(|row| (row.hours, row.approved)).collect();
        assert_eq!(listed, if hours > 72 { vec![(hours, charged == 1)] } else { Vec::new() });
    }
}

/// How often memory is allocated to decide for so many instances, five to a wallet, each with an hour due.
fn allocations_for(count: u128) -> u64 {
    let plan = Plan {
        id: "plan".to_owned(),
        provider_plan_id: "g6".to_owned(),
        provider_id: None,
        base_price: Some("5.00".to_owned()),
        markup_price: Some("0.00".to_owned()),
        backups: None,
        unreadable: None,
    };
    let prices = PriceList::new([plan], DailyBackupFactor::ONE);
    let terms = BillingTerms {
        as_of: EPOCH + HOUR,
        prices: &prices,
        unit: WalletUnit::Cent,
        max_catch_up_hours: 72,
        approvals: &Approvals::default(),
        refused: None,
    };
    let id = |number| Id::Uuid(Uuid::from_u128(number));
    let wallets: Vec<_> = (0..count / 5)
        .map(|number| Wallet {
            id: id(number),
            organization: id(number),
            balance: Ok(Money(1_000_000)),
            currency: Ok(Currency::USD),
            opened: true,
        })
        .collect();
    let instances: Vec<_> = (0..count)
        .map(|number| Instance {
            id: id(number),
            organization: id(number / 5),
            label: "web".to_owned(),
            plan: "plan".to_owned(),
            backup_frequency: None,
            provider: None,
            last_billed_at: PanelTime::At(EPOCH),
            created_at: PanelTime::At(EPOCH),
            gone: false,
            meter: Some(Meter {
                billed_through: EPOCH,
                carry: Carry(0),
                rates: Some(Rates::constant(Rate(5_000_000).into())),
                seen_at: EPOCH,
                panel_debited_at: None,
            }),
            held: None,
            transfer: None,
            unreadable: None,
        })
        .collect();
    let allocated = allocation_counter::measure(|| {
        let posting = decide(&terms, &wallets, &instances);
        assert_eq!(posting.charges.len() as u128, count);
        assert_eq!(posting.anchors.len() as u128, count);
    });
    allocated.count_total
}

#[test]
fn decision_allocates_only_its_lists() {
    assert_eq!(allocations_for(50_000), allocations_for(5_000));
}
