//! A scheduler with its own timer and its own renewal of leases, until it is shut down.

use std::{io, ops::Deref, sync::Arc, thread, time::Duration};

use tokio::{
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

#[cfg(feature = "signals")]
use super::signals::Signals;
use super::{
    engine::{DrainReport, Scheduler},
    queue::Queue,
};

/// How long runs in progress may continue after the end, if the caller sets no limit.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// A scheduler that runs. It is a [`Scheduler`], so it controls, adds and removes jobs.
///
/// If it is dropped without a shutdown, nothing starts any more; runs in progress end with the last copy of the scheduler.
#[must_use = "the scheduler stops when it is dropped"]
pub struct RunningScheduler {
    scheduler: Scheduler,
    /// The task that ticks; it is aborted when this is dropped.
    ticker: JoinSet<()>,
    renewal: LeaseRenewal,
    queue: Option<QueueTask>,
}

/// The task that runs queued jobs. If this is dropped without a shutdown, the task requests its runs to stop, and ends.
struct QueueTask {
    /// How long runs in progress may continue.
    end: oneshot::Sender<Duration>,
    task: JoinHandle<usize>,
}

impl QueueTask {
    fn start(queue: Arc<Queue>) -> Self {
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(async move { queue.work(async { ended.await.unwrap_or_default() }).await });
        Self { end, task }
    }

    /// Returns the number of abandoned runs.
    async fn shutdown(self, timeout: Duration) -> usize {
        // Both fail only if the runtime has ended.
        let _ = self.end.send(timeout);
        self.task.await.unwrap_or_default()
    }
}

impl RunningScheduler {
    pub(super) fn start(scheduler: Scheduler) -> io::Result<Self> {
        let renewal = LeaseRenewal::start(scheduler.clone())?;
        let clone = scheduler.clone();
        let mut ticker = JoinSet::new();
        ticker.spawn(async move {
            let mut second = interval(Duration::from_secs(1));
            second.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                second.tick().await;
                clone.tick();
            }
        });
        let queue = scheduler.working_queue().map(QueueTask::start);
        Ok(Self { scheduler, ticker, renewal, queue })
    }

    /// Starts nothing new, and waits until the runs in progress have ended. After `timeout` they are requested to stop: see
    /// [`Scheduler::drain`].
    pub async fn shutdown(mut self, timeout: Duration) -> DrainReport {
        let queue = async {
            match self.queue {
                Some(queue) => queue.shutdown(timeout).await,
                None => 0,
            }
        };
        let (report, abandoned) = tokio::join!(self.scheduler.drain(timeout), queue);
        self.ticker.shutdown().await;
        self.renewal.stop();
        DrainReport { abandoned: report.abandoned + abandoned }
    }

    /// Runs until `end` is ready, and then shuts down; runs in progress may continue for 30 seconds.
    pub async fn run_until(self, end: impl Future) -> DrainReport {
        end.await;
        self.shutdown(SHUTDOWN_TIMEOUT).await
    }

    /// Runs until SIGTERM or Ctrl+C, and then shuts down; runs in progress may continue for 30 seconds, or until a second signal.
    ///
    /// # Errors
    /// The signals cannot be received.
    #[cfg(feature = "signals")]
    pub async fn shutdown_on_signal(self) -> io::Result<DrainReport> {
        let mut signals = Signals::listen()?;
        signals.next().await;
        let scheduler = self.scheduler.clone();
        let mut shutdown = std::pin::pin!(self.shutdown(SHUTDOWN_TIMEOUT));
        tokio::select! {
            report = &mut shutdown => return Ok(report),
            _ = signals.next() => scheduler.interrupt(),
        }
        Ok(shutdown.await)
    }
}

impl Deref for RunningScheduler {
    type Target = Scheduler;

    fn deref(&self) -> &Scheduler {
        &self.scheduler
    }
}

impl std::fmt::Debug for RunningScheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningScheduler").finish_non_exhaustive()
    }
}

/// A thread that renews the leases of a scheduler until it is dropped: a job that blocks every thread of the runtime does not lose
/// its lease.
#[derive(Debug)]
#[must_use = "leases are not renewed after it is dropped"]
pub struct LeaseRenewal {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl LeaseRenewal {
    /// Starts the thread. It renews three times per lifetime of a lease.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(scheduler: Scheduler) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = oneshot::channel();
        let renew = async move {
            // The lifetime is known from the first lease on.
            let mut every = Duration::from_secs(1);
            loop {
                tokio::select! {
                    () = tokio::time::sleep(every) => {
                        every = scheduler.renew_leases().await.map_or(every, |lifetime| lifetime / 3);
                    }
                    _ = &mut stopped => return,
                }
            }
        };
        let thread =
            thread::Builder::new().name("lease-renewal".to_owned()).spawn(move || runtime.block_on(renew))?;
        Ok(Self { stop, thread })
    }

    /// Waits for a renewal in progress and ends the thread.
    pub fn stop(self) {
        // Both fail only if the thread has ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
