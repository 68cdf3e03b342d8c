//! Small files that an operator writes: configuration, secrets, certificates. Nothing in their place can block or fill the reader.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// The size of the largest file.
const MAX_BYTES: u64 = 1 << 20;
/// How long a file system may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many threads may wait for one path after their timeout.
const MAX_HANGING: usize = 4;

/// The threads that wait after their timeout, by path.
static HANGING: Mutex<Option<HashMap<PathBuf, usize>>> = Mutex::new(None);

/// Reads a regular file of at most 1 MiB.
///
/// # Errors
/// It is not such a file, it cannot be read, or its file system does not respond within 5 s ([`io::ErrorKind::TimedOut`]).
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let owned = path.to_owned();
    within_timeout(path, move || read_blocking(&owned))
}

/// Reads a regular file of at most 1 MiB that is text.
///
/// # Errors
/// Those of [`read`]; as [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Returns the metadata of what is at `path`, also at the end of a symbolic link.
///
/// # Errors
/// As those of [`fs::metadata`], or its file system does not respond within 5 s.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    let owned = path.to_owned();
    within_timeout(path, move || fs::metadata(owned))
}

/// Whether something is at `path`. What cannot be inspected counts.
#[must_use]
pub fn exists(path: &Path) -> bool {
    let owned = path.to_owned();
    let found = within_timeout(path, move || fs::symlink_metadata(owned));
    !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Runs an operation on the file system of `path` in a separate thread, because a network file system without its server may never
/// return. Such a thread does not prevent the end of the process. After several that hang, a further one fails at once.
fn within_timeout<T: Send + 'static>(
    path: &Path,
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "its file system does not respond");
    if hanging(path, |hanging| *hanging) >= MAX_HANGING {
        return Err(timed_out());
    }
    let (sender, receiver) = mpsc::channel();
    let owned = path.to_owned();
    thread::Builder::new().name("file".to_owned()).spawn(move || {
        let result = operation();
        hanging(&owned, |hanging| {
            if sender.send(result).is_err() {
                *hanging -= 1;
            }
        });
    })?;
    match receiver.recv_timeout(TIMEOUT) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("reading it panicked")),
        // The thread sends under the same lock, so it either has sent the result or will find the receiver gone.
        Err(RecvTimeoutError::Timeout) => hanging(path, |hanging| {
            let late = receiver.try_recv();
            drop(receiver);
            late.unwrap_or_else(|_| {
                *hanging += 1;
                Err(timed_out())
            })
        }),
    }
}

/// Calls `change` with the number of hanging threads for `path`.
fn hanging<T>(path: &Path, change: impl FnOnce(&mut usize) -> T) -> T {
    let mut all = HANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let of_path = all.entry(path.to_owned()).or_default();
    let result = change(of_path);
    if *of_path == 0 {
        all.remove(path);
    }
    result
}

fn read_blocking(path: &Path) -> io::Result<Vec<u8>> {
    // Even to open a device may have an effect.
    ensure_regular(&fs::metadata(path)?)?;
    let file = open(path)?;
    // Another file may have taken its place.
    ensure_regular(&file.metadata()?)?;
    let mut content = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(content)
}

fn ensure_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        Ok(())
    } else if metadata.is_dir() {
        Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder, not a file"))
    } else {
        Err(io::Error::other("it is a pipe, a device or a socket, not a regular file"))
    }
}

/// Opens the file; does not wait for the writer of a pipe.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    use rustix::fs::OFlags;

    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, size: usize| {
            let path = folder.path().join(name);
            fs::write(&path, vec![b'a'; size]).expect("a writable folder");
            path
        };
        assert_eq!(read(&file("empty", 0)).expect("a file"), b"");
        assert_eq!(read_text(&file("largest", 1 << 20)).expect("a file").len(), 1 << 20);
        let error = |path: &Path| read(path).expect_err("not such a file").to_string();
        assert_eq!(error(&file("larger", (1 << 20) + 1)), "it is larger than 1 MiB");
        assert_eq!(error(folder.path()), "it is a folder, not a file");
        assert_eq!(read(&folder.path().join("none")).expect_err("missing").kind(), io::ErrorKind::NotFound);
        fs::write(file("bytes", 0), b"\xff").expect("a writable folder");
        assert_eq!(
            read_text(&folder.path().join("bytes")).expect_err("bytes").to_string(),
            "it is not UTF-8"
        );
    }

    #[cfg(unix)]
    #[test]
    fn pipe_and_device_are_rejected_at_once() {
        use rustix::fs::{CWD, Mode, mkfifoat};

        let folder = tempfile::tempdir().expect("a temporary folder");
        let (pipe, device) = (folder.path().join("pipe"), folder.path().join("device"));
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("a writable folder");
        std::os::unix::fs::symlink("/dev/zero", &device).expect("a writable folder");
        for path in [pipe.as_path(), &device] {
            let error = read(path).expect_err("not a regular file");
            assert_eq!(error.to_string(), "it is a pipe, a device or a socket, not a regular file");
        }
        open(&pipe).expect("even opening it does not wait for a writer");
    }

    #[test]
    fn hanging_file_system_ends_with_timeout() {
        let path = Path::new("/a/hanging/mount");
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let attempts: Vec<_> = (0..MAX_HANGING)
            .map(|_| {
                let hangs = Arc::clone(&hangs);
                thread::spawn(move || {
                    within_timeout(path, move || {
                        let _ = hangs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        Ok(())
                    })
                })
            })
            .collect();
        for attempt in attempts {
            let error = attempt.join().expect("no panic").expect_err("it hangs");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        let error = within_timeout(path, || Ok(())).expect_err("the others still hang");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        within_timeout(Path::new("/another"), || Ok(())).expect("another path is not affected");
        drop(release);
        while hanging(path, |hanging| *hanging) > 0 {
            thread::yield_now();
        }
        within_timeout(path, || Ok(())).expect("it responds again");
    }
}
