//! Databases that are full, damaged, missing or read-only: each is reported with help, nothing is lost, and billing
//! continues when it can.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant as Clock},
};

use billing_store::{Database, Pool};
use billing_test_support::{
    Db, Fleet, Instance, LimitedDisk, Login, Panel, Plan, Postgres, Program, Running, eventually,
    on_every_engine, on_variants, process::Signal,
};
use chrono::TimeDelta;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use sea_orm::{ConnectionTrait as _, DbBackend};
use uuid::Uuid;

use crate::daemon::{
    BILLING, HEARTBEAT, check_all_charged_once, check_audit, daemon, fetch, free_all_jobs, now, program,
    rows, seed,
};

/// A file may not grow, and later it may: the effect of a full disk, without privileges.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn size_limited_file_delays_billing_only() {
    let db = Db::sqlite().await;
    let organizations = seed(&db, 40).await;
    // As a failing disk does, the limit answers with an error instead of a signal.
    let limited = format!("trap '' XFSZ\nulimit -S -f 2000\nexec {} run\n", env!("CARGO_BIN_EXE_e2e-daemon"));
    let daemon = Program::new("/bin/sh")
        .env("DATABASE_URL", &db.url)
        .file("limited.sh", &limited)
        .file("jobs.toml", BILLING)
        .start("limited.sh");
    let failed = daemon.wait_for_line("job `billing` failed").await;
    assert!(failed.contains("check the disk of the file, which may be full or failing"), "{failed}");
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    prlimit(pid, Resource::Fsize, Rlimit { current: None, maximum: None })
        .expect("a soft limit may be raised");
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}

/// The disk is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_delays_billing_only() {
    let Some(disk) = LimitedDisk::of(8) else { return };
    let db = Db::sqlite_in(disk.path()).await;
    let organizations = seed(&db, 40).await;
    disk.fill();
    let daemon = daemon(&db, &[BILLING]).start("run");
    let full = daemon.wait_for_line("database or disk is full").await;
    let advice = "free space on its disk; the jobs continue automatically";
    assert!(full.contains(advice) && full.contains("next attempt in 1 s"), "{full}");
    disk.make_room();
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    assert_eq!(fetch(&db, "SELECT integrity_check FROM pragma_integrity_check").await, "ok");
    check_all_charged_once(&db, &organizations).await;
}

const FLEET: i64 = 2_500;

/// Starts a daemon on a fleet whose disk is almost full, and waits until a COMMIT has failed.
async fn on_almost_full_disk(db: &Db, disk: &LimitedDisk, customer: Uuid, every: &str) -> (Running, i64) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let (mut due, now) = (0, now(db).await);
    for instance in 0..FLEET {
        let hours = instance % 48 + 1;
        due += hours;
        let created = now - TimeDelta::minutes(hours * 60 + 5);
        fleet.instance(Instance::new(customer, plan, created)).await;
    }
    disk.fill_until_free(200 << 10);
    let billing = format!(
        "[[job]]\nname = \"billing\"\nkind = \"billing\"\nrun-at-start = true\nschedule = {{ every = \"{every}\" }}\n"
    );
    let daemon = daemon(db, &[&billing]).start("run");
    let failed = daemon.wait_for_line("disk is full").await;
    assert!(failed.contains("free space on its disk"), "{failed}");
    daemon.wait_for_lines("closing a connection to the database whose transaction did not end", 2).await;
    (daemon, due)
}

