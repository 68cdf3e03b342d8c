//! What a page costs the database and billing, and what is left of an action if the daemon or the server ends meanwhile.

use std::time::Duration;

use billing_store::{Database, Pool, begin_command, reading_within};
use billing_test_support::{Db, Login, Panel, Postgres, eventually};
use rustix::process::Signal;
use sea_orm::ConnectionTrait as _;
use uuid::Uuid;

use super::{Site, actions::ENTRIES, client::Client};
use crate::{
    commands::http::address,
    daemon::{fetch, rows, seed, until_it_waits_for_a_lock},
};

/// Rows that another session makes a page wait for, until the lock ends with its transaction.
async fn locked(db: &Db, table: &str, mode: &str) -> sea_orm::DatabaseTransaction {
    let locking = db.begin().await.expect("a transaction");
    let lock = format!("LOCK TABLE {table} IN {mode} MODE");
    locking.execute_unprepared(&lock).await.expect("a lock");
    locking
}

/// Waits until this page is answered with 503, which it is after the cached status has expired.
async fn unavailable(client: &Client<'_>, page: &str) -> String {
    eventually("the page is not available", async || {
        let answer = client.get(page).await;
        (answer.status == 503).then_some(answer.body)
    })
    .await
}

/// A view in the place of a table writes when it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_read_in_read_only_transactions() {
    let db = Db::postgres().await;
    let organization = seed(&db, 1).await[0];
    let site = Site::start(&db, "read").await;
    let page = format!("/console/wallets/{organization}");
    assert_eq!(site.of("vera").get(&page).await.status, 200);
    db.execute(&format!(
        "INSERT INTO billing_policies (organization_id, mode, credit_limit, changed_by, reason, changed_at)
         VALUES ('{organization}', 'exempt', 0, 'anna', 'internal', now());
         CREATE TABLE reads (number integer);
         CREATE FUNCTION note() RETURNS boolean LANGUAGE sql AS 'INSERT INTO reads VALUES (1) RETURNING true';
         ALTER TABLE billing_policies RENAME TO kept;
         CREATE VIEW billing_policies AS SELECT * FROM kept WHERE note();
         GRANT ALL ON billing_policies, kept, reads TO PUBLIC"
    ))
    .await;
    assert_eq!(site.of("vera").get(&page).await.status, 503);
    let logged = site.running.wait_for_line("HTTP request failed: cannot read the wallet").await;
    assert!(logged.contains("read-only transaction"), "{logged}");
    assert_eq!(fetch(&db, "SELECT count(*) FROM reads").await, "0");
}

/// SQLite has no read-only transactions: the connections of pages refuse to write.
#[tokio::test]
async fn page_connections_of_sqlite_refuse_writes() {
    let db = Db::sqlite().await;
    let database = Database::new(db.url.parse().expect("a URL"));
    let write = "DELETE FROM scheduler_runs";
    let pages = database.reading().connect(Pool::Pages).await.expect("it connects");
    let refused = pages.execute_unprepared(write).await.expect_err("it only reads");
    assert!(refused.to_string().contains("readonly database"), "{refused}");
    let batch = reading_within(Duration::from_secs(2), begin_command(&pages)).await;
    let refused = match batch {
        Ok(txn) => txn.execute_unprepared(write).await.map(drop).expect_err("it only reads"),
        Err(error) => error,
    };
    assert!(refused.to_string().contains("readonly database"), "{refused}");
    let writing = database.connect(Pool::Single).await.expect("it connects");
    writing.execute_unprepared(write).await.expect("another connection writes");
}

/// A page that waits for a lock is answered within the limit of its statements, and billing does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_page_delays_no_billing() {
    let db = Db::postgres().await;
    let organization = seed(&db, 1).await[0];
    let site = Site::start(&db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let page = format!("/console/wallets/{organization}");
    let locking = locked(&db, "billing_policies", "ACCESS EXCLUSIVE").await;
    let pages = async { tokio::join!(vera.get(&page), vera.get(&page), vera.get(&page)) };
    let billing = async {
        until_it_waits_for_a_lock(&db).await;
        site.program.run("jobs trigger billing --wait").await.expect_code(0);
    };
    let ((one, two, three), ()) = tokio::join!(pages, billing);
    assert_eq!([one.status, two.status, three.status], [503; 3], "{}", one.body);
    assert!(one.body.contains("Last known status"), "{}", one.body);
    // The limit of a lock is 5 s, that of a page's statement 2 s.
    let logged = site.running.wait_for_line("HTTP request failed: cannot read the wallet").await;
    assert!(logged.contains("statement timeout"), "{logged}");
    locking.rollback().await.expect("the lock ends");
    assert_eq!(vera.get(&page).await.status, 200);

    // The status of the console has the same limit.
    let locking = locked(&db, "billing_holds", "ACCESS EXCLUSIVE").await;
    let page = unavailable(&vera, "/console/schedule").await;
    assert!(page.contains("Last known status"), "{page}");
    locking.rollback().await.expect("the lock ends");
}

/// The server ends while it answers a page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_server_shows_last_status() {
    let server = Postgres::private().await;
    let db = Db::on_server(server, Panel::G3, Login::Billing).await;
    let organization = seed(&db, 1).await[0];
    let site = Site::start(&db, "read").await;
    site.billed().await;
    let vera = site.of("vera");
    let page = format!("/console/wallets/{organization}");
    assert_eq!(vera.get(&page).await.status, 200);
    let locking = locked(&db, "billing_policies", "ACCESS EXCLUSIVE").await;
    let stop = async {
        until_it_waits_for_a_lock(&db).await;
        server.take_away();
    };
    let (answer, ()) = tokio::join!(vera.get(&page), stop);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("Last known status"), "{}", answer.body);
    unavailable(&vera, "/api/schedule").await;
    drop(locking);
}

/// The form reaches the daemon, which is killed before the transaction commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_daemon_leaves_no_entry() {
    let db = Db::postgres().await;
    seed(&db, 1).await;
    let site = Site::start(&db, "operate").await;
    site.billed().await;
    let form = format!("request={}&reason=price+list", Uuid::now_v7());
    let pauses = "job || ' ' || paused_by FROM scheduler_pauses";
    // The transaction writes the pause, and waits for the log.
    let locking = locked(&db, "scheduler_audit_log", "SHARE ROW EXCLUSIVE").await;
    let olga = site.of("olga").with("Sec-Fetch-Site", "same-origin");
    let sending = olga.try_send("POST /console/jobs/billing/pause", &form);
    let kill = async {
        until_it_waits_for_a_lock(&db).await;
        site.running.signal(Signal::KILL);
    };
    let (answer, ()) = tokio::join!(sending, kill);
    assert!(answer.is_none(), "no one answers");
    locking.rollback().await.expect("the lock ends");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'billing-daemon' AND datname = current_database()";
    eventually("the sessions end", async || (fetch(&db, sessions).await == "0").then_some(())).await;
    assert_eq!((rows(&db, ENTRIES).await, rows(&db, pauses).await), (Vec::new(), Vec::new()));

    let again = site.program.start("run");
    let address = address(&again).await;
    let bearer = format!("Bearer {}", site.token("olga"));
    let olga = Client::new(&address).with("Authorization", &bearer);
    assert_eq!(olga.post("/console/jobs/billing/pause", &form).await.status, 303);
    assert_eq!(rows(&db, ENTRIES).await, ["olga pause billing price list"]);
    assert_eq!(rows(&db, pauses).await, ["billing olga"]);
}
