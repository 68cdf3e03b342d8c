//! The state machine of one organization: pure.

#[cfg(test)]
mod tests;

use super::{
    rules::{Level, Mode, Policy, PolicyMode, Rules},
    runway::Runway,
};
use crate::period::Micros;

/// Where an organization is between paying and suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The wallet covers more hours than any notice is due for.
    Ok,
    /// A notice was due.
    Low,
    /// Hours are due that the wallet does not cover.
    Exhausted,
    /// An order to suspend was made.
    Suspended,
    /// A fact is missing, so nothing is decided.
    Unknown,
}

impl State {
    /// The states from paying to suspended, and the one without facts.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Low, Self::Exhausted, Self::Suspended, Self::Unknown];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Low => "low",
            Self::Exhausted => "exhausted",
            Self::Suspended => "suspended",
            Self::Unknown => "unknown",
        }
    }
}

/// What the newest order wants of the instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Desired {
    /// The instances may run.
    #[default]
    Running,
    /// The instances must be off.
    Suspended,
}

impl Desired {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspended => "suspended",
        }
    }
}

/// What is stored of one organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// How far the organization is on the way to a suspension.
    pub state: State,
    /// When `state` began.
    pub since: Micros,
    /// The number of the passage from `ok` down and back.
    pub episode: i64,
    /// The most urgent level that was reached in the episode.
    pub level: Option<Level>,
    /// Since when the wallet has not covered the next hour.
    pub exhausted_at: Option<Micros>,
    /// The number of the newest order; 0 if there was none.
    pub order_number: i64,
    /// What that order wants.
    pub desired: Desired,
}

impl Standing {
    /// The standing of an organization that is evaluated for the first time.
    #[must_use]
    pub fn new(now: Micros) -> Self {
        Self {
            state: State::Ok,
            since: now,
            episode: 0,
            level: None,
            exhausted_at: None,
            order_number: 0,
            desired: Desired::Running,
        }
    }

    fn enter(&mut self, state: State, now: Micros) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
        if state != State::Exhausted {
            self.exhausted_at = None;
        }
    }

    /// The state to continue from: an unknown one is left for what the other columns mean.
    fn known_state(&self) -> State {
        match self.state {
            State::Unknown if self.desired == Desired::Suspended => State::Suspended,
            State::Unknown if self.level.is_some() => State::Low,
            State::Unknown => State::Ok,
            known => known,
        }
    }

    /// Makes the next order.
    pub(super) fn order(&mut self, desired: Desired, now: Micros) -> Order {
        self.desired = desired;
        // A receiver keeps the greatest number. After a restore the time is greater than any number that was lost.
        self.order_number = self.order_number.saturating_add(1).max(now);
        Order { number: self.order_number, desired }
    }
}

/// What became of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Given {
    /// It was recorded in mode `watch` and not sent.
    Recorded,
    /// A more urgent one was sent at the same time.
    Passed,
    /// It was sent, and no receiver has confirmed it.
    Sent,
    /// It was sent, and delivered at this time.
    Delivered(Micros),
}

/// A notice of the present episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The runway at which it was due.
    pub level: Level,
    /// When it was recorded or sent.
    pub at: Micros,
    /// What became of it.
    pub given: Given,
}

impl Notice {
    /// Whether the notice is not due again. A notice that was only recorded is due again when notices are sent.
    fn counts(&self, mode: Mode) -> bool {
        mode == Mode::Watch || self.given != Given::Recorded
    }
}

/// What a decision depends on, as it was read under the lock of the wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The time of the database.
    pub now: Micros,
    /// How many hours the wallet covers; none if that is unknown.
    pub runway: Option<Runway>,
    /// Whether hours are due and unpaid.
    pub owes: bool,
    /// Since when billing has worked without an outage; none if it does not work.
    pub billing_ok_since: Option<Micros>,
    /// The notices of the present episode, one for each level.
    pub notices: Vec<Notice>,
    /// What applies to this organization alone.
    pub policy: Policy,
}

impl Facts {
    fn notice(&self, level: Level, mode: Mode) -> Option<&Notice> {
        self.notices.iter().find(|notice| notice.level == level && notice.counts(mode))
    }

    /// Adds what a decision gives to a customer whose mail arrives at once.
    pub(super) fn note(&mut self, before: &Standing, decision: &Decision) {
        if decision.standing.episode != before.episode {
            self.notices.clear();
        }
        for row in &decision.notices {
            let given = if row.passed { Given::Passed } else { Given::Delivered(self.now) };
            self.notices.retain(|notice| notice.level != row.level);
            self.notices.push(Notice { level: row.level, at: self.now, given });
        }
    }

