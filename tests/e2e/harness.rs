//! Assumptions of the other tests: databases are separate, match the panel's, and are removed.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use billing_test_support::{Db, Fleet, Instance, Login, Panel, Plan, Postgres, on_every_database};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};

/// The time limit of the start and the end of a server.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

const BECOME_ADMIN: &str = "SET LOCAL app.current_user_is_admin = 'true'";
const CREDIT: &str = "UPDATE wallets SET balance = balance + 1";
const BOOK: &str = "INSERT INTO payment_transactions \
     (organization_id, amount, payment_method, payment_provider, status, description) \
     SELECT organization_id, -1, 'wallet_debit', 'internal', 'completed', 'VPS Hourly Billing - a (1h)' FROM wallets";
const REWRITE: &str = "UPDATE payment_transactions SET amount = 0";

fn at(instant: &str) -> DateTime<Utc> {
    instant.parse().expect("a test's instant is RFC 3339")
}

/// The one value that a query answers with, as text; a dash if there is none.
async fn fetch(connection: &impl ConnectionTrait, sql: &str) -> String {
    let sql = format!("SELECT coalesce(CAST(({sql}) AS text), '-') AS answer");
    let row = connection.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
    let row = row.expect("the query is valid").expect("there is a row");
    row.try_get("", "answer").expect("the answer is text")
}

async fn rows_changed(connection: &impl ConnectionTrait, sql: &str) -> u64 {
    connection.execute_unprepared(sql).await.expect("the statement is not refused").rows_affected()
}

async fn fleet_is_read_as_seeded(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("5.00").markup("1.50").backup_hourly("0.002740")).await;
    let (created, billed) = (at("2025-01-01T00:00:00Z"), at("2025-01-02T03:00:00.123456Z"));
    let instance =
        Instance::new(org, plan, created).billed(billed).label("web-1").status("offline").backups("daily");
    let instance = fleet.instance(instance).await;
    fleet.top_up(org, "7.25").await;

    assert_eq!(fleet.balance(org).await, 1_072_500);
    assert_eq!(fleet.last_billed_at(instance).await, Some(billed));
    let ledger = fleet.ledger(org).await;
    assert_eq!(ledger.len(), 1);
    assert_eq!((ledger[0].amount, ledger[0].status.as_str()), (72_500, "completed"));
    assert_eq!(fleet.cycles(instance).await, []);

    fleet.wallet_of(org, -1_200).await;
    assert_eq!(fleet.balances(org).await, [-1_200, 1_072_500]);
    fleet.reprice(plan, None).await;
    fleet.delete(instance).await;
}

async fn daemon_reads_seeded_fleet(db: &Db) {
    Fleet::new(db).wallet("1.00").await;
    let daemon = db.connect().await;
    let wallets = Statement::from_string(db.backend(), "SELECT id FROM wallets");
    assert_eq!(daemon.query_all_raw(wallets).await.expect("wallets may be read").len(), 1);
    let tokens = Statement::from_string(db.backend(), "SELECT * FROM scheduler_fencing");
    assert_eq!(daemon.query_all_raw(tokens).await.expect("our tables may be read").len(), 0);
}

on_every_database!(fleet_is_read_as_seeded, daemon_reads_seeded_fleet);

