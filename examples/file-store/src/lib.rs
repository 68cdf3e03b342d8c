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
    Claim, ClaimHint, Clock, ControlAction, ControlReceipt, ControlRequest, ControlState, FencingToken,
    Holder, JobRow, JobState, Lease, NOT_AHEAD, Pause, QueueStore, RunCause, RunFilter, RunRecord, RunRow,
    RunStatus, Store, StoreError, StorePoll, async_trait,
    chrono::{DateTime, Utc},
    serde_json,
};
use serde::{Deserialize, Serialize};

/// The lifetime of a lease. All processes are on one host and use its clock.
const TTL: Duration = Duration::from_secs(10);
/// The number of runs in the history.
const HISTORY: usize = 10_000;

/// The store in one file, as one process uses it.
#[derive(Clone)]
pub struct FileStore {
    path: Arc<Path>,
    holder: String,
    clock: Arc<dyn Clock>,
}

/// The contents of the file.
#[derive(Default, Serialize, Deserialize)]
struct Tables {
    jobs: BTreeMap<String, Job>,
    runs: VecDeque<RunRow>,
    pauses: Vec<(String, Pause)>,
    /// The open requests.
    requests: Vec<ControlRequest>,
    /// The number of accepted requests: a poll compares it.
    revision: i64,
    queue: queue::Rows,
}

/// What is known of one job.
#[derive(Serialize, Deserialize)]
struct Job {
    state: JobState,
    claim_hint: Option<ClaimHint>,
    /// The number of the last claim. It never decreases: a result under an older number is rejected.
    fencing_token: FencingToken,
    /// The process with the lease, and its end.
    held: Option<(String, DateTime<Utc>)>,
}

impl FileStore {
    /// Returns the store in the file at `path`, which need not exist, for the process named `holder`.
    pub fn new(path: impl Into<PathBuf>, holder: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        Self { path: path.into().into(), holder: holder.into(), clock }
    }

