use proptest::prelude::*;

use super::*;
use crate::{
    period::HOUR,
    prepaid::window::{Window, WindowParams},
};

/// 2026-11-27T00:00:00Z.
const NOW: Micros = 1_795_737_600_000_000;

/// One organization, whose facts a test changes between two checks.
#[derive(Clone, Debug)]
struct Customer {
    rules: Rules,
    mode: Mode,
    standing: Standing,
    facts: Facts,
    /// Whether what is sent is delivered at once.
    mail: bool,
}

impl Customer {
    fn new(mode: Mode) -> Self {
        let facts = Facts {
            now: NOW,
            runway: Some(Runway::Hours(200)),
            owes: false,
            billing_ok_since: Some(NOW - 1_000 * HOUR),
            notices: Vec::new(),
            policy: Policy::default(),
        };
        Self { rules: Rules::default(), mode, standing: Standing::new(NOW), facts, mail: true }
    }

    /// Checks with this runway, `hours` after the last check.
    fn check(&mut self, hours: i64, runway: i64) -> Decision {
        self.facts.runway = Some(Runway::Hours(runway));
        self.facts.owes = runway < 0;
        self.check_again(hours)
    }

    fn check_again(&mut self, hours: i64) -> Decision {
        self.facts.now += hours * HOUR;
        let decision = decide(&self.rules, self.mode, &self.standing, &self.facts);
        if decision.standing.episode != self.standing.episode {
            self.facts.notices.clear();
        }
        self.standing = decision.standing;
        for row in &decision.notices {
            let given = match (row.passed, self.mode) {
                (true, _) => Given::Passed,
                (false, Mode::Watch) => Given::Recorded,
                (false, _) if self.mail => Given::Delivered(self.facts.now),
                (false, _) => Given::Sent,
            };
            self.facts.notices.retain(|notice| notice.level != row.level);
            self.facts.notices.push(Notice { level: row.level, at: self.facts.now, given });
        }
        decision
    }

    /// A customer who was notified at 24 hours and of the exhausted wallet, `hours` ago.
    fn exhausted(hours: i64) -> Self {
        let mut customer = Self::new(Mode::Enforce);
        customer.check(0, 20);
        customer.check(20, -1);
        customer.check(18, -19);
        let end = customer.check(hours - 18, -1 - hours);
        assert_eq!(end.order.is_some(), hours >= 24);
        customer
    }

    fn unmet(&self) -> Vec<Guard> {
        let unmet = unmet(&self.rules, self.mode, &self.standing, &self.facts);
        unmet.iter().map(|one| one.guard).collect()
    }
}

fn sent(decision: &Decision) -> Vec<i32> {
    decision.notices.iter().filter(|notice| !notice.passed).map(|notice| notice.level.0).collect()
}

fn passed(decision: &Decision) -> Vec<i32> {
    decision.notices.iter().filter(|notice| notice.passed).map(|notice| notice.level.0).collect()
}

#[test]
fn falling_runway_gives_each_notice_once() {
    let mut customer = Customer::new(Mode::Enforce);
    for (runway, state, expected) in [
        (73, State::Ok, None),
        (72, State::Low, Some(72)),
        (71, State::Low, None),
        (25, State::Low, None),
        (24, State::Low, Some(24)),
        // A payment that is too small for a new episode brings no notice back.
        (89, State::Low, None),
        (24, State::Low, None),
        (1, State::Low, Some(1)),
        (0, State::Low, None),
        (-1, State::Exhausted, Some(0)),
        (-2, State::Exhausted, None),
        (1, State::Low, None),
        (-1, State::Exhausted, None),
        (90, State::Ok, None),
        (72, State::Low, Some(72)),
    ] {
        let decision = customer.check(1, runway);
        assert_eq!((customer.standing.state, sent(&decision)), (state, Vec::from_iter(expected)), "{runway}");
        assert!(passed(&decision).is_empty(), "{runway}");
    }
    assert_eq!(customer.standing.episode, 1);
}

#[test]
fn only_most_urgent_notice_is_sent() {
    let mut customer = Customer::new(Mode::Enforce);
    let decision = customer.check(1, 10);
    assert_eq!((sent(&decision), passed(&decision)), (vec![24], vec![72]));
    let decision = customer.check(1, -30);
    assert_eq!((sent(&decision), passed(&decision)), (vec![0], vec![1]));
    assert_eq!(customer.standing.level, Some(Level::EXHAUSTED));
    assert_eq!(customer.standing.since, customer.facts.now);
}

#[test]
fn wallet_without_due_hours_is_not_exhausted() {
    let mut customer = Customer::new(Mode::Enforce);
    customer.check(1, 0);
    assert_eq!((customer.standing.state, customer.standing.exhausted_at), (State::Low, None));
    customer.facts.owes = true;
    customer.check_again(0);
    assert_eq!(customer.standing.state, State::Exhausted);
}

