//! Traces by OpenTelemetry: the spans of the daemon, of its jobs and of plugins, sent by OTLP over HTTP to the collector that the
//! environment names. With the feature `otel` alone; without it this says once that there is nobody to send them.

use tracing_subscriber::{Layer, Registry};

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
pub(crate) use disabled::{Traces, go_on_with, outlook};
#[cfg(feature = "otel")]
pub(crate) use pipeline::{Traces, go_on_with, outlook};

/// What listens to spans beside the log.
pub(crate) type Listener = Box<dyn Layer<Registry> + Send + Sync>;

/// What whoever names a collector should know of a program that was built without the feature.
#[cfg(any(test, not(feature = "otel")))]
fn not_built_in(environment: &crate::config::environment::Environment) -> Option<String> {
    let (name, _) = environment.collector()?;
    Some(format!(
        "{name} names a collector, but this program was built without the feature `otel`: no traces are sent"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::Environment;

    #[test]
    fn whoever_names_a_collector_is_told_if_nothing_can_be_sent() {
        for (name, told) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", true),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", true),
            ("OTEL_SERVICE_NAME", false),
        ] {
            let lookup = |asked: &str| (asked == name).then(|| "http://127.0.0.1:4318".into());
            let folder = tempfile::tempdir().expect("a folder");
            let environment = Environment::load(lookup, folder.path(), None).expect("readable");
            assert_eq!(
                not_built_in(&environment).is_some_and(|warning| warning.starts_with(name)),
                told,
                "{name}"
            );
        }
    }
}