    /// Runs `call` as a transaction: if it fails, the file does not change. The call gets the time under the lock, so the calls of all
    /// processes see times in their order.
    fn transaction<T>(
        &self,
        call: impl FnOnce(&mut Tables, DateTime<Utc>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let lock = File::create(self.path.with_extension("lock")).map_err(unavailable)?;
        lock.lock().map_err(unavailable)?;
        let before = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => b"null".to_vec(),
            read => read.map_err(unavailable)?,
        };
        let tables: Option<Tables> = serde_json::from_slice(&before).map_err(unavailable)?;
        let mut tables = tables.unwrap_or_default();
        let result = call(&mut tables, self.clock.now())?;
        let after = serde_json::to_vec(&tables).map_err(unavailable)?;
        if after != before {
            replace(&self.path, &after).map_err(unavailable)?;
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

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unavailable(Box::new(error))
}

fn lost(lease: &Lease) -> StoreError {
    StoreError::LeaseLost { job: lease.job.clone(), fencing_token: lease.fencing_token }
}

impl Tables {
    /// Returns the job if the lease is the newest.
    fn claimed(&mut self, lease: &Lease) -> Option<&mut Job> {
        self.jobs.get_mut(&lease.job).filter(|job| job.fencing_token == lease.fencing_token)
    }

    /// Moves a job to its next state, unless the lease is lost or the occurrence was finished before.
    fn move_job(&mut self, lease: &Lease, run: &RunRecord, next: &JobState) -> Result<(), StoreError> {
        let finishes = |run: &RunRecord| {
            matches!(run.status, RunStatus::Done | RunStatus::Dead)
                && run.cause == RunCause::Schedule
                && !run.per_node
        };
        let is_same = |row: &RunRow| row.run.job == run.job && row.run.scheduled_at == run.scheduled_at;
        let is_finished = finishes(run) && self.runs.iter().any(|row| finishes(&row.run) && is_same(row));
        let job = self.claimed(lease).ok_or_else(|| lost(lease))?;
        if is_finished {
            return Err(StoreError::AlreadyFinished { job: run.job.clone(), scheduled_at: run.scheduled_at });
        }
        job.state = next.clone();
        // The run that a cancellation names has ended.
        self.requests.retain(|request| match request.action {
            ControlAction::Cancel { fencing_token: FencingToken(0) } => true,
            ControlAction::Cancel { fencing_token } => {
                request.job != run.job || fencing_token > run.fencing_token
            }
            _ => true,
        });
        Ok(())
    }

    fn append(&mut self, run: &RunRecord, holder: &str) {
        self.runs.push_back(RunRow { run: run.clone(), daemon_id: holder.to_owned() });
        while self.runs.len() > HISTORY {
            self.runs.pop_front();
        }
    }

    fn open_pause(&mut self, job: &str) -> Option<&mut Pause> {
        let open = self.pauses.iter_mut().find(|(paused, pause)| paused == job && pause.until.is_none());
        open.map(|(_, pause)| pause)
    }

    /// Applies a request to cancel. Returns whether there was nothing to do.
    fn cancel(&mut self, request: &ControlRequest, now: DateTime<Utc>) -> bool {
        let before = self.requests.len();
        self.requests
            .retain(|open| open.job != request.job || matches!(open.action, ControlAction::Cancel { .. }));
        let fencing_token = match self.jobs.get(&request.job) {
            Some(job) if job.held.as_ref().is_some_and(|(_, end)| *end > now) => job.fencing_token,
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

#[async_trait]
impl Store for FileStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let name = job;
        self.transaction(|tables, now| {
            let job = tables.jobs.entry(name.to_owned()).or_insert_with(|| Job {
                state: JobState::at(first_cursor),
                claim_hint: None,
                fencing_token: FencingToken(0),
                held: None,
            });
            if let Some((holder, end)) = &job.held
                && *end > now
            {
                return Ok(Claim::Busy { holder: holder.clone() });
            }
            job.fencing_token.0 += 1;
            job.held = Some((self.holder.clone(), now + TTL));
            // A pause that ended before everything that is still to be run is irrelevant.
            let since =
                job.state.retrying.map_or(job.state.cursor, |it| it.scheduled_at.min(job.state.cursor));
            let concerns = |(paused, pause): &&(String, Pause)| {
                *paused == name && pause.until.is_none_or(|until| since < until)
            };
            let to_run = |request: &&ControlRequest| {
                request.job == name && !matches!(request.action, ControlAction::Cancel { .. })
            };
            Ok(Claim::Held(Lease {
                job: name.to_owned(),
                fencing_token: job.fencing_token,
                ttl: TTL,
                state: job.state.clone(),
                claim_hint: job.claim_hint.clone(),
                pauses: tables.pauses.iter().filter(concerns).map(|(_, pause)| pause.clone()).collect(),
                requests: tables.requests.iter().filter(to_run).cloned().collect(),
            }))
        })
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.transaction(|tables, now| {
            let held = tables.claimed(lease).and_then(|job| job.held.as_mut());
            let (_, end) = held.filter(|(_, end)| *end > now).ok_or_else(|| lost(lease))?;
            *end = now + TTL;
            Ok(())
        })
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        self.transaction(|tables, _| {
            if let Some(lease) = lease {
                tables.move_job(lease, run, next)?;
            }
            tables.requests.retain(|request| Some(request.id) != run.request_id);
            tables.append(run, &self.holder);
            Ok(())
        })
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.transaction(|tables, _| {
            if let Some(job) = tables.claimed(lease) {
                (job.held, job.claim_hint) = (None, lease.claim_hint.clone());
            }
            Ok(())
        })
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
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

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        self.transaction(|tables, now| {
            let unchanged = |text: String| Ok(ControlReceipt::Unchanged(text));
            let is_ahead = tables.jobs.get(&request.job).is_some_and(|job| job.state.cursor > request.at);
            match (request.action, tables.open_pause(&request.job)) {
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

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.transaction(|tables, now| {
            let lease = |job: &Job| {
                let (name, expires_at) = job.held.clone().filter(|(_, end)| *end > now)?;
                Some(Holder { name, fencing_token: job.fencing_token, expires_at })
            };
            let is_open = |name: &str, pause: &Pause, job: &str| name == job && pause.until.is_none();
            let paused = |job: &str| tables.pauses.iter().find(|(name, pause)| is_open(name, pause, job));
            let row = |(name, job): (&String, &Job)| JobRow {
                job: name.clone(),
                state: job.state.clone(),
                claim_hint: job.claim_hint.clone(),
                lease: lease(job),
                paused: paused(name).map(|(_, pause)| pause.clone()),
                last_run: tables.runs.iter().rfind(|row| row.run.job == *name).cloned(),
            };
            Ok(tables.jobs.iter().map(row).collect())
        })
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
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
