//! What of a status somebody should do something about.

use std::time::Duration;

use billing_jobs::{BILLING_JOB, hold::Reason};
use billing_scheduler::ScheduleAhead;
use chrono::{DateTime, Utc};

use crate::config::DEFAULT_BILLING_INTERVAL;

use super::{BillingRole, Daemon, Expected, JobStatus, Liveness, Problem, RunStatus, Status};
use crate::format::{age_of, ago};

/// Everything in `status` that is not as it should be.
#[must_use]
pub fn problems(status: &Status, expected: &Expected) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut found = |kind, message| problems.push(Problem { kind, message });
    let since = |at: DateTime<Utc>| (status.observed_at - at).to_std().unwrap_or_default();
    let interval = expected.billing_interval.unwrap_or(DEFAULT_BILLING_INTERVAL);

    if !status.daemons.iter().any(|daemon| daemon.liveness.is_alive()) {
        found("no_daemon", "no daemon is alive: start one with `billing-daemon run`".to_owned());
    }
    for daemon in &status.daemons {
        let heard = daemon.last_seen_at.map_or_else(String::new, |at| format!(" for {}", age_of(since(at))));
        match (daemon.liveness, &daemon.error) {
            (Liveness::Dead, _) => found(
                "daemon_dead",
                format!("{} has said nothing{heard}: see its log, and start it again", daemon.daemon_id),
            ),
            (Liveness::Failing, error) => found(
                "daemon_failing",
                format!("{}: {}", daemon.daemon_id, error.as_deref().unwrap_or("it says that billing fails")),
            ),
            (Liveness::Alive | Liveness::Stopped, _) => {}
        }
    }
    let paused = status.jobs.iter().find(|job| job.name == BILLING_JOB).and_then(|job| job.paused.as_ref());
    let paused = paused.filter(|_| status.has_billing);
    if let Some(paused) = paused {
        let hand_back = age_of(Duration::from_secs(status.hand_back_after_seconds));
        let message = format!(
            "billing is {paused}: `billing-daemon jobs resume billing` ends that; the panel may bill {hand_back} after the last success"
        );
        found("billing_paused", message);
    }
    match status.last_success_at.map(since) {
        _ if !status.has_billing || paused.is_some() => {}
        // As the heartbeat does as well: whoever has just begun may wait for the first time that is due.
        None if status.daemons.iter().any(|daemon| is_new(daemon, status.observed_at, interval)) => {}
        None => found("billing_silent", "no billing run has ended well yet".to_owned()),
        Some(silence) if silence > interval + interval / 4 => found(
            "billing_silent",
            format!(
                "billing has not worked for {}; the panel is told to bill by itself after {}",
                age_of(silence),
                age_of(Duration::from_secs(status.hand_back_after_seconds))
            ),
        ),
        Some(_) => {}
    }
    if let Some(run) = failed_run(status).filter(|_| status.has_billing) {
        let reason = run.error.as_deref().or(run.reason.as_deref()).unwrap_or("no reason is known");
        found(
            if run.details().pending_amounts().is_some() { "spike" } else { "billing_failed" },
            format!("the last billing run, {}, is {}: {reason}", ago(since(run.finished_at)), run.status),
        );
    }
    let (panel, guard) = (&status.panel, status.panel.guard);
    if status.lacks_guard() {
        let state = match (guard.installed, guard.enabled) {
            (false, _) => "missing",
            (true, false) => "disabled",
            (true, true) => "not the one of this version",
        };
        let message = format!(
            "the panel, of generation {}, may charge the same hours, and the panel guard is {state}: run `billing-daemon guard install`",
            panel.generation
        );
        found("panel_guard", message);
    } else if status.has_billing && guard.installed && guard.outdated {
        let message =
            "the panel guard is not as this program would install it: `billing-daemon guard install`"
                .to_owned();
        found("panel_guard", message);
    }
    for held in &status.holds {
        let open = held.owed.instances.saturating_sub(held.accepted);
        // A customer who owes is no fault of anybody who runs this.
        if status.has_billing && open > 0 && held.reason != Reason::InsufficientBalance.as_str() {
            let instances = if open == 1 { "instance is" } else { "instances are" };
            let message = format!("{open} {instances} held for `{}`: {}", held.reason, held.advice);
            found("held", message);
        }
    }
    problems.extend(status.jobs.iter().flat_map(of_job));
    problems
}

