//! `jobs explain`: why did it not run? A pure function from what the rows say to one answer.

use billing_scheduler::{RunFilter, RunRow, RunStatus, Schedule};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde_json::json;

use super::JobSession;
use crate::{
    commands::{args::parse_time, runs::outcome},
    exit::Failure,
    format,
    output::line as say,
    status::{daemons_alive, jobs::JobOverview},
};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The job's name
    #[arg(value_name = "NAME")]
    job: String,
    /// The scheduled time [default: the latest]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<DateTime<Utc>>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// So long a run may take to begin.
const JUST_NOW: TimeDelta = TimeDelta::seconds(3);

pub(super) async fn execute(desk: &JobSession, options: &ExplainArgs) -> Result<(), Failure> {
    let (job, now) = (desk.job(&options.job).await?, desk.clock.now());
    let latest = || job.spec.as_ref().and_then(|spec| spec.schedule.last_until(now).ok().flatten());
    let at = options.at.or_else(latest).or_else(|| job.last.as_ref().map(|last| last.run.scheduled_at));
    let runs = match at {
        None => Vec::new(),
        Some(at) => {
            let job = Some(job.name.clone());
            desk.runs(&RunFilter { job, scheduled_at: Some(at), ..RunFilter::default() }).await?
        }
    };
    let ended = |row: &RunRow| {
        // One row may stand for several scheduled times.
        let last = row.run.scheduled_at;
        let last = if Some(last) == at { String::new() } else { format!(" until {}", format::instant(last)) };
        (row.run.status, format!("{}{last}", outcome(row)))
    };
    let facts = Facts {
        at,
        now,
        runs: &runs.iter().map(ended).collect::<Vec<_>>(),
        is_configured: (desk.is_complete || job.spec.is_some()).then_some(job.spec.is_some()),
        daemons: daemons_alive(&desk.opened).await?,
        job: &job,
    };
    let (word, answer) = explain(&facts);
    if options.json {
        say(
            json!({ "job": job.name, "scheduled_at": at.map(super::instant), "answer": word, "about": answer }),
        );
    } else {
        let at = at.map(|at| format!(" of {}", format::instant(at))).unwrap_or_default();
        say(format!("{}{at}: {answer}", job.name));
    }
    Ok(())
}

/// What an answer is made from.
struct Facts<'a> {
    /// Which scheduled time is asked for.
    at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    /// Its rows in the history, newest first: the status of each, and how it ended in words.
    runs: &'a [(RunStatus, String)],
    /// Whether jobs.toml has the job, enabled; unknown without one.
    is_configured: Option<bool>,
    /// How many daemons are alive.
    daemons: usize,
    job: &'a JobOverview,
}

/// The answer in a word, and in a sentence.
fn explain(facts: &Facts<'_>) -> (&'static str, String) {
    let Facts { at, now, runs, is_configured, daemons, job } = *facts;
    let say = |word, sentence: &str| (word, sentence.to_owned());
    let Some(at) = at else {
        return say(
            "unknown",
            "jobs.toml has no such job and the history no run of it: ask for a time with --at",
        );
    };
    let retrying = job.row.as_ref().and_then(|row| row.state.retrying);
    if let Some(retrying) = retrying.filter(|retrying| retrying.scheduled_at == at) {
        let paused = job.paused.as_ref().map(|pause| format!("; the job is {pause}")).unwrap_or_default();
        let failed = retrying.failed_attempts;
        let from = format::instant(retrying.not_before);
        return ("retrying", format!("failed {failed} times, and is tried again from {from}{paused}"));
    }
    let final_row = runs.iter().find(|(status, _)| *status == RunStatus::Done).or(runs.first());
    if let Some((status, sentence)) = final_row {
        return (status.as_str(), sentence.clone());
    }
    if at > now {
        return say("not_yet", "is still to come");
    }
    if is_configured == Some(false) {
        return say("not_configured", "jobs.toml has no such job, or has it disabled");
    }
    if let Some(spec) = &job.spec
        && !is_time_of(&spec.schedule, at)
    {
        let next = spec.schedule.next_after(at).ok().flatten();
        let next = next
            .map(|next| format!("; the next one after it is {}", format::instant(next)))
            .unwrap_or_default();
        return ("no_scheduled_time", format!("is no scheduled time of `{}`{next}", spec.schedule));
    }
    let Some(row) = job.row_of_all() else {
        return match (daemons, &job.paused) {
            (0, _) => say("no_daemon", "no daemon is alive"),
            _ if now - at < JUST_NOW => say("just_now", "is due just now"),
            (_, Some(pause)) => {
                ("paused", format!("the job is {pause}, since {}", format::instant(pause.since)))
            }
            _ if job.is_of_node() => say(
                "no_node",
                "each node runs the job by itself, and none has a row of this: none was alive then that has it in its jobs.toml",
            ),
            _ => say(
                "never_claimed",
                "no daemon has begun with the job: none that is alive has it in its jobs.toml",
            ),
        };
    };
    if at <= row.state.cursor {
        return (
            "no_row",
            format!(
                "is finished with and has no row: it came before the job's first turn, or its row was pruned; everything until \
                 {} is finished with",
                format::instant(row.state.cursor)
            ),
        );
    }
    if let Some(pause) = &job.paused {
        return ("paused", format!("the job is {pause}, since {}", format::instant(pause.since)));
    }
    if let Some(held) = &row.lease {
        let (name, until) = (&held.name, format::instant(held.expires_at));
        return (
            "held",
            format!("{name} holds the job's lease until {until}, and renews it while a run is under way"),
        );
    }
    if let Some(retrying) = retrying {
        let (before, from) = (format::instant(retrying.scheduled_at), format::instant(retrying.not_before));
        return (
            "waits_for_retry",
            format!("waits for {before}, which failed and is tried again from {from}"),
        );
    }
    if daemons == 0 {
        return say("no_daemon", "no daemon is alive");
    }
    if now - at < JUST_NOW {
        return say("just_now", "is due just now");
    }
    let known = if job.late(now).is_some() { "late: " } else { "" };
    (
        "late",
        format!(
            "{known}it is due and nobody is at it, although {daemons} daemons are alive: none of them has it in its jobs.toml, or their clocks are behind"
        ),
    )
}

