//! The migrations on SQLite: created tables, removed tables and refusals.

use migration::{MigrationError, Migrator, SchemaError, check, down, status, up};
use sea_orm_migration::MigratorTrait;
use sea_orm_migration::sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement,
};
use tempfile::TempDir;

const PANEL: [&str; 8] = [
    "billing_daemon_status",
    "organizations",
    "payment_transactions",
    "users",
    "vps_billing_cycles",
    "vps_instances",
    "vps_plans",
    "wallets",
];
const OURS: [&str; 20] = [
    "billing_batches",
    "billing_charges",
    "billing_created_tables",
    "billing_deliveries",
    "billing_events",
    "scheduler_fencing",
    "billing_holds",
    "scheduler_audit_log",
    "scheduler_pauses",
    "scheduler_queue",
    "scheduler_requests",
    "scheduler_runs",
    "scheduler_jobs",
    "billing_meters",
    "billing_migrations",
    "billing_notices",
    "billing_policies",
    "billing_seen_rates",
    "billing_standings",
    "billing_wallet_openings",
];

const NAMES: [&str; 3] =
    ["m20261122_000001_panel_tables", "m20261122_000002_scheduler_tables", "m20261122_000003_billing_tables"];

async fn open(dir: &TempDir) -> DatabaseConnection {
    let path = dir.path().join("billing.db");
    Database::connect(format!("sqlite://{}?mode=rwc", path.display())).await.expect("a new file opens")
}

async fn empty() -> (TempDir, DatabaseConnection) {
    let dir = TempDir::new().expect("the system has a folder for temporary files");
    let db = open(&dir).await;
    (dir, db)
}

async fn migrated() -> (TempDir, DatabaseConnection) {
    let (dir, db) = empty().await;
    up(&db, None).await.expect("an empty database can be migrated");
    (dir, db)
}

async fn strings(db: &DatabaseConnection, sql: &str) -> Vec<String> {
    let rows =
        db.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.expect("the query runs");
    rows.iter().map(|row| row.try_get_by_index(0).expect("the first column is text")).collect()
}

async fn tables(db: &DatabaseConnection) -> Vec<String> {
    strings(
        db,
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
    )
    .await
}

