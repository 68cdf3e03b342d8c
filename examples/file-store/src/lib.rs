//! A store of the scheduler in one JSON file, as an example for your own: several processes of one host share it.
//!
//! Each call locks the file, reads it, changes it, and replaces it with a new one: a call is a transaction, and a process that is
//! killed leaves the old file or the new one. So a call costs as much as the file is large, and blocks its thread meanwhile. A database
//! does better.

mod queue;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use billing_scheduler::{
    Claim, Clock, ControlAction, ControlReceipt, ControlRequest, ControlState, FencingToken, Holder, JobRow,
    JobState, Lease, NOT_AHEAD, Pause, QueueStore, RunFilter, RunRecord, RunRow, Store, StoreError,
    StorePoll, async_trait,
    chrono::{DateTime, Utc},
    serde_json,
};
use serde::{Deserialize, Serialize};

/// The lifetime of a lease. All processes are on one host and use its clock.
const TTL: Duration = Duration::from_secs(10);
/// The number of runs in the history.
const HISTORY: usize = 10_000;

type Result<T> = std::result::Result<T, StoreError>;

/// The store in one file, as one process uses it.
#[derive(Clone)]
pub struct FileStore {
    path: Arc<Path>,
    holder: String,
    clock: Arc<dyn Clock>,
}

/// The contents of the file.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Tables {
    /// Each with its last lease, whose number never decreases: a result under an older number is rejected.
    jobs: BTreeMap<String, JobRow>,
    runs: VecDeque<RunRow>,
    pauses: Vec<(String, Pause)>,
    /// The open requests.
    requests: Vec<ControlRequest>,
    /// The number of accepted requests: a poll compares it.
    revision: i64,
    queue: queue::Rows,
}

impl FileStore {
    /// Returns the store in the file at `path`, which need not exist, for the process named `holder`.
    pub fn new(path: impl Into<PathBuf>, holder: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        Self { path: path.into().into(), holder: holder.into(), clock }
    }

    /// Runs `call` as a transaction: if it fails, the file does not change. The call gets the time under the lock, so the calls of all
    /// processes see times in their order.
    fn transaction<T>(&self, call: impl FnOnce(&mut Tables, DateTime<Utc>) -> Result<T>) -> Result<T> {
        let lock = File::create(self.path.with_extension("lock")).map_err(StoreError::unavailable)?;
        lock.lock().map_err(StoreError::unavailable)?;
        let before = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => b"{}".to_vec(),
            read => read.map_err(StoreError::unavailable)?,
        };
        let mut tables = serde_json::from_slice(&before).map_err(StoreError::unavailable)?;
        let result = call(&mut tables, self.clock.now())?;
        let after = serde_json::to_vec(&tables).map_err(StoreError::unavailable)?;
        if after != before {
            replace(&self.path, &after).map_err(StoreError::unavailable)?;
        }
        Ok(result)
    }
}

/// Replaces the file in one step that survives a loss of power.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

impl Tables {
    /// Returns the job, unless its lease was claimed again.
    fn claimed(&mut self, lease: &Lease) -> Result<&mut JobRow> {
        let is_newest = |last: &Holder| last.fencing_token == lease.fencing_token;
        let job = self.jobs.get_mut(&lease.job).filter(|job| job.lease.as_ref().is_some_and(is_newest));
        job.ok_or_else(|| lease.lost())
    }

    /// Moves a job to its next state, unless the lease is lost or the occurrence was finished before.
    fn move_job(&mut self, lease: &Lease, run: &RunRecord, next: &JobState) -> Result<()> {
        let is_same = |other: &RunRecord| other.job == run.job && other.scheduled_at == run.scheduled_at;
        let mut finished = self.runs.iter().filter(|row| row.run.finishes_occurrence());
        let is_finished = run.finishes_occurrence() && finished.any(|row| is_same(&row.run));
        let job = self.claimed(lease)?;
        if is_finished {
            return Err(StoreError::AlreadyFinished { job: run.job.clone(), scheduled_at: run.scheduled_at });
        }
        job.state = next.clone();
        Ok(())
    }

    fn append(&mut self, run: &RunRecord, holder: &str) {
        self.runs.push_back(RunRow { run: run.clone(), daemon_id: holder.to_owned() });
        self.runs.drain(..self.runs.len().saturating_sub(HISTORY));
    }

    /// Applies a request to cancel. Returns whether there was nothing to do.
    fn cancel(&mut self, request: &ControlRequest, now: DateTime<Utc>) -> bool {
        let before = self.requests.len();
        self.requests.retain(|open| !open.is_claimed_with(&request.job));
        let fencing_token = match self.jobs.get(&request.job) {
            Some(JobRow { lease: Some(held), .. }) if held.expires_at > now => held.fencing_token,
            // No process runs it: what waits is withdrawn.
            Some(job) if job.claim_hint.is_some() => {
                return before == self.requests.len() && job.state.retrying.is_none();
            }
            // A job that runs on every node has no claim.
            _ => FencingToken(0),
        };
        let action = ControlAction::Cancel { fencing_token };
        self.requests.push(ControlRequest { action, ..request.clone() });
        false
    }
}

