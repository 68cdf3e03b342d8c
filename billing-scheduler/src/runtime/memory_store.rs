//! A store in memory, for tests and for applications without a database.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    interner::Interner,
    memory_queue::QueueRow,
    store::{
        Claim, ClaimHint, ControlAction, ControlReceipt, ControlRequest, ControlState, Holder, JobRow,
        JobState, LateJob, Lease, NOT_AHEAD, Pause, QueueStore, Retrying, RunFilter, RunRecord, RunRow,
        Store, StoreError, StorePoll,
    },
};
use crate::{clock::Clock, job::FencingToken};

/// The lifetime of a lease.
pub(super) const TTL: Duration = Duration::from_secs(10);

/// Keeps leases, cursors, requests, history and queued jobs in the memory of this process. Clones share the data.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    holder: String,
    clock: Arc<dyn Clock>,
    /// Whether a poll returns the time.
    reports_time: bool,
    history_limit: usize,
    tables: Arc<Mutex<Tables>>,
    pub(super) queue: Arc<Mutex<BTreeMap<Uuid, QueueRow>>>,
}

#[derive(Debug, Default)]
struct Tables {
    /// Ordered, because the growth of a large hash table leaves as much memory unused as it takes.
    jobs: BTreeMap<Box<str>, Row>,
    claim_hints: Interner<ClaimHint>,
    runs: VecDeque<RunRow>,
    /// The number of runs that were dropped from the history.
    dropped: usize,
    pauses: Vec<(String, Pause)>,
    /// The open requests.
    requests: Vec<ControlRequest>,
    /// Every accepted request.
    audit: Vec<ControlRequest>,
}

/// A job. There may be very many, so what few of them have is behind a pointer.
#[derive(Debug)]
struct Row {
    fencing_token: i64,
    /// In microseconds since 1970, which take less memory than a date and a time of day.
    cursor_us: i64,
    /// Jobs of one schedule share it.
    claim_hint: Option<Arc<ClaimHint>>,
    activity: Option<Box<Activity>>,
}

/// What a job has while it runs and after its first run.
#[derive(Debug, Default, PartialEq)]
struct Activity {
    /// The holder of the lease and its end by the monotonic clock.
    held: Option<(String, Duration)>,
    retrying: Option<Retrying>,
    /// The occurrences in the history that were finished under a lease, in ascending order.
    finished: VecDeque<DateTime<Utc>>,
    /// The number of the newest run; the first one in the history has the number 1.
    last: Option<NonZeroUsize>,
}

impl Row {
    fn state(&self) -> JobState {
        JobState {
            cursor: DateTime::from_timestamp_micros(self.cursor_us).expect("it was made from a time"),
            retrying: self.activity.as_ref().and_then(|activity| activity.retrying),
        }
    }

    fn activity(&mut self) -> &mut Activity {
        self.activity.get_or_insert_default()
    }

    /// Returns the holder of the lease and its end by the monotonic clock.
    fn holder(&self, now: Duration) -> Option<(&str, Duration)> {
        let (name, until) = self.activity.as_ref()?.held.as_ref()?;
        (*until > now).then_some((name, *until))
    }
}

