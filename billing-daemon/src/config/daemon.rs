//! The `[daemon]` table: the settings of the process, as opposed to those of jobs.

use std::{fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use serde_spanned::Spanned;

use super::report::{Report, Section};
use crate::config::{environment::Environment, log::LogFilter};
use billing_store::DatabaseUrl;

/// The settings of the process. The environment wins over `[daemon]`.
#[derive(Clone, Debug)]
pub struct DaemonSettings {
    /// The database, if either names one.
    pub database_url: Option<DatabaseUrl>,
    /// Which events are logged.
    pub log_filter: LogFilter,
    /// How long runs in progress continue after a signal before they are requested to stop.
    pub drain_timeout: Duration,
    /// How long the lease of a daemon that died lasts; leases are renewed three times as often.
    pub lease_ttl: Duration,
    /// Where this host keeps its state outside the database.
    pub state_dir: Option<PathBuf>,
    /// Whether the panel bills itself.
    pub panel_billing: PanelBilling,
    /// Whether a database on another host may be used without proof that it is the right one.
    pub allow_unverified_database: bool,
}

/// Whether a panel next to this daemon bills itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanelBilling {
    /// It may: it must read the heartbeat, or the panel guard must hold it back.
    #[default]
    On,
    /// The operator has switched it off.
    Off,
}

/// A shorter lease expires between two renewals that a busy database delays.
const MIN_LEASE_TTL: Duration = Duration::from_secs(3);

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
    /// Returns the folder of this host's state: `state-dir`, or the one that systemd gives a service.
    #[must_use]
    pub fn state_folder(&self) -> Option<PathBuf> {
        let of_service = || std::env::var_os("STATE_DIRECTORY").filter(|folder| !folder.is_empty());
        self.state_dir.clone().or_else(|| of_service().map(PathBuf::from))
    }

    /// Reads `[daemon]` and the environment.
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
            if let Some(billing) = section.choice("panel-billing") {
                settings.panel_billing = billing.into_inner();
            }
            settings.allow_unverified_database =
                section.boolean("allow-unverified-database").unwrap_or_default();
            if let Some(ttl) = section.duration("lease-ttl") {
                if *ttl.get_ref() < MIN_LEASE_TTL {
                    let message = "`lease-ttl` must be at least 3s, or a lease ends before it can be renewed";
                    report.error(&ttl.span(), message);
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

#[cfg(test)]
mod tests {
    use super::super::testing::{HOURLY, check, job};

    #[test]
    fn invalid_daemon_settings_are_reported() {
        let daemon = r#"
            [daemon]
            lease-ttl = "2s"
            drain-timeout = "half an hour"
            log-level = "inof"
            database-url = "postgres://ada:s3/cret@db/panel""#;
        check(
            &format!("{}{daemon}", job(HOURLY)),
            &[
                "jobs.toml:7:25: `lease-ttl` must be at least 3s, or a lease ends before it can be renewed",
                "jobs.toml:8:29: `drain-timeout`: invalid duration `half an hour`: use numbers with units, such as `90s`, `15m`, `1h 30m` or `30d`",
                "jobs.toml:9:25: `log-level`: unknown log level `inof`, did you mean `info`?",
                "jobs.toml:10:28: `database-url`: the database URL is malformed (invalid port number): write postgres://user:password@host:5432/database, with / in a password as %2F, or sqlite://file",
            ],
        );
    }
}
