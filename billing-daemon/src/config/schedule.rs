//! The `schedule` of a job, and the two keys of it that exclude each other.

use billing_scheduler::{Schedule, ScheduleError};
use serde_spanned::Spanned;

use super::{report::Section, suggest::did_you_mean};

const EXPECTED: &str = "a table such as { every = \"1h\" } or { cron = \"0 * * * *\" }";

/// Reads `{ every = ... }` or `{ cron = ..., timezone = ... }`.
pub(super) fn read(job: &Section<'_, '_>) -> Option<Spanned<Schedule>> {
    let section = job.table("schedule", EXPECTED, &["every", "cron", "timezone"])?;
    let report = section.report();
    match (section.key("every"), section.key("cron")) {
        (Some(_), None) => {
            if let Some(zone) = section.key("timezone") {
                report.at(&zone, "`timezone` goes with `cron` only: `every` counts from 1970-01-01 in UTC");
            }
            let period = section.duration("every")?;
            match Schedule::every(*period.get_ref()) {
                Ok(schedule) => Some(Spanned::new(period.span(), schedule)),
                Err(error) => {
                    report.at(&period.span(), format!("`every`: {error}"));
                    None
                }
            }
        }
        (None, Some(_)) => cron_schedule(&section),
        (Some(every), Some(cron)) => {
            let second = if every.start < cron.start { cron } else { every };
            report.at(&second, "`every` and `cron` exclude each other: remove one");
            None
        }
        (None, None) => {
            report.at(section.span(), format!("`schedule` must be {EXPECTED}"));
            None
        }
    }
}

fn cron_schedule(section: &Section<'_, '_>) -> Option<Spanned<Schedule>> {
    let zone = section.string("timezone");
    let zone_name = zone.as_ref().map_or("UTC", |zone| zone.get_ref());
    if let (Some(zone), Err(error @ ScheduleError::Zone(_))) = (&zone, Schedule::cron("@daily", zone_name)) {
        let names = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
        let (message, hint) = match did_you_mean(zone_name, names) {
            Some(hint) => (format!("unknown time zone `{zone_name}`"), Some(hint)),
            None => (error.to_string(), None),
        };
        section.report().with_hint(&zone.span(), message, hint);
    }
    let cron = section.string("cron")?;
    match Schedule::cron(cron.get_ref(), zone_name) {
        Ok(schedule) => Some(Spanned::new(cron.span(), schedule)),
        Err(ScheduleError::Zone(_)) => None,
        Err(error) => {
            section.report().at(&cron.span(), error.to_string());
            None
        }
    }
}
