//! The layer that receives spans, and the background thread that sends them.

use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    propagation::TextMapPropagator,
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Level, Span, info, level_filters::LevelFilter, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer as _, filter::Targets};

use super::{client::Client, exporter::Exporter, settings::OtelSettings, variable};
use crate::{
    host::identity::Identity,
    telemetry::{Listener, mask::Concealed},
};

/// How long the shutdown waits for the last spans.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Crates whose spans and events belong into a trace at `debug`. Those of plugins do at `info`.
const OWN_CRATES: [&str; 4] = ["billing_daemon", "billing_jobs", "billing_kinds", "billing_scheduler"];
/// Libraries that log too much at `info`.
const QUIET_CRATES: [&str; 3] = ["sqlx", "sea_orm", "tokio_cron_scheduler"];

/// The spans of this process, on their way to a collector if there is one.
pub(crate) struct Traces {
    provider: Option<SdkTracerProvider>,
    destination: Result<Option<String>, String>,
}

impl Traces {
    /// Prepares the traces of `identity` for the collector in the environment. Masks `secrets` and adds those of the collector.
    pub(crate) fn new(identity: &Identity, secrets: &Concealed) -> Self {
        let built = OtelSettings::read(variable).and_then(|settings| {
            let Some(settings) = settings else { return Ok((None, None)) };
            secrets.add(settings.secrets.clone());
            let destination = settings.destination();
            let provider =
                provider(settings, identity, secrets.clone()).map_err(|error| error.to_string())?;
            Ok((Some(provider), Some(destination)))
        });
        match built {
            Ok((provider, destination)) => Self { provider, destination: Ok(destination) },
            Err(error) => Self { provider: None, destination: Err(cannot_send(&error)) },
        }
    }

    /// Returns the layer that receives spans.
    pub(crate) fn layer(&self) -> Option<Listener> {
        let scope = InstrumentationScope::builder("billing-daemon").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = self.provider.as_ref()?.tracer_with_scope(scope.build());
        let levels = Targets::new()
            .with_default(Level::INFO)
            .with_targets(OWN_CRATES.map(|target| (target, LevelFilter::DEBUG)))
            .with_targets(QUIET_CRATES.map(|target| (target, LevelFilter::WARN)));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            // Nothing reads the current context of OpenTelemetry.
            .with_context_activation(false);
        Some(layer.with_filter(levels).boxed())
    }

    /// Logs where traces go, or why they are not sent.
    pub(crate) fn log_destination(&self) {
        match &self.destination {
            Ok(Some(collector)) => info!("traces go to {collector}"),
            Ok(None) => {}
            Err(warning) => warn!("{warning}"),
        }
    }

    /// Sends the last spans, unless the collector takes too long.
    pub(crate) async fn finish(self) {
        if let Some(provider) = self.provider {
            // The exporter has logged a failure.
            let _ =
                tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)).await;
        }
    }
}

/// Returns the collector's URL, if there is one, or why no traces can be sent.
pub(crate) fn describe_destination() -> Result<Option<String>, String> {
    let settings = OtelSettings::read(variable).map_err(|error| cannot_send(&error))?;
    Ok(settings.map(|settings| settings.destination()))
}

fn cannot_send(error: &str) -> String {
    format!("cannot send traces: {error}")
}

/// Builds the pipeline. The SDK reads the sampler and the limits of batches from the environment, the exporter the headers.
fn provider(
    settings: OtelSettings,
    identity: &Identity,
    secrets: Concealed,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let client = Client::new(&settings);
    let otlp = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client.clone())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.as_str())
        .build()?;
    let exporter = Exporter::new(otlp, client, settings.destination(), secrets);
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", identity.daemon_id.clone()),
            KeyValue::new("host.name", identity.hostname.clone()),
            KeyValue::new("process.pid", i64::from(std::process::id())),
            KeyValue::new("telemetry.sdk.name", "opentelemetry"),
            KeyValue::new("telemetry.sdk.language", "rust"),
        ])
        .with_attributes(settings.resource)
        .build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// Returns the id of the trace of the current span, if it is sent to a collector.
pub(crate) fn trace_id() -> Option<String> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    (span.is_valid() && span.is_sampled()).then(|| span.trace_id().to_string())
}

/// Makes `span` a part of the trace that `headers` name, if they name one and traces are sent.
pub(crate) fn continue_trace(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        // It fails only where no traces are sent.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
    }
}
