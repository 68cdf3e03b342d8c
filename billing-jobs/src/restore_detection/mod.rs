//! Detects a database that lost committed batches: a backup was restored, or a standby without the last commits was promoted.
//!
//! Every daemon notes the newest batch that it has seen, in memory and in a file outside of the database. A daemon that finds its noted
//! batch missing halts billing: it writes a [`Halt`] into the fencing row, which every batch of every daemon locks and reads. Only
//! [`accept`] ends the halt.

mod halt;
mod note;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sea_orm::{ConnectionTrait as _, DbErr, Value};
use tokio::sync::Notify;
use tracing::{error, info, warn};

pub(crate) use self::halt::ACCEPTED;
pub use self::{
    halt::{Acceptance, Halt, accept},
    note::{Batch, Note},
};
use self::{
    halt::{Facts, Verdict, judge, lock_fencing_row},
    note::{NoteFile, OpenedFile},
};
use crate::BILLING_JOB;
use billing_store::{DedicatedConnection, begin, statement, with_help};

/// How long the file system may take to read or write the note.
const FILE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a process must not bill.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A daemon found that a committed batch is missing, and no operator has accepted that.
    #[error(
        "billing is halted: {0}. A backup was restored, commits were lost in a failover, or this is another database: find out what is \
         missing, then run `billing-daemon accept-restore`"
    )]
    Halted(Box<Halt>),
    /// The file of the SQLite database is not the one that this process has open.
    #[error(
        "{} is no longer the file that this process opened: it was replaced, moved or removed, and what this process writes would be \
         lost. Stop every process that uses a database before you replace its file",
        .0.display()
    )]
    FileReplaced(PathBuf),
    /// The note of this host cannot be read.
    #[error("cannot read {}, which records the newest batch: {source}{}", file.display(), note::advice(source))]
    Note {
        /// The path of the file.
        file: PathBuf,
        /// The error of the file system or of the parser.
        source: io::Error,
    },
    /// The database failed.
    #[error("cannot check for a restored database: {}", with_help(.0))]
    Database(#[from] DbErr),
}

/// The note of one process, and what it is compared with.
#[derive(Debug)]
pub struct RestoreDetection {
    connection: DedicatedConnection,
    found_by: String,
    file: Option<NoteFile>,
    opened: Option<OpenedFile>,
    state: Mutex<State>,
    replaced: Notify,
}

#[derive(Debug, Default)]
struct State {
    note: Option<Note>,
    /// The note in the file.
    saved: Option<Note>,
    /// The newest acceptance that this process has read.
    accepted: Option<String>,
}

impl RestoreDetection {
    /// Keeps the note in memory only, for the process `found_by` that uses `connection`.
    #[must_use]
    pub fn new(connection: impl Into<DedicatedConnection>, found_by: impl Into<String>) -> Self {
        let (state, replaced) = (Mutex::default(), Notify::new());
        let connection = connection.into();
        Self { connection, found_by: found_by.into(), file: None, opened: None, state, replaced }
    }

    /// Keeps the note in a file in `folder` as well, for the database called `database` (its URL without a password).
    #[must_use]
    pub fn with_folder(self, folder: &Path, database: impl Into<String>) -> Self {
        Self { file: Some(NoteFile::new(folder, database)), ..self }
    }

    /// Also checks that `path` remains the file of the SQLite database that was just opened.
    #[must_use]
    pub fn with_database_file(self, path: PathBuf) -> Self {
        Self { opened: OpenedFile::of(path), ..self }
    }

    /// The note, if there is one.
    #[must_use]
    pub fn note(&self) -> Option<Note> {
        self.locked().note.clone()
    }

    /// Checks that the noted batch exists, and notes the newest one. Halts billing if the noted batch is missing.
    ///
    /// # Errors
    /// This process must not bill.
    pub async fn check(&self) -> Result<(), RestoreError> {
        self.ensure_same_file()?;
        let (note, facts) = self.read().await?;
        if let Some(halt) = facts.halt {
            return Err(RestoreError::Halted(Box::new(halt)));
        }
        match (judge(note.as_ref(), &facts), &note) {
            (Verdict::Missing, Some(missing)) => self.halt(missing).await?,
            _ => self.renew(note.as_ref(), facts),
        }
        self.save().await;
        Ok(())
    }