    fn delivered(&self) -> impl Iterator<Item = Micros> + '_ {
        self.notices.iter().filter_map(|notice| match notice.given {
            Given::Delivered(at) => Some(at),
            Given::Recorded | Given::Passed | Given::Sent => None,
        })
    }
}

/// A notice to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoticeRow {
    /// The episode that it belongs to.
    pub episode: i64,
    /// The runway at which it is due.
    pub level: Level,
    /// Whether it is stored without being sent, because a more urgent one is due.
    pub passed: bool,
}

/// An order to suspend or to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its number, greater than that of any earlier order of the organization.
    pub number: i64,
    /// What the panel is to bring about.
    pub desired: Desired,
}

/// What is to be stored for one organization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Replaces the stored standing.
    pub standing: Standing,
    /// New notices, of which at most one is sent.
    pub notices: Vec<NoticeRow>,
    /// A new order; in no mode but [`Mode::Enforce`].
    pub order: Option<Order>,
}

/// Decides for one organization.
#[must_use]
pub fn decide(rules: &Rules, mode: Mode, standing: &Standing, facts: &Facts) -> Decision {
    let now = facts.now;
    let mut next = *standing;
    let Some(runway) = facts.runway else {
        // The grace period begins again once the facts are known.
        next.enter(State::Unknown, now);
        return Decision { standing: next, notices: Vec::new(), order: None };
    };
    let from = standing.known_state();
    if from != standing.state {
        next.enter(from, now);
    }
    let mut order = None;
    if from == State::Suspended {
        let resumes = runway.covers(rules.resume_hours) || !facts.policy.allows_suspension(now);
        if !resumes || mode != Mode::Enforce {
            return Decision { standing: next, notices: Vec::new(), order };
        }
        order = Some(next.order(Desired::Running, now));
        next.enter(State::Low, now);
    }
    next.move_to(rules, runway, facts);
    let notices = next.due_notices(rules, mode, runway, facts);
    if let Some(most_urgent) = notices.iter().map(|notice| notice.level).min() {
        next.level = Some(next.level.map_or(most_urgent, |level| level.min(most_urgent)));
    }
    // An order to resume is followed by an order to suspend at the next check at the earliest.
    if order.is_none() && unmet(rules, mode, &next, facts).is_empty() {
        order = Some(next.order(Desired::Suspended, now));
        next.enter(State::Suspended, now);
    }
    Decision { standing: next, notices, order }
}

impl Standing {
    /// Moves between the states in which the instances run.
    fn move_to(&mut self, rules: &Rules, runway: Runway, facts: &Facts) {
        let now = facts.now;
        if facts.owes && !runway.covers(1) {
            self.enter(State::Exhausted, now);
            self.exhausted_at.get_or_insert(now);
        } else if self.state == State::Exhausted && runway.covers(1)
            || self.state == State::Ok
                && rules.levels().first().is_some_and(|level| is_reached(*level, runway))
        {
            self.enter(State::Low, now);
        }
        if self.state == State::Low && runway.covers(rules.recovered_hours) {
            self.enter(State::Ok, now);
            self.episode += 1;
            self.level = None;
        }
    }

    /// The notices that are due and were not given in this episode. Only the most urgent is sent.
    fn due_notices(&self, rules: &Rules, mode: Mode, runway: Runway, facts: &Facts) -> Vec<NoticeRow> {
        if !matches!(self.state, State::Low | State::Exhausted) || facts.policy.mode == PolicyMode::Postpaid {
            return Vec::new();
        }
        let exhausted = self.state == State::Exhausted;
        let reached = rules.levels().iter().copied().filter(|level| is_reached(*level, runway));
        let reached = reached.chain(exhausted.then_some(Level::EXHAUSTED));
        let reached = reached.chain(self.is_final_due(rules, mode, facts).then_some(Level::FINAL));
        let reached: Vec<Level> = reached.collect();
        let most_urgent = reached.iter().copied().min();
        let can_wait = most_urgent.is_some_and(|level| level > Level::LAST_HOUR);
        if can_wait && rules.quiet.as_ref().is_some_and(|quiet| quiet.contains(facts.now)) {
            return Vec::new();
        }
        let due = reached.into_iter().filter(|level| facts.notice(*level, mode).is_none());
        due.map(|level| NoticeRow { episode: self.episode, level, passed: Some(level) != most_urgent })
            .collect()
    }

