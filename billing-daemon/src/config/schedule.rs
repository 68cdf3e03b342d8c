//! The `schedule` of a job: one table or a list of them, and what the job says about all of them.

use std::ops::Range;

use billing_scheduler::{Dst, DstFold, DstGap, Schedule, ScheduleError};
use chrono::{DateTime, Utc};
use serde_spanned::Spanned;
use toml::de::DeValue;

use super::{
    report::{Report, Section, mismatch},
    suggest::did_you_mean,
};

const EXPECTED: &str = "a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them";
pub(super) const KEYS: [&str; 9] =
    ["every", "offset", "cron", "timezone", "at", "dst-gap", "dst-fold", "not-before", "not-after"];
/// The keys that say what kind of schedule a table is; there is one of them.
const KINDS: [&str; 3] = ["every", "cron", "at"];

pub(super) const GAP: [(&str, DstGap); 2] = [("shift", DstGap::Shift), ("skip", DstGap::Skip)];
pub(super) const FOLD: [(&str, DstFold); 3] =
    [("first", DstFold::First), ("last", DstFold::Last), ("both", DstFold::Both)];

/// Reads `schedule` and the keys of the job that go with it. The span is that of what says when.
pub(super) fn read(job: &Section<'_, '_>) -> Option<Spanned<Schedule>> {
    let report = job.report();
    let dst = dst(job);
    let value = job.value("schedule")?;
    let (tables, span) = match value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => (list.iter().collect(), value.span()),
        DeValue::Table(_) => (vec![value], value.span()),
        DeValue::Array(_) => {
            report.at(&value.span(), format!("`schedule` is empty: it must be {EXPECTED}"));
            return None;
        }
        other => {
            report.at(&value.span(), mismatch("schedule", EXPECTED, other));
            return None;
        }
    };
    let sections: Vec<_> = tables
        .into_iter()
        .filter_map(|table| Section::of(report, "schedule", table, EXPECTED, &KEYS))
        .collect();
    if !sections.iter().any(|section| section.key("cron").is_some()) {
        only_with(job, &["dst-gap", "dst-fold"], "cron", "no clock changes for the others");
    }
    let read: Vec<_> = sections.iter().filter_map(|section| one(section, dst)).collect();
    let all_read = read.len() == sections.len() && !read.is_empty();
    let span = if let [only] = read.as_slice() { only.span() } else { span };
    let schedule = Schedule::any(read.into_iter().map(Spanned::into_inner)).ok().filter(|_| all_read)?;
    Some(Spanned::new(span.clone(), within(job, schedule, &span)?))
}

fn one(section: &Section<'_, '_>, of_the_job: Dst) -> Option<Spanned<Schedule>> {
    let mut said: Vec<_> =
        KINDS.iter().filter_map(|kind| section.key(kind).map(|span| (*kind, span))).collect();
    let kind = match said.as_slice() {
        [] => {
            section.report().at(section.span(), format!("`schedule` must be {EXPECTED}"));
            return None;
        }
        [(kind, _)] => *kind,
        [(first, _), (second, _), ..] => {
            let message = format!("`{first}` and `{second}` exclude each other: remove one");
            said.sort_by_key(|(_, span)| span.start);
            section.report().at(&said[1].1, message);
            return None;
        }
    };
    let schedule = match kind {
        "every" => {
            only_with(
                section,
                &["timezone", "dst-gap", "dst-fold"],
                "cron",
                "`every` counts from 1970-01-01 in UTC",
            );
            every(section)
        }
        "cron" => {
            only_with(section, &["offset"], "every", "write the minute into the cron text");
            cron(section, of_the_job)
        }
        _ => {
            only_with(
                section,
                &["timezone", "dst-gap", "dst-fold"],
                "cron",
                "`at` names its own offset from UTC",
            );
            only_with(section, &["offset"], "every", "write the time that is meant");
            at(section)
        }
    }?;
    let span = schedule.span();
    Some(Spanned::new(span.clone(), within(section, schedule.into_inner(), &span)?))
}

