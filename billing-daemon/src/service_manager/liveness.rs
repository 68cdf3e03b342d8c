//! The liveness file: the daemon renews its time while the scheduler makes progress, and a probe in the same container reads it.

use std::{
    env,
    fs::{self, File},
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use billing_scheduler::{Clock as _, SystemClock};
use chrono::{DateTime, Utc};

/// Names the liveness file, for the daemon and for its probe. Without it there is no file.
pub(crate) const LIVENESS_FILE: &str = "BILLING_LIVENESS_FILE";

/// The watchdog of the file, which resets four times in this time: with each tick of the scheduler.
pub(super) const WATCHDOG: Duration = Duration::from_secs(4);

/// The liveness file of this process. Its time of modification is when the daemon last made progress.
///
/// Renewing a time needs neither space nor a new file, so a full disk does not make a daemon look dead.
pub(super) struct LivenessFile {
    path: PathBuf,
    file: File,
}

impl LivenessFile {
    /// Creates the file that the environment names.
    pub(super) fn from_process() -> io::Result<Option<Self>> {
        let Some(path) = path() else { return Ok(None) };
        let named = |error: io::Error| {
            let message = format!("cannot create {}, which {LIVENESS_FILE} names: {error}", path.display());
            io::Error::new(error.kind(), message)
        };
        // A new file, so that neither a link nor a pipe under this name is followed or waited for.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
            _ => {}
        }
        let file = File::create_new(&path).map_err(named)?;
        Ok(Some(Self { path, file }))
    }

    pub(super) fn renew(&self) -> io::Result<()> {
        self.file.set_modified(SystemClock.now().into())
    }
}

impl Drop for LivenessFile {
    /// A stopped daemon is reported at once.
    fn drop(&mut self) {
        // A file that stays is too old a minute later.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the path of the liveness file, if the environment names one.
fn path() -> Option<PathBuf> {
    env::var_os(LIVENESS_FILE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What the liveness file shows about its daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// The daemon made progress this long ago.
    Alive(Duration),
    /// The daemon made no progress for longer than permitted.
    Hangs(Duration),
    /// There is no file: no daemon runs.
    Stopped(PathBuf),
}

/// Reads the liveness of the daemon in this container; `None` if the environment names no file.
pub(crate) fn read(max_age: Duration) -> io::Result<Option<Liveness>> {
    let Some(path) = path() else { return Ok(None) };
    let modified = match fs::metadata(&path).and_then(|file| file.modified()) {
        Ok(modified) => modified,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Liveness::Stopped(path))),
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    };
    Ok(Some(judge(modified, SystemClock.now(), max_age)))
}

/// After the host's clock was corrected, the file may be older or newer than it should be, until the next tick. A file from the
/// future counts as old, because a daemon that hangs would otherwise look alive until the clock reaches that time.
fn judge(modified: SystemTime, now: DateTime<Utc>, max_age: Duration) -> Liveness {
    let age = (now - DateTime::<Utc>::from(modified)).abs().to_std().unwrap_or(Duration::MAX);
    if age <= max_age { Liveness::Alive(age) } else { Liveness::Hangs(age) }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn file_from_past_or_future_is_stale() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        for (offset, expected) in [
            (0, Liveness::Alive(Duration::ZERO)),
            (-1, Liveness::Alive(second)),
            (1, Liveness::Alive(second)),
            (-60, Liveness::Alive(minute)),
            (-61, Liveness::Hangs(minute + second)),
            (61, Liveness::Hangs(minute + second)),
        ] {
            let modified = (now + TimeDelta::seconds(offset)).into();
            assert_eq!(judge(modified, now, minute), expected, "{offset} s");
        }
    }
}