/// The last billing run if it failed, or the newest scheduled times if they passed without one.
fn failed_run(status: &Status) -> Option<&RunStatus> {
    let billing = status.jobs.iter().find(|job| job.name == BILLING_JOB);
    let newest = billing.and_then(|job| job.last_run.as_ref());
    // A request that no daemon carried out in time is not a billing run that failed.
    let is_passed =
        |run: &&RunStatus| run.cause == "schedule" && matches!(run.status.as_str(), "skipped" | "missed");
    let has_failed = |run: &&RunStatus| matches!(run.status.as_str(), "retrying" | "dead");
    newest.filter(is_passed).or_else(|| status.last_run.as_ref().filter(has_failed))
}

/// What is wrong with the schedule of a job.
fn of_job(job: &JobStatus) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut found = |kind, message| problems.push(Problem { kind, message });
    if let (Some(until), Some(cursor)) = (job.ahead_until, job.cursor) {
        let ahead = ScheduleAhead { cursor, until: Some(until) };
        let message = format!(
            "job `{}` {ahead}; `billing-daemon jobs reset {} --reason TEXT` lets it run from now on",
            job.name, job.name
        );
        found("job_ahead", message);
    }
    if let Some(late) = job.late_seconds {
        let late = age_of(Duration::from_secs(late));
        let who = match &job.holder {
            None => "nobody is at it".to_owned(),
            Some(holder) => format!("{holder} is at it and does not end"),
        };
        found(
            "job_late",
            format!("job `{}` is {late} late: {who}; see `jobs explain {}`", job.name, job.name),
        );
    }
    problems
}

