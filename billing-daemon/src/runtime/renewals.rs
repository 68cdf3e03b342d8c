//! Renews leases on a separate thread: a job that blocks every thread of the runtime does not lose its lease.

use std::{io, thread, time::Duration};

use billing_scheduler::Scheduler;
use tokio::sync::oneshot;

/// The thread, until it is stopped.
pub(crate) struct Renewals {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Renewals {
    pub(crate) fn start(scheduler: Scheduler, every: Duration) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = oneshot::channel();
        let renew = async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(every) => scheduler.renew_leases().await,
                    _ = &mut stopped => return,
                }
            }
        };
        let thread =
            thread::Builder::new().name("lease-renewal".to_owned()).spawn(move || runtime.block_on(renew))?;
        Ok(Self { stop, thread })
    }

    pub(crate) fn stop(self) {
        // Both fail only if the thread has ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
