//! What people ask of jobs, who asked for it, and what the history and the state of a job need for it.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// Columns of tables that are there already: table, column, and its type on PostgreSQL and on SQLite.
const COLUMNS: [(&str, &str, &str, &str); 7] = [
    ("scheduler_jobs", "schedule", "text", "TEXT"),
    ("scheduler_jobs", "next_at", "timestamptz", "INTEGER"),
    ("scheduler_jobs", "late_at", "timestamptz", "INTEGER"),
    ("scheduler_jobs", "stuck_at", "timestamptz", "INTEGER"),
    ("scheduler_runs", "scheduled_from", "timestamptz", "INTEGER"),
    ("scheduler_runs", "scheduled_count", "bigint NOT NULL DEFAULT 1", "INTEGER NOT NULL DEFAULT 1"),
    ("scheduler_runs", "request_id", "uuid", "TEXT"),
];

const DROP_TABLES: &str = "
    DROP TABLE IF EXISTS scheduler_requests;
    DROP TABLE IF EXISTS scheduler_pauses;
    DROP TABLE IF EXISTS scheduler_audit_log;";

const DROP_FUNCTION: &str = "DROP FUNCTION IF EXISTS scheduler_audit_log_is_append_only();";

/// Indexes on tables and columns that are there already; SQLite does not drop them along with a column.
const DROP_INDEXES: &str = "
    DROP INDEX IF EXISTS billing_holds_open_by_organization;
    DROP INDEX IF EXISTS scheduler_runs_by_request;
    DROP INDEX IF EXISTS scheduler_runs_by_time;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column, postgres, sqlite) in COLUMNS {
            if !manager.has_column(table, column).await? {
                let kind = if is_sqlite(manager) { sqlite } else { postgres };
                execute(manager, &format!("ALTER TABLE {table} ADD COLUMN {column} {kind}")).await?;
            }
        }
        crate::run(manager, include_str!("sql/control_postgres.sql"), include_str!("sql/control_sqlite.sql"))
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let postgres = [DROP_INDEXES, DROP_TABLES, DROP_FUNCTION].concat();
        crate::run(manager, &postgres, &[DROP_INDEXES, DROP_TABLES].concat()).await?;
        for (table, column, ..) in COLUMNS {
            if manager.has_column(table, column).await? {
                execute(manager, &format!("ALTER TABLE {table} DROP COLUMN {column}")).await?;
            }
        }
        Ok(())
    }
}

fn is_sqlite(manager: &SchemaManager<'_>) -> bool {
    manager.get_database_backend() == DbBackend::Sqlite
}

async fn execute(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    manager.get_connection().execute_unprepared(sql).await.map(drop)
}
