//! The page of the metrics.

use billing_daemon::telemetry::metrics::{ALL, MetricType};

use super::markdown;

pub(crate) fn page() -> String {
    let rows: Vec<_> = ALL
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                MetricType::Counter => "counter",
                MetricType::Gauge => "gauge",
                MetricType::Seconds => "histogram",
            };
            vec![markdown::code(metric.name), kind.to_owned(), markdown::sentence(metric.help)]
        })
        .collect();
    format!(
        "# Metrics\n\n`/metrics` serves these for Prometheus if jobs.toml has an `[http]` section. Counters start at 0 when the \
         daemon starts. Gauges describe the database, so every daemon on it exports the same values.\n\n{}",
        markdown::table(&["metric", "type", "meaning"], &rows)
    )
}
