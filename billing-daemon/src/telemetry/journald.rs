//! Sends each event to the journal of systemd with secrets masked in every field, which `tracing-journald` cannot do: it takes the
//! values from the event itself. The level and the fields serve queries: `journalctl -u billing-daemon -p warning`,
//! `journalctl JOB_NAME=billing`. The protocol is systemd's: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::{
    env, fmt,
    io::{self, Write as _},
    os::{fd::AsFd, unix::net::UnixDatagram},
    path::Path,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, Scope},
};

use super::{format::MessageVisitor, mask::Concealed};
use crate::escape::escaped;

const SOCKET: &str = "/run/systemd/journal/socket";
/// Names that the journal or this module gives a meaning; a field with such a name gets a prefix.
const RESERVED: [&str; 6] = ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "TARGET", "CODE_FILE", "CODE_LINE"];
/// The journal discards a field with a longer name.
const MAX_NAME_LENGTH: usize = 64;

pub(super) struct Journal {
    socket: UnixDatagram,
    secrets: Concealed,
}

impl Journal {
    /// Connects to the journal if the standard error of this process leads there.
    pub(super) fn from_process(secrets: &Concealed) -> Option<Self> {
        let stream = env::var("JOURNAL_STREAM").ok()?;
        if leads_to(io::stderr(), &stream) { Self::at(Path::new(SOCKET), secrets).ok() } else { None }
    }

    fn at(socket: &Path, secrets: &Concealed) -> io::Result<Self> {
        let unconnected = UnixDatagram::unbound()?;
        unconnected.connect(socket)?;
        Ok(Self { socket: unconnected, secrets: secrets.clone() })
    }

    /// Returns the line of an event for the standard error, which the journal reads as well.
    fn line(&self, level: Level, message: &str) -> String {
        format!("<{}>{}", priority(level), escaped(&self.secrets.apply(message)))
    }
}

/// Whether `file` has the device and inode numbers in `stream`: the standard error may have been redirected since the start.
fn leads_to(file: impl AsFd, stream: &str) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The fields of an event or a span in the format of the journal.
struct JournalEntry<'a> {
    bytes: Vec<u8>,
    secrets: &'a Concealed,
}

/// The encoded fields of a span, kept for the events in it.
struct SpanFields(Vec<u8>);