fn every(section: &Section<'_, '_>) -> Option<Spanned<Schedule>> {
    let period = section.duration("every")?;
    let schedule = Schedule::every(*period.get_ref());
    let schedule = accepted(section.report(), "every", &period.span(), schedule)?;
    let schedule = match section.duration("offset") {
        Some(offset) => {
            accepted(section.report(), "offset", &offset.span(), schedule.offset(*offset.get_ref()))?
        }
        None if section.key("offset").is_some() => return None,
        None => schedule,
    };
    Some(Spanned::new(period.span(), schedule))
}

fn at(section: &Section<'_, '_>) -> Option<Spanned<Schedule>> {
    let instant = section.instant("at")?;
    warn_of_past(section, "at", &instant);
    let schedule = accepted(section.report(), "at", &instant.span(), Schedule::at(*instant.get_ref()))?;
    Some(Spanned::new(instant.span(), schedule))
}

fn cron(section: &Section<'_, '_>, of_the_job: Dst) -> Option<Spanned<Schedule>> {
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
    let own = dst(section);
    let dst = Dst { gap: own.gap.or(of_the_job.gap), fold: own.fold.or(of_the_job.fold) };
    let cron = section.string("cron")?;
    match Schedule::cron_with(cron.get_ref(), zone_name, dst) {
        Ok(schedule) => Some(Spanned::new(cron.span(), schedule)),
        Err(ScheduleError::Zone(_)) => None,
        Err(ScheduleError::Cron(error)) => {
            let place = section.report().part(&cron.span(), &error.text, &error.at);
            section.report().with_hint(&place, error.to_string(), Some(error.help));
            None
        }
        Err(error) => {
            section.report().at(&cron.span(), error.to_string());
            None
        }
    }
}

fn dst(section: &Section<'_, '_>) -> Dst {
    let gap = section.choice("dst-gap", &GAP);
    let fold = section.choice("dst-fold", &FOLD);
    Dst { gap: gap.map(Spanned::into_inner), fold: fold.map(Spanned::into_inner) }
}

/// `schedule` between the `not-before` and the `not-after` of a job or of one schedule.
fn within(section: &Section<'_, '_>, schedule: Schedule, place: &Range<usize>) -> Option<Schedule> {
    let instant = |key| (section.instant(key), section.key(key).is_some());
    let (not_before, not_after) = match (instant("not-before"), instant("not-after")) {
        ((None, true), _) | (_, (None, true)) => return None,
        ((not_before, _), (not_after, _)) => (not_before, not_after),
    };
    if let Some(limit) = &not_after {
        warn_of_past(section, "not-after", limit);
    }
    let at = |limit: &Option<Spanned<DateTime<Utc>>>| limit.as_ref().map(|limit| *limit.get_ref());
    match schedule.within(at(&not_before), at(&not_after)) {
        Ok(schedule) => Some(schedule),
        Err(ScheduleError::Window { .. }) => {
            let span = not_after.map_or_else(|| place.clone(), |limit| limit.span());
            section.report().at(&span, "`not-after` is before `not-before`: nothing would ever run");
            None
        }
        Err(ScheduleError::NeverWithin(text)) => {
            let limits = match (not_before, not_after) {
                (Some(_), Some(_)) => "between `not-before` and `not-after`",
                (Some(_), None) => "after `not-before`",
                _ => "before `not-after`",
            };
            section.report().at(place, format!("`{text}` never comes {limits}"));
            None
        }
        Err(error) => {
            section.report().at(place, error.to_string());
            None
        }
    }
}

/// Warns of an `at` or `not-after` after which the schedule has ended.
fn warn_of_past(section: &Section<'_, '_>, key: &str, instant: &Spanned<DateTime<Utc>>) {
    let report = section.report();
    if *instant.get_ref() < report.now() {
        let message = format!("`{key}` is in the past: only a run that was missed can still start");
        report.warn(&instant.span(), message, Some("so correct or remove it".to_owned()));
    }
}

/// Reports those of `keys` that are there.
fn only_with(section: &Section<'_, '_>, keys: &[&str], with: &str, because: &str) {
    for key in keys {
        if let Some(span) = section.key(key) {
            section.report().at(&span, format!("`{key}` goes with `{with}` only: {because}"));
        }
    }
}

fn accepted(
    report: &Report<'_>,
    key: &str,
    span: &Range<usize>,
    schedule: Result<Schedule, ScheduleError>,
) -> Option<Schedule> {
    schedule.map_err(|error| report.at(span, format!("`{key}`: {error}"))).ok()
}
