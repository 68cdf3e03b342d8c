//! What the daemon says while it runs: a line for people or an object for queries, and never a secret.

pub mod concealed;
mod file;
#[cfg(unix)]
mod journald;
pub(crate) mod metered_store;
pub mod metrics;
pub(crate) mod otel;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::{self, Write as _},
    io, panic,
    path::Path,
    sync::{Arc, OnceLock},
};

use billing_scheduler::{Clock, SystemClock};
use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber, error,
    field::{Field, Visit},
    warn,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer, time::FormatTime,
        writer::BoxMakeWriter,
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::{SubscriberInitExt, TryInitError},
};

use crate::{
    config::log::{LogFilter, LogFormat},
    escape::escaped,
};
use concealed::Concealed;
use file::LogFile;
use otel::Listener;

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogOutput {
    /// Errors and warnings to the standard error, the rest to the standard output.
    #[default]
    Split,
    /// All to the standard error: the standard output is for a command's data.
    Stderr,
}

/// The file that takes what would go to the standard streams, once one is named.
static OWN_FILE: OnceLock<OwnFile> = OnceLock::new();

struct OwnFile {
    file: Arc<LogFile>,
    format: LogFormat,
    secrets: OnceLock<Concealed>,
}

impl OwnFile {
    /// For what `was_said` to a person already, and for what was not.
    fn sinks(&self, was_said: bool) -> Sinks {
        let stream = || {
            let file = Arc::clone(&self.file);
            BoxMakeWriter::new(move || ToFile { file: Arc::clone(&file), was_said })
        };
        let secrets = self.secrets.get().cloned().unwrap_or_default();
        Sinks { out: stream(), err: stream(), secrets }
    }
}

/// Lets the file at `path` take all events, and what [`note`] is given before there are any: a service of Windows has no standard
/// streams. If it cannot be written, the standard error says so, and takes them.
pub(crate) fn to_file(path: &Path, format: Option<LogFormat>) {
    let file = Arc::new(LogFile::new(path));
    // Where nobody reads the standard error, there is nobody to tell.
    let _ = file.begin(&mut io::stderr());
    let own = OwnFile { file, format: format.unwrap_or_default(), secrets: OnceLock::new() };
    assert!(OWN_FILE.set(own).is_ok(), "one command names one file");
}

/// Adds to the log's own file, if there is one, what is said to a person on the standard error as well.
pub(crate) fn note(level: Level, line: &str) {
    let Some(own) = OWN_FILE.get() else { return };
    let lines = lines(own.format, own.sinks(true), Arc::new(SystemClock));
    tracing::dispatcher::with_default(&dispatch(lines, &LogFilter::default(), None), || {
        if level == Level::WARN { warn!("{line}") } else { error!("{line}") }
    });
}

/// Sends all events of the process to its standard streams, to the file that `to_file` named, or to the journal where the standard
/// error leads there and no other format is asked for, without `secrets`. `listener`, if there is
/// one, hears of spans and events as well, whatever `filter` says of the log.
///
/// # Errors
/// It was done before.
pub fn init(
    format: Option<LogFormat>,
    output: LogOutput,
    filter: &LogFilter,
    secrets: &Concealed,
    listener: Option<Listener>,
) -> Result<(), TryInitError> {
    let out = match output {
        LogOutput::Split => BoxMakeWriter::new(io::stdout),
        LogOutput::Stderr => BoxMakeWriter::new(io::stderr),
    };
    let journal = if format.is_none() { journal(secrets) } else { None };
    let log = if let Some(own) = OWN_FILE.get() {
        let _ = own.secrets.set(secrets.clone());
        lines(own.format, own.sinks(false), Arc::new(SystemClock))
    } else if let Some(journal) = journal {
        journal.boxed()
    } else {
        let sinks = Sinks { out, err: BoxMakeWriter::new(io::stderr), secrets: secrets.clone() };
        lines(format.unwrap_or_default(), sinks, Arc::new(SystemClock))
    };
    dispatch(log, filter, listener).try_init()?;
    // What a library panics with may repeat what it was given, so panics take the way of all other lines.
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = if backtrace.status() == BacktraceStatus::Captured {
            backtrace.to_string()
        } else {
            String::new()
        };
        error!(target: "billing_daemon::panic", backtrace, "{panic}");
    }));
    Ok(())
}

