//! A URL with several hosts: connections use the server that accepts writes, also after a fail-over.

use std::time::{Duration, Instant};

use billing_store::{Database, Pool, Transaction, begin, query_one};
use billing_test_support::{BILLING_ROLE, Db, Login, Panel, Postgres, eventually};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};

use crate::daemon::{BILLING, HEARTBEAT, check_all_charged_once, fetch, job, program, seed};

/// A port on which no server listens.
const DEAD: u16 = 1;

/// The URL of a database with these ports instead of the one that it has.
fn with_ports(db: &Db, ports: &[u16]) -> String {
    let (user, rest) = db.url.split_once('@').expect("a login");
    let (_, path) = rest.split_once('/').expect("a name");
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("{user}@{}/{path}", hosts.join(","))
}

async fn text(db: &DatabaseConnection, sql: &str) -> String {
    let statement = Statement::from_string(DbBackend::Postgres, format!("SELECT ({sql})::text"));
    let row = query_one(db, statement).await.expect("the database answers").expect("a row");
    row.try_get_by_index(0).expect("text")
}

async fn open(url: &str) -> DatabaseConnection {
    let database = Database::new(url.parse().expect("a URL"));
    Box::pin(database.connect(Pool::Shared)).await.expect("a server is suitable")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_is_found_among_hosts() {
    let primary = Postgres::private().await;
    let db = Db::on_server(primary, Panel::G1, Login::Billing).await;
    let organizations = seed(&db, 3).await;
    let standby = primary.standby();
    let all = with_ports(&db, &[DEAD, standby.port(), primary.port()]);
    let name = db.url.rsplit_once('/').expect("a name").1;
    let (first, second) = (standby.port(), primary.port());
    let query =
        format!("postgres://{BILLING_ROLE}@ignored/{name}?host=127.0.0.1,127.0.0.1&port={first},{second}");
    let folder = primary.folder().display();
    let sockets =
        format!("postgres:///{name}?host=127.0.0.1,{folder}&port={first},{second}&user={BILLING_ROLE}");

    for url in [&all, &query, &sockets] {
        let opened = open(url).await;
        assert_eq!(text(&opened, "SELECT pg_is_in_recovery()").await, "false", "{url}");
    }
    // A new connection of the pool to a server that was demoted is replaced.
    let opened = open(&all).await;
    let pool = opened.get_postgres_connection_pool();
    let held = begin(&opened).await.expect("it begins");
    let on_standby = (*pool.connect_options()).clone().port(standby.port());
    pool.set_connect_options(on_standby);
    assert_eq!(text(&opened, "SELECT pg_is_in_recovery()").await, "false");
    held.rollback().await.expect("it ends");

    let running = program().env("DATABASE_URL", &all).file("jobs.toml", &[BILLING, HEARTBEAT].concat());
    let found = running.run("doctor --json").await.expect_code(0);
    assert!(found.text().contains("answers in"), "{}", found.text());
    let daemon = running.start("run");
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;

    // A standby alone is enough to read, and not for the daemon.
    let alone = program().env("DATABASE_URL", &with_ports(&db, &[DEAD, standby.port()]));
    alone.run("jobs list").await.expect_code(0);
    let single = program().env("DATABASE_URL", &with_ports(&db, &[standby.port()]));
    for (program, reason) in
        [(&alone, "no server of the database URL is suitable"), (&single, "use the primary")]
    {
        let failed = program.run("doctor").await.expect_code(1).text();
        assert!(failed.contains("is a standby") && failed.contains(reason), "{failed}");
        let refused = program.run("bill").await.expect_code(69).text();
        assert!(refused.contains("is a standby"), "{refused}");
    }
    let reading = program().env("DATABASE_URL", &format!("{all}?target_session_attrs=standby"));
    let refused = reading.run("bill").await.expect_code(78).text();
    assert!(
        refused.contains("target_session_attrs=standby excludes servers that accept writes"),
        "{refused}"
    );
    drop(db);
    standby.take_away();
    primary.take_away();
}

/// The primary is killed while the daemon works, and the standby is promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_follows_promoted_standby() {
    let primary = Postgres::private().await;
    let on_primary = Db::on_server(primary, Panel::G1, Login::Billing).await;
    let organizations = seed(&on_primary, 3).await;
    let standby = primary.standby();
    let db = on_primary.on_standby(standby).await;
    let jobs = [job("billing", "billing", "1s", ""), HEARTBEAT.to_owned()].concat();
    let url = with_ports(&on_primary, &[primary.port(), standby.port()]);
    let daemon = program().env("DATABASE_URL", &url).file("jobs.toml", &jobs).start("run");
    eventually("the standby has a run", async || {
        let runs = fetch(&db, "SELECT count(*) FROM scheduler_runs WHERE job = 'billing'").await;
        (runs != "0").then_some(())
    })
    .await;
    drop(on_primary);
    primary.take_away();
    daemon.wait_for_line("Connection refused").await;
    standby.promote().await;
    let promoted = Instant::now();
    let at = fetch(&db, "SELECT clock_timestamp()").await;
    let later = format!(
        "SELECT count(*) > 0 FROM scheduler_runs WHERE job = 'billing' AND status = 'done' AND started_at > '{at}'"
    );
    eventually("billing is back", async || (fetch(&db, &later).await == "true").then_some(())).await;
    eprintln!("billing is back {:?} after the promotion", promoted.elapsed());
    assert!(promoted.elapsed() < Duration::from_secs(5), "{:?}", promoted.elapsed());
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    drop(db);
    standby.take_away();
}

/// One session that has become read-only is a sign that its server was demoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_session_discards_older_connections() {
    let db = Db::g1_role().await;
    let opened = open(&db.url).await;
    let (one, other) = (begin(&opened).await.expect("it begins"), begin(&opened).await.expect("it begins"));
    let pid = async |txn: Transaction| {
        let row =
            txn.query_one_raw(Statement::from_string(DbBackend::Postgres, "SELECT pg_backend_pid()")).await;
        let pid: i32 = row.expect("it answers").expect("a row").try_get_by_index(0).expect("a number");
        (txn, pid)
    };
    let ((one, one_pid), (other, other_pid)) = (pid(one).await, pid(other).await);
    other.rollback().await.expect("it ends");
    one.execute_unprepared("SET default_transaction_read_only = on").await.expect("it is set");
    one.commit().await.expect("it ends");
    let ended = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {one_pid}");
    eventually("the session is closed", async || (fetch(&db, &ended).await == "0").then_some(())).await;
    let (next, next_pid) = pid(begin(&opened).await.expect("it begins")).await;
    assert!(![one_pid, other_pid].contains(&next_pid), "an older connection is not used again");
    next.rollback().await.expect("it ends");
}
