//! The last step before spans are sent: gives them the names and states of OpenTelemetry, masks secrets, and logs failures.

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{
    Array, KeyValue, StringValue, Value,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use tracing::{info, warn};

use super::client::Client;
use crate::telemetry::mask::Concealed;

/// A failure to send is logged at most this often.
const REPORT_INTERVAL: Duration = Duration::from_mins(10);

/// Sends spans by OTLP.
#[derive(Debug)]
pub(super) struct Exporter {
    otlp: opentelemetry_otlp::SpanExporter,
    client: Client,
    collector: String,
    secrets: Concealed,
    health: Mutex<Health>,
}

impl Exporter {
    pub(super) fn new(
        otlp: opentelemetry_otlp::SpanExporter,
        client: Client,
        collector: String,
        secrets: Concealed,
    ) -> Self {
        Self { otlp, client, collector, secrets, health: Mutex::default() }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        for span in &mut batch {
            set_attributes(span);
            mask(span, &self.secrets);
        }
        let spans = batch.len();
        let result = self.otlp.export(batch).await;
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let change = health.update(result.is_ok(), spans, Instant::now());
        drop(health);
        let collector = &self.collector;
        match change {
            Some(Change::Failing(lost)) => {
                let reason = self.client.last_error();
                let reason =
                    reason.or_else(|| result.as_ref().err().map(ToString::to_string)).unwrap_or_default();
                let minutes = REPORT_INTERVAL.as_secs() / 60;
                warn!(
                    lost,
                    "cannot send traces to {collector}: {reason}; {lost} spans are lost; the next report is in {minutes} minutes"
                );
            }
            Some(Change::Recovered(lost)) => {
                info!(lost, "traces go to {collector} again; {lost} spans were lost");
            }
            None => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

/// Sets the name, the kind and the status of a span from its fields: the code that makes spans does not know OpenTelemetry.
fn set_attributes(span: &mut SpanData) {
    let text = |key: &str| {
        let attribute = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
        attribute.map(|attribute| attribute.value.as_str().into_owned())
    };
    let joined = |first: &str, second: &str| {
        let words = [text(first)?].into_iter().chain(text(second));
        Some(words.collect::<Vec<_>>().join(" "))
    };
    let (name, kind) = match &*span.name {
        "run" => (text("job.name").map(|job| format!("run {job}")), None),
        "request" => (joined("http.request.method", "http.route"), Some(SpanKind::Server)),
        "database" => (joined("db.operation.name", "db.collection.name"), Some(SpanKind::Client)),
        _ => (None, None),
    };
    if let Some(error) = text("error") {
        span.status = Status::error(error);
    }
    if let Some(name) = name {
        span.name = name.into();
    }
    if let Some(kind) = kind {
        span.span_kind = kind;
    }
}

fn mask(span: &mut SpanData, secrets: &Concealed) {
    mask_text(&mut span.name, secrets);
    if let Status::Error { description } = &mut span.status {
        mask_text(description, secrets);
    }
    mask_attributes(&mut span.attributes, secrets);
    for event in &mut span.events.events {
        mask_text(&mut event.name, secrets);
        mask_attributes(&mut event.attributes, secrets);
    }
}

fn mask_text(text: &mut Cow<'static, str>, secrets: &Concealed) {
    if let Cow::Owned(masked) = secrets.apply(text) {
        *text = masked.into();
    }
}

fn mask_attributes(attributes: &mut [KeyValue], secrets: &Concealed) {
    let mask = |text: &mut StringValue| {
        if let Cow::Owned(masked) = secrets.apply(text.as_str()) {
            *text = masked.into();
        }
    };
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => mask(text),
            Value::Array(Array::String(texts)) => texts.iter_mut().for_each(mask),
            _ => {}
        }
    }
}

/// Whether spans are sent, and what was logged of that.
#[derive(Debug, Default)]
struct Health {
    /// When a failure was logged last.
    reported_at: Option<Instant>,
    /// The failure in progress was logged.
    is_reported: bool,
    /// The spans lost since the last log line.
    lost: usize,
}

/// A change that is logged.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// This many spans were lost since the last log line.
    Failing(usize),
    /// Spans are sent again, after this many more were lost.
    Recovered(usize),
}

impl Health {
    fn update(&mut self, is_sent: bool, spans: usize, now: Instant) -> Option<Change> {
        if is_sent {
            return std::mem::take(&mut self.is_reported)
                .then(|| Change::Recovered(std::mem::take(&mut self.lost)));
        }
        self.lost += spans;
        if self.reported_at.is_some_and(|at| now.saturating_duration_since(at) < REPORT_INTERVAL) {
            return None;
        }
        (self.reported_at, self.is_reported) = (Some(now), true);
        Some(Change::Failing(std::mem::take(&mut self.lost)))
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::{
        InstrumentationScope,
        trace::{Event, SpanContext, SpanId},
    };
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    fn span(name: &'static str, attributes: &[(&'static str, &'static str)]) -> SpanData {
        let at = std::time::UNIX_EPOCH;
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: at,
            end_time: at,
            attributes: attributes.iter().map(|(key, value)| KeyValue::new(*key, *value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    #[test]
    fn span_name_follows_its_fields() {
        let error = || Status::error("no");
        for (name, attributes, expected) in [
            ("run", vec![("job.name", "billing")], ("run billing", SpanKind::Internal, Status::Unset)),
            ("run", vec![("job.name", "a"), ("error", "no")], ("run a", SpanKind::Internal, error())),
            ("batch", vec![("error", "no")], ("batch", SpanKind::Internal, error())),
            (
                "database",
                vec![("db.operation.name", "write"), ("db.collection.name", "wallets")],
                ("write wallets", SpanKind::Client, Status::Unset),
            ),
            ("database", vec![("db.operation.name", "commit")], ("commit", SpanKind::Client, Status::Unset)),
            (
                "request",
                vec![("http.request.method", "GET"), ("http.route", "/readyz"), ("error", "no")],
                ("GET /readyz", SpanKind::Server, error()),
            ),
            ("request", vec![("http.request.method", "GET")], ("GET", SpanKind::Server, Status::Unset)),
            ("of a plugin", vec![("job.name", "a")], ("of a plugin", SpanKind::Internal, Status::Unset)),
        ] {
            let mut span = span(name, &attributes);
            set_attributes(&mut span);
            assert_eq!((&*span.name, span.span_kind, span.status), expected);
        }
    }

    #[test]
    fn secrets_in_span_are_masked() {
        let mut span = span("s3cret", &[("url", "postgres://a:s3cret@b")]);
        span.status = Status::error("no s3cret");
        span.attributes.push(KeyValue::new("list", Value::Array(vec![StringValue::from("s3cret")].into())));
        let attributes = vec![KeyValue::new("text", "s3cret")];
        span.events.events.push(Event::new("an event with s3cret", std::time::UNIX_EPOCH, attributes, 0));
        mask(&mut span, &Concealed::new(["s3cret".to_owned()]));
        let shown = format!("{span:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(shown.matches("***").count(), 6, "{shown}");
    }

    #[test]
    fn failure_is_logged_every_ten_minutes() {
        let (mut health, start) = (Health::default(), Instant::now());
        for (minute, is_sent, spans, expected) in [
            (0, true, 1, None),
            (1, false, 2, Some(Change::Failing(2))),
            (2, false, 3, None),
            (3, false, 4, None),
            (11, false, 5, Some(Change::Failing(12))),
            (12, false, 6, None),
            (13, true, 1, Some(Change::Recovered(6))),
            (14, true, 1, None),
            // A failure soon after another one is not logged again.
            (15, false, 1, None),
            (16, true, 1, None),
            (17, false, 1, None),
            (21, false, 1, Some(Change::Failing(3))),
        ] {
            let change = health.update(is_sent, spans, start + Duration::from_mins(minute));
            assert_eq!(change, expected, "minute {minute}");
        }
    }
}
