//! The schema of billing-daemon: the panel's tables where they are missing, the scheduler's tables, and those of billing.
//!
//! The SQL is in `src/sql` and in billing-store, one file for each database. `sea-orm-cli migrate`, the binary of this crate and
//! a program that embeds it all call [`up`] and [`down`], which let one migrator work at a time.

mod m20261122_000001_panel_tables;
mod m20261122_000003_billing_tables;

use billing_store::migrations::{self, Migrations};
pub use billing_store::migrations::{MigrationError, SchemaError};
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DatabaseConnection, DynIden};

/// All migrations. Their history has a table of its own, so that it cannot clash with the panel's `schema_migrations` or with another
/// SeaORM program.
struct BillingMigrations;

impl Migrations for BillingMigrations {
    const HISTORY_TABLE: &'static str = "billing_migrations";
    const APPLY: &'static str = "run `billing-daemon migrate up`";

    fn list() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_panel_tables::Migration),
            migrations::scheduler_tables(),
            Box::new(m20261122_000003_billing_tables::Migration),
        ]
    }
}

/// Applies the next `steps` migrations, or all of them, and returns their names.
pub async fn up<'c, C>(db: C, steps: Option<u32>) -> Result<Vec<String>, MigrationError>
where
    C: IntoSchemaManagerConnection<'c>,
{
    migrations::up::<BillingMigrations>(db, steps).await
}

/// Reverts the last `steps` migrations, or all of them, and returns their names. It drops exactly what [`up`] created: the record
/// of every charge, and those of the panel's tables that were missing. Tables that existed before stay.
pub async fn down<'c, C>(db: C, steps: Option<u32>) -> Result<Vec<String>, MigrationError>
where
    C: IntoSchemaManagerConnection<'c>,
{
    migrations::down::<BillingMigrations>(db, steps).await
}

/// Returns the name of the newest migration that this program knows.
#[must_use]
pub fn newest() -> String {
    migrations::newest::<BillingMigrations>()
}

/// Returns each migration, in order, and whether it is applied. Writes nothing.
pub async fn status(db: &DatabaseConnection) -> Result<Vec<(String, bool)>, SchemaError> {
    migrations::status::<BillingMigrations>(db).await
}

/// Checks that the schema is exactly the one that this program knows. Writes nothing.
pub async fn check(db: &DatabaseConnection) -> Result<(), SchemaError> {
    migrations::check::<BillingMigrations>(db).await
}

/// The migrations as SeaORM sees them. `up` and `down` are the functions of this crate; what would take the
/// panel's tables or our record of charges along is refused.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        BillingMigrations::list()
    }

    fn migration_table_name() -> DynIden {
        BillingMigrations::HISTORY_TABLE.into_iden()
    }

    async fn up<'c, C>(db: C, steps: Option<u32>) -> Result<(), DbErr>
    where
        C: IntoSchemaManagerConnection<'c>,
    {
        up(db, steps).await?;
        Ok(())
    }

    async fn down<'c, C>(db: C, steps: Option<u32>) -> Result<(), DbErr>
    where
        C: IntoSchemaManagerConnection<'c>,
    {
        down(db, steps).await?;
        Ok(())
    }

    async fn fresh<'c, C>(_: C) -> Result<(), DbErr>
    where
        C: IntoSchemaManagerConnection<'c>,
    {
        Err(DbErr::Migration(refusal("fresh")))
    }

    async fn refresh<'c, C>(_: C) -> Result<(), DbErr>
    where
        C: IntoSchemaManagerConnection<'c>,
    {
        Err(DbErr::Migration(refusal("refresh")))
    }

    async fn reset<'c, C>(_: C) -> Result<(), DbErr>
    where
        C: IntoSchemaManagerConnection<'c>,
    {
        Err(DbErr::Migration(refusal("reset")))
    }
}

/// Why `fresh`, `refresh` and `reset` are refused, for the one who asked for it.
#[must_use]
pub fn refusal(command: &str) -> String {
    format!(
        "`{command}` is refused, because this database also holds the panel's tables: undo what is ours with `down`"
    )
}
