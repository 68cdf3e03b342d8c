//! The status of billing as text for a terminal.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Report;
use crate::{
    format::{age_of, ago, count, instant},
    status::{
        BillingRole, Daemon, HoldSummary, JobView, Liveness, PanelGuardView, PanelStatus, RunView, Status,
        Uncharged,
    },
};
use billing_scheduler::{RunCause, duration::format_rounded};

/// Stopped daemons are listed for this long.
const STOPPED_SHOWN: TimeDelta = TimeDelta::days(1);

/// Renders a status for a terminal of that width.
pub(crate) fn render_status(status: &Status, width: Option<usize>) -> String {
    let since = |at: DateTime<Utc>| (status.observed_at - at).to_std().unwrap_or_default();
    let mut report = Report::default();
    report.add("billing", headline(status));
    report.add_list("", status.problems.iter().map(|problem| format!("- {}", problem.message)));
    report.add("last run", status.last_run.as_ref().map_or("none yet".to_owned(), |last| run(last, &since)));
    if let Some(totals) = status.last_run.as_ref().and_then(|last| last.totals.as_ref()) {
        let (hours, instances) = (count(totals.hours, "hour"), count(totals.charged, "instance"));
        let (amounts, held) = (totals.amounts(), totals.held);
        report.add("", format!("charged {amounts} for {hours} of {instances}; {held} held"));
    }
    report.add("last success", last_success(status, &since));
    if status.holds.is_empty() {
        report.add("held", "nothing");
    }
    report.add_list("held", holds(&status.holds, &since));
    report.add_list("uncharged", status.uncharged.iter().map(uncharged));
    report.add("panel", panel(&status.panel));
    report.add("guard", guard(&status.panel));
    report
        .add("schema", format!("{} on {}, read by version {}", status.schema, status.engine, status.version));
    daemons(&mut report, status, &since);
    let width_of_names = status.jobs.iter().map(|job| job.job.len()).max().unwrap_or_default();
    report.add_list(
        "jobs",
        status
            .jobs
            .iter()
            .map(|job| format!("{:width_of_names$}  {}", job.job, of_job(job, status.observed_at, &since))),
    );
    report.render(width)
}

fn headline(status: &Status) -> String {
    let kinds = [("billing_halted", "halted"), ("billing_paused", "paused")];
    let stopped = kinds.iter().find(|(kind, _)| status.problems.iter().any(|problem| problem.kind == *kind));
    match (status.problems.len() as u64, stopped) {
        (1, Some((_, state))) => (*state).to_owned(),
        (problems, Some((_, state))) => format!("{state}, {}", count(problems, "problem")),
        (0, None) if !status.has_billing => "not configured; no problems".to_owned(),
        (0, None) => "healthy".to_owned(),
        (problems, None) => count(problems, "problem"),
    }
}

fn last_success(status: &Status, since: &impl Fn(DateTime<Utc>) -> Duration) -> String {
    let last = status.last_success_at.map_or("none yet".to_owned(), |at| ago(since(at)));
    if status.panel.present && !status.panel.billing_off {
        let hand_back = age_of(Duration::from_secs(status.hand_back_after_seconds));
        format!("{last}; the panel bills {hand_back} after it unless another run succeeds")
    } else {
        last
    }
}

fn holds(holds: &[HoldSummary], since: &impl Fn(DateTime<Utc>) -> Duration) -> Vec<String> {
    let number = holds.iter().map(|held| held.owed.instances.to_string().len()).max().unwrap_or_default();
    let reason = holds.iter().map(|held| held.reason.len()).max().unwrap_or_default();
    let line = |held: &HoldSummary| {
        let owed = &held.owed;
        let accepted = match held.accepted {
            0 => String::new(),
            accepted if accepted == owed.instances => ", accepted".to_owned(),
            accepted => format!(", {accepted} accepted"),
        };
        format!(
            "{:>number$}  {:reason$}  {}, {owed}, since {}{accepted}",
            owed.instances,
            held.reason,
            count(owed.hours, "hour"),
            ago(since(held.since)),
        )
    };
    holds.iter().map(line).collect()
}

