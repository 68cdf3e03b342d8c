//! One run of a job outside of its schedule, for commands and administration tools.

use std::sync::Arc;

use chrono::SubsecRound;
use tokio::sync::{Notify, oneshot};
use tracing::{Instrument, warn};

use super::{
    lease_cycle::LeaseCycle,
    scheduler::Scheduler,
    shared::{Shared, lock},
    start_gate::StartGate,
};
use crate::{
    clock::Clock,
    job::StopHandle,
    runtime::{
        decide::next_action::{NextRun, first_cursor},
        spans,
        store::{Claim, Lease, RunCause, RunRecord, StoreError},
    },
};

/// Why [`Scheduler::run_once`] did not run a job, or could not record the run.
#[derive(Debug, thiserror::Error)]
pub enum RunOnceError {
    /// The scheduler has no job of that name.
    #[error("unknown job `{job}`")]
    UnknownJob {
        /// The requested name.
        job: String,
    },
    /// Another lease cycle of the job is in progress in this process.
    #[error("job `{job}` is already running in this process")]
    AlreadyRunning {
        /// The job's name.
        job: String,
    },
    /// Another process holds the job's lease.
    #[error("job `{job}` is run by {holder}")]
    Busy {
        /// The job's name.
        job: String,
        /// The process, as it calls itself.
        holder: String,
    },
    /// The scheduler is draining, or was drained before the run ended.
    #[error("the scheduler is shutting down")]
    ShuttingDown,
    /// The store failed before the run started.
    #[error("cannot claim the lease of the job: {0}")]
    Claim(#[source] StoreError),
    /// The store failed after the run ended.
    #[error("cannot record the run: {0}")]
    Record(#[source] StoreError),
}

impl Scheduler {
    /// Runs `job` once, now, under its lease, whatever its schedule and its pauses are; returns the record of the run as it was
    /// written. `reason` is recorded with it. The schedule's position does not change, and a failure is not retried.
    ///
    /// The lease is renewed until the run ends, without [`Scheduler::renew_leases`]. [`Scheduler::interrupt`] requests the run
    /// to stop. Dropping the returned future does not stop the run: [`Scheduler::drain`] waits for it. A scheduler that
    /// nothing ticks runs nothing else, so a command can build one for a single job.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use billing_scheduler::{
    /// #     Job, JobContext, JobError, JobSpec, ManualClock, MemoryStore, Outcome, Registry, RunStatus, Schedule,
    /// #     Scheduler, chrono::DateTime,
    /// # };
    /// # struct Greet;
    /// # #[async_trait::async_trait]
    /// # impl Job for Greet {
    /// #     async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> { Ok(Outcome::done(3)) }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut registry = Registry::new();
    /// # registry.register("acme.greet", |_: serde_json::Value| Greet);
    /// # let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH));
    /// # let store = Arc::new(MemoryStore::new(clock.clone()));
    /// let daily = JobSpec::new("greet", "acme.greet", Schedule::every(Duration::from_secs(86_400))?);
    /// let scheduler = Scheduler::build(&registry, [(daily, serde_json::json!({}))], store, clock)?;
    /// let run = scheduler.run_once("greet", Some("after the outage")).await?;
    /// assert_eq!((run.status, run.items), (RunStatus::Done, 3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The job did not run, or its record could not be written. A run that failed is not an error: its record has the status and the error.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn run_once(&self, job: &str, reason: Option<&str>) -> Result<RunRecord, RunOnceError> {
        let shared = &self.shared;
        if shared.is_closed() {
            return Err(RunOnceError::ShuttingDown);
        }
        let Some(scheduled) = shared.job(job) else {
            return Err(RunOnceError::UnknownJob { job: job.to_owned() });
        };
        let Some(wakeup) = lock(&shared.due_queue).take_early(scheduled.index()) else {
            return Err(RunOnceError::AlreadyRunning { job: job.to_owned() });
        };
        let gate = Arc::<StartGate>::default();
        gate.open();
        let mut cycle = LeaseCycle::new(Arc::clone(shared), scheduled, wakeup, gate);
        cycle.wake_at(wakeup.at);
        let active = shared.progress.begin_cycle();
        let reason = reason.map(str::to_owned);
        let (sender, ended) = oneshot::channel();
        lock(&shared.cycles).spawn(async move {
            let result = cycle.run_once(reason).await;
            let (shared, name, abandoned) =
                (Arc::clone(&cycle.shared), cycle.job.name.clone(), cycle.job.take_abandoned());
            let Some(abandoned) = abandoned else {
                drop((cycle, active));
                // The caller may have stopped waiting.
                let _ = sender.send(result);
                return;
            };
            let _ = sender.send(result);
            shared.wait_for_abandoned(&name, abandoned).await;
            drop((cycle, active));
        });
        ended.await.unwrap_or(Err(RunOnceError::ShuttingDown))
    }
}

impl LeaseCycle {
    async fn run_once(&self, reason: Option<String>) -> Result<RunRecord, RunOnceError> {
        let (shared, spec) = (&self.shared, self.spec());
        shared.ensure_polled().await.map_err(RunOnceError::Claim)?;
        let now = shared.clock.now();
        let stop = StopHandle::new();
        let sent = shared.clock.monotonic();
        let claim = shared.store.acquire(&spec.name, first_cursor(spec, now)).await;
        let lease = match claim.map_err(RunOnceError::Claim)? {
            Claim::Held(lease) => lease,
            Claim::Busy { holder } => return Err(RunOnceError::Busy { job: spec.name.clone(), holder }),
        };
        stop.trust_lease_until(lease.trusted_until(sent));
        shared.add_running(&self.job, Some(&lease), &stop);
        if shared.is_closed() {
            stop.stop(crate::job::StopReason::Drain);
        }
        let run = NextRun { reason, ..NextRun::new(now.trunc_subsecs(0), RunCause::Manual) };
        let ended = Notify::new();
        let running = async {
            let record = self.run_and_describe(&run, &lease, &stop).await;
            ended.notify_one();
            record
        };
        // A renewal in progress is completed, not dropped.
        let (record, ()) = tokio::join!(running, keep_lease(shared, &lease, &stop, &ended));
        lock(&shared.running).remove(&self.job.index());
        // The state is unchanged, so the claim hint stays as it was.
        let written = shared.store.finish(&lease, &record, &lease.state).await;
        if let Err(error) = written {
            if let Err(error) = shared.store.release(&lease).await {
                warn!(job.name = %spec.name, %error, "cannot release the lease of job `{}`: {error}", spec.name);
            }
            return Err(RunOnceError::Record(error));
        }
        shared.surroundings.events.emit_record(&record);
        Ok(record)
    }

    async fn run_and_describe(&self, run: &NextRun, lease: &Lease, stop: &StopHandle) -> RunRecord {
        let (shared, spec) = (&self.shared, self.spec());
        let ctx = shared.context(spec, run, lease.fencing_token, stop);
        let span = spans::span(spec, &ctx);
        let ran = shared.run(self, &ctx, None).instrument(span.clone()).await;
        let (record, _) = shared.describe(self, run, &ctx, ran, &lease.state);
        spans::ended(&span, &record);
        let record = RunRecord { fencing_token: lease.fencing_token, ..record };
        shared.surroundings.report_outcome(spec, &record);
        record
    }
}

/// Renews the lease three times per lifetime until the run has ended.
async fn keep_lease(shared: &Shared, lease: &Lease, stop: &StopHandle, ended: &Notify) {
    loop {
        tokio::select! {
            biased;
            () = ended.notified() => return,
            () = shared.clock.sleep(lease.ttl / 3) => {}
        }
        shared.renew(lease, stop).await;
    }
}
