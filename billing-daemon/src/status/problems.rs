//! What an operator should do something about: one function for each kind of problem.

use std::time::Duration;

use billing_jobs::{BILLING_JOB, hold::Reason};
use billing_scheduler::{RunCause, RunStatus};
use chrono::{DateTime, Utc};

use super::{BillingRole, Daemon, DeadDeliveries, Expected, JobView, Liveness, Problem, RunView, Status};
use crate::format::{age_of, ago, count};

/// Returns every problem of `status`.
#[must_use]
pub fn problems(status: &Status, expected: &Expected) -> Vec<Problem> {
    let interval = expected.billing_interval.unwrap_or(Duration::from_hours(1));
    let mut problems = Vec::new();
    problems.extend(no_daemon(status));
    problems.extend(status.daemons.iter().filter_map(|daemon| of_daemon(status, daemon)));
    problems.extend(status.daemons.iter().filter_map(clock_offset));
    if status.has_billing {
        let halted = billing_halted(status);
        if halted.is_none() {
            problems.extend(billing_paused(status).or_else(|| billing_silent(status, interval)));
            problems.extend(billing_failed(status));
        }
        problems.extend(halted);
        problems.extend(panel_guard(status));
        problems.extend(holds(status));
    }
    problems.extend(status.prepaid.dead_deliveries.iter().map(DeadDeliveries::problem));
    for job in &status.jobs {
        problems.extend(job_ahead(job));
        problems.extend(job_late(job));
    }
    problems
}

/// The time since `at`, which may be in the future by the clock of another host.
fn since(status: &Status, at: DateTime<Utc>) -> Duration {
    (status.observed_at - at).to_std().unwrap_or_default()
}

fn hand_back_after(status: &Status) -> String {
    age_of(Duration::from_secs(status.hand_back_after_seconds))
}

fn no_daemon(status: &Status) -> Option<Problem> {
    let any = status.daemons.iter().any(|daemon| daemon.liveness.is_alive());
    (!any).then(|| Problem::new("no_daemon", "no daemon is alive: start one with `billing-daemon run`"))
}

fn of_daemon(status: &Status, daemon: &Daemon) -> Option<Problem> {
    let id = &daemon.daemon_id;
    match daemon.liveness {
        Liveness::Alive | Liveness::Stopped => None,
        Liveness::Dead => {
            let silence = daemon
                .last_seen_at
                .map_or_else(String::new, |at| format!("; it was last seen {}", ago(since(status, at))));
            Some(Problem::new(
                "daemon_dead",
                format!("{id} is dead{silence}: see its log, and start it again"),
            ))
        }
        Liveness::Failing => {
            let error = daemon.error.as_deref().unwrap_or("it reports that billing fails");
            Some(Problem::new("daemon_failing", format!("{id}: {error}")))
        }
    }
}

fn clock_offset(daemon: &Daemon) -> Option<Problem> {
    let wrong = daemon.wrong_clock().filter(|_| daemon.liveness.is_alive())?;
    let host = daemon.host.as_deref().unwrap_or(&daemon.daemon_id);
    let message = format!(
        "the clock of {host} is {wrong} the database's, which the schedules follow: synchronize both"
    );
    Some(Problem::new("clock_offset", message))
}

/// It explains every failed run, and a pause changes nothing meanwhile.
fn billing_halted(status: &Status) -> Option<Problem> {
    let halt = status.halt.as_ref()?;
    let message = format!(
        "billing is halted since {}: {}; a backup was restored, or commits were lost in a failover: find out what is missing, then run \
         `billing-daemon accept-restore`",
        ago(since(status, halt.found_at)),
        halt.reason
    );
    Some(Problem::new("billing_halted", message))
}

fn billing_paused(status: &Status) -> Option<Problem> {
    let paused = status.job(BILLING_JOB)?.paused.as_ref()?;
    let message = format!(
        "billing is {paused}: resume it with `billing-daemon jobs resume billing`; the panel may bill {} after the last success",
        hand_back_after(status)
    );
    Some(Problem::new("billing_paused", message))
}

fn billing_silent(status: &Status, interval: Duration) -> Option<Problem> {
    let message = match status.last_success_at.map(|at| since(status, at)) {
        // As for the heartbeat: a daemon that has just started may wait for the first scheduled time.
        None if status.daemons.iter().any(|daemon| is_new(daemon, status.observed_at, interval)) => {
            return None;
        }
        None => "no billing run has succeeded yet".to_owned(),
        Some(silence) if silence > interval + interval / 4 => {
            format!(
                "no successful billing run for {}; the panel resumes billing after {}",
                age_of(silence),
                hand_back_after(status)
            )
        }
        Some(_) => return None,
    };
    Some(Problem::new("billing_silent", message))
}

