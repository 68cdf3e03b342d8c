//! The parameters of a job, which only the job's kind can check.

use std::{ops::Range, time::Duration};

use billing_scheduler::{BuildError, Registry, Severity};
use serde_json::Value;
use serde_spanned::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::{
    report::{Report, Section, mismatch},
    suggest::one_of,
};

/// Returns the parameters as the job receives them, after the registry has checked them for `kind`. A mistake is reported at its
/// position, or at `job` if a parameter is missing.
pub(super) fn read(
    report: &Report<'_>,
    registry: &Registry,
    kind: &str,
    params: Option<&Spanned<DeValue<'_>>>,
    job: &Range<usize>,
) -> Value {
    let empty = Spanned::new(job.clone(), DeValue::Table(DeTable::new()));
    let params = params.unwrap_or(&empty);
    if !params.get_ref().is_table() {
        report.error(&params.span(), mismatch("params", "a table", params.get_ref()));
        return Value::Null;
    }
    let Some(json) = json(report, params) else { return Value::Null };
    // The check stops at the first mistake: that parameter is removed and the rest is checked again.
    let mut rest = json.clone();
    let mut removed: Vec<Vec<String>> = Vec::new();
    while let Err(error) = registry.check(kind, rest.clone()) {
        let BuildError::Params { path, source, .. } = &error else { break };
        if removed.iter().any(|removed| removed.starts_with(path)) {
            break;
        }
        match unknown_field(&source.to_string()) {
            Some((field, known)) => {
                let message = format!("kind `{kind}` has no parameter `{field}`");
                report.error_with_help(&locate(params, path).key, message, Some(one_of(field, known)));
            }
            None => report.error(&locate(params, path).value, error.to_string()),
        }
        match remove(&mut rest, path) {
            Some(path) => removed.push(path),
            None => break,
        }
    }
    json
}

/// Reports the remarks of `kind` on the `params` of a job that may run for `timeout`.
pub(super) fn inspect(
    job: &Section<'_, '_>,
    registry: &Registry,
    kind: &str,
    params: &Value,
    timeout: Duration,
) {
    let report = job.report();
    for remark in registry.remarks(kind, params.clone(), timeout) {
        let span = job.value("params").map(|params| locate(params, &remark.path).value);
        let span = span.unwrap_or_else(|| job.span().clone());
        match remark.severity {
            Severity::Error => report.error_with_help(&span, remark.message, remark.help),
            Severity::Warning => report.warn(&span, remark.message, remark.help),
        }
    }
}

/// Returns the unknown field in a message of serde, and the known ones.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

struct Position {
    key: Range<usize>,
    value: Range<usize>,
}

/// Returns the position of the value at `path`, or of the last part of the path that exists.
fn locate(params: &Spanned<DeValue<'_>>, path: &[String]) -> Position {
    let mut found = Position { key: params.span(), value: params.span() };
    let mut value = params;
    for segment in path {
        let next = match value.get_ref() {
            DeValue::Table(table) => {
                table.get_key_value(segment.as_str()).map(|(key, value)| (key.span(), value))
            }
            DeValue::Array(array) => segment
                .parse()
                .ok()
                .and_then(|index: usize| array.get(index))
                .map(|value| (value.span(), value)),
            _ => None,
        };
        let Some((key, next)) = next else { break };
        value = next;
        found = Position { key, value: value.span() };
    }
    found
}

/// Removes the value at `path`, or the whole array that contains it, and returns the path of what was removed.
fn remove(value: &mut Value, path: &[String]) -> Option<Vec<String>> {
    let (key, rest) = path.split_first()?;
    let table = value.as_object_mut()?;
    if let Some(removed) = table.get_mut(key).and_then(|value| remove(value, rest)) {
        return Some([vec![key.clone()], removed].concat());
    }
    table.remove(key).map(|_| vec![key.clone()])
}

/// Converts a value to JSON; reports what JSON cannot represent, and returns `None`.
fn json(report: &Report<'_>, value: &Spanned<DeValue<'_>>) -> Option<Value> {
    let json = match value.get_ref() {
        DeValue::String(text) => Some(text.as_ref().into()),
        DeValue::Integer(number) => integer(number),
        DeValue::Float(number) => {
            number.as_str().parse().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
        }
        DeValue::Boolean(flag) => Some((*flag).into()),
        DeValue::Datetime(time) => Some(time.to_string().into()),
        DeValue::Array(values) => {
            let values: Vec<_> = values.iter().map(|value| json(report, value)).collect();
            return values.into_iter().collect::<Option<Vec<_>>>().map(Value::Array);
        }
        DeValue::Table(table) => {
            let entries: Vec<_> = table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), json(report, value)?)))
                .collect();
            return entries.into_iter().collect::<Option<_>>().map(Value::Object);
        }
    };
    if json.is_none() {
        report.error(&value.span(), "invalid number: it is too large, infinite or not a number");
    }
    json
}

