//! A log in a file of our own, where nobody else keeps one: put aside when it is full, and the oldest of those removed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// So many bytes are one file.
const FULL: u64 = 10 << 20;
/// So many files are kept beside the one that is written.
const KEPT: u32 = 9;

/// The file, whose name stays the same: what was put aside has a number after it, the newest `.1`.
pub(super) struct LogFile {
    path: PathBuf,
    full: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None until it could be opened.
    file: Option<File>,
    /// What was written since the file was put aside, or since that was tried last.
    size: u64,
    /// Nothing could be written, and that was said.
    failed: bool,
}

impl LogFile {
    /// The one at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self::with_limit(path, FULL)
    }

    fn with_limit(path: &Path, full: u64) -> Self {
        Self { path: path.to_owned(), full, state: Mutex::default() }
    }

    /// Goes on with the file, or begins it, and says to `stderr` what to do if that cannot be done now.
    pub(super) fn begin(&self, stderr: &mut dyn Write) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.opened(&mut state).map(drop).or_else(|error| self.failed(&mut state, &error, stderr))
    }

    /// Adds one event, whole. If that cannot be done, it is said to `stderr`, unless it was before: a log that cannot be written
    /// ends nobody's work.
    pub(super) fn add(&self, event: &[u8], was_said: bool, stderr: &mut dyn Write) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.write(&mut state, event, stderr) {
            Ok(()) => {
                state.failed = false;
                Ok(())
            }
            Err(error) => {
                self.failed(&mut state, &error, stderr)?;
                if was_said { Ok(()) } else { stderr.write_all(event) }
            }
        }
    }

    fn write(&self, state: &mut State, event: &[u8], stderr: &mut dyn Write) -> io::Result<()> {
        self.opened(state)?;
        let length = u64::try_from(event.len()).unwrap_or(u64::MAX);
        if state.size > 0 && state.size.saturating_add(length) > self.full {
            self.put_aside(state, stderr)?;
        }
        // A disk that became full may have cut the event before: this one begins a line of its own.
        let event = if state.failed { &[b"\n", event].concat() } else { event };
        self.opened(state)?.write_all(event)?;
        state.size = state.size.saturating_add(length);
        Ok(())
    }

    fn opened<'a>(&self, state: &'a mut State) -> io::Result<&'a mut File> {
        if state.file.is_none() {
            let file = append(&self.path)?;
            state.size = file.metadata()?.len();
            state.file = Some(file);
        }
        Ok(state.file.as_mut().expect("it was opened if it was not"))
    }

    /// Says what to do, once.
    fn failed(&self, state: &mut State, error: &io::Error, stderr: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut state.failed, true) {
            return Ok(());
        }
        writeln!(
            stderr,
            "cannot write the log {}: {error}; events are said here instead, until the file can be written: see that its folder is \
             there, that this user may write there, and that the disk is not full, or name another file with --log-file",
            self.path.display()
        )
    }

    /// Begins another file. If that fails, the full one goes on, and it is tried again when as much has been written again.
    fn put_aside(&self, state: &mut State, stderr: &mut dyn Write) -> io::Result<()> {
        state.size = 0;
        let renamed = (1..KEPT).rev().try_for_each(|number| {
            match fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        });
        let other = renamed
            .and_then(|()| fs::rename(&self.path, numbered(&self.path, 1)))
            .and_then(|()| append(&self.path));
        match other {
            Ok(file) => {
                state.file = Some(file);
                Ok(())
            }
            Err(error) => {
                let path = self.path.display();
                writeln!(stderr, "the log {path} is full and cannot be put aside, so it grows: {error}")
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}

/// The name of a file that was put aside.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let files = fs::read_dir(folder).expect("a folder");
        let name = |file: io::Result<fs::DirEntry>| file.expect("a file").file_name();
        let mut names: Vec<_> = files.map(|file| name(file).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_put_aside_and_no_more_are_kept_than_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        fs::write(&path, "before\n").expect("written");
        let mut told = Vec::new();
        let log = LogFile::with_limit(&path, 20);
        let text = |path: &Path| fs::read_to_string(path).expect("text");
        log.add(b"0: goes on\n", false, &mut told).expect("written");
        assert_eq!(text(&path), "before\n0: goes on\n");
        for number in 1..=15 {
            log.add(format!("{number}: one line\n").as_bytes(), false, &mut told).expect("written");
        }
        assert_eq!(text(&path), "15: one line\n");
        let kept: Vec<_> = (1..=KEPT).map(|number| text(&numbered(&path, number))).collect();
        let expected: Vec<_> = (6..=14).rev().map(|number| format!("{number}: one line\n")).collect();
        assert_eq!(kept, expected);
        assert_eq!(names(folder.path()).len(), 1 + KEPT as usize, "{:?}", names(folder.path()));
        let whole = "x".repeat(50) + "\n";
        log.add(whole.as_bytes(), false, &mut told).expect("written");
        assert_eq!(text(&path), whole, "one event is never cut in two");
        drop(log);
        LogFile::with_limit(&path, 20).add(b"again\n", false, &mut told).expect("written");
        assert_eq!(text(&path), "again\n", "how full it is, is seen when it is opened");
        assert!(told.is_empty(), "{}", String::from_utf8_lossy(&told));
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut told = Vec::new();
        let log = LogFile::with_limit(&path, 10);
        // Folders that are not empty stand where the oldest files should go.
        for number in [KEPT - 1, KEPT] {
            fs::create_dir_all(numbered(&path, number).join("x")).expect("a folder");
        }
        for number in 1..=4 {
            log.add(format!("line {number}\n").as_bytes(), false, &mut told).expect("written");
        }
        let text = fs::read_to_string(&path).expect("text");
        assert_eq!(text, "line 1\nline 2\nline 3\nline 4\n");
        let told = String::from_utf8(told).expect("text");
        assert!(told.lines().all(|line| line.contains("cannot be put aside, so it grows")), "{told}");
        assert_eq!(told.lines().count(), 3, "{told}");
    }

    #[test]
    fn what_cannot_be_written_is_said_instead_with_what_to_do_until_it_can_be_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logs/log");
        let log = LogFile::new(&path);
        let mut told = Vec::new();
        log.begin(&mut told).expect("told");
        log.add(b"one\n", false, &mut told).expect("told");
        log.add(b"two\n", true, &mut told).expect("told");
        log.add(b"three\n", false, &mut told).expect("told");
        let text = String::from_utf8(told.split_off(0)).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1..], ["one", "three"]);
        for part in ["logs/log: No such file", "its folder is there", "the disk is not full", "--log-file"] {
            assert!(lines[0].contains(part), "{part} in {text}");
        }
        fs::create_dir(folder.path().join("logs")).expect("a folder");
        log.add(b"four\n", false, &mut told).expect("written");
        log.add(b"five\n", false, &mut told).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("text"), "\nfour\nfive\n");
        assert!(told.is_empty(), "{}", String::from_utf8_lossy(&told));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said_once() {
        let log = LogFile::new(Path::new("/dev/full"));
        let mut told = Vec::new();
        log.begin(&mut told).expect("it can be opened");
        assert!(told.is_empty(), "{}", String::from_utf8_lossy(&told));
        for line in ["one\n", "two\n"] {
            log.add(line.as_bytes(), false, &mut told).expect("told");
        }
        let told = String::from_utf8(told).expect("text");
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].contains("/dev/full: No space left on device"), "{told}");
        assert_eq!(lines[1..], ["one", "two"]);
    }
}
