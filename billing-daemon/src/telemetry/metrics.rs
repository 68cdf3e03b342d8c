//! What is measured, under which names: the one place that knows them.

pub use billing_jobs::metrics::{database_failed, fencing_rejected};
use billing_jobs::{
    billing::RunDetails,
    currency::Currency,
    metrics::{DATABASE_ERRORS, FENCING_REJECTIONS},
};
use billing_scheduler::{RunRecord, RunStatus};
use billing_store::ErrorClass;
use chrono::TimeDelta;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};

/// The definition of an exported metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The exported name.
    pub name: &'static str,
    /// How its value changes.
    pub kind: MetricType,
    /// The description in the exposition and in the reference page.
    pub help: &'static str,
}

/// How the value of a metric changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// A number that only grows.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// A distribution of seconds.
    Seconds,
}

const BUILD_INFO: &str = "billing_daemon_build_info";
const RUNS: &str = "billing_daemon_runs_total";
const RUN_DURATION: &str = "billing_daemon_run_duration_seconds";
const RUN_LATENESS: &str = "billing_daemon_run_lateness_seconds";
const MISFIRES: &str = "billing_daemon_misfires_total";
const CHARGED_INSTANCES: &str = "billing_daemon_charged_instances_total";
const CHARGED_HOURS: &str = "billing_daemon_charged_hours_total";
const CHARGED_AMOUNT: &str = "billing_daemon_charged_ten_thousandths_total";
const UNCHARGED_HOURS: &str = "billing_daemon_uncharged_hours_total";
const LEASE_CLAIMS: &str = "billing_daemon_lease_claims_total";
const CONSOLE_REFUSED: &str = "billing_daemon_console_refused_total";
const RELOADS: &str = "billing_daemon_config_reloads_total";
/// Why a run closes a debt without a charge.
const UNCHARGED: [&str; 2] = ["instance_deleted", "instance_transferred"];
/// Why the console refuses a request: the token is wrong, or another origin sent the request.
const CONSOLE_REFUSALS: [&str; 2] = ["credential", "origin"];
const ACCEPTED: &str = "accepted";
const REFUSED: &str = "refused";
pub(crate) const HELD_INSTANCES: &str = "billing_daemon_held_instances";
pub(crate) const ARREARS_INSTANCES: &str = "billing_daemon_arrears_instances";
pub(crate) const ARREARS_AMOUNT: &str = "billing_daemon_arrears_amount";
pub(crate) const DAEMONS_ALIVE: &str = "billing_daemon_daemons_alive";
pub(crate) const JOBS_LATE: &str = "billing_daemon_jobs_late";
pub(crate) const JOBS_AHEAD_UNTIL: &str = "billing_daemon_jobs_ahead_until_timestamp_seconds";
pub(crate) const PROBLEMS: &str = "billing_daemon_problems";
pub(crate) const HEARTBEAT: &str = "billing_daemon_heartbeat_timestamp_seconds";
pub(crate) const LAST_SUCCESS: &str = "billing_daemon_last_success_timestamp_seconds";
pub(crate) const INTERVAL: &str = "billing_daemon_billing_interval_seconds";
pub(crate) const SPIKE_AMOUNT: &str = "billing_daemon_spike_amount";
pub(crate) const GUARD_MISSING: &str = "billing_daemon_panel_guard_missing";
pub(crate) const HALTED: &str = "billing_daemon_billing_halted";
pub(crate) const AUDIT_VIOLATIONS: &str = "billing_daemon_audit_violations";
pub(crate) const STANDINGS: &str = "billing_daemon_prepaid_standings";
pub(crate) const DELIVERIES: &str = "billing_daemon_deliveries";
pub(crate) const OLDEST_DELIVERY: &str = "billing_daemon_oldest_delivery_age_seconds";
const CLOCK_OFFSET: &str = "billing_daemon_clock_offset_seconds";