fn integer(number: &DeInteger<'_>) -> Option<Value> {
    let (digits, radix) = (number.as_str(), number.radix());
    i64::from_str_radix(digits, radix)
        .map(Value::from)
        .or_else(|_| u64::from_str_radix(digits, radix).map(Value::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::testing::{HOURLY, check, job, lines, now};
    use crate::{
        config::{Config, environment::Environment},
        plugins::{Plugins, kinds_for_validation},
    };

    /// What `check` reports of jobs of the kinds that need no Rust: what is refused, and what is a warning.
    #[test]
    fn kinds_report_parameters_that_cannot_work() {
        let registry = kinds_for_validation(&Plugins::none());
        let environment = Environment::load(|_| None, Path::new("/nowhere"), None).expect("readable");
        let http = |lines: &str| {
            format!("kind = 'http'\ntimeout = '1m'\nschedule.every = '1h'\n[job.params]\n{lines}")
        };
        let command = |lines: &str| format!("kind = 'command'\nschedule.every = '1h'\n[job.params]\n{lines}");
        let tick = |schedule: &str| format!("kind = 'stale-daemons'\nschedule = {schedule}\n");
        for (job, refused, warned) in [
            (http("url = 'https://a'"), vec![], vec![]),
            (
                http(
                    "url = 's3cret'\nheaders.'a b' = 'x'\nheaders.B = \"s3cret\\u0000\"\nexpect-status = [42]",
                ),
                vec![
                    "7:7: parameters of kind `http` at `url`: invalid URL: it must begin with http:// or https://",
                    "8:17: parameters of kind `http` at `headers.a b`: `a b` is not a valid header name: use letters, digits and -",
                    "9:13: parameters of kind `http` at `headers.B`: invalid header value: use one line without control characters",
                    "10:17: parameters of kind `http` at `expect-status`: invalid status 42: use 100 to 599",
                ],
                vec![],
            ),
            (
                http("url = 'https://a'\ntimeout = '2m'\nca-file = '/no/ca.pem'"),
                vec![
                    "8:11: `timeout` is longer than that of the job, which is 1m\nhelp: shorten it, or increase `timeout` of the job",
                ],
                vec![],
            ),
            (
                http("url = 'https://a'\nca-file = '/no/ca.pem'"),
                vec![],
                vec![
                    "8:11: `ca-file` /no/ca.pem: No such file or directory (os error 2)\nhelp: create it before the job runs, or correct the path",
                ],
            ),
            (
                command("argv = ['/no/such/program']"),
                vec![],
                vec![
                    "6:9: /no/such/program is not a program\nhelp: create it before the job runs, or correct the path",
                ],
            ),
            (
                command("argv = ['sh']\nenvironment = { 'A=B' = 's3cret' }"),
                vec![
                    "7:25: parameters of kind `command` at `environment.A=B`: `A=B` is not a valid variable name: it must not be empty or contain = or NUL",
                ],
                vec![],
            ),
            (tick("{ at = '2026-03-01T12:00:00Z' }"), vec![], vec![]),
            (
                tick("{ at = '2026-03-01T11:59:59Z' }"),
                vec![],
                vec![
                    "4:19: `at` is in the past: only a run that was missed can still start\nhelp: correct or remove it",
                ],
            ),
            (
                tick("[{ every = '1h', not-after = '2026-01-01T00:00:00Z' }, { every = '2h' }]"),
                vec![],
                vec![
                    "4:41: `not-after` is in the past: only a run that was missed can still start\nhelp: correct or remove it",
                ],
            ),
            // What is not used is not warned of.
            (format!("enabled = false\n{}", command("argv = ['/no/such/program']")), vec![], vec![]),
        ] {
            // Line 3 is the first of the job's own; another job is enabled.
            let text = format!(
                "[[job]]\nname = 'a'\n{job}\n[[job]]\nname = 'b'\nkind = 'stale-daemons'\nschedule.every = '1h'\n"
            );
            let expected =
                |lines: Vec<&str>| lines.iter().map(|line| format!("jobs.toml:{line}")).collect::<Vec<_>>();
            match Config::load(&text, "jobs.toml", &environment, &registry, now()) {
                Ok(config) => {
                    assert_eq!(refused, [""; 0], "{text}");
                    assert_eq!(lines(&config.warnings), expected(warned), "{text}");
                }
                Err(problems) => {
                    assert_eq!(lines(&problems), expected(refused), "{text}");
                    assert!(!format!("{problems:?}").contains("s3cret"), "{problems:?}");
                }
            }
        }
    }

    #[test]
    fn invalid_parameters_are_reported() {
        let greet = |params: &str| format!("[[job]]\nname = \"a\"\nkind = \"greet\"\n{HOURLY}{params}");
        check(&greet(""), &["jobs.toml:1:1: parameters of kind `greet`: missing field `name`"]);
        check(&greet("[job.params]\n"), &["jobs.toml:5:1: parameters of kind `greet`: missing field `name`"]);
        check(
            &greet("params.name = 3"),
            &[
                "jobs.toml:5:15: parameters of kind `greet` at `name`: invalid type: integer `3`, expected a string",
            ],
        );
        check(
            &greet(
                "[job.params]\nnam = \"a\"\nwhom = 1\ntimes = [1, \"2\"]\nstyle = { bald = true, size = 256 }",
            ),
            &[
                "jobs.toml:6:1: kind `greet` has no parameter `nam`\nhelp: did you mean `name`?",
                "jobs.toml:7:1: kind `greet` has no parameter `whom`\nhelp: known: `name`, `times`, `style`",
                "jobs.toml:8:13: parameters of kind `greet` at `times.1`: invalid type: string \"2\", expected u32",
                "jobs.toml:9:11: kind `greet` has no parameter `bald`\nhelp: did you mean `bold`?",
                "jobs.toml:9:31: parameters of kind `greet` at `style.size`: invalid value: integer `256`, expected u8",
            ],
        );
        check(
            &greet("[job.params]\nname = \"a\"\nsize = 99999999999999999999\ntimes = [inf]"),
            &[
                "jobs.toml:7:8: invalid number: it is too large, infinite or not a number",
                "jobs.toml:8:10: invalid number: it is too large, infinite or not a number",
            ],
        );
        check(
            &job("schedule.every = \"1h\"\nparams.x = 1"),
            &["jobs.toml:5:8: kind `stale-daemons` has no parameter `x`\nhelp: there are none"],
        );
    }
}
