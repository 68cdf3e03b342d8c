//! A service: an order and the mail about it are added in one transaction, and the scheduler runs until SIGTERM or Ctrl+C. After a
//! restart, the schedules and the history continue.
//!
//! `DATABASE_URL=sqlite://service.db?mode=rwc cargo run -p sea-orm-embed --bin service`

use std::{env, process, sync::Arc, time::Duration};

use billing_scheduler::{
    BoxError, JobContext, JobError, NewJob, NewQueuedJob, Outcome, RunFilter, Scheduler, SystemClock, daily,
    every,
};
use billing_store::{Database, Pool, PruneRuns, SeaOrmStore, queue};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ConnectionTrait, DatabaseConnection, EntityTrait, PaginatorTrait,
    Schema, TransactionTrait,
};
use sea_orm_embed::order;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Mail {
    to: String,
    text: String,
}

async fn send_mail(_: JobContext, mail: Mail) -> Result<(), JobError> {
    println!("mail to {}: {}", mail.to, mail.text);
    Ok(())
}

fn report() -> NewJob {
    NewJob::new("report", daily().at("02:30").timezone("Europe/Berlin"), |_| async {})
}

fn count_orders(db: &DatabaseConnection) -> NewJob {
    let db = db.clone();
    NewJob::new("count-orders", every("1s"), move |_| {
        let db = db.clone();
        async move { order::Entity::find().count(&db).await.map(Outcome::done) }
    })
}

/// Adds an order. Its mail is sent if the transaction commits.
async fn place_order(db: &DatabaseConnection, customer: &str) -> Result<(), BoxError> {
    let txn = db.begin().await?;
    let order = order::ActiveModel { customer: Set(customer.to_owned()), ..Default::default() };
    let order = order.insert(&txn).await?;
    let mail = Mail { to: order.customer, text: format!("order {}", order.id) };
    queue::enqueue_in(&txn, &[NewQueuedJob::encode("mail", &mail)?]).await?;
    txn.commit().await?;
    Ok(())
}

/// What a web server would do: it has a copy of the scheduler.
async fn serve(scheduler: Scheduler, db: DatabaseConnection) -> Result<(), BoxError> {
    let earlier = scheduler.control("service").runs(&RunFilter::default()).await?;
    println!("the history has {} rows", earlier.len());
    place_order(&db, "ada").await?;
    let mail = Mail { to: "ada".to_owned(), text: "thank you".to_owned() };
    let id = scheduler.enqueue("mail", &mail).after(Duration::from_mins(10)).unique_by("ada").await?;
    println!("a mail that thanks is {}", if id.is_some() { "added" } else { "already in the queue" });
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("DATABASE_URL")?;
    let db = sea_orm::Database::connect(&url).await?;
    let mut orders = Schema::new(db.get_database_backend()).create_table_from_entity(order::Entity);
    db.execute(orders.if_not_exists()).await?;
    billing_store::migrate(&db).await?;

    let database = Database::new(url.parse()?);
    let pool = database.connect(Pool::Shared).await?;
    // Without it, the history grows without limit.
    let prune = NewJob::of("prune-runs", daily().at("03:30"), PruneRuns::new(pool.clone()));
    // Unique on this host; with several hosts, it would begin with the name of the host.
    let name = format!("service-{}", process::id());
    let store = SeaOrmStore::new(pool, database, name, Duration::from_secs(10), Arc::new(SystemClock));
    let builder = Scheduler::builder().store(store).with_job(count_orders(&db)).with_job(report());
    let scheduler = builder.with_job(prune).queue_job("mail", send_mail).start()?;

    let mut events = scheduler.events();
    let listener = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            println!("{event}");
        }
    });
    let server = tokio::spawn(serve(scheduler.clone(), db));
    scheduler.shutdown_on_signal().await?;
    server.await??;
    // The events end with the last copy of the scheduler, which was that of the server.
    listener.await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use billing_scheduler::TestScheduler;

    use super::*;

    #[tokio::test]
    async fn report_runs_daily_for_month() {
        let builder = Scheduler::builder().with_job(report());
        let test =
            TestScheduler::new("2026-03-01T00:00:00Z".parse().expect("a time"), builder).expect("valid");
        test.advance(Duration::from_hours(31 * 24)).await;
        test.assert_ran("report", 31);
        let last = test.runs("report")[30].scheduled_at;
        assert_eq!(last.to_rfc3339(), "2026-03-31T00:30:00+00:00", "02:30 in summer time");
    }
}
