//! The log, the traces and the metrics of the process: each masks secrets.

mod file;
mod format;
#[cfg(unix)]
mod journald;
pub mod mask;
pub(crate) mod metered_store;
pub mod metrics;
pub(crate) mod otel;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io, panic,
    path::Path,
    sync::{Arc, OnceLock},
};

use billing_scheduler::SystemClock;
use tracing::{Dispatch, Level, Metadata, error, warn};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{MakeWriter, writer::BoxMakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::config::log::{LogFilter, LogFormat};
use file::{FileWriter, LogFile};
use format::text_layer;
use mask::{Concealed, MaskingWriter};

/// A layer that receives events and spans.
pub(crate) type Listener = Box<dyn Layer<Registry> + Send + Sync>;

/// The file that replaces the standard streams of the daemon, if there is one.
static LOG_FILE: OnceLock<FileLog> = OnceLock::new();

struct FileLog {
    file: Arc<LogFile>,
    format: LogFormat,
    secrets: Concealed,
}

impl FileLog {
    /// Returns the layer for events that are on the standard error already if they were `reported`.
    fn layer(&self, reported: bool) -> Listener {
        let stream = || {
            let file = Arc::clone(&self.file);
            BoxMakeWriter::new(move || FileWriter { file: Arc::clone(&file), reported })
        };
        let sinks = Sinks { out: stream(), err: stream(), secrets: self.secrets.clone() };
        text_layer(self.format, sinks, Arc::new(SystemClock))
    }
}

/// Makes the file at `path` receive the daemon's log, for a process whose standard streams nothing reads, such as a Windows
/// service. If the file cannot be written, the standard error receives the log and the reason.
pub(crate) fn log_to_file(path: &Path, format: Option<LogFormat>, secrets: &Concealed) {
    let file = Arc::new(LogFile::new(path));
    // Where the standard error is closed, there is no other place for the reason.
    let _ = file.open_or_report(&mut io::stderr());
    let log = FileLog { file, format: format.unwrap_or_default(), secrets: secrets.clone() };
    assert!(LOG_FILE.set(log).is_ok(), "one command has one log file");
}

/// Copies a message that the standard error shows to the log file, if there is one. The help is part of its line.
pub(crate) fn copy_to_log_file(level: Level, line: &str) {
    let Some(log) = LOG_FILE.get() else { return };
    let line = line.replace("\nhelp: ", "; help: ");
    tracing::dispatcher::with_default(&dispatch(log.layer(true), &LogFilter::default(), None), || {
        if level == Level::WARN { warn!("{line}") } else { error!("{line}") }
    });
}

/// Sends all events of a command to the standard error: its standard output contains data.
///
/// # Errors
/// The log is initialised already.
pub fn init_command(
    format: Option<LogFormat>,
    filter: &LogFilter,
    secrets: &Concealed,
) -> Result<(), TryInitError> {
    init(stream_log(format, BoxMakeWriter::new(io::stderr), secrets), filter, None)
}

/// Sends all events of the daemon to the file of [`log_to_file`], or else to the journal or the standard streams. `listener`
/// receives spans and events as well, whatever `filter` excludes from the log.
///
/// # Errors
/// The log is initialised already.
pub(crate) fn init_daemon(
    format: Option<LogFormat>,
    filter: &LogFilter,
    secrets: &Concealed,
    listener: Option<Listener>,
) -> Result<(), TryInitError> {
    init(daemon_log(format, secrets), filter, listener)
}

/// Calls `work` with the daemon's log for its thread, before [`init_daemon`].
pub(crate) fn with_log<T>(format: Option<LogFormat>, secrets: &Concealed, work: impl FnOnce() -> T) -> T {
    let log = dispatch(daemon_log(format, secrets), &LogFilter::default(), None);
    tracing::dispatcher::with_default(&log, work)
}

fn init(log: Listener, filter: &LogFilter, listener: Option<Listener>) -> Result<(), TryInitError> {
    dispatch(log, filter, listener).try_init()?;
    // A library may panic with a message that contains a secret, so panics are masked as all other events are.
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let is_captured = backtrace.status() == BacktraceStatus::Captured;
        let backtrace = if is_captured { backtrace.to_string() } else { String::new() };
        error!(target: "billing_daemon::panic", backtrace, "{panic}");
    }));
    Ok(())
}

