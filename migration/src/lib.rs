#![doc = include_str!("../README.md")]

mod m20261122_000001_panel_tables;
mod m20261122_000003_billing_tables;

use billing_store::migrations::{self, Migrations};
pub use billing_store::migrations::{MigrationError, SchemaError};
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DatabaseConnection, DynIden};

/// All migrations. Their history has a separate table, so that it cannot clash with the panel's `schema_migrations` or with another
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

/// Applies the next `steps` migrations, or all that are pending if `None`, and returns their names.
pub async fn up<'c, C>(db: C, steps: Option<u32>) -> Result<Vec<String>, MigrationError>
where
    C: IntoSchemaManagerConnection<'c>,
{
    migrations::up::<BillingMigrations>(db, steps).await
}

/// Reverts the last `steps` migrations, or all if `None`, and returns their names. It drops exactly the tables that [`up`] created:
/// those of billing with every charge, and the panel's tables that were missing. Tables that existed before stay.
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

/// Returns the name of each migration, in order, and whether it is applied. Writes nothing.
pub async fn status(db: &DatabaseConnection) -> Result<Vec<(String, bool)>, SchemaError> {
    migrations::status::<BillingMigrations>(db).await
}

/// Checks that the schema is exactly the one that this program knows. Writes nothing.
pub async fn check(db: &DatabaseConnection) -> Result<(), SchemaError> {
    migrations::check::<BillingMigrations>(db).await
}

/// The migrations for programs that expect SeaORM's trait. `up` and `down` are the functions of this crate; `fresh`, `refresh` and
/// `reset` fail, because they would drop the panel's tables and the charges.
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

/// Returns the error message of `fresh`, `refresh` and `reset`.
#[must_use]
pub fn refusal(command: &str) -> String {
    format!(
        "cannot run `{command}`: this database also holds the panel's tables; use `down` to remove the tables of billing"
    )
}
