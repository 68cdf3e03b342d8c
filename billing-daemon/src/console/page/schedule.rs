//! What runs next, and what a cron expression would do: its next times, and how they differ from the schedule of a job. Nothing is saved:
//! jobs.toml has the schedules.

use std::collections::BTreeSet;

use billing_scheduler::{Schedule, ScheduleError};
use jiff::{Timestamp, tz::TimeZone};

use super::prelude::*;
use crate::status::JobState;

/// How many times of each job are listed.
const OF_JOB: usize = 5;
/// How many times are shown.
const SHOWN: usize = 50;

#[derive(Serialize)]
pub(in crate::console) struct SchedulePage {
    /// The next scheduled times of the jobs, the first ones of each.
    upcoming: Vec<Upcoming>,
    preview: Option<Preview>,
    /// Why the expression is invalid.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Upcoming {
    scheduled_at: DateTime<Utc>,
    job: String,
    schedule: String,
    paused: bool,
}

/// What a cron expression would do.
#[derive(Serialize)]
struct Preview {
    words: String,
    zone: String,
    times: Vec<PreviewTime>,
    /// The times of the job's schedule that the expression does not have.
    lost: Vec<DateTime<Utc>>,
}

#[derive(Serialize)]
struct PreviewTime {
    scheduled_at: DateTime<Utc>,
    /// The local time with its offset.
    local: String,
    /// What a change of the clock does here.
    clock: Option<&'static str>,
    /// Whether the job's schedule does not have it.
    added: bool,
}

fn times(
    schedule: &Schedule,
    after: DateTime<Utc>,
    count: usize,
) -> Result<Vec<DateTime<Utc>>, ScheduleError> {
    let mut times = Vec::new();
    let mut last = after;
    while times.len() < count {
        let Some(next) = schedule.next_after(last)? else { break };
        times.push(next);
        last = next;
    }
    Ok(times)
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<SchedulePage, Problem> {
    let expected = visit.console.shared.expected();
    let now = visit.status.observed_at;
    let mut upcoming = Vec::new();
    for spec in &expected.jobs {
        let paused = visit.status.job(&spec.name).is_some_and(|job| job.state == JobState::Paused);
        for scheduled_at in times(&spec.schedule, now, OF_JOB).unwrap_or_default() {
            let (job, schedule) = (spec.name.clone(), spec.schedule.to_string());
            upcoming.push(Upcoming { scheduled_at, job, schedule, paused });
        }
    }
    upcoming.sort_by(|one, other| (one.scheduled_at, &one.job).cmp(&(other.scheduled_at, &other.job)));
    upcoming.truncate(SHOWN);
    let preview = visit.query("cron").map(|cron| preview(visit, cron));
    let (preview, problem) = match preview.transpose() {
        Ok(preview) => (preview, None),
        Err(Problem::Invalid(problem)) => (None, Some(problem)),
        Err(problem) => return Err(problem),
    };
    Ok(SchedulePage { upcoming, preview, problem })
}

fn preview(visit: &Visit, cron: &str) -> Result<Preview, Problem> {
    let invalid = |error: ScheduleError| {
        Problem::Invalid(match error {
            ScheduleError::Cron(error) => format!("{error}, {}", error.help),
            error => error.to_string(),
        })
    };
    let zone = visit.query("zone").unwrap_or("UTC");
    let schedule = Schedule::cron(cron, zone).map_err(invalid)?;
    let from = visit.query("from").map_or(Some(visit.status.observed_at), parse_time);
    let no_time = || Problem::Invalid("the start is not a time such as 2026-11-22T15:00:00Z".to_owned());
    let from = from.ok_or_else(no_time)?;
    let found = times(&schedule, from, SHOWN).map_err(invalid)?;
    let expected = visit.console.shared.expected();
    let in_force = match visit.query("job") {
        Some(name) => {
            let spec = expected.jobs.iter().find(|spec| spec.name == name);
            Some(
                &spec
                    .ok_or_else(|| Problem::Invalid(format!("jobs.toml has no enabled job `{name}`")))?
                    .schedule,
            )
        }
        None => None,
    };
    // Compared up to the last time of the expression.
    let (mut kept, until) = (BTreeSet::new(), found.last().copied().unwrap_or(from));
    if let Some(schedule) = in_force {
        kept.extend(times(schedule, from, 10 * SHOWN).map_err(invalid)?);
        kept.retain(|at| *at <= until);
    }
    let tz = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let all: BTreeSet<_> = found.iter().copied().collect();
    let time = |at: DateTime<Utc>| PreviewTime {
        scheduled_at: at,
        local: local(&tz, at),
        clock: clock_change(&tz, at),
        added: in_force.is_some() && !kept.contains(&at),
    };
    Ok(Preview {
        words: schedule.words(),
        zone: zone.to_owned(),
        lost: kept.difference(&all).copied().take(SHOWN).collect(),
        times: found.into_iter().map(time).collect(),
    })
}

fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp::from_second(at.timestamp()).unwrap_or_default()
}

