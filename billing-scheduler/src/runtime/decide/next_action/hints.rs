//! The claim hint of a job: what the next claim is expected to find, and which schedules were replaced until then.

use chrono::{DateTime, TimeDelta, Utc};

use super::{JobSnapshot, LATE_AFTER, between};
use crate::runtime::{
    decide::{
        schedule::{Schedule, ScheduleError},
        spec::JobSpec,
    },
    store::{ClaimHint, JobState, ReplacedSchedule},
};

/// The schedule in the claim hint of a job that was removed from the configuration.
pub(crate) const NO_SCHEDULE: &str = "no schedule";
/// The most replaced schedules in a claim hint. Only those that still have a time to decide are kept, so there are rarely several.
const MAX_REPLACED: usize = 16;

/// Returns the claim hint for the release of the lease.
pub(crate) fn hint_for_release(spec: &JobSpec, job: &JobSnapshot) -> ClaimHint {
    let replaced = job.claim_hint.as_ref().map_or(&[][..], |hint| &hint.replaced);
    claim_hint(spec, &job.state, replaced)
}

/// Returns the claim hint of a job that was removed from the configuration: only times that were due by then are kept.
pub(crate) fn hint_of_removed_job(
    hint: &ClaimHint,
    state: &JobState,
    edits: &[ReplacedSchedule],
    now: DateTime<Utc>,
) -> ClaimHint {
    let hint = hint_with_edits(hint, NO_SCHEDULE, edits, now).unwrap_or_else(|| hint.clone());
    let next_at = first_left(&hint.replaced, state.cursor).ok().flatten();
    let replaced = if next_at.is_some() { hint.replaced } else { Vec::new() };
    ClaimHint { schedule: NO_SCHEDULE.to_owned(), next_at, late_at: None, stuck_at: None, replaced }
}

/// Returns the claim hint of a job whose schedule is not that of the hint any more; `None` if it is.
pub(crate) fn edited_hint(
    spec: &JobSpec,
    hint: &ClaimHint,
    edits: &[ReplacedSchedule],
    now: DateTime<Utc>,
) -> Option<ClaimHint> {
    let is_current = edits.is_empty() && hint.replaced.is_empty() && spec.schedule.reads(&hint.schedule);
    if is_current { None } else { hint_with_edits(hint, &spec.schedule.to_string(), edits, now) }
}

/// Returns the claim hint of a job whose schedule has become `schedule`, with the schedule that ended; `None` if it has not changed.
/// `edits` are the changes that this process has made since it read the hint last; another one happened by `now`.
fn hint_with_edits(
    hint: &ClaimHint,
    schedule: &str,
    edits: &[ReplacedSchedule],
    now: DateTime<Utc>,
) -> Option<ClaimHint> {
    let known = edits.iter().position(|edit| edit.schedule == hint.schedule);
    let is_ahead = hint.replaced.iter().any(|replaced| replaced.until > now);
    let mut replaced = hint.replaced.clone();
    match known {
        Some(first) => replaced.extend_from_slice(&edits[first..]),
        None if hint.schedule == schedule && !is_ahead => return None,
        None if hint.schedule == schedule => {}
        None => replaced.push(ReplacedSchedule { schedule: hint.schedule.clone(), until: now }),
    }
    replaced.drain(..replaced.len().saturating_sub(MAX_REPLACED));
    for ReplacedSchedule { until, .. } in &mut replaced {
        // A clock was set back since. The change has happened by now.
        *until = now.min(*until);
    }
    Some(ClaimHint { schedule: schedule.to_owned(), replaced, ..hint.clone() })
}

/// Returns what the next claim of a job in this state is expected to find.
pub(crate) fn claim_hint(spec: &JobSpec, state: &JobState, replaced: &[ReplacedSchedule]) -> ClaimHint {
    let left = first_left(replaced, state.cursor);
    let until = replaced.last().map_or(state.cursor, |last| last.until.max(state.cursor));
    // What cannot be computed is kept for the next claim.
    let is_applied =
        matches!(left, Ok(None)) && matches!(between(&spec.schedule, state.cursor, until), Ok(None));
    let next_at = match (state.retrying, left) {
        (Some(retrying), _) => Some(retrying.scheduled_at),
        (None, Ok(Some(left))) => Some(left),
        (None, _) => spec.schedule.next_after(until).ok().flatten(),
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
        replaced: if is_applied { Vec::new() } else { replaced.to_vec() },
    }
}

/// Returns the first undecided time of the replaced schedules.
fn first_left(
    replaced: &[ReplacedSchedule],
    cursor: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, ScheduleError> {
    let mut since = cursor;
    for ReplacedSchedule { schedule, until } in replaced {
        let first = Schedule::from_text(schedule).map_or(Ok(None), |schedule| schedule.next_after(since))?;
        if let Some(first) = first.filter(|first| first <= until) {
            return Ok(Some(first));
        }
        since = since.max(*until);
    }
    Ok(None)
}