    /// Whether the customer must be notified of the hour of the suspension.
    fn is_final_due(&self, rules: &Rules, mode: Mode, facts: &Facts) -> bool {
        // In mode `notify` no suspension follows.
        mode != Mode::Notify
            && facts.policy.allows_suspension(facts.now)
            // Two notices at once would count twice and warn once.
            && facts.notice(Level::EXHAUSTED, mode).is_some()
            && self.grace_end(rules, mode, facts).is_some_and(|end| facts.now >= end - rules.final_lead)
    }

    /// The end of the grace period, which begins with the newest of: the wallet is exhausted, the customer is notified of that, billing
    /// works again after an outage. None while billing does not work.
    fn grace_end(&self, rules: &Rules, mode: Mode, facts: &Facts) -> Option<Micros> {
        let from = self.exhausted_at?.max(facts.billing_ok_since?);
        let notified = facts.notice(Level::EXHAUSTED, mode).map_or(facts.now, |notice| notice.at);
        Some(from.max(notified).saturating_add(rules.grace))
    }
}

/// The earliest time of a suspension that a final notice of this moment announces.
#[must_use]
pub fn suspension_time(rules: &Rules, mode: Mode, standing: &Standing, facts: &Facts) -> Option<Micros> {
    let earliest = standing.grace_end(rules, mode, facts)?.max(facts.now.saturating_add(rules.final_lead));
    rules.window.as_ref().map_or(Some(earliest), |window| window.next(earliest))
}

fn is_reached(level: Level, runway: Runway) -> bool {
    !runway.covers(i64::from(level.0) + 1)
}

/// A condition of a suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// The wallet is exhausted.
    Exhausted,
    /// The policy is enforced.
    Mode,
    /// The grace period is over, without an outage of billing in it.
    Grace,
    /// Enough notices are delivered, and the oldest of them long enough ago.
    Notices,
    /// The final notice was sent, and its hour has come.
    FinalNotice,
    /// Instances are suspended at this hour.
    Window,
    /// The organization is not exempt.
    Exempt,
    /// The time before which the organization is not suspended has passed.
    NeverSuspendUntil,
}

impl Guard {
    /// The word for it in output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Mode => "mode",
            Self::Grace => "grace",
            Self::Notices => "notices",
            Self::FinalNotice => "final_notice",
            Self::Window => "window",
            Self::Exempt => "exempt",
            Self::NeverSuspendUntil => "never_suspend_until",
        }
    }
}

/// A condition of a suspension that is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// What is not met.
    pub guard: Guard,
    /// When the condition is met, if time alone decides that.
    pub until: Option<Micros>,
}

/// The conditions of a suspension that `standing` does not meet.
#[must_use]
pub fn unmet(rules: &Rules, mode: Mode, standing: &Standing, facts: &Facts) -> Vec<Unmet> {
    let mut unmet = Vec::new();
    let mut require = |met: bool, guard, until| {
        if !met {
            unmet.push(Unmet { guard, until });
        }
    };
    let has_passed = |until: Option<Micros>| until.is_some_and(|until| until <= facts.now);
    require(standing.state == State::Exhausted, Guard::Exhausted, None);
    require(mode == Mode::Enforce, Guard::Mode, None);
    let grace_end = standing.grace_end(rules, mode, facts);
    require(has_passed(grace_end), Guard::Grace, grace_end);
    let oldest = facts.delivered().min().filter(|_| facts.delivered().count() >= rules.notices_needed);
    let old_enough = oldest.map(|oldest| oldest.saturating_add(rules.notice_age));
    require(rules.notices_needed == 0 || has_passed(old_enough), Guard::Notices, old_enough);
    let announced = facts.notice(Level::FINAL, mode).map(|notice| notice.at.saturating_add(rules.final_lead));
    require(rules.final_lead == 0 || has_passed(announced), Guard::FinalNotice, announced);
    if let Some(window) = &rules.window {
        require(window.contains(facts.now), Guard::Window, window.next(facts.now));
    }
    require(!facts.policy.is_exempt(), Guard::Exempt, None);
    let never_before = facts.policy.never_suspend_until;
    require(never_before.is_none() || has_passed(never_before), Guard::NeverSuspendUntil, never_before);
    unmet
}

/// The earliest time at which all of `unmet` can be met; none if something besides time is missing.
#[must_use]
pub fn earliest(unmet: &[Unmet]) -> Option<Micros> {
    unmet.iter().map(|one| one.until).collect::<Option<Vec<_>>>()?.into_iter().max()
}
