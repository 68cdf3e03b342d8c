//! The tables of the pages and of the actions. What has no row is not served, and a row without a right does not compile.

use std::pin::Pin;

use super::{
    action::{self, Done, Fields},
    auth::Right,
    page,
    problem::Problem,
    visit::{Page, Visit},
};

type Reading<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Page>, Problem>> + Send + 'a>>;

/// One row: where a page is, who may see it, and how it is read.
pub(super) struct PageRoute {
    /// The path below that of the console.
    pub(super) path: &'static str,
    /// The path of its JSON below `/api`; none if the interface for machines has the same data there.
    pub(super) api: Option<&'static str>,
    pub(super) right: Right,
    /// The keys that the query may have.
    pub(super) keys: &'static [&'static str],
    pub(super) read: for<'a> fn(&'a Visit) -> Reading<'a>,
}

macro_rules! page {
    ($path:literal, $api:expr, $right:expr, $keys:expr, $read:path) => {
        PageRoute {
            path: $path,
            api: $api,
            right: $right,
            keys: $keys,
            read: |visit| Box::pin(async move { Ok(Box::new($read(visit).await?) as Box<dyn Page>) }),
        }
    };
}

/// Every page, besides signing in.
pub(super) static PAGES: [PageRoute; 17] = [
    page!("/", Some("/overview"), Right::View, &[], page::overview::read),
    page!("/jobs", None, Right::View, &[], page::jobs::read),
    page!("/jobs/{name}", Some("/jobs/{name}"), Right::View, &["runs"], page::job::read),
    page!(
        "/jobs/{name}/timeline",
        Some("/jobs/{name}/timeline"),
        Right::View,
        &["runs"],
        page::timeline::read
    ),
    page!("/runs/{id}", Some("/runs/{id}"), Right::View, &[], page::run::read),
    page!("/approvals", Some("/approvals"), Right::View, &[], page::approvals::read),
    page!("/holds", Some("/holds"), Right::View, &["reason", "after", "organization"], page::holds::read),
    page!(
        "/wallets",
        Some("/wallets"),
        Right::View,
        &["below", "find", "runway", "after"],
        page::wallets::read
    ),
    page!("/wallets/{organization}", Some("/wallets/{organization}"), Right::View, &[], page::wallet::read),
    page!("/charges/{instance}", Some("/charges/{instance}"), Right::View, &["at"], page::charge::read),
    page!("/billing", Some("/billing"), Right::View, &[], page::billing::read),
    page!("/billing/dry-run", Some("/billing/dry-run"), Right::Operate, &[], page::dry_run::read),
    page!(
        "/schedule",
        Some("/schedule"),
        Right::View,
        &["text", "zone", "from", "job"],
        page::schedule::read
    ),
    page!(
        "/events",
        Some("/events"),
        Right::View,
        &["status", "organization", "event", "endpoint"],
        page::events::read
    ),
    page!("/events/{id}", Some("/events/{id}"), Right::View, &[], page::event::read),
    page!("/daemons", Some("/daemons"), Right::View, &[], page::daemons::read),
    page!(
        "/audit-log",
        Some("/audit-log"),
        Right::View,
        &["before", "actor", "action", "job"],
        page::audit_log::read
    ),
];

type Acting<'a> = Pin<Box<dyn Future<Output = Result<Done, Problem>> + Send + 'a>>;

/// An action: a form is sent to its path, which is that of its page and a verb.
pub(super) struct ActionRoute {
    /// The path below that of the console.
    pub(super) path: &'static str,
    pub(super) right: Right,
    pub(super) act: for<'a> fn(&'a Visit, &'a Fields) -> Acting<'a>,
}

macro_rules! action {
    ($path:literal, $right:expr, $act:path) => {
        ActionRoute { path: $path, right: $right, act: |visit, fields| Box::pin($act(visit, fields)) }
    };
}

/// Every action, besides signing in and out.
pub(super) static ACTIONS: [ActionRoute; 10] = [
    action!("/jobs/{name}/pause", Right::Operate, action::pause),
    action!("/jobs/{name}/resume", Right::Operate, action::resume),
    action!("/jobs/{name}/trigger", Right::Operate, action::trigger),
    action!("/jobs/{name}/replay", Right::Operate, action::replay),
    action!("/jobs/{name}/cancel", Right::Operate, action::cancel),
    action!("/approvals/spike", Right::Approve, action::approve_spike),
    action!("/approvals/catch-up", Right::Approve, action::approve_catch_up),
    action!("/wallets/{organization}/policy", Right::Approve, action::policy),
    action!("/events/{id}/redeliver", Right::Operate, action::redeliver),
    action!("/events/{id}/cancel", Right::Operate, action::cancel_delivery),
];

/// The path of each page below that of the console, and the keys that its query may have.
#[must_use]
pub fn pages() -> Vec<(&'static str, &'static [&'static str])> {
    PAGES.iter().map(|page| (page.path, page.keys)).collect()
}

/// The path of each action below that of the console, and the right that it needs.
#[must_use]
pub fn actions() -> Vec<(&'static str, &'static str)> {
    ACTIONS.iter().map(|action| (action.path, action.right.as_str())).collect()
}
