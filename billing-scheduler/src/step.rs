//! What a turn of a job does next: pure. Requests come first, then what pauses and an edited schedule leave, then [`due`].

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    Due, JobSpec, JobState, Pause, Plan, Request, Retrying, RunRecord, RunStatus, Schedule, ScheduleError,
    SkipReason, Stretch, Trigger, What, due,
};

/// What a turn goes by: the lease's view of a job, or a node's own.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// When the turn began: what an edit of the schedule finds passed, passed before.
    pub(crate) began: DateTime<Utc>,
    pub(crate) state: JobState,
    pub(crate) plan: Option<Plan>,
    pub(crate) pauses: Vec<Pause>,
    pub(crate) requests: Vec<Request>,
}

impl Standing {
    /// The same after `record`, which leaves the job in `state`; `adopts` puts an edited schedule into force.
    pub(crate) fn after(&self, spec: &JobSpec, record: &RunRecord, state: JobState, adopts: bool) -> Self {
        let mut after = Self { state, ..self.clone() };
        after.requests.retain(|request| Some(request.id) != record.request);
        if adopts {
            after.plan = Some(plan(spec, &after.state));
        }
        after
    }
}

/// One step of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Run this.
    Run(Run),
    /// Write a row about scheduled times that are not run, and go on behind them.
    Pass(Pass),
    /// Write a row, and continue the schedule from the present.
    Reset { request: Option<Uuid>, reason: String },
    /// Write a row that answers a request which is not obeyed.
    Refuse { request: Request, reason: String },
    /// Nothing before then.
    Wait(DateTime<Utc>),
}

/// Scheduled times without a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) status: RunStatus,
    pub(crate) from: DateTime<Utc>,
    pub(crate) until: DateTime<Utc>,
    pub(crate) reason: String,
    /// A scheduled time that is still to be run.
    pub(crate) except: Option<DateTime<Utc>>,
    /// With this row, an edited schedule comes into force.
    pub(crate) adopts: bool,
}

/// A run to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) scheduled_at: DateTime<Utc>,
    pub(crate) attempt: u32,
    pub(crate) trigger: Trigger,
    /// The request that it answers.
    pub(crate) request: Option<Uuid>,
    /// The first scheduled time that it stands for.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) reason: Option<String>,
    /// With this run's row, an edited schedule comes into force.
    pub(crate) adopts: bool,
}

/// A request that nobody could obey for so long is a surprise by now.
const PATIENCE: TimeDelta = TimeDelta::hours(1);
/// How soon a paused job is looked at again. Whoever resumes it wakes it.
const PAUSED: TimeDelta = TimeDelta::minutes(1);
/// A scheduled time is this late at most if all is well, and not late before.
pub(crate) const JUST_NOW: TimeDelta = TimeDelta::minutes(1);
const TICK: TimeDelta = TimeDelta::microseconds(1);

/// Decides what a turn of `spec` does next.
pub(crate) fn step(spec: &JobSpec, job: &Standing, now: DateTime<Utc>) -> Result<Step, ScheduleError> {
    if let Some(request) = job.requests.first() {
        return Ok(answer(request, now));
    }
    let is_paused =
        job.pauses.iter().any(|pause| pause.until.is_none_or(|until| pause.since <= now && now < until));
    if is_paused {
        return Ok(Step::Wait(now + PAUSED));
    }
    if let Some(retrying) = job.state.retrying {
        // One that an edited schedule left has not begun, and a pause passes over it as over any other.
        let pause = job.pauses.iter().find(|pause| pause.has_passed_over(retrying.scheduled_at));
        if let Some(pause) = pause.filter(|_| retrying.failed_attempts == 0) {
            let at = retrying.scheduled_at;
            return Ok(Step::Pass(Pass::new(RunStatus::Paused, at, at, pause.to_string())));
        }
        return obey(spec, &job.state, now);
    }
    if let Some(step) = edited(spec, job)? {
        return Ok(step);
    }
    let cursor = job.state.cursor;
    for pause in &job.pauses {
        let Some(until) = pause.until.filter(|until| cursor < *until && pause.since <= now) else { continue };
        if cursor < pause.since {
            // What was due before is not part of the pause; for it, no time has passed since.
            match obey(spec, &job.state, pause.since - TICK)? {
                Step::Wait(_) => {}
                step => return Ok(step),
            }
        }
        if let Some((from, until)) = between(&spec.schedule, cursor, until - TICK)? {
            return Ok(Step::Pass(Pass::new(RunStatus::Paused, from, until, pause.to_string())));
        }
    }
    obey(spec, &job.state, now)
}