impl JournalEntry<'_> {
    fn put(&mut self, name: &str, value: &str) {
        let value = self.secrets.apply(value);
        self.bytes.extend(name.as_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend((value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

impl Visit for JournalEntry<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.put(&name(field.name()), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Returns the name of a field in the journal: `job.name` is `JOB_NAME`.
fn name(field: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let mut name: String = field.chars().map(upper).collect();
    if !name.starts_with(|c: char| c.is_ascii_uppercase()) || RESERVED.contains(&name.as_str()) {
        name.insert_str(0, "FIELD_");
    }
    name.truncate(MAX_NAME_LENGTH);
    name
}

/// Returns the priority of syslog.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut entry = JournalEntry { bytes: Vec::new(), secrets: &self.secrets };
        attributes.record(&mut entry);
        if let Some(span) = ctx.span(id) {
            span.extensions_mut().insert(SpanFields(entry.bytes));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let mut entry = JournalEntry { bytes: Vec::new(), secrets: &self.secrets };
        values.record(&mut entry);
        if let Some(span) = ctx.span(id)
            && let Some(SpanFields(bytes)) = span.extensions_mut().get_mut()
        {
            bytes.extend(entry.bytes);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let message = MessageVisitor::of(event);
        let meta = event.metadata();
        let mut entry = JournalEntry { bytes: Vec::new(), secrets: &self.secrets };
        entry.put("MESSAGE", message.text());
        entry.put("PRIORITY", priority(*meta.level()));
        entry.put("SYSLOG_IDENTIFIER", "billing-daemon");
        entry.put("TARGET", meta.target());
        if let (Some(file), Some(line)) = (meta.file(), meta.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", &line.to_string());
        }
        for span in ctx.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(SpanFields(bytes)) = span.extensions().get() {
                entry.bytes.extend(bytes);
            }
        }
        event.record(&mut entry);
        if self.socket.send(&entry.bytes).is_err() {
            // The journal restarts, or the event is too large: the standard error leads there as well and accepts the message. If
            // that fails too, the event is lost.
            let _ = writeln!(io::stderr(), "{}", self.line(*meta.level(), message.text()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs::File};

    use tracing::{info, info_span, warn};
    use tracing_subscriber::{Registry, layer::SubscriberExt};

    use super::*;

    /// Returns the entries that `work` sends to the journal.
    fn sent(work: impl FnOnce()) -> Vec<HashMap<String, String>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        let journal =
            Journal::at(&path, &Concealed::new(["s3cret".to_owned()])).expect("the socket is bound");
        tracing::subscriber::with_default(Registry::default().with(journal), work);
        let mut buffer = vec![0; 1 << 16];
        let mut entries = Vec::new();
        while let Ok(length) = socket.recv(&mut buffer) {
            entries.push(fields(&buffer[..length]));
        }
        entries
    }

    fn fields(mut bytes: &[u8]) -> HashMap<String, String> {
        let mut fields = HashMap::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        while let Some(end) = bytes.iter().position(|byte| *byte == b'=' || *byte == b'\n') {
            let (name, rest) = (text(&bytes[..end]), &bytes[end + 1..]);
            let (value, rest) = if bytes[end] == b'=' {
                rest.split_at(rest.iter().position(|byte| *byte == b'\n').expect("an end"))
            } else {
                let (length, rest) = rest.split_first_chunk().expect("a length");
                rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length"))
            };
            assert_eq!(fields.insert(name, text(value)), None, "each field once");
            bytes = &rest[1..];
        }
        fields
    }

    #[test]
    fn event_has_its_level_and_all_fields() {
        let entries = sent(|| {
            let span = info_span!("run", job.name = "billing", attempt = tracing::field::Empty).entered();
            span.record("attempt", 2);
            warn!(items = 3, message_id = "x", "charged 3\nPRIORITY=0\ninstances");
            info!(target: "a::b", priority = "high", _own = true, "with s3cret");
        });
        let [warning, info] = &entries[..] else { panic!("{entries:?}") };
        for (name, value) in [
            ("MESSAGE", "charged 3\nPRIORITY=0\ninstances"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "billing-daemon"),
            ("JOB_NAME", "billing"),
            ("ATTEMPT", "2"),
            ("ITEMS", "3"),
        ] {
            assert_eq!(warning.get(name).map(String::as_str), Some(value), "{name} in {warning:?}");
        }
        for (name, value) in [
            ("MESSAGE", "with ***"),
            ("PRIORITY", "6"),
            ("TARGET", "a::b"),
            ("FIELD_PRIORITY", "high"),
            ("FIELD__OWN", "true"),
            ("JOB_NAME", "billing"),
        ] {
            assert_eq!(info.get(name).map(String::as_str), Some(value), "{name} in {info:?}");
        }
    }

    #[test]
    fn line_for_stream_is_masked_and_escaped() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let _socket = UnixDatagram::bind(&path).expect("a socket");
        let journal = Journal::at(&path, &Concealed::new(["s3cret".to_owned()])).expect("a journal");
        let line = journal.line(Level::WARN, "`Gr\u{fc}n` s3cret\n<0>forged\u{202e}");
        assert_eq!(line, "<4>`Gr\u{fc}n` ***\\n<0>forged\\u{202e}");
    }

    #[test]
    fn journal_is_the_named_file() {
        let (one, other) = (tempfile::tempfile().expect("a file"), File::open("/dev/null").expect("a file"));
        let stat = rustix::fs::fstat(&one).expect("a file");
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(leads_to(&one, &stream));
        assert!(!leads_to(&other, &stream));
        assert!(!leads_to(&one, ""));
    }

    #[test]
    fn field_names_are_valid_for_journal() {
        for (field, expected) in [
            ("job.name", "JOB_NAME"),
            ("_pid", "FIELD__PID"),
            ("1st", "FIELD_1ST"),
            ("message", "FIELD_MESSAGE"),
        ] {
            assert_eq!(name(field), expected);
        }
        assert_eq!(name(&"a".repeat(100)).len(), MAX_NAME_LENGTH);
    }
}
