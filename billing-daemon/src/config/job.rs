//! One `[[job]]`, read as far as possible, so that the rules for several jobs are checked even if one key is invalid.

use std::{ops::Range, time::Duration};

use billing_kinds::{Ping, Secret, check_url};
use billing_scheduler::{JobSpec, Misfire, Registry, Retry, Schedule, Scope, Skipped};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use serde_spanned::Spanned;
use toml::de::DeValue;

use super::{
    Location, params,
    report::{Report, Section},
    schedule,
    suggest::one_of,
    tables::{JobTable, RetryTable},
};

/// With a shorter `misfire-grace` the time that a claim takes would decide whether a job runs.
const MIN_MISFIRE_GRACE: Duration = Duration::from_millis(50);

/// A job as far as it could be read. The mistakes were reported.
pub(super) struct Draft<'r> {
    pub(super) header: Range<usize>,
    pub(super) name: Option<Spanned<&'r str>>,
    pub(super) kind: Option<Spanned<&'r str>>,
    pub(super) timing: Option<Timing>,
    pub(super) enabled: bool,
    /// The value, at the position of its key.
    pub(super) allow_long_gaps: Option<Spanned<bool>>,
    pub(super) scope: Option<Spanned<Scope>>,
    policy: Policy,
    run_at_start: bool,
    timeout: Option<Duration>,
    retry: Retry,
    ping: Option<Ping>,
    params: Value,
}

/// How late scheduled times may be, and what happens to missed ones.
#[derive(Default)]
struct Policy {
    misfire: Misfire,
    grace: Option<Duration>,
    catch_up_limit: Option<u32>,
    jitter: Option<Duration>,
}

/// When a job runs, and which setting defines that.
pub(super) struct Timing {
    pub(super) schedule: Schedule,
    pub(super) location: Location,
    pub(super) setting: &'static str,
}

impl<'r> Draft<'r> {
    pub(super) fn read(
        report: &'r Report<'_>,
        registry: &Registry,
        value: &'r Spanned<DeValue<'_>>,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let job = Section::of::<JobTable>(report, "job", value, "a table")?;
        let header = job.span().clone();
        let name = job.string("name").and_then(|name| job.parsed("name", &name, checked_name));
        let kind = job.string("kind").filter(|kind| {
            let known = registry.kinds().any(|known| known == *kind.get_ref());
            if !known {
                let help = one_of(kind.get_ref(), registry.kinds().collect::<Vec<_>>());
                report.error_with_help(
                    &kind.span(),
                    format!("unknown kind `{}`", kind.get_ref()),
                    Some(help),
                );
            }
            known
        });
        let timeout = job.duration("timeout").map(Spanned::into_inner);
        let warned = report.count_warnings();
        let params = kind.as_ref().map_or(Value::Null, |kind| {
            let kind = *kind.get_ref();
            let params = params::read(report, registry, kind, job.value("params"), &header);
            params::inspect(&job, registry, kind, &params, timeout.unwrap_or(JobSpec::TIMEOUT));
            params
        });
        let schedule = schedule::read(&job);
        let policy = policy(&job, schedule.as_ref().map(Spanned::get_ref), now);
        let gaps = job.boolean("allow-long-gaps").zip(job.key("allow-long-gaps"));
        let enabled = job.boolean("enabled").unwrap_or(true);
        if !enabled {
            report.truncate_warnings(warned);
        }
        Some(Self {
            name,
            kind,
            timing: schedule.map(|schedule| Timing {
                location: report.location(&schedule.span()),
                schedule: schedule.into_inner(),
                setting: "`schedule`",
            }),
            enabled,
            allow_long_gaps: gaps.map(|(allowed, span)| Spanned::new(span, allowed)),
            scope: job.choice("scope"),
            policy,
            run_at_start: job.boolean("run-at-start").unwrap_or_default(),
            timeout,
            retry: retry(&job),
            ping: ping(&job),
            params,
            header,
        })
    }

    pub(super) fn is_of(&self, kind: &str) -> bool {
        self.kind.as_ref().is_some_and(|own| *own.get_ref() == kind)
    }

    /// Returns the parameters as JSON; null if they were not read.
    pub(super) fn params(&self) -> &Value {
        &self.params
    }

