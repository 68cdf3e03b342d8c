//! The parameters of a job: any TOML, which only the job's kind can read.

use std::{ops::Range, time::Duration};

use billing_scheduler::{BuildError, Registry, Severity};
use serde_json::Value;
use serde_spanned::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::{
    report::{Report, Section, mismatch},
    suggest::one_of,
};

/// The parameters as a job gets them, after the registry has read them for `kind`. What it refuses is reported where it stands, or
/// at `job` if it is not there.
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
        report.at(&params.span(), mismatch("params", "a table", params.get_ref()));
        return Value::Null;
    }
    let Some(json) = json(report, params) else { return Value::Null };
    // A kind tells the first error only: each wrong parameter is taken out and the rest is read again.
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
                report.with_hint(&locate(params, path).key, message, Some(one_of(field, known)));
            }
            None => report.at(&locate(params, path).value, error.to_string()),
        }
        match remove(&mut rest, path) {
            Some(path) => removed.push(path),
            None => break,
        }
    }
    json
}

/// Reports what `kind` finds in the `params` of a job that may run for `timeout`.
pub(super) fn inspect(
    job: &Section<'_, '_>,
    registry: &Registry,
    kind: &str,
    params: &Value,
    timeout: Duration,
) {
    let report = job.report();
    for remark in registry.remarks(kind, params.clone(), timeout) {
        let place = job.value("params").map(|params| locate(params, &remark.path).value);
        let place = place.unwrap_or_else(|| job.span().clone());
        let help = remark.help.map(|help| format!("so {help}"));
        match remark.severity {
            Severity::Error => report.with_hint(&place, remark.message, help),
            Severity::Warning => report.warn(&place, remark.message, help),
        }
    }
}

/// The field of serde's message on an unknown one, and those that it knows.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

struct Location {
    key: Range<usize>,
    value: Range<usize>,
}

/// Where the value stands that `path` leads to, or as far as it leads.
fn locate(params: &Spanned<DeValue<'_>>, path: &[String]) -> Location {
    let mut found = Location { key: params.span(), value: params.span() };
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
        found = Location { key, value: value.span() };
    }
    found
}

/// Takes out the value that `path` leads to, or the whole array that it is in, and says what was taken out.
fn remove(value: &mut Value, path: &[String]) -> Option<Vec<String>> {
    let (key, rest) = path.split_first()?;
    let table = value.as_object_mut()?;
    if let Some(removed) = table.get_mut(key).and_then(|value| remove(value, rest)) {
        return Some([vec![key.clone()], removed].concat());
    }
    table.remove(key).map(|_| vec![key.clone()])
}

/// The same value in JSON; `None`, and a report, if there is something that JSON cannot say.
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
        report.at(&value.span(), "this number is too large, or none: write another");
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
