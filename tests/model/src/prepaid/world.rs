//! One organization, its customer, the mail, billing, and what an operator permits. Time moves past a fixed instant, and an age counts only up to where a rule
//! reads it, so that the world is finite.

use std::sync::LazyLock;

use billing_jobs::{
    period::{HOUR, Micros},
    prepaid::{
        Decision, Desired, Facts, Given, Level, Mode, Notice, Policy, PolicyMode, Rules, Runway, Standing,
        Window, WindowParams, decide,
    },
};

use super::variant::Guards;

/// The present, always.
const NOW: Micros = 1_000_000 * HOUR;
/// The rules of this world, short enough to be explored: notices at two hours and at one.
const LEVELS: [u16; 2] = [2, 1];
const GRACE: i64 = 3;
const NOTICES: usize = 2;
const NOTICE_AGE: i64 = 2;
const FINAL_LEAD: i64 = 1;
const RECOVERED: i8 = 3;
/// The hours that a wallet covers at most, and at least.
const RICH: i8 = 4;
const POOR: i8 = -2;

/// A window that does not contain the present, which is at 16:00.
static CLOSED: LazyLock<Window> = LazyLock::new(|| {
    let params = WindowParams {
        days: None,
        from: "01:00".to_owned(),
        until: "02:00".to_owned(),
        timezone: "UTC".to_owned(),
    };
    params.try_into().expect("a window")
});

/// A promise of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Suspended without notices.
    Unwarned,
    /// Suspended within the grace period.
    NoGrace,
    /// Suspended before the hour of the final notice.
    Unannounced,
    /// A notice was sent twice.
    Twice,
    /// Not resumed, although paid.
    NotResumed,
    /// Something was decided without the facts.
    Guessed,
    /// Suspended although that was not permitted.
    Forbidden,
}

impl Broken {
    /// Returns the promise as the README words it.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Unwarned => "a suspension follows two delivered notices, the oldest of them hours ago",
            Self::NoGrace => "a suspension follows the whole grace period after the end of an outage",
            Self::Unannounced => "a suspension follows the hour of the final notice",
            Self::Twice => "a notice is sent once in an episode",
            Self::NotResumed => "the next check after a payment resumes",
            Self::Guessed => "nothing is sent or ordered while a fact is missing",
            Self::Forbidden => {
                "no suspension outside of the window, of an exempt organization, or before its time"
            }
        }
    }
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// An hour passes, which costs.
    Hour,
    /// The customer pays so many hours.
    Pay(i8),
    /// Billing stops, or works again.
    Billing,
    /// The wallet becomes unreadable, or readable again.
    Wallet,
    /// The policy is checked.
    Check,
    /// A notice that was sent arrives.
    Deliver(Level),
    /// Suspensions are permitted, or are not.
    Permit(Permission),
}

impl Action {
    /// What happens to a customer of whom nothing is exceptional.
    pub(super) const USUAL: &[Self] =
        &[Self::Hour, Self::Pay(1), Self::Pay(6), Self::Billing, Self::Wallet, Self::Check];
    /// What happens to a customer with exceptions, while billing works.
    pub(super) const EXCEPTIONS: &[Self] = &[
        Self::Hour,
        Self::Pay(6),
        Self::Check,
        Self::Permit(Permission::Granted),
        Self::Permit(Permission::WindowClosed),
        Self::Permit(Permission::Exempt),
        Self::Permit(Permission::NotYet),
    ];
}

/// Whether suspensions are permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// The customer can be suspended at any time.
    Granted,
    /// It is an hour in which no one is suspended.
    WindowClosed,
    /// The organization is exempt.
    Exempt,
    /// The time before which it is not suspended has not passed.
    NotYet,
}