fn open_pause<'a>(pauses: &'a mut [(String, Pause)], job: &str) -> Option<&'a mut Pause> {
    let open = pauses.iter_mut().find(|(paused, pause)| paused == job && pause.until.is_none());
    open.map(|(_, pause)| pause)
}

#[async_trait]
impl Store for FileStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim> {
        self.transaction(|tables, now| {
            let row = tables.jobs.entry(job.to_owned()).or_insert_with(|| JobRow {
                job: job.to_owned(),
                state: JobState::at(first_cursor),
                claim_hint: None,
                lease: None,
                paused: None,
                last_run: None,
            });
            if let Some(held) = row.lease.as_ref().filter(|held| held.expires_at > now) {
                return Ok(Claim::Busy { holder: held.name.clone() });
            }
            let fencing_token = FencingToken(row.lease.as_ref().map_or(1, |last| last.fencing_token.0 + 1));
            row.lease = Some(Holder { name: self.holder.clone(), fencing_token, expires_at: now + TTL });
            let pauses = tables.pauses.iter().filter(|(paused, _)| paused == job).map(|(_, pause)| pause);
            let requests = tables.requests.iter().filter(|request| request.is_claimed_with(job));
            Ok(Claim::Held(Lease {
                job: job.to_owned(),
                fencing_token,
                ttl: TTL,
                state: row.state.clone(),
                claim_hint: row.claim_hint.clone(),
                pauses: pauses.filter(|pause| pause.concerns(&row.state)).cloned().collect(),
                requests: requests.cloned().collect(),
            }))
        })
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        self.transaction(|tables, now| {
            let held = tables.claimed(lease)?.lease.as_mut().filter(|held| held.expires_at > now);
            held.ok_or_else(|| lease.lost())?.expires_at = now + TTL;
            Ok(())
        })
    }

    async fn record(&self, lease: Option<&Lease>, run: &RunRecord, next: &JobState) -> Result<()> {
        self.transaction(|tables, _| {
            if let Some(lease) = lease {
                tables.move_job(lease, run, next)?;
            }
            tables.requests.retain(|request| !request.is_closed_by(run));
            tables.append(run, &self.holder);
            Ok(())
        })
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.transaction(|tables, now| {
            if let Ok(JobRow { lease: Some(held), claim_hint, .. }) = tables.claimed(lease) {
                held.expires_at = now;
                claim_hint.clone_from(&lease.claim_hint);
            }
            Ok(())
        })
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll> {
        self.transaction(|tables, _| {
            let is_open = |(_, pause): &&(String, Pause)| pause.until.is_none();
            let state = ControlState {
                revision: tables.revision,
                paused: tables.pauses.iter().filter(is_open).cloned().collect(),
                requests: tables.requests.clone(),
            };
            // The clock is that of the host, which the scheduler has.
            Ok(StorePoll { now: None, changed: Some(state).filter(|state| known != Some(state.revision)) })
        })
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt> {
        self.transaction(|tables, now| {
            let unchanged = |text: String| Ok(ControlReceipt::Unchanged(text));
            let is_ahead = tables.jobs.get(&request.job).is_some_and(|job| job.state.cursor > request.at);
            match (request.action, open_pause(&mut tables.pauses, &request.job)) {
                (ControlAction::Pause, Some(pause)) => return unchanged(format!("it is {pause}")),
                (ControlAction::Pause, None) => {
                    let (by, reason) = (request.by.clone(), request.reason.clone());
                    let pause = Pause { since: request.at, until: None, by, reason };
                    tables.pauses.push((request.job.clone(), pause));
                }
                (ControlAction::Resume, Some(pause)) => pause.until = Some(request.at),
                (ControlAction::Resume, None) => return unchanged("it is not paused".to_owned()),
                (ControlAction::Reset, _) if !is_ahead => return unchanged(NOT_AHEAD.to_owned()),
                (ControlAction::Cancel { .. }, _) => {
                    if tables.cancel(request, now) {
                        return unchanged("no process runs it".to_owned());
                    }
                }
                _ => tables.requests.push(request.clone()),
            }
            tables.revision += 1;
            Ok(ControlReceipt::Accepted)
        })
    }

    async fn jobs(&self) -> Result<Vec<JobRow>> {
        self.transaction(|Tables { jobs, pauses, runs, .. }, now| {
            let row = |row: &JobRow| JobRow {
                lease: row.lease.clone().filter(|held| held.expires_at > now),
                paused: open_pause(pauses, &row.job).cloned(),
                last_run: runs.iter().rfind(|last| last.run.job == row.job).cloned(),
                ..row.clone()
            };
            Ok(jobs.values().map(row).collect())
        })
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>> {
        self.transaction(|tables, _| {
            let limit = if filter.limit == 0 { usize::MAX } else { filter.limit as usize };
            let rows = tables.runs.iter().rev().filter(|row| filter.matches(&row.run));
            Ok(rows.take(limit).cloned().collect())
        })
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn QueueStore>> {
        Some(self)
    }
}
