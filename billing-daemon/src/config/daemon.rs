//! The `[daemon]` table: what concerns the process rather than a job.

use std::{fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use serde_spanned::Spanned;

use super::report::{Report, Section};
use crate::config::{environment::Environment, log::LogFilter};
use billing_store::DatabaseUrl;

/// The settings of the process, from the environment and, beneath it, `[daemon]`.
#[derive(Clone, Debug)]
pub struct DaemonSettings {
    /// The database, if either names one.
    pub database_url: Option<DatabaseUrl>,
    /// Which events are logged.
    pub log_filter: LogFilter,
    /// How long runs in progress continue after a signal before they are asked to stop.
    pub drain_timeout: Duration,
    /// How long a job stays with a daemon that died; renewed every third of it.
    pub lease_ttl: Duration,
    /// Where this machine keeps what it must know beside the database.
    pub state_dir: Option<PathBuf>,
    /// What is known of the panel's own billing.
    pub panel_billing: PanelBilling,
    /// Whether a database elsewhere may do without proving that it is the one.
    pub allow_unverified_database: bool,
}

/// Whether a panel beside this daemon bills by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanelBilling {
    /// It does, for all we know: it must read the heartbeat, or the panel guard must hold it back.
    #[default]
    On,
    /// The operator has switched it off.
    Off,
}

/// A shorter lease runs out between two renewals that a busy database delays.
const SHORTEST_LEASE: Duration = Duration::from_secs(3);

pub(super) const KEYS: [&str; 7] = [
    "database-url",
    "log-level",
    "drain-timeout",
    "lease-ttl",
    "state-dir",
    "panel-billing",
    "allow-unverified-database",
];

pub(super) const PANEL_BILLING: [(&str, PanelBilling); 2] =
    [("on", PanelBilling::On), ("off", PanelBilling::Off)];

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            database_url: None,
            log_filter: LogFilter::default(),
            drain_timeout: Duration::from_mins(1),
            lease_ttl: Duration::from_secs(10),
            state_dir: None,
            panel_billing: PanelBilling::default(),
            allow_unverified_database: false,
        }
    }
}

impl DaemonSettings {
    /// What `[daemon]` says, where the environment does not say otherwise.
    pub(super) fn read(
        report: &Report<'_>,
        section: Option<&Section<'_, '_>>,
        environment: &Environment,
    ) -> Self {
        let mut settings = Self::default();
        if let Some(section) = section {
            settings.database_url = parsed(section, "database-url");
            settings.log_filter = parsed(section, "log-level").unwrap_or_default();
            if let Some(timeout) = section.duration("drain-timeout") {
                settings.drain_timeout = timeout.into_inner();
            }
            settings.state_dir = section.string("state-dir").map(|folder| PathBuf::from(folder.into_inner()));
            if let Some(billing) = section.choice("panel-billing", &PANEL_BILLING) {
                settings.panel_billing = billing.into_inner();
            }
            settings.allow_unverified_database =
                section.boolean("allow-unverified-database").unwrap_or_default();
            if let Some(ttl) = section.duration("lease-ttl") {
                if *ttl.get_ref() < SHORTEST_LEASE {
                    let message = "`lease-ttl` must be at least 3s, or a lease ends before it can be renewed";
                    report.at(&ttl.span(), message);
                }
                settings.lease_ttl = ttl.into_inner();
            }
        }
        if let Some(url) = report.accept(environment.database_url()).flatten() {
            settings.database_url = Some(url);
        }
        if let Some(filter) = environment.log_filter() {
            settings.log_filter = filter;
        }
        settings
    }
}

fn parsed<T: FromStr<Err: Display>>(section: &Section<'_, '_>, key: &str) -> Option<T> {
    let text = section.string(key)?;
    section
        .parsed(key, &text, |text| text.parse().map_err(|error: T::Err| error.to_string()))
        .map(Spanned::into_inner)
}
