//! What the commands print of an organization, as JSON and in words.

use std::cmp::Reverse;

use billing_jobs::{
    currency::Currency,
    prepaid::{Assessment, Given, Guard, Level, Notice, Prepaid, Runway, earliest, unmet},
};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::time;
use crate::format::instant;

/// The wallet of an organization with what it pays for.
#[derive(Debug, Serialize)]
pub(super) struct WalletView {
    pub(super) organization: String,
    pub(super) name: String,
    /// The balance as decimal text, as all amounts; unset if it is unknown.
    pub(super) balance: Option<String>,
    pub(super) credit_limit: Option<String>,
    pub(super) currency: Option<Currency>,
    /// What is due and unpaid.
    pub(super) owed: Option<String>,
    pub(super) burn_per_hour: Option<String>,
    /// The hours that the wallet covers, negative if it owes; unset if nothing is spent, or if the hours are unknown.
    pub(super) runway_hours: Option<i64>,
    pub(super) state: &'static str,
    pub(super) episode: i64,
    /// The notices of the episode, the most urgent last.
    pub(super) notices: Vec<NoticeView>,
    /// The number of the newest order.
    pub(super) order: Option<i64>,
    /// Why the hours are unknown.
    pub(super) problem: Option<String>,
    #[serde(skip)]
    pub(super) runway: Option<Runway>,
}

impl From<&Assessment> for WalletView {
    fn from(found: &Assessment) -> Self {
        let account = found.account.as_ref().ok();
        let mut notices: Vec<NoticeView> = found.facts.notices.iter().map(NoticeView::from).collect();
        notices.sort_unstable_by_key(|notice| Reverse(notice.level));
        Self {
            organization: found.organization.clone(),
            name: found.name.clone(),
            balance: account.map(|account| account.balance.to_string()),
            credit_limit: account.map(|account| account.credit_limit.to_string()),
            currency: found.currency,
            owed: account.map(|account| account.owed.to_string()),
            burn_per_hour: account.map(|account| account.burn.per_hour(4)),
            runway_hours: found.facts.runway.and_then(Runway::hours),
            state: found.standing.state.as_str(),
            episode: found.standing.episode,
            notices,
            order: Some(found.standing.epoch).filter(|epoch| *epoch > 0),
            problem: found.account.as_ref().err().cloned(),
            runway: found.facts.runway,
        }
    }
}

impl WalletView {
    /// Returns the runway as a cell of a table.
    pub(super) fn runway_in_words(&self) -> String {
        match self.runway {
            None => "unknown".to_owned(),
            Some(Runway::Infinite) => "no limit".to_owned(),
            Some(Runway::Hours(hours)) if hours < 0 => format!("owes {} h", hours.unsigned_abs()),
            Some(Runway::Hours(hours)) => format!("{hours} h"),
        }
    }
}

/// The standing of an organization.
#[derive(Debug, Serialize)]
pub(super) struct StandingView {
    #[serde(flatten)]
    pub(super) wallet: WalletView,
    pub(super) since: DateTime<Utc>,
    pub(super) desired: &'static str,
    pub(super) suspension: SuspensionView,
}

/// A notice of the present episode.
#[derive(Debug, Serialize)]
pub(super) struct NoticeView {
    pub(super) level: i32,
    pub(super) at: DateTime<Utc>,
    /// `recorded`, `passed`, `sent` or `delivered`.
    pub(super) outcome: &'static str,
    pub(super) delivered_at: Option<DateTime<Utc>>,
}

impl From<&Notice> for NoticeView {
    fn from(notice: &Notice) -> Self {
        let (outcome, delivered_at) = match notice.given {
            Given::Recorded => ("recorded", None),
            Given::Passed => ("passed", None),
            Given::Sent => ("sent", None),
            Given::Delivered(at) => ("delivered", Some(time(at))),
        };
        Self { level: notice.level.0, at: time(notice.at), outcome, delivered_at }
    }
}

/// What a suspension would need.
#[derive(Debug, Serialize)]
pub(super) struct SuspensionView {
    /// The earliest time; unset if something besides time is missing.
    pub(super) earliest: Option<DateTime<Utc>>,
    pub(super) unmet: Vec<UnmetView>,
}

/// A condition that is not met.
#[derive(Debug, Serialize)]
pub(super) struct UnmetView {
    pub(super) guard: &'static str,
    pub(super) detail: String,
}

impl StandingView {
    pub(super) fn of(prepaid: &Prepaid, found: &Assessment) -> Self {
        let wallet = WalletView::from(found);
        let unmet = unmet(prepaid.rules(), prepaid.mode(), &found.standing, &found.facts);
        let detail = |guard, until: Option<_>| {
            let until = until.map(|until| format!(" until {}", instant(time(until)))).unwrap_or_default();
            match guard {
                Guard::Exhausted => format!("the wallet is not exhausted: {}", wallet.runway_in_words()),
                Guard::Mode => "the policy is not enforced".to_owned(),
                Guard::Grace if until.is_empty() => {
                    "the grace period has not begun: the wallet is not exhausted, or billing does not work"
                        .to_owned()
                }
                Guard::Grace => format!("the grace period lasts{until}"),
                Guard::Notices if until.is_empty() => {
                    format!(
                        "fewer than {} notices of this episode are delivered",
                        prepaid.rules().notices_needed
                    )
                }
                Guard::Notices => format!("the oldest delivered notice is too new{until}"),
                Guard::FinalNotice if until.is_empty() => "the final notice was not sent".to_owned(),
                Guard::FinalNotice => format!("the final notice was just sent: not{until}"),
                Guard::Window => format!("instances are not suspended at this hour{until}"),
                Guard::Exempt => "the organization is exempt".to_owned(),
                Guard::NeverSuspendUntil => format!("the organization is not suspended{until}"),
            }
        };
        let details = unmet
            .iter()
            .map(|one| UnmetView { guard: one.guard.as_str(), detail: detail(one.guard, one.until) });
        let suspension = SuspensionView { unmet: details.collect(), earliest: earliest(&unmet).map(time) };
        Self {
            since: time(found.standing.since),
            desired: found.standing.desired.as_str(),
            suspension,
            wallet,
        }
    }
}

/// Returns what a level means to a support person.
pub(super) fn level_in_words(level: Level) -> String {
    match level {
        Level::EXHAUSTED => "wallet exhausted".to_owned(),
        Level::FINAL => "final notice".to_owned(),
        Level(hours) => format!("{hours} h left"),
    }
}