/// All metrics of the daemon.
pub const ALL: [Metric; 32] = [
    gauge(BUILD_INFO, "always 1; the label is the version"),
    counter(RUNS, "runs of this daemon, by job and status"),
    seconds(RUN_DURATION, "duration of runs"),
    seconds(RUN_LATENESS, "time between the scheduled time and the start of runs"),
    counter(MISFIRES, "scheduled times that passed without a run"),
    counter(
        CHARGED_INSTANCES,
        "instances charged by successful runs of this daemon; each run counts an instance once",
    ),
    counter(CHARGED_HOURS, "hours charged by successful runs of this daemon"),
    counter(
        CHARGED_AMOUNT,
        "money charged by successful runs of this daemon, in ten-thousandths, by currency",
    ),
    counter(
        UNCHARGED_HOURS,
        "hours that runs of this daemon closed without a charge, by reason; an upper bound for deleted instances",
    ),
    counter(LEASE_CLAIMS, "job leases that this daemon claimed"),
    counter(FENCING_REJECTIONS, "writes that were rejected because another daemon had claimed the job"),
    counter(DATABASE_ERRORS, "database errors of leases, history and billing, by class"),
    counter(RELOADS, "reloads of jobs.toml, by result"),
    counter(CONSOLE_REFUSED, "requests to the console that were refused, by reason"),
    gauge(HELD_INSTANCES, "instances that are due but cannot be charged, by reason"),
    gauge(ARREARS_INSTANCES, "instances whose wallets have too small a balance"),
    gauge(ARREARS_AMOUNT, "amount that these instances owe, by currency"),
    gauge(DAEMONS_ALIVE, "running daemons on this database"),
    gauge(JOBS_LATE, "jobs that were due more than a minute ago and that no daemon runs"),
    gauge(
        JOBS_AHEAD_UNTIL,
        "when the last of the jobs runs again that wait because they ran while a clock was ahead; 0 if none waits",
    ),
    gauge(PROBLEMS, "problems that `billing-daemon status` reports"),
    gauge(
        HEARTBEAT,
        "when a daemon last reported to the panel that billing works; 0 if the report was withdrawn",
    ),
    gauge(
        LAST_SUCCESS,
        "when a billing run last succeeded; before the first success, when the oldest running daemon started",
    ),
    gauge(INTERVAL, "time between two billing runs"),
    gauge(
        SPIKE_AMOUNT,
        "amount that waits for an approval since the last billing run, by currency; 0 if none waits",
    ),
    gauge(
        GUARD_MISSING,
        "1 if the panel could charge the same hours because the panel guard is missing, disabled or outdated",
    ),
    gauge(HALTED, "1 if no daemon bills because a committed batch is missing, until `accept-restore`"),
    gauge(AUDIT_VIOLATIONS, "violations of an invariant that the last complete audit job found"),
    gauge(STANDINGS, "organizations that the prepaid policy has a standing of, by state"),
    gauge(DELIVERIES, "deliveries of events that are pending or dead, by status"),
    gauge(OLDEST_DELIVERY, "age of the oldest event with a pending delivery; 0 if none is pending"),
    gauge(
        CLOCK_OFFSET,
        "the database's clock minus that of this daemon's host, which is behind if this is positive; 0 on SQLite",
    ),
];

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricType::Gauge, help }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricType::Counter, help }
}

const fn seconds(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricType::Seconds, help }
}

/// Seconds that a run may take, from a heartbeat to the largest fleet.
const DURATIONS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// A recorder that renders for Prometheus. Nothing is recorded until it is installed.
///
/// # Errors
/// Never, as long as the buckets above are in order.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &DURATIONS)?
        .build_recorder();
    metrics::with_local_recorder(&recorder, describe);
    Ok(recorder)
}

fn describe() {
    for Metric { name, kind, help } in ALL {
        match kind {
            MetricType::Counter => describe_counter!(name, help),
            MetricType::Gauge => describe_gauge!(name, help),
            MetricType::Seconds => describe_histogram!(name, Unit::Seconds, help),
        }
    }
}

/// The daemon begins: its name is there, and whatever it counts, at zero. Prometheus sees no step from a count that is not there to
/// its first one, so the first reload that is refused would go unnoticed.
pub fn begin() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    clock_offset(None);
    for name in [CHARGED_INSTANCES, CHARGED_HOURS] {
        counter!(name).increment(0);
    }
    counter!(CHARGED_AMOUNT, "currency" => Currency::USD.to_string()).increment(0);
    for reason in UNCHARGED {
        counter!(UNCHARGED_HOURS, "reason" => reason).increment(0);
    }
    for result in [ACCEPTED, REFUSED] {
        counter!(RELOADS, "result" => result).increment(0);
    }
    for reason in CONSOLE_REFUSALS {
        counter!(CONSOLE_REFUSED, "reason" => reason).increment(0);
    }
    for class in ErrorClass::ALL {
        counter!(DATABASE_ERRORS, "class" => class.as_str()).increment(0);
    }
}