fn sorted(names: impl IntoIterator<Item = &'static str>) -> Vec<&'static str> {
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_unstable();
    names
}

async fn insert_wallet(db: &DatabaseConnection, balance: &str) -> Result<(), DbErr> {
    db.execute_unprepared(&format!(
        "INSERT INTO users (id, email, name) VALUES ('u', 'u@example.com', 'U') ON CONFLICT DO NOTHING;
         INSERT INTO organizations (id, name, slug, owner_id) VALUES ('o', 'O', 'o', 'u') ON CONFLICT DO NOTHING;
         INSERT INTO wallets (organization_id, balance) VALUES ('o', {balance});"
    ))
    .await?;
    Ok(())
}

#[tokio::test]
async fn up_creates_every_table_once() {
    let (_dir, db) = empty().await;
    assert_eq!(up(&db, None).await.unwrap(), NAMES);
    assert_eq!(tables(&db).await, sorted(PANEL.into_iter().chain(OURS)));
    assert_eq!(up(&db, None).await.unwrap(), [""; 0]);
    check(&db).await.unwrap();
}

#[tokio::test]
async fn steps_limit_up_and_down() {
    let (_dir, db) = empty().await;
    assert_eq!(up(&db, Some(1)).await.unwrap(), NAMES[..1]);
    let applied = async |count: usize| {
        let expected: Vec<_> =
            NAMES.iter().enumerate().map(|(index, name)| ((*name).to_owned(), index < count)).collect();
        assert_eq!(status(&db).await.unwrap(), expected);
    };
    applied(1).await;
    assert_eq!(up(&db, Some(5)).await.unwrap(), NAMES[1..]);
    assert_eq!(down(&db, Some(1)).await.unwrap(), NAMES[2..]);
    assert_eq!(down(&db, Some(0)).await.unwrap(), [""; 0]);
    applied(2).await;
}

#[tokio::test]
async fn down_removes_created_tables_with_rows() {
    let (_dir, db) = migrated().await;
    insert_wallet(&db, "12345").await.unwrap();
    db.execute_unprepared("INSERT INTO scheduler_fencing (job) VALUES ('billing')").await.unwrap();
    for _ in 0..2 {
        down(&db, None).await.unwrap();
        assert_eq!(tables(&db).await, [""; 0]);
    }
    up(&db, None).await.unwrap();
    assert_eq!(strings(&db, "SELECT CAST(balance AS TEXT) FROM wallets").await, [""; 0]);
    assert_eq!(strings(&db, "SELECT job FROM scheduler_fencing").await, [""; 0]);
    check(&db).await.unwrap();
}

/// The table `notes` represents one that another user of the database added.
#[tokio::test]
async fn down_refuses_while_foreign_rows_depend() {
    let (_dir, db) = migrated().await;
    insert_wallet(&db, "12345").await.unwrap();
    db.execute_unprepared(
        "CREATE TABLE notes (org TEXT REFERENCES organizations (id)); INSERT INTO notes VALUES ('o')",
    )
    .await
    .unwrap();
    let before = tables(&db).await;
    assert!(matches!(down(&db, None).await, Err(MigrationError::Database(_))));
    assert_eq!(tables(&db).await, before, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_migrators_apply_each_migration_once() {
    let (dir, db) = empty().await;
    for (round, expected) in [(0, OURS.len() + PANEL.len()), (1, 0), (2, OURS.len() + PANEL.len())] {
        let mut migrators = Vec::new();
        for _ in 0..4 {
            let db = open(&dir).await;
            migrators.push(tokio::spawn(async move {
                if round == 1 { down(&db, None).await } else { up(&db, None).await }
            }));
        }
        let mut changed = 0;
        for migrator in migrators {
            changed += migrator.await.expect("no migrator panics").unwrap().len();
        }
        assert_eq!((round, changed), (round, NAMES.len()));
        assert_eq!(tables(&db).await.len(), expected);
    }
}

#[tokio::test]
async fn failed_migration_is_rolled_back() {
    let (_dir, db) = empty().await;
    // No index of this name can be created; the statement is near the end of the second script.
    db.execute_unprepared("CREATE TABLE billing_holds_one_open (x)").await.unwrap();
    assert!(matches!(up(&db, None).await, Err(MigrationError::Database(_))));
    assert_eq!(tables(&db).await, ["billing_holds_one_open"]);
}

#[tokio::test]
async fn check_reports_schema_and_writes_nothing() {
    async fn refused(db: &DatabaseConnection) -> String {
        let before = tables(db).await;
        let message = check(db).await.unwrap_err().to_string();
        assert_eq!(tables(db).await, before);
        message
    }

    let (_dir, db) = empty().await;
    assert_eq!(refused(&db).await, "the schema is missing: run `billing-daemon migrate up`");
    up(&db, Some(1)).await.unwrap();
    assert_eq!(
        refused(&db).await,
        "the schema is older than this program (it lacks m20261122_000002_scheduler_tables, \
         m20261122_000003_billing_tables): run `billing-daemon migrate up`"
    );
    up(&db, None).await.unwrap();
    db.execute_unprepared("INSERT INTO billing_migrations VALUES ('m29990101_000001_later', 0)")
        .await
        .unwrap();
    assert_eq!(
        refused(&db).await,
        "the schema is newer than this program (which does not know m29990101_000001_later): install a \
         newer version, or undo these with the version that applied them"
    );
    for result in [up(&db, None).await, down(&db, None).await] {
        assert!(matches!(result, Err(MigrationError::Schema(SchemaError::Newer { .. }))));
    }
    assert_eq!(status(&db).await.unwrap().len(), NAMES.len() + 1);
}

#[tokio::test]
async fn commands_that_drop_everything_are_refused() {
    let (_dir, db) = migrated().await;
    insert_wallet(&db, "1").await.unwrap();
    for (name, result) in [
        ("fresh", Migrator::fresh(&db).await),
        ("refresh", Migrator::refresh(&db).await),
        ("reset", Migrator::reset(&db).await),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(&format!("cannot run `{name}`")), "{message}");
    }
    assert_eq!(tables(&db).await.len(), PANEL.len() + OURS.len());
    assert_eq!(strings(&db, "SELECT CAST(balance AS TEXT) FROM wallets").await, ["1"]);
}

#[tokio::test]
async fn sea_orm_migrator_applies_same_migrations() {
    let (_dir, db) = empty().await;
    Migrator::up(&db, None).await.unwrap();
    check(&db).await.unwrap();
    Migrator::down(&db, None).await.unwrap();
    assert_eq!(tables(&db).await, [""; 0]);
}

#[tokio::test]
async fn floating_point_money_is_rejected() {
    let (_dir, db) = migrated().await;
    let error = insert_wallet(&db, "0.5").await.unwrap_err().to_string();
    assert!(error.contains("cannot store REAL value in INTEGER column wallets.balance"), "{error}");
    insert_wallet(&db, "5000").await.unwrap();
}

#[tokio::test]
async fn charges_are_append_only() {
    let (_dir, db) = migrated().await;
    let insert =
        "INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate,
        amount, carry, currency) VALUES (0, 'i', 'o', 1, 1, 0, 0, 0, 'USD') ON CONFLICT DO NOTHING";
    for added in [1, 0] {
        assert_eq!(db.execute_unprepared(insert).await.unwrap().rows_affected(), added);
    }
    for sql in ["UPDATE billing_charges SET amount = 1", "DELETE FROM billing_charges"] {
        let error = db.execute_unprepared(sql).await.unwrap_err().to_string();
        assert!(error.contains("billing_charges is append-only"), "{error}");
    }
}

#[tokio::test]
async fn hour_before_watermark_cannot_be_charged() {
    let (_dir, db) = migrated().await;
    let insert = |batch: i64, start: i64| {
        let sql = format!(
            "INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry, currency)
             VALUES ({start}, 'i', 'o', {batch}, 1, 0, 0, 0, 'USD')"
        );
        let db = &db;
        async move { db.execute_unprepared(&sql).await.map_err(|error| error.to_string()) }
    };
    insert(1, 0).await.unwrap();
    let meter =
        "INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, seen_at, opened_at)
                 VALUES ('i', 'o', 3600000000, 0, 0, 0)";
    db.execute_unprepared(meter).await.unwrap();
    for start in [0, 3_599_999_999] {
        let error = insert(2, start).await.unwrap_err();
        assert!(error.contains("was charged before"), "{error}");
    }
    insert(2, 3_600_000_000).await.unwrap();
    for (sql, message) in [
        ("UPDATE billing_meters SET billed_through = billed_through - 1", "never moves back"),
        ("UPDATE billing_meters SET instance_id = 'other'", "never moves back"),
        ("DELETE FROM billing_meters", "pay the same hours again"),
    ] {
        let error = db.execute_unprepared(sql).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
