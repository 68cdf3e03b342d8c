//! The tables of the scheduler.

use sea_orm_migration::prelude::*;

use super::run_script;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const DROP_TABLES: &str = "
    DROP TABLE IF EXISTS scheduler_queue;
    DROP TABLE IF EXISTS scheduler_requests;
    DROP TABLE IF EXISTS scheduler_pauses;
    DROP TABLE IF EXISTS scheduler_audit_log;
    DROP TABLE IF EXISTS scheduler_runs;
    DROP TABLE IF EXISTS scheduler_fencing;
    DROP TABLE IF EXISTS scheduler_jobs;";

const DROP_FUNCTION: &str = "DROP FUNCTION IF EXISTS scheduler_audit_log_is_append_only();";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_script(
            manager,
            include_str!("sql/scheduler_postgres.sql"),
            include_str!("sql/scheduler_sqlite.sql"),
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_script(manager, &[DROP_TABLES, DROP_FUNCTION].concat(), DROP_TABLES).await
    }
}
