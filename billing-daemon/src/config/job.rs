//! One `[[job]]`, read as far as it can be, so that what depends on several jobs is checked even if one key is wrong.

use std::{ops::Range, time::Duration};

use billing_scheduler::{JobSpec, Misfire, Registry, Retry, Schedule, Scope};
use serde_json::Value;
use serde_spanned::Spanned;
use toml::de::DeValue;

use super::{
    Place, params,
    report::{Report, Section},
    schedule,
    suggest::one_of,
};

const KEYS: [&str; 11] = [
    "name",
    "kind",
    "schedule",
    "scope",
    "misfire",
    "run-at-start",
    "timeout",
    "retry",
    "enabled",
    "allow-long-gaps",
    "params",
];

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
    misfire: Misfire,
    run_at_start: bool,
    timeout: Option<Duration>,
    retry: Retry,
    params: Value,
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
    ) -> Option<Self> {
        let job = Section::of(report, "job", value, "a table", &KEYS)?;
        job.require(&["name", "kind", "schedule"]);
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
        let params = kind.as_ref().map_or(Value::Null, |kind| {
            params::read(report, registry, kind.get_ref(), job.value("params"), &header)
        });
        let gaps = job.boolean("allow-long-gaps").zip(job.key("allow-long-gaps"));
        Some(Self {
            name,
            kind,
            timing: schedule::read(&job).map(|schedule| Timing {
                place: report.place(&schedule.span()),
                schedule: schedule.into_inner(),
                said_by: "`schedule`",
            }),
            enabled: job.boolean("enabled").unwrap_or(true),
            allow_long_gaps: gaps.map(|(allowed, span)| Spanned::new(span, allowed)),
            scope: job.choice("scope", &[("cluster", Scope::Cluster), ("node", Scope::Node)]),
            misfire: job
                .choice(
                    "misfire",
                    &[
                        ("coalesce", Misfire::Coalesce),
                        ("catch-up", Misfire::CatchUp),
                        ("skip", Misfire::Skip),
                    ],
                )
                .map_or(Misfire::default(), Spanned::into_inner),
            run_at_start: job.boolean("run-at-start").unwrap_or_default(),
            timeout: job.duration("timeout").map(Spanned::into_inner),
            retry: retry(&job),
            params,
            header,
        })
    }

    pub(super) fn is_of(&self, kind: &str) -> bool {
        self.kind.as_ref().is_some_and(|own| *own.get_ref() == kind)
    }

    /// The job; `None` if something was reported that it cannot be without.
    pub(super) fn into_job(self) -> Option<(JobSpec, Value)> {
        let mut spec = JobSpec::new(self.name?.into_inner(), self.kind?.into_inner(), self.timing?.schedule);
        spec.scope = self.scope.map_or(spec.scope, Spanned::into_inner);
        spec.misfire = self.misfire;
        spec.run_at_start = self.run_at_start;
        spec.timeout = self.timeout.unwrap_or(spec.timeout);
        spec.retry = self.retry;
        Some((spec, self.params))
    }
}

fn checked_name(name: &str) -> Result<&str, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(allowed) {
        Ok(name)
    } else {
        Err(format!("`{name}` is no job name: use a-z, 0-9, _ and -"))
    }
}

fn retry(job: &Section<'_, '_>) -> Retry {
    let expected = "a table such as { max-attempts = 5, backoff = \"15s\", max-backoff = \"5m\" }";
    let mut retry = Retry::default();
    let Some(section) = job.table("retry", expected, &["max-attempts", "backoff", "max-backoff"]) else {
        return retry;
    };
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
