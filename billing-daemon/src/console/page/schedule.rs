//! What runs next, and what another schedule would do: its next times, and how they differ from the schedule of a job. Nothing is saved:
//! jobs.toml has the schedules.

use billing_scheduler::ScheduleError;
use jiff::tz::TimeZone;

use super::prelude::*;
use crate::{
    console::preview::{Change, Comparison, clock_change, in_words, local, parse, times},
    status::JobState,
};

/// How many times of each job are listed.
const OF_JOB: usize = 5;
/// How many times are shown.
const SHOWN: usize = 50;

#[derive(Serialize)]
pub(in crate::console) struct SchedulePage {
    /// The next scheduled times of the jobs, the first ones of each.
    upcoming: Vec<Upcoming>,
    preview: Option<Preview>,
    /// Why the typed schedule is invalid.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Upcoming {
    scheduled_at: DateTime<Utc>,
    job: String,
    schedule: String,
    paused: bool,
}

/// What the typed schedule would do.
#[derive(Serialize)]
struct Preview {
    words: String,
    zone: String,
    /// The schedule in force in words, if a job is compared.
    in_force: Option<String>,
    times: Vec<PreviewTime>,
    /// The times of the schedule in force that have no counterpart, the first 50 of them.
    lost: Vec<DateTime<Utc>>,
}

#[derive(Serialize)]
struct PreviewTime {
    scheduled_at: DateTime<Utc>,
    /// The local time with its offset.
    local: String,
    /// What a change of the clock does here.
    clock: Option<&'static str>,
    /// Whether the schedule in force neither has it nor has one that it replaces.
    added: bool,
    /// The time of the schedule in force that it replaces.
    moved_from: Option<DateTime<Utc>>,
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
    let preview = visit.query("text").map(|text| preview(visit, text));
    let (preview, problem) = match preview.transpose() {
        Ok(preview) => (preview, None),
        Err(Problem::Invalid(problem)) => (None, Some(problem)),
        Err(problem) => return Err(problem),
    };
    Ok(SchedulePage { upcoming, preview, problem })
}

fn preview(visit: &Visit, text: &str) -> Result<Preview, Problem> {
    let now = visit.status.observed_at;
    let (schedule, zone) =
        parse(text, visit.query("zone").unwrap_or("UTC"), now).map_err(Problem::Invalid)?;
    let from = visit.query("from").map_or(Some(now), parse_time);
    let no_time = || Problem::Invalid("the start is not a time such as 2026-11-22T15:00:00Z".to_owned());
    let from = from.ok_or_else(no_time)?;
    let expected = visit.console.shared.expected();
    let unknown = |name| Problem::Invalid(format!("jobs.toml has no enabled job `{name}`"));
    let in_force = visit.query("job").map(|name| {
        let spec = expected.jobs.iter().find(|spec| spec.name == name);
        spec.map(|spec| &spec.schedule).ok_or_else(|| unknown(name))
    });
    let in_force = in_force.transpose()?;
    let comparison = in_force.map(|in_force| Comparison { in_force, new: &schedule, from });
    let tz = TimeZone::get(&zone).unwrap_or(TimeZone::UTC);
    let compare = || -> Result<_, ScheduleError> {
        let found = times(&schedule, from, SHOWN)?;
        let (mut shown, mut lost) = (Vec::new(), Vec::new());
        if let Some(comparison) = &comparison {
            // Without an end, an end of the new schedule would hide what is lost after it.
            let until = found.last().filter(|_| found.len() == SHOWN).copied();
            lost = comparison.lost(until.unwrap_or(DateTime::<Utc>::MAX_UTC))?;
            lost.truncate(SHOWN);
        }
        for at in found {
            let change = comparison.as_ref().map_or(Ok(Change::Kept), |comparison| comparison.of(at))?;
            shown.push(PreviewTime {
                scheduled_at: at,
                local: local(&tz, at),
                clock: clock_change(&tz, at),
                added: change == Change::Added,
                moved_from: if let Change::Moved(before) = change { Some(before) } else { None },
            });
        }
        Ok((shown, lost))
    };
    let (times, lost) = compare().map_err(|error| Problem::Invalid(in_words(error)))?;
    let in_force = in_force.map(billing_scheduler::Schedule::words);
    Ok(Preview { words: schedule.words(), zone, in_force, times, lost })
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
            h2 { "Try a schedule" }
            p.hint { "Nothing is saved. To change a schedule, edit jobs.toml; the daemon reads it again." }
            form.filter method="get" action=(visit.link("schedule")) {
                label { "Schedule " input name="text" value=(query("text")) placeholder="30 2 * * *" required; }
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
            p.hint {
                "A cron text, " code { "every 1h, 5m after" } ", " code { "daily at 02:30, 14:00" } ", " code { "at 2026-12-01T00:00:00Z" }
                ", or a value of jobs.toml such as " code { "{ every = \"1h\" }" } "."
            }
            @if let Some(problem) = &self.problem { p.notice.bad role="alert" { (prose(problem)) } }
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
                match next.moved_from {
                    // One element, which a card on a small screen keeps together.
                    Some(before) => {
                        html! { span { (badge(Tone::Warning, "moved")) " from " (time(before)) } }
                    }
                    None if next.added => badge(Tone::Busy, "added"),
                    None => text(""),
                },
            ]
        });
        let mut shown = vec![("in words", text(&self.words)), ("time zone", text(&self.zone))];
        if let Some(in_force) = &self.in_force {
            let count = |is: fn(&PreviewTime) -> bool| self.times.iter().filter(|next| is(next)).count();
            let lost = if self.lost.len() < SHOWN { "" } else { " or more" };
            shown.push(("in force", text(in_force)));
            shown.push(("added", text(count(|next| next.added).to_string())));
            shown.push(("moved", text(count(|next| next.moved_from.is_some()).to_string())));
            shown.push(("lost", text(format!("{}{lost}", self.lost.len()))));
        }
        html! {
            (facts(&shown))
            @if !self.lost.is_empty() {
                p { "Of the schedule in force these times would be lost:" }
                ul.times { @for at in &self.lost { li { (time(*at)) } } }
            }
            (table(["scheduled", "local time", "clock", "change"], rows, "No scheduled time is left."))
        }
    }
}
