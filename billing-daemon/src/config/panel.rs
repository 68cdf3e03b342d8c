//! The rules for jobs that the panel depends on: it takes billing back when the heartbeat stops.

use std::time::Duration;

use billing_jobs::BILLING_JOB;
use billing_scheduler::{JobSpec, Registry, Schedule, ScheduleError, ScheduleGap, Scope};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{
    Diagnostic, Location,
    job::{Draft, Timing},
    report::Report,
};
use crate::config::environment::BillingInterval;

/// The kind that reports to the panel that billing works.
const HEARTBEAT: &str = "heartbeat";
/// The variable that replaces the schedule of billing.
const INTERVAL: &str = "BILLING_INTERVAL_MINUTES";
/// How long after the last heartbeat the panel takes billing back.
const PANEL_TAKEOVER_AFTER: TimeDelta = TimeDelta::minutes(90);

/// Whether the panel takes billing back if jobs of this kind do not run for too long.
pub(super) fn is_watched(kind: &str) -> bool {
    [BILLING_JOB, HEARTBEAT].contains(&kind)
}

/// Checks that there is one job of kind `billing`, and that it alone has this name: the fencing token of billing is stored under it.
pub(super) fn check_names(report: &Report<'_>, jobs: &[Draft<'_>]) {
    let mut first: Option<Location> = None;
    for job in jobs {
        let (Some(name), Some(kind)) = (&job.name, &job.kind) else { continue };
        match (*name.get_ref() == BILLING_JOB, *kind.get_ref() == BILLING_JOB, &first) {
            (false, true, Some(first)) => {
                report.error(
                    &kind.span(),
                    format!("only one job may be of kind `{BILLING_JOB}`: {first} is one"),
                );
            }
            (false, true, None) => {
                report.error(
                    &name.span(),
                    format!("the job of kind `{BILLING_JOB}` must be named `{BILLING_JOB}`"),
                );
            }
            (true, false, _) => {
                let message = format!(
                    "only the job of kind `{BILLING_JOB}` may be named `{BILLING_JOB}`: choose another name"
                );
                report.error(&name.span(), message);
            }
            _ => {}
        }
        if *kind.get_ref() == BILLING_JOB {
            first.get_or_insert_with(|| report.location(&job.header));
        }
    }
}