/// Errors and warnings go to the standard error, the rest to the standard output.
fn daemon_log(format: Option<LogFormat>, secrets: &Concealed) -> Listener {
    match LOG_FILE.get() {
        Some(log) => log.layer(false),
        None => stream_log(format, BoxMakeWriter::new(io::stdout), secrets),
    }
}

/// Returns the journal if the standard error leads there and no format is requested.
fn stream_log(format: Option<LogFormat>, out: BoxMakeWriter, secrets: &Concealed) -> Listener {
    #[cfg(unix)]
    if format.is_none()
        && let Some(journal) = journald::Journal::from_process(secrets)
    {
        return journal.boxed();
    }
    let sinks = Sinks { out, err: BoxMakeWriter::new(io::stderr), secrets: secrets.clone() };
    text_layer(format.unwrap_or_default(), sinks, Arc::new(SystemClock))
}

/// The log, filtered, and `listener`.
fn dispatch(log: Listener, filter: &LogFilter, listener: Option<Listener>) -> Dispatch {
    let log = log.with_filter(EnvFilter::new(filter.as_str())).boxed();
    Dispatch::new(Registry::default().with([Some(log), listener].into_iter().flatten().collect::<Vec<_>>()))
}

/// The streams of the log, which mask secrets.
struct Sinks {
    out: BoxMakeWriter,
    err: BoxMakeWriter,
    secrets: Concealed,
}

impl<'a> MakeWriter<'a> for Sinks {
    type Writer = MaskingWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        MaskingWriter { sink: self.err.make_writer(), secrets: &self.secrets }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        let stream = if *meta.level() <= Level::WARN { &self.err } else { &self.out };
        MaskingWriter { sink: stream.make_writer(), secrets: &self.secrets }
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
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl SharedBuffer {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
        }
    }

    impl io::Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns what `work` logs to the standard output and to the standard error.
    fn written(format: LogFormat, filter: &str, work: impl FnOnce()) -> (String, String) {
        let (out, err) = (SharedBuffer::default(), SharedBuffer::default());
        let (o, e) = (out.clone(), err.clone());
        let sinks = Sinks {
            out: BoxMakeWriter::new(move || o.clone()),
            err: BoxMakeWriter::new(move || e.clone()),
            secrets: Concealed::new(["s3cret".to_owned(), "abc".to_owned()]),
        };
        let at = Utc.with_ymd_and_hms(2025, 1, 15, 10, 30, 0).single().expect("no ambiguity in UTC");
        let filter = filter.parse().expect("a filter");
        let log = text_layer(format, sinks, Arc::new(ManualClock::at(at)));
        tracing::dispatcher::with_default(&dispatch(log, &filter, None), work);
        (out.text(), err.text())
    }

    fn log_every_level() {
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
    fn text_lines_go_to_their_streams() {
        let (out, err) = written(LogFormat::Text, "trace", log_every_level);
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
    fn filter_passes_statements_only_by_name() {
        for (filter, passing) in [
            ("error", "one"),
            ("WARN", "one two six"),
            ("info", "one two three six"),
            ("billing_daemon=debug", "one two three four six"),
            ("Debug, sqlx=info", "one two three four six seven"),
            ("error,sea_orm=debug", "one eight"),
            ("billing_daemon=off", "six"),
        ] {
            let (out, err) = written(LogFormat::Text, filter, log_every_level);
            let lines = format!("{out}{err}");
            for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"] {
                let expected = passing.split(' ').any(|passing| passing == word);
                assert_eq!(lines.contains(word), expected, "`{word}` with the filter {filter}");
            }
        }
    }

    #[test]
    fn json_contains_event_and_span_fields() {
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
    fn secrets_are_masked_in_each_format() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (out, err) = written(format, "info", || {
                let _span = info_span!("connect", url = "postgres://ada:s3cret@db").entered();
                info!(password = "s3cret", "the password is s3cret");
                error!("s3cret is wrong; abc is too short to be masked");
            });
            assert!(!out.contains("s3cret") && !err.contains("s3cret"), "{out}{err}");
            assert!(out.contains("the password is ***") && err.contains("abc"), "{out}{err}");
        }
    }

    #[test]
    fn event_is_one_escaped_line() {
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
