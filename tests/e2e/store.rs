//! The store in a database keeps the promises of a store, and its leases survive what databases do.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, JobState, Lease, ManualClock, RunCause, RunRecord, RunStatus, Store, StoreError, SystemClock,
    conformance::{Harness, check_all},
};
use billing_store::{Database, Pool, SeaOrmStore};
use billing_test_support::{Db, FreezingProxy, Login, eventually, on_every_engine, on_variants};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, TransactionTrait};

use crate::daemon::fetch;

const TTL: Duration = Duration::from_secs(10);
const CURSOR: DateTime<Utc> = DateTime::UNIX_EPOCH;

async fn store_passes_conformance_suite(db: &Db) {
    let stores = (store(db, "one").await, store(db, "other").await);
    check_all(&Stores { db, stores }).await;
}

on_variants!(store_passes_conformance_suite: sqlite, postgres, g1_role, g3_role);

async fn lease_is_claimed_after_clock_rollback(db: &Db) {
    let clock = ManualClock::at(CURSOR);
    let (one, other) = (store(db, "one").await, store_with(db, "other", clock.clone()).await);
    let lease = held(&one).await;
    let far = match db.backend() {
        DbBackend::Sqlite => "expires_at + 86400000000",
        _ => "expires_at + interval '1 day'",
    };
    db.execute(&format!("UPDATE scheduler_jobs SET expires_at = {far}")).await;
    assert_busy(&other, "one").await;
    // A holder that renews is alive, whatever the database's clock shows.
    clock.advance(TTL * 3 / 2);
    assert_busy(&other, "one").await;
    one.renew(&lease).await.expect("the lease is in force");
    clock.advance(TTL);
    assert_busy(&other, "one").await;
    clock.advance(TTL * 2);
    assert_busy(&other, "one").await;
    clock.advance(Duration::from_millis(1));
    let taken = held(&other).await;
    assert!(taken.fencing_token > lease.fencing_token);
    assert!(matches!(one.renew(&lease).await, Err(StoreError::LeaseLost { .. })));
    other.renew(&taken).await.expect("the lease is in force");
}

/// For example when the server fails over: its run ended, so there is no reason to wait for the end of the lease.
async fn unreleased_lease_is_claimed_by_same_process(db: &Db) {
    let (one, other) = (store(db, "one").await, store(db, "other").await);
    let of_same_name = store(db, "one").await;
    let first = held(&one).await;
    fail_to_release(db, &of_same_name, &first).await;
    assert_busy(&of_same_name, "one").await;
    fail_to_release(db, &one, &first).await;
    assert_busy(&other, "one").await;
    let second = held(&one).await;
    assert!(second.fencing_token > first.fencing_token);
    assert_busy(&one, "one").await;
    // It may claim only the lease that it failed to release.
    fail_to_release(db, &one, &second).await;
    expire(db, &second.job).await;
    let third = held(&other).await;
    assert_busy(&one, "other").await;
    other.renew(&third).await.expect("the lease is in force");
}

async fn fail_to_release(db: &Db, store: &SeaOrmStore, lease: &Lease) {
    db.execute("ALTER TABLE scheduler_jobs RENAME TO moved").await;
    let failed = store.release(lease).await;
    db.execute("ALTER TABLE moved RENAME TO scheduler_jobs").await;
    assert!(matches!(failed, Err(StoreError::Unavailable { .. })), "{failed:?}");
}

async fn concurrent_first_claims_have_one_winner(db: &Db) {
    let stores = [store(db, "one").await, store(db, "other").await];
    let mut claims = Vec::new();
    for n in 0..24 {
        let store = Arc::clone(&stores[n / 2 % 2]);
        let job = ["first", "second"][n % 2];
        claims.push(tokio::spawn(async move { (job, store.acquire(job, CURSOR).await) }));
    }
    let mut winners = Vec::new();
    for claim in claims {
        let (job, answer) = claim.await.expect("a claim does not panic");
        if let Claim::Held(lease) = answer.expect("the database answers") {
            winners.push((job, lease.fencing_token.0));
        }
    }
    winners.sort_unstable();
    assert_eq!(winners, [("first", 1), ("second", 1)]);
    for table in ["scheduler_jobs", "scheduler_fencing"] {
        let tokens = format!("SELECT count(*) || ' rows, newest ' || max(fencing_token) FROM {table}");
        assert_eq!(fetch(db, &tokens).await, "2 rows, newest 1", "{table}");
    }
}

