//! What commands and pages show of an organization, as JSON and in words.

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
pub(crate) struct WalletView {
    pub(crate) organization: String,
    pub(crate) name: String,
    /// The balance as decimal text, as all amounts; unset if it is unknown.
    pub(crate) balance: Option<String>,
    pub(crate) credit_limit: Option<String>,
    pub(crate) currency: Option<Currency>,
    /// What is due and unpaid.
    pub(crate) owed: Option<String>,
    pub(crate) burn_per_hour: Option<String>,
    /// The hours that the wallet covers, negative if it owes; unset if nothing is spent, or if the hours are unknown.
    pub(crate) runway_hours: Option<i64>,
    pub(crate) state: &'static str,
    pub(crate) episode: i64,
    /// The notices of the episode, the most urgent last.
    pub(crate) notices: Vec<NoticeView>,
    /// The number of the newest order.
    pub(crate) order: Option<i64>,
    /// Why the hours are unknown.
    pub(crate) problem: Option<String>,
    #[serde(skip)]
    pub(crate) runway: Option<Runway>,
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
            order: Some(found.standing.order_number).filter(|number| *number > 0),
            problem: found.account.as_ref().err().cloned(),
            runway: found.facts.runway,
        }
    }
}

impl WalletView {
    /// Returns the runway as a cell of a table.
    pub(crate) fn runway_in_words(&self) -> String {
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
pub(crate) struct StandingView {
    #[serde(flatten)]
    pub(crate) wallet: WalletView,
    pub(crate) since: DateTime<Utc>,
    pub(crate) desired: &'static str,
    pub(crate) suspension: SuspensionView,
}

/// A notice of the present episode.
#[derive(Debug, Serialize)]
pub(crate) struct NoticeView {
    pub(crate) level: i32,
    pub(crate) at: DateTime<Utc>,
    /// `recorded`, `passed`, `sent` or `delivered`.
    pub(crate) outcome: &'static str,
    pub(crate) delivered_at: Option<DateTime<Utc>>,
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
pub(crate) struct SuspensionView {
    /// The earliest time; unset if something besides time is missing.
    pub(crate) earliest: Option<DateTime<Utc>>,
    pub(crate) unmet: Vec<UnmetView>,
}

/// A condition that is not met.
#[derive(Debug, Serialize)]
pub(crate) struct UnmetView {
    pub(crate) guard: &'static str,
    pub(crate) detail: String,
}

impl StandingView {
    pub(crate) fn of(prepaid: &Prepaid, found: &Assessment) -> Self {
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
pub(crate) fn level_in_words(level: Level) -> String {
    match level {
        Level::EXHAUSTED => "wallet exhausted".to_owned(),
        Level::FINAL => "final notice".to_owned(),
        Level(hours) => format!("{hours} h left"),
    }
}