/// These jobs are in force from now on.
pub fn in_force(jobs: &[String]) {
    for job in jobs {
        for status in RunStatus::ALL {
            counter!(RUNS, "job" => job.clone(), "status" => status.as_str()).increment(0);
        }
        for name in [MISFIRES, LEASE_CLAIMS, FENCING_REJECTIONS] {
            counter!(name, "job" => job.clone()).increment(0);
        }
    }
}

/// A run was written to the history.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a run are far below 2^52")]
pub fn recorded(run: &RunRecord) {
    let job = run.job.clone();
    counter!(RUNS, "job" => job.clone(), "status" => run.status.as_str()).increment(1);
    // A time that was never due is not missed.
    if run.status == RunStatus::Rescheduled {
        return;
    }
    // What was passed over took no time.
    if run.attempt == 0 || run.status == RunStatus::Skipped {
        counter!(MISFIRES, "job" => job).increment(1);
        return;
    }
    let took = (run.finished_at - run.started_at).num_milliseconds().max(0);
    histogram!(RUN_DURATION, "job" => job.clone()).record(took as f64 / 1_000.0);
    if run.attempt == 1 {
        histogram!(RUN_LATENESS, "job" => job).record(run.lateness_ms() as f64 / 1_000.0);
    }
    // Other jobs have other details.
    let details = RunDetails::from_json(&run.details);
    if let Some(totals) = &details.totals {
        counter!(CHARGED_INSTANCES).increment(totals.charged);
        counter!(CHARGED_HOURS).increment(totals.hours);
        for (currency, amount) in totals.amounts().iter() {
            counter!(CHARGED_AMOUNT, "currency" => currency.to_string()).increment(amount.0.unsigned_abs());
        }
    }
    for reason in UNCHARGED {
        let hours = details.uncharged.get(reason).map_or(0, |debt| debt.hours);
        counter!(UNCHARGED_HOURS, "reason" => reason).increment(hours);
    }
}

/// The lease of a job was claimed.
pub fn claimed(job: &str) {
    counter!(LEASE_CLAIMS, "job" => job.to_owned()).increment(1);
}

/// Sets the measured difference between the database's clock and the host's.
pub fn clock_offset(offset: Option<TimeDelta>) {
    gauge!(CLOCK_OFFSET).set(offset.unwrap_or_default().as_seconds_f64());
}

/// Counts a reload of the configuration.
pub fn reloaded(accepted: bool) {
    counter!(RELOADS, "result" => if accepted { ACCEPTED } else { REFUSED }).increment(1);
}

