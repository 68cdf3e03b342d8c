//! SQLite has one writer at a time, and billing shares it with the panel.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use billing_test_support::Db;
use rusqlite::{Connection, TransactionBehavior};

use crate::daemon::{BILLING, program, seed};

const INSTANCES: u32 = 6_000;
const BATCH: u32 = 100;
/// The time between two top-ups: customers pay in the middle of a batch, and not only after a commit.
const PAUSE: Duration = Duration::from_millis(7);

/// How many batches were committed before a top-up began and before it ended.
struct TopUp {
    before: u32,
    after: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_up_commits_between_sqlite_batches() {
    let db = Db::sqlite().await;
    seed(&db, 1).await;
    multiply(&db).await;
    let jobs = BILLING.replace("batch-instances = 1,", &format!("batch-instances = {BATCH},"));
    let file = db.url.trim_start_matches("sqlite://").split('?').next().expect("a path").to_owned();
    let billed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&billed);
    let customer = thread::spawn(move || top_up(Path::new(&file), &seen));
    program().env("DATABASE_URL", &db.url).file("jobs.toml", &jobs).run("bill").await.expect_code(0);
    billed.store(true, Ordering::Relaxed);
    let all = customer.join().expect("a customer does not panic");
    let batches = INSTANCES / BATCH;
    let meanwhile: Vec<_> = all.iter().filter(|one| one.before > 0 && one.after < batches).collect();
    let mut waited: Vec<_> = meanwhile.iter().map(|one| one.after - one.before).collect();
    waited.sort_unstable();
    assert!(waited.len() >= 10, "{waited:?}");
    // A busy host may wake the waiting process after the gap between two batches.
    let nine_of_ten = waited[waited.len() * 9 / 10];
    assert!(nine_of_ten <= 2, "so many batches were committed while each waited: {waited:?}");
}

/// Adds customers like the first.
async fn multiply(db: &Db) {
    db.execute(&format!(
        "CREATE TEMP TABLE more AS
         WITH RECURSIVE more (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM more WHERE n < {INSTANCES})
         SELECT n, printf('00000000-0000-4000-8000-%012x', n) AS id FROM more;
         INSERT INTO organizations (id, name, slug, owner_id)
         SELECT more.id, more.id, more.id, owner_id FROM more, (SELECT owner_id FROM organizations);
         INSERT INTO wallets (id, organization_id, balance)
         SELECT more.id, more.id, balance FROM more, (SELECT balance FROM wallets);
         INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status, created_at,
                                    last_billed_at)
         SELECT more.id, more.id, plan_id, more.id, more.id, status, created_at, last_billed_at
           FROM more, (SELECT plan_id, status, created_at, last_billed_at FROM vps_instances);
         DROP TABLE more"
    ))
    .await;
}

/// Tops up repeatedly, as a panel does: with SQLite's ordinary busy handler.
fn top_up(file: &Path, enough: &AtomicBool) -> Vec<TopUp> {
    let mut connection = Connection::open(file).expect("a database of ours opens");
    connection.busy_timeout(Duration::from_mins(1)).expect("SQLite waits");
    let batches = |connection: &Connection| -> u32 {
        let count = "SELECT count(*) FROM billing_batches";
        connection.query_row(count, [], |row| row.get(0)).expect("a count")
    };
    let mut all = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        let before = batches(&connection);
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).expect("its turn comes");
        // No other process can commit while this is the writer.
        let after = batches(&transaction);
        let top_up = "UPDATE wallets SET balance = balance + 1 WHERE id = (SELECT min(id) FROM wallets)";
        transaction.execute(top_up, []).expect("a wallet is topped up");
        transaction.commit().expect("it is committed");
        all.push(TopUp { before, after });
        thread::sleep(PAUSE);
    }
    all
}
