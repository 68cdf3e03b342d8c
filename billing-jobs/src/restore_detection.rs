//! Detects a database that was restored from a backup: the number of the last commit is also stored outside of the database.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The number of the last batch that this host committed, in a small file outside of the database.
#[derive(Clone, Debug)]
pub struct CommitMarker {
    file: PathBuf,
    database: String,
}

/// The file's name in the folder where the daemon keeps its state.
const FILE: &str = "last-commit.json";

impl CommitMarker {
    /// Kept in `folder`, for the database called `database` (its URL without a password).
    #[must_use]
    pub fn new(folder: &Path, database: impl Into<String>) -> Self {
        Self { file: folder.join(FILE), database: database.into() }
    }

    /// Where it is kept.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The last batch; 0 if none is known.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn batch(&self) -> io::Result<i64> {
        Ok(self.all()?.remove(&self.database).unwrap_or(0))
    }

    /// Records that this is the last batch. The file is replaced whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, batch: i64) -> io::Result<()> {
        let mut all = self.all()?;
        if all.insert(self.database.clone(), batch) == Some(batch) {
            return Ok(());
        }
        let next = self.file.with_extension("json.new");
        fs::write(&next, serde_json::to_string_pretty(&all)?)?;
        fs::rename(next, &self.file)
    }

    fn all(&self) -> io::Result<BTreeMap<String, i64>> {
        match fs::read(&self.file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }
}
