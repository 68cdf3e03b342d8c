//! A job with shared state, which its closure captures, and settings other than the defaults.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use billing_scheduler::{BoxError, JobError, NewJob, Outcome, Scheduler, every};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (sender, mut results) = mpsc::channel(16);
    let counter = Arc::new(AtomicU32::new(0));
    let count = NewJob::new("count", every("1s"), move |_| {
        let (counter, sender) = (Arc::clone(&counter), sender.clone());
        async move {
            let count = counter.fetch_add(1, Ordering::SeqCst) + 1;
            sender.send(count).await.map_err(JobError::retry)?;
            Ok::<_, JobError>(Outcome::done(count.into()))
        }
    });
    let count = count.configure(|spec| spec.timeout = Duration::from_secs(5));
    let scheduler = Scheduler::builder().with_job(count).start()?;
    let three = async {
        for _ in 0..3 {
            println!("run {}", results.recv().await.unwrap_or_default());
        }
    };
    scheduler.run_until(three).await;
    Ok(())
}
