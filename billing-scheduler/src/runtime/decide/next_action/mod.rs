//! The next action of a lease cycle, as a pure function: requests first, then schedules that were replaced, ended pauses, and what is
//! due.

mod hints;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    due::{Due, SkipReason, due_until},
    schedule::{Schedule, ScheduleError},
    spec::JobSpec,
};
use crate::runtime::store::{
    ClaimHint, ControlAction, ControlRequest, JobState, OccurrenceRange, Pause, ReplacedSchedule, RunCause,
    RunRecord, RunStatus,
};

pub(crate) use hints::{NO_SCHEDULE, edited_hint, hint_for_release, hint_of_removed_job};

/// The state, pauses and requests of a job, as read with its lease or as this node keeps them.
#[derive(Clone, Debug)]
pub(crate) struct JobSnapshot {
    pub(crate) state: JobState,
    pub(crate) claim_hint: Option<ClaimHint>,
    pub(crate) pauses: Vec<Pause>,
    pub(crate) requests: Vec<ControlRequest>,
}

impl JobSnapshot {
    /// Returns the snapshot after `record`, which leaves the job in `state`.
    pub(crate) fn after(&self, record: &RunRecord, state: JobState) -> Self {
        let mut after = Self { state, ..self.clone() };
        after.requests.retain(|request| Some(request.id) != record.request_id);
        after
    }
}

/// One action of a lease cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run one occurrence.
    Run(NextRun),
    /// Record scheduled times that are not run, and continue after them.
    Skip(SkipOccurrences),
    /// Record a reset, and continue the schedule from the present.
    Reset { request_id: Option<Uuid>, reason: String },
    /// Record that a request is refused.
    Refuse { request: ControlRequest, reason: String },
    /// Wait: nothing is due before this instant.
    Wait(DateTime<Utc>),
}

/// Scheduled times to record without a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SkipOccurrences {
    pub(crate) status: RunStatus,
    pub(crate) from: DateTime<Utc>,
    pub(crate) until: DateTime<Utc>,
    /// The range from `from` to `until`, unless that is one scheduled time.
    pub(crate) range: Option<OccurrenceRange>,
    pub(crate) reason: String,
}

/// A run to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextRun {
    pub(crate) scheduled_at: DateTime<Utc>,
    pub(crate) attempt: u32,
    pub(crate) cause: RunCause,
    /// The control request that the run answers.
    pub(crate) request_id: Option<Uuid>,
    /// The scheduled times that the run is coalesced from, if they are several.
    pub(crate) range: Option<OccurrenceRange>,
    pub(crate) reason: Option<String>,
}

/// A request that is older is refused: a run would come as a surprise.
const REQUEST_TTL: TimeDelta = TimeDelta::hours(1);
/// How often a paused job is checked. A resumed job is woken earlier.
pub(crate) const PAUSED_POLL: TimeDelta = TimeDelta::minutes(1);
/// A run that starts no later than this after its scheduled time is not late.
pub(crate) const LATE_AFTER: TimeDelta = TimeDelta::minutes(1);
const TICK: TimeDelta = TimeDelta::microseconds(1);

/// Returns the next action of a lease cycle.
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
        // A pause applies to a scheduled time without a failed attempt: no attempt has begun its work.
        let pause = job.pauses.iter().find(|pause| pause.skipped(retrying.scheduled_at));
        if let Some(pause) = pause.filter(|_| retrying.failed_attempts == 0) {
            let at = retrying.scheduled_at;
            return Ok(Action::Skip(SkipOccurrences::new(
                spec,
                RunStatus::Paused,
                at,
                at,
                pause.to_string(),
            )));
        }
    } else if let Some(action) = action_for_replaced_schedules(spec, job, now)? {
        return Ok(action);
    }
    let action = scheduled_action(spec, job, &job.state, DateTime::<Utc>::MAX_UTC, now)?;
    Ok(action.unwrap_or_else(|| Action::Wait(now + TimeDelta::days(1))))
}

