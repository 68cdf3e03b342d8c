//! The status row when billing cannot work although the daemon runs, and how it recovers.

use std::net::{Ipv4Addr, SocketAddr};

use billing_test_support::{Db, Postgres, connect, eventually, on_variants, process::Signal};
use sea_orm::{ConnectionTrait, SqliteTransactionMode, TransactionOptions, TransactionTrait};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    BILLING, HEARTBEAT, SHORT_LEASE, check_all_charged_once, daemon, fetch, program, seed,
    until_it_waits_for_a_lock,
};

/// The original reported success with nothing billed, and beat on, so that the built-in billing stayed
/// paused.
async fn unwritable_wallets_are_reported_until_fixed(db: &Db) {
    let organizations = seed(db, 3).await;
    db.execute("REVOKE INSERT ON payment_transactions FROM billing_run").await;
    let daemon = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    let failed = daemon.wait_for_line("job `billing` failed, attempt 1 of 100: cannot post a batch").await;
    let refusal = "permission denied for table payment_transactions";
    assert!(failed.contains("] [WARN] ") && failed.contains(refusal), "{failed}");

    // One heartbeat may have been in progress while the first run failed; there is none after it.
    let no_heartbeat = "no heartbeat: the last billing run failed: cannot post a batch";
    daemon.wait_for_line(no_heartbeat).await;
    let beat = fetch(db, "SELECT heartbeat_at FROM billing_daemon_status").await;
    daemon.wait_for_line("attempt 2 of 100").await;
    daemon.wait_for_lines(no_heartbeat, 3).await;
    assert_eq!(fetch(db, "SELECT heartbeat_at FROM billing_daemon_status").await, beat, "it ages");
    let status =
        "SELECT concat_ws(' ', status, last_run_success, instances_billed, total_amount = 0, total_hours = 0)
                  FROM billing_daemon_status";
    assert_eq!(fetch(db, status).await, "error f 0 t t");
    let message = fetch(db, "SELECT error_message FROM billing_daemon_status").await;
    assert!(message.contains(refusal), "{message}");
    let recorded =
        "SELECT concat_ws(' ', status, items, error LIKE '%permission denied%') FROM scheduler_runs
                     WHERE job = 'billing' AND attempt = 1";
    assert_eq!(fetch(db, recorded).await, "retrying 0 t");
    for nothing in ["billing_charges", "payment_transactions", "vps_billing_cycles", "billing_batches"] {
        assert_eq!(fetch(db, &format!("SELECT count(*) FROM {nothing}")).await, "0", "{nothing}");
    }

    db.execute("GRANT INSERT ON payment_transactions TO billing_run").await;
    daemon.wait_for_line("charged 0.09 USD for 9 hours of 3 instances").await;
    let status = format!(
        "SELECT concat_ws(' ', status, last_run_success, instances_billed, heartbeat_at > '{}', error_message)
           FROM billing_daemon_status",
        if beat == "-" { "-infinity" } else { &beat }
    );
    eventually("it beats again", async || (fetch(db, &status).await == "running t 3 t").then_some(())).await;
    check_all_charged_once(db, &organizations).await;
}

on_variants!(unwritable_wallets_are_reported_until_fixed: g1_role, g3_role);

