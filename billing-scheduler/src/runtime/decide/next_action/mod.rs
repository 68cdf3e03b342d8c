//! What a turn of a job does next: pure. Requests come first, then what pauses and an edited schedule leave, then [`due`].

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    due::{Due, SkipReason, due},
    schedule::{Schedule, ScheduleError},
    spec::JobSpec,
};
use crate::runtime::store::{
    ClaimHint, ControlAction, ControlRequest, JobState, OccurrenceRange, Pause, Retrying, RunCause,
    RunRecord, RunStatus,
};

/// What a turn goes by: the lease's view of a job, or a node's own.
#[derive(Clone, Debug)]
pub(crate) struct JobSnapshot {
    /// When the turn began: what an edit of the schedule finds passed, passed before.
    pub(crate) began: DateTime<Utc>,
    pub(crate) state: JobState,
    pub(crate) claim_hint: Option<ClaimHint>,
    pub(crate) pauses: Vec<Pause>,
    pub(crate) requests: Vec<ControlRequest>,
}

impl JobSnapshot {
    /// The same after `record`, which leaves the job in `state`; `adopts` puts an edited schedule into force.
    pub(crate) fn after(
        &self,
        spec: &JobSpec,
        record: &RunRecord,
        state: JobState,
        applies_schedule_change: bool,
    ) -> Self {
        let mut after = Self { state, ..self.clone() };
        after.requests.retain(|request| Some(request.id) != record.request);
        if applies_schedule_change {
            after.claim_hint = Some(claim_hint(spec, &after.state));
        }
        after
    }
}

/// One step of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run this.
    Run(NextRun),
    /// Write a row about scheduled times that are not run, and go on behind them.
    Skip(SkipOccurrences),
    /// Write a row, and continue the schedule from the present.
    Reset { request: Option<Uuid>, reason: String },
    /// Write a row that answers a request which is not obeyed.
    Refuse { request: ControlRequest, reason: String },
    /// Nothing before then.
    Wait(DateTime<Utc>),
}

/// Scheduled times without a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SkipOccurrences {
    pub(crate) status: RunStatus,
    pub(crate) from: DateTime<Utc>,
    pub(crate) until: DateTime<Utc>,
    pub(crate) reason: String,
    /// A scheduled time that is still to be run.
    pub(crate) except: Option<DateTime<Utc>>,
    /// With this row, an edited schedule comes into force.
    pub(crate) applies_schedule_change: bool,
}

/// A run to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextRun {
    pub(crate) scheduled_at: DateTime<Utc>,
    pub(crate) attempt: u32,
    pub(crate) cause: RunCause,
    /// The request that it answers.
    pub(crate) request: Option<Uuid>,
    /// The first scheduled time that it stands for.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) reason: Option<String>,
    /// With this run's row, an edited schedule comes into force.
    pub(crate) applies_schedule_change: bool,
}

/// A request that nobody could obey for so long is a surprise by now.
const REQUEST_TTL: TimeDelta = TimeDelta::hours(1);
/// How soon a paused job is looked at again. Whoever resumes it wakes it.
pub(crate) const PAUSED_POLL: TimeDelta = TimeDelta::minutes(1);
/// A scheduled time is this late at most if all is well, and not late before.
pub(crate) const LATE_AFTER: TimeDelta = TimeDelta::minutes(1);
const TICK: TimeDelta = TimeDelta::microseconds(1);

/// Decides what a turn of `spec` does next.
pub(crate) fn next_action(
    spec: &JobSpec,
    job: &JobSnapshot,
    now: DateTime<Utc>,
) -> Result<Action, ScheduleError> {
    if let Some(request) = job.requests.first() {
        return Ok(action_for_request(request, now));
    }
    let is_paused =
        job.pauses.iter().any(|pause| pause.until.is_none_or(|until| pause.since <= now && now < until));
    if is_paused {
        return Ok(Action::Wait(now + PAUSED_POLL));
    }
    if let Some(retrying) = job.state.retrying {
        // One that an edited schedule left has not begun, and a pause passes over it as over any other.
        let pause = job.pauses.iter().find(|pause| pause.has_passed_over(retrying.scheduled_at));
        if let Some(pause) = pause.filter(|_| retrying.failed_attempts == 0) {
            let at = retrying.scheduled_at;
            return Ok(Action::Skip(SkipOccurrences::new(RunStatus::Paused, at, at, pause.to_string())));
        }
        return action_from_due(spec, &job.state, now);
    }
    if let Some(action) = action_for_edited_schedule(spec, job)? {
        return Ok(action);
    }
    let cursor = job.state.cursor;
    for pause in &job.pauses {
        let Some(until) = pause.until.filter(|until| cursor < *until && pause.since <= now) else { continue };
        if cursor < pause.since {
            // What was due before is not part of the pause; for it, no time has passed since.
            match action_from_due(spec, &job.state, pause.since - TICK)? {
                Action::Wait(_) => {}
                action => return Ok(action),
            }
        }
        if let Some((from, until)) = between(&spec.schedule, cursor, until - TICK)? {
            return Ok(Action::Skip(SkipOccurrences::new(RunStatus::Paused, from, until, pause.to_string())));
        }
    }
    action_from_due(spec, &job.state, now)
}