fn uncharged(Uncharged { reason, owed }: &Uncharged) -> String {
    let up_to = if reason == "instance_deleted" { "up to " } else { "" };
    let (hours, instances) = (count(owed.hours, "hour"), count(owed.instances, "instance"));
    format!("{up_to}{hours} of {instances}, {owed}: {reason}")
}

fn panel(panel: &PanelStatus) -> String {
    let tables = if panel.present { "of a panel" } else { "without a panel" };
    let off = if panel.billing_off { "; its billing is switched off according to jobs.toml" } else { "" };
    format!("tables of generation {}, {tables}{off}", panel.generation)
}

fn guard(panel: &PanelStatus) -> &'static str {
    match panel.guard {
        PanelGuardView { installed: false, .. } if !panel.present => "not needed (no panel found)",
        PanelGuardView { installed: false, .. } => "off",
        PanelGuardView { enabled: false, .. } => "installed, but disabled",
        PanelGuardView { effective: false, .. } => "installed, but by another version",
        PanelGuardView { outdated: true, .. } => "on, but outdated",
        _ => "on",
    }
}

fn daemons(report: &mut Report, status: &Status, since: &impl Fn(DateTime<Utc>) -> Duration) {
    let is_recent = |daemon: &&Daemon| {
        daemon.liveness != Liveness::Stopped
            || daemon.last_seen_at.is_some_and(|at| status.observed_at - at <= STOPPED_SHOWN)
    };
    let lines = |daemon: &Daemon| {
        let last_seen = daemon.last_seen_at.map_or("never".to_owned(), |at| ago(since(at)));
        let liveness = match daemon.liveness {
            Liveness::Alive => format!("alive, last seen {last_seen}"),
            Liveness::Failing => format!("alive and failing, last seen {last_seen}"),
            Liveness::Stopped => format!("stopped {last_seen}"),
            Liveness::Dead => format!("dead, last seen {last_seen}"),
        };
        let role = match daemon.billing_role {
            BillingRole::Active => " (billing)",
            BillingRole::Standby => " (standby)",
            BillingRole::None => "",
        };
        let host = daemon.host.as_deref().unwrap_or("an unknown host");
        let version = daemon.version.as_deref().unwrap_or("unknown");
        let clock = daemon.wrong_clock().map(|wrong| format!(", clock {wrong} the database's"));
        let clock = clock.unwrap_or_default();
        [daemon.daemon_id.clone(), format!("  {liveness}{role}; on {host}{clock}, version {version}")]
    };
    let recent: Vec<String> = status.daemons.iter().filter(is_recent).flat_map(lines).collect();
    if recent.is_empty() {
        report.add("daemons", "none");
    }
    report.add_list("daemons", recent);
}

fn run(run: &RunView, since: &impl Fn(DateTime<Utc>) -> Duration) -> String {
    let took = format_rounded(Duration::from_millis(run.duration_ms));
    let manual = if run.cause == RunCause::Manual { " (manual)" } else { "" };
    format!(
        "{}{manual} for {}, {} in {took}",
        run.status.as_str(),
        instant(run.scheduled_at),
        ago(since(run.finished_at))
    )
}

fn of_job(job: &JobView, observed_at: DateTime<Utc>, since: &impl Fn(DateTime<Utc>) -> Duration) -> String {
    let last = job.last_run.as_ref().map_or("never ran".to_owned(), |run| {
        format!("{} {}", run.status.as_str(), ago(since(run.finished_at)))
    });
    if let Some(paused) = &job.paused {
        return format!("{last}; {paused}");
    }
    match (job.late_seconds, &job.lease, job.due_at) {
        (Some(late), _, _) => format!("{last}; {} late", age_of(Duration::from_secs(late))),
        (None, Some(lease), _) => format!("{last}; running on {}", lease.holder),
        (None, None, Some(due)) if due > observed_at => {
            format!("{last}; next in {}", age_of((due - observed_at).to_std().unwrap_or_default()))
        }
        (None, None, Some(_)) => format!("{last}; due"),
        (None, None, None) => last,
    }
}
