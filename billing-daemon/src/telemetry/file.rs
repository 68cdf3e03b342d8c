//! The log file of a daemon whose standard streams nothing reads: rotated when it is full, with a limited number of old files.
//! ADR 20 explains why no crate does this.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

const MAX_BYTES: u64 = 10 << 20;
/// How many rotated files are kept.
const MAX_ROTATED: u32 = 9;

/// The current file, whose name stays the same. Rotated files have a number after it, the newest `.1`.
pub(super) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Unset until the file could be opened.
    file: Option<File>,
    /// The bytes in the file, or since the last rotation that failed.
    size: u64,
    /// The last event could not be written, and the reason was reported.
    failed: bool,
}

/// Writes whole events to the file, or to the standard error while that fails.
pub(super) struct FileWriter {
    pub(super) file: Arc<LogFile>,
    /// The standard error shows the events already.
    pub(super) reported: bool,
}

impl Write for FileWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.file.append(event, self.reported, &mut io::stderr())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), max_bytes: MAX_BYTES, state: Mutex::default() }
    }

    /// Opens or creates the file, or writes to `stderr` why it cannot.
    pub(super) fn open_or_report(&self, stderr: &mut dyn Write) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.open(&mut state).map(drop).or_else(|error| self.report(&mut state, &error, stderr))
    }

    /// Appends one event as a whole. If that fails, `stderr` receives the reason once and each event that is not `reported`.
    fn append(&self, event: &[u8], reported: bool, stderr: &mut dyn Write) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = self.write(&mut state, event, stderr) else {
            state.failed = false;
            return Ok(());
        };
        self.report(&mut state, &error, stderr)?;
        if reported { Ok(()) } else { stderr.write_all(event) }
    }

    fn write(&self, state: &mut State, event: &[u8], stderr: &mut dyn Write) -> io::Result<()> {
        self.open(state)?;
        let length = event.len() as u64;
        if state.size > 0 && state.size + length > self.max_bytes {
            self.rotate(state, stderr)?;
        }
        // A full disk may have cut the previous event, so this one starts on a new line.
        let event = if state.failed { &[b"\n", event].concat() } else { event };
        self.open(state)?.write_all(event)?;
        state.size += length;
        Ok(())
    }

    fn open<'a>(&self, state: &'a mut State) -> io::Result<&'a mut File> {
        let file = if let Some(file) = state.file.take() {
            file
        } else {
            let file = open(&self.path)?;
            state.size = file.metadata()?.len();
            file
        };
        Ok(state.file.insert(file))
    }

    fn report(&self, state: &mut State, error: &io::Error, stderr: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut state.failed, true) {
            return Ok(());
        }
        writeln!(
            stderr,
            "cannot write the log {}: {error}; the standard error receives the log until it can be written\n\
             help: create its folder, permit this user to write there, free disk space, or name another file with --log-file",
            self.path.display()
        )
    }

    /// Starts a new file. If that fails, the current one grows, and the next attempt is made after as many bytes again.
    fn rotate(&self, state: &mut State, stderr: &mut dyn Write) -> io::Result<()> {
        state.size = 0;
        let rename = |from: &Path, to: u32| fs::rename(from, self.rotated(to));
        let rotated = (1..MAX_ROTATED).rev().try_for_each(|number| {
            let renamed = rename(&self.rotated(number), number + 1);
            renamed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        });
        match rotated.and_then(|()| rename(&self.path, 1)).and_then(|()| open(&self.path)) {
            Ok(file) => state.file = Some(file),
            Err(error) => {
                writeln!(stderr, "cannot rotate the log {}, which grows: {error}", self.path.display())?;
            }
        }
        Ok(())
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Opens a file that other users cannot read: it contains the names of customers.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(path: &Path, max_bytes: u64) -> LogFile {
        LogFile { max_bytes, ..LogFile::new(path) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let files = fs::read_dir(folder).expect("a folder");
        let name = |file: io::Result<fs::DirEntry>| file.expect("a file").file_name();
        let mut names: Vec<_> = files.map(|file| name(file).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn full_file_is_rotated() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        fs::write(&path, "before\n").expect("written");
        let mut stderr = Vec::new();
        let log = limited(&path, 20);
        let text = |path: &Path| fs::read_to_string(path).expect("text");
        log.append(b"0: appended\n", false, &mut stderr).expect("written");
        assert_eq!(text(&path), "before\n0: appended\n");
        for number in 1..=15 {
            log.append(format!("{number}: one line\n").as_bytes(), false, &mut stderr).expect("written");
        }
        assert_eq!(text(&path), "15: one line\n");
        let kept: Vec<_> = (1..=MAX_ROTATED).map(|number| text(&log.rotated(number))).collect();
        let expected: Vec<_> = (6..=14).rev().map(|number| format!("{number}: one line\n")).collect();
        assert_eq!(kept, expected);
        assert_eq!(names(folder.path()).len(), 1 + MAX_ROTATED as usize, "{:?}", names(folder.path()));
        let whole = "x".repeat(50) + "\n";
        log.append(whole.as_bytes(), false, &mut stderr).expect("written");
        assert_eq!(text(&path), whole, "an event is never cut in two");
        drop(log);
        limited(&path, 20).append(b"again\n", false, &mut stderr).expect("written");
        assert_eq!(text(&path), "again\n", "opening reads the size");
        assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    }

    #[test]
    fn file_that_cannot_be_rotated_grows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut stderr = Vec::new();
        let log = limited(&path, 10);
        // Folders that are not empty are where the oldest files should go.
        for number in [MAX_ROTATED - 1, MAX_ROTATED] {
            fs::create_dir_all(log.rotated(number).join("x")).expect("a folder");
        }
        for number in 1..=4 {
            log.append(format!("line {number}\n").as_bytes(), false, &mut stderr).expect("written");
        }
        let text = fs::read_to_string(&path).expect("text");
        assert_eq!(text, "line 1\nline 2\nline 3\nline 4\n");
        let text = String::from_utf8(stderr).expect("text");
        assert!(text.lines().all(|line| line.contains("cannot rotate the log")), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn unwritable_file_falls_back_to_stderr() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logs/log");
        let log = LogFile::new(&path);
        let mut stderr = Vec::new();
        log.open_or_report(&mut stderr).expect("reported");
        log.append(b"one\n", false, &mut stderr).expect("reported");
        log.append(b"two\n", true, &mut stderr).expect("reported");
        log.append(b"three\n", false, &mut stderr).expect("reported");
        let text = String::from_utf8(stderr.split_off(0)).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2..], ["one", "three"]);
        for part in ["logs/log: No such file", "help: create its folder", "free disk space", "--log-file"] {
            assert!(lines[..2].concat().contains(part), "{part} in {text}");
        }
        fs::create_dir(folder.path().join("logs")).expect("a folder");
        log.append(b"four\n", false, &mut stderr).expect("written");
        log.append(b"five\n", false, &mut stderr).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("text"), "\nfour\nfive\n");
        assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_reported_once() {
        let log = LogFile::new(Path::new("/dev/full"));
        let mut stderr = Vec::new();
        log.open_or_report(&mut stderr).expect("it can be opened");
        assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
        for line in ["one\n", "two\n"] {
            log.append(line.as_bytes(), false, &mut stderr).expect("reported");
        }
        let text = String::from_utf8(stderr).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("/dev/full: No space left on device"), "{text}");
        assert_eq!(lines[2..], ["one", "two"]);
    }
}
