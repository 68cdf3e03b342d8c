//! `jobs explain`: why a job did not run, or how its run ended.

use billing_scheduler::{JobSpec, RunFilter, RunStatus, Schedule, Scope};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde_json::json;

use super::session::JobSession;
use crate::{
    commands::{args::parse_time, runs::outcome},
    exit::Failure,
    format::{count, instant},
    output::{json as say_json, paragraph},
    status::{JobView, RunView, daemons_alive},
};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The job's name
    #[arg(value_name = "NAME")]
    job: String,
    /// The scheduled time to explain [default: the latest]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<DateTime<Utc>>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A run may take this long to start.
const START_GRACE: TimeDelta = TimeDelta::seconds(3);

pub(super) async fn execute(session: &JobSession, options: &ExplainArgs) -> Result<(), Failure> {
    let (job, now) = (session.job(&options.job).await?, session.now().await?);
    let spec = session.configured().find(&options.job);
    let latest = || spec.and_then(|spec| spec.schedule.last_until(now).ok().flatten());
    let at = options.at.or_else(latest).or_else(|| job.last_run.as_ref().map(|last| last.scheduled_at));
    let runs = match at {
        None => Vec::new(),
        Some(at) => {
            let job = Some(job.job.clone());
            session.runs(&RunFilter { job, scheduled_at: Some(at), ..RunFilter::default() }).await?
        }
    };
    let is_configured = (session.is_complete || spec.is_some()).then_some(spec.is_some());
    let daemons = daemons_alive(&session.opened).await?;
    let Reason { answer, about } = match at {
        None => {
            Reason::new("unknown", "jobs.toml does not have the job, and it never ran: name a time with --at")
        }
        Some(at) => explain(&Facts { at, now, runs: &runs, is_configured, daemons, job: &job, spec }),
    };
    if options.json {
        say_json(&json!({ "job": job.job, "scheduled_at": at, "answer": answer, "about": about }));
    } else {
        let at = at.map(|at| format!(" of {}", instant(at))).unwrap_or_default();
        paragraph(&format!("{}{at}: {about}", job.job));
    }
    Ok(())
}

/// Why a scheduled time did not run, or how it ended.
#[derive(Debug)]
struct Reason {
    /// One word, for programs.
    answer: &'static str,
    about: String,
}

impl Reason {
    fn new(answer: &'static str, about: impl Into<String>) -> Self {
        Self { answer, about: about.into() }
    }
}

/// What the reasons are found from.
struct Facts<'a> {
    /// The scheduled time to explain.
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    /// The records of the scheduled time, newest first.
    runs: &'a [RunView],
    /// Whether jobs.toml has the job, enabled; unknown without a file.
    is_configured: Option<bool>,
    /// The number of daemons that are alive.
    daemons: usize,
    job: &'a JobView,
    spec: Option<&'a JobSpec>,
}

impl Facts<'_> {
    fn runs_on_every_node(&self) -> bool {
        self.spec.is_some_and(|spec| spec.scope == Scope::Node)
    }
}