/// What `due` says.
fn action_from_due(spec: &JobSpec, state: &JobState, now: DateTime<Utc>) -> Result<Action, ScheduleError> {
    Ok(match due(spec, state, now)? {
        Due::Now { scheduled_at, attempt, coalesced_from } => Action::Run(NextRun {
            scheduled_at,
            attempt,
            cause: RunCause::Schedule,
            request: None,
            since: coalesced_from,
            reason: coalesced_from.map(|from| format!("stands for every scheduled time since {from}")),
            applies_schedule_change: false,
        }),
        Due::Skip(skip) => {
            let status = match skip.because {
                SkipReason::Grace(_) => RunStatus::Missed,
                SkipReason::Policy | SkipReason::CatchUpLimit(_) => RunStatus::Skipped,
            };
            Action::Skip(SkipOccurrences::new(status, skip.from, skip.until, skip.to_string()))
        }
        Due::Later(at) => Action::Wait(at),
        Due::Never => Action::Wait(now + TimeDelta::days(1)),
    })
}

fn action_for_request(request: &ControlRequest, now: DateTime<Utc>) -> Action {
    if now - request.at > REQUEST_TTL {
        let reason = format!("{}, and nobody was there for an hour", request.description());
        return Action::Refuse { request: request.clone(), reason };
    }
    if request.action == ControlAction::Reset {
        return Action::Reset { request: Some(request.id), reason: request.description() };
    }
    let (scheduled_at, cause) = match request.action {
        ControlAction::Replay { scheduled_at } => (scheduled_at, RunCause::Replay),
        _ => (whole_second(request.at), RunCause::Manual),
    };
    Action::Run(NextRun {
        scheduled_at,
        attempt: 1,
        cause,
        request: Some(request.id),
        since: None,
        reason: Some(request.description()),
        applies_schedule_change: false,
    })
}

/// What another schedule left: its time that passed without a run is not lost, and the times of this one that passed before it
/// came into force are not run.
fn action_for_edited_schedule(spec: &JobSpec, job: &JobSnapshot) -> Result<Option<Action>, ScheduleError> {
    let JobState { cursor, .. } = job.state;
    let Some(hint) = job.claim_hint.as_ref().filter(|hint| !spec.schedule.reads(&hint.schedule)) else {
        return Ok(None);
    };
    let before = &hint.schedule;
    let left = hint.next_at.filter(|at| cursor < *at && *at <= job.began);
    let pause = |at| job.pauses.iter().find(|pause| pause.has_passed_over(at));
    if let Some((paused, pause)) = left.and_then(|at| Some((at, pause(at)?))) {
        return Ok(Some(Action::Skip(SkipOccurrences::new(
            RunStatus::Paused,
            paused,
            paused,
            pause.to_string(),
        ))));
    }
    let reason = format!("was due by the schedule before ({before})");
    if let Some(stale) = left.filter(|at| is_stale(spec, *at, job.began)) {
        return Ok(Some(Action::Skip(SkipOccurrences::new(RunStatus::Skipped, stale, stale, reason))));
    }
    if let Some((from, until)) = between(&spec.schedule, cursor, job.began)? {
        let reason = format!("the schedule was changed from {before} to {}: nothing was due", spec.schedule);
        let pass = SkipOccurrences::new(RunStatus::Rescheduled, from, until, reason);
        return Ok(Some(Action::Skip(SkipOccurrences {
            except: left,
            applies_schedule_change: true,
            ..pass
        })));
    }
    Ok(left.map(|scheduled_at| {
        Action::Run(NextRun {
            scheduled_at,
            attempt: 1,
            cause: RunCause::Schedule,
            request: None,
            since: None,
            reason: Some(reason),
            applies_schedule_change: true,
        })
    }))
}

