//! The worker: claims due jobs, runs them, renews their claims and records their results, each in batches of one call of the store.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tracing::warn;
use uuid::Uuid;

use super::{
    decide::{claim_limits, settle},
    enqueue::Enqueue,
    store::{NewQueuedJob, QueueResult, QueueStore, QueuedJob},
};
use crate::{
    clock::Clock,
    function::{FnJob, IntoOutcome},
    job::{FencingToken, Job, JobContext, JobError, Occurrence, StopHandle, StopReason},
    runtime::{
        decide::{JobSpec, Retry},
        engine::{Executor, STOP_GRACE, catch_unwind},
        store::{RunCause, RunRecord, StoreError, trusted_until},
    },
};

/// The time between two claims while no job is known to be due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two removals of finished jobs.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
/// How long a finished job is kept by default.
const RETENTION: Duration = Duration::from_hours(24);
/// How long the worker tries to record a result. After that the job is executed again.
const RECORD_TIMEOUT: Duration = Duration::from_mins(1);

/// The code of one kind of one-off jobs, with its limits.
#[must_use]
pub struct QueueJob {
    kind: String,
    job: Arc<dyn Job>,
    concurrency: u32,
    timeout: Duration,
    retry: Retry,
}

impl QueueJob {
    /// Returns a kind that calls an async function or closure with the decoded payload. A payload that cannot be decoded is a
    /// failure without a retry.
    pub fn new<P, F, R>(kind: impl Into<String>, run: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        F: Fn(JobContext, P) -> R + Send + Sync + 'static,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        let run = Arc::new(run);
        Self::of(
            kind,
            FnJob(move |ctx: JobContext| {
                let run = Arc::clone(&run);
                async move {
                    let payload = ctx.payload()?;
                    run(ctx, payload).await.into_outcome()
                }
            }),
        )
    }

    /// Returns a kind of a type that implements [`Job`], which reads [`JobContext::payload`].
    pub fn of(kind: impl Into<String>, job: impl Job) -> Self {
        Self {
            kind: kind.into(),
            job: Arc::new(job),
            concurrency: 10,
            timeout: JobSpec::TIMEOUT,
            retry: Retry::default(),
        }
    }

    /// Sets how many jobs of the kind this process runs at once; 10 by default.
    pub fn concurrency(self, concurrency: u32) -> Self {
        Self { concurrency, ..self }
    }

    /// Sets the maximum duration of one run; ten minutes by default.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets the policy for failed runs.
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }
}

/// Adds one-off jobs to a store, and runs those whose kinds it has. Several processes may share the store.
///
/// A job runs again if its process ends before the result is recorded, so its code is idempotent, or commits its changes together
/// with the end of the job if the store can.
///
/// ```
/// # use std::sync::Arc;
/// # use billing_scheduler::{BoxError, MemoryStore, Queue, QueueJob, SystemClock};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let clock = Arc::new(SystemClock);
/// let queue = Queue::new(Arc::new(MemoryStore::new(clock.clone())), clock)
///     .job(QueueJob::new("greet", |_ctx, name: String| async move { println!("hello {name}") }));
/// queue.enqueue("greet", "Ada")?.unique_by("ada").await?;
/// assert_eq!(queue.run_due().await?, 1);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Queue {
    store: Arc<dyn QueueStore>,
    clock: Arc<dyn Clock>,
    kinds: HashMap<String, Arc<QueueJob>>,
    retention: Duration,
    added: Arc<Notify>,
    running: Arc<Mutex<HashMap<Uuid, Running>>>,
}

/// A claimed job whose result is not recorded yet.
struct Running {
    kind: String,
    fencing_token: FencingToken,
    stop: StopHandle,
}