/// What `due` says.
fn obey(spec: &JobSpec, state: &JobState, now: DateTime<Utc>) -> Result<Step, ScheduleError> {
    Ok(match due(spec, state, now)? {
        Due::Now { scheduled_at, attempt, coalesced_from } => Step::Run(Run {
            scheduled_at,
            attempt,
            trigger: Trigger::Schedule,
            request: None,
            since: coalesced_from,
            reason: coalesced_from.map(|from| format!("stands for every scheduled time since {from}")),
            adopts: false,
        }),
        Due::Skip(skip) => {
            let status = match skip.because {
                SkipReason::Grace(_) => RunStatus::Missed,
                SkipReason::Policy | SkipReason::CatchUpLimit(_) => RunStatus::Skipped,
            };
            Step::Pass(Pass::new(status, skip.from, skip.until, skip.to_string()))
        }
        Due::Later(at) => Step::Wait(at),
        Due::Never => Step::Wait(now + TimeDelta::days(1)),
    })
}

fn answer(request: &Request, now: DateTime<Utc>) -> Step {
    if now - request.at > PATIENCE {
        let reason = format!("{}, and nobody was there for an hour", request.sentence());
        return Step::Refuse { request: request.clone(), reason };
    }
    if request.what == What::Reset {
        return Step::Reset { request: Some(request.id), reason: request.sentence() };
    }
    let (scheduled_at, trigger) = match request.what {
        What::Replay { scheduled_at } => (scheduled_at, Trigger::Replay),
        _ => (whole_second(request.at), Trigger::Manual),
    };
    Step::Run(Run {
        scheduled_at,
        attempt: 1,
        trigger,
        request: Some(request.id),
        since: None,
        reason: Some(request.sentence()),
        adopts: false,
    })
}

/// What another schedule left: its time that passed without a run is not lost, and the times of this one that passed before it
/// came into force are not run.
fn edited(spec: &JobSpec, job: &Standing) -> Result<Option<Step>, ScheduleError> {
    let JobState { cursor, .. } = job.state;
    let Some(plan) = job.plan.as_ref().filter(|plan| !spec.schedule.reads(&plan.schedule)) else {
        return Ok(None);
    };
    let before = &plan.schedule;
    let left = plan.next_at.filter(|at| cursor < *at && *at <= job.began);
    let pause = |at| job.pauses.iter().find(|pause| pause.has_passed_over(at));
    if let Some((paused, pause)) = left.and_then(|at| Some((at, pause(at)?))) {
        return Ok(Some(Step::Pass(Pass::new(RunStatus::Paused, paused, paused, pause.to_string()))));
    }
    let reason = format!("was due by the schedule before ({before})");
    if let Some(stale) = left.filter(|at| is_stale(spec, *at, job.began)) {
        return Ok(Some(Step::Pass(Pass::new(RunStatus::Skipped, stale, stale, reason))));
    }
    if let Some((from, until)) = between(&spec.schedule, cursor, job.began)? {
        let reason = format!("the schedule was changed from {before} to {}: nothing was due", spec.schedule);
        let pass = Pass::new(RunStatus::Rescheduled, from, until, reason);
        return Ok(Some(Step::Pass(Pass { except: left, adopts: true, ..pass })));
    }
    Ok(left.map(|scheduled_at| {
        Step::Run(Run {
            scheduled_at,
            attempt: 1,
            trigger: Trigger::Schedule,
            request: None,
            since: None,
            reason: Some(reason),
            adopts: true,
        })
    }))
}

/// Whether a scheduled time is too old to be run.
fn is_stale(spec: &JobSpec, at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    spec.grace().and_then(|grace| TimeDelta::from_std(grace).ok()).is_some_and(|grace| now - at >= grace)
}

impl Pass {
    fn new(status: RunStatus, from: DateTime<Utc>, until: DateTime<Utc>, reason: String) -> Self {
        Self { status, from, until, reason, except: None, adopts: false }
    }

