//! How an event is written: as a line for people, in the format of the panel's original daemon, or as a JSON object.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use billing_scheduler::Clock;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer as _, Registry,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer, time::FormatTime},
    registry::LookupSpan,
};

use super::Listener;
use crate::{config::log::LogFormat, escape::escaped};

/// Returns the layer that writes events to `writer`.
pub(super) fn text_layer<W>(format: LogFormat, writer: W, clock: Arc<dyn Clock>) -> Listener
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let time = Time(clock);
    // An error about a line that cannot be written would go to the standard error, which may be closed, and that panics.
    let layer =
        tracing_subscriber::fmt::Layer::<Registry>::default().with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.event_format(LineFormatter(time)).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_timer(time).boxed(),
    }
}

/// The time of an event, in UTC with milliseconds.
struct Time(Arc<dyn Clock>);

impl FormatTime for Time {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", self.0.now().format("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

/// `[time] [LEVEL] message`.
struct LineFormatter(Time);

impl<S, N> FormatEvent<S, N> for LineFormatter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let message = MessageVisitor::of(event);
        write!(writer, "[")?;
        self.0.format_time(&mut writer)?;
        // A name from the database with a line break in it must not look like a line of the log.
        writeln!(writer, "] [{}] {}", event.metadata().level(), escaped(message.text()))
    }
}

/// An event's message, or its fields if it has none.
#[derive(Default)]
pub(super) struct MessageVisitor {
    message: String,
    fields: String,
}

impl MessageVisitor {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut visitor = Self::default();
        event.record(&mut visitor);
        visitor
    }

    pub(super) fn text(&self) -> &str {
        if self.message.is_empty() { self.fields.trim_start() } else { &self.message }
    }
}

impl Visit for MessageVisitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