#[test]
fn suspension_follows_grace_and_final_notice() {
    let mut customer = Customer::new(Mode::Enforce);
    customer.check(1, 20);
    customer.check(20, -1);
    assert_eq!(customer.unmet(), [Guard::Grace, Guard::FinalNotice]);
    assert!(sent(&customer.check(17, -18)).is_empty());
    assert_eq!(sent(&customer.check(1, -19)), [Level::FINAL.0]);
    let all = unmet(&customer.rules, customer.mode, &customer.standing, &customer.facts);
    assert_eq!(earliest(&all), Some(customer.facts.now + 6 * HOUR));
    assert_eq!(customer.check(5, -24).order, None);
    let decision = customer.check(1, -25);
    let now = customer.facts.now;
    assert_eq!(decision.order, Some(Order { number: now, desired: Desired::Suspended }));
    assert_eq!((customer.standing.state, customer.standing.since), (State::Suspended, now));
    assert_eq!(customer.check(1, -26).order, None, "an order is made once");
}

/// What a test changes of a customer.
type Change = fn(&mut Customer);

#[test]
fn suspension_waits_for_each_guard() {
    let ready = || {
        let mut customer = Customer::exhausted(23);
        customer.facts.now += HOUR;
        customer
    };
    assert_eq!(ready().unmet(), []);
    let rows: [(Guard, Change); 9] = [
        (Guard::Exhausted, |customer| customer.standing.enter(State::Low, NOW)),
        (Guard::Mode, |customer| customer.mode = Mode::Notify),
        (Guard::Grace, |customer| customer.facts.now -= 1),
        (Guard::Grace, |customer| customer.facts.billing_ok_since = None),
        (Guard::Grace, |customer| customer.facts.billing_ok_since = Some(customer.facts.now - 23 * HOUR)),
        (Guard::Notices, |customer| customer.facts.notices.retain(|notice| notice.level == Level::FINAL)),
        (Guard::FinalNotice, |customer| customer.facts.notices.retain(|notice| notice.level != Level::FINAL)),
        (Guard::Exempt, |customer| customer.facts.policy.mode = PolicyMode::Exempt),
        (Guard::NeverSuspendUntil, |customer| {
            customer.facts.policy.never_suspend_until = Some(customer.facts.now + 1);
        }),
    ];
    for (guard, change) in rows {
        let mut customer = ready();
        change(&mut customer);
        assert!(customer.unmet().contains(&guard), "{guard:?}: {:?}", customer.unmet());
        let decision = decide(&customer.rules, customer.mode, &customer.standing, &customer.facts);
        assert_eq!(decision.order, None, "{guard:?}");
    }
}

/// A window in UTC.
fn window(from: &str, until: &str) -> Window {
    let params = WindowParams {
        days: None,
        from: from.to_owned(),
        until: until.to_owned(),
        timezone: "UTC".to_owned(),
    };
    params.try_into().expect("a window")
}

#[test]
fn suspension_waits_for_window() {
    // Ready at 20:00.
    let mut customer = Customer::exhausted(23);
    customer.rules.window = Some(window("09:00", "17:00"));
    assert_eq!(customer.check(1, -25).order, None);
    assert_eq!(customer.unmet(), [Guard::Window]);
    let all = unmet(&customer.rules, customer.mode, &customer.standing, &customer.facts);
    assert_eq!(earliest(&all), Some(NOW + (24 + 24 + 9) * HOUR));
    assert_eq!(customer.check(12, -37).order, None);
    assert!(customer.check(1, -38).order.is_some());
}

#[test]
fn final_notice_names_hour_of_window() {
    let mut customer = Customer::exhausted(23);
    let at = |customer: &Customer| {
        suspension_time(&customer.rules, customer.mode, &customer.standing, &customer.facts)
    };
    let grace_end = NOW + (20 + 24) * HOUR;
    assert!(at(&customer) >= Some(grace_end));
    customer.rules.window = Some(window("09:00", "17:00"));
    assert_eq!(at(&customer), Some(NOW + (24 + 24 + 9) * HOUR));
}

#[test]
fn quiet_hours_delay_early_notices() {
    let mut customer = Customer::new(Mode::Enforce);
    customer.rules.quiet = Some(window("22:00", "07:00"));
    // Midnight.
    for (hours, runway, expected) in [
        (0, 70, vec![]),
        (6, 64, vec![]),
        (1, 24, vec![24]),
        (16, 8, vec![]),
        (1, 1, vec![1]),
        (1, -1, vec![0]),
    ] {
        assert_eq!(sent(&customer.check(hours, runway)), expected, "{runway}");
    }
    assert_eq!(customer.standing.state, State::Exhausted);
}

