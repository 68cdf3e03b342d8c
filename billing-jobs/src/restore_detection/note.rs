//! The newest batch that a process has seen, and the file that keeps it outside of the database.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The file's name in the folder where the daemon keeps its state.
const FILE: &str = "last-commit.json";

/// What identifies a batch in every history of a database. Its number alone does not: after a restore it is used again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The number in `billing_batches`.
    pub id: i64,
    /// The id of its run.
    pub run: String,
    /// When its transaction began, by the database's clock.
    pub at: DateTime<Utc>,
}

/// The newest batch that a process has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The newest row of `billing_batches` at that time.
    pub batch: Batch,
    /// The hash of the newest acceptance of a restore in the audit log at that time.
    pub accepted: Option<String>,
    /// The run of the oldest batch: a database keeps it under another URL.
    pub first_run: String,
}

/// The notes of a host, each under the URL of its database without a password.
#[derive(Clone, Debug)]
pub(super) struct NoteFile {
    path: PathBuf,
    database: String,
}

impl NoteFile {
    pub(super) fn new(folder: &Path, database: impl Into<String>) -> Self {
        Self { path: folder.join(FILE), database: database.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn database(&self) -> &str {
        &self.database
    }

    pub(super) fn read(&self) -> io::Result<BTreeMap<String, Note>> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the note of the database. After a power failure the file is the old one or the new one.
    pub(super) fn write(&self, note: &Note) -> io::Result<()> {
        let mut notes = self.read()?;
        notes.insert(self.database.clone(), note.clone());
        // Several processes may share the folder.
        let next = self.path.with_extension(format!("json.{}", std::process::id()));
        let written = (|| {
            let mut file = File::create(&next)?;
            file.write_all(serde_json::to_string_pretty(&notes)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&next, &self.path)
        })();
        if written.is_err() {
            // The first error is the cause; the file that remains is small.
            let _ = fs::remove_file(&next);
        }
        written
    }
}

/// What to do about a note that cannot be read. Only a damaged one may be removed.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            "; it is damaged: repair it, or remove it if no backup was restored"
        }
        _ => "",
    }
}

/// A file of an SQLite database, as the process opened it.
#[derive(Debug)]
pub(super) struct OpenedFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl OpenedFile {
    /// The file at `path` now; `None` if the platform does not identify files. Windows does not replace a file that is open.
    pub(super) fn of(path: PathBuf) -> Option<Self> {
        let identity = identity(&path)?;
        Some(Self { path, identity })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path leads to another file, or to none.
    pub(super) fn was_replaced(&self) -> bool {
        identity(&self.path) != Some(self.identity)
    }
}

/// The device and the inode of a file.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(id: i64) -> Note {
        let batch = Batch { id, run: "r".to_owned(), at: DateTime::UNIX_EPOCH };
        Note { batch, accepted: None, first_run: "first".to_owned() }
    }

    #[test]
    fn notes_of_databases_share_one_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (one, other) =
            (NoteFile::new(folder.path(), "sqlite://one"), NoteFile::new(folder.path(), "sqlite://other"));
        assert_eq!(one.read().expect("no file is no note"), BTreeMap::new());
        one.write(&note(1)).expect("a writable folder");
        other.write(&note(7)).expect("a writable folder");
        one.write(&note(2)).expect("a writable folder");
        let expected = [("sqlite://one".to_owned(), note(2)), ("sqlite://other".to_owned(), note(7))];
        assert_eq!(other.read().expect("it is valid"), BTreeMap::from(expected));
        assert_eq!(fs::read_dir(folder.path()).expect("it exists").count(), 1, "no temporary file remains");
    }

    #[test]
    fn only_damaged_note_may_be_removed() {
        let invalid = |text| serde_json::from_str::<u8>(text).expect_err("it is not a number");
        for (error, removable) in [
            (io::Error::from(invalid("{")), true),
            (invalid("{}").into(), true),
            // Too many open files, and an error of the disk.
            (io::Error::from_raw_os_error(24), false),
            (io::Error::from_raw_os_error(5), false),
            (io::ErrorKind::PermissionDenied.into(), false),
        ] {
            assert_eq!(advice(&error).contains("remove"), removable, "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn replaced_file_is_another_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("billing.db");
        assert!(OpenedFile::of(path.clone()).is_none(), "there is no file");
        let kept = File::create(&path).expect("a writable folder");
        let opened = OpenedFile::of(path.clone()).expect("there is a file");
        fs::write(&path, "changed").expect("a writable folder");
        assert!(!opened.was_replaced());
        fs::remove_file(&path).expect("it exists");
        assert!(opened.was_replaced(), "it was removed");
        fs::write(&path, "changed").expect("a writable folder");
        assert!(opened.was_replaced(), "it was created again");
        drop(kept);
    }
}