#[tokio::test]
async fn billing_role_has_minimal_rights() {
    for panel in [Panel::Empty, Panel::G1, Panel::G2, Panel::G3] {
        let db = Db::with_panel(panel, Login::Billing).await;
        let fleet = Fleet::new(&db);
        let org = fleet.wallet("1.00").await;
        let plan = fleet.plan(Plan::monthly("5.00")).await;
        fleet.instance(Instance::new(org, plan, at("2025-01-01T00:00:00Z"))).await;
        let role = db.connect().await;
        let transaction = role.begin().await.expect("a transaction begins");
        rows_changed(&transaction, BECOME_ADMIN).await;
        for allowed in [
            CREDIT,
            BOOK,
            "UPDATE vps_instances SET last_billed_at = now()",
            "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, \
             billing_period_end, hourly_rate, total_amount) \
             SELECT id, organization_id, now(), now(), 0, 0 FROM vps_instances",
            "INSERT INTO billing_daemon_status (daemon_instance_id, status) VALUES ('one', 'running')",
            "DELETE FROM billing_daemon_status",
            "INSERT INTO scheduler_fencing (job) VALUES ('billing')",
            "INSERT INTO scheduler_audit_log (id, at, actor, action, job, details, previous_hash, hash) \
             VALUES (1, now(), 'ada', 'test', '', '{}', '', '')",
        ] {
            assert_eq!(rows_changed(&transaction, allowed).await, 1, "{panel:?}: {allowed}");
        }
        transaction.commit().await.expect("the transaction commits");
        for refused in [
            "UPDATE vps_plans SET base_price = 0",
            "DELETE FROM vps_instances",
            REWRITE,
            "DELETE FROM vps_billing_cycles",
            "UPDATE wallets SET organization_id = organization_id",
            "INSERT INTO wallets (organization_id) SELECT organization_id FROM wallets",
            "UPDATE vps_instances SET plan_id = 'cheaper'",
            "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status, updated_at) \
             SELECT organization_id, -1, 'wallet_debit', 'internal', 'completed', now() FROM wallets",
            "UPDATE vps_billing_cycles SET total_amount = 0",
            "SELECT * FROM users",
            "UPDATE billing_charges SET amount = 0",
            "DELETE FROM billing_charges",
            "TRUNCATE billing_charges",
            "UPDATE billing_batches SET hours = 0",
            "UPDATE scheduler_audit_log SET actor = 'other'",
            "DELETE FROM scheduler_audit_log",
            "TRUNCATE scheduler_audit_log",
            "ALTER TABLE scheduler_audit_log DISABLE TRIGGER ALL",
            "DELETE FROM billing_holds",
            "DELETE FROM scheduler_fencing",
            "DELETE FROM billing_migrations",
            "CREATE TABLE not_ours (id integer)",
            "ALTER TABLE billing_charges DISABLE TRIGGER ALL",
            "DROP TABLE billing_charges",
        ] {
            let error = role.execute_unprepared(refused).await.expect_err(refused).to_string();
            let refusal = error.contains("permission denied") || error.contains("must be owner");
            assert!(refusal, "{panel:?}: {refused}: {error}");
        }
    }
}

/// Every role may change the setting that opens the panel's policies.
#[tokio::test]
async fn billing_role_may_only_debit_hours() {
    let db = Db::g3_role().await;
    Fleet::new(&db).wallet("1.00").await;
    let role = db.connect().await;
    let transaction = role.begin().await.expect("a transaction begins");
    rows_changed(&transaction, BECOME_ADMIN).await;
    assert_eq!(rows_changed(&transaction, BOOK).await, 1);
    transaction.rollback().await.expect("it is rolled back");
    for (change, with) in [
        ("-1", "1"),
        ("'wallet_debit'", "'paypal'"),
        ("'internal'", "'paypal'"),
        ("'completed'", "'refunded'"),
        ("VPS Hourly Billing", "Wallet top-up"),
    ] {
        let transaction = role.begin().await.expect("a transaction begins");
        rows_changed(&transaction, BECOME_ADMIN).await;
        let book = BOOK.replacen(change, with, 1);
        assert_ne!(book, BOOK);
        let error = transaction.execute_unprepared(&book).await.expect_err(&book).to_string();
        assert!(error.contains("billing_run_debits"), "{book}: {error}");
    }
}

#[tokio::test]
async fn reading_role_writes_nothing() {
    for panel in [Panel::Empty, Panel::G1, Panel::G2, Panel::G3] {
        let db = Db::with_panel(panel, Login::Reading).await;
        Fleet::new(&db).wallet("1.00").await;
        let role = db.connect().await;
        assert_eq!(fetch(&role, "SELECT count(*) FROM wallets").await, "1", "{panel:?}");
        assert_eq!(fetch(&role, "SELECT count(*) FROM billing_charges").await, "0", "{panel:?}");
        for refused in [
            CREDIT,
            BOOK,
            "SELECT FROM wallets FOR UPDATE",
            "INSERT INTO scheduler_fencing (job) VALUES ('billing')",
            "INSERT INTO billing_daemon_status (daemon_instance_id, status) VALUES ('one', 'running')",
            "DELETE FROM scheduler_runs",
            "SELECT * FROM users",
        ] {
            let error = role.execute_unprepared(refused).await.expect_err(refused).to_string();
            assert!(error.contains("permission denied"), "{panel:?}: {refused}: {error}");
        }
    }
}

