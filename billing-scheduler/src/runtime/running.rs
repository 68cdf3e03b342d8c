//! A scheduler with its own timer and its own renewal of leases, until it is shut down.

use std::{io, ops::Deref, thread, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::engine::{DrainReport, Scheduler};

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
        Ok(Self { scheduler, ticker, renewal })
    }

    /// Starts nothing new, and waits until the runs in progress have ended. After `timeout` they are requested to stop: see
    /// [`Scheduler::drain`].
    pub async fn shutdown(mut self, timeout: Duration) -> DrainReport {
        let report = self.scheduler.drain(timeout).await;
        self.ticker.shutdown().await;
        self.renewal.stop();
        report
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
            () = signals.next() => scheduler.interrupt(),
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

/// The signals that end the process. It listens from its construction on: a signal between two calls of `next` is not lost.
#[cfg(feature = "signals")]
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(windows)]
    terminate: tokio::signal::windows::CtrlShutdown,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(feature = "signals")]
impl Signals {
    fn listen() -> io::Result<Self> {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            #[cfg(unix)]
            terminate: signal(SignalKind::terminate())?,
            #[cfg(unix)]
            interrupt: signal(SignalKind::interrupt())?,
            #[cfg(windows)]
            terminate: tokio::signal::windows::ctrl_shutdown()?,
            #[cfg(windows)]
            interrupt: tokio::signal::windows::ctrl_c()?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
