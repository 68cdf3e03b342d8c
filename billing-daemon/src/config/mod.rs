//! The operator's file, `jobs.toml`, and the environment, parsed once into typed values; every mistake is reported at once.

pub mod console;
mod daemon;
mod diagnostic;
pub mod environment;
pub mod http;
mod job;
pub mod log;
mod panel;
mod params;
mod position;
mod prepaid;
mod report;
mod schedule;
mod schema;
pub mod secret_file;
mod suggest;
mod tables;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, time::Duration};

use billing_jobs::{BILLING_JOB, DELIVER_KIND, DeliverParams, PREPAID_KIND, prepaid::DeliverySettings};
use billing_kinds::{Ping, Secret};
use billing_scheduler::{JobSpec, Registry};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue, Error};

pub use daemon::{DaemonSettings, PanelBilling};
pub use diagnostic::{Diagnostic, Location};
pub(crate) use schedule::parse_schedule;
pub use schema::schema;
pub(crate) use suggest::{closest, did_you_mean};

use crate::config::{environment::Environment, http::HttpSettings};
use job::Draft;
use report::{Report, Section, mismatch};
use tables::{DaemonTable, JobsFile};

/// The configuration of a daemon without a jobs.toml.
pub const BUILT_IN: &str = include_str!("defaults.toml");

/// The time between two runs of billing that applies where no configuration has one: the panel's default.
pub const DEFAULT_BILLING_INTERVAL: Duration = Duration::from_hours(1);

/// What the daemon runs, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings of the process.
    pub daemon: DaemonSettings,
    /// The enabled jobs, at least one, with their valid parameters.
    pub jobs: Vec<(JobSpec, serde_json::Value)>,
    /// Where jobs send pings, by the name of the job.
    pub pings: BTreeMap<String, Ping>,
    /// Whether and where HTTP is served.
    pub http: Option<HttpSettings>,
    /// The time between the next two runs of billing, rounded up to minutes, as the panel shows it; `None` without them.
    pub billing_interval: Option<Duration>,
    /// Settings that are valid but probably not intended.
    pub warnings: Vec<Diagnostic>,
}

impl Config {
    /// Parses the text of the file `file_name`. The environment wins over it. The search for long gaps in the schedule of billing
    /// begins at `now`.
    ///
    /// # Errors
    /// Every mistake, at least one, in the order of the file.
    pub fn load(
        text: &str,
        file_name: &str,
        environment: &Environment,
        registry: &Registry,
        now: DateTime<Utc>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let report = Report::new(file_name, text, now);
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            report_syntax(&report, &errors);
            return Err(report.finish());
        }
        let root = Section::new::<JobsFile>(&report, root.get_ref(), 0..0);
        let section = root.table::<DaemonTable>("daemon", "a table");
        let daemon = DaemonSettings::read(&report, section.as_ref(), environment);
        let http = http::read(&root);
        let jobs = jobs(&report, &root);
        let read = |job| Draft::read(&report, registry, job, now);
        let mut drafts: Vec<_> = jobs.unwrap_or_default().iter().filter_map(read).collect();
        check_unique(&report, &drafts);
        let all_read = jobs.is_some_and(|jobs| jobs.len() == drafts.len());
        if all_read && !drafts.iter().any(|job| job.enabled) {
            let message =
                "no job is enabled: add a [[job]] with `name`, `kind` and `schedule`, or enable one";
            report.push(Diagnostic::new(Location::file(file_name), message));
        }
        panel::check_names(&report, &drafts);
        panel::check_scope(&report, &drafts);
        prepaid::check(&report, &drafts);
        let interval = report.accept(environment.billing_interval()).flatten();
        let mut warnings: Vec<_> =
            interval.and_then(|interval| panel::apply_interval(&mut drafts, interval)).into_iter().collect();
        panel::check_gaps(&report, &drafts, now);
        warnings.extend(panel::unseen_billing(&report, registry, &drafts));
        warnings.extend(differing_zones(&drafts, now));
        warnings.extend(report.take_warnings());

