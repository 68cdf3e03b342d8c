//! The queue of the store in memory.

use std::{cmp::Reverse, collections::BTreeMap, sync::MutexGuard, sync::PoisonError, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    memory_store::{MemoryStore, TTL},
    store::{NewQueuedJob, QueueNext, QueueResult, QueueStore, QueueTime, QueuedJob, StoreError},
};
use crate::job::FencingToken;

/// One queued job.
#[derive(Debug)]
pub(super) struct QueueRow {
    job: QueuedJob,
    priority: i32,
    unique_key: Option<String>,
    not_before: DateTime<Utc>,
    /// When the claim that holds the job ends, by the monotonic clock.
    expires_at: Option<Duration>,
    /// When the job was finished, by the monotonic clock.
    finished_at: Option<Duration>,
}

impl QueueRow {
    fn is_claimed_under(&self, fencing_token: FencingToken) -> bool {
        self.finished_at.is_none() && self.expires_at.is_some() && self.job.fencing_token == fencing_token
    }
}

impl MemoryStore {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<Uuid, QueueRow>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the next queued job is due after now, unless a claim holds it.
    pub(super) fn next_queued(&self) -> Option<DateTime<Utc>> {
        let now = self.clock().now();
        let rows = self.rows();
        let waits = rows.values().filter(|row| row.finished_at.is_none() && row.expires_at.is_none());
        waits.map(|row| row.not_before).filter(|at| *at > now).min()
    }

    fn row(&self, new: &NewQueuedJob) -> QueueRow {
        let not_before = new.time.due(self.clock().now());
        QueueRow {
            job: QueuedJob::new(new, not_before),
            priority: new.priority,
            unique_key: new.unique_key.clone(),
            not_before,
            expires_at: None,
            finished_at: None,
        }
    }
}

#[async_trait]
impl QueueStore for MemoryStore {
    fn claim_ttl(&self) -> Duration {
        TTL
    }

    async fn enqueue(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, StoreError> {
        let mut rows = self.rows();
        let mut added = Vec::new();
        for new in jobs {
            let is_same = |row: &QueueRow| {
                row.finished_at.is_none() && row.job.kind == new.kind && row.unique_key == new.unique_key
            };
            let is_known =
                rows.contains_key(&new.id) || new.unique_key.is_some() && rows.values().any(is_same);
            if !is_known {
                rows.insert(new.id, self.row(new));
                added.push(new.id);
            }
        }
        Ok(added)
    }

    async fn claim(&self, limits: &[(String, u32)]) -> Result<Vec<QueuedJob>, StoreError> {
        let (now, wall) = (self.clock().monotonic(), self.clock().now());
        let mut rows = self.rows();
        let mut claimed = Vec::new();
        for (kind, limit) in limits {
            let mut due: Vec<_> = rows
                .values_mut()
                .filter(|row| row.finished_at.is_none() && row.job.kind == *kind && row.not_before <= wall)
                .filter(|row| row.expires_at.is_none_or(|end| end <= now))
                .collect();
            due.sort_by_key(|row| (Reverse(row.priority), row.not_before, row.job.id));
            for row in due.into_iter().take(*limit as usize) {
                // A claim that is still there was lost without a result.
                let is_lost = row.expires_at.replace(now + TTL).is_some();
                row.job.failed_attempts = row.job.failed_attempts.saturating_add(is_lost.into());
                row.job.fencing_token.0 += 1;
                claimed.push(row.job.clone());
            }
        }
        Ok(claimed)
    }

    async fn renew_claims(&self, claims: &[(Uuid, FencingToken)]) -> Result<Vec<Uuid>, StoreError> {
        let now = self.clock().monotonic();
        let mut rows = self.rows();
        let mut held = Vec::new();
        for (id, fencing_token) in claims {
            if let Some(row) = rows.get_mut(id).filter(|row| row.is_claimed_under(*fencing_token))
                && row.expires_at.is_some_and(|end| end > now)
            {
                row.expires_at = Some(now + TTL);
                held.push(*id);
            }
        }
        Ok(held)
    }

    async fn settle(&self, results: &[QueueResult]) -> Result<Vec<Uuid>, StoreError> {
        let (now, wall) = (self.clock().monotonic(), self.clock().now());
        let mut rows = self.rows();
        let mut written = Vec::new();
        for QueueResult { id, run, next } in results {
            let Some(row) = rows.get_mut(id).filter(|row| row.is_claimed_under(run.fencing_token)) else {
                continue;
            };
            row.expires_at = None;
            match *next {
                QueueNext::Finished => row.finished_at = Some(now),
                QueueNext::Again { after, failed_attempts } => {
                    row.job.failed_attempts = failed_attempts;
                    row.not_before = QueueTime::After(after).due(wall);
                }
            }
            self.append(run);
            written.push(*id);
        }
        Ok(written)
    }

    async fn prune(&self, age: Duration) -> Result<u64, StoreError> {
        let now = self.clock().monotonic();
        let mut rows = self.rows();
        let before = rows.len();
        rows.retain(|_, row| row.finished_at.is_none_or(|at| now.saturating_sub(at) <= age));
        Ok((before - rows.len()) as u64)
    }
}