    /// Where the schedule stands behind it.
    pub(crate) fn state(&self, cursor: DateTime<Utc>) -> JobState {
        let retrying = self.except.map(|scheduled_at| Retrying {
            scheduled_at,
            failed_attempts: 0,
            not_before: scheduled_at,
        });
        JobState { cursor: cursor.max(self.until), retrying }
    }
}

/// The plan to leave behind: an edit that could not be dealt with is found by the next turn.
pub(crate) fn leave(spec: &JobSpec, job: &Standing) -> Option<Plan> {
    match edited(spec, job) {
        Ok(None) => Some(plan(spec, &job.state)),
        Ok(Some(_)) | Err(_) => job.plan.clone(),
    }
}

/// The plan of a job that its configuration does not have any more: only what was due already is left of it.
pub(crate) fn removed(plan: &Plan, now: DateTime<Utc>) -> Plan {
    Plan {
        schedule: "no schedule".to_owned(),
        next_at: plan.next_at.filter(|at| *at <= now),
        late_at: None,
        stuck_at: None,
    }
}

/// Two scheduled times, and those between them.
type Ends = (DateTime<Utc>, DateTime<Utc>);

/// The first and the last scheduled time after `after` and up to `until`.
fn between(
    schedule: &Schedule,
    after: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Option<Ends>, ScheduleError> {
    let Some(first) = schedule.next_after(after)?.filter(|first| *first <= until) else { return Ok(None) };
    Ok(Some((first, schedule.last_until(until)?.unwrap_or(first).max(first))))
}

/// The stretch from `from` to `until`; `None` if that is one scheduled time.
pub(crate) fn stretch(schedule: &Schedule, from: DateTime<Utc>, until: DateTime<Utc>) -> Option<Stretch> {
    if from >= until {
        return None;
    }
    let count = schedule.count(from - TICK, until, Stretch::COUNTED).unwrap_or(Stretch::COUNTED);
    Some(Stretch { from, count })
}

/// What is expected of a job that stands so.
pub(crate) fn plan(spec: &JobSpec, state: &JobState) -> Plan {
    let next_at = match state.retrying {
        Some(retrying) => Some(retrying.scheduled_at),
        None => spec.schedule.next_after(state.cursor).ok().flatten(),
    };
    let begins_at = state.retrying.map(|retrying| retrying.not_before);
    let begins_at = begins_at.or_else(|| next_at.map(|at| spec.starts_at(at)));
    let grace = spec.misfire_grace.and_then(|grace| TimeDelta::from_std(grace).ok()).unwrap_or(JUST_NOW);
    let late_at = begins_at.and_then(|at| at.checked_add_signed(grace.max(JUST_NOW)));
    let timeout = TimeDelta::from_std(spec.timeout).unwrap_or(TimeDelta::MAX);
    Plan {
        schedule: spec.schedule.to_string(),
        next_at,
        late_at,
        stuck_at: late_at.and_then(|at| at.checked_add_signed(timeout)),
    }
}

/// Where the schedule of a job begins that nobody has run yet.
pub(crate) fn first_cursor(spec: &JobSpec, now: DateTime<Utc>) -> DateTime<Utc> {
    let now = whole_second(now);
    if !spec.run_at_start {
        return now;
    }
    match spec.schedule.last_until(now) {
        Ok(Some(last)) => last - TimeDelta::seconds(1),
        Ok(None) | Err(_) => now,
    }
}

/// The row of scheduled times without a run.
pub(crate) fn passed(spec: &JobSpec, pass: &Pass, now: DateTime<Utc>) -> RunRecord {
    RunRecord {
        stretch: stretch(&spec.schedule, pass.from, pass.until),
        reason: Some(pass.reason.clone()),
        ..RunRecord::new(&spec.name, pass.until, pass.status, Trigger::Schedule, now)
    }
}

/// The row of a schedule that continues from the present, and its state.
pub(crate) fn reset(
    spec: &JobSpec,
    request: Option<Uuid>,
    reason: &str,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> (RunRecord, JobState) {
    let present = whole_second(now);
    let finished = chrono::SecondsFormat::Secs;
    let reason = format!("{reason}; it was finished up to {}", before.to_rfc3339_opts(finished, true));
    let record = RunRecord {
        request,
        reason: Some(reason),
        ..RunRecord::new(&spec.name, present, RunStatus::Skipped, Trigger::Manual, now)
    };
    (record, JobState::at(present.min(before)))
}

/// The row of a scheduled time that an earlier run, before a reset, has finished, and the state behind it.
pub(crate) fn finished_before(
    spec: &JobSpec,
    run: &RunRecord,
    cursor: DateTime<Utc>,
) -> (RunRecord, JobState) {
    let passed = RunRecord {
        fence: run.fence,
        reason: Some("it ran already, while a clock was ahead".to_owned()),
        ..RunRecord::new(&spec.name, run.scheduled_at, RunStatus::Skipped, Trigger::Schedule, run.finished_at)
    };
    (passed, JobState::at(cursor.max(run.scheduled_at)))
}

/// The row that answers a request which is not obeyed.
pub(crate) fn refused(spec: &JobSpec, request: &Request, reason: String, now: DateTime<Utc>) -> RunRecord {
    let (scheduled_at, trigger) = match request.what {
        What::Replay { scheduled_at } => (scheduled_at, Trigger::Replay),
        _ => (whole_second(request.at), Trigger::Manual),
    };
    RunRecord {
        request: Some(request.id),
        reason: Some(reason),
        ..RunRecord::new(&spec.name, scheduled_at, RunStatus::Missed, trigger, now)
    }
}

fn whole_second(at: DateTime<Utc>) -> DateTime<Utc> {
    chrono::SubsecRound::trunc_subsecs(at, 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Misfire;

    fn at(clock: &str) -> DateTime<Utc> {
        format!("2026-01-05T{clock}Z").parse().expect("a time of day")
    }

    fn hourly() -> Schedule {
        Schedule::every(Duration::from_hours(1)).expect("valid")
    }

    fn pause(since: &str, until: Option<&str>) -> Pause {
        Pause { since: at(since), until: until.map(at), by: "ada".to_owned(), reason: Some("tea".to_owned()) }
    }

    fn request(what: What, asked: &str) -> Request {
        let (job, by) = ("job".to_owned(), "ada".to_owned());
        Request { id: Uuid::nil(), job, what, by, reason: None, at: at(asked) }
    }

    /// In short words, what the turn of an hourly job does.
    fn check(job: Job<'_>, now: &str, expected: &str) {
        let mut state = JobState::at(at(job.cursor));
        if let Some(not_before) = job.retry {
            let (scheduled_at, not_before) = (at("10:00:00"), at(not_before));
            let failed_attempts = u32::from(!job.has_not_begun);
            state.retrying = Some(Retrying { scheduled_at, failed_attempts, not_before });
        }
        let plan = job.plan.map(|(schedule, next)| Plan {
            schedule: schedule.to_owned(),
            next_at: Some(at(next)),
            late_at: None,
            stuck_at: None,
        });
        let standing = Standing { began: at(now), state, plan, pauses: job.pauses, requests: job.requests };
        let spec = JobSpec { misfire: job.misfire, ..JobSpec::new("job", "kind", hourly()) };
        let time = |at: DateTime<Utc>| at.format("%H:%M").to_string();
        let said = match step(&spec, &standing, at(now)).expect("an hourly schedule can be computed") {
            Step::Run(run) => format!("{} run of {}", run.trigger.as_str(), time(run.scheduled_at)),
            Step::Pass(pass) => {
                let except = pass.except.map(|at| format!(" except {}", time(at))).unwrap_or_default();
                format!(
                    "{} from {} until {}{except}",
                    pass.status.as_str(),
                    time(pass.from),
                    time(pass.until)
                )
            }
            Step::Refuse { .. } => "refuse".to_owned(),
            Step::Reset { .. } => "reset".to_owned(),
            Step::Wait(until) => format!("wait until {}", time(until)),
        };
        assert_eq!(said, expected, "at {now}");
    }

    #[derive(Default)]
    struct Job<'a> {
        cursor: &'a str,
        retry: Option<&'a str>,
        has_not_begun: bool,
        plan: Option<(&'a str, &'a str)>,
        pauses: Vec<Pause>,
        requests: Vec<Request>,
        misfire: Misfire,
    }

    #[test]
    fn a_paused_job_waits_and_what_came_meanwhile_is_one_row() {
        let paused = |until| vec![pause("10:30:00", until)];
        let job = |cursor, until| Job { cursor, pauses: paused(until), ..Job::default() };
        check(job("10:00:00", None), "14:10:00", "wait until 14:11");
        check(job("10:00:00", Some("14:05:00")), "14:10:00", "paused from 11:00 until 14:00");
        check(job("14:00:00", Some("14:05:00")), "14:10:00", "wait until 15:00");
        // The instant of resumption is no longer paused.
        check(job("10:00:00", Some("14:00:00")), "14:00:00", "paused from 11:00 until 13:00");
        check(job("13:00:00", Some("14:00:00")), "14:00:00", "schedule run of 14:00");
        // A pause between two scheduled times leaves no row.
        check(job("10:00:00", Some("10:40:00")), "11:00:00", "schedule run of 11:00");
    }

    #[test]
    fn what_was_due_before_a_pause_is_not_lost() {
        let job = |cursor, misfire| Job {
            cursor,
            misfire,
            pauses: vec![pause("10:30:00", Some("14:05:00"))],
            ..Job::default()
        };
        check(job("08:00:00", Misfire::Coalesce), "14:10:00", "schedule run of 10:00");
        check(job("08:00:00", Misfire::CatchUp), "14:10:00", "schedule run of 09:00");
        check(job("08:00:00", Misfire::Skip), "14:10:00", "skipped from 09:00 until 10:00");
        let retrying = |pauses| Job { cursor: "09:00:00", retry: Some("10:01:00"), pauses, ..Job::default() };
        check(retrying(vec![pause("10:00:30", None)]), "10:02:00", "wait until 10:03");
        check(retrying(vec![pause("10:00:30", Some("12:10:00"))]), "12:20:00", "schedule run of 10:00");
    }

    #[test]
    fn pause_passes_over_what_an_edit_left() {
        let job = |has_not_begun, until| Job {
            cursor: "12:00:00",
            retry: Some("10:00:00"),
            has_not_begun,
            pauses: vec![pause("09:30:00", Some(until))],
            ..Job::default()
        };
        check(job(true, "10:30:00"), "12:20:00", "paused from 10:00 until 10:00");
        check(job(true, "10:00:00"), "12:20:00", "schedule run of 10:00");
        check(job(false, "10:30:00"), "12:20:00", "schedule run of 10:00");
    }

    #[test]
    fn several_pauses_are_told_apart() {
        let pauses = vec![pause("10:30:00", Some("12:30:00")), pause("13:30:00", Some("15:30:00"))];
        let job = |cursor| Job { cursor, pauses: pauses.clone(), ..Job::default() };
        check(job("10:00:00"), "16:10:00", "paused from 11:00 until 12:00");
        check(job("12:00:00"), "16:10:00", "schedule run of 13:00");
        check(job("13:00:00"), "16:10:00", "paused from 14:00 until 15:00");
        check(job("15:00:00"), "16:10:00", "schedule run of 16:00");
    }

    #[test]
    fn a_request_comes_first_even_to_a_paused_job_unless_it_is_stale() {
        let replay = What::Replay { scheduled_at: at("03:00:00") };
        let job = |what, pauses| Job {
            cursor: "08:00:00",
            requests: vec![request(what, "14:09:59")],
            pauses,
            ..Job::default()
        };
        check(job(What::Trigger, vec![]), "14:10:00", "manual run of 14:09");
        check(job(What::Trigger, vec![pause("10:00:00", None)]), "14:10:00", "manual run of 14:09");
        check(job(replay, vec![]), "14:10:00", "replay run of 03:00");
        check(job(What::Trigger, vec![]), "15:09:59", "manual run of 14:09");
        check(job(What::Trigger, vec![]), "15:10:00", "refuse");
    }

    #[test]
    fn an_edited_schedule_fires_nothing_by_surprise_and_loses_nothing() {
        let job = |cursor, next, misfire| Job {
            cursor,
            misfire,
            plan: Some(("every 30m", next)),
            ..Job::default()
        };
        // Half-hourly until 10:45, hourly from then on: 10:30 was done, and 11:00 is the next of both.
        check(job("10:30:00", "11:00:00", Misfire::Coalesce), "10:45:00", "wait until 11:00");
        // 10:30 was due and not done.
        check(job("10:00:00", "10:30:00", Misfire::Coalesce), "10:45:00", "schedule run of 10:30");
        check(job("10:00:00", "10:30:00", Misfire::Skip), "10:30:59", "schedule run of 10:30");
        check(job("10:00:00", "10:30:00", Misfire::Skip), "10:31:00", "skipped from 10:30 until 10:30");
        // It came daily before: the hours since the cursor are not of that schedule.
        let daily = |cursor| Job { cursor, plan: Some(("daily", "23:00:00")), ..Job::default() };
        check(daily("03:15:00"), "10:45:00", "rescheduled from 04:00 until 10:00");
        check(daily("10:00:00"), "10:45:00", "wait until 11:00");
        // Both: it came at half past before.
        let half = |cursor| Job { cursor, plan: Some(("half past", "09:30:00")), ..Job::default() };
        check(half("08:30:00"), "10:45:00", "rescheduled from 09:00 until 10:00 except 09:30");
        // The same text is the same schedule: what passed is a misfire.
        let same = Job { cursor: "08:00:00", plan: Some(("every 1h", "09:00:00")), ..Job::default() };
        check(same, "10:45:00", "schedule run of 10:00");
    }

    #[test]
    fn a_schedule_that_is_edited_while_the_job_is_paused_fires_nothing_by_surprise() {
        let job = |cursor, since, plan| Job {
            cursor,
            pauses: vec![pause(since, Some("14:05:00"))],
            plan: Some(plan),
            ..Job::default()
        };
        // The hours before the pause were not due by the schedule of then.
        let daily = ("daily", "23:00:00");
        check(job("08:00:00", "10:40:00", daily), "14:10:00", "rescheduled from 09:00 until 14:00");
        // 10:30 was due before the pause, and not done.
        let half = ("every 30m", "10:30:00");
        check(
            job("10:00:00", "10:40:00", half),
            "14:10:00",
            "rescheduled from 11:00 until 14:00 except 10:30",
        );
        // It came while the job was paused.
        check(job("10:00:00", "10:20:00", half), "14:10:00", "paused from 10:30 until 10:30");
        check(job("10:30:00", "10:20:00", half), "14:10:00", "rescheduled from 11:00 until 14:00");
    }

    #[test]
    fn reset_continues_from_the_present() {
        let job =
            Job { cursor: "23:00:00", requests: vec![request(What::Reset, "10:29:58")], ..Job::default() };
        check(job, "10:30:00", "reset");
        let spec = JobSpec::new("job", "kind", hourly());
        let (record, state) = reset(&spec, None, "reset by ada", at("23:00:00"), at("10:30:00"));
        assert_eq!(state, JobState::at(at("10:30:00")));
        assert_eq!(
            record.reason.as_deref(),
            Some("reset by ada; it was finished up to 2026-01-05T23:00:00Z")
        );
        let (_, state) = reset(&spec, None, "late", at("09:00:00"), at("10:30:00"));
        assert_eq!(state, JobState::at(at("09:00:00")), "what is still to be run is not passed over");
    }

    #[test]
    fn the_times_of_a_stretch_are_counted() {
        let count = |from, until| stretch(&hourly(), at(from), at(until)).map(|stretch| stretch.count);
        assert_eq!(count("09:00:00", "09:00:00"), None);
        assert_eq!(count("09:00:00", "14:00:00"), Some(6));
        let secondly = Schedule::every(Duration::from_secs(1)).expect("valid");
        let month = stretch(&secondly, at("00:00:00"), at("00:00:00") + TimeDelta::days(30));
        assert_eq!(month.map(|month| month.count), Some(Stretch::COUNTED));
    }

    #[test]
    fn a_plan_tells_when_a_job_is_late() {
        let spec = JobSpec::new("job", "kind", hourly());
        let expected = plan(&spec, &JobState::at(at("09:00:00")));
        assert_eq!(expected.next_at, Some(at("10:00:00")));
        assert_eq!(expected.late_at, Some(at("10:01:00")));
        assert_eq!(expected.stuck_at, Some(at("10:11:00")));
        assert_eq!(expected.schedule, "every 1h");
        let retrying =
            Retrying { scheduled_at: at("10:00:00"), failed_attempts: 1, not_before: at("10:05:00") };
        let expected = plan(&spec, &JobState { retrying: Some(retrying), ..JobState::at(at("09:00:00")) });
        assert_eq!((expected.next_at, expected.late_at), (Some(at("10:00:00")), Some(at("10:06:00"))));
    }
}
