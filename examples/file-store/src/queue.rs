//! The queue of one-off jobs in the file. A store without a queue needs none of this.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use billing_scheduler::{
    FencingToken, NewQueuedJob, QueueNext, QueueResult, QueueStore, QueuedJob, async_trait,
    chrono::{DateTime, Utc},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FileStore, Result, TTL};

pub(super) type Rows = BTreeMap<Uuid, Row>;

/// A job. It waits, a claim that ends at `claimed_until` holds it, or it is finished.
#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    job: QueuedJob,
    priority: i32,
    unique_key: Option<String>,
    not_before: DateTime<Utc>,
    claimed_until: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl Row {
    fn new(new: &NewQueuedJob, now: DateTime<Utc>) -> Self {
        let not_before = new.time.due(now);
        let (job, priority) = (QueuedJob::new(new, not_before), new.priority);
        let unique_key = new.unique_key.clone();
        Self { job, priority, unique_key, not_before, claimed_until: None, finished_at: None }
    }

    fn is_free(&self, now: DateTime<Utc>) -> bool {
        let is_held = self.claimed_until.is_some_and(|end| end > now);
        self.finished_at.is_none() && self.not_before <= now && !is_held
    }

    fn is_claimed_under(&self, fencing_token: FencingToken) -> bool {
        self.claimed_until.is_some() && self.job.fencing_token == fencing_token
    }

    fn has_key(&self, new: &NewQueuedJob) -> bool {
        self.finished_at.is_none()
            && self.job.kind == new.kind
            && new.unique_key.is_some()
            && self.unique_key == new.unique_key
    }
}

#[async_trait]
impl QueueStore for FileStore {
    fn claim_ttl(&self) -> Duration {
        TTL
    }

    async fn enqueue(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>> {
        self.transaction(|tables, now| {
            let mut added = Vec::new();
            for new in jobs {
                if !tables.queue.contains_key(&new.id) && !tables.queue.values().any(|row| row.has_key(new)) {
                    added.push(new.id);
                    tables.queue.insert(new.id, Row::new(new, now));
                }
            }
            Ok(added)
        })
    }

    async fn claim(&self, limits: &[(String, u32)]) -> Result<Vec<QueuedJob>> {
        self.transaction(|tables, now| {
            let mut claimed = Vec::new();
            for (kind, limit) in limits {
                let rows = tables.queue.values_mut();
                let mut due: Vec<_> = rows.filter(|row| row.job.kind == *kind && row.is_free(now)).collect();
                due.sort_by_key(|row| (Reverse(row.priority), row.not_before, row.job.id));
                for row in due.into_iter().take(*limit as usize) {
                    // An earlier claim that is still in the row expired without a result.
                    row.job.failed_attempts += u32::from(row.claimed_until.is_some());
                    row.job.fencing_token.0 += 1;
                    row.claimed_until = Some(now + TTL);
                    claimed.push(row.job.clone());
                }
            }
            Ok(claimed)
        })
    }

    async fn renew_claims(&self, claims: &[(Uuid, FencingToken)]) -> Result<Vec<Uuid>> {
        self.transaction(|tables, now| {
            let mut held = Vec::new();
            for (id, fencing_token) in claims {
                let row = tables.queue.get_mut(id).filter(|row| row.is_claimed_under(*fencing_token));
                if let Some(row) = row.filter(|row| row.claimed_until.is_some_and(|end| end > now)) {
                    row.claimed_until = Some(now + TTL);
                    held.push(*id);
                }
            }
            Ok(held)
        })
    }

    async fn settle(&self, results: &[QueueResult]) -> Result<Vec<Uuid>> {
        self.transaction(|tables, now| {
            let mut written = Vec::new();
            for QueueResult { id, run, next } in results {
                let row = tables.queue.get_mut(id);
                let Some(row) = row.filter(|row| row.is_claimed_under(run.fencing_token)) else { continue };
                row.claimed_until = None;
                match *next {
                    QueueNext::Finished => row.finished_at = Some(now),
                    QueueNext::Again { after, failed_attempts } => {
                        (row.job.failed_attempts, row.not_before) = (failed_attempts, now + after);
                    }
                }
                tables.append(run, &self.holder);
                written.push(*id);
            }
            Ok(written)
        })
    }

    async fn prune(&self, age: Duration) -> Result<u64> {
        self.transaction(|tables, now| {
            let before = tables.queue.len();
            tables.queue.retain(|_, row| row.finished_at.is_none_or(|at| at + age >= now));
            Ok((before - tables.queue.len()) as u64)
        })
    }
}
