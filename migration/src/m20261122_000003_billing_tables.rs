//! The tables of billing, and the indexes on the panel's tables that billing needs and the panel lacks.

use billing_store::migrations::run_script;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const DROP_TABLES: &str = "
    DROP TABLE IF EXISTS billing_batches;
    DROP TABLE IF EXISTS billing_charges;
    DROP TABLE IF EXISTS billing_meters;
    DROP TABLE IF EXISTS billing_holds;
    DROP TABLE IF EXISTS billing_seen_rates;
    DROP TABLE IF EXISTS billing_wallet_openings;
    DROP TABLE IF EXISTS billing_standings;
    DROP TABLE IF EXISTS billing_notices;
    DROP TABLE IF EXISTS billing_deliveries;
    DROP TABLE IF EXISTS billing_events;
    DROP TABLE IF EXISTS billing_policies;
    DROP INDEX IF EXISTS billing_audit_log_by_action;";

const DROP_PANEL_GUARD: &str = include_str!("sql/drop_panel_guard.sql");

const DROP_FUNCTIONS: &str = "
    DROP FUNCTION IF EXISTS billing_charges_are_append_only();
    DROP FUNCTION IF EXISTS billing_events_are_append_only();";

/// The panel's tables that billing reads by organization. Not every generation has these indexes.
const BY_ORGANIZATION: [&str; 3] = ["vps_instances", "wallets", "payment_transactions"];

/// Returns a row if table `$1` has no index by organization: the owner of the table, and whether this role may add an index.
const LACKS_INDEX: &str = "
    SELECT pg_get_userbyid(t.relowner)::text AS owner, pg_has_role(t.relowner, 'USAGE') AS ours
    FROM pg_class t
    WHERE t.oid = to_regclass($1) AND NOT EXISTS (
        SELECT FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = t.oid AND i.indisvalid AND i.indpred IS NULL AND a.attname = 'organization_id'
    )";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run_script(manager, include_str!("sql/billing_postgres.sql"), include_str!("sql/billing_sqlite.sql"))
            .await?;
        if manager.get_database_backend() == DbBackend::Postgres {
            for table in BY_ORGANIZATION {
                index_by_organization(manager, table).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let indexes =
            BY_ORGANIZATION.map(|table| format!("DROP INDEX IF EXISTS {};", index_name(table))).concat();
        run_script(manager, &[DROP_PANEL_GUARD, DROP_TABLES, DROP_FUNCTIONS, &indexes].concat(), DROP_TABLES)
            .await
    }
}

fn index_name(table: &str) -> String {
    format!("billing_{table}_by_organization")
}

async fn index_by_organization(manager: &SchemaManager<'_>, table: &str) -> Result<(), DbErr> {
    let db = manager.get_connection();
    let lacks = Statement::from_sql_and_values(DbBackend::Postgres, LACKS_INDEX, [table.into()]);
    let Some(row) = db.query_one_raw(lacks).await? else { return Ok(()) };
    if row.try_get("", "ours")? {
        db.execute_unprepared(&format!("CREATE INDEX {} ON {table} (organization_id)", index_name(table)))
            .await?;
    } else {
        let owner: String = row.try_get("", "owner")?;
        tracing::warn!(
            table,
            owner,
            "{table} has no index on organization_id, so each billing run reads the whole table, and only its owner can add \
             one: run `CREATE INDEX CONCURRENTLY ON {table} (organization_id)` as {owner}",
        );
    }
    Ok(())
}