/// Replaces the schedule of the billing job by `BILLING_INTERVAL_MINUTES`. Returns a warning if there is no such job.
pub(super) fn apply_interval(jobs: &mut [Draft<'_>], interval: BillingInterval) -> Option<Diagnostic> {
    let Some(job) = jobs.iter_mut().find(|job| job.enabled && job.is_of(BILLING_JOB)) else {
        let message = format!("{INTERVAL} has no effect: no enabled job is of kind `{BILLING_JOB}`");
        return Some(Diagnostic::new(interval.location, message));
    };
    let schedule =
        Schedule::every(interval.period).expect("an interval is a positive number of whole minutes");
    job.timing = Some(Timing { schedule, location: interval.location, setting: INTERVAL });
    None
}

/// Checks that billing and its heartbeat have no gap after which the panel takes billing back, unless `allow-long-gaps` is set.
pub(super) fn check_gaps(report: &Report<'_>, jobs: &[Draft<'_>], now: DateTime<Utc>) {
    for job in jobs {
        let watched = job.kind.as_ref().is_some_and(|kind| is_watched(kind.get_ref()));
        match (&job.allow_long_gaps, &job.timing) {
            (Some(allowed), _) if !watched && job.kind.is_some() => {
                let message =
                    format!("`allow-long-gaps` requires kind `{BILLING_JOB}` or `{HEARTBEAT}`: remove it");
                report.error(&allowed.span(), message);
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
    let Timing { schedule, location, setting } = timing;
    let at = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let gap = match first_gap(schedule, now) {
        Ok(None) => return None,
        Ok(Some(ScheduleGap { after, until: Some(until) })) => {
            format!("for {} (from {} to {})", length(until - after), at(after), at(until))
        }
        Ok(Some(ScheduleGap { after, until: None })) => format!("after {}", at(after)),
        Err(error) => return Some(Diagnostic::new(location.clone(), format!("{setting}: {error}"))),
    };
    let message = format!(
        "{setting} has no run {gap}, but the panel takes billing back 90 minutes after the last heartbeat"
    );
    let help = "run it at least every 90 minutes, or set `allow-long-gaps = true` if that is intended";
    Some(Diagnostic::new(location.clone(), message).with_help(Some(help.to_owned())))
}

/// Formats a gap in hours and smaller units: longer ones have no fixed length.
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
    schedule.gap_above(PANEL_TAKEOVER_AFTER, first - TimeDelta::seconds(1))
}

/// Checks that billing has a lease: without a fencing token nothing may be charged.
pub(super) fn check_scope(report: &Report<'_>, jobs: &[Draft<'_>]) {
    for job in jobs.iter().filter(|job| job.is_of(BILLING_JOB)) {
        if let Some(scope) = job.scope.as_ref().filter(|scope| *scope.get_ref() == Scope::Node) {
            report.error(
                &scope.span(),
                format!("kind `{BILLING_JOB}` runs on one daemon at a time: its `scope` must be `cluster`"),
            );
        }
    }
}

/// Warns about billing that the panel does not know of.
pub(super) fn unseen_billing(
    report: &Report<'_>,
    registry: &Registry,
    jobs: &[Draft<'_>],
) -> Option<Diagnostic> {
    let enabled = |kind| jobs.iter().find(|job| job.enabled && job.is_of(kind));
    let beats = enabled(HEARTBEAT).is_some() || !registry.kinds().any(|kind| kind == HEARTBEAT);
    let billing = enabled(BILLING_JOB).filter(|_| !beats)?;
    let message = format!(
        "billing runs without an enabled job of kind `{HEARTBEAT}`: a panel that expects one bills as well"
    );
    Some(Diagnostic::new(report.location(&billing.header), message))
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

#[cfg(test)]
mod tests {
    use super::super::testing::{HOURLY, billing, check, check_with, job, lines, load};

    #[test]
    fn billing_job_is_unique_and_named() {
        let right = billing("{ every = \"1h\" }");
        let renamed = right.replace("name = \"billing\"", "name = \"b\"");
        let other = right.replace("kind = \"billing\"", "kind = \"stale-daemons\"");
        check(&renamed, &["jobs.toml:2:8: the job of kind `billing` must be named `billing`"]);
        check(
            &other,
            &["jobs.toml:2:8: only the job of kind `billing` may be named `billing`: choose another name"],
        );
        check(&right.repeat(2), &["jobs.toml:6:8: jobs.toml:2:8 has a job named `billing` already"]);
        check(
            &(right.clone() + &renamed),
            &["jobs.toml:7:8: only one job may be of kind `billing`: jobs.toml:1:1 is one"],
        );
        check(
            &(right + "scope = \"node\""),
            &["jobs.toml:5:9: kind `billing` runs on one daemon at a time: its `scope` must be `cluster`"],
        );
    }

    #[test]
    fn long_gap_of_billing_is_rejected() {
        let refused = |place: &str, who: &str, gap: &str| {
            format!(
                "{place}: {who} has no run for {gap}, but the panel takes billing back 90 minutes after the last heartbeat\nhelp: run it at least every 90 minutes, or set `allow-long-gaps = true` if that is intended"
            )
        };
        for schedule in ["{ every = \"90m\" }", "{ cron = \"*/30 * * * *\" }", "{ cron = \"* * * * * *\" }"] {
            check(&billing(schedule), &[]);
        }
        for (schedule, column, gap) in [
            ("{ every = \"91m\" }", 22, "1h 31m (from 2026-03-01T13:10:00Z to 2026-03-01T14:41:00Z)"),
            (
                "{ cron = \"0 8-18 * * *\", timezone = \"Europe/Berlin\" }",
                21,
                "14h (from 2026-03-01T17:00:00Z to 2026-03-02T07:00:00Z)",
            ),
            ("{ cron = \"0 0 29 2 *\" }", 21, "35064h (from 2028-02-29T00:00:00Z to 2032-02-29T00:00:00Z)"),
        ] {
            let problem = refused(&format!("jobs.toml:4:{column}"), "`schedule`", gap);
            check(&billing(schedule), &[&problem]);
            check(&billing(schedule).replace("billing", "heartbeat"), &[&problem]);
            check(&(billing(schedule) + "allow-long-gaps = false"), &[&problem]);
            check(&(billing(schedule) + "allow-long-gaps = true"), &[]);
            check(&(billing(schedule) + "enabled = false\n" + &job(HOURLY)), &[]);
        }
        let two_hours = [("BILLING_INTERVAL_MINUTES", "120")];
        let hourly = billing("{ every = \"1h\" }");
        let gap = "2h (from 2026-03-01T14:00:00Z to 2026-03-01T16:00:00Z)";
        check_with(&hourly, &two_hours, &[&refused("environment", "BILLING_INTERVAL_MINUTES", gap)]);
        check_with(&(hourly + "allow-long-gaps = true"), &two_hours, &[]);
        check(
            &job(&format!("{HOURLY}allow-long-gaps = true")),
            &["jobs.toml:5:1: `allow-long-gaps` requires kind `billing` or `heartbeat`: remove it"],
        );
    }

    #[test]
    fn ineffective_settings_give_warnings() {
        let warnings = |text: &str, variables: &[(&str, &str)]| {
            load(text, variables).map(|config| lines(&config.warnings)).map_err(|problems| lines(&problems))
        };
        let billing = billing("{ every = \"1h\" }");
        let heartbeat = job(HOURLY).replace("stale-daemons", "heartbeat");
        let unseen = "jobs.toml:1:1: billing runs without an enabled job of kind `heartbeat`: a panel that expects one bills as well";
        assert_eq!(warnings(&billing, &[]), Ok(vec![unseen.to_owned()]));
        assert_eq!(
            warnings(&format!("{billing}{heartbeat}enabled = false"), &[]),
            Ok(vec![unseen.to_owned()])
        );
        assert_eq!(warnings(&format!("{billing}{heartbeat}"), &[]), Ok(vec![]));
        let ineffective =
            "environment: BILLING_INTERVAL_MINUTES has no effect: no enabled job is of kind `billing`";
        assert_eq!(
            warnings(&job(HOURLY), &[("BILLING_INTERVAL_MINUTES", "30")]),
            Ok(vec![ineffective.to_owned()])
        );
    }
}
