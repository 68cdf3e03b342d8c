//! The last look at spans before they go: with names and states as OpenTelemetry has them, and without a secret. And what is said
//! when they cannot go.

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
use crate::telemetry::concealed::Concealed;

/// How often it is said at most that nobody takes the spans.
const SILENCE: Duration = Duration::from_mins(10);

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
            dress(span);
            hide(span, &self.secrets);
        }
        let spans = batch.len();
        let result = self.otlp.export(batch).await;
        let now = Instant::now();
        let news =
            self.health.lock().unwrap_or_else(PoisonError::into_inner).after(result.is_ok(), spans, now);
        let collector = &self.collector;
        match news {
            Some(News::Lost(lost)) => {
                let reason = self.client.trouble();
                let reason =
                    reason.or_else(|| result.as_ref().err().map(ToString::to_string)).unwrap_or_default();
                let minutes = SILENCE.as_secs() / 60;
                warn!(
                    lost,
                    "cannot send traces to {collector}: {reason}; spans are lost until it takes them, {lost} by now, and \
                     nothing else is; this is said again in {minutes} minutes"
                );
            }
            Some(News::Again(lost)) => info!(lost, "traces go to {collector} again; {lost} spans were lost"),
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

/// Gives a span the name, the kind and the state that its fields tell: what makes spans knows nothing of OpenTelemetry.
fn dress(span: &mut SpanData) {
    let text = |key: &str| {
        let attribute = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
        attribute.map(|attribute| attribute.value.as_str().into_owned())
    };
    let name = match &*span.name {
        "run" => text("job.name").map(|job| format!("run {job}")),
        "request" => text("http.request.method").map(|method| match text("http.route") {
            Some(route) => format!("{method} {route}"),
            None => method,
        }),
        "database" => text("db.operation.name").map(|operation| match text("db.collection.name") {
            Some(table) => format!("{operation} {table}"),
            None => operation,
        }),
        _ => None,
    };
    let kind = match &*span.name {
        "request" => Some(SpanKind::Server),
        "database" => Some(SpanKind::Client),
        _ => None,
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

/// Hides `secrets`.
fn hide(span: &mut SpanData, secrets: &Concealed) {
    hide_in(&mut span.name, secrets);
    if let Status::Error { description } = &mut span.status {
        hide_in(description, secrets);
    }
    hide_in_all(&mut span.attributes, secrets);
    for event in &mut span.events.events {
        hide_in(&mut event.name, secrets);
        hide_in_all(&mut event.attributes, secrets);
    }
}

fn hide_in(text: &mut Cow<'static, str>, secrets: &Concealed) {
    if let Cow::Owned(hidden) = secrets.apply(text) {
        *text = hidden.into();
    }
}

fn hide_in_all(attributes: &mut [KeyValue], secrets: &Concealed) {
    let hide_in_text = |text: &mut StringValue| {
        if let Cow::Owned(hidden) = secrets.apply(text.as_str()) {
            *text = hidden.into();
        }
    };
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => hide_in_text(text),
            Value::Array(Array::String(texts)) => texts.iter_mut().for_each(hide_in_text),
            _ => {}
        }
    }
}

/// How sending went lately.
#[derive(Debug, Default)]
struct Health {
    /// When it was said last that nobody takes the spans.
    told: Option<Instant>,
    /// The present trouble was told.
    is_known: bool,
    /// Since it was told last.
    lost: usize,
}

/// What is worth a line.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// So many spans were lost since the last line.
    Lost(usize),
    /// They are taken again, after so many more were lost.
    Again(usize),
}

impl Health {
    /// What there is to say after so many `spans` were sent, or not.
    fn after(&mut self, is_sent: bool, spans: usize, now: Instant) -> Option<News> {
        if is_sent {
            return std::mem::take(&mut self.is_known).then(|| News::Again(std::mem::take(&mut self.lost)));
        }
        self.lost += spans;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < SILENCE) {
            return None;
        }
        (self.told, self.is_known) = (Some(now), true);
        Some(News::Lost(std::mem::take(&mut self.lost)))
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
    fn a_span_is_named_by_its_fields() {
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
            dress(&mut span);
            assert_eq!((&*span.name, span.span_kind, span.status), expected);
        }
    }

    #[test]
    fn no_secret_is_in_a_span() {
        let mut span = span("s3cret", &[("url", "postgres://a:s3cret@b")]);
        span.status = Status::error("no s3cret");
        span.attributes.push(KeyValue::new("list", Value::Array(vec![StringValue::from("s3cret")].into())));
        let attributes = vec![KeyValue::new("text", "s3cret")];
        span.events.events.push(Event::new("said s3cret", std::time::UNIX_EPOCH, attributes, 0));
        hide(&mut span, &Concealed::new(["s3cret".to_owned()]));
        let shown = format!("{span:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(shown.matches("***").count(), 6, "{shown}");
    }

    #[test]
    fn trouble_is_told_once_in_ten_minutes_and_its_end_too() {
        let (mut health, start) = (Health::default(), Instant::now());
        for (minute, is_sent, spans, expected) in [
            (0, true, 1, None),
            (1, false, 2, Some(News::Lost(2))),
            (2, false, 3, None),
            (3, false, 4, None),
            (11, false, 5, Some(News::Lost(12))),
            (12, false, 6, None),
            (13, true, 1, Some(News::Again(6))),
            (14, true, 1, None),
            // It comes and goes: that is no news any more.
            (15, false, 1, None),
            (16, true, 1, None),
            (17, false, 1, None),
            (21, false, 1, Some(News::Lost(3))),
        ] {
            let news = health.after(is_sent, spans, start + Duration::from_mins(minute));
            assert_eq!(news, expected, "minute {minute}");
        }
    }
}
