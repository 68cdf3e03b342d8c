//! One page a file: what is read, and how it is shown.

pub(super) mod approvals;
pub(super) mod audit_log;
pub(super) mod billing;
pub(super) mod charge;
pub(super) mod daemons;
pub(super) mod dry_run;
pub(super) mod event;
pub(super) mod events;
pub(super) mod holds;
pub(super) mod job;
pub(super) mod jobs;
pub(super) mod overview;
pub(super) mod run;
pub(super) mod schedule;
pub(super) mod timeline;
pub(super) mod wallet;
pub(super) mod wallets;

/// What every page is made of.
mod prelude {
    pub(super) use chrono::{DateTime, Utc};
    pub(super) use maud::{Markup, html};
    pub(super) use serde::Serialize;

    pub(super) use crate::console::{
        action::{Field, Form, form},
        auth::Right,
        chart,
        layout::{
            Tone, badge, facts, grouped, keep, link, milliseconds, organization, prose, run_badge, run_link,
            since, table, text, time,
        },
        nearest,
        problem::Problem,
        visit::{View, Visit, pairs, parse_time},
    };
}
