//! What listens to spans and sends them, in the background.

use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::{
    InstrumentationScope, KeyValue, propagation::TextMapPropagator, trace::TracerProvider as _,
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
};
use tracing::{Level, Span, info, level_filters::LevelFilter, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer as _, filter::Targets};

use super::{Listener, client::Client, exporter::Exporter, settings::Settings};
use crate::{config::environment::Environment, host::identity::Identity, telemetry::concealed::Concealed};

/// How long the last spans may take to be sent.
const FINISH: Duration = Duration::from_secs(3);

/// Crates whose spans and events are worth a trace at `debug`. Of others, those of plugins say what matters at `info`.
const OURS: [&str; 4] = ["billing_daemon", "billing_jobs", "billing_kinds", "billing_scheduler"];
/// Libraries that say too much at `info`.
const QUIET: [&str; 3] = ["sqlx", "sea_orm", "tokio_cron_scheduler"];

/// The spans of this process, on their way to a collector, if there is one.
pub(crate) struct Traces {
    provider: Option<SdkTracerProvider>,
    /// Where they go, or what is wrong with that.
    outlook: Result<Option<String>, Vec<String>>,
}

impl Traces {
    /// To the collector that `environment` names, as those of `identity`, without `secrets`, to which those of the collector are
    /// added.
    pub(crate) fn of(environment: &Environment, identity: &Identity, secrets: &Concealed) -> Self {
        let none = |outlook| Self { provider: None, outlook };
        let Ok(Some(settings)) = Settings::of(environment) else { return none(outlook(environment)) };
        secrets.add(settings.secrets());
        match provider(&settings, identity, secrets.clone()) {
            Ok(provider) => Self { provider: Some(provider), outlook: Ok(Some(settings.collector())) },
            Err(error) => none(Err(vec![not_sent(error)])),
        }
    }

    /// What hears of spans beside the log.
    pub(crate) fn listener(&self) -> Option<Listener> {
        let scope = InstrumentationScope::builder("billing-daemon").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = self.provider.as_ref()?.tracer_with_scope(scope.build());
        let levels = Targets::new()
            .with_default(Level::INFO)
            .with_targets(OURS.map(|target| (target, LevelFilter::DEBUG)))
            .with_targets(QUIET.map(|target| (target, LevelFilter::WARN)));
        let listener = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            // Nothing here asks OpenTelemetry which span it is in.
            .with_context_activation(false);
        Some(listener.with_filter(levels).boxed())
    }

    /// Says where they go, or why they do not.
    pub(crate) fn announce(&self) {
        match &self.outlook {
            Ok(Some(collector)) => info!("traces go to {collector}"),
            Ok(None) => {}
            Err(warnings) => warnings.iter().for_each(|warning| warn!("{warning}")),
        }
    }

    /// Sends what is left, if the collector takes it soon.
    pub(crate) async fn finish(self) {
        if let Some(provider) = self.provider {
            // Whoever sends has said what went wrong, and nothing waits for it.
            let _ = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FINISH)).await;
        }
    }
}

/// Where traces would go from here, or everything that is wrong with that.
pub(crate) fn outlook(environment: &Environment) -> Result<Option<String>, Vec<String>> {
    match Settings::of(environment) {
        Ok(settings) => Ok(settings.map(|settings| settings.collector())),
        Err(problems) => Err(problems.iter().map(not_sent).collect()),
    }
}

fn not_sent(problem: impl std::fmt::Display) -> String {
    format!("{problem}; until then no traces are sent")
}

fn provider(
    settings: &Settings,
    identity: &Identity,
    secrets: Concealed,
) -> Result<SdkTracerProvider, opentelemetry_otlp::ExporterBuildError> {
    let client = Client::new(settings);
    let otlp = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client.clone())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.as_str())
        .with_headers(settings.headers.iter().cloned().collect())
        .with_timeout(settings.timeout)
        .build()?;
    let exporter = Exporter::new(otlp, client, settings.collector(), secrets);
    let batches = BatchConfigBuilder::default()
        .with_scheduled_delay(settings.delay)
        .with_max_queue_size(settings.queue)
        .with_max_export_batch_size(settings.batch)
        .build();
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", identity.daemon_id.clone()),
            KeyValue::new("host.name", identity.hostname.clone()),
            KeyValue::new("process.pid", i64::from(std::process::id())),
            KeyValue::new("telemetry.sdk.name", "opentelemetry"),
            KeyValue::new("telemetry.sdk.language", "rust"),
        ])
        .with_attributes(settings.resource.clone())
        .build();
    Ok(SdkTracerProvider::builder()
        .with_sampler(settings.sampler.clone())
        .with_resource(resource)
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .build())
}

/// Makes `span` a part of the trace that `headers` name, if they name one and anybody listens.
pub(crate) fn go_on_with(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        // Without a listener there is no trace to go on with.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
    }
}