/// The original took a lost connection for a run with nothing to bill.
async fn daemon_survives_lost_database(db: &Db) {
    let organizations = seed(db, 5).await;
    let proxy = Proxy::start().await;
    let lock = db.admin().begin().await.expect("a transaction begins");
    let locked = format!("SELECT FROM wallets WHERE organization_id = '{}' FOR UPDATE", organizations[2]);
    lock.execute_unprepared(&locked).await.expect("a wallet is locked");
    let daemon =
        daemon(db, &[SHORT_LEASE, BILLING, HEARTBEAT]).env("DATABASE_URL", &proxy.url(db)).start("run");
    let charges = "SELECT count(*) FROM billing_charges";
    until_it_waits_for_a_lock(db).await;

    proxy.cut();
    let lost = daemon.wait_for_line("job `billing` cannot reach its store").await;
    assert!(lost.contains("] [ERROR] "), "{lost}");
    lock.rollback().await.expect("a lock is given back");
    assert_eq!(fetch(db, charges).await, "2", "what was not committed is not charged");

    proxy.restore();
    daemon.wait_for_line("charged 0.09 USD for 9 hours of 3 instances").await;
    let status =
        "SELECT concat_ws(' ', status, last_run_success, heartbeat_at > now() - interval '10 seconds')
                  FROM billing_daemon_status";
    eventually("it beats again", async || (fetch(db, status).await == "running t t").then_some(())).await;
    check_all_charged_once(db, &organizations).await;
    daemon.terminated().await.expect_code(0);
}

on_variants!(daemon_survives_lost_database: g1_role);

#[tokio::test]
async fn daemon_waits_for_database_at_start() {
    let db = Db::g1_role().await;
    let proxy = Proxy::start().await;
    proxy.cut();
    let daemon = daemon(&db, &[BILLING, HEARTBEAT]).env("DATABASE_URL", &proxy.url(&db)).start("run");
    let warning = daemon.wait_for_line("next attempt in 1 s").await;
    assert!(warning.contains("] [WARN] cannot open postgres://billing_run@127.0.0.1:"), "{warning}");
    proxy.restore();
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
}

#[tokio::test]
async fn waiting_daemon_ends_on_signal() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let closed = listener.local_addr().expect("a listener has an address").port();
    drop(listener);
    for signal in [Signal::TERM, Signal::INT] {
        let url = format!("postgres://billing_run@127.0.0.1:{closed}/panel");
        let program = program().env("DATABASE_URL", &url).file("jobs.toml", BILLING);
        let daemon = program.start("run");
        daemon.wait_for_line("next attempt in 1 s").await;
        daemon.signal(signal);
        let ended = daemon.ended().await.expect_code(0);
        assert!(ended.text().contains("before the start: nothing was begun"), "{}", ended.text());
    }
}

/// Another process holds the whole file: a daemon that starts then waits, and so does a second one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_waits_for_locked_sqlite_file() {
    let db = Db::sqlite().await;
    let organizations = seed(&db, 2).await;
    let connection = connect(&db.url).await;
    let exclusive = connection.begin_with_options(TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Exclusive),
        ..TransactionOptions::default()
    });
    let exclusive = exclusive.await.expect("no other process uses the file");
    let daemon = daemon(&db, &[BILLING]).env("BILLING_LOCK_TIMEOUT_MS", "100").start("run");
    let warning = daemon.wait_for_line("next attempt in 1 s").await;
    assert!(
        warning.contains("] [WARN] cannot open sqlite:") && warning.contains("database is locked"),
        "{warning}"
    );
    exclusive.rollback().await.expect("nothing was changed");
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}

/// A proxy between a daemon and the PostgreSQL server that can fail as a network does.
struct Proxy {
    address: SocketAddr,
    passes: watch::Sender<bool>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let (passes, passing) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, passing.clone()));
            }
        });
        Self { address, passes }
    }

    /// The URL of a database as it is reached through here.
    fn url(&self, db: &Db) -> String {
        let direct = format!(":{}/", Postgres::server().port());
        db.url.replace(&direct, &format!(":{}/", self.address.port()))
    }

    /// Ends every connection, and each new one at once.
    fn cut(&self) {
        self.passes.send_replace(false);
    }

    fn restore(&self) {
        self.passes.send_replace(true);
    }
}

async fn pass(mut client: TcpStream, mut passing: watch::Receiver<bool>) {
    if !*passing.borrow_and_update() {
        return;
    }
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, Postgres::server().port())).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = passing.wait_for(|passes| !passes) => {}
    }
}
