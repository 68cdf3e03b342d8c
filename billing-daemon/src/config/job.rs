//! One `[[job]]`, read as far as it can be, so that what depends on several jobs is checked even if one key is wrong.

use std::{ops::Range, time::Duration};

use billing_kinds::{Ping, Secret, check_url};
use billing_scheduler::{JobSpec, Misfire, Registry, Retry, Schedule, Scope, Skipped};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use serde_spanned::Spanned;
use toml::de::DeValue;

use super::{
    Place, params,
    report::{Report, Section},
    schedule,
    suggest::one_of,
};

pub(super) const KEYS: [&str; 19] = [
    "name",
    "kind",
    "schedule",
    "not-before",
    "not-after",
    "dst-gap",
    "dst-fold",
    "jitter",
    "scope",
    "misfire",
    "misfire-grace",
    "catch-up-limit",
    "run-at-start",
    "timeout",
    "retry",
    "enabled",
    "allow-long-gaps",
    "ping",
    "params",
];

pub(super) const RETRY_KEYS: [&str; 4] = ["max-attempts", "backoff", "max-backoff", "jitter-percent"];
pub(super) const PING_KEYS: [&str; 4] = ["url", "start", "fail", "timeout"];
/// The keys that a job cannot be without.
pub(super) const REQUIRED: [&str; 3] = ["name", "kind", "schedule"];
pub(super) const SCOPE: [(&str, Scope); 2] = [("cluster", Scope::Cluster), ("node", Scope::Node)];
pub(super) const MISFIRE: [(&str, Misfire); 3] =
    [("coalesce", Misfire::Coalesce), ("catch-up", Misfire::CatchUp), ("skip", Misfire::Skip)];

/// The least `misfire-grace`: below it, how fast a lease is claimed decides whether a job runs.
const LEAST_GRACE: Duration = Duration::from_millis(50);

/// A job as far as it could be read. What is missing was reported.
pub(super) struct Draft<'r> {
    pub(super) header: Range<usize>,
    pub(super) name: Option<Spanned<&'r str>>,
    pub(super) kind: Option<Spanned<&'r str>>,
    pub(super) timing: Option<Timing>,
    pub(super) enabled: bool,
    /// Where the key stands, and what it says.
    pub(super) allow_long_gaps: Option<Spanned<bool>>,
    pub(super) scope: Option<Spanned<Scope>>,
    policy: Policy,
    run_at_start: bool,
    timeout: Option<Duration>,
    retry: Retry,
    ping: Option<Ping>,
    params: Value,
}

/// What becomes of scheduled times, and how late they may be.
#[derive(Default)]
struct Policy {
    misfire: Misfire,
    grace: Option<Duration>,
    catch_up_limit: Option<u32>,
    jitter: Option<Duration>,
}

/// When a job runs, and who says so.
pub(super) struct Timing {
    pub(super) schedule: Schedule,
    pub(super) place: Place,
    pub(super) said_by: &'static str,
}

impl<'r> Draft<'r> {
    pub(super) fn read(
        report: &'r Report<'_>,
        registry: &Registry,
        value: &'r Spanned<DeValue<'_>>,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let job = Section::of(report, "job", value, "a table", &KEYS)?;
        job.require(&REQUIRED);
        let header = job.span().clone();
        let name = job.string("name").and_then(|name| job.parsed("name", &name, checked_name));
        let kind = job.string("kind").filter(|kind| {
            let known = registry.kinds().any(|known| known == *kind.get_ref());
            if !known {
                let hint = one_of(kind.get_ref(), registry.kinds().collect::<Vec<_>>());
                report.with_hint(&kind.span(), format!("unknown kind `{}`", kind.get_ref()), Some(hint));
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
            report.forget_warnings(warned);
        }
        Some(Self {
            name,
            kind,
            timing: schedule.map(|schedule| Timing {
                place: report.place(&schedule.span()),
                schedule: schedule.into_inner(),
                said_by: "`schedule`",
            }),
            enabled,
            allow_long_gaps: gaps.map(|(allowed, span)| Spanned::new(span, allowed)),
            scope: job.choice("scope", &SCOPE),
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

    /// The job, and where its signs go; `None` if something was reported that it cannot be without.
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

/// Reads where a job gives signs of life.
fn ping(job: &Section<'_, '_>) -> Option<Ping> {
    let expected = "a table such as { url = \"https://hc-ping.com/...\" }";
    let section = job.table("ping", expected, &PING_KEYS)?;
    section.require(&["url"]);
    let place = |key: &str| {
        let (span, place) = (section.value(key)?.span(), section.secret(key)?);
        if let Secret::Text(text) = &place
            && let Err(error) = check_url(text)
        {
            // The text itself may be a secret.
            section.report().at(&span, format!("`{key}`: {error}"));
        }
        Some(place)
    };
    let (url, start, fail) = (place("url"), place("start"), place("fail"));
    let timeout = section.duration("timeout").map_or(Ping::TIMEOUT, Spanned::into_inner);
    Some(Ping { url: url?, start, fail, timeout })
}

fn checked_name(name: &str) -> Result<&str, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(allowed) {
        Ok(name)
    } else {
        Err(format!("`{name}` is no job name: use a-z, 0-9, _ and -"))
    }
}

/// Reads how misfires are treated, and refuses what contradicts itself or the schedule.
fn policy(job: &Section<'_, '_>, schedule: Option<&Schedule>, now: DateTime<Utc>) -> Policy {
    let report = job.report();
    let misfire = job.choice("misfire", &MISFIRE);
    let grace = job.duration("misfire-grace");
    let limit = job.number("catch-up-limit", 1..=Skipped::MAX_COUNTED);
    let jitter = job.duration("jitter");

    let catches_up = misfire.as_ref().filter(|misfire| *misfire.get_ref() == Misfire::CatchUp);
    if let (Some(misfire), true) = (catches_up, schedule.is_some_and(Schedule::is_once)) {
        let message =
            "`catch-up` has nothing to catch up: a single `at` comes once, so use `coalesce` or `skip`";
        report.at(&misfire.span(), message);
    }
    if let (Some(limit), None) = (job.key("catch-up-limit"), catches_up) {
        report.at(&limit, "`catch-up-limit` goes with `misfire = \"catch-up\"` only: remove it");
    }
    if let Some(grace) = grace.as_ref().filter(|grace| *grace.get_ref() < LEAST_GRACE) {
        let least = humantime::format_duration(LEAST_GRACE);
        report.at(
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
        report.at(&grace.span(), message);
    }
    let shortest = jitter.as_ref().and(schedule).and_then(|schedule| schedule.shortest_gap(now).ok()?);
    if let (Some(jitter), Some(shortest)) = (&jitter, shortest.and_then(|gap| TimeDelta::to_std(&gap).ok()))
        && *jitter.get_ref() > shortest
    {
        let shortest = humantime::format_duration(shortest);
        let message =
            format!("`jitter` is longer than the shortest time between two runs, which is {shortest}");
        report.at(&jitter.span(), message);
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
    let Some(section) = job.table("retry", expected, &RETRY_KEYS) else {
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
            section.report().at(&backoff.span(), message);
        }
    }
    retry
}
