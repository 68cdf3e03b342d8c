//! The queue in a database keeps the promises of a queue, and shares the transactions of an application.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{
    Clock, JobContext, JobError, ManualClock, NewQueuedJob, Occurrence, Outcome, QueueNext, QueueResult,
    QueueStore, QueueTime, QueuedJob, RunCause, RunFilter, RunRecord, RunStatus, Scheduler, StopHandle,
    Store, SystemClock,
    conformance::{QueueHarness, check_queue},
    run_due,
};
use billing_store::{Database, Pool, SeaOrmStore, begin, queue};
use billing_test_support::{Db, eventually, on_every_engine, on_variants};
use chrono::DateTime;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};
use tokio::sync::mpsc;

use crate::daemon::fetch;

const TTL: Duration = Duration::from_secs(10);

async fn queue_passes_conformance_suite(db: &Db) {
    let stores = (Arc::new(store(db, "one").await), Arc::new(store(db, "other").await));
    check_queue(&Stores { db, stores }).await;
}

on_variants!(queue_passes_conformance_suite: sqlite, postgres, g1_role);

/// A job is added with the application's changes, and finished with them.
async fn job_shares_transactions_of_application(db: &Db) {
    create_effects(db).await;
    let pool = pool(db).await;
    for commits in [false, true] {
        let txn = begin(&pool).await.expect("a transaction begins");
        let job = NewQueuedJob::new("note", serde_json::json!("hello"));
        assert_eq!(queue::enqueue_in(&txn, &[job]).await.expect("it is added").len(), 1);
        if commits {
            txn.commit().await.expect("it commits");
        } else {
            txn.rollback().await.expect("it is rolled back");
        }
    }
    let effects = pool.clone();
    let builder =
        Scheduler::builder().store(store(db, "one").await).queue_job("note", move |ctx, note: String| {
            let pool = effects.clone();
            async move { write_note(&pool, &ctx, &note).await }
        });
    run_due(&builder.build().expect("no job is invalid")).await;
    assert_eq!(fetch(db, "SELECT note FROM effects").await, "hello");
    let store = store(db, "one").await;
    let runs = store.runs(&RunFilter::default()).await.expect("the store is available");
    assert_eq!(runs.len(), 1, "{runs:?}");
    let run = &runs[0].run;
    assert_eq!((run.status, run.items, run.attempt), (RunStatus::Done, 3, 1));
    assert!(run.finished_at > run.started_at, "the worker knows when the run started");
}

/// The clock of the worker does not move, so it never polls again: notifications alone wake it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_wakes_workers_of_other_processes() {
    let db = Db::postgres().await;
    let (sender, mut ran) = mpsc::unbounded_channel();
    let builder =
        Scheduler::builder().store(store(&db, "worker").await).clock(ManualClock::at(DateTime::UNIX_EPOCH));
    let worker = builder.queue_job("note", move |_, number: u32| {
        let sender = sender.clone();
        async move { sender.send(number).map_err(JobError::retry) }
    });
    let worker = worker.start().expect("no job is invalid");
    let listens = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'";
    eventually("the worker listens", async || (fetch(&db, listens).await == "true").then_some(())).await;
    let pool = pool(&db).await;
    // The connection wakes it once as well.
    for number in 0..4 {
        let txn = begin(&pool).await.expect("a transaction begins");
        let job = NewQueuedJob::new("note", serde_json::json!(number));
        queue::enqueue_in(&txn, &[job]).await.expect("it is added");
        txn.commit().await.expect("it commits");
        let started = tokio::time::timeout(Duration::from_mins(1), ran.recv()).await;
        assert_eq!(started.expect("the worker is woken"), Some(number));
    }
    worker.run_until(async {}).await;
}

/// Finished jobs are kept for a day, and statistics are often older than the jobs that wait: neither costs time for each job.
#[tokio::test]
async fn claims_and_results_read_their_jobs_only() {
    const JOBS: u32 = 500;
    let db = Db::postgres().await;
    db.execute(
        "INSERT INTO scheduler_queue (id, kind, payload, scheduled_at, not_before, fencing_token, holder, finished_at)
         SELECT gen_random_uuid(), 'note', '1', now(), now(), 1, 'one', now() FROM generate_series(1, 20000); ANALYZE scheduler_queue",
    )
    .await;
    let store = store(&db, "one").await;
    let jobs: Vec<_> = (0..JOBS).map(|job| NewQueuedJob::new("note", serde_json::json!(job))).collect();
    store.enqueue(&jobs).await.expect("they are added");
    let claimed = store.claim(&[("note".to_owned(), JOBS)]).await.expect("they are claimed");
    let claims: Vec<_> = claimed.iter().map(|job| (job.id, job.fencing_token)).collect();
    assert_eq!(store.renew_claims(&claims).await.expect("they are held").len(), jobs.len());
    let results: Vec<_> = claimed.iter().map(done).collect();
    assert_eq!(store.settle(&results).await.expect("they are recorded").len(), jobs.len());
    // The claim, the renewal and the result are three updates.
    let is_counted = "SELECT n_tup_upd >= 1500 FROM pg_stat_user_tables WHERE relname = 'scheduler_queue'";
    eventually("the reads are counted", async || {
        store.late(SystemClock.now()).await.expect("the store is available");
        (fetch(&db, is_counted).await == "true").then_some(())
    })
    .await;
    let reads = "SELECT ((SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'scheduler_queue')
                      + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'scheduler_queue'))::bigint";
    let reads: u32 = fetch(&db, reads).await.parse().expect("a number");
    assert!(reads < 20 * JOBS, "{reads} rows were read for {JOBS} jobs");
}

