//! The worker: claims due jobs, runs them, renews their claims and records their results, each in batches of one call of the store.
//! Claims and records are in progress at the same time, and each batch is what has accumulated during the call before it.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    task::JoinSet,
};
use tracing::warn;

use super::{claims::Claims, due_times::DueTimes, kind::QueueJob, run::run};
use crate::{
    clock::Clock,
    job::{FencingToken, StopHandle, StopReason},
    runtime::{
        executor::STOP_GRACE,
        store::{NewQueuedJob, QueueResult, QueueStore, StoreError, trusted_until},
        surroundings::Surroundings,
    },
};

/// The longest time between two claims.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long free places wait for further ones, if they are few. A claim passes over the jobs that are claimed, so a claim for each
/// place would cost as much as one for all of them.
const CLAIM_DELAY: Duration = Duration::from_millis(10);
/// The time between two removals of finished jobs.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
/// How long the worker tries to record a result. After that the attempt counts as failed without a result.
const RECORD_TIMEOUT: Duration = Duration::from_mins(1);
/// The most results in one call of the store.
const BATCH: usize = 1_000;

/// Runs the jobs of a store whose kinds it has. Several processes may share the store.
pub(crate) struct Queue {
    pub(super) store: Arc<dyn QueueStore>,
    /// Wakes the worker, because jobs were added.
    added: Notify,
    due_times: DueTimes,
    /// Wakes the worker, because results are recorded and no longer hold back claims.
    recorded: Notify,
    clock: Arc<dyn Clock>,
    surroundings: Arc<Surroundings>,
    kinds: HashMap<String, Arc<QueueJob>>,
    retention: Duration,
    claims: Claims,
    is_interrupted: watch::Sender<bool>,
}

/// What one claim has found.
struct Claimed {
    count: usize,
    /// Whether there may be more due jobs than were claimed.
    more: bool,
}

impl Queue {
    /// How long a finished job is kept by default.
    pub(crate) const RETENTION: Duration = Duration::from_hours(24);

    pub(crate) fn new(
        store: Arc<dyn QueueStore>,
        clock: Arc<dyn Clock>,
        surroundings: Arc<Surroundings>,
        kinds: Vec<QueueJob>,
        retention: Duration,
    ) -> Self {
        Self {
            store,
            added: Notify::new(),
            due_times: DueTimes::default(),
            recorded: Notify::new(),
            clock,
            surroundings,
            kinds: kinds.into_iter().map(|kind| (kind.kind.clone(), Arc::new(kind))).collect(),
            retention,
            claims: Claims::default(),
            is_interrupted: watch::Sender::new(false),
        }
    }