#[cfg(unix)]
fn journal(secrets: &Concealed) -> Option<journald::Journal> {
    journald::Journal::of_this_process(secrets)
}

#[cfg(not(unix))]
fn journal(_: &Concealed) -> Option<tracing_subscriber::layer::Identity> {
    None
}

/// The log, as far as `filter` lets it, and whoever listens beside it.
fn dispatch(log: Listener, filter: &LogFilter, listener: Option<Listener>) -> Dispatch {
    let log = log.with_filter(EnvFilter::new(filter.as_str())).boxed();
    Dispatch::new(Registry::default().with([Some(log), listener].into_iter().flatten().collect::<Vec<_>>()))
}

fn lines(format: LogFormat, sinks: Sinks, clock: Arc<dyn Clock>) -> Listener {
    let time = Time(clock);
    // A failure to write a line must not end in a second one, which could panic: the reader of the stream may be gone.
    let layer = tracing_subscriber::fmt::layer().with_writer(sinks).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.event_format(Line(time)).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_timer(time).boxed(),
    }
}

/// The time of an event, as the original wrote it.
struct Time(Arc<dyn Clock>);

impl FormatTime for Time {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", self.0.now().format("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

/// The original's line.
struct Line(Time);

impl<S, N> FormatEvent<S, N> for Line
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
        let mut sentence = Sentence::default();
        event.record(&mut sentence);
        write!(writer, "[")?;
        self.0.format_time(&mut writer)?;
        write!(writer, "] [{}] ", event.metadata().level())?;
        // A name from the database with a line break in it must not look like a line of the log.
        writeln!(writer, "{}", escaped(sentence.text()))
    }
}

/// An event's message, or its fields if it has none.
#[derive(Default)]
struct Sentence {
    message: String,
    fields: String,
}

impl Sentence {
    fn text(&self) -> &str {
        if self.message.is_empty() { self.fields.trim_start() } else { &self.message }
    }
}

impl Visit for Sentence {
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

/// The streams, and the last look at what goes there.
struct Sinks {
    out: BoxMakeWriter,
    err: BoxMakeWriter,
    secrets: Concealed,
}

impl<'a> MakeWriter<'a> for Sinks {
    type Writer = Masking<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Masking { sink: self.err.make_writer(), secrets: &self.secrets }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        let stream = if *meta.level() <= Level::WARN { &self.err } else { &self.out };
        Masking { sink: stream.make_writer(), secrets: &self.secrets }
    }
}

/// The log's own file, which gets a whole event at once.
struct ToFile {
    file: Arc<LogFile>,
    was_said: bool,
}

impl io::Write for ToFile {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.file.add(event, self.was_said, &mut io::stderr())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Masking<'a> {
    sink: Box<dyn io::Write + 'a>,
    secrets: &'a Concealed,
}