fn billing_failed(status: &Status) -> Option<Problem> {
    let run = failed_run(status)?;
    let reason = run.error.as_deref().or(run.reason.as_deref()).unwrap_or("the reason is unknown");
    let is_spike = run.billing_details().pending_amounts().is_some();
    let ended = ago(since(status, run.finished_at));
    Some(Problem::new(
        if is_spike { "spike" } else { "billing_failed" },
        format!("the last billing run, {ended}, is {}: {reason}", run.status.as_str()),
    ))
}

/// The last billing run if it failed, or the newest scheduled times if they passed without one.
fn failed_run(status: &Status) -> Option<&RunView> {
    let newest = status.job(BILLING_JOB).and_then(|job| job.last_run.as_ref());
    // A request that no daemon carried out in time is not a billing run that failed.
    let has_passed = |run: &&RunView| {
        run.cause == RunCause::Schedule && matches!(run.status, RunStatus::Skipped | RunStatus::Missed)
    };
    let has_failed = |run: &&RunView| matches!(run.status, RunStatus::Retrying | RunStatus::Dead);
    newest.filter(has_passed).or_else(|| status.last_run.as_ref().filter(has_failed))
}

fn panel_guard(status: &Status) -> Option<Problem> {
    let (panel, guard) = (&status.panel, status.panel.guard);
    if status.lacks_guard() {
        let state = match (guard.installed, guard.enabled) {
            (false, _) => "missing",
            (true, false) => "disabled",
            (true, true) => "of another version",
        };
        let message = format!(
            "the panel, of generation {}, may charge the same hours, and the panel guard is {state}: run `billing-daemon guard install`",
            panel.generation
        );
        return Some(Problem::new("panel_guard", message));
    }
    (guard.installed && guard.outdated).then(|| {
        let message = "the panel guard is outdated: run `billing-daemon guard install`";
        Problem::new("panel_guard", message)
    })
}

/// The holds that no operator has accepted. A customer who owes money is not a problem of the operator.
fn holds(status: &Status) -> impl Iterator<Item = Problem> {
    let holds = status.holds.iter().filter(|held| held.reason != Reason::InsufficientBalance.as_str());
    holds.filter_map(|held| {
        let open = held.owed.instances.saturating_sub(held.accepted);
        let are = if open == 1 { "is" } else { "are" };
        (open > 0).then(|| {
            let instances = count(open, "instance");
            Problem::new("held", format!("{instances} {are} held for `{}`: {}", held.reason, held.advice))
        })
    })
}

fn job_ahead(job: &JobView) -> Option<Problem> {
    let (name, ahead) = (&job.job, job.ahead()?);
    let message = format!(
        "job `{name}` {ahead}; run it from now on with `billing-daemon jobs reset {name} --reason TEXT`"
    );
    Some(Problem::new("job_ahead", message))
}

fn job_late(job: &JobView) -> Option<Problem> {
    let (name, late) = (&job.job, job.lateness()?);
    Some(Problem::new(
        "job_late",
        format!("job `{name}` is {late}; see `billing-daemon jobs explain {name}`"),
    ))
}