/// As soon as the disk has room, the panel can write and billing continues.
async fn full_disk_is_freed(every: &str) {
    let Some(disk) = LimitedDisk::of(12) else { return };
    let db = Db::sqlite_in(disk.path()).await;
    let fleet = Fleet::new(&db);
    let customer = fleet.wallet("100000.00").await;
    let (daemon, due) = on_almost_full_disk(&db, &disk, customer, every).await;
    let count = "SELECT count(*) FROM billing_charges";
    let before = fetch(&db, count).await;
    disk.make_room();
    let freed = Clock::now();
    fleet.top_up(customer, "1.00").await;
    assert!(freed.elapsed() < Duration::from_secs(5), "the panel waited {:?}", freed.elapsed());
    eventually("billing resumes", async || (fetch(&db, count).await != before).then_some(())).await;
    eprintln!("every {every}: billing resumes after {:?}", freed.elapsed());
    assert!(freed.elapsed() < Duration::from_secs(5), "billing waited {:?}", freed.elapsed());
    daemon.wait_for_line("job `billing` done").await;
    let charged = "SELECT count(DISTINCT instance_id) || ' ' || sum(hours) FROM billing_charges";
    assert_eq!(fetch(&db, charged).await, format!("{FLEET} {due}"));
    daemon.terminated().await.expect_code(0);
    check_audit(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freed_disk_resumes_billing_each_second() {
    full_disk_is_freed("1s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freed_disk_resumes_billing_each_hour() {
    full_disk_is_freed("1h").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_does_not_prevent_stop() {
    let Some(disk) = LimitedDisk::of(12) else { return };
    let db = Db::sqlite_in(disk.path()).await;
    let customer = Fleet::new(&db).wallet("100000.00").await;
    let (daemon, _) = on_almost_full_disk(&db, &disk, customer, "1s").await;
    let stopped = daemon.terminated().await;
    match stopped.code {
        Some(0) => {}
        Some(69) => {
            assert!(stopped.text().contains("cannot write that the daemon stopped"), "{}", stopped.text());
        }
        other => panic!("code {other:?}: {}", stopped.text()),
    }
}

/// The table of cycles is on a separate disk, which is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_server_disk_delays_billing_only() {
    let Some(disk) = LimitedDisk::of(8) else { return };
    let server = Postgres::private().await;
    disk.belongs_to_owner_of(server.folder());
    let db = Db::on_server(server, Panel::G1, Login::Billing).await;
    let organizations = seed(&db, 3).await;
    db.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display())).await;
    db.execute("ALTER TABLE vps_billing_cycles SET TABLESPACE small").await;
    disk.fill();
    let daemon = daemon(&db, &[BILLING, HEARTBEAT]).start("run");
    let failed = daemon.wait_for_line("job `billing` failed").await;
    assert!(
        failed.contains("No space left on device")
            && failed.contains("; free space on the database server's disk"),
        "{failed}"
    );
    daemon.wait_for_line("no heartbeat: the last billing run failed").await;
    assert_eq!(fetch(&db, "SELECT count(*) FROM billing_charges").await, "0");
    disk.make_room();
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    drop(db);
    server.take_away();
}

/// A hot standby, as `DATABASE_URL` may name after a fail-over, or before one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_is_billed_after_promotion() {
    let primary = Postgres::private().await;
    let on_primary = Db::on_server(primary, Panel::G1, Login::Billing).await;
    let organizations = seed(&on_primary, 3).await;
    let standby = primary.standby();
    let db = on_primary.on_standby(standby).await;
    let refused = program().env("DATABASE_URL", &db.url).run("bill").await;
    assert!(refused.code.is_some_and(|code| code != 0), "{}", refused.text());
    let advice = "this server is read-only: use the primary in DATABASE_URL";
    assert!(refused.text().contains(advice), "{}", refused.text());

    let daemon = daemon(&db, &[BILLING, HEARTBEAT]).start("run");
    let logged = daemon.wait_for_line("next attempt in 1 s").await;
    assert!(logged.contains(advice), "{logged}");
    for db in [&on_primary, &db] {
        assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "0");
        assert_eq!(
            fetch(db, "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL").await,
            "0"
        );
    }
    standby.promote().await;
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
    assert_eq!(fetch(&on_primary, "SELECT count(*) FROM billing_charges").await, "0");
    drop((db, on_primary));
    standby.take_away();
    primary.take_away();
}

/// Under row-level security, an UPDATE that no policy allows changes nothing and is no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_without_write_policy_delays_billing() {
    let db = Db::g3_role().await;
    let organizations = seed(&db, 3).await;
    let wallets = "FROM pg_policies WHERE tablename = 'wallets'";
    let policies =
        rows(&db, &format!("format('ALTER POLICY %I ON wallets TO ', policyname) {wallets}")).await;
    assert!(!policies.is_empty(), "the panel protects its wallets");
    for policy in &policies {
        db.execute(&format!("{policy} panel_owner")).await;
    }
    db.execute("CREATE POLICY look ON wallets FOR SELECT USING (true)").await;
    let daemon = daemon(&db, &[BILLING, HEARTBEAT]).start("run");
    let failed = daemon.wait_for_line("job `billing` failed").await;
    assert!(
        failed.contains("row-level security lets this login see wallets and not change them"),
        "{failed}"
    );
    daemon.wait_for_line("no heartbeat: the last billing run failed").await;
    assert_eq!(fetch(&db, "SELECT count(*) FROM billing_charges").await, "0");
    db.execute("DROP POLICY look ON wallets").await;
    for policy in &policies {
        db.execute(&format!("{policy} PUBLIC")).await;
    }
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}

async fn disk_full_error_delays_billing_only(db: &Db) {
    let organizations = seed(db, 3).await;
    db.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
         CREATE TRIGGER full_disk BEFORE INSERT ON vps_billing_cycles FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    .await;
    let daemon = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    let failed = daemon.wait_for_line("job `billing` failed").await;
    assert!(
        failed.contains("No space left on device")
            && failed.contains("; free space on the database server's disk"),
        "{failed}"
    );
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "0");
    daemon.wait_for_line("no heartbeat: the last billing run failed").await;
    db.execute("DROP TRIGGER full_disk ON vps_billing_cycles").await;
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

on_variants!(disk_full_error_delays_billing_only: g1_role, g3_role);