fn done(job: &QueuedJob) -> QueueResult {
    let run = RunRecord {
        fencing_token: job.fencing_token,
        attempt: 1,
        request_id: Some(job.id),
        ..RunRecord::new(&job.kind, job.scheduled_at, RunStatus::Done, RunCause::Queue, SystemClock.now())
    };
    QueueResult { id: job.id, run, next: QueueNext::Finished }
}

/// A run whose claim was lost changes nothing.
async fn lost_claim_rolls_changes_back(db: &Db) {
    create_effects(db).await;
    let (one, other) = (store(db, "one").await, store(db, "other").await);
    let job = NewQueuedJob::new("note", serde_json::Value::Null);
    one.enqueue(&[job]).await.expect("the store is available");
    let limits = [("note".to_owned(), 1)];
    let mut contexts = Vec::new();
    for store in [&one, &other] {
        let job = store.claim(&limits).await.expect("the store is available").remove(0);
        let occurrence = Occurrence { job: job.kind.clone(), scheduled_at: job.scheduled_at };
        let clock = Arc::new(SystemClock) as Arc<dyn Clock>;
        let ctx = JobContext::new(occurrence, 1, job.fencing_token, clock, StopHandle::new());
        contexts.push(ctx.with_request_id(Some(job.id)));
        expire(db, "note").await;
    }
    let pool = pool(db).await;
    write_note(&pool, &contexts[0], "old").await.expect_err("the claim is lost");
    write_note(&pool, &contexts[1], "new").await.expect("the claim is current");
    write_note(&pool, &contexts[1], "twice").await.expect_err("the job is finished");
    assert_eq!(fetch(db, "SELECT note FROM effects").await, "new");
    assert_eq!(fetch(db, "SELECT count(*) FROM scheduler_runs").await, "1");
}

/// A run that has finished its job in an open transaction keeps its claim, and does not delay the renewal of others.
async fn open_transaction_keeps_claim(db: &Db) {
    if db.backend() == DbBackend::Sqlite {
        return;
    }
    let (one, other) = (store(db, "one").await, store(db, "other").await);
    let jobs = [
        NewQueuedJob::new("note", serde_json::Value::Null),
        NewQueuedJob::new("note", serde_json::Value::Null),
    ];
    one.enqueue(&jobs).await.expect("the store is available");
    let claimed = one.claim(&[("note".to_owned(), 2)]).await.expect("the store is available");
    let pool = pool(db).await;
    let txn = begin(&pool).await.expect("a transaction begins");
    let lock = format!("UPDATE scheduler_queue SET finished_at = now() WHERE id = '{}'", claimed[0].id);
    txn.execute_unprepared(&lock).await.expect("the row is locked");
    let claims: Vec<_> = claimed.iter().map(|job| (job.id, job.fencing_token)).collect();
    let renewed = tokio::time::timeout(Duration::from_secs(2), one.renew_claims(&claims)).await;
    assert_eq!(renewed.expect("it does not wait").expect("the store is available").len(), 2);
    expire_unlocked(db, &claimed[1].id.to_string()).await;
    let again = other.claim(&[("note".to_owned(), 2)]).await.expect("the store is available");
    assert_eq!(again.iter().map(|job| job.id).collect::<Vec<_>>(), [claimed[1].id]);
    txn.commit().await.expect("it commits");
}

/// A claim does not wait for a job that another transaction has locked.
async fn claim_skips_locked_jobs(db: &Db) {
    if db.backend() == DbBackend::Sqlite {
        return;
    }
    let store = store(db, "one").await;
    let jobs: Vec<_> = (0..3).map(|_| NewQueuedJob::new("note", serde_json::Value::Null)).collect();
    store.enqueue(&jobs).await.expect("the store is available");
    let pool = pool(db).await;
    let txn = begin(&pool).await.expect("a transaction begins");
    let lock = format!("UPDATE scheduler_queue SET priority = 0 WHERE id = '{}'", jobs[0].id);
    txn.execute_unprepared(&lock).await.expect("the row is locked");
    let claimed = store.claim(&[("note".to_owned(), 3)]).await.expect("it does not wait");
    let mut ids: Vec<_> = claimed.iter().map(|job| job.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [jobs[1].id, jobs[2].id]);
    txn.rollback().await.expect("it is rolled back");
}