    /// Returns the job and its pings; `None` if a part that it needs is missing, which was reported.
    pub(super) fn into_job(self) -> Option<(JobSpec, Value, Option<Ping>)> {
        let mut spec = JobSpec::new(self.name?.into_inner(), self.kind?.into_inner(), self.timing?.schedule);
        spec.scope = self.scope.map_or(spec.scope, Spanned::into_inner);
        spec.misfire = self.policy.misfire;
        spec.misfire_grace = self.policy.grace;
        spec.catch_up_limit = self.policy.catch_up_limit.unwrap_or(spec.catch_up_limit);
        spec.jitter = self.policy.jitter.unwrap_or(spec.jitter);
        spec.run_at_start = self.run_at_start;
        spec.timeout = self.timeout.unwrap_or(spec.timeout);
        spec.retry = self.retry;
        Some((spec, self.params, self.ping))
    }
}

/// Reads where a job sends pings.
fn ping(job: &Section<'_, '_>) -> Option<Ping> {
    let expected = "a table such as { url = \"https://hc-ping.com/...\" }";
    let section = job.table::<Ping>("ping", expected)?;
    let secret = |key: &str| {
        let (span, secret) = (section.value(key)?.span(), section.secret(key)?);
        if let Secret::Text(text) = &secret
            && let Err(error) = check_url(text)
        {
            // The text itself may be a secret.
            section.report().error(&span, format!("`{key}`: {error}"));
        }
        Some(secret)
    };
    let (url, start, fail) = (secret("url"), secret("start"), secret("fail"));
    let timeout = section.duration("timeout").map_or(Ping::TIMEOUT, Spanned::into_inner);
    Some(Ping { url: url?, start, fail, timeout })
}

fn checked_name(name: &str) -> Result<&str, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(allowed) {
        Ok(name)
    } else {
        Err(format!("invalid job name `{name}`: use a-z, 0-9, _ and -"))
    }
}

/// Reads how misfires are handled, and reports contradictions.
fn policy(job: &Section<'_, '_>, schedule: Option<&Schedule>, now: DateTime<Utc>) -> Policy {
    let report = job.report();
    let misfire = job.choice::<Misfire>("misfire");
    let grace = job.duration("misfire-grace");
    let limit = job.number("catch-up-limit", 1..=Skipped::MAX_COUNTED);
    let jitter = job.duration("jitter");

    let catches_up = misfire.as_ref().filter(|misfire| *misfire.get_ref() == Misfire::CatchUp);
    if let (Some(misfire), true) = (catches_up, schedule.is_some_and(Schedule::is_once)) {
        let message = "`catch-up` has no effect on a single `at`: use `coalesce` or `skip`";
        report.error(&misfire.span(), message);
    }
    if let (Some(limit), None) = (job.key("catch-up-limit"), catches_up) {
        report.error(&limit, "`catch-up-limit` requires `misfire = \"catch-up\"`: remove it");
    }
    if let Some(grace) = grace.as_ref().filter(|grace| *grace.get_ref() < MIN_MISFIRE_GRACE) {
        let least = humantime::format_duration(MIN_MISFIRE_GRACE);
        report.error(
            &grace.span(),
            format!("`misfire-grace` must be at least {least}: a run may start that late"),
        );
    }
    if let (Some(grace), Some(jitter)) = (&grace, &jitter)
        && grace.get_ref() < jitter.get_ref()
    {
        let jitter = humantime::format_duration(*jitter.get_ref());
        let message = format!(
            "`misfire-grace` is shorter than `jitter`, which is {jitter}: some runs would be too late before they start"
        );
        report.error(&grace.span(), message);
    }
    let shortest = jitter.as_ref().and(schedule).and_then(|schedule| schedule.shortest_gap(now).ok()?);
    if let (Some(jitter), Some(shortest)) = (&jitter, shortest.and_then(|gap| TimeDelta::to_std(&gap).ok()))
        && *jitter.get_ref() > shortest
    {
        let shortest = humantime::format_duration(shortest);
        let message =
            format!("`jitter` is longer than the shortest time between two runs, which is {shortest}");
        report.error(&jitter.span(), message);
    }
    Policy {
        misfire: misfire.map(Spanned::into_inner).unwrap_or_default(),
        grace: grace.map(Spanned::into_inner),
        catch_up_limit: limit.map(Spanned::into_inner),
        jitter: jitter.map(Spanned::into_inner),
    }
}

