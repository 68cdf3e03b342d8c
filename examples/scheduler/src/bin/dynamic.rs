//! Jobs that are added, changed and removed while the scheduler runs, and a listener for what happens to them.

use billing_scheduler::{BoxError, Event, Events, NewJob, Scheduler, every};

fn greet(customer: &str, period: &str) -> NewJob {
    let name = customer.to_owned();
    NewJob::new(format!("greet-{customer}"), every(period), move |_| {
        let name = name.clone();
        async move { println!("hello {name}") }
    })
}

async fn finished(events: &mut Events) -> String {
    while let Some(event) = events.next().await {
        if let Event::Finished(run) = event {
            return run.job.clone();
        }
    }
    String::new()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let scheduler = Scheduler::builder().start()?;
    let mut events = scheduler.events();
    scheduler.add(greet("ada", "1s"))?;
    println!("finished {}", finished(&mut events).await);
    scheduler.add(greet("bob", "1h"))?;
    scheduler.update(greet("ada", "1d"))?;
    for job in scheduler.list() {
        println!("{}: {}", job.name, job.schedule);
    }
    scheduler.remove("greet-ada")?;
    println!("{} job is left", scheduler.list().len());
    if let Err(error) = scheduler.update(greet("eve", "1h")) {
        println!("error: {error}");
    }
    scheduler.run_until(async {}).await;
    Ok(())
}