#[tokio::test]
async fn databases_of_one_template_are_independent() {
    let (one, other) = tokio::join!(Postgres::migrated(Panel::G2), Postgres::migrated(Panel::G2));
    let (one, other) = (one.connect(Login::Owner).await, other.connect(Login::Owner).await);
    let user = "INSERT INTO users (email, name) VALUES ('a@example.com', 'A')";
    assert_eq!(rows_changed(&one, user).await, 1);
    assert_eq!(fetch(&one, "SELECT count(*) FROM users").await, "1");
    assert_eq!(fetch(&other, "SELECT count(*) FROM users").await, "0");
}

#[tokio::test]
async fn test_server_runs_without_root() {
    let pid_file = Postgres::server().folder().join("data/postmaster.pid");
    assert_ne!(fs::metadata(pid_file).expect("the server runs").uid(), 0);
}

#[tokio::test]
async fn panel_database_has_no_billing_tables() {
    let ours = "SELECT count(*) FROM pg_tables WHERE tablename IN ('billing_charges', 'scheduler_fencing')";
    for panel in [Panel::Empty, Panel::G1, Panel::G2, Panel::G3] {
        let bare = Postgres::database(panel).await.connect(Login::Owner).await;
        assert_eq!(fetch(&bare, ours).await, "0", "{panel:?}");
        let migrated = Postgres::migrated(panel).await.connect(Login::Owner).await;
        assert_eq!(fetch(&migrated, ours).await, "2", "{panel:?}");
    }
}

#[tokio::test]
async fn panel_generations_have_original_columns() {
    let column = |what: &str, table: &str, column: &str| {
        format!(
            "SELECT {what} FROM information_schema.columns \
             WHERE table_name = '{table}' AND column_name = '{column}'"
        )
    };
    let scale = |table, name| column("numeric_scale", table, name);
    let facts = [
        (scale("wallets", "balance"), ["2", "2", "4"]),
        (scale("payment_transactions", "amount"), ["2", "2", "4"]),
        (scale("vps_billing_cycles", "total_amount"), ["2", "2", "4"]),
        (scale("vps_billing_cycles", "hourly_rate"), ["4", "4", "4"]),
        (scale("vps_plans", "base_price"), ["2", "2", "2"]),
        (scale("vps_plans", "backup_price_hourly"), ["-", "6", "6"]),
        (scale("billing_daemon_status", "total_amount"), ["2", "-", "-"]),
        (column("split_part(column_default, ':', 1)", "vps_instances", "backup_frequency"), ["-", "'weekly'", "'weekly'"]),
        (column("data_type", "vps_plans", "type_class"), ["-", "-", "character varying"]),
        (column("is_nullable", "activity_logs", "user_id"), ["NO", "YES", "YES"]),
        (
            "SELECT array_agg(status) FROM unnest('{pending,completed,failed,cancelled,refunded}'::text[]) status \
             WHERE EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'payment_transactions'::regclass \
             AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%' || status || '%')"
                .into(),
            [
                "{pending,completed,failed,refunded}",
                "{pending,completed,failed,refunded}",
                "{completed,failed,cancelled,refunded}",
            ],
        ),
        (
            "SELECT array_agg(relname ORDER BY relname) FROM pg_class WHERE relrowsecurity".into(),
            ["-", "-", "{payment_transactions,wallets}"],
        ),
        (
            "SELECT array_agg(DISTINCT tableowner) FROM pg_tables WHERE schemaname = 'public'".into(),
            ["{panel_owner}", "{panel_owner}", "{panel_owner}"],
        ),
        (
            "SELECT confdeltype FROM pg_constraint WHERE conrelid = 'vps_billing_cycles'::regclass \
             AND confrelid = 'vps_instances'::regclass"
                .into(),
            ["c", "c", "c"],
        ),
    ];
    for (generation, panel) in [Panel::G1, Panel::G2, Panel::G3].into_iter().enumerate() {
        let database = Postgres::database(panel).await;
        let connection = database.connect(Login::Admin).await;
        for (query, answers) in &facts {
            assert_eq!(fetch(&connection, query).await, answers[generation], "{panel:?}: {query}");
        }
    }
}