    /// Checks that the file of an SQLite database is the one that was opened.
    ///
    /// # Errors
    /// The path names another file, or the file was removed.
    pub fn ensure_same_file(&self) -> Result<(), RestoreError> {
        match &self.opened {
            Some(opened) if opened.was_replaced() => {
                self.replaced.notify_one();
                Err(RestoreError::FileReplaced(opened.path().to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Returns when a check has found that the file of the database was replaced.
    pub async fn file_replaced(&self) {
        self.replaced.notified().await;
    }

    /// Notes a batch that this process has committed.
    pub(crate) fn committed(&self, batch: Batch) {
        let mut state = self.locked();
        let first_run = state.note.as_ref().map_or_else(|| batch.run.clone(), |note| note.first_run.clone());
        state.note = Some(Note { batch, accepted: state.accepted.clone(), first_run });
    }

    /// Writes the note into its file if it has changed. A failure is logged, because the note in memory still counts.
    pub async fn save(&self) {
        let (note, saved) = {
            let state = self.locked();
            (state.note.clone(), state.saved.clone())
        };
        let (Some(file), Some(note)) = (self.file.clone(), note) else { return };
        if saved.as_ref() == Some(&note) {
            return;
        }
        let path = file.path().to_owned();
        let written = note.clone();
        match on_disk(move || file.write(&written)).await {
            Ok(()) => self.locked().saved = Some(note),
            Err(error) => {
                warn!(%error, "cannot record the newest batch in {}: {error}", path.display());
            }
        }
    }

    /// Returns the note and what it is compared with. The first call reads the file.
    async fn read(&self) -> Result<(Option<Note>, Facts), RestoreError> {
        if let Some(note) = self.note() {
            let facts = self.facts(Some(&note)).await?;
            return Ok((Some(note), facts));
        }
        let Some(file) = self.file.clone() else { return Ok((None, self.facts(None).await?)) };
        let (path, database) = (file.path().to_owned(), file.database().to_owned());
        let notes = on_disk(move || file.read()).await;
        let notes = notes.map_err(|source| RestoreError::Note { file: path, source })?;
        let saved = notes.get(&database).cloned();
        let note = if saved.is_some() {
            saved.clone()
        } else {
            // The same database under another URL: it may have been restored there.
            let facts = self.facts(None).await?;
            let same = notes.into_values().filter(|note| Some(&note.first_run) == facts.first_run.as_ref());
            same.max_by_key(|note| note.batch.at)
        };
        self.load(note.as_ref(), saved);
        let facts = self.facts(note.as_ref()).await?;
        Ok((note, facts))
    }

    /// Takes the note of the file, unless another task has noted a batch meanwhile.
    fn load(&self, note: Option<&Note>, saved: Option<Note>) {
        let mut state = self.locked();
        state.saved = saved;
        if state.note.is_none() {
            state.note = note.cloned();
        }
    }

    async fn facts(&self, note: Option<&Note>) -> Result<Facts, DbErr> {
        let query = Facts::query(self.connection.pool().get_database_backend(), note);
        let rows = self.connection.query_all(query).await?;
        Facts::of(rows.first())
    }

    /// Replaces the note `before` with the newest batch of `facts`, unless this process has committed one meanwhile.
    fn renew(&self, before: Option<&Note>, facts: Facts) {
        let mut state = self.locked();
        state.accepted.clone_from(&facts.accepted);
        if state.note.as_ref() == before {
            state.note = facts.into_note();
        }
    }

    /// Halts billing because the batch of `note` is missing. It is checked again under the lock that every batch shares, so no batch is
    /// in progress and no operator accepts the restore meanwhile.
    async fn halt(&self, note: &Note) -> Result<(), RestoreError> {
        let txn = begin(self.connection.pool()).await?;
        lock_fencing_row(&txn).await?;
        let row = txn.query_one_raw(Facts::query(txn.get_database_backend(), Some(note))).await?;
        let facts = Facts::of(row.as_ref())?;
        if facts.halt.is_some() || judge(Some(note), &facts) != Verdict::Missing {
            txn.rollback().await?;
            if let Some(halt) = facts.halt {
                return Err(RestoreError::Halted(Box::new(halt)));
            }
            info!("the noted batch {} is accounted for: a restore was accepted", note.batch.id);
            self.renew(Some(note), facts);
            return Ok(());
        }
        let halt = Halt {
            found_at: facts.now,
            found_by: self.found_by.clone(),
            missing: note.batch.clone(),
            newest: facts.newest,
        };
        let sql = "UPDATE scheduler_fencing SET halt = $2 WHERE job = $1";
        let values: [Value; 2] = [BILLING_JOB.into(), halt.to_json().into()];
        txn.execute_raw(statement(&txn, sql, values)).await?;
        txn.commit().await?;
        let error = RestoreError::Halted(Box::new(halt));
        error!("{error}");
        Err(error)
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls `work` on a thread that may block.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let done = tokio::time::timeout(FILE_TIMEOUT, tokio::task::spawn_blocking(work)).await;
    match done {
        Ok(joined) => joined.unwrap_or_else(|error| Err(io::Error::other(error))),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the file system does not respond")),
    }
}
