//! Traces by OpenTelemetry: the spans of the daemon, of its jobs and of plugins, sent by OTLP over HTTP to the collector that the
//! environment of the process names. Without the feature `otel` a warning reports that no traces are sent.

#[cfg(feature = "otel")]
mod client;
#[cfg(not(feature = "otel"))]
mod disabled;
#[cfg(feature = "otel")]
mod exporter;
#[cfg(feature = "otel")]
mod pipeline;
#[cfg(feature = "otel")]
mod settings;

#[cfg(not(feature = "otel"))]
pub(crate) use disabled::{Traces, continue_trace, describe_destination, trace_id};
#[cfg(feature = "otel")]
pub(crate) use pipeline::{Traces, continue_trace, describe_destination, trace_id};

/// Reads a variable of the process; an empty one counts as unset.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// Returns the collector's URL and the variable that contains it; `None` if there is none or traces are switched off.
fn collector(lookup: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    let is = |name, value| lookup(name).is_some_and(|text| text.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return None;
    }
    let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    names.into_iter().find_map(|name| Some((name, lookup(name)?)))
}

/// Returns why a program without the feature `otel` sends no traces, if a collector is configured.
#[cfg(any(test, not(feature = "otel")))]
fn not_built_in(lookup: impl Fn(&str) -> Option<String>) -> Option<String> {
    let (name, _) = collector(lookup)?;
    Some(format!("cannot send traces: {name} is set, but this program was built without the feature `otel`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collector_without_feature_gives_warning() {
        for (name, warns) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", true),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", true),
            ("OTEL_SERVICE_NAME", false),
        ] {
            let lookup = |known: &str| (known == name).then(|| "http://127.0.0.1:4318".to_owned());
            assert_eq!(not_built_in(lookup).is_some_and(|warning| warning.contains(name)), warns, "{name}");
        }
    }
}