/// Billing, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Billing {
    Works,
    /// Down, and whether an hour has passed since.
    Down {
        missed: bool,
    },
}

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The hours that the wallet covers after everything due.
    covered: i8,
    billing: Billing,
    billing_since: Micros,
    readable: bool,
    permission: Permission,
    standing: Standing,
    notices: Vec<Notice>,
    /// The levels that were sent since the wallet last covered so much that a new episode is due.
    sent: Vec<Level>,
    /// Whether a check found the wallet exhausted, and none has found the next hour covered since.
    exhausted: bool,
    /// The hours since a check found the wallet exhausted, or since the end of a later outage.
    exhausted_hours: Option<i64>,
    /// Whether the last order resumed.
    pub(super) resumed: bool,
    /// The broken promise.
    pub(super) broken: Option<Broken>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            covered: RICH,
            billing: Billing::Works,
            billing_since: NOW - GRACE * HOUR,
            readable: true,
            permission: Permission::Granted,
            standing: Standing::new(NOW),
            notices: Vec::new(),
            sent: Vec::new(),
            exhausted: false,
            exhausted_hours: None,
            resumed: false,
            broken: None,
        }
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.standing.desired == Desired::Suspended
    }

    pub(super) fn undelivered(&self) -> impl Iterator<Item = Level> + '_ {
        self.notices.iter().filter(|notice| notice.given == Given::Sent).map(|notice| notice.level)
    }

    pub(super) fn apply(&mut self, guards: &Guards, action: Action) {
        match action {
            Action::Hour => self.hour(),
            Action::Pay(hours) => self.covered = (self.covered + hours).min(RICH),
            Action::Billing => self.toggle_billing(),
            Action::Wallet => self.readable = !self.readable,
            Action::Check => self.check(guards),
            Action::Permit(permission) => self.permission = permission,
            Action::Deliver(level) => {
                for notice in self.notices.iter_mut().filter(|notice| notice.level == level) {
                    notice.given = Given::Delivered(NOW);
                }
            }
        }
    }

    fn hour(&mut self) {
        let older = |at: Micros, cap: i64| (at - HOUR).max(NOW - cap * HOUR);
        self.covered = (self.covered - 1).max(POOR);
        self.billing_since = older(self.billing_since, GRACE);
        self.standing.exhausted_at = self.standing.exhausted_at.map(|at| older(at, GRACE));
        for notice in &mut self.notices {
            notice.at = match notice.level {
                Level::EXHAUSTED => older(notice.at, GRACE),
                Level::FINAL => older(notice.at, FINAL_LEAD),
                _ => NOW,
            };
            if let Given::Delivered(at) = notice.given {
                notice.given = Given::Delivered(older(at, NOTICE_AGE));
            }
        }
        self.exhausted_hours = self.exhausted_hours.map(|hours| (hours + 1).min(GRACE));
        if let Billing::Down { .. } = self.billing {
            self.billing = Billing::Down { missed: true };
            self.exhausted_hours = None;
        }
    }

    fn toggle_billing(&mut self) {
        self.billing = match self.billing {
            Billing::Works => Billing::Down { missed: false },
            Billing::Down { missed } => {
                if missed {
                    self.billing_since = NOW;
                    self.exhausted_hours = self.exhausted.then_some(0);
                }
                Billing::Works
            }
        };
    }

    fn facts(&self, guards: &Guards) -> Facts {
        let works = self.billing != Billing::Down { missed: true };
        let guess = (!guards.unknown).then_some(Runway::Hours(-1));
        Facts {
            now: NOW,
            runway: if self.readable { Some(Runway::Hours(self.covered.into())) } else { guess },
            owes: self.covered < 0 || !self.readable,
            billing_ok_since: if guards.outage {
                works.then_some(self.billing_since)
            } else {
                Some(NOW - GRACE * HOUR)
            },
            notices: if guards.keyed { self.notices.clone() } else { Vec::new() },
            policy: self.policy(guards),
        }
    }

    fn policy(&self, guards: &Guards) -> Policy {
        match self.permission {
            Permission::Exempt if guards.exempt => Policy { mode: PolicyMode::Exempt, ..Policy::default() },
            Permission::NotYet if guards.not_before => {
                Policy { never_suspend_until: Some(NOW + HOUR), ..Policy::default() }
            }
            _ => Policy::default(),
        }
    }

    fn check(&mut self, guards: &Guards) {
        let Decision { mut standing, notices, order } =
            decide(&self.rules(guards), Mode::Enforce, &self.standing, &self.facts(guards));
        self.observe();
        if !self.readable && (order.is_some() || !notices.is_empty()) {
            self.broken = Some(Broken::Guessed);
        }
        match order.map(|order| order.desired) {
            Some(Desired::Suspended) => {
                self.resumed = false;
                let is_forbidden = self.permission != Permission::Granted;
                self.broken = self.broken.or(is_forbidden.then_some(Broken::Forbidden));
                self.broken = self.broken.or(self.suspension_breaks());
            }
            Some(Desired::Running) => self.resumed = true,
            None => {}
        }
        if standing.episode != self.standing.episode {
            self.notices.clear();
        }
        for row in notices {
            if !row.passed {
                if self.sent.contains(&row.level) {
                    self.broken = Some(Broken::Twice);
                }
                self.sent.push(row.level);
                self.sent.sort_unstable();
            }
            let given = if row.passed { Given::Passed } else { Given::Sent };
            self.notices.retain(|notice| notice.level != row.level);
            self.notices.push(Notice { level: row.level, at: NOW, given });
            self.notices.sort_unstable_by_key(|notice| notice.level);
        }
        if self.readable && self.covered >= 1 && standing.desired == Desired::Suspended {
            self.broken = Some(Broken::NotResumed);
        }
        // No rule reads these.
        (standing.since, standing.episode, standing.order_number) = (NOW, 0, 0);
        self.standing = standing;
    }

    /// What the customer experiences, counted apart from the decision.
    fn observe(&mut self) {
        if self.covered >= RECOVERED && self.readable {
            self.sent.clear();
        }
        let works = self.billing != Billing::Down { missed: true };
        self.exhausted = self.readable && (self.covered < 0 || self.covered == 0 && self.exhausted);
        self.exhausted_hours = (works && self.exhausted).then(|| self.exhausted_hours.unwrap_or(0));
    }

    fn rules(&self, guards: &Guards) -> Rules {
        let when = |guard: bool, hours: i64| if guard { hours * HOUR } else { 0 };
        let mut rules = Rules::new(&LEVELS, when(guards.grace, GRACE), if guards.resumes { 1 } else { 100 });
        if !guards.hysteresis {
            rules.recovered_hours = 1;
        }
        rules.notices_needed = if guards.counted { NOTICES } else { 0 };
        rules.notice_age = when(guards.aged, NOTICE_AGE);
        rules.final_lead = when(guards.announced, FINAL_LEAD);
        if self.permission == Permission::WindowClosed && guards.window {
            rules.window = Some(CLOSED.clone());
        }
        rules
    }

    fn suspension_breaks(&self) -> Option<Broken> {
        let old = |at: Micros, hours: i64| at <= NOW - hours * HOUR;
        let delivered = || {
            self.notices.iter().filter_map(|notice| match notice.given {
                Given::Delivered(at) => Some(at),
                _ => None,
            })
        };
        let announced = self.notices.iter().find(|notice| notice.level == Level::FINAL);
        if delivered().count() < NOTICES || !delivered().any(|at| old(at, NOTICE_AGE)) {
            return Some(Broken::Unwarned);
        }
        if self.exhausted_hours.is_none_or(|hours| hours < GRACE) {
            return Some(Broken::NoGrace);
        }
        announced.is_none_or(|notice| !old(notice.at, FINAL_LEAD)).then_some(Broken::Unannounced)
    }
}