async fn lease_is_renewed_with_busy_pool(db: &Db) {
    let (pool, database) = open(&db.url).await;
    let store = SeaOrmStore::new(pool.clone(), database, "one", TTL, Arc::new(SystemClock));
    let lease = held(&store).await;
    let mut busy = Vec::new();
    // Each reads what a renewal writes, and on PostgreSQL holds the panel guard as a batch of billing does.
    let locking = if db.backend() == DbBackend::Sqlite { "" } else { " FOR SHARE OF f" };
    let join = "SELECT 1 FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job";
    for _ in 0..connections(&pool) {
        let transaction = pool.begin().await.expect("a transaction begins");
        transaction.execute_unprepared(&format!("{join}{locking}")).await.expect("a row is read");
        busy.push(transaction);
    }
    let before = fetch(db, "SELECT expires_at FROM scheduler_jobs").await;
    store.renew(&lease).await.expect("a renewal has a separate connection");
    assert_ne!(fetch(db, "SELECT expires_at FROM scheduler_jobs").await, before);
    drop(busy);
}

on_every_engine!(
    lease_is_claimed_after_clock_rollback,
    unreleased_lease_is_claimed_by_same_process,
    concurrent_first_claims_have_one_winner,
    lease_is_renewed_with_busy_pool,
);