/// A standby, or a server, role or file that is read-only.
async fn read_only_database_delays_billing(db: &Db) {
    let organizations = seed(db, 2).await;
    let sqlite = db.backend() == DbBackend::Sqlite;
    let read_only = "default_transaction_read_only";
    let (url, advice) = if sqlite {
        (db.url.replace("mode=rwc", "mode=ro"), "remove `mode=ro` from DATABASE_URL")
    } else {
        let name = fetch(db, "SELECT current_database()").await;
        db.execute(&format!("ALTER DATABASE {name} SET {read_only} = on")).await;
        (db.url.clone(), "this server is read-only: use the primary in DATABASE_URL")
    };
    let refused = program().env("DATABASE_URL", &url).run("bill").await;
    assert!(refused.code.is_some_and(|code| code != 0), "{}", refused.text());
    assert!(refused.text().contains(advice), "{}", refused.text());
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "0");
    if !sqlite {
        let failed = program().env("DATABASE_URL", &url).run("doctor").await.expect_code(1);
        assert!(failed.text().contains("is read-only (default_transaction_read_only)"), "{}", failed.text());
        let name = fetch(db, "SELECT current_database()").await;
        db.execute(&format!("BEGIN READ WRITE; ALTER DATABASE {name} RESET {read_only}; COMMIT")).await;
    }
    program().env("DATABASE_URL", &db.url).run("bill").await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

on_every_engine!(read_only_database_delays_billing);

#[tokio::test]
async fn unusable_file_is_reported_with_help() {
    let program = program().file("damaged.db", &"this is no database\n".repeat(500));
    for (url, command, advice) in [
        (
            "sqlite://damaged.db",
            "bill",
            "the file is damaged: stop every process that uses it and restore a backup",
        ),
        (
            "sqlite://missing.db",
            "bill",
            "if the file is missing, create it by applying the migrations (`migrate up`)",
        ),
        (
            "sqlite://missing.db",
            "audit",
            "if the file is missing, create it by applying the migrations (`migrate up`)",
        ),
        ("sqlite://no/such/folder.db?mode=rwc", "bill", "if the file is missing"),
    ] {
        let refused = program.clone().env("DATABASE_URL", url).run(command).await;
        assert!(refused.code.is_some_and(|code| code != 0), "{url}: {}", refused.text());
        assert!(refused.text().contains(advice), "{url}: {}", refused.text());
    }
}

/// Root opens the file first, for example with `status`. Until SQLite gives the shared memory of its log to the owner of the file, the
/// daemon's user cannot open it.
#[tokio::test]
async fn log_of_other_user_delays_opening() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("billing.db");
    let url = format!("sqlite://{}", file.display()).parse().expect("a URL");
    let database = Database::new(url);
    database.creating().connect(Pool::Single).await.expect("a new file").close().await.expect("closed");
    let memory = file.with_extension("db-shm");
    // SQLite does not follow a link here.
    symlink("/dev/null/denied", &memory).expect("nothing is open");
    let removed = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs::remove_file(&memory).expect("the link is there");
    };

    let (opened, ()) = tokio::join!(database.connect(Pool::Shared), removed);

    let opened = opened.expect("it opens after the link is gone");
    opened.execute_unprepared("CREATE TABLE written (id INTEGER)").await.expect("writable");
}

/// Rights to read and to bill suffice when no migration is pending.
async fn current_schema_needs_no_owner(db: &Db) {
    let migrated = program().env("DATABASE_URL", &db.url).run("migrate up").await.expect_code(0);
    assert_eq!(migrated.out, ["nothing to do"]);
}

on_variants!(current_schema_needs_no_owner: sqlite, g1_role, g3_role);

/// A row of the list of migrations is missing, as after a restore of one table.
async fn incomplete_schema_is_rejected(db: &Db) {
    seed(db, 1).await;
    db.execute(
        "DELETE FROM billing_migrations WHERE version = (SELECT max(version) FROM billing_migrations)",
    )
    .await;
    for command in ["bill", "run"] {
        let program = daemon(db, &[BILLING, HEARTBEAT]);
        let refused = program.run(command).await.expect_code(78);
        assert!(refused.text().contains("run `billing-daemon migrate up`"), "{}", refused.text());
    }
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "0");
}

on_every_engine!(incomplete_schema_is_rejected);

/// Killed repeatedly while it writes: the file is valid each time, and at the end everything is charged once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_during_writes_leaves_valid_file() {
    let db = Db::sqlite().await;
    let organizations = seed(&db, 60).await;
    let count = "SELECT count(*) FROM billing_charges";
    let mut before = "0".to_owned();
    let mut in_the_middle = 0;
    for _ in 0..8 {
        free_all_jobs(&db).await;
        let daemon = daemon(&db, &[BILLING]).env("BILLING_LINGER_MS", "10").start("run");
        let more = async || {
            let now = fetch(&db, count).await;
            (now != before).then_some(now)
        };
        before = eventually("something is charged", more).await;
        daemon.signal(Signal::KILL);
        daemon.ended().await;
        assert_eq!(fetch(&db, "SELECT integrity_check FROM pragma_integrity_check").await, "ok");
        if fetch(&db, count).await == "60" {
            break;
        }
        in_the_middle += 1;
    }
    assert!(in_the_middle > 0, "no kill came before the last charge");
    free_all_jobs(&db).await;
    program().env("DATABASE_URL", &db.url).run("bill").await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}