/// Whether `daemon` lives, bills, and has had no full interval for it.
fn is_new(daemon: &Daemon, now: DateTime<Utc>, interval: Duration) -> bool {
    let bills = daemon.liveness.is_alive() && daemon.billing_role != BillingRole::None;
    bills && daemon.started_at.is_some_and(|at| (now - at).to_std().unwrap_or_default() < interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{
        HoldSummary, JobStatus, PanelGuardView,
        testing::{daemon, healthy, held, job, minutes_ago, run},
    };

    /// The kinds of what is found in a healthy status after this change.
    fn check(what: &str, change: impl FnOnce(&mut Status), expected: &[&str]) {
        let mut status = healthy();
        change(&mut status);
        let found = problems(&status, &Expected::default());
        let kinds: Vec<_> = found.iter().map(|problem| problem.kind).collect();
        assert_eq!(kinds, expected, "{what}");
    }

    #[test]
    fn what_needs_somebody_is_a_problem_and_the_rest_is_not() {
        let on = PanelGuardView { installed: true, enabled: true, effective: true, outdated: false };
        check("healthy", |_| {}, &[]);
        check("interrupted", |status| status.last_run = Some(run("interrupted")), &[]);
        check("never billed", |status| status.last_run = None, &[]);
        check("late", |status| status.jobs = vec![job(Some(61))], &["job_late"]);
        let ahead = |status: &mut Status| {
            let (cursor, ahead_until) = (Some(minutes_ago(-60)), Some(minutes_ago(-120)));
            status.jobs = vec![crate::status::JobStatus { cursor, ahead_until, ..job(None) }];
        };
        check("ahead", ahead, &["job_ahead"]);
        let paused = JobStatus { paused: Some("paused by ada".to_owned()), ..job(None) };
        let pause = |status: &mut Status| {
            (status.jobs, status.last_success_at) = (vec![paused], Some(minutes_ago(90)));
        };
        check("paused", pause, &["billing_paused"]);
        check("dead run", |status| status.last_run = Some(run("dead")), &["billing_failed"]);
        check("retrying", |status| status.last_run = Some(run("retrying")), &["billing_failed"]);
        for (newest, expected) in
            [("missed", &["billing_failed"][..]), ("skipped", &["billing_failed"]), ("rescheduled", &[])]
        {
            let billing = JobStatus { last_run: Some(run(newest)), ..job(None) };
            check(newest, |status| status.jobs = vec![billing], expected);
        }
        check("silent", |status| status.last_success_at = Some(minutes_ago(76)), &["billing_silent"]);
        check("just in time", |status| status.last_success_at = Some(minutes_ago(74)), &[]);
        check("nothing worked", |status| status.last_success_at = None, &["billing_silent"]);
        for (minutes, bills, expected) in [
            (59, BillingRole::Standby, [].as_slice()),
            (60, BillingRole::Standby, &["billing_silent"]),
            (59, BillingRole::None, &["billing_silent"]),
        ] {
            let young = Daemon {
                started_at: Some(minutes_ago(minutes)),
                billing_role: bills,
                ..daemon(Liveness::Alive)
            };
            let begin = |status: &mut Status| (status.last_success_at, status.daemons) = (None, vec![young]);
            check("it has only begun", begin, expected);
        }
        check("nobody", |status| status.daemons = vec![daemon(Liveness::Stopped)], &["no_daemon"]);
        check(
            "all dead",
            |status| status.daemons = vec![daemon(Liveness::Dead)],
            &["no_daemon", "daemon_dead"],
        );
        check("one died", |status| status.daemons.push(daemon(Liveness::Dead)), &["daemon_dead"]);
        check("one fails", |status| status.daemons = vec![daemon(Liveness::Failing)], &["daemon_failing"]);
        check("a price is missing", |status| status.holds.push(held("no_price")), &["held"]);
        for (accepted, expected) in [(1, &["held"][..]), (2, &[])] {
            let hold = HoldSummary { accepted, ..held("no_price") };
            check("some are accepted", |status| status.holds.push(hold), expected);
        }
        check("G3 unfenced", |status| status.panel.generation = "G3".to_owned(), &["panel_guard"]);
        check(
            "G3 fenced",
            |status| {
                status.panel.generation = "G3".to_owned();
                status.panel.guard = on;
            },
            &[],
        );
        check(
            "G3 switched off",
            |status| {
                status.panel.generation = "G3".to_owned();
                status.panel.billing_off = true;
            },
            &[],
        );
        let stopped =
            RunStatus { details: Some(serde_json::json!({ "unguarded": true })), ..run("retrying") };
        check(
            "the panel guard is gone",
            |status| status.last_run = Some(stopped),
            &["billing_failed", "panel_guard"],
        );
        check(
            "a daemon without billing is not judged by billing",
            |status| {
                status.has_billing = false;
                status.last_success_at = None;
                status.last_run = Some(run("dead"));
                status.holds.push(held("no_price"));
                status.panel.generation = "G3".to_owned();
            },
            &[],
        );
        check(
            "outdated",
            |status| status.panel.guard = PanelGuardView { outdated: true, ..on },
            &["panel_guard"],
        );
    }

    #[test]
    fn a_longer_interval_has_a_longer_patience() {
        let expected = Expected { billing_interval: Some(Duration::from_hours(6)), ..Expected::default() };
        let mut status = healthy();
        status.last_success_at = Some(minutes_ago(6 * 60 + 89));
        assert_eq!(problems(&status, &expected), []);
        status.last_success_at = Some(minutes_ago(6 * 60 + 91));
        assert_eq!(problems(&status, &expected).len(), 1);
    }
}
