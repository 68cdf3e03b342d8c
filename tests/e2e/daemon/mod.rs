//! The daemon as a process, including regressions against the original daemon.

mod failing;
mod healthcheck;
mod input_files;
mod kinds;
mod lifecycle;
mod log_file;
mod pings;
mod service_manager;
mod settings;
mod several_daemons;
mod stopping;
mod traces;

use billing_test_support::{Db, Fleet, Instance, Panel, Plan, Program, eventually};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, Statement};
use uuid::Uuid;

/// A short lease, so that the jobs of a killed daemon are soon taken over.
pub(crate) const SHORT_LEASE: &str = r#"
[daemon]
lease-ttl = "4s"
"#;

/// Notes of the newest batch are kept in the program's folder.
pub(crate) const STATE: &str = "[daemon]\nstate-dir = \".\"\n";

/// Billing once, at the start, in small batches one after the other: the next occurrence is months away.
pub(crate) const BILLING: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "365d" }
allow-long-gaps = true
run-at-start = true
retry = { max-attempts = 100, backoff = "1s", max-backoff = "1s" }
params = { batch-instances = 1, connections = 1 }
"#;

pub(crate) const HEARTBEAT: &str = r#"
[[job]]
name = "heartbeat"
kind = "heartbeat"
schedule = { every = "1s" }
scope = "node"
run-at-start = true
"#;

pub(crate) const TICK: &str = r#"
[[job]]
name = "tick"
kind = "test.tick"
schedule = { every = "1s" }
misfire = "catch-up"
"#;

/// Starts immediately and never ends.
pub(crate) const HANGS_FOREVER: &str = r#"
[[job]]
name = "runaway"
kind = "test.hangs-forever"
schedule = { every = "365d" }
run-at-start = true
"#;

/// A `[[job]]` of jobs.toml with these further lines.
pub(crate) fn job(name: &str, kind: &str, every: &str, more: &str) -> String {
    format!("\n[[job]]\nname = '{name}'\nkind = '{kind}'\nschedule = {{ every = '{every}' }}\n{more}\n")
}

/// The hours that each instance of [`seed`] has due.
pub(crate) const HOURS: i64 = 3;

/// The daemon under test, with the plugins of the test binary, for this database.
pub(crate) fn daemon(db: &Db, jobs: &[&str]) -> Program {
    program().env("DATABASE_URL", &db.url).file("jobs.toml", &with_panel_billing_off(db, &jobs.concat()))
}

/// These jobs, with the setting that permits charges next to a panel of a generation that reads no heartbeat: no panel of a test bills
/// without a call, and few have the panel guard.
pub(crate) fn with_panel_billing_off(db: &Db, jobs: &str) -> String {
    let setting = "[daemon]\npanel-billing = \"off\"\n";
    match db.panel {
        Panel::Empty | Panel::G1 => jobs.to_owned(),
        Panel::G2 | Panel::G3 if jobs.contains("[daemon]\n") => jobs.replacen("[daemon]\n", setting, 1),
        Panel::G2 | Panel::G3 => format!("{setting}{jobs}"),
    }
}

/// The same without a database and without jobs.
pub(crate) fn program() -> Program {
    Program::new(env!("CARGO_BIN_EXE_e2e-daemon"))
}

/// Seeds this many organizations of one instance each, in the order of their ids, which is the order in which they are billed. Each
/// instance costs $7.30 a month, which is a cent an hour, and has [`HOURS`] due.
pub(crate) async fn seed(db: &Db, organizations: usize) -> Vec<Uuid> {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let created = now(db).await - TimeDelta::minutes(HOURS * 60 + 30);
    let mut ids = Vec::new();
    for _ in 0..organizations {
        let org = fleet.wallet("100.00").await;
        fleet.instance(Instance::new(org, plan, created)).await;
        ids.push(org);
    }
    ids.sort_unstable();
    ids
}

/// The time by the database's clock.
pub(crate) async fn now(db: &Db) -> DateTime<Utc> {
    let sql = match db.backend() {
        sea_orm::DbBackend::Sqlite => "unixepoch('now')",
        _ => "floor(extract(epoch FROM now()))::bigint",
    };
    let seconds: i64 = fetch(db, sql).await.parse().expect("a clock shows a number");
    DateTime::from_timestamp_secs(seconds).expect("the present is in range")
}

/// The one value of a query, as text; a dash for NULL or no row.
pub(crate) async fn fetch(db: &Db, sql: &str) -> String {
    rows(db, &format!("coalesce(CAST(({sql}) AS text), '-')")).await.remove(0)
}

/// The rows of a query with one selected expression, as text.
pub(crate) async fn rows(db: &Db, selected: &str) -> Vec<String> {
    let sql = format!("SELECT {selected}");
    let rows = db.admin().query_all_raw(Statement::from_string(db.backend(), &sql)).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"));
    rows.iter().map(|row| row.try_get_by_index(0).expect("the first column is text")).collect()
}

/// Ends every lease: for a test that does not wait until what a dead daemon held expires.
pub(crate) async fn free_all_jobs(db: &Db) {
    db.execute("UPDATE scheduler_jobs SET holder = NULL, expires_at = NULL").await;
}

/// Waits until a transaction of the daemon's waits for a lock on PostgreSQL.
pub(crate) async fn until_it_waits_for_a_lock(db: &Db) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'billing-daemon' AND wait_event_type = 'Lock'";
    eventually("it waits for a lock", async || (fetch(db, waiting).await != "0").then_some(())).await;
}

/// Fails the test unless the instance of each of these organizations is charged for all its hours, once.
pub(crate) async fn check_all_charged_once(db: &Db, organizations: &[Uuid]) {
    let count = organizations.len();
    let charges = "SELECT count(*) || ' charges of ' || count(DISTINCT instance_id) || ' instances' FROM billing_charges";
    assert_eq!(fetch(db, charges).await, format!("{count} charges of {count} instances"));
    let fleet = Fleet::new(db);
    for org in organizations {
        assert_eq!(
            fleet.balance(*org).await,
            1_000_000 - 100 * HOURS,
            "of a hundred dollars, a cent an hour"
        );
    }
    check_audit(db).await;
}

/// Fails the test unless every invariant of the ledger holds.
pub(crate) async fn check_audit(db: &Db) {
    program().env("DATABASE_URL", &db.url).run("audit").await.expect_code(0);
}