#[tokio::test]
async fn update_sets_updated_at_by_trigger() {
    for panel in [Panel::G1, Panel::G2, Panel::G3] {
        let database = Postgres::database(panel).await;
        let owner = database.connect(Login::Owner).await;
        rows_changed(&owner, "INSERT INTO users (email, name, updated_at) VALUES ('a@b', 'A', '2020-01-01')")
            .await;
        rows_changed(&owner, "UPDATE users SET name = 'B'").await;
        assert_eq!(fetch(&owner, "SELECT updated_at > '2020-01-02' FROM users").await, "true", "{panel:?}");
    }
}

#[tokio::test]
async fn row_level_security_binds_non_owners() {
    let db = Db::g3_role().await;
    Fleet::new(&db).wallet("1.00").await;
    // Without the grant the role is rejected for that reason, and the policies are not tested.
    db.execute("GRANT UPDATE ON payment_transactions TO billing_run").await;
    let role = db.connect().await;

    assert_eq!(fetch(&role, "SELECT count(*) FROM wallets").await, "1");
    assert_eq!(rows_changed(&role, CREDIT).await, 0, "an update of wallets is dropped silently");
    let refusal = role.execute_unprepared(BOOK).await.expect_err("an insert into the ledger is an error");
    assert!(refusal.to_string().contains("row-level security"), "{refusal}");
    assert_eq!(fetch(&role, "SELECT count(*) FROM (SELECT FROM wallets FOR UPDATE) locked").await, "0");

    let transaction = role.begin().await.expect("a transaction begins");
    rows_changed(&transaction, BECOME_ADMIN).await;
    assert_eq!(rows_changed(&transaction, CREDIT).await, 1);
    assert_eq!(rows_changed(&transaction, BOOK).await, 1);
    assert_eq!(rows_changed(&transaction, REWRITE).await, 0, "the ledger is never rewritten");
    transaction.commit().await.expect("the transaction commits");
    assert_eq!(rows_changed(&role, CREDIT).await, 0, "the setting ends with its transaction");

    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    assert_eq!(rows_changed(&owner, CREDIT).await, 1, "the owner is not bound");
    assert_eq!(rows_changed(&owner, REWRITE).await, 1, "the owner is not bound");
}

#[test]
fn server_ends_when_process_is_killed() {
    let mut holder = holder(&env::temp_dir());
    let mut lines = BufReader::new(holder.stdout.take().expect("its output is a pipe")).lines();
    let mut line = || lines.next().expect("it prints where the server is").expect("in text");
    let (folder, port) = (PathBuf::from(line()), line().parse::<u16>().expect("a port"));
    let answers = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    assert!(answers() && folder.exists());

    kill(holder);
    wait_until("the server is gone", || !answers());
    wait_until("its folder is gone", || !folder.exists());
}

#[test]
fn unfinished_server_ends_with_its_process() {
    let parent = tempfile::tempdir().expect("a folder is made");
    // As in /tmp, every user may add files and remove their own.
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o1777)).expect("its mode is changed");
    let folders = || fs::read_dir(parent.path()).into_iter().flatten().flatten();
    let holder = holder(parent.path());
    wait_until("initdb is at work", || folders().any(|folder| folder.path().join("data").exists()));

    kill(holder);
    wait_until("nothing is left", || folders().next().is_none());
}

/// Another process with a separate server, in a folder below this one.
fn holder(parent: &Path) -> Child {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_e2e-tools"));
    holder
        .args(["scratch-database", "postgres"])
        .env("BILLING_TEST_SERVERS", parent)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    holder.spawn().expect("the holder starts")
}

fn kill(mut holder: Child) {
    holder.kill().expect("the holder is killed");
    holder.wait().expect("the holder is gone");
}

fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !happened() {
        assert!(Instant::now() < deadline, "waited {TIMEOUT:?} until {what}");
        thread::sleep(POLL);
    }
}