fn local(zone: &TimeZone, at: DateTime<Utc>) -> String {
    timestamp(at).to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string()
}

/// What a change of the clock means for the local time of `at`.
fn clock_change(zone: &TimeZone, at: DateTime<Utc>) -> Option<&'static str> {
    let at = timestamp(at);
    let offset = zone.to_offset(at);
    let before = zone.preceding(at + jiff::SignedDuration::from_secs(1)).next();
    if before.is_some_and(|change| change.timestamp() == at) {
        return Some("the first instant after the clock is changed");
    }
    let is_repeated = zone.to_ambiguous_timestamp(offset.to_datetime(at)).is_ambiguous();
    is_repeated.then_some("a local time that occurs twice")
}

impl View for SchedulePage {
    fn title(&self) -> String {
        "Schedule".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.upcoming.iter().map(|next| {
            [
                time(next.scheduled_at),
                link(visit, format!("jobs/{}", next.job), &next.job),
                text(&next.schedule),
                if next.paused { badge(Tone::Warning, "paused") } else { text("") },
            ]
        });
        let query = |key: &str| visit.query(key).unwrap_or_default();
        html! {
            h2 { "What runs next" }
            (table(["scheduled", "job", "schedule", "state"], rows, "No job is configured."))
            h2 { "Try an expression" }
            p.hint { "Nothing is saved. To change a schedule, edit jobs.toml; the daemon reads it again." }
            form.filter method="get" action=(visit.link("schedule")) {
                label { "Cron expression " input name="cron" value=(query("cron")) placeholder="30 2 * * *" required; }
                label { "Time zone " input name="zone" value=(query("zone")) placeholder="Europe/Berlin"; }
                label { "Start (UTC) " input name="from" value=(query("from")) placeholder="2026-11-22T15:00:00Z"; }
                label {
                    "Compare with job "
                    select name="job" {
                        option value="" { "none" }
                        @for job in &visit.status.jobs { option selected[job.job == query("job")] { (job.job) } }
                    }
                }
                button { "Show the next times" }
            }
            @if let Some(problem) = &self.problem { p.notice.bad role="alert" { (problem) } }
            @if let Some(preview) = &self.preview { (preview.shown()) }
        }
    }
}

impl Preview {
    fn shown(&self) -> Markup {
        let rows = self.times.iter().map(|next| {
            [
                time(next.scheduled_at),
                text(&next.local),
                next.clock.map_or_else(|| text(""), |change| badge(Tone::Warning, change)),
                if next.added { badge(Tone::Busy, "added") } else { text("") },
            ]
        });
        html! {
            (facts(&[("in words", text(&self.words)), ("time zone", text(&self.zone)), ("lost times", text(self.lost.len().to_string()))]))
            @if !self.lost.is_empty() {
                p { "Of the schedule in force these times would be lost:" }
                ul.times { @for at in &self.lost { li { (time(*at)) } } }
            }
            (table(["scheduled", "local time", "clock", "change"], rows, "No scheduled time is left."))
        }
    }
}
