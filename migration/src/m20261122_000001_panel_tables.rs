//! The panel's core tables, for a database without a panel: in a live one they exist. A table lists those that are created here,
//! so that `down` removes no table of a panel.

use billing_store::migrations::run_script;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The tables of the script, in an order in which they can be dropped.
const TABLES: [&str; 8] = [
    "billing_daemon_status",
    "vps_billing_cycles",
    "payment_transactions",
    "vps_instances",
    "vps_plans",
    "wallets",
    "organizations",
    "users",
];

/// The tables that `up` created, with their schemas. Only the owner may write to it, because `down` drops the tables that it lists.
const CREATE_LIST: &str = "
    CREATE TABLE IF NOT EXISTS billing_created_tables (name text NOT NULL PRIMARY KEY, in_schema text NOT NULL);";
const DROP_LIST: &str = "DROP TABLE IF EXISTS billing_created_tables;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let mut missing = Vec::new();
        for table in TABLES {
            if !exists(db, table).await? {
                missing.push(table);
            }
        }
        run_script(manager, include_str!("sql/panel_postgres.sql"), include_str!("sql/panel_sqlite.sql"))
            .await?;
        db.execute_unprepared(CREATE_LIST).await?;
        let schema =
            if db.get_database_backend() == DbBackend::Postgres { "current_schema()" } else { "'main'" };
        for table in missing {
            let entry =
                format!("INSERT INTO billing_created_tables (name, in_schema) VALUES ('{table}', {schema})");
            db.execute_unprepared(&entry).await?;
        }
        Ok(())
    }

    /// Without CASCADE: fails if other tables or views depend on these.
    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for table in TABLES {
            let created = format!("SELECT in_schema FROM billing_created_tables WHERE name = '{table}'");
            let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), created)).await?;
            if let Some(row) = row {
                let schema: String = row.try_get("", "in_schema")?;
                let schema = schema.replace('"', "\"\"");
                db.execute_unprepared(&format!("DROP TABLE IF EXISTS \"{schema}\".{table}")).await?;
            }
        }
        db.execute_unprepared(DROP_LIST).await.map(drop)
    }
}

/// Returns whether the search path has a table or view of this name.
async fn exists(db: &SchemaManagerConnection<'_>, table: &str) -> Result<bool, DbErr> {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => format!("SELECT 1 WHERE to_regclass('{table}') IS NOT NULL"),
        _ => format!("SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = '{table}'"),
    };
    Ok(db.query_one_raw(Statement::from_string(backend, sql)).await?.is_some())
}