impl Queue {
    /// Returns a queue without kinds, which can only add jobs.
    pub fn new(store: Arc<dyn QueueStore>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            kinds: HashMap::new(),
            retention: RETENTION,
            added: Arc::default(),
            running: Arc::default(),
        }
    }

    /// Adds a kind, or replaces the kind of the same name.
    pub fn job(mut self, job: QueueJob) -> Self {
        self.kinds.insert(job.kind.clone(), Arc::new(job));
        self
    }

    /// Sets how long finished jobs are kept; a day by default. As long as a job is kept, its id cannot be added again.
    pub fn retention(self, retention: Duration) -> Self {
        Self { retention, ..self }
    }

    /// Returns a job to add, which is due immediately unless a time is set: `queue.enqueue("mail", &mail)?.after(hour).await?`.
    ///
    /// # Errors
    /// The payload cannot be represented as JSON.
    pub fn enqueue(&self, kind: &str, payload: impl Serialize) -> Result<Enqueue, serde_json::Error> {
        let job = NewQueuedJob::new(kind, serde_json::to_value(payload)?);
        Ok(Enqueue::new(job, Arc::clone(&self.store), Arc::clone(&self.added)))
    }

    /// Adds many jobs in one transaction, and returns the ids of those that were added.
    pub async fn enqueue_all(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, StoreError> {
        let added = self.store.enqueue(jobs).await?;
        self.added.notify_one();
        Ok(added)
    }

    /// Runs every due job to its end, also those that become due meanwhile, and returns the number of runs. For tests and
    /// applications with their own timer: claims are not renewed.
    pub async fn run_due(&self) -> Result<usize, StoreError> {
        let (mut runs, mut count) = (JoinSet::new(), 0);
        loop {
            count += self.claim(&mut runs).await?.0;
            let results = next_results(&mut runs).await;
            if results.is_empty() {
                return Ok(count);
            }
            self.record(&results).await?;
        }
    }

    /// Claims and runs jobs until `end` is ready. Then runs in progress may continue for `timeout`; after that they are requested to
    /// stop, and what does not stop is claimed again after the end of its claim.
    pub async fn run_until(&self, end: impl Future, timeout: Duration) {
        let mut runs = JoinSet::new();
        let ended = watch::Sender::new(false);
        let work = async {
            self.work(&mut runs, end).await;
            self.drain(&mut runs, timeout).await;
            ended.send_replace(true);
        };
        // Each of them ends between two calls of the store: none is cancelled.
        tokio::join!(work, self.renew_until(ended.subscribe()), self.prune_until(ended.subscribe()));
        // Runs that did not stop end with this set.
        runs.shutdown().await;
        self.lock().clear();
    }

    async fn work(&self, runs: &mut JoinSet<QueueResult>, end: impl Future) {
        let mut end = pin!(end);
        // Whether there may be more due jobs than were claimed.
        let mut more = true;
        loop {
            if more {
                match self.claim(runs).await {
                    Ok((_, filled)) => more = filled,
                    Err(error) => {
                        warn!("cannot claim queued jobs: {error}; retrying");
                        more = false;
                    }
                }
            }
            tokio::select! {
                biased;
                _ = &mut end => return,
                results = next_results(runs), if !runs.is_empty() => self.record_within(RECORD_TIMEOUT, &results).await,
                () = self.added.notified(), if !more => more = true,
                () = self.clock.sleep(POLL_INTERVAL) => more = true,
            }
        }
    }

    async fn drain(&self, runs: &mut JoinSet<QueueResult>, timeout: Duration) {
        let mut stopping = false;
        let mut limit = pin!(self.clock.sleep(timeout));
        while !runs.is_empty() {
            tokio::select! {
                results = next_results(runs) => self.record_within(STOP_GRACE, &results).await,
                () = &mut limit => {
                    if stopping {
                        return;
                    }
                    stopping = true;
                    self.lock().values().for_each(|running| running.stop.stop(StopReason::Drain));
                    limit.set(self.clock.sleep(STOP_GRACE));
                }
            }
        }
    }

    /// Claims as many jobs as the limits of their kinds permit and starts them. Returns their number, and whether a limit was reached.
    async fn claim(&self, runs: &mut JoinSet<QueueResult>) -> Result<(usize, bool), StoreError> {
        let limits = {
            let running = self.lock();
            let mut claimed: HashMap<&str, u32> = HashMap::new();
            running.values().for_each(|job| *claimed.entry(&job.kind).or_default() += 1);
            claim_limits(self.kinds.values().map(|kind| {
                (kind.kind.as_str(), kind.concurrency, claimed.get(kind.kind.as_str()).copied().unwrap_or(0))
            }))
        };
        if limits.is_empty() {
            return Ok((0, !self.kinds.is_empty()));
        }
        let sent = self.clock.monotonic();
        let jobs = self.store.claim(&limits).await?;
        let count = jobs.len();
        let mut by_kind: HashMap<&str, u32> = HashMap::new();
        for job in &jobs {
            *by_kind.entry(&job.kind).or_default() += 1;
        }
        let filled = limits.len() < self.kinds.len()
            || limits.iter().any(|(kind, limit)| by_kind.get(kind.as_str()).is_some_and(|n| n >= limit));
        for job in jobs {
            let Some(kind) = self.kinds.get(&job.kind) else { continue };
            let stop = StopHandle::new();
            stop.trust_lease_until(trusted_until(sent, self.store.claim_ttl()));
            let running =
                Running { kind: job.kind.clone(), fencing_token: job.fencing_token, stop: stop.clone() };
            self.lock().insert(job.id, running);
            runs.spawn(run(Arc::clone(kind), job, Arc::clone(&self.clock), stop));
        }
        Ok((count, filled))
    }

    /// Records results. Repeats that for up to `limit` while the store is unavailable.
    async fn record_within(&self, limit: Duration, results: &[QueueResult]) {
        let began = self.clock.monotonic();
        while let Err(error) = self.record(results).await {
            warn!("cannot record {} runs of queued jobs: {error}", results.len());
            if self.clock.monotonic().saturating_sub(began) >= limit {
                let mut running = self.lock();
                for result in results {
                    running.remove(&result.id);
                }
                return;
            }
            self.clock.sleep(POLL_INTERVAL).await;
        }
    }

    async fn record(&self, results: &[QueueResult]) -> Result<(), StoreError> {
        let written = self.store.settle(results).await?;
        let mut running = self.lock();
        for QueueResult { id, run, .. } in results {
            running.remove(id);
            if !written.contains(id) {
                warn!(job.name = %run.job, "the claim of queued job {id} of kind `{}` was lost during its run", run.job);
            }
        }
        Ok(())
    }

    /// Waits for `duration`. Returns whether the worker has not ended.
    async fn sleep_until(&self, duration: Duration, ended: &mut watch::Receiver<bool>) -> bool {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => false,
            () = self.clock.sleep(duration) => true,
        }
    }

    async fn renew_until(&self, mut ended: watch::Receiver<bool>) {
        let ttl = self.store.claim_ttl();
        while self.sleep_until(ttl / 3, &mut ended).await {
            let claims: Vec<_> = self.lock().iter().map(|(id, job)| (*id, job.fencing_token)).collect();
            if claims.is_empty() {
                continue;
            }
            let sent = self.clock.monotonic();
            match self.store.renew(&claims).await {
                Ok(held) => {
                    let running = self.lock();
                    for (id, job) in claims.iter().filter_map(|(id, _)| Some((id, running.get(id)?))) {
                        if held.contains(id) {
                            job.stop.trust_lease_until(trusted_until(sent, ttl));
                        } else {
                            job.stop.stop(StopReason::LeaseLost);
                        }
                    }
                }
                Err(error) => warn!("cannot renew the claims of queued jobs: {error}; retrying"),
            }
        }
    }

    async fn prune_until(&self, mut ended: watch::Receiver<bool>) {
        while self.sleep_until(PRUNE_INTERVAL, &mut ended).await {
            if let Err(error) = self.store.prune(self.retention).await {
                warn!("cannot remove finished queued jobs: {error}; retrying");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the results of all runs that have ended, at least one unless there are no runs.
async fn next_results(runs: &mut JoinSet<QueueResult>) -> Vec<QueueResult> {
    let mut results: Vec<_> = runs.join_next().await.into_iter().flatten().collect();
    while let Some(ended) = runs.try_join_next() {
        results.extend(ended);
    }
    results
}

/// Runs one job in isolation, and returns its result.
async fn run(kind: Arc<QueueJob>, job: QueuedJob, clock: Arc<dyn Clock>, stop: StopHandle) -> QueueResult {
    let occurrence = Occurrence { job: job.kind.clone(), scheduled_at: job.scheduled_at };
    let attempt = job.failed_attempts.saturating_add(1);
    let ctx = JobContext::new(occurrence, attempt, job.fencing_token, Arc::clone(&clock), stop)
        .with_request_id(Some(job.id))
        .with_payload(job.payload.clone());
    let started_at = clock.now();
    let executor = Executor::new(Arc::clone(&kind.job), kind.timeout);
    let result: Result<_, JobError> = catch_unwind(executor.run(&ctx)).await;
    let settled = settle(&kind.retry, &job, result);
    let mask = ctx.mask();
    let mut details = if settled.details.is_null() { ctx.reported() } else { settled.details };
    mask.apply_to_json(&mut details);
    let record = RunRecord {
        id: ctx.run_id,
        attempt,
        fencing_token: job.fencing_token,
        finished_at: clock.now(),
        items: settled.items,
        request_id: Some(job.id),
        error: settled.error.map(|error| mask.apply(&error).into_owned()),
        details,
        ..RunRecord::new(&job.kind, job.scheduled_at, settled.status, RunCause::Queue, started_at)
    };
    QueueResult { id: job.id, run: record, next: settled.next }
}