fn retry(job: &Section<'_, '_>) -> Retry {
    let expected = "a table such as { max-attempts = 5, backoff = \"15s\", max-backoff = \"5m\" }";
    let mut retry = Retry::default();
    let Some(section) = job.table::<RetryTable>("retry", expected) else {
        return retry;
    };
    let percent =
        section.number("jitter-percent", 0..=100).and_then(|percent| u8::try_from(percent.into_inner()).ok());
    retry.jitter_percent = percent.unwrap_or(retry.jitter_percent);
    retry.max_attempts = section.count("max-attempts").unwrap_or(retry.max_attempts);
    retry.max_backoff = section.duration("max-backoff").map_or(retry.max_backoff, Spanned::into_inner);
    if let Some(backoff) = section.duration("backoff") {
        retry.backoff = *backoff.get_ref();
        if retry.backoff > retry.max_backoff {
            let longest = humantime::format_duration(retry.max_backoff);
            let message = format!("`backoff` is longer than `max-backoff`, which is {longest}");
            section.report().error(&backoff.span(), message);
        }
    }
    retry
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use billing_scheduler::{Dst, DstFold, DstGap};
    use serde_json::json;

    use super::super::testing::{HOURLY, check, instant, job, lines, load};
    use super::*;

    #[test]
    fn every_job_key_is_used() {
        let text = r#"
            [[job]]
            name = "hello_1"
            kind = "greet"
            schedule = { cron = "0 30 2 * * *", timezone = "Europe/Berlin" }
            dst-gap = "skip"
            dst-fold = "last"
            not-before = 2026-12-01T01:00:00+01:00
            not-after = "2030-01-01T00:00:00Z"
            jitter = "5m"
            scope = "node"
            misfire = "catch-up"
            misfire-grace = "2h"
            catch-up-limit = 24
            run-at-start = true
            timeout = "1h 30m"
            retry = { max-attempts = 2, backoff = "1s", max-backoff = "1m", jitter-percent = 0 }
            ping = { url = { env = "PING_URL" }, fail = "https://hc-ping.com/1/fail", timeout = "3s" }
            [job.params]
            name = "Ada"
            times = [1, 0x10]
            style = { bold = true }
            [[job]]
            name = "off"
            kind = "stale-daemons"
            schedule.every = "1h"
            ping = { url = "http://off" }
            enabled = false
            "#;
        let config = load(text, &[]).map_err(|problems| lines(&problems)).expect("no problem");
        let [(spec, params)] = config.jobs.as_slice() else { panic!("a disabled job is left out") };
        assert_eq!((spec.name.as_str(), spec.kind.as_str()), ("hello_1", "greet"));
        let dst = Dst { gap: Some(DstGap::Skip), fold: Some(DstFold::Last) };
        let schedule = Schedule::cron_with("0 30 2 * * *", "Europe/Berlin", dst).and_then(|schedule| {
            schedule.within(Some(instant("2026-12-01T00:00:00Z")), Some(instant("2030-01-01T00:00:00Z")))
        });
        assert_eq!(Ok(&spec.schedule), schedule.as_ref());
        assert_eq!((spec.misfire_grace, spec.catch_up_limit), (Some(Duration::from_hours(2)), 24));
        assert_eq!(spec.jitter, Duration::from_mins(5));
        assert_eq!((spec.scope, spec.misfire, spec.run_at_start), (Scope::Node, Misfire::CatchUp, true));
        assert_eq!(spec.timeout, Duration::from_mins(90));
        let retry = Retry {
            max_attempts: 2,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_mins(1),
            jitter_percent: 0,
        };
        assert_eq!(spec.retry, retry);
        assert_eq!(*params, json!({ "name": "Ada", "times": [1, 16], "style": { "bold": true } }));
        let ping = Ping {
            url: Secret::Env("PING_URL".to_owned()),
            start: None,
            fail: Some(Secret::Text("https://hc-ping.com/1/fail".to_owned())),
            timeout: Duration::from_secs(3),
        };
        assert_eq!(
            config.pings,
            BTreeMap::from([("hello_1".to_owned(), ping)]),
            "a disabled job gives no signs"
        );
        assert_eq!(config.billing_interval, None);
    }

    #[test]
    fn invalid_pings_are_reported() {
        for (ping, expected) in [
            (
                "1",
                "5:8: `ping` must be a table such as { url = \"https://hc-ping.com/...\" }, not an integer",
            ),
            ("{ start = \"http://a\" }", "5:8: missing key `url`"),
            (
                "{ url = 1 }",
                "5:16: `url` must be text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }, not an integer",
            ),
            (
                "{ url = {} }",
                "5:16: `url` must be text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }",
            ),
            (
                "{ url = { env = \"A\", file = \"/b\" } }",
                "5:16: `url` must be text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }",
            ),
            ("{ url = { file = 1 } }", "5:25: `file` must be a string, not an integer"),
            (
                "{ url = \"http://a\", fail = \"s3cret\" }",
                "5:35: `fail`: invalid URL: it must begin with http:// or https://",
            ),
            (
                "{ url = \"http://a\", fial = \"http://b\" }",
                "5:28: unknown key `fial`\nhelp: did you mean `fail`?",
            ),
            (
                "{ url = \"http://a\", timeout = \"0s\" }",
                "5:38: `timeout`: invalid duration `0s`: it must be greater than zero",
            ),
        ] {
            check(&job(&format!("{HOURLY}ping = {ping}")), &[&format!("jobs.toml:{expected}")]);
        }
    }

    #[test]
    fn invalid_words_and_numbers_are_reported() {
        check(
            &job(&format!(
                "{HOURLY}scope = \"nodes\"\nmisfire = \"later\"\nretry = {{ max-attempts = 0, backoff = \"10m\" }}\n"
            )),
            &[
                "jobs.toml:5:9: `scope` cannot be `nodes`\nhelp: did you mean `node`?",
                "jobs.toml:6:11: `misfire` cannot be `later`\nhelp: known: `coalesce`, `catch-up`, `skip`",
                "jobs.toml:7:26: `max-attempts` must be at least 1 and at most 4294967295, not 0",
                "jobs.toml:7:39: `backoff` is longer than `max-backoff`, which is 5m",
            ],
        );
    }

    #[test]
    fn invalid_durations_are_reported() {
        check(
            &job(&format!(
                "{HOURLY}timeout = \"0s\"\nretry = {{ backoff = \"-1s\", max-backoff = \"1 month\", max-backof = \"1h\" }}\n"
            )),
            &[
                "jobs.toml:5:11: `timeout`: invalid duration `0s`: it must be greater than zero",
                "jobs.toml:6:21: `backoff`: invalid duration `-1s`: it must not be negative",
                "jobs.toml:6:42: `max-backoff`: invalid duration `1 month`: months and years have no fixed length; use days, such as `30d`",
                "jobs.toml:6:53: unknown key `max-backof`\nhelp: did you mean `max-backoff`?",
            ],
        );
    }

    #[test]
    fn contradictions_in_policy_are_reported() {
        let at = "schedule = { at = 2026-12-01T00:00:00Z }\n";
        let cron = "schedule = { cron = \"0 9,10 * * *\" }\n";
        for (text, expected) in [
            (
                format!("{at}misfire = \"catch-up\""),
                "5:11: `catch-up` has no effect on a single `at`: use `coalesce` or `skip`",
            ),
            (
                format!("{HOURLY}misfire-grace = \"49ms\""),
                "5:17: `misfire-grace` must be at least 50ms: a run may start that late",
            ),
            (
                format!("{HOURLY}misfire-grace = \"1m\"\njitter = \"5m\""),
                "5:17: `misfire-grace` is shorter than `jitter`, which is 5m: some runs would be too late before they start",
            ),
            (
                format!("{HOURLY}jitter = \"61m\""),
                "5:10: `jitter` is longer than the shortest time between two runs, which is 1h",
            ),
            (
                format!("{cron}jitter = \"2h\""),
                "5:10: `jitter` is longer than the shortest time between two runs, which is 1h",
            ),
            (
                format!("{HOURLY}catch-up-limit = 10"),
                "5:1: `catch-up-limit` requires `misfire = \"catch-up\"`: remove it",
            ),
            (
                format!("{HOURLY}misfire = \"skip\"\ncatch-up-limit = 10"),
                "6:1: `catch-up-limit` requires `misfire = \"catch-up\"`: remove it",
            ),
            (
                format!("{HOURLY}misfire = \"catch-up\"\ncatch-up-limit = 10001"),
                "6:18: `catch-up-limit` must be at least 1 and at most 10000, not 10001",
            ),
            (
                format!("{HOURLY}dst-gap = \"skip\""),
                "5:1: `dst-gap` requires `cron`: clock changes do not affect the others",
            ),
            (
                format!("{HOURLY}not-after = 2026-01-01T00:00:00Z\nnot-before = 2027-01-01T00:00:00Z"),
                "5:13: `not-after` is before `not-before`: the job would never run",
            ),
            (
                format!("{at}not-after = 2026-01-01T00:00:00Z"),
                "4:19: `at 2026-12-01T00:00:00Z` never comes before `not-after`",
            ),
            (
                format!("{HOURLY}retry = {{ jitter-percent = 101 }}"),
                "5:28: `jitter-percent` must be at least 0 and at most 100, not 101",
            ),
        ] {
            check(&job(&text), &[&format!("jobs.toml:{expected}")]);
        }
        check(&job(&format!("{HOURLY}misfire-grace = \"5m\"\njitter = \"5m\"")), &[]);
        check(&job(&format!("{HOURLY}misfire-grace = \"50ms\"")), &[]);
        check(&job(&format!("{HOURLY}jitter = \"1h\"")), &[]);
        check(&job(&format!("{at}misfire = \"skip\"\nmisfire-grace = \"1d\"\njitter = \"1h\"")), &[]);
    }
}