#[test]
fn postpaid_customers_are_left_alone() {
    let mut customer = Customer::new(Mode::Enforce);
    customer.facts.policy.mode = PolicyMode::Postpaid;
    for hours in 0..300 {
        let decision = customer.check(1, 100 - hours);
        assert!(decision.notices.is_empty() && decision.order.is_none());
    }
}

#[test]
fn undelivered_notices_prevent_suspension() {
    let mut customer = Customer::new(Mode::Enforce);
    customer.mail = false;
    customer.check(0, 20);
    for hours in 1..200 {
        assert_eq!(customer.check(1, 20 - hours).order, None);
    }
    assert_eq!(customer.unmet(), [Guard::Notices]);
    let all = unmet(&customer.rules, customer.mode, &customer.standing, &customer.facts);
    assert_eq!(earliest(&all), None, "time alone does not decide");
    for notice in &mut customer.facts.notices {
        if notice.given == Given::Sent {
            notice.given = Given::Delivered(customer.facts.now);
        }
    }
    assert_eq!(customer.check(5, -200).order, None, "the oldest delivery is six hours old at first");
    assert!(customer.check(1, -200).order.is_some());
}

#[test]
fn outage_leads_to_full_grace() {
    let mut customer = Customer::new(Mode::Enforce);
    customer.check(0, 20);
    // Thirty hours are charged in one run after an outage that began later.
    customer.facts.billing_ok_since = Some(customer.facts.now + 30 * HOUR);
    assert_eq!(sent(&customer.check(30, -10)), [0]);
    for hours in 1..24 {
        assert_eq!(customer.check(1, -10 - hours).order, None, "{hours}");
    }
    assert!(customer.check(1, -34).order.is_some());
    // An outage in the grace period begins it again.
    let mut customer = Customer::exhausted(20);
    customer.facts.billing_ok_since = None;
    assert_eq!(customer.check(30, -51).order, None);
    customer.facts.billing_ok_since = Some(customer.facts.now);
    assert_eq!(customer.check(23, -74).order, None);
    assert!(customer.check(1, -75).order.is_some());
}

#[test]
fn payment_resumes_at_next_check() {
    let mut customer = Customer::exhausted(24);
    let suspended = customer.standing.order_number;
    let before = customer.clone();
    for (runway, state, episode) in [(1, State::Low, 0), (89, State::Low, 0), (90, State::Ok, 1)] {
        let mut customer = before.clone();
        let decision = customer.check(0, runway);
        let order = Order { number: suspended + 1, desired: Desired::Running };
        assert_eq!(decision.order, Some(order), "{runway}: a greater number, although no time has passed");
        assert_eq!((customer.standing.state, customer.standing.episode), (state, episode));
        assert!(sent(&decision).is_empty());
    }
    assert_eq!(customer.check(1, 0).order, None);
    customer.facts.policy.mode = PolicyMode::Exempt;
    assert_eq!(
        customer.check(0, -9).order.map(|order| order.desired),
        Some(Desired::Running),
        "an override resumes"
    );
    assert_eq!(customer.standing.state, State::Exhausted);
}

#[test]
fn resume_hours_delay_only_resuming() {
    let mut customer = Customer::exhausted(24);
    customer.rules = Rules::new(&[72], 24 * HOUR, 10);
    assert_eq!(customer.check(0, 9).order, None);
    assert!(customer.check(0, 10).order.is_some());
}

#[test]
fn unknown_facts_decide_nothing() {
    for (mut customer, back) in [
        (Customer::new(Mode::Enforce), State::Ok),
        (Customer::exhausted(23), State::Exhausted),
        (Customer::exhausted(24), State::Suspended),
    ] {
        let (before, runway) = (customer.standing, customer.facts.runway);
        customer.facts.runway = None;
        let decision = customer.check_again(100);
        assert_eq!((decision.notices, decision.order), (vec![], None));
        let Standing { state, episode, level, order_number, desired, .. } = customer.standing;
        assert_eq!(state, State::Unknown);
        assert_eq!(
            (episode, level, order_number, desired),
            (before.episode, before.level, before.order_number, before.desired)
        );
        customer.facts.runway = runway;
        assert_eq!(customer.check_again(1).order, None, "the grace period begins again");
        assert_eq!(customer.standing.state, back);
    }
}

#[test]
fn instance_without_cost_has_no_notices() {
    let mut customer = Customer::exhausted(24);
    customer.facts.runway = Some(Runway::Infinite);
    let decision = customer.check_again(1);
    assert_eq!(decision.order.map(|order| order.desired), Some(Desired::Running));
    assert_eq!(customer.standing.state, State::Ok);
}

