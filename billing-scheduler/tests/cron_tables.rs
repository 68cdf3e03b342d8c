//! Compares schedules with the public test tables of other cron implementations. The data file declares each class of deliberate
//! differences with its reason; every other row must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use billing_scheduler::{
    Schedule, ScheduleError,
    chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone as _, Utc},
};
use chrono_tz::Tz;

const TABLES: &str = include_str!("data/cron_tables.tsv");

/// One row: the result of the source, and ours if it differs.
struct Row<'t> {
    source: &'t str,
    text: String,
    zone: &'t str,
    from: &'t str,
    expected: &'t str,
    difference: &'t str,
    here: &'t str,
}

/// Returns the declared classes with their reasons, and the rows.
fn tables() -> (BTreeMap<&'static str, &'static str>, Vec<Row<'static>>) {
    let (mut classes, mut rows) = (BTreeMap::new(), Vec::new());
    for line in TABLES.lines().filter(|line| !line.starts_with("# ")) {
        let columns: Vec<&str> = line.split('\t').collect();
        match columns.as_slice() {
            ["#difference", class, reason] => drop(classes.insert(*class, *reason)),
            [source, text, zone, from, expected, difference, here] => rows.push(Row {
                source,
                text: text.replace("\\t", "\t"),
                zone,
                from,
                expected,
                difference,
                here,
            }),
            _ => panic!("not a row: {line}"),
        }
    }
    (classes, rows)
}

/// Parses a local time in `zone`, or a time with an offset from UTC.
fn instant(zone: Tz, text: &str) -> DateTime<Utc> {
    for format in ["%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M %z"] {
        if let Ok(at) = DateTime::parse_from_str(text, format) {
            return at.to_utc();
        }
    }
    let local = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"]
        .into_iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .or_else(|| text.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0));
    let local = local.unwrap_or_else(|| panic!("`{text}` is not a time"));
    zone.from_local_datetime(&local)
        .earliest()
        .unwrap_or_else(|| panic!("{text} does not exist in {zone}"))
        .to_utc()
}

/// Returns the first time of a row: after `from`, or not before it if `from` begins with `=`.
fn first(row: &Row<'_>, zone: Tz) -> Result<DateTime<Utc>, ScheduleError> {
    let schedule = Schedule::cron(&row.text, row.zone)?;
    let from = match row.from.strip_prefix('=') {
        Some(from) => instant(zone, from) - TimeDelta::seconds(1),
        None if row.from.is_empty() => DateTime::UNIX_EPOCH,
        None => instant(zone, row.from),
    };
    Ok(schedule.next_after(from)?.expect("a cron text has a next time"))
}

#[test]
fn public_tables_agree_or_differ_deliberately() {
    let (classes, rows) = tables();
    let (mut wrong, mut used) = (String::new(), BTreeSet::new());
    for row in &rows {
        let zone: Tz = row.zone.parse().expect("a known zone");
        let found = match first(row, zone) {
            Ok(at) => at.to_rfc3339_opts(SecondsFormat::Secs, true),
            Err(ScheduleError::Cron(_)) => "invalid".to_owned(),
            Err(error) => panic!("{} `{}`: {error}", row.source, row.text),
        };
        let as_text = |text: &str| match text {
            "invalid" | "never" => text.to_owned(),
            at => instant(zone, at).to_rfc3339_opts(SecondsFormat::Secs, true),
        };
        let theirs = as_text(row.expected);
        let agrees = match row.difference {
            "" => found == theirs && row.here.is_empty(),
            class => {
                used.insert(class);
                classes.contains_key(class) && found == as_text(row.here) && found != theirs
            }
        };
        if !agrees {
            let Row { source, text, zone, from, expected, difference, .. } = row;
            // Writing to a String does not fail.
            let _ = writeln!(wrong, "{source}\t{text}\t{zone}\t{from}\t{expected}\t{difference}\t{found}");
        }
    }
    assert!(wrong.is_empty(), "rows with a result other than the table's:\n{wrong}");
    assert!(rows.len() > 700, "only {} rows", rows.len());
    assert_eq!(classes.into_keys().collect::<BTreeSet<_>>(), used, "a class that no row has");
}
