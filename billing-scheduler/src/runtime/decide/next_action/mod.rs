//! The next action of a lease cycle, as a pure function: requests first, then ended pauses and edited schedules, then [`due`].

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

/// The state, pauses and requests of a job, as read with its lease or as this node keeps them.
#[derive(Clone, Debug)]
pub(crate) struct JobSnapshot {
    /// When the lease cycle began. Times of an edited schedule before this instant count as passed.
    pub(crate) began: DateTime<Utc>,
    pub(crate) state: JobState,
    pub(crate) claim_hint: Option<ClaimHint>,
    pub(crate) pauses: Vec<Pause>,
    pub(crate) requests: Vec<ControlRequest>,
}

impl JobSnapshot {
    /// Returns the snapshot after `record`, which leaves the job in `state`.
    pub(crate) fn after(
        &self,
        spec: &JobSpec,
        record: &RunRecord,
        state: JobState,
        applies_schedule_change: bool,
    ) -> Self {
        let mut after = Self { state, ..self.clone() };
        after.requests.retain(|request| Some(request.id) != record.request_id);
        if applies_schedule_change {
            after.claim_hint = Some(claim_hint(spec, &after.state));
        }
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
    pub(crate) reason: String,
    /// A scheduled time among them that is still to be run.
    pub(crate) except: Option<DateTime<Utc>>,
    /// Whether an edited schedule takes effect with this record.
    pub(crate) applies_schedule_change: bool,
}

/// A run to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextRun {
    pub(crate) scheduled_at: DateTime<Utc>,
    pub(crate) attempt: u32,
    pub(crate) cause: RunCause,
    /// The control request that the run answers.
    pub(crate) request_id: Option<Uuid>,
    /// The first of the scheduled times that the run is coalesced from.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) reason: Option<String>,
    /// Whether an edited schedule takes effect with the record of this run.
    pub(crate) applies_schedule_change: bool,
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
        // A scheduled time that an edited schedule left has no attempt yet, so a pause applies to it.
        let pause = job.pauses.iter().find(|pause| pause.skipped(retrying.scheduled_at));
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
            // What was due before the pause is not part of it. It is decided as if no time had passed since.
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

/// Translates the result of [`due`].
fn action_from_due(spec: &JobSpec, state: &JobState, now: DateTime<Utc>) -> Result<Action, ScheduleError> {
    Ok(match due(spec, state, now)? {
        Due::Now { scheduled_at, attempt, coalesced_from } => Action::Run(NextRun {
            attempt,
            since: coalesced_from,
            reason: coalesced_from.map(|from| format!("covers every scheduled time since {from}")),
            ..NextRun::new(scheduled_at, RunCause::Schedule)
        }),
        Due::Skip(skip) => {
            let status = match skip.reason {
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

/// Handles an edited schedule: a time of the old schedule that passed without a run is not lost, and times of the new schedule
/// that passed before the edit are not run.
fn action_for_edited_schedule(spec: &JobSpec, job: &JobSnapshot) -> Result<Option<Action>, ScheduleError> {
    let JobState { cursor, .. } = job.state;
    let Some(hint) = job.claim_hint.as_ref().filter(|hint| !spec.schedule.reads(&hint.schedule)) else {
        return Ok(None);
    };
    let before = &hint.schedule;
    let left = hint.next_at.filter(|at| cursor < *at && *at <= job.began);
    let pause = |at| job.pauses.iter().find(|pause| pause.skipped(at));
    if let Some((paused, pause)) = left.and_then(|at| Some((at, pause(at)?))) {
        return Ok(Some(Action::Skip(SkipOccurrences::new(
            RunStatus::Paused,
            paused,
            paused,
            pause.to_string(),
        ))));
    }
    let reason = format!("was due by the previous schedule ({before})");
    if let Some(stale) = left.filter(|at| is_stale(spec, *at, job.began)) {
        return Ok(Some(Action::Skip(SkipOccurrences::new(RunStatus::Skipped, stale, stale, reason))));
    }
    if let Some((from, until)) = between(&spec.schedule, cursor, job.began)? {
        let reason = format!("the schedule was changed from {before} to {}: nothing was due", spec.schedule);
        let skipped = SkipOccurrences::new(RunStatus::Rescheduled, from, until, reason);
        return Ok(Some(Action::Skip(SkipOccurrences {
            except: left,
            applies_schedule_change: true,
            ..skipped
        })));
    }
    Ok(left.map(|scheduled_at| {
        Action::Run(NextRun {
            reason: Some(reason),
            applies_schedule_change: true,
            ..NextRun::new(scheduled_at, RunCause::Schedule)
        })
    }))
}

/// Whether a scheduled time is older than the job's grace.
fn is_stale(spec: &JobSpec, at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    spec.grace().and_then(|grace| TimeDelta::from_std(grace).ok()).is_some_and(|grace| now - at >= grace)
}

impl NextRun {
    /// Returns the first attempt at `scheduled_at`.
    pub(crate) fn new(scheduled_at: DateTime<Utc>, cause: RunCause) -> Self {
        Self {
            scheduled_at,
            attempt: 1,
            cause,
            request_id: None,
            since: None,
            reason: None,
            applies_schedule_change: false,
        }
    }
}

impl SkipOccurrences {
    fn new(status: RunStatus, from: DateTime<Utc>, until: DateTime<Utc>, reason: String) -> Self {
        Self { status, from, until, reason, except: None, applies_schedule_change: false }
    }

    /// Returns the state after the skipped times.
    pub(crate) fn state(&self, cursor: DateTime<Utc>) -> JobState {
        let retrying = self.except.map(|scheduled_at| Retrying {
            scheduled_at,
            failed_attempts: 0,
            not_before: scheduled_at,
        });
        JobState { cursor: cursor.max(self.until), retrying }
    }
}

/// Returns the claim hint for the release of the lease. An edit that is not handled yet is left for the next lease cycle.
pub(crate) fn hint_for_release(spec: &JobSpec, job: &JobSnapshot) -> Option<ClaimHint> {
    match action_for_edited_schedule(spec, job) {
        Ok(None) => Some(claim_hint(spec, &job.state)),
        Ok(Some(_)) | Err(_) => job.claim_hint.clone(),
    }
}

/// Returns the claim hint of a job that was removed from the configuration: only a time that was due by then is kept.
pub(crate) fn hint_of_removed_job(hint: &ClaimHint, removed_at: DateTime<Utc>) -> ClaimHint {
    ClaimHint {
        schedule: "no schedule".to_owned(),
        next_at: hint.next_at.filter(|at| *at <= removed_at),
        late_at: None,
        stuck_at: None,
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

/// Returns what the next claim of a job in this state is expected to find.
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
        range: occurrence_range(&spec.schedule, skip.from, skip.until),
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