impl io::Write for Masking<'_> {
    /// Gets a whole event at once, so that no secret is cut in two.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write_all(self.secrets.apply(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use billing_scheduler::ManualClock;
    use chrono::{TimeZone, Utc};
    use tracing::{debug, info, info_span, trace};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
        }
    }

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `say` writes to the standard output and to the standard error.
    fn written(format: LogFormat, filter: &str, say: impl FnOnce()) -> (String, String) {
        let (out, err) = (Shared::default(), Shared::default());
        let (o, e) = (out.clone(), err.clone());
        let sinks = Sinks {
            out: BoxMakeWriter::new(move || o.clone()),
            err: BoxMakeWriter::new(move || e.clone()),
            secrets: Concealed::new(["s3cret".to_owned(), "abc".to_owned()]),
        };
        let at = Utc.with_ymd_and_hms(2025, 1, 15, 10, 30, 0).single().expect("no ambiguity in UTC");
        let filter = filter.parse().expect("a filter");
        let lines = lines(format, sinks, Arc::new(ManualClock::at(at)));
        tracing::dispatcher::with_default(&dispatch(lines, &filter, None), say);
        (out.text(), err.text())
    }

    fn every_level() {
        error!("one");
        warn!("two");
        info!(job.name = "billing", items = 3, "three");
        debug!("four");
        trace!("five");
        warn!(target: "sqlx::query", "six");
        info!(target: "sqlx::query", "seven");
        debug!(target: "sea_orm::driver", "eight");
    }

    #[test]
    fn a_line_reads_as_the_originals_and_goes_to_its_stream() {
        let (out, err) = written(LogFormat::Text, "trace", every_level);
        assert_eq!(
            out,
            "[2025-01-15T10:30:00.000Z] [INFO] three\n\
             [2025-01-15T10:30:00.000Z] [DEBUG] four\n\
             [2025-01-15T10:30:00.000Z] [TRACE] five\n"
        );
        assert_eq!(
            err,
            "[2025-01-15T10:30:00.000Z] [ERROR] one\n\
             [2025-01-15T10:30:00.000Z] [WARN] two\n\
             [2025-01-15T10:30:00.000Z] [WARN] six\n"
        );
    }

    #[test]
    fn a_filter_lets_through_what_it_says_and_statements_only_by_name() {
        for (filter, passing) in [
            ("error", "one"),
            ("WARN", "one two six"),
            ("info", "one two three six"),
            ("billing_daemon=debug", "one two three four six"),
            ("Debug, sqlx=info", "one two three four six seven"),
            ("error,sea_orm=debug", "one eight"),
            ("billing_daemon=off", "six"),
        ] {
            let (out, err) = written(LogFormat::Text, filter, every_level);
            let lines = format!("{out}{err}");
            for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"] {
                let expected = passing.split(' ').any(|passing| passing == word);
                assert_eq!(lines.contains(word), expected, "`{word}` with the filter {filter}");
            }
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for (text, reason) in [
            ("verbose", "unknown log level `verbose`, use error, warn, info, debug or trace"),
            ("inof", "unknown log level `inof`, did you mean `info`?"),
            ("sqlx=debug,warning", "unknown log level `warning`, use error, warn, info, debug or trace"),
            (
                "sqlx=loud",
                "cannot read the log filter `sqlx=loud`: write a level, or target=level pairs such as billing_daemon=debug,sqlx=warn",
            ),
        ] {
            assert_eq!(text.parse::<LogFilter>().expect_err(text).to_string(), reason);
        }
    }

    #[test]
    fn json_has_the_fields_of_the_event_and_of_its_spans() {
        let (out, _) = written(LogFormat::Json, "info", || {
            let _run = info_span!("run", job.name = "billing").entered();
            info!(items = 3, "charged {} instances", 3);
        });
        let object: serde_json::Value = serde_json::from_str(&out).expect("one object");
        assert_eq!(
            object,
            serde_json::json!({
                "timestamp": "2025-01-15T10:30:00.000Z",
                "level": "INFO",
                "message": "charged 3 instances",
                "items": 3,
                "target": "billing_daemon::telemetry::tests",
                "spans": [{ "name": "run", "job.name": "billing" }],
            })
        );
    }

    #[test]
    fn no_secret_is_written_in_either_format() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (out, err) = written(format, "info", || {
                let _span = info_span!("connect", url = "postgres://ada:s3cret@db").entered();
                info!(password = "s3cret", "the password is s3cret");
                error!("s3cret is wrong; abc is too short to be hidden");
            });
            assert!(!out.contains("s3cret") && !err.contains("s3cret"), "{out}{err}");
            assert!(out.contains("the password is ***") && err.contains("abc"), "{out}{err}");
        }
    }

    #[test]
    fn one_event_is_one_line_and_one_without_a_message_shows_its_fields() {
        let (out, _) = written(LogFormat::Text, "info", || {
            info!("label `a\n[2025-01-15T10:30:00.000Z] [ERROR] b\u{1b}[2J`");
            info!(rows = 3, table = "wallets");
        });
        assert_eq!(
            out,
            "[2025-01-15T10:30:00.000Z] [INFO] label `a\\n[2025-01-15T10:30:00.000Z] [ERROR] b\\u{1b}[2J`\n\
             [2025-01-15T10:30:00.000Z] [INFO] rows=3 table=wallets\n"
        );
    }
}