/// Whether `daemon` is alive, bills, and has run for less than an interval.
fn is_new(daemon: &Daemon, now: DateTime<Utc>, interval: Duration) -> bool {
    let bills = daemon.liveness.is_alive() && daemon.billing_role != BillingRole::None;
    bills && daemon.started_at.is_some_and(|at| (now - at).to_std().unwrap_or_default() < interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{
        HaltView, HoldSummary, PanelGuardView, PauseView,
        testing::{daemon, healthy, held, job, minutes_ago, run},
    };

    /// Checks the kinds of the problems of a healthy status after this change.
    fn check(what: &str, change: impl FnOnce(&mut Status), expected: &[&str]) {
        let mut status = healthy();
        change(&mut status);
        let found = problems(&status, &Expected::default());
        let kinds: Vec<_> = found.iter().map(|problem| problem.kind).collect();
        assert_eq!(kinds, expected, "{what}");
    }

    #[test]
    fn only_what_needs_an_operator_is_problem() {
        let on = PanelGuardView { installed: true, enabled: true, effective: true, outdated: false };
        check("healthy", |_| {}, &[]);
        check("interrupted", |status| status.last_run = Some(run(RunStatus::Interrupted)), &[]);
        check("never billed", |status| status.last_run = None, &[]);
        check("late", |status| status.jobs = vec![job(Some(61))], &["job_late"]);
        let ahead = |status: &mut Status| {
            let (cursor, ahead_until) = (Some(minutes_ago(-60)), Some(minutes_ago(-120)));
            status.jobs = vec![JobView { cursor, ahead_until, ..job(None) }];
        };
        check("ahead", ahead, &["job_ahead"]);
        let pause = PauseView { by: "ada".to_owned(), since: minutes_ago(5), reason: None };
        let paused = JobView { paused: Some(pause), ..job(None) };
        let pause = |status: &mut Status| {
            (status.jobs, status.last_success_at) = (vec![paused], Some(minutes_ago(90)));
        };
        check("paused", pause, &["billing_paused"]);
        check("dead run", |status| status.last_run = Some(run(RunStatus::Dead)), &["billing_failed"]);
        check("retrying", |status| status.last_run = Some(run(RunStatus::Retrying)), &["billing_failed"]);
        for (newest, expected) in [
            (RunStatus::Missed, &["billing_failed"][..]),
            (RunStatus::Skipped, &["billing_failed"]),
            (RunStatus::Rescheduled, &[]),
        ] {
            let billing = JobView { last_run: Some(run(newest)), ..job(None) };
            check(newest.as_str(), |status| status.jobs = vec![billing], expected);
        }
        check("silent", |status| status.last_success_at = Some(minutes_ago(76)), &["billing_silent"]);
        check("just in time", |status| status.last_success_at = Some(minutes_ago(74)), &[]);
        check("no success", |status| status.last_success_at = None, &["billing_silent"]);
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
            check("just started", begin, expected);
        }
        check("no daemon", |status| status.daemons = vec![daemon(Liveness::Stopped)], &["no_daemon"]);
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
        for gone in [false, true] {
            let dead = DeadDeliveries { endpoint: "mail".to_owned(), deliveries: 2, gone };
            check("dead deliveries", |status| status.prepaid.dead_deliveries.push(dead), &["delivery_dead"]);
        }
        check("G3 unguarded", |status| status.panel.generation = "G3".to_owned(), &["panel_guard"]);
        check(
            "G3 guarded",
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
            RunView { details: Some(serde_json::json!({ "unguarded": true })), ..run(RunStatus::Retrying) };
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
                status.last_run = Some(run(RunStatus::Dead));
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
    fn wrong_clock_of_live_daemon_is_problem() {
        let rows = [
            (None, Liveness::Alive, [].as_slice()),
            (Some(5_000), Liveness::Alive, &[]),
            (Some(-5_001), Liveness::Alive, &["clock_offset"]),
            (Some(7_200_000), Liveness::Alive, &["clock_offset"]),
            (Some(7_200_000), Liveness::Stopped, &["no_daemon"]),
        ];
        for (clock_offset_ms, liveness, expected) in rows {
            let wrong = Daemon { clock_offset_ms, ..daemon(liveness) };
            check(&format!("{clock_offset_ms:?}"), |status| status.daemons = vec![wrong], expected);
        }
    }

    #[test]
    fn halt_explains_failed_and_missing_runs() {
        let halt = HaltView {
            found_at: minutes_ago(5),
            found_by: "web-1".to_owned(),
            missing_batch: 7,
            missing_batch_at: minutes_ago(10),
            newest_batch: None,
            reason: String::new(),
        };
        let halt = |status: &mut Status| {
            (status.halt, status.last_run, status.last_success_at) =
                (Some(halt), Some(run(RunStatus::Dead)), Some(minutes_ago(600)));
        };
        check("halted", halt, &["billing_halted"]);
    }

    #[test]
    fn longer_interval_allows_longer_silence() {
        let expected = Expected { billing_interval: Some(Duration::from_hours(6)), ..Expected::default() };
        let mut status = healthy();
        status.last_success_at = Some(minutes_ago(6 * 60 + 89));
        assert_eq!(problems(&status, &expected), []);
        status.last_success_at = Some(minutes_ago(6 * 60 + 91));
        assert_eq!(problems(&status, &expected).len(), 1);
    }
}
