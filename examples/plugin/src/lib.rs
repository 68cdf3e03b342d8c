//! A plugin as a third party writes it: the kind `acme.sweep` removes old files from a folder.

use std::{fs, io, path::PathBuf, time::Duration};

use billing_scheduler::{
    BlockingJob, JobContext, JobError, Outcome, Registry,
    chrono::{DateTime, Utc},
    serde_json::json,
};
use serde::Deserialize;

/// The parameters, as `[job.params]` of jobs.toml gives them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SweepParams {
    /// Where to look; folders in it stay.
    pub folder: PathBuf,
    /// Files that were not written to for so many days are removed.
    pub older_than_days: u16,
}

/// The job.
#[derive(Debug)]
pub struct Sweep {
    params: SweepParams,
}

/// The plugin: a function that makes its kinds known.
pub fn register(registry: &mut Registry) {
    registry.register_blocking("acme.sweep", Sweep::new);
}

impl Sweep {
    /// Sweeps as `params` say.
    #[must_use]
    pub fn new(params: SweepParams) -> Self {
        Self { params }
    }
}

impl BlockingJob for Sweep {
    fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        // From the scheduled time and not from now: a second attempt at the same one comes to the same result.
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

/// A folder that is not there will not come by itself; anything else may pass.
fn failed(error: io::Error) -> JobError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => JobError::fatal(error),
        _ => JobError::retry(error),
    }
}
