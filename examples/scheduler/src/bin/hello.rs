//! Prints a greeting each second until Ctrl+C.

use billing_scheduler::{BoxError, Scheduler, every};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let scheduler = Scheduler::builder()
        .job("greet", every("1s"), |ctx| async move { println!("hello, {}", ctx.occurrence) })
        .start()?;
    scheduler.shutdown_on_signal().await?;
    Ok(())
}