        let (mut jobs, mut pings) = (Vec::new(), BTreeMap::new());
        for (spec, params, ping) in drafts.into_iter().filter(|job| job.enabled).filter_map(Draft::into_job) {
            pings.extend(ping.map(|ping| (spec.name.clone(), ping)));
            jobs.push((spec, params));
        }
        let problems = report.finish();
        if !problems.is_empty() {
            return Err(problems);
        }
        let billing_interval = panel::billing_interval(&jobs, now);
        Ok(Self { daemon, jobs, pings, http, billing_interval, warnings })
    }

    /// Whether a job charges.
    #[must_use]
    pub fn bills(&self) -> bool {
        self.jobs.iter().any(|(spec, _)| spec.kind == BILLING_JOB)
    }

    /// Returns the time between two runs of billing, or [`DEFAULT_BILLING_INTERVAL`].
    #[must_use]
    pub fn billing_interval_or_default(&self) -> Duration {
        self.billing_interval.unwrap_or(DEFAULT_BILLING_INTERVAL)
    }

    /// Returns the endpoints of the prepaid policy, and the parameters of its job.
    #[must_use]
    pub fn deliveries(&self) -> DeliverySettings {
        DeliverySettings {
            endpoints: self.params_of::<DeliverParams>(DELIVER_KIND).endpoint.into(),
            params: self.params_of(PREPAID_KIND),
        }
    }

    /// Returns the parameters of the first job of this kind; the defaults without one. The registry has checked them.
    fn params_of<P: DeserializeOwned + Default>(&self, kind: &str) -> P {
        let params = self.jobs.iter().find(|(spec, _)| spec.kind == kind).map(|(_, params)| params.clone());
        params.and_then(|params| serde_json::from_value(params).ok()).unwrap_or_default()
    }

    /// Returns the file with the token of HTTP, if it is in a file.
    #[must_use]
    pub fn token_file(&self) -> Option<&Path> {
        match self.http.as_ref()?.token.as_ref()? {
            Secret::File(path) => Some(path),
            Secret::Env(_) | Secret::Text(_) | Secret::Credential(_) => None,
        }
    }

    /// Returns the current secrets of the jobs, which their parameters contain or refer to.
    #[must_use]
    pub fn secrets(&self, registry: &Registry) -> Vec<String> {
        let of_jobs =
            self.jobs.iter().flat_map(|(spec, params)| registry.secrets_of(&spec.kind, params.clone()));
        of_jobs.chain(self.pings.values().flat_map(Ping::secrets)).collect()
    }
}

/// Reports one syntax error a line: further errors on a line are mostly consequences of the first.
fn report_syntax(report: &Report<'_>, errors: &[Error]) {
    let mut lines = Vec::new();
    for error in errors {
        let span = error.span().unwrap_or_default();
        let line = report.location(&span).line;
        if !lines.contains(&line) {
            lines.push(line);
            report.error(&span, error.message());
        }
    }
}

/// Returns every `[[job]]`; reports `job` if it is something else, and returns `None`.
fn jobs<'r, 't>(report: &Report<'_>, root: &Section<'r, 't>) -> Option<&'r [Spanned<DeValue<'t>>]> {
    let Some(value) = root.value("job") else { return Some(&[]) };
    if let DeValue::Array(jobs) = value.get_ref() {
        return Some(jobs);
    }
    report.error(&value.span(), mismatch("job", "written as [[job]]", value.get_ref()));
    None
}

/// Warns once about each time zone whose rules differ between this program and this host.
fn differing_zones(jobs: &[Draft<'_>], now: DateTime<Utc>) -> Vec<Diagnostic> {
    let mut zones = BTreeMap::new();
    for timing in jobs.iter().filter(|job| job.enabled).filter_map(|job| job.timing.as_ref()) {
        for difference in timing.schedule.zone_differences(now) {
            zones.entry(difference.zone).or_insert((&timing.location, difference.from));
        }
    }
    let warning = |(zone, (location, from)): (String, (&Location, DateTime<Utc>))| {
        let from = from.to_rfc3339_opts(SecondsFormat::Secs, true);
        let message = format!(
            "from {from} on, the rules of {zone} on this host differ from those that this program was built with: \
             those of the host are used"
        );
        let help = "update the time zone data of the host if they are the older ones".to_owned();
        Diagnostic::new(location.clone(), message).with_help(Some(help))
    };
    zones.into_iter().map(warning).collect()
}

fn check_unique(report: &Report<'_>, jobs: &[Draft<'_>]) {
    let mut seen = BTreeMap::new();
    for name in jobs.iter().filter_map(|job| job.name.as_ref()) {
        let location = report.location(&name.span());
        if let Some(first) = seen.get(name.get_ref()) {
            report.error(&name.span(), format!("{first} has a job named `{}` already", name.get_ref()));
        } else {
            seen.insert(*name.get_ref(), location);
        }
    }
}
