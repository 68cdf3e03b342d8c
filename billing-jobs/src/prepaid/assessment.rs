//! What was read of one organization, and what follows from it.

use super::{
    decide::{Decision, Facts, Standing, State, decide},
    rules::{Mode, Rules},
    runway::{Account, Runway},
};
use crate::{currency::Currency, money::WalletUnit, period::Micros};

/// What was read of one organization.
#[derive(Clone, Debug)]
pub struct Assessment {
    /// The id of the organization.
    pub organization: String,
    /// Its name; empty if it was deleted.
    pub name: String,
    /// Its standing; that of a new organization if it has none.
    pub standing: Standing,
    /// What else its row contains; none without a row.
    pub(super) stored: Option<Stored>,
    /// What it has, owes and spends, or why that is unknown.
    pub account: Result<Account, String>,
    /// The currency of its wallet.
    pub currency: Option<Currency>,
    /// What the decision depends on.
    pub facts: Facts,
}

/// The part of a row that no decision reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) watched: bool,
    pub(super) runway_hours: Option<i64>,
}

/// What a check writes for one organization.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) decision: Decision,
    pub(super) stored: Stored,
}

impl Assessment {
    /// What is to be written; none if the rows are up to date, or if no row is needed.
    pub(super) fn change(&self, rules: &Rules, mode: Mode) -> Option<Change> {
        let decision = decide(rules, mode, &self.standing, &self.facts);
        let runway = self.facts.runway;
        let is_safe = decision.standing.state == State::Ok
            && runway.is_some_and(|runway| runway.covers(rules.watched_hours()));
        let stored = Stored { watched: !is_safe, runway_hours: runway.and_then(Runway::hours) };
        let is_needed = match self.stored {
            None => stored.watched,
            // What is not watched any more keeps the figures of its last check.
            Some(before) => {
                !decision.notices.is_empty()
                    || decision.standing != self.standing
                    || before.watched != stored.watched
                    || stored.watched && before != stored
            }
        };
        is_needed.then_some(Change { decision, stored })
    }

    /// An order of the state that is wanted already.
    pub(super) fn order_again(&self) -> Decision {
        let mut standing = self.standing;
        let order = standing.order(standing.desired, self.facts.now);
        Decision { standing, notices: Vec::new(), order: Some(order) }
    }

    /// The decisions of a number of hours in which no payment arrives and billing works, each with its time. What is sent is delivered.
    #[must_use]
    pub fn simulate(&self, rules: &Rules, hours: u32, unit: WalletUnit) -> Vec<(Micros, Decision)> {
        let Ok(account) = &self.account else { return Vec::new() };
        let mut standing = self.standing;
        let mut facts = self.facts.clone();
        let mut decisions = Vec::new();
        for hour in 0..=i64::from(hours) {
            let now = self.facts.now + hour * crate::period::HOUR;
            let account = account.after(hour, unit);
            facts.now = now;
            facts.runway = Some(account.runway(unit));
            facts.owes = account.owed.0 > 0;
            facts.billing_ok_since.get_or_insert(now);
            let decision = decide(rules, Mode::Enforce, &standing, &facts);
            facts.note(&standing, &decision);
            standing = decision.standing;
            if decision.order.is_some() || !decision.notices.is_empty() {
                decisions.push((now, decision));
            }
        }
        decisions
    }
}
