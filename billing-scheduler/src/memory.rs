//! A store that forgets everything when the process ends: for tests, and for applications without a database.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::{Claim, Clock, FencingToken, JobState, Lease, RunRecord, RunStatus, Store, StoreError, Trigger};

/// Jobs' leases, cursors and history in this process's memory. Clones share it; each has a holder's name of its own.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    holder: String,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    jobs: HashMap<String, Row>,
    runs: Vec<RunRecord>,
    /// Occurrences that were done or given up under a lease.
    finished: HashSet<(String, DateTime<Utc>)>,
}

#[derive(Debug)]
struct Row {
    fence: i64,
    held: Option<(String, Duration)>,
    state: JobState,
}

impl MemoryStore {
    /// An empty store whose leases last ten seconds by `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { holder: "memory".to_owned(), ttl: Duration::from_secs(10), clock, shared: Arc::default() }
    }

    /// The same store, as another process would see it.
    #[must_use]
    pub fn as_holder(&self, holder: impl Into<String>) -> Self {
        Self { holder: holder.into(), ..self.clone() }
    }

    /// The same store with leases that last `ttl`.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// The history, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<RunRecord> {
        self.lock().runs.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(lease: &Lease) -> StoreError {
        StoreError::LeaseLost { job: lease.job.clone(), fence: lease.fence }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let now = self.clock.monotonic();
        let mut shared = self.lock();
        let row = shared.jobs.entry(job.to_owned()).or_insert_with(|| Row {
            fence: 0,
            held: None,
            state: JobState::at(first_cursor),
        });
        if let Some((holder, expires_at)) = &row.held
            && *expires_at > now
        {
            return Ok(Claim::Busy { holder: holder.clone() });
        }
        row.fence += 1;
        row.held = Some((self.holder.clone(), now + self.ttl));
        Ok(Claim::Held(Lease {
            job: job.to_owned(),
            fence: FencingToken(row.fence),
            ttl: self.ttl,
            state: row.state.clone(),
        }))
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let now = self.clock.monotonic();
        let mut shared = self.lock();
        let row = shared.jobs.get_mut(&lease.job).filter(|row| row.fence == lease.fence.0);
        match row.and_then(|row| row.held.as_mut()) {
            Some((_, expires_at)) if *expires_at > now => {
                *expires_at = now + self.ttl;
                Ok(())
            }
            _ => Err(Self::lost(lease)),
        }
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        let mut shared = self.lock();
        if let Some(lease) = lease {
            let newest = shared.jobs.get(&lease.job).is_some_and(|row| row.fence == lease.fence.0);
            if !newest {
                return Err(Self::lost(lease));
            }
            let ends = matches!(run.status, RunStatus::Done | RunStatus::Dead);
            let occurrence = (run.job.clone(), run.scheduled_at);
            if ends && run.trigger == Trigger::Schedule && !shared.finished.insert(occurrence) {
                return Err(StoreError::AlreadyFinished {
                    job: run.job.clone(),
                    scheduled_at: run.scheduled_at,
                });
            }
            if let Some(row) = shared.jobs.get_mut(&lease.job) {
                row.state = next.clone();
            }
        }
        shared.runs.push(run.clone());
        Ok(())
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut shared = self.lock();
        if let Some(row) = shared.jobs.get_mut(&lease.job).filter(|row| row.fence == lease.fence.0) {
            row.held = None;
        }
        Ok(())
    }
}