    /// Whether this process can run jobs.
    pub(crate) fn has_kinds(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// Wakes the worker for jobs that this process has added: now, and when they are due.
    pub(super) fn note_added(&self, jobs: &[NewQueuedJob]) {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let ours = jobs.iter().filter(|job| self.kinds.contains_key(&job.kind));
        let waits = ours.filter_map(|job| (job.time.due(now) - now).to_std().ok());
        self.due_times.add(waits.map(|wait| monotonic + wait));
        self.added.notify_one();
    }

    /// Runs every due job to its end, also those that become due meanwhile, and returns the number of runs.
    pub(crate) async fn run_due(self: &Arc<Self>) -> Result<usize, StoreError> {
        let (sender, mut results) = unbounded_channel();
        let (mut runs, mut count, mut recorded) = (JoinSet::new(), 0, 0);
        loop {
            // A failure drops the runs, so their claims end here.
            let claimed = self.claim(&mut runs, &sender).await;
            count += claimed.inspect_err(|_| self.claims.clear())?.count;
            if count == recorded {
                return Ok(count);
            }
            let batch = next_batch(&mut results).await;
            recorded += batch.len();
            self.record(&batch).await.inspect_err(|_| self.claims.clear())?;
        }
    }

    /// Claims and runs jobs until `end` returns a time. Runs in progress may continue for that long; after that, or at
    /// [`Queue::interrupt`], they are requested to stop. Returns the number of runs that did not stop: their claims expire.
    pub(crate) async fn work(self: &Arc<Self>, end: impl Future<Output = Duration>) -> usize {
        let (sender, results) = unbounded_channel();
        let draining = watch::Sender::new(false);
        let ended = watch::Sender::new(false);
        let runs = async {
            let mut runs = JoinSet::new();
            let timeout = self.claim_until(&mut runs, sender, end).await;
            draining.send_replace(true);
            self.drain(&mut runs, timeout).await
        };
        let work = async {
            let (abandoned, ()) = tokio::join!(runs, self.record_all(results, draining.subscribe()));
            ended.send_replace(true);
            abandoned
        };
        // Each of them ends between two calls of the store: none but the listener is cancelled.
        let (abandoned, (), ()) =
            tokio::join!(work, self.prune_until(ended.subscribe()), self.listen_until(ended.subscribe()));
        self.claims.clear();
        abandoned
    }

    async fn claim_until(
        self: &Arc<Self>,
        runs: &mut JoinSet<()>,
        sender: UnboundedSender<QueueResult>,
        end: impl Future<Output = Duration>,
    ) -> Duration {
        let mut end = pin!(end);
        let mut more = self.try_claim(runs, &sender).await;
        // Whether a run has ended since the last claim.
        let mut is_freed = false;
        loop {
            tokio::select! {
                biased;
                timeout = &mut end => return timeout,
                _ = runs.join_next(), if !runs.is_empty() => {
                    while runs.try_join_next().is_some() {}
                    is_freed = true;
                    if !more || !self.claims.have_room(self.limits()) {
                        continue;
                    }
                }
                () = self.added.notified() => {}
                () = self.recorded.notified(), if more => {
                    if !self.claims.have_room(self.limits()) {
                        continue;
                    }
                }
                () = self.clock.sleep(CLAIM_DELAY), if more && is_freed => {}
                () = self.clock.sleep(self.until_next_claim()) => {}
            }
            is_freed = false;
            more = self.try_claim(runs, &sender).await;
        }
    }

    fn until_next_claim(&self) -> Duration {
        self.due_times.wait(self.clock.monotonic()).map_or(POLL_INTERVAL, |wait| wait.min(POLL_INTERVAL))
    }

    /// Claims once. Returns whether there may be more due jobs.
    async fn try_claim(
        self: &Arc<Self>,
        runs: &mut JoinSet<()>,
        sender: &UnboundedSender<QueueResult>,
    ) -> bool {
        self.claim(runs, sender).await.map_or_else(
            |error| {
                warn!("cannot claim queued jobs: {error}; retrying");
                false
            },
            |claimed| claimed.more,
        )
    }

    /// Claims as many jobs as the limits of their kinds permit, and starts them.
    async fn claim(
        self: &Arc<Self>,
        runs: &mut JoinSet<()>,
        sender: &UnboundedSender<QueueResult>,
    ) -> Result<Claimed, StoreError> {
        self.due_times.remove_past(self.clock.monotonic());
        let limits = self.claims.free(self.limits());
        if limits.is_empty() {
            return Ok(Claimed { count: 0, more: true });
        }
        let sent = self.clock.monotonic();
        let jobs = self.store.claim(&limits).await?;
        let trusted_until = trusted_until(sent, self.store.claim_ttl());
        let count = jobs.len();
        let mut by_kind: HashMap<String, u32> = HashMap::new();
        for job in jobs {
            let Some(kind) = self.kinds.get(&job.kind) else { continue };
            *by_kind.entry(job.kind.clone()).or_default() += 1;
            let stop = StopHandle::new();
            stop.trust_lease_until(trusted_until);
            if let Some(lost) = self.claims.add(job.id, &job.kind, job.fencing_token, stop.clone()) {
                self.report_lost(&job.kind, lost);
            }
            let (queue, kind, sender) = (Arc::clone(self), Arc::clone(kind), sender.clone());
            runs.spawn(async move {
                let result = run(&kind, job, stop, &queue.clock, &queue.surroundings).await;
                queue.claims.end_run(result.id, result.run.fencing_token);
                // It fails only if the worker was dropped.
                let _ = sender.send(result);
            });
        }
        let more = limits.len() < self.kinds.len()
            || limits.iter().any(|(kind, limit)| by_kind.get(kind).is_some_and(|n| n >= limit));
        Ok(Claimed { count, more })
    }

    /// Returns the names and the limits of the kinds.
    fn limits(&self) -> impl Iterator<Item = (&str, u32)> {
        self.kinds.values().map(|kind| (kind.kind.as_str(), kind.concurrency))
    }

    async fn drain(&self, runs: &mut JoinSet<()>, timeout: Duration) -> usize {
        let mut interrupted = self.is_interrupted.subscribe();
        let all_ended = async |runs: &mut JoinSet<()>| while runs.join_next().await.is_some() {};
        tokio::select! {
            biased;
            () = all_ended(runs) => return 0,
            // The sender lives as long as the queue.
            _ = interrupted.wait_for(|interrupted| *interrupted) => {}
            () = self.clock.sleep(timeout) => {}
        }
        self.claims.stop_all(StopReason::Drain);
        tokio::select! {
            biased;
            () = all_ended(runs) => return 0,
            () = self.clock.sleep(STOP_GRACE) => {}
        }
        let abandoned = runs.len();
        runs.shutdown().await;
        abandoned
    }

    /// Requests every run in progress to stop, now or when the worker ends.
    pub(crate) fn interrupt(&self) {
        self.is_interrupted.send_replace(true);
    }

    /// Records results until no run can send another one.
    async fn record_all(&self, mut results: UnboundedReceiver<QueueResult>, draining: watch::Receiver<bool>) {
        loop {
            let batch = next_batch(&mut results).await;
            if batch.is_empty() {
                return;
            }
            let began = self.clock.monotonic();
            while let Err(error) = self.record(&batch).await {
                warn!("cannot record {} runs of queued jobs: {error}", batch.len());
                let limit = if *draining.borrow() { STOP_GRACE } else { RECORD_TIMEOUT };
                if self.clock.monotonic().saturating_sub(began) >= limit {
                    for result in &batch {
                        self.claims.remove(result.id, result.run.fencing_token);
                    }
                    break;
                }
                self.clock.sleep(POLL_INTERVAL).await;
            }
            self.recorded.notify_one();
        }
    }

    async fn record(&self, results: &[QueueResult]) -> Result<(), StoreError> {
        // The loss of an older claim was reported when this process claimed the job again.
        let is_newest = |result: &&QueueResult| self.claims.is_newest(result.id, result.run.fencing_token);
        let results: Vec<_> = results.iter().filter(is_newest).cloned().collect();
        if results.is_empty() {
            return Ok(());
        }
        let written: HashSet<_> = self.store.settle(&results).await?.into_iter().collect();
        for QueueResult { id, run, .. } in &results {
            let was_reported = self.claims.remove(*id, run.fencing_token);
            if written.contains(id) {
                self.surroundings.events.emit_record(run);
            } else if !was_reported {
                self.report_lost(&run.job, run.fencing_token);
            }
        }
        Ok(())
    }

    fn report_lost(&self, kind: &str, fencing_token: FencingToken) {
        self.surroundings.events.emit_lost(kind, fencing_token);
        warn!(job.name = %kind, %fencing_token, "the claim of a queued job of kind `{kind}` was lost during its run");
    }

    /// Extends the claims of all jobs whose results are not recorded, and returns their lifetime; `None` without any.
    pub(crate) async fn renew_claims(&self) -> Option<Duration> {
        let claims = self.claims.held();
        if claims.is_empty() {
            return None;
        }
        let (sent, ttl) = (self.clock.monotonic(), self.store.claim_ttl());
        match self.store.renew_claims(&claims).await {
            Ok(held) => {
                for (kind, fencing_token) in self.claims.renewed(&claims, &held, trusted_until(sent, ttl)) {
                    self.report_lost(&kind, fencing_token);
                }
            }
            Err(error) => warn!("cannot renew the claims of queued jobs: {error}; retrying"),
        }
        Some(ttl)
    }

    async fn listen_until(&self, mut ended: watch::Receiver<bool>) {
        let added = || self.added.notify_one();
        let listen = async {
            self.store.listen(&added).await;
            // Without a listener, polls find the jobs.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => {}
            () = listen => {}
        }
    }

    async fn prune_until(&self, mut ended: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                () = self.clock.sleep(PRUNE_INTERVAL) => {}
            }
            if let Err(error) = self.store.prune(self.retention).await {
                warn!("cannot remove finished queued jobs: {error}; retrying");
            }
        }
    }
}

/// Returns the results that have accumulated, at least one; none if no run can send another one.
async fn next_batch(results: &mut UnboundedReceiver<QueueResult>) -> Vec<QueueResult> {
    let mut batch = Vec::new();
    results.recv_many(&mut batch, BATCH).await;
    batch
}
