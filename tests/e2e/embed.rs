//! The example that embeds the scheduler with SeaORM: its tables and its dependencies.

use std::{collections::BTreeSet, process::Command, sync::Arc, time::Duration};

use billing_scheduler::{NewQueuedJob, Scheduler, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore, queue::enqueue_in, with_help};
use billing_test_support::{Login, Panel, Postgres, Sqlite, connect};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use serde_json::json;

/// The most packages that the example may be built from.
const PACKAGES: usize = 220;

async fn tables(url: &str) -> Vec<String> {
    let db = connect(url).await;
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
        _ => "SELECT tablename::text AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename",
    };
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await;
    let rows = rows.expect("the catalog is readable");
    rows.iter().map(|row| row.try_get("", "name").expect("a name")).collect()
}

async fn check(url: &str) {
    for runs in [1, 2] {
        let count = sea_orm_embed::run_three_times(url).await.expect("the example runs");
        assert!(count > (runs - 1) * 2, "{count} runs after round {runs}");
    }
    assert_eq!(
        tables(url).await,
        [
            "scheduler_audit_log",
            "scheduler_fencing",
            "scheduler_jobs",
            "scheduler_migrations",
            "scheduler_pauses",
            "scheduler_queue",
            "scheduler_requests",
            "scheduler_runs",
            "users"
        ]
    );
}

#[tokio::test]
async fn embedded_store_creates_scheduler_tables_alone() {
    check(&Sqlite::database().url()).await;
    check(&Postgres::database(Panel::Empty).await.url(Login::Owner)).await;
}

/// An application that does not create the tables learns how from the first error.
async fn check_without_tables(url: &str) {
    let (database, application) = (Database::new(url.parse().expect("a URL")), connect(url).await);
    let pool = database.connect(Pool::Shared).await.expect("the database exists");
    let store =
        SeaOrmStore::new(pool, database, "application", Duration::from_secs(10), Arc::new(SystemClock));
    let scheduler = Scheduler::builder().store(store).build().expect("no job is invalid");
    let in_transaction = enqueue_in(&application, &[NewQueuedJob::new("mail", json!(1))]).await;
    let errors = [
        scheduler.control("ada").jobs().await.expect_err("no table exists").to_string(),
        scheduler.enqueue("mail", 1).await.expect_err("no table exists").to_string(),
        with_help(&in_transaction.expect_err("no table exists")),
    ];
    for error in errors {
        assert!(error.contains("scheduler_") && error.contains("calls `billing_store::migrate`"), "{error}");
    }
    billing_store::migrate(&application).await.expect("the tables are created");
    scheduler.enqueue("mail", 1).await.expect("the table exists");
}

#[tokio::test]
async fn missing_tables_are_reported_with_help() {
    check_without_tables(&Sqlite::database().url()).await;
    check_without_tables(&Postgres::database(Panel::Empty).await.url(Login::Owner)).await;
}

#[test]
fn embedded_store_needs_few_packages() {
    let tree =
        ["tree", "--package", "sea-orm-embed", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let output =
        Command::new(env!("CARGO")).args(tree).args(["--locked", "--offline"]).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    let packages: BTreeSet<_> = text.lines().filter_map(|line| line.split(" (").next()).collect();
    assert!(packages.len() <= PACKAGES, "{} packages", packages.len());
    for crate_name in
        ["clap", "axum", "billing-daemon", "billing-jobs", "billing-entities", "billing-migration"]
    {
        let is_built = packages.iter().any(|package| package.starts_with(&format!("{crate_name} v")));
        assert!(!is_built, "the example is built from {crate_name}");
    }
}