/// Whether a scheduled time is too old to be run.
fn is_stale(spec: &JobSpec, at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    spec.grace().and_then(|grace| TimeDelta::from_std(grace).ok()).is_some_and(|grace| now - at >= grace)
}

impl SkipOccurrences {
    fn new(status: RunStatus, from: DateTime<Utc>, until: DateTime<Utc>, reason: String) -> Self {
        Self { status, from, until, reason, except: None, applies_schedule_change: false }
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
pub(crate) fn hint_for_release(spec: &JobSpec, job: &JobSnapshot) -> Option<ClaimHint> {
    match action_for_edited_schedule(spec, job) {
        Ok(None) => Some(claim_hint(spec, &job.state)),
        Ok(Some(_)) | Err(_) => job.claim_hint.clone(),
    }
}

/// The plan of a job that its configuration does not have any more: only what was due already is left of it.
pub(crate) fn hint_of_removed_job(hint: &ClaimHint, now: DateTime<Utc>) -> ClaimHint {
    ClaimHint {
        schedule: "no schedule".to_owned(),
        next_at: hint.next_at.filter(|at| *at <= now),
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
pub(crate) fn occurrence_range(
    schedule: &Schedule,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Option<OccurrenceRange> {
    if from >= until {
        return None;
    }
    let count = schedule
        .count(from - TICK, until, OccurrenceRange::MAX_COUNTED)
        .unwrap_or(OccurrenceRange::MAX_COUNTED);
    Some(OccurrenceRange { from, count })
}

/// What is expected of a job that stands so.
pub(crate) fn claim_hint(spec: &JobSpec, state: &JobState) -> ClaimHint {
    let next_at = match state.retrying {
        Some(retrying) => Some(retrying.scheduled_at),
        None => spec.schedule.next_after(state.cursor).ok().flatten(),
    };
    let begins_at = state.retrying.map(|retrying| retrying.not_before);
    let begins_at = begins_at.or_else(|| next_at.map(|at| spec.starts_at(at)));
    let grace = spec.misfire_grace.and_then(|grace| TimeDelta::from_std(grace).ok()).unwrap_or(LATE_AFTER);
    let late_at = begins_at.and_then(|at| at.checked_add_signed(grace.max(LATE_AFTER)));
    let timeout = TimeDelta::from_std(spec.timeout).unwrap_or(TimeDelta::MAX);
    ClaimHint {
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
pub(crate) fn skip_record(spec: &JobSpec, pass: &SkipOccurrences, now: DateTime<Utc>) -> RunRecord {
    RunRecord {
        range: occurrence_range(&spec.schedule, pass.from, pass.until),
        reason: Some(pass.reason.clone()),
        ..RunRecord::new(&spec.name, pass.until, pass.status, RunCause::Schedule, now)
    }
}

/// The row of a schedule that continues from the present, and its state.
pub(crate) fn reset_record(
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
        ..RunRecord::new(&spec.name, present, RunStatus::Skipped, RunCause::Manual, now)
    };
    (record, JobState::at(present.min(before)))
}

/// The row of a scheduled time that an earlier run, before a reset, has finished, and the state behind it.
pub(crate) fn already_finished_record(
    spec: &JobSpec,
    run: &RunRecord,
    cursor: DateTime<Utc>,
) -> (RunRecord, JobState) {
    let passed = RunRecord {
        fencing_token: run.fencing_token,
        reason: Some("it ran already, while a clock was ahead".to_owned()),
        ..RunRecord::new(
            &spec.name,
            run.scheduled_at,
            RunStatus::Skipped,
            RunCause::Schedule,
            run.finished_at,
        )
    };
    (passed, JobState::at(cursor.max(run.scheduled_at)))
}

/// The row that answers a request which is not obeyed.
pub(crate) fn refusal_record(
    spec: &JobSpec,
    request: &ControlRequest,
    reason: String,
    now: DateTime<Utc>,
) -> RunRecord {
    let (scheduled_at, cause) = match request.action {
        ControlAction::Replay { scheduled_at } => (scheduled_at, RunCause::Replay),
        _ => (whole_second(request.at), RunCause::Manual),
    };
    RunRecord {
        request: Some(request.id),
        reason: Some(reason),
        ..RunRecord::new(&spec.name, scheduled_at, RunStatus::Missed, cause, now)
    }
}

fn whole_second(at: DateTime<Utc>) -> DateTime<Utc> {
    chrono::SubsecRound::trunc_subsecs(at, 0)
}

#[cfg(test)]
mod tests;
