//! A plugin as a third party writes it: the kind `acme.sweep` removes old files from a folder.

use std::{fs, io, path::PathBuf, time::Duration};

use billing_scheduler::{
    BlockingJob, JobContext, JobError, Outcome, Registry,
    chrono::{DateTime, Utc},
    serde_json::json,
};
use serde::Deserialize;

/// The parameters in `[job.params]` of jobs.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SweepParams {
    /// The folder whose files are removed. Folders inside it are kept.
    pub folder: PathBuf,
    /// A file is removed when it has not been written to for this number of days.
    pub older_than_days: u16,
}

/// Removes old files from a folder, as its parameters define.
#[derive(Debug)]
pub struct Sweep {
    params: SweepParams,
}

/// Registers the kinds of this plugin.
pub fn register(registry: &mut Registry) {
    registry.register_blocking("acme.sweep", Sweep::new);
}

impl Sweep {
    /// Returns the job for these parameters.
    #[must_use]
    pub fn new(params: SweepParams) -> Self {
        Self { params }
    }
}

impl BlockingJob for Sweep {
    fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        // Based on the scheduled time and not on the present: a second attempt has the same result.
        let days = Duration::from_hours(24 * u64::from(self.params.older_than_days));
        let oldest = ctx.occurrence.scheduled_at - days;
        let mut removed = 0;
        for entry in fs::read_dir(&self.params.folder).map_err(failed)? {
            if ctx.stop_requested().is_some() {
                return Ok(Outcome::Interrupted { items: removed });
            }
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            let written = DateTime::<Utc>::from(metadata.modified().map_err(failed)?);
            if metadata.is_file() && written < oldest {
                fs::remove_file(entry.path()).map_err(failed)?;
                removed += 1;
                ctx.report(json!({ "removed": removed }));
            }
        }
        Ok(Outcome::Done { items: removed, details: json!({ "removed": removed }) })
    }
}

/// A missing folder does not appear between two attempts, so it is fatal. Other errors may be temporary.
fn failed(error: io::Error) -> JobError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => JobError::fatal(error),
        _ => JobError::retry(error),
    }
}