/// Whether `at` is one of the schedule's times.
pub(super) fn is_time_of(schedule: &Schedule, at: DateTime<Utc>) -> bool {
    schedule.next_after(at - TimeDelta::seconds(1)).is_ok_and(|next| next == Some(at))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use billing_scheduler::{FencingToken, Holder, JobRow, JobSpec, JobState, Pause, Retrying, Scope};

    use super::*;

    fn at(clock: &str) -> DateTime<Utc> {
        format!("2026-01-05T{clock}Z").parse().expect("a time of day")
    }

    fn hourly() -> JobOverview {
        let schedule = Schedule::every(Duration::from_hours(1)).expect("valid");
        let state = JobState::at(at("13:00:00"));
        let row = JobRow {
            job: "job".to_owned(),
            state,
            claim_hint: None,
            lease: None,
            paused: None,
            last_run: None,
        };
        let spec = Some(JobSpec::new("job", "kind", schedule));
        JobOverview { name: "job".to_owned(), spec, row: Some(row), paused: None, last: None }
    }

    fn change(change: impl FnOnce(&mut JobOverview, &mut JobRow)) -> JobOverview {
        let mut job = hourly();
        let mut row = job.row.take().expect("it has one");
        change(&mut job, &mut row);
        job.row = Some(row);
        job
    }

    #[test]
    fn every_reason_has_its_answer() {
        let pause = Pause {
            since: at("12:30:00"),
            until: None,
            by: "ada".to_owned(),
            reason: Some("tea".to_owned()),
        };
        let retrying =
            |of: &str| Retrying { scheduled_at: at(of), failed_attempts: 2, not_before: at("14:20:00") };
        let held = |until: &str| Holder {
            name: "host-7".to_owned(),
            fencing_token: FencingToken(4),
            expires_at: at(until),
        };
        let unknown = JobOverview { spec: None, ..hourly() };
        let mut of_node = hourly();
        of_node.spec.as_mut().expect("it has one").scope = Scope::Node;
        let unclaimed = JobOverview { row: None, ..hourly() };
        let rows: [(&str, JobOverview, usize, &str, &str); 14] = [
            ("15:00:00", hourly(), 1, "not_yet", "is still to come"),
            ("14:00:00", hourly(), 1, "late", "due and nobody is at it, although 1 daemons are alive"),
            ("14:00:00", hourly(), 0, "no_daemon", "no daemon is alive"),
            (
                "13:30:00",
                hourly(),
                1,
                "no_scheduled_time",
                "no scheduled time of `every 1h`; the next one after it is 2026-01-05T14:00:00Z",
            ),
            ("12:00:00", hourly(), 1, "no_row", "until 2026-01-05T13:00:00Z is finished with"),
            ("14:00:00", unknown, 1, "not_configured", "has it disabled"),
            ("14:00:00", of_node, 1, "no_node", "each node runs the job by itself"),
            ("14:00:00", unclaimed, 1, "never_claimed", "none that is alive has it"),
            ("14:00:00", JobOverview { row: None, ..hourly() }, 0, "no_daemon", "no daemon is alive"),
            (
                "14:00:00",
                JobOverview { paused: Some(pause.clone()), ..hourly() },
                1,
                "paused",
                "paused by ada: tea, since 2026-01-05T12:30:00Z",
            ),
            (
                "14:00:00",
                change(|_, row| row.lease = Some(held("14:10:05"))),
                1,
                "held",
                "host-7 holds the job's lease until 2026-01-05T14:10:05Z",
            ),
            (
                "14:00:00",
                change(|_, row| row.state.retrying = Some(retrying("14:00:00"))),
                1,
                "retrying",
                "failed 2 times, and is tried again from 2026-01-05T14:20:00Z",
            ),
            (
                "14:00:00",
                change(|_, row| row.state.retrying = Some(retrying("13:00:00"))),
                1,
                "waits_for_retry",
                "waits for 2026-01-05T13:00:00Z",
            ),
            (
                "14:00:00",
                change(|job, row| {
                    job.paused = Some(pause.clone());
                    row.state.retrying = Some(retrying("14:00:00"));
                }),
                1,
                "retrying",
                "the job is paused by ada: tea",
            ),
        ];
        for (asked, job, daemons, word, sentence) in &rows {
            let facts = Facts {
                at: Some(at(asked)),
                now: at("14:10:00"),
                runs: &[],
                is_configured: Some(job.spec.is_some()),
                daemons: *daemons,
                job,
            };
            let (found, answer) = explain(&facts);
            assert_eq!(found, *word, "{asked}: {answer}");
            assert!(answer.contains(sentence), "{word}: {answer}");
        }
        let ran =
            [(RunStatus::Dead, "the replay died".to_owned()), (RunStatus::Done, "it is done".to_owned())];
        let facts = |runs| Facts {
            at: Some(at("14:00:00")),
            now: at("14:10:00"),
            runs,
            is_configured: None,
            daemons: 1,
            job: &rows[0].1,
        };
        assert_eq!(explain(&facts(&ran)), ("done", "it is done".to_owned()));
        assert_eq!(explain(&facts(&ran[..1])), ("dead", "the replay died".to_owned()));
        assert_eq!(explain(&Facts { at: None, ..facts(&[]) }).0, "unknown");
    }
}
