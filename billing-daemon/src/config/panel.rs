//! The rules that follow from the panel, which bills by itself when it hears nothing of this daemon.

use std::time::Duration;

use billing_jobs::BILLING_JOB;
use billing_scheduler::{JobSpec, Registry, Schedule, ScheduleError, ScheduleGap, Scope};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{
    Diagnostic, Place,
    job::{Draft, Timing},
    report::Report,
};
use crate::config::environment::BillingInterval;

/// The kind that tells the panel that billing works.
const HEARTBEAT: &str = "heartbeat";
/// The variable that sets the period of billing.
const INTERVAL: &str = "BILLING_INTERVAL_MINUTES";
/// How long after the last heartbeat the panel bills by itself.
const PATIENCE: TimeDelta = TimeDelta::minutes(90);

/// Whether the panel takes billing back if jobs of this kind are silent for too long.
pub(super) fn is_watched(kind: &str) -> bool {
    [BILLING_JOB, HEARTBEAT].contains(&kind)
}

/// The job of kind `billing` has its name for itself.
pub(super) fn check_names(report: &Report<'_>, jobs: &[Draft<'_>]) {
    let mut first: Option<Place> = None;
    for job in jobs {
        let (Some(name), Some(kind)) = (&job.name, &job.kind) else { continue };
        match (*name.get_ref() == BILLING_JOB, *kind.get_ref() == BILLING_JOB, &first) {
            (false, true, Some(first)) => {
                report
                    .at(&kind.span(), format!("only one job may be of kind `{BILLING_JOB}`: {first} is one"));
            }
            (false, true, None) => {
                report.at(
                    &name.span(),
                    format!("the job of kind `{BILLING_JOB}` must be named `{BILLING_JOB}`"),
                );
            }
            (true, false, _) => {
                let message = format!(
                    "only the job of kind `{BILLING_JOB}` may be named `{BILLING_JOB}`: choose another name"
                );
                report.at(&name.span(), message);
            }
            _ => {}
        }
        if *kind.get_ref() == BILLING_JOB {
            first.get_or_insert_with(|| report.place(&job.header));
        }
    }
}

/// Lets `BILLING_INTERVAL_MINUTES` replace the schedule of the billing job. Returns a warning if there is none.
pub(super) fn apply_interval(jobs: &mut [Draft<'_>], interval: BillingInterval) -> Option<Diagnostic> {
    let Some(job) = jobs.iter_mut().find(|job| job.enabled && job.is_of(BILLING_JOB)) else {
        let message = format!("{INTERVAL} has no effect: no enabled job is of kind `{BILLING_JOB}`");
        return Some(Diagnostic::new(interval.place, message));
    };
    let schedule =
        Schedule::every(interval.period).expect("an interval is a positive number of whole minutes");
    job.timing = Some(Timing { schedule, place: interval.place, said_by: INTERVAL });
    None
}

/// Billing and its heartbeat may not leave the panel alone for longer than its patience, unless that is asked for.
pub(super) fn check_gaps(report: &Report<'_>, jobs: &[Draft<'_>], now: DateTime<Utc>) {
    for job in jobs {
        let watched = job.kind.as_ref().is_some_and(|kind| is_watched(kind.get_ref()));
        match (&job.allow_long_gaps, &job.timing) {
            (Some(allowed), _) if !watched && job.kind.is_some() => {
                let message = format!(
                    "`allow-long-gaps` is for the kinds `{BILLING_JOB}` and `{HEARTBEAT}` only: remove it"
                );
                report.at(&allowed.span(), message);
            }
            (Some(allowed), _) if *allowed.get_ref() => {}
            (_, Some(timing)) if watched && job.enabled => {
                if let Some(problem) = long_gap(timing, now) {
                    report.push(problem);
                }
            }
            _ => {}
        }
    }
}

fn long_gap(timing: &Timing, now: DateTime<Utc>) -> Option<Diagnostic> {
    let Timing { schedule, place, said_by } = timing;
    let at = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let gap = match first_gap(schedule, now) {
        Ok(None) => return None,
        Ok(Some(ScheduleGap { after, until: Some(until) })) => {
            format!("for {} (from {} to {})", length(until - after), at(after), at(until))
        }
        Ok(Some(ScheduleGap { after, until: None })) => format!("after {}", at(after)),
        Err(error) => return Some(Diagnostic::new(place.clone(), format!("{said_by}: {error}"))),
    };
    let message = format!(
        "{said_by} has no run {gap}, but the panel takes billing back 90 minutes after the last heartbeat"
    );
    let hint = "so run it at least every 90 minutes, or set `allow-long-gaps = true` if that is intended";
    Some(Diagnostic::new(place.clone(), message).hint(Some(hint.to_owned())))
}

/// In hours and less: longer units have no fixed length.
fn length(gap: TimeDelta) -> String {
    let rest = gap - TimeDelta::hours(gap.num_hours());
    let rest = rest.to_std().ok().filter(|rest| !rest.is_zero()).map(humantime::format_duration);
    format!("{}h{}", gap.num_hours(), rest.map(|rest| format!(" {rest}")).unwrap_or_default())
}

fn first_gap(schedule: &Schedule, now: DateTime<Utc>) -> Result<Option<ScheduleGap>, ScheduleError> {
    let Some(first) = schedule.next_after(now)? else {
        return Ok(Some(ScheduleGap { after: now, until: None }));
    };
    // The search counts only gaps after a scheduled time and looks ahead a few years: it begins just before the first one.
    schedule.gap_above(PATIENCE, first - TimeDelta::seconds(1))
}

/// A job without a lease has no panel guard, and nothing may be charged without one.
pub(super) fn check_scope(report: &Report<'_>, jobs: &[Draft<'_>]) {
    for job in jobs.iter().filter(|job| job.is_of(BILLING_JOB)) {
        if let Some(scope) = job.scope.as_ref().filter(|scope| *scope.get_ref() == Scope::Node) {
            report.at(
                &scope.span(),
                format!("kind `{BILLING_JOB}` runs once for all daemons: its `scope` must be `cluster`"),
            );
        }
    }
}

/// Warns of billing that the panel cannot see.
pub(super) fn unseen_billing(
    report: &Report<'_>,
    registry: &Registry,
    jobs: &[Draft<'_>],
) -> Option<Diagnostic> {
    let enabled = |kind| jobs.iter().find(|job| job.enabled && job.is_of(kind));
    let beats = enabled(HEARTBEAT).is_some() || !registry.kinds().any(|kind| kind == HEARTBEAT);
    let billing = enabled(BILLING_JOB).filter(|_| !beats)?;
    let message = format!(
        "billing runs without an enabled job of kind `{HEARTBEAT}`: a panel that listens for one bills as well"
    );
    Some(Diagnostic::new(report.place(&billing.header), message))
}

/// Returns the time between the next two runs of billing, rounded up to minutes.
pub(super) fn billing_interval(
    jobs: &[(JobSpec, serde_json::Value)],
    now: DateTime<Utc>,
) -> Option<Duration> {
    let (billing, _) = jobs.iter().find(|(spec, _)| spec.kind == BILLING_JOB)?;
    let first = billing.schedule.next_after(now).ok()??;
    let second = billing.schedule.next_after(first).ok()??;
    let seconds = (second - first).to_std().ok()?.as_secs();
    Some(Duration::from_mins(seconds.div_ceil(60)))
}