/// Returns the action for a job in `state` whose schedule ends at `end`; `None` if it has no scheduled time left.
fn scheduled_action(
    spec: &JobSpec,
    job: &JobSnapshot,
    state: &JobState,
    end: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<Action>, ScheduleError> {
    let cursor = state.cursor;
    for pause in job.pauses.iter().filter(|_| state.retrying.is_none()) {
        let Some(until) = pause.until.filter(|until| cursor < *until && pause.since <= now) else { continue };
        if cursor < pause.since {
            // What was due before the pause is not part of it. It is decided as if no time had passed since.
            match action_from_due(spec, state, end, pause.since - TICK)? {
                None | Some(Action::Wait(_)) => {}
                action => return Ok(action),
            }
        }
        if let Some((from, until)) = between(&spec.schedule, cursor, end.min(until - TICK))? {
            let skipped = SkipOccurrences::new(spec, RunStatus::Paused, from, until, pause.to_string());
            return Ok(Some(Action::Skip(skipped)));
        }
    }
    action_from_due(spec, state, end, now)
}

/// Translates the result of [`due_until`].
fn action_from_due(
    spec: &JobSpec,
    state: &JobState,
    end: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<Action>, ScheduleError> {
    Ok(Some(match due_until(spec, state, end, now)? {
        Due::Now { scheduled_at, attempt, coalesced_from } => Action::Run(NextRun {
            attempt,
            range: coalesced_from.and_then(|from| occurrence_range(&spec.schedule, from, scheduled_at)),
            reason: coalesced_from.map(|from| format!("covers every scheduled time since {from}")),
            ..NextRun::new(scheduled_at, RunCause::Schedule)
        }),
        Due::Skip(skip) => {
            let status = match skip.reason {
                SkipReason::Grace(_) => RunStatus::Missed,
                SkipReason::Policy | SkipReason::CatchUpLimit(_) => RunStatus::Skipped,
            };
            Action::Skip(SkipOccurrences::new(spec, status, skip.from, skip.until, skip.to_string()))
        }
        Due::Later(at) => Action::Wait(at),
        Due::Never => return Ok(None),
    }))
}

fn action_for_request(request: &ControlRequest, now: DateTime<Utc>) -> Action {
    if now - request.at > REQUEST_TTL {
        let reason = format!("{}, but no daemon ran it within an hour", request.description());
        return Action::Refuse { request: request.clone(), reason };
    }
    if request.action == ControlAction::Reset {
        return Action::Reset { request_id: Some(request.id), reason: request.description() };
    }
    let (scheduled_at, cause) = requested_occurrence(request);
    Action::Run(NextRun {
        request_id: Some(request.id),
        reason: Some(request.description()),
        ..NextRun::new(scheduled_at, cause)
    })
}

/// Handles the schedules that were replaced: the times of each up to its end follow the misfire policy of the job, and times of the
/// present schedule that passed before its begin are not run.
fn action_for_replaced_schedules(
    spec: &JobSpec,
    job: &JobSnapshot,
    now: DateTime<Utc>,
) -> Result<Option<Action>, ScheduleError> {
    let replaced = job.claim_hint.as_ref().map_or(&[][..], |hint| &hint.replaced);
    let Some(last) = replaced.last() else { return Ok(None) };
    let mut since = job.state.cursor;
    for ReplacedSchedule { schedule: text, until } in replaced {
        if let Some(schedule) = Schedule::from_text(text) {
            let before = JobSpec { schedule, ..spec.clone() };
            let action = scheduled_action(&before, job, &JobState::at(since), *until, now)?;
            if let Some(action) = action {
                return Ok(Some(action.by_previous_schedule(text)));
            }
        }
        since = since.max(*until);
    }
    // A clock may have been set back in this lease cycle.
    let since = since.min(now);
    let Some((from, until)) = between(&spec.schedule, job.state.cursor, since)? else { return Ok(None) };
    let reason =
        format!("the schedule was changed from {} to {}: nothing was due", last.schedule, spec.schedule);
    Ok(Some(Action::Skip(SkipOccurrences::new(spec, RunStatus::Rescheduled, from, until, reason))))
}

impl Action {
    /// Adds to the reason that the scheduled times are those of a previous schedule.
    fn by_previous_schedule(self, schedule: &str) -> Self {
        let previous = format!("was due by the previous schedule ({schedule})");
        match self {
            Self::Run(run) => {
                let reason =
                    run.reason.map_or_else(|| previous.clone(), |reason| format!("{reason}; {previous}"));
                Self::Run(NextRun { reason: Some(reason), ..run })
            }
            Self::Skip(skip) => {
                let reason = format!("{}; {previous}", skip.reason);
                Self::Skip(SkipOccurrences { reason, ..skip })
            }
            action => action,
        }
    }
}

impl NextRun {
    /// Returns the first attempt at `scheduled_at`.
    pub(crate) fn new(scheduled_at: DateTime<Utc>, cause: RunCause) -> Self {
        Self { scheduled_at, attempt: 1, cause, request_id: None, range: None, reason: None }
    }
}

impl SkipOccurrences {
    /// Returns the scheduled times of `spec` from `from` to `until`.
    fn new(
        spec: &JobSpec,
        status: RunStatus,
        from: DateTime<Utc>,
        until: DateTime<Utc>,
        reason: String,
    ) -> Self {
        Self { status, from, until, range: occurrence_range(&spec.schedule, from, until), reason }
    }

    /// Returns the state after the skipped times.
    pub(crate) fn state(&self, cursor: DateTime<Utc>) -> JobState {
        JobState::at(cursor.max(self.until))
    }
}

/// The first and the last of several scheduled times.
type Ends = (DateTime<Utc>, DateTime<Utc>);

/// Returns the first and the last scheduled time after `after` and up to `until`.
fn between(
    schedule: &Schedule,
    after: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Option<Ends>, ScheduleError> {
    let Some(first) = schedule.next_after(after)?.filter(|first| *first <= until) else { return Ok(None) };
    Ok(Some((first, schedule.last_until(until)?.unwrap_or(first).max(first))))
}

/// Returns the range from `from` to `until`; `None` if that is one scheduled time.
fn occurrence_range(
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

/// Returns the cursor of a job that was never claimed.
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

/// Returns the record of skipped scheduled times.
pub(crate) fn skip_record(spec: &JobSpec, skip: &SkipOccurrences, now: DateTime<Utc>) -> RunRecord {
    RunRecord {
        range: skip.range,
        reason: Some(skip.reason.clone()),
        ..RunRecord::new(&spec.name, skip.until, skip.status, RunCause::Schedule, now)
    }
}

/// Returns the record of a reset, and the state after it.
pub(crate) fn reset_record(
    spec: &JobSpec,
    request_id: Option<Uuid>,
    reason: &str,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> (RunRecord, JobState) {
    let present = whole_second(now);
    let finished = chrono::SecondsFormat::Secs;
    let reason =
        format!("{reason}; the schedule was finished up to {}", before.to_rfc3339_opts(finished, true));
    let record = RunRecord {
        request_id,
        reason: Some(reason),
        ..RunRecord::new(&spec.name, present, RunStatus::Skipped, RunCause::Manual, now)
    };
    (record, JobState::at(present.min(before)))
}

/// Returns the record of a scheduled time that an earlier run has finished before a reset, and the state after it.
pub(crate) fn already_finished_record(
    spec: &JobSpec,
    run: &RunRecord,
    cursor: DateTime<Utc>,
) -> (RunRecord, JobState) {
    let skipped = RunRecord {
        fencing_token: run.fencing_token,
        reason: Some("it has already run, while a clock was ahead".to_owned()),
        ..RunRecord::new(
            &spec.name,
            run.scheduled_at,
            RunStatus::Skipped,
            RunCause::Schedule,
            run.finished_at,
        )
    };
    (skipped, JobState::at(cursor.max(run.scheduled_at)))
}

/// Returns the record of a refused request.
pub(crate) fn refusal_record(
    spec: &JobSpec,
    request: &ControlRequest,
    reason: String,
    now: DateTime<Utc>,
) -> RunRecord {
    let (scheduled_at, cause) = requested_occurrence(request);
    RunRecord {
        request_id: Some(request.id),
        reason: Some(reason),
        ..RunRecord::new(&spec.name, scheduled_at, RunStatus::Missed, cause, now)
    }
}

/// Returns the scheduled time and the cause of a requested run.
fn requested_occurrence(request: &ControlRequest) -> (DateTime<Utc>, RunCause) {
    match request.action {
        ControlAction::Replay { scheduled_at } => (scheduled_at, RunCause::Replay),
        _ => (whole_second(request.at), RunCause::Manual),
    }
}

fn whole_second(at: DateTime<Utc>) -> DateTime<Utc> {
    chrono::SubsecRound::trunc_subsecs(at, 0)
}

#[cfg(test)]
mod tests;
