//! The `schedule` of a job: one table or a list of tables, and the keys of the job that apply to all of them.

use std::ops::Range;

use billing_scheduler::{Dst, Schedule, ScheduleError};
use chrono::{DateTime, Utc};
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Diagnostic,
    report::{Report, Section, mismatch},
    report_syntax,
    suggest::did_you_mean,
    tables::{JobTable, ScheduleTable},
};

const EXPECTED: &str = "a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them";
/// The keys that define the type of a schedule; a table has one of them.
const KINDS: [&str; 3] = ["every", "cron", "at"];

/// Parses a value that `schedule` may have in jobs.toml, such as `{ every = "1h", offset = "5m" }`.
///
/// # Errors
/// Every mistake in it, at least one.
pub(crate) fn parse_schedule(value: &str, now: DateTime<Utc>) -> Result<Schedule, Vec<Diagnostic>> {
    let text = format!("schedule = {value}");
    let report = Report::new("schedule", &text, now);
    let (root, errors) = DeTable::parse_recoverable(&text);
    report_syntax(&report, &errors);
    let schedule =
        if errors.is_empty() { read(&Section::new::<JobTable>(&report, root.get_ref(), 0..0)) } else { None };
    let problems = report.finish();
    schedule.map(Spanned::into_inner).filter(|_| problems.is_empty()).ok_or(problems)
}

/// Reads `schedule` and the keys of the job that apply to it. The span is that of the value that defines the times.
pub(super) fn read(job: &Section<'_, '_>) -> Option<Spanned<Schedule>> {
    let report = job.report();
    let dst = dst(job);
    let value = job.value("schedule")?;
    let (tables, span) = match value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => (list.iter().collect(), value.span()),
        DeValue::Table(_) => (vec![value], value.span()),
        DeValue::Array(_) => {
            report.error(&value.span(), format!("`schedule` is empty: it must be {EXPECTED}"));
            return None;
        }
        other => {
            report.error(&value.span(), mismatch("schedule", EXPECTED, other));
            return None;
        }
    };
    let sections: Vec<_> = tables
        .into_iter()
        .filter_map(|table| Section::of::<ScheduleTable>(report, "schedule", table, EXPECTED))
        .collect();
    if !sections.iter().any(|section| section.key("cron").is_some()) {
        requires(job, &["dst-gap", "dst-fold"], "cron", "clock changes do not affect the others");
    }
    let read: Vec<_> = sections.iter().filter_map(|section| one(section, dst)).collect();
    let all_read = read.len() == sections.len() && !read.is_empty();
    let span = if let [only] = read.as_slice() { only.span() } else { span };
    let schedule = Schedule::any(read.into_iter().map(Spanned::into_inner)).ok().filter(|_| all_read)?;
    Some(Spanned::new(span.clone(), within(job, schedule, &span)?))
}