/// The possible reasons, in the order in which they exclude each other.
const REASONS: [fn(&Facts<'_>) -> Option<Reason>; 12] = [
    retrying,
    recorded,
    not_yet,
    not_configured,
    no_scheduled_time,
    without_state,
    no_row,
    paused,
    held,
    waits_for_retry,
    no_daemon,
    just_now,
];

/// Returns the first reason that applies.
fn explain(facts: &Facts<'_>) -> Reason {
    REASONS.iter().find_map(|reason| reason(facts)).unwrap_or_else(|| late(facts))
}

fn retrying(facts: &Facts<'_>) -> Option<Reason> {
    let retrying = facts.job.retrying.filter(|retrying| retrying.scheduled_at == facts.at)?;
    let paused = facts.job.paused.as_ref().map(|pause| format!("; the job is {pause}")).unwrap_or_default();
    let failed = count(retrying.failed_attempts.into(), "attempt");
    let from = instant(retrying.not_before);
    Some(Reason::new("retrying", format!("{failed} failed; the next one is not before {from}{paused}")))
}

fn recorded(facts: &Facts<'_>) -> Option<Reason> {
    let done = facts.runs.iter().find(|run| run.status == RunStatus::Done);
    let run = done.or(facts.runs.first())?;
    // One record may cover several scheduled times.
    let last = run.scheduled_at;
    let until = if last == facts.at { String::new() } else { format!(" until {}", instant(last)) };
    Some(Reason::new(run.status.as_str(), format!("{}{until}", outcome(run))))
}

fn not_yet(facts: &Facts<'_>) -> Option<Reason> {
    (facts.at > facts.now).then(|| Reason::new("not_yet", "is in the future"))
}

fn not_configured(facts: &Facts<'_>) -> Option<Reason> {
    let missing = facts.is_configured == Some(false);
    missing.then(|| Reason::new("not_configured", "jobs.toml does not have the job, or has it disabled"))
}

fn no_scheduled_time(facts: &Facts<'_>) -> Option<Reason> {
    let schedule = &facts.spec.filter(|spec| !is_scheduled(&spec.schedule, facts.at))?.schedule;
    let next = schedule.next_after(facts.at).ok().flatten();
    let next = next.map(|next| format!("; the next one after it is {}", instant(next))).unwrap_or_default();
    Some(Reason::new("no_scheduled_time", format!("is not a scheduled time of `{schedule}`{next}")))
}

/// The reasons of a job that has no state in the database: it runs on every node, or no daemon has claimed it yet.
fn without_state(facts: &Facts<'_>) -> Option<Reason> {
    if facts.job.cursor.is_some() {
        return None;
    }
    no_daemon(facts).or_else(|| just_now(facts)).or_else(|| paused(facts)).or_else(|| {
        Some(if facts.runs_on_every_node() {
            let about = "the job runs on every node, and no record of this time exists: no daemon that has it in its jobs.toml was alive";
            Reason::new("no_node", about)
        } else {
            Reason::new("never_claimed", "no daemon has run the job yet: none that is alive has it in its jobs.toml")
        })
    })
}

fn no_row(facts: &Facts<'_>) -> Option<Reason> {
    let cursor = facts.job.cursor.filter(|cursor| facts.at <= *cursor)?;
    let about = format!(
        "is finished and has no record: it was before the job's first run, or its record was deleted; the schedule is finished up \
         to {}",
        instant(cursor)
    );
    Some(Reason::new("no_row", about))
}

fn paused(facts: &Facts<'_>) -> Option<Reason> {
    let pause = facts.job.paused.as_ref()?;
    Some(Reason::new("paused", format!("the job is {pause}, since {}", instant(pause.since))))
}

fn held(facts: &Facts<'_>) -> Option<Reason> {
    let lease = facts.job.lease.as_ref()?;
    let (holder, until) = (&lease.holder, instant(lease.expires_at));
    Some(Reason::new(
        "held",
        format!("{holder} holds the job's lease until {until}, and renews it during a run"),
    ))
}

fn waits_for_retry(facts: &Facts<'_>) -> Option<Reason> {
    let retrying = facts.job.retrying?;
    let (before, from) = (instant(retrying.scheduled_at), instant(retrying.not_before));
    let about = format!("waits for {before}, which failed and is retried from {from}");
    Some(Reason::new("waits_for_retry", about))
}

fn no_daemon(facts: &Facts<'_>) -> Option<Reason> {
    (facts.daemons == 0).then(|| Reason::new("no_daemon", "no daemon is alive"))
}

fn just_now(facts: &Facts<'_>) -> Option<Reason> {
    (facts.now - facts.at < START_GRACE).then(|| Reason::new("just_now", "is due now"))
}

fn late(facts: &Facts<'_>) -> Reason {
    let late = if facts.job.late_seconds.is_some() { "late: " } else { "" };
    let are = if facts.daemons == 1 { "is" } else { "are" };
    let daemons = count(facts.daemons as u64, "daemon");
    let about = format!(
        "{late}it is due and no daemon runs it, although {daemons} {are} alive: none of them has it in its jobs.toml, or \
         their clocks are behind"
    );
    Reason::new("late", about)
}

/// Whether `at` is a scheduled time of `schedule`.
pub(super) fn is_scheduled(schedule: &Schedule, at: DateTime<Utc>) -> bool {
    schedule.next_after(at - TimeDelta::seconds(1)).is_ok_and(|next| next == Some(at))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use billing_scheduler::JobSpec;

    use super::*;
    use crate::status::{LeaseView, PauseView, RetryView, testing};

    fn at(clock: &str) -> DateTime<Utc> {
        format!("2026-01-05T{clock}Z").parse().expect("a time of day")
    }

    fn hourly() -> JobView {
        JobView { cursor: Some(at("13:00:00")), ..testing::job(None) }
    }

    #[test]
    fn each_reason_has_its_answer() {
        let schedule = Schedule::every(Duration::from_hours(1)).expect("valid");
        let spec = JobSpec::new("job", "kind", schedule);
        let on_every_node = JobSpec { scope: Scope::Node, ..spec.clone() };
        let pause =
            Some(PauseView { since: at("12:30:00"), by: "ada".to_owned(), reason: Some("tea".to_owned()) });
        let retrying = |scheduled_at: &str| {
            let not_before = at("14:20:00");
            Some(RetryView { scheduled_at: at(scheduled_at), failed_attempts: 2, not_before })
        };
        let lease =
            Some(LeaseView { holder: "host-7".to_owned(), fencing_token: 4, expires_at: at("14:10:05") });
        let without_row = JobView { cursor: None, ..hourly() };
        let some = Some(&spec);
        for (scheduled, job, spec, daemons, answer, about) in [
            ("15:00:00", hourly(), some, 1, "not_yet", "is in the future"),
            ("14:00:00", hourly(), some, 1, "late", "no daemon runs it, although 1 daemon is alive"),
            ("14:00:00", hourly(), some, 0, "no_daemon", "no daemon is alive"),
            (
                "13:30:00",
                hourly(),
                some,
                1,
                "no_scheduled_time",
                "not a scheduled time of `every 1h`; the next one after it is 2026-01-05T14:00:00Z",
            ),
            ("12:00:00", hourly(), some, 1, "no_row", "finished up to 2026-01-05T13:00:00Z"),
            ("14:00:00", hourly(), None, 1, "not_configured", "has it disabled"),
            ("14:00:00", without_row.clone(), Some(&on_every_node), 1, "no_node", "runs on every node"),
            ("14:00:00", without_row.clone(), some, 1, "never_claimed", "none that is alive has it"),
            ("14:00:00", without_row, some, 0, "no_daemon", "no daemon is alive"),
            (
                "14:00:00",
                JobView { paused: pause.clone(), ..hourly() },
                some,
                1,
                "paused",
                "paused by ada: tea, since 2026-01-05T12:30:00Z",
            ),
            (
                "14:00:00",
                JobView { lease, ..hourly() },
                some,
                1,
                "held",
                "host-7 holds the job's lease until 2026-01-05T14:10:05Z",
            ),
            (
                "14:00:00",
                JobView { retrying: retrying("14:00:00"), ..hourly() },
                some,
                1,
                "retrying",
                "2 attempts failed; the next one is not before 2026-01-05T14:20:00Z",
            ),
            (
                "14:00:00",
                JobView { retrying: retrying("13:00:00"), ..hourly() },
                some,
                1,
                "waits_for_retry",
                "waits for 2026-01-05T13:00:00Z",
            ),
            (
                "14:00:00",
                JobView { paused: pause, retrying: retrying("14:00:00"), ..hourly() },
                some,
                1,
                "retrying",
                "the job is paused by ada: tea",
            ),
        ] {
            let facts = Facts {
                at: at(scheduled),
                now: at("14:10:00"),
                runs: &[],
                is_configured: Some(spec.is_some()),
                daemons,
                job: &job,
                spec,
            };
            let found = explain(&facts);
            assert_eq!(found.answer, answer, "{scheduled}: {found:?}");
            assert!(found.about.contains(about), "{found:?}");
        }
    }

    #[test]
    fn done_run_explains_before_newer_failure() {
        let job = hourly();
        let run = |status| RunView { scheduled_at: at("14:00:00"), ..testing::run(status) };
        let runs = [run(RunStatus::Dead), run(RunStatus::Done)];
        for (runs, answer) in [(&runs[..], "done"), (&runs[..1], "dead")] {
            let (at, now) = (at("14:00:00"), at("14:10:00"));
            let facts = Facts { at, now, runs, is_configured: None, daemons: 1, job: &job, spec: None };
            assert_eq!(explain(&facts).answer, answer);
        }
    }
}