#[test]
fn modes_send_no_more_than_they_may() {
    for (mode, expected) in [
        (Mode::Watch, vec![72, 24, 1, 0, -1]),
        (Mode::Notify, vec![72, 24, 1, 0]),
        (Mode::Enforce, vec![72, 24, 1, 0, -1]),
    ] {
        let mut customer = Customer::new(mode);
        let decisions: Vec<_> = (0..200).map(|hour| customer.check(1, 100 - hour)).collect();
        assert_eq!(decisions.iter().flat_map(sent).collect::<Vec<_>>(), expected, "{mode:?}");
        let orders = decisions.iter().filter(|decision| decision.order.is_some()).count();
        assert_eq!(orders, usize::from(mode == Mode::Enforce), "{mode:?}");
        assert_eq!(customer.unmet().contains(&Guard::Mode), mode != Mode::Enforce);
    }
}

#[test]
fn recorded_notice_is_sent_after_mode_changes() {
    let mut customer = Customer::new(Mode::Watch);
    customer.check(0, 20);
    customer.check(100, -80);
    customer.check(100, -180);
    customer.mode = Mode::Enforce;
    let decision = customer.check(1, -181);
    assert_eq!(sent(&decision), [0], "a customer who never had a notice has the whole grace period");
    assert_eq!(passed(&decision), [24]);
    assert_eq!(customer.check(18, -199).notices.len(), 1);
    assert_eq!(customer.check(5, -204).order, None);
    assert!(customer.check(1, -205).order.is_some());
    let mut watching = customer.clone();
    watching.mode = Mode::Watch;
    assert_eq!(watching.check(1, 500).order, None);
    assert_eq!(watching.standing.state, State::Suspended, "no order is sent, so the instances are still off");
}

/// What happens between two checks.
#[derive(Clone, Debug)]
struct Step {
    hours: i64,
    paid: i64,
    mail: bool,
    works: bool,
    usable: bool,
    mode: Mode,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let paid = prop_oneof![6 => Just(0), 1 => 1..5_i64, 1 => 20..150_i64];
    let mode = prop_oneof![1 => Just(Mode::Watch), 1 => Just(Mode::Notify), 8 => Just(Mode::Enforce)];
    let often = || prop::bool::weighted(0.9);
    let step = (0..20_i64, paid, often(), often(), often(), mode)
        .prop_map(|(hours, paid, mail, works, usable, mode)| Step { hours, paid, mail, works, usable, mode });
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_keep_promises(steps in steps()) {
        let mut customer = Customer::new(Mode::Enforce);
        let (mut runway, mut worked) = (100, true);
        let (mut exhausted, mut exhausted_since) = (false, None);
        let mut given: Vec<(i64, i32)> = Vec::new();
        for step in steps {
            runway += step.paid - step.hours;
            let now = customer.facts.now + step.hours * HOUR;
            customer.facts.billing_ok_since = match (step.works, worked) {
                (false, _) => None,
                (true, false) => Some(now),
                (true, true) => customer.facts.billing_ok_since,
            };
            worked = step.works;
            customer.mail = step.mail;
            customer.mode = step.mode;
            customer.facts.runway = step.usable.then_some(Runway::Hours(runway));
            customer.facts.owes = runway < 0;
            let before = customer.standing;
            let notices = customer.facts.notices.clone();
            let decision = customer.check_again(step.hours);
            let new = sent(&decision);
            prop_assert!(new.len() <= 1);
            if step.mode != Mode::Watch {
                for level in new {
                    let of_episode = given.iter().filter(|(episode, _)| *episode == customer.standing.episode);
                    prop_assert!(of_episode.clone().all(|(_, earlier)| level < *earlier), "{level} after {given:?}");
                    given.push((customer.standing.episode, level));
                }
            }
            let standing = customer.standing;
            let (earlier, later) = (before.order_number, standing.order_number);
            prop_assert!(later >= earlier && (later > earlier) == decision.order.is_some());
            // Once exhausted, a wallet recovers with the next hour that it covers.
            exhausted = step.usable && (runway < 0 || runway == 0 && exhausted);
            exhausted_since = (step.works && exhausted).then(|| exhausted_since.unwrap_or(now));
            match decision.order.map(|order| order.desired) {
                Some(Desired::Suspended) => {
                    let delivered: Vec<_> = notices.iter().filter_map(|notice| match notice.given {
                        Given::Delivered(at) => Some(at),
                        _ => None,
                    }).collect();
                    prop_assert!(delivered.len() >= 2);
                    prop_assert!(delivered.iter().any(|at| *at <= now - 6 * HOUR));
                    prop_assert!(exhausted_since.is_some_and(|since| since <= now - 24 * HOUR));
                }
                Some(Desired::Running) => prop_assert!(runway >= 1 && before.desired == Desired::Suspended),
                None => {}
            }
            let must_run = step.usable && step.mode == Mode::Enforce && runway >= 1;
            prop_assert!(!must_run || standing.desired == Desired::Running);
        }
    }
}
