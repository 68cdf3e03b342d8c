//! What a new configuration changes.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::spec::JobSpec;

/// The difference between two configurations, by the names of the jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigChanges {
    /// Jobs that only the new configuration has.
    pub added: Vec<String>,
    /// Jobs that only the old configuration has.
    pub removed: Vec<String>,
    /// Jobs with different settings.
    pub changed: Vec<JobChange>,
}

/// The different settings of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobChange {
    /// The job's name.
    pub job: String,
    /// The key, the old value and the new value of each different setting. Parameters may contain secrets, so their values are
    /// empty.
    pub settings: Vec<(String, String, String)>,
}

impl ConfigChanges {
    /// Whether the configurations are equal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// One line per job: `billing: schedule every 1h -> every 30m`.
impl fmt::Display for ConfigChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        lines.extend(self.added.iter().map(|job| format!("{job}: added")));
        lines.extend(self.removed.iter().map(|job| format!("{job}: removed")));
        for JobChange { job, settings } in &self.changed {
            let setting = |(key, before, after): &(String, String, String)| match before.as_str() {
                "" => key.clone(),
                _ => format!("{key} {before} -> {after}"),
            };
            lines.push(format!("{job}: {}", settings.iter().map(setting).collect::<Vec<_>>().join(", ")));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// Returns the difference between the jobs of `before` and those of `after`.
pub(crate) fn changes<'a>(
    before: impl IntoIterator<Item = (&'a JobSpec, &'a Value)>,
    after: impl IntoIterator<Item = (&'a JobSpec, &'a Value)>,
) -> ConfigChanges {
    let by_name = |(spec, params): (&'a JobSpec, &'a Value)| (spec.name.as_str(), (spec, params));
    let before: BTreeMap<_, _> = before.into_iter().map(by_name).collect();
    let after: BTreeMap<_, _> = after.into_iter().map(by_name).collect();
    let names = |of: &BTreeMap<&str, _>, without: &BTreeMap<&str, _>| {
        of.keys().filter(|name| !without.contains_key(*name)).map(|name| (*name).to_owned()).collect()
    };
    let changed = before.iter().filter_map(|(name, old)| {
        let settings = differences(*old, *after.get(name)?);
        (!settings.is_empty()).then(|| JobChange { job: (*name).to_owned(), settings })
    });
    ConfigChanges {
        added: names(&after, &before),
        removed: names(&before, &after),
        changed: changed.collect(),
    }
}

fn differences(
    (before, old): (&JobSpec, &Value),
    (after, new): (&JobSpec, &Value),
) -> Vec<(String, String, String)> {
    let settings = settings(before).into_iter().zip(settings(after));
    let different = settings.filter(|((_, before), (_, after))| before != after);
    let mut differences: Vec<_> =
        different.map(|((key, before), (_, after))| (key.to_owned(), before, after)).collect();
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let keys = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    differences.extend(keys.map(|key| (format!("params.{key}"), String::new(), String::new())));
    differences
}

/// Returns every setting of a job except its name, with its key in jobs.toml.
fn settings(spec: &JobSpec) -> Vec<(&'static str, String)> {
    // Exhaustive, so that a new setting does not compile before it is added here.
    let JobSpec {
        name: _,
        kind,
        schedule,
        scope,
        misfire,
        misfire_grace,
        catch_up_limit,
        jitter,
        run_at_start,
        timeout,
        retry,
    } = spec;
    vec![
        ("kind", kind.clone()),
        ("schedule", schedule.to_string()),
        ("scope", format!("{scope:?}").to_lowercase()),
        ("misfire", format!("{misfire:?}").to_lowercase()),
        ("misfire-grace", misfire_grace.map_or_else(|| "none".to_owned(), |grace| format!("{grace:?}"))),
        ("catch-up-limit", catch_up_limit.to_string()),
        ("jitter", format!("{jitter:?}")),
        ("run-at-start", run_at_start.to_string()),
        ("timeout", format!("{timeout:?}")),
        ("retry.max-attempts", retry.max_attempts.to_string()),
        ("retry.backoff", format!("{:?}", retry.backoff)),
        ("retry.max-backoff", format!("{:?}", retry.max_backoff)),
        ("retry.jitter", format!("{} %", retry.jitter_percent)),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::runtime::decide::{Misfire, Schedule};

    fn job(name: &str, minutes: u64, change: impl FnOnce(&mut JobSpec)) -> JobSpec {
        let schedule = Schedule::every(Duration::from_mins(minutes)).expect("valid");
        let mut spec = JobSpec::new(name, "kind", schedule);
        change(&mut spec);
        spec
    }

    fn borrowed((spec, params): &(JobSpec, Value)) -> (&JobSpec, &Value) {
        (spec, params)
    }

    #[test]
    fn changes_list_job_and_setting() {
        let before = [
            (job("gone", 60, |_| {}), json!({})),
            (job("kept", 60, |_| {}), json!({ "a": 1 })),
            (job("moved", 60, |_| {}), json!({})),
            (job("tuned", 60, |_| {}), json!({ "password": "old", "size": 1, "same": true })),
        ];
        let after = [
            (job("moved", 90, |spec| spec.misfire = Misfire::CatchUp), json!({})),
            (job("new", 60, |_| {}), json!({})),
            (job("tuned", 60, |_| {}), json!({ "password": "new", "same": true, "more": 2 })),
            (job("kept", 60, |_| {}), json!({ "a": 1 })),
        ];
        let found = changes(before.each_ref().map(borrowed), after.each_ref().map(borrowed));
        assert_eq!(
            found.to_string(),
            "new: added\n\
             gone: removed\n\
             moved: schedule every 1h -> every 1h 30m, misfire coalesce -> catchup\n\
             tuned: params.more, params.password, params.size"
        );
        assert!(changes(before.each_ref().map(borrowed), before.each_ref().map(borrowed)).is_empty());
    }
}