fn one(section: &Section<'_, '_>, job_dst: Dst) -> Option<Spanned<Schedule>> {
    let mut given: Vec<_> =
        KINDS.iter().filter_map(|kind| section.key(kind).map(|span| (*kind, span))).collect();
    let kind = match given.as_slice() {
        [] => {
            section.report().error(section.span(), format!("`schedule` must be {EXPECTED}"));
            return None;
        }
        [(kind, _)] => *kind,
        [(first, _), (second, _), ..] => {
            let message = format!("`{first}` and `{second}` exclude each other: remove one");
            given.sort_by_key(|(_, span)| span.start);
            section.report().error(&given[1].1, message);
            return None;
        }
    };
    let schedule = match kind {
        "every" => {
            requires(
                section,
                &["timezone", "dst-gap", "dst-fold"],
                "cron",
                "`every` counts from 1970-01-01 in UTC",
            );
            every(section)
        }
        "cron" => {
            requires(section, &["offset"], "every", "write the minute into the cron text");
            cron(section, job_dst)
        }
        _ => {
            requires(
                section,
                &["timezone", "dst-gap", "dst-fold"],
                "cron",
                "`at` names its own offset from UTC",
            );
            requires(section, &["offset"], "every", "write the intended time");
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

fn cron(section: &Section<'_, '_>, job_dst: Dst) -> Option<Spanned<Schedule>> {
    let zone = section.string("timezone");
    let zone_name = zone.as_ref().map_or("UTC", |zone| zone.get_ref());
    if let (Some(zone), Err(error @ ScheduleError::Zone(_))) = (&zone, Schedule::cron("@daily", zone_name)) {
        let names = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
        let (message, help) = match did_you_mean(zone_name, names) {
            help @ Some(_) => (format!("unknown time zone `{zone_name}`"), help),
            None => (error.to_string(), None),
        };
        section.report().error_with_help(&zone.span(), message, help);
    }
    let own = dst(section);
    let dst = Dst { gap: own.gap.or(job_dst.gap), fold: own.fold.or(job_dst.fold) };
    let cron = section.string("cron")?;
    match Schedule::cron_with(cron.get_ref(), zone_name, dst) {
        Ok(schedule) => Some(Spanned::new(cron.span(), schedule)),
        Err(ScheduleError::Zone(_)) => None,
        Err(ScheduleError::Cron(error)) => {
            let span = section.report().part(&cron.span(), &error.text, &error.at);
            section.report().error_with_help(&span, error.to_string(), Some(error.help));
            None
        }
        Err(error) => {
            section.report().error(&cron.span(), error.to_string());
            None
        }
    }
}

fn dst(section: &Section<'_, '_>) -> Dst {
    let gap = section.choice("dst-gap");
    let fold = section.choice("dst-fold");
    Dst { gap: gap.map(Spanned::into_inner), fold: fold.map(Spanned::into_inner) }
}

/// Limits `schedule` to the `not-before` and the `not-after` of a job or of one schedule.
fn within(section: &Section<'_, '_>, schedule: Schedule, position: &Range<usize>) -> Option<Schedule> {
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
            let span = not_after.map_or_else(|| position.clone(), |limit| limit.span());
            section.report().error(&span, "`not-after` is before `not-before`: the job would never run");
            None
        }
        Err(ScheduleError::NeverWithin(text)) => {
            let limits = match (not_before, not_after) {
                (Some(_), Some(_)) => "between `not-before` and `not-after`",
                (Some(_), None) => "after `not-before`",
                _ => "before `not-after`",
            };
            section.report().error(position, format!("`{text}` never comes {limits}"));
            None
        }
        Err(error) => {
            section.report().error(position, error.to_string());
            None
        }
    }
}

/// Warns of an `at` or `not-after` after which the schedule has ended.
fn warn_of_past(section: &Section<'_, '_>, key: &str, instant: &Spanned<DateTime<Utc>>) {
    let report = section.report();
    if *instant.get_ref() < report.now() {
        let message = format!("`{key}` is in the past: only a run that was missed can still start");
        report.warn(&instant.span(), message, Some("correct or remove it".to_owned()));
    }
}

/// Reports those of `keys` that the table has, because it lacks `other`.
fn requires(section: &Section<'_, '_>, keys: &[&str], other: &str, reason: &str) {
    for key in keys {
        if let Some(span) = section.key(key) {
            section.report().error(&span, format!("`{key}` requires `{other}`: {reason}"));
        }
    }
}

fn accepted(
    report: &Report<'_>,
    key: &str,
    span: &Range<usize>,
    schedule: Result<Schedule, ScheduleError>,
) -> Option<Schedule> {
    schedule.map_err(|error| report.error(span, format!("`{key}`: {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use billing_scheduler::{DstFold, Schedule};

    use super::super::testing::{check, instant, job, lines, load};
    use super::*;

    #[test]
    fn invalid_schedules_are_reported() {
        for (schedule, expected) in [
            (
                "{}",
                r#"12: `schedule` must be a table such as { every = "1h" }, { cron = "0 * * * *" } or { at = "2026-12-01T00:00:00Z" }, or a list of them"#,
            ),
            (r#"{ every = "1h", cron = "@daily" }"#, "28: `every` and `cron` exclude each other: remove one"),
            (
                r#"{ every = "1h", timezone = "UTC" }"#,
                "28: `timezone` requires `cron`: `every` counts from 1970-01-01 in UTC",
            ),
            (
                r#"{ every = "500ms" }"#,
                "22: `every`: a period must be a whole number of seconds, at least one and at most ten years, not 500ms",
            ),
            (r#"{ every = "0s" }"#, "22: `every`: invalid duration `0s`: it must be greater than zero"),
            (r#"{ every = "-5m" }"#, "22: `every`: invalid duration `-5m`: it must not be negative"),
            (
                r#"{ every = "1M" }"#,
                "22: `every`: invalid duration `1M`: months and years have no fixed length; use days, such as `30d`",
            ),
            ("{ cron = 5 }", "21: `cron` must be a string, not an integer"),
            (
                r#"{ cron = "a b" }"#,
                "22: invalid cron text `a b`: it has 2 fields\nhelp: write 5 fields (minute, hour, day of month, month, day of week), 6 with the second first, or a nickname such as @hourly",
            ),
            (
                r#"{ cron = "0 0 30 2 *" }"#,
                "26: invalid cron text `0 0 30 2 *`: day of month `30` never comes: month `2` has at most 29 days\nhelp: write an earlier day, or `L` for the last day of a month",
            ),
            (
                r#"{ cron = "15, 45 * * * *" }"#,
                "22: invalid cron text `15, 45 * * * *`: minute `15, 45` has a space in its list\nhelp: write `15,45` without a space",
            ),
            (
                r"{ cron = '  0 7 * SUN *' }",
                "30: invalid cron text `  0 7 * SUN *`: month `SUN` is the name of a day of the week\nhelp: move it to the field `day of week`, which is the last one",
            ),
            // With escapes in it, the text is not in the file as it is.
            (
                r#"{ cron = "0\t24 * * *" }"#,
                "21: invalid cron text `0\\t24 * * *`: hour `24` is not within 0-23\nhelp: use a number from 0 to 23",
            ),
            (
                r#"{ cron = "@daily", timezone = "europe/berln" }"#,
                "42: unknown time zone `europe/berln`\nhelp: did you mean `Europe/Berlin`?",
            ),
            (
                r#"{ cron = "@daily", timezone = "Mars" }"#,
                "42: unknown time zone `Mars`: use a name of the IANA database such as `Europe/Berlin` or `UTC`",
            ),
        ] {
            check(&job(&format!("schedule = {schedule}")), &[&format!("jobs.toml:4:{expected}")]);
        }
        check(
            &job(r#"schedule = { cron = "61 0 * * * *", timezone = "Europe/Berlni" }"#),
            &[
                "jobs.toml:4:22: invalid cron text `61 0 * * * *`: second `61` is not within 0-59\nhelp: use a number from 0 to 59",
                "jobs.toml:4:48: unknown time zone `Europe/Berlni`\nhelp: did you mean `Europe/Berlin`?",
            ],
        );
    }

    #[test]
    fn every_schedule_type_is_read() {
        let every = |seconds| Schedule::every(Duration::from_secs(seconds)).expect("valid");
        let at = |text| Schedule::at(instant(text)).expect("whole");
        let window = |schedule: Schedule, begin: Option<&str>, end: Option<&str>| {
            schedule.within(begin.map(instant), end.map(instant)).expect("not empty")
        };
        let berlin = |fold| {
            let dst = Dst { gap: None, fold };
            Schedule::cron_with("30 2 * * *", "Europe/Berlin", dst).expect("valid")
        };
        let list = |schedules: &[Schedule]| Schedule::any(schedules.to_vec()).expect("not empty");
        let rows = [
            (
                r#"{ every = "1h", offset = "5m" }"#,
                every(3_600).offset(Duration::from_mins(5)).expect("shorter"),
            ),
            (r#"{ at = "2026-12-01T01:00:00+01:00" }"#, at("2026-12-01T00:00:00Z")),
            ("{ at = 2026-12-01T00:00:00Z }", at("2026-12-01T00:00:00Z")),
            (
                r#"[{ every = "1h" }, { at = 2026-12-01T00:00:00Z }]"#,
                list(&[every(3_600), at("2026-12-01T00:00:00Z")]),
            ),
            (r#"[{ every = "1h" }]"#, every(3_600)),
            (
                r#"[{ every = "1h", not-after = 2026-11-30T23:00:00Z }, { every = "30m", not-before = 2026-12-01T00:00:00Z }]"#,
                list(&[
                    window(every(3_600), None, Some("2026-11-30T23:00:00Z")),
                    window(every(1_800), Some("2026-12-01T00:00:00Z"), None),
                ]),
            ),
            (
                "{ cron = \"30 2 * * *\", timezone = \"Europe/Berlin\" }\ndst-fold = \"last\"",
                berlin(Some(DstFold::Last)),
            ),
            (
                "[{ cron = \"30 2 * * *\", timezone = \"Europe/Berlin\", dst-fold = \"both\" }, { every = \"1h\" }]\ndst-fold = \"last\"",
                list(&[berlin(Some(DstFold::Both)), every(3_600)]),
            ),
        ];
        for (text, expected) in rows {
            let config = load(&job(&format!("schedule = {text}")), &[]);
            let config = config.map_err(|problems| lines(&problems)).expect("no problem");
            assert_eq!(config.jobs[0].0.schedule, expected, "{text}");
        }
    }

    #[test]
    fn contradictions_in_schedule_are_reported() {
        for (schedule, expected) in [
            (
                r#"{ every = "1h", offset = "1h" }"#,
                "37: `offset`: an offset must be a whole number of seconds and shorter than the period, not 3600s",
            ),
            (
                r#"{ cron = "@daily", offset = "5m" }"#,
                "31: `offset` requires `every`: write the minute into the cron text",
            ),
            (
                r#"{ every = "1h", dst-gap = "skip" }"#,
                "28: `dst-gap` requires `cron`: `every` counts from 1970-01-01 in UTC",
            ),
            (
                r#"{ at = "2026-12-01T00:00:00Z", timezone = "Europe/Berlin" }"#,
                "43: `timezone` requires `cron`: `at` names its own offset from UTC",
            ),
            (
                r#"{ at = 2026-12-01T00:00:00Z, every = "1h" }"#,
                "41: `every` and `at` exclude each other: remove one",
            ),
            (
                "{ at = 2026-12-01T00:00:00 }",
                "19: `at` must be a time with its offset from UTC such as \"2026-12-01T00:00:00Z\", not 2026-12-01T00:00:00",
            ),
            (
                r#"{ at = "2026-02-30T00:00:00Z" }"#,
                "19: `at` must be a time with its offset from UTC such as \"2026-12-01T00:00:00Z\", not 2026-02-30T00:00:00Z",
            ),
            (
                "{ at = 1 }",
                "19: `at` must be a time with its offset from UTC such as \"2026-12-01T00:00:00Z\", not an integer",
            ),
            (
                "{ at = 2026-12-01T00:00:00.5Z }",
                "19: `at`: a scheduled time is a whole second, not 2026-12-01T00:00:00.500Z",
            ),
            (
                r#"{ cron = "0 0 29 2 *", not-before = 2025-01-01T00:00:00Z, not-after = 2027-01-01T00:00:00Z }"#,
                "21: `0 0 29 2 * in UTC` never comes between `not-before` and `not-after`",
            ),
            (
                "{ at = 2026-12-01T00:00:00Z, not-before = 2027-01-01T00:00:00Z }",
                "19: `at 2026-12-01T00:00:00Z` never comes after `not-before`",
            ),
            (
                r#"{ every = "1h", not-before = 2027-01-01T00:00:00Z, not-after = 2026-01-01T00:00:00Z }"#,
                "75: `not-after` is before `not-before`: the job would never run",
            ),
            (
                "[]",
                "12: `schedule` is empty: it must be a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them",
            ),
            (
                "[{ every = \"1h\" }, 3]",
                "31: `schedule` must be a table such as { every = \"1h\" }, { cron = \"0 * * * *\" } or { at = \"2026-12-01T00:00:00Z\" }, or a list of them, not an integer",
            ),
            (
                r#"[{ every = "1h" }, { every = "0s" }]"#,
                "41: `every`: invalid duration `0s`: it must be greater than zero",
            ),
            (
                r#"{ cron = "@daily", dst-fold = "never" }"#,
                "42: `dst-fold` cannot be `never`\nhelp: known: `first`, `last`, `both`",
            ),
            (
                r#"{ cron = "@reboot" }"#,
                "22: invalid cron text `@reboot`: `@reboot` is an unknown nickname\nhelp: use `run-at-start` for a run at the start",
            ),
        ] {
            check(&job(&format!("schedule = {schedule}")), &[&format!("jobs.toml:4:{expected}")]);
        }
    }
}
