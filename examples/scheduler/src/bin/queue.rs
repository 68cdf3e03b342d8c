//! One-off jobs with a payload: at once, after a while, only once per key, and with retries.

use std::time::Duration;

use billing_scheduler::{BoxError, Event, JobContext, JobError, QueueJob, Retry, Scheduler};

async fn send_mail(ctx: JobContext, to: String) -> Result<(), JobError> {
    if to == "ada" && ctx.attempt == 1 {
        return Err(JobError::retry("no connection"));
    }
    if to == "unknown" {
        return Err(JobError::fatal("no such address"));
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let retry = Retry { backoff: Duration::from_millis(100), ..Retry::default() };
    let mail = QueueJob::new("mail", send_mail).concurrency(1).retry(retry);
    let scheduler = Scheduler::builder().with_queue_job(mail).start()?;
    let mut events = scheduler.events();

    scheduler.enqueue("mail", "unknown").priority(1).await?;
    scheduler.enqueue("mail", "ada").await?;
    scheduler.enqueue("mail", "bob").after(Duration::from_hours(1)).unique_by("bob").await?;
    let again = scheduler.enqueue("mail", "bob").unique_by("bob").await?;
    println!("a second mail to bob: {}", if again.is_some() { "added" } else { "not added" });

    while let Some(event) = events.next().await {
        match event {
            Event::Finished(run) => {
                println!("{} after attempt {}", run.status.as_str(), run.attempt);
                break;
            }
            Event::Retrying(run) | Event::Failed(run) => {
                println!(
                    "{} after attempt {}: {}",
                    run.status.as_str(),
                    run.attempt,
                    run.error.as_deref().unwrap_or_default()
                );
            }
            _ => {}
        }
    }
    scheduler.run_until(async {}).await;
    Ok(())
}