/// Counts a request that the console refused for this reason.
#[cfg(feature = "console")]
pub(crate) fn console_refused(reason: &'static str) {
    counter!(CONSOLE_REFUSED, "reason" => reason).increment(1);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use billing_scheduler::{FencingToken, RunCause};
    use chrono::{DateTime, Utc};
    use serde_json::json;

    use super::*;

    const ALERTS: &str = include_str!("../../shipped/alerts.yml");
    const DASHBOARD: &str = include_str!("../../shipped/grafana.json");
    const MANUAL: &str = include_str!("../../shipped/alerts.md");

    fn run(status: RunStatus, attempt: u32, details: serde_json::Value) -> RunRecord {
        let at = DateTime::<Utc>::from_timestamp_secs(1_800_000_000).expect("a time");
        RunRecord {
            id: uuid::Uuid::nil(),
            job: "billing".to_owned(),
            per_node: false,
            scheduled_at: at,
            range: None,
            status,
            cause: RunCause::Schedule,
            request_id: None,
            attempt,
            fencing_token: FencingToken(1),
            started_at: at + TimeDelta::milliseconds(250),
            finished_at: at + TimeDelta::milliseconds(2_250),
            items: 3,
            reason: None,
            error: None,
            details,
        }
    }

    /// What is rendered after `what` happened.
    pub(crate) fn rendered(what: impl FnOnce()) -> String {
        let recorder = recorder().expect("the buckets are in order");
        metrics::with_local_recorder(&recorder, what);
        recorder.handle().render()
    }

    #[track_caller]
    pub(crate) fn shows(text: &str, line: &str) {
        assert!(text.lines().any(|shown| shown == line), "no `{line}` in:\n{text}");
    }

    #[test]
    fn run_counts_what_it_charged() {
        let uncharged =
            json!({ "instance_deleted": { "instances": 1, "hours": 4, "amounts": {}, "unpriced": 0 } });
        let currencies = json!({
            "EUR": { "charges": 1, "hours": 1, "amount": "0.02" },
            "USD": { "charges": 2, "hours": 8, "amount": "0.0901" },
        });
        let details = json!({
            "charged": 3, "charges": 3, "held": 1, "hours": 9, "currencies": currencies, "uncharged": uncharged,
        });
        let text = rendered(|| {
            recorded(&run(RunStatus::Done, 1, details));
            recorded(&run(RunStatus::Retrying, 1, json!(null)));
            recorded(&run(RunStatus::Done, 2, json!(null)));
            recorded(&run(RunStatus::Skipped, 0, json!(null)));
            recorded(&run(RunStatus::Rescheduled, 0, json!(null)));
        });
        shows(&text, r#"billing_daemon_runs_total{job="billing",status="done"} 2"#);
        shows(&text, r#"billing_daemon_runs_total{job="billing",status="retrying"} 1"#);
        shows(&text, r#"billing_daemon_run_duration_seconds_sum{job="billing"} 6"#);
        shows(&text, r#"billing_daemon_run_duration_seconds_bucket{job="billing",le="5"} 3"#);
        shows(&text, r#"billing_daemon_run_lateness_seconds_count{job="billing"} 2"#);
        shows(&text, r#"billing_daemon_misfires_total{job="billing"} 1"#);
        shows(&text, "billing_daemon_charged_instances_total 3");
        shows(&text, "billing_daemon_charged_hours_total 9");
        shows(&text, r#"billing_daemon_charged_ten_thousandths_total{currency="EUR"} 200"#);
        shows(&text, r#"billing_daemon_charged_ten_thousandths_total{currency="USD"} 901"#);
        shows(&text, r#"billing_daemon_uncharged_hours_total{reason="instance_deleted"} 4"#);
        shows(&text, r#"billing_daemon_uncharged_hours_total{reason="instance_transferred"} 0"#);
    }

    #[test]
    fn counters_are_exported_before_first_event() {
        let text = rendered(|| {
            begin();
            in_force(&["billing".to_owned()]);
        });
        for Metric { name, .. } in ALL.iter().filter(|metric| metric.kind == MetricType::Counter) {
            let mut lines = text.lines().filter(|line| line.starts_with(name)).peekable();
            assert!(lines.peek().is_some(), "{name} is not exported at the start");
            assert!(lines.all(|line| line.ends_with(" 0")), "{name} does not begin with 0");
        }
        shows(&text, r#"billing_daemon_config_reloads_total{result="refused"} 0"#);
        shows(&text, r#"billing_daemon_runs_total{job="billing",status="dead"} 0"#);
        shows(&text, r#"billing_daemon_database_errors_total{class="lost"} 0"#);
    }

    /// The names of our metrics in a text, without the suffixes that Prometheus appends for a distribution.
    fn names(text: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (at, _) in text.match_indices("billing_daemon_") {
            let end =
                text[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len() - at);
            let name = &text[at..at + end];
            let known = |name: &str| ALL.iter().any(|metric| metric.name == name);
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|name| known(name));
            names.insert(base.unwrap_or(name).to_owned());
        }
        names
    }

    #[test]
    fn alerts_and_dashboard_use_exactly_all_metrics() {
        let known: BTreeSet<_> = ALL.iter().map(|metric| metric.name.to_owned()).collect();
        assert_eq!(known.len(), ALL.len(), "no name twice");
        for (file, text) in [("alerts.yml", ALERTS), ("grafana.json", DASHBOARD)] {
            let unknown: Vec<_> = names(text).into_iter().filter(|name| !known.contains(name)).collect();
            assert!(unknown.is_empty(), "{file} uses {unknown:?}, which are not exported");
        }
        let shown: BTreeSet<_> = names(ALERTS).union(&names(DASHBOARD)).cloned().collect();
        let unseen: Vec<_> = known.difference(&shown).collect();
        assert!(unseen.is_empty(), "neither dashboard nor alerts show {unseen:?}");
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
        assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 5));
    }

    #[test]
    fn each_alert_has_a_manual_section() {
        let alerts: Vec<_> =
            ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert_eq!(alerts.len(), 11);
        for alert in alerts {
            assert!(
                MANUAL.contains(&format!("\n### {alert}\n")),
                "docs/operate/alerts.md does not describe {alert}"
            );
            let anchor = format!("docs/operate/alerts.md#{}", alert.to_ascii_lowercase());
            assert!(ALERTS.contains(&anchor), "{alert} does not link to its section");
        }
    }
}
