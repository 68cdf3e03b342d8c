//! Schedules in local time: the week around the end of summer time, in virtual time.

use std::time::Duration;

use billing_scheduler::{BoxError, JobContext, Scheduler, TestScheduler, cron, daily};

async fn send_report(ctx: JobContext) -> Result<(), BoxError> {
    println!("{}", ctx.occurrence);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let builder = Scheduler::builder()
        .job("weekly", cron("0 9 * * MON").timezone("Europe/Berlin"), send_report)
        .job("nightly", daily().at("02:30").on("SAT,SUN").timezone("Europe/Berlin"), send_report);
    // An application calls `builder.start()` instead.
    let week = TestScheduler::new("2026-10-24T00:00:00Z".parse()?, builder)?;
    week.advance(Duration::from_hours(7 * 24)).await;
    Ok(())
}