impl MemoryStore {
    /// Returns an empty store whose leases last ten seconds by `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            holder: "memory".to_owned(),
            clock,
            reports_time: false,
            history_limit: usize::MAX,
            tables: Arc::default(),
            queue: Arc::default(),
        }
    }

    /// Returns the same store with a clock that schedulers follow, like that of a database on another host.
    #[must_use]
    pub fn reporting_time(self) -> Self {
        Self { reports_time: true, ..self }
    }

    /// Returns the same store with a limit for the history. The oldest runs are dropped.
    #[must_use]
    pub fn with_history_limit(self, history_limit: usize) -> Self {
        Self { history_limit, ..self }
    }

    /// Returns the same store as another process would use it.
    #[must_use]
    pub fn as_holder(&self, holder: impl Into<String>) -> Self {
        Self { holder: holder.into(), ..self.clone() }
    }

    /// Returns the history, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<RunRecord> {
        self.lock().runs.iter().map(|row| row.run.clone()).collect()
    }

    /// Returns every accepted request, oldest first.
    #[must_use]
    pub fn audit(&self) -> Vec<ControlRequest> {
        self.lock().audit.clone()
    }

    /// Appends the run of a queued job to the history.
    pub(super) fn append(&self, run: &RunRecord) {
        self.lock().append(run, &self.holder, self.history_limit);
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn append(&mut self, run: &RunRecord, holder: &str, history_limit: usize) {
        self.runs.push_back(RunRow { run: run.clone(), daemon_id: holder.to_owned() });
        if let Some(row) = self.jobs.get_mut(run.job.as_str()) {
            row.activity().last = NonZeroUsize::new(self.dropped + self.runs.len());
        }
        while self.runs.len() > history_limit
            && let Some(RunRow { run, .. }) = self.runs.pop_front()
        {
            self.dropped += 1;
            let activity = self.jobs.get_mut(run.job.as_str()).and_then(|row| row.activity.as_mut());
            if let Some(activity) = activity
                && let Ok(index) = activity.finished.binary_search(&run.scheduled_at)
            {
                activity.finished.remove(index);
            }
        }
    }

    fn show(&self, job: &str, row: &Row, now: Duration, wall: DateTime<Utc>) -> JobRow {
        let open = self.pauses.iter().find(|(paused, pause)| paused == job && pause.until.is_none());
        JobRow {
            job: job.to_owned(),
            state: row.state(),
            claim_hint: row.claim_hint.as_deref().cloned(),
            lease: row.holder(now).map(|(name, until)| Holder {
                name: name.to_owned(),
                fencing_token: FencingToken(row.fencing_token),
                expires_at: wall + until.saturating_sub(now),
            }),
            paused: open.map(|(_, pause)| pause.clone()),
            last_run: row
                .activity
                .as_ref()
                .and_then(|activity| activity.last)
                .and_then(|number| self.runs.get((number.get() - 1).checked_sub(self.dropped)?))
                .cloned(),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let now = self.clock.monotonic();
        let mut tables = self.lock();
        if !tables.jobs.contains_key(job) {
            let last = tables.runs.iter().rposition(|row| row.run.job == job);
            let last = last.and_then(|index| NonZeroUsize::new(tables.dropped + index + 1));
            let activity = Some(Box::new(Activity { last, ..Activity::default() }));
            let cursor_us = first_cursor.timestamp_micros();
            let new = Row { fencing_token: 0, cursor_us, claim_hint: None, activity };
            tables.jobs.insert(job.into(), new);
        }
        let row = tables.jobs.get_mut(job).expect("it is there or was just inserted");
        if let Some((holder, _)) = row.holder(now) {
            return Ok(Claim::Busy { holder: holder.to_owned() });
        }
        row.fencing_token += 1;
        row.activity().held = Some((self.holder.clone(), now + TTL));
        let (fencing_token, state, claim_hint) =
            (FencingToken(row.fencing_token), row.state(), row.claim_hint.as_deref().cloned());
        let pauses = tables.pauses.iter().filter(|(paused, _)| paused == job).map(|(_, pause)| pause);
        let pauses = pauses.filter(|pause| pause.concerns(&state)).cloned().collect();
        let requests = tables.requests.iter().filter(|request| request.is_claimed_with(job));
        let requests = requests.cloned().collect();
        Ok(Claim::Held(Lease {
            job: job.to_owned(),
            fencing_token,
            ttl: TTL,
            state,
            claim_hint,
            pauses,
            requests,
        }))
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let now = self.clock.monotonic();
        let mut tables = self.lock();
        let row = tables.jobs.get_mut(lease.job.as_str());
        let row = row.filter(|row| row.fencing_token == lease.fencing_token.0);
        match row.and_then(|row| row.activity().held.as_mut()) {
            Some((_, expires_at)) if *expires_at > now => {
                *expires_at = now + TTL;
                Ok(())
            }
            _ => Err(lease.lost()),
        }
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        let mut tables = self.lock();
        if let Some(lease) = lease {
            let row = tables.jobs.get_mut(lease.job.as_str());
            let row = row.filter(|row| row.fencing_token == lease.fencing_token.0);
            let row = row.ok_or_else(|| lease.lost())?;
            if run.finishes_occurrence() {
                let finished = &mut row.activity().finished;
                let Err(index) = finished.binary_search(&run.scheduled_at) else {
                    return Err(StoreError::AlreadyFinished {
                        job: run.job.clone(),
                        scheduled_at: run.scheduled_at,
                    });
                };
                finished.insert(index, run.scheduled_at);
            }
            row.cursor_us = next.cursor.timestamp_micros();
            row.activity().retrying = next.retrying;
        }
        tables.requests.retain(|request| !request.is_closed_by(run));
        tables.append(run, &self.holder, self.history_limit);
        Ok(())
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let Tables { jobs, claim_hints, .. } = &mut *self.lock();
        let row = jobs.get_mut(lease.job.as_str());
        if let Some(row) = row.filter(|row| row.fencing_token == lease.fencing_token.0) {
            row.activity().held = None;
            row.activity = row.activity.take().filter(|activity| **activity != Activity::default());
            let left = lease.claim_hint.as_ref().map(|hint| claim_hints.intern(hint));
            if let Some(before) = std::mem::replace(&mut row.claim_hint, left) {
                claim_hints.release(&before);
            }
        }
        Ok(())
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
        let now = self.reports_time.then(|| self.clock.now());
        let tables = self.lock();
        let revision = i64::try_from(tables.audit.len()).unwrap_or(i64::MAX);
        if known == Some(revision) {
            return Ok(StorePoll { now, changed: None });
        }
        let open = |(_, pause): &&(String, Pause)| pause.until.is_none();
        let paused = tables.pauses.iter().filter(open).cloned().collect();
        let changed = ControlState { revision, paused, requests: tables.requests.clone() };
        Ok(StorePoll { now, changed: Some(changed) })
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        let now = self.clock.monotonic();
        let mut tables = self.lock();
        let Tables { jobs, pauses, requests, audit, .. } = &mut *tables;
        let mut open = pauses.iter_mut().filter(|(job, pause)| *job == request.job && pause.until.is_none());
        match (request.action, open.next()) {
            (ControlAction::Pause, Some((_, pause))) => {
                return Ok(ControlReceipt::Unchanged(format!("it is {pause}, since {}", pause.since)));
            }
            (ControlAction::Pause, None) => pauses.push((
                request.job.clone(),
                Pause {
                    since: request.at,
                    until: None,
                    by: request.by.clone(),
                    reason: request.reason.clone(),
                },
            )),
            (ControlAction::Resume, Some((_, pause))) => pause.until = Some(request.at),
            (ControlAction::Resume, None) => {
                return Ok(ControlReceipt::Unchanged("it is not paused".to_owned()));
            }
            (ControlAction::RunNow | ControlAction::Replay { .. }, _) => requests.push(request.clone()),
            (ControlAction::Reset, _) => {
                let row = jobs.get(request.job.as_str());
                if row.is_none_or(|row| row.state().cursor <= request.at) {
                    return Ok(ControlReceipt::Unchanged(NOT_AHEAD.to_owned()));
                }
                requests.push(request.clone());
            }
            (ControlAction::Cancel { .. }, _) => {
                // A job that runs on every node has neither a claim hint nor a claim to cancel.
                let row = jobs.get(request.job.as_str());
                let fencing_token = match row {
                    Some(row) if row.holder(now).is_some() => Some(FencingToken(row.fencing_token)),
                    Some(row) if row.claim_hint.is_some() => None,
                    _ => Some(FencingToken(0)),
                };
                let before = requests.len();
                requests.retain(|open| !open.is_claimed_with(&request.job));
                let withdrawn = requests.len() < before;
                match fencing_token {
                    Some(fencing_token) => requests.push(ControlRequest {
                        action: ControlAction::Cancel { fencing_token },
                        ..request.clone()
                    }),
                    None if withdrawn || row.is_some_and(|row| row.state().retrying.is_some()) => {}
                    None => return Ok(ControlReceipt::Unchanged("no daemon runs it".to_owned())),
                }
            }
        }
        audit.push(request.clone());
        Ok(ControlReceipt::Accepted)
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let tables = self.lock();
        Ok(tables.jobs.iter().map(|(job, row)| tables.show(job, row, now, wall)).collect())
    }

    async fn late(&self, wall: DateTime<Utc>) -> Result<Vec<LateJob>, StoreError> {
        let now = self.clock.monotonic();
        let tables = self.lock();
        // Few jobs are late, and copying a row is expensive.
        let may_be = |row: &Row| {
            row.claim_hint
                .as_ref()
                .is_some_and(|claim_hint| claim_hint.late_at.is_some_and(|late_at| late_at < wall))
        };
        let rows = tables.jobs.iter().filter(|(_, row)| may_be(row));
        Ok(rows.filter_map(|(job, row)| tables.show(job, row, now, wall).late(wall)).collect())
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        let tables = self.lock();
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit as usize };
        let matches = |row: &&RunRow| filter.matches(&row.run);
        Ok(tables.runs.iter().rev().filter(matches).take(limit).cloned().collect())
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn QueueStore>> {
        Some(self)
    }
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_small() {
        let bytes = size_of::<Row>();
        assert!(bytes <= 32, "a row takes {bytes} bytes");
    }
}