/// The claim was committed, but its answer was lost with the connection. The lease protects nothing, so nothing has to be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_with_lost_answer_is_repeated() {
    let db = Db::g1_role().await;
    let (setup, other) = (store(&db, "one").await, store(&db, "other").await);
    let lease = held(&setup).await;
    setup.release(&lease).await.expect("the database answers");
    let proxy = FreezingProxy::start().await;
    let one = store_at(&proxy.url(&db, Login::Billing), "one").await;
    // The claim waits for this transaction.
    let (pool, _) = open(&db.url).await;
    let blocking = pool.begin().await.expect("a transaction begins");
    blocking.execute_unprepared("SELECT 1 FROM scheduler_jobs FOR UPDATE").await.expect("a row is locked");
    let claim = tokio::spawn({
        let one = Arc::clone(&one);
        async move { one.acquire("billing", CURSOR).await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the claim waits", async || (fetch(&db, waiting).await == "1").then_some(())).await;
    proxy.freeze();
    blocking.commit().await.expect("an unchanged row");
    let held_by_one = "SELECT count(*) FROM scheduler_jobs WHERE holder = 'one'";
    eventually("the claim is committed", async || (fetch(&db, held_by_one).await == "1").then_some(())).await;
    let failed = claim.await.expect("a claim does not panic");
    assert!(matches!(failed, Err(StoreError::Unavailable { .. })), "{failed:?}");
    assert_busy(&other, "one").await;
    let repeated = held(&one).await;
    assert_eq!(repeated.fencing_token.0, lease.fencing_token.0 + 2);
    one.renew(&repeated).await.expect("the lease is in force");
}

/// For example when the server restarts while a job runs: its run is recorded nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_is_recorded_after_idle_disconnects() {
    let db = Db::g1_role().await;
    let store = store(&db, "one").await;
    let lease = held(&store).await;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'";
    eventually("they are idle", async || (fetch(&db, ended).await != "0").then_some(())).await;
    let done = RunRecord::new(&lease.job, CURSOR, RunStatus::Done, RunCause::Schedule, CURSOR);
    let done = RunRecord { attempt: 1, fencing_token: lease.fencing_token, ..done };
    store.finish(&lease, &done, &JobState::at(CURSOR)).await.expect("it is recorded");
    assert_eq!(fetch(&db, "SELECT count(*) FROM scheduler_runs").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_waits_for_open_transaction() {
    let db = Db::g1_role().await;
    let (one, other) = (store(&db, "one").await, store(&db, "other").await);
    let old = held(&one).await;
    let work = db.admin().begin().await.expect("a transaction begins");
    work.execute_unprepared("SELECT FROM scheduler_fencing WHERE fencing_token = 1 FOR SHARE")
        .await
        .expect("a batch begins");
    expire(&db, &old.job).await;
    let take_over = tokio::spawn(async move { held(&other).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'
                      AND query LIKE '%UPDATE scheduler_fencing%'";
    eventually("it waits", async || (fetch(&db, waiting).await == "1").then_some(())).await;
    assert_eq!(
        fetch(&db, "SELECT fencing_token FROM scheduler_fencing").await,
        "1",
        "the old number is still the newest"
    );
    assert!(!take_over.is_finished());
    work.commit().await.expect("the batch is committed");
    let new = take_over.await.expect("a claim does not panic");
    assert!(new.fencing_token > old.fencing_token);
}

/// Two processes' views of the store of one database.
struct Stores<'a> {
    db: &'a Db,
    stores: (Arc<SeaOrmStore>, Arc<SeaOrmStore>),
}

#[async_trait]
impl Harness for Stores<'_> {
    fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Store>) {
        (Arc::clone(&self.stores.0) as _, Arc::clone(&self.stores.1) as _)
    }

    async fn expire(&self, job: &str) {
        expire(self.db, job).await;
    }

    async fn runs(&self, job: &str) -> u64 {
        let count = format!("SELECT count(*) FROM scheduler_runs WHERE job = '{job}'");
        fetch(self.db, &count).await.parse().expect("a count is a number")
    }
}

/// Ends the lease of `job`.
async fn expire(db: &Db, job: &str) {
    let past = if db.backend() == DbBackend::Sqlite { "0" } else { "timestamptz 'epoch'" };
    db.execute(&format!("UPDATE scheduler_jobs SET expires_at = {past} WHERE job = '{job}'")).await;
}

async fn open(url: &str) -> (DatabaseConnection, Database) {
    let database = Database::new(url.parse().expect("the URL of a database of ours"));
    let pool = database.connect(Pool::Shared).await.expect("a database of ours opens");
    (pool, database)
}

async fn store(db: &Db, holder: &str) -> Arc<SeaOrmStore> {
    store_at(&db.url, holder).await
}

async fn store_at(url: &str, holder: &str) -> Arc<SeaOrmStore> {
    let (pool, database) = open(url).await;
    Arc::new(SeaOrmStore::new(pool, database, holder, TTL, Arc::new(SystemClock)))
}

async fn store_with(db: &Db, holder: &str, clock: ManualClock) -> SeaOrmStore {
    let (pool, database) = open(&db.url).await;
    SeaOrmStore::new(pool, database, holder, TTL, Arc::new(clock))
}

async fn held(store: &SeaOrmStore) -> Lease {
    match store.acquire("billing", CURSOR).await.expect("the database answers") {
        Claim::Held(lease) => lease,
        Claim::Busy { holder } => panic!("the lease should be free, but {holder} has it"),
    }
}

async fn assert_busy(store: &SeaOrmStore, by: &str) {
    match store.acquire("billing", CURSOR).await.expect("the database answers") {
        Claim::Busy { holder } => assert_eq!(holder, by),
        Claim::Held(lease) => {
            panic!("the lease should be held, but was given under fencing token {}", lease.fencing_token)
        }
    }
}

/// How many there can be at most.
fn connections(pool: &DatabaseConnection) -> u32 {
    match pool.get_database_backend() {
        DbBackend::Sqlite => pool.get_sqlite_connection_pool().options().get_max_connections(),
        _ => pool.get_postgres_connection_pool().options().get_max_connections(),
    }
}