/// The row has the exact instant, by the database's clock at the call, even in an older transaction; the scheduled time is its second.
async fn job_is_due_at_its_exact_instant(db: &Db) {
    let pool = pool(db).await;
    let now = |db| async move {
        fetch(db, &format!("SELECT {}", now_us(db))).await.parse::<i64>().expect("a number")
    };
    let txn = begin(&pool).await.expect("a transaction begins");
    let called = now(db).await;
    let at = DateTime::from_timestamp_nanos(1_700_000_000_123_456_789);
    let times = [QueueTime::At(at), QueueTime::After(Duration::from_millis(10_250))];
    for (priority, time) in (0..).zip(times) {
        let job = NewQueuedJob { time, priority, ..NewQueuedJob::new("note", serde_json::Value::Null) };
        queue::enqueue_in(&txn, &[job]).await.expect("it is added");
    }
    txn.commit().await.expect("it commits");
    let column = |column: &'static str, priority: i32| async move {
        let column = if db.backend() == DbBackend::Sqlite {
            column.to_owned()
        } else {
            format!("(extract(epoch FROM {column}) * 1000000)::bigint")
        };
        let sql = format!("SELECT {column} FROM scheduler_queue WHERE priority = {priority}");
        fetch(db, &sql).await.parse::<i64>().expect("a number")
    };
    assert_eq!(column("not_before", 0).await, 1_700_000_000_123_457);
    assert_eq!(column("scheduled_at", 0).await, 1_700_000_000_000_000);
    let due = column("not_before", 1).await;
    assert!(due >= called + 10_250_000, "{due} is less than 10.25 s after {called}");
    let scheduled = column("scheduled_at", 1).await;
    assert!(
        scheduled % 1_000_000 == 0 && (due - scheduled) < 1_000_000,
        "{scheduled} is the second of {due}"
    );
}

fn now_us(db: &Db) -> &'static str {
    match db.backend() {
        DbBackend::Sqlite => billing_store::SQLITE_NOW,
        _ => "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    }
}

on_every_engine!(
    claim_skips_locked_jobs,
    job_is_due_at_its_exact_instant,
    job_shares_transactions_of_application,
    lost_claim_rolls_changes_back,
    open_transaction_keeps_claim,
);

async fn create_effects(db: &Db) {
    db.execute("CREATE TABLE effects (note text NOT NULL)").await;
    if db.backend() != DbBackend::Sqlite {
        db.execute("GRANT SELECT, INSERT ON effects TO PUBLIC").await;
    }
}

async fn write_note(pool: &DatabaseConnection, ctx: &JobContext, note: &str) -> Result<Outcome, JobError> {
    let txn = begin(pool).await.map_err(JobError::retry)?;
    queue::finish_in(&txn, ctx).await?;
    txn.execute_unprepared(&format!("INSERT INTO effects VALUES ('{note}')"))
        .await
        .map_err(JobError::retry)?;
    txn.commit().await.map_err(JobError::retry)?;
    Ok(Outcome::done(3))
}

struct Stores<'a> {
    db: &'a Db,
    stores: (Arc<SeaOrmStore>, Arc<SeaOrmStore>),
}

#[async_trait]
impl QueueHarness for Stores<'_> {
    fn stores(&self) -> (Arc<dyn QueueStore>, Arc<dyn QueueStore>) {
        (Arc::clone(&self.stores.0) as _, Arc::clone(&self.stores.1) as _)
    }

    async fn expire(&self, kind: &str) {
        expire(self.db, kind).await;
    }

    async fn runs(&self, kind: &str) -> Vec<RunRecord> {
        let filter = RunFilter { job: Some(kind.to_owned()), ..RunFilter::default() };
        let runs = self.stores.0.runs(&filter).await.expect("the store is available");
        runs.into_iter().map(|row| row.run).collect()
    }
}

async fn expire(db: &Db, kind: &str) {
    expire_where(db, &format!("kind = '{kind}' AND expires_at IS NOT NULL")).await;
}

async fn expire_unlocked(db: &Db, id: &str) {
    expire_where(db, &format!("id = '{id}'")).await;
}

async fn expire_where(db: &Db, condition: &str) {
    let past = if db.backend() == DbBackend::Sqlite { "0" } else { "timestamptz 'epoch'" };
    db.execute(&format!("UPDATE scheduler_queue SET expires_at = {past} WHERE {condition}")).await;
}

async fn pool(db: &Db) -> DatabaseConnection {
    let database = Database::new(db.url.parse().expect("the URL of a database of ours"));
    database.connect(Pool::Shared).await.expect("a database of ours opens")
}

async fn store(db: &Db, holder: &str) -> SeaOrmStore {
    let database = Database::new(db.url.parse().expect("the URL of a database of ours"));
    SeaOrmStore::new(pool(db).await, database, holder, TTL, Arc::new(SystemClock))
}
