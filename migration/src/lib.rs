//! The schema under lock: what the panel lacks and what is ours, applied and undone by one migrator at a time.
//!
//! The SQL itself is in `src/sql`, one file for each database. `sea-orm-cli migrate`, the binary of this crate and
//! a program that embeds it all come through [`up`] and [`down`].

mod lock;
mod m20261122_000001_panel_tables;
mod m20261122_000002_billing_tables;
mod m20261122_000003_job_control;

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DynIden};

/// Our own ledger, so that it cannot clash with the panel's `schema_migrations` or with another SeaORM program.
const LEDGER: &str = "billing_migrations";

/// Why the schema does not fit this program.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Nothing of ours was ever applied.
    #[error("the database has no billing schema: run `billing-daemon migrate up`")]
    Missing,
    /// The database was migrated by an earlier version.
    #[error(
        "the billing schema is older than this program (it lacks {pending}): run `billing-daemon migrate up`"
    )]
    Older {
        /// The names that are not applied yet.
        pending: String,
    },
    /// The database was migrated by a later version.
    #[error(
        "the billing schema is newer than this program (which does not know {unknown}): install a newer \
         billing-daemon, or undo these with the version that applied them"
    )]
    Newer {
        /// The applied names that this program does not know.
        unknown: String,
    },
    /// The question could not be asked.
    #[error("cannot read which migrations are applied: {0}")]
    Database(#[from] DbErr),
}

/// Why the schema could not be changed. Nothing was: all of a call is one transaction.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The schema is not one that this program can change.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database refused.
    #[error("cannot change the schema, so nothing was changed: {0}")]
    Database(#[from] DbErr),
}

impl From<MigrationError> for DbErr {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Database(error) | MigrationError::Schema(SchemaError::Database(error)) => error,
            MigrationError::Schema(error) => Self::Migration(error.to_string()),
        }
    }
}

/// Applies the next `steps` migrations, or all of them, and returns their names.
pub async fn up<'c, C>(db: C, steps: Option<u32>) -> Result<Vec<String>, MigrationError>
where
    C: IntoSchemaManagerConnection<'c>,
{
    let transaction = lock::begin(db).await?;
    let ledger = Ledger::read(&transaction).await?;
    ledger.refuse_newer()?;
    let names = first(steps, ledger.pending());
    // SeaORM's loop begins with a statement that only an owner may execute.
    if !names.is_empty() {
        Unlocked::up(&transaction, steps).await?;
    }
    transaction.commit().await?;
    Ok(names)
}

/// Undoes the last `steps` migrations, or all of them, and returns their names. It drops exactly what [`up`] created: the record
/// of every charge, and those of the panel's tables that were missing. Tables that existed before stay.
pub async fn down<'c, C>(db: C, steps: Option<u32>) -> Result<Vec<String>, MigrationError>
where
    C: IntoSchemaManagerConnection<'c>,
{
    let transaction = lock::begin(db).await?;
    let ledger = Ledger::read(&transaction).await?;
    ledger.refuse_newer()?;
    let names = first(steps, ledger.applied.iter().rev());
    Unlocked::down(&transaction, steps).await?;
    if names.len() == ledger.applied.len() {
        Unlocked::uninstall(&transaction).await?;
    }
    transaction.commit().await?;
    Ok(names)
}

/// The name of the newest migration that this program knows.
#[must_use]
pub fn newest() -> String {
    Unlocked::migrations().last().map(|migration| migration.name().to_owned()).unwrap_or_default()
}

/// Each migration, in order, and whether it is applied. Writes nothing.
pub async fn status(db: &DatabaseConnection) -> Result<Vec<(String, bool)>, SchemaError> {
    let ledger = Ledger::look(db).await?;
    let applied = ledger.applied.iter().map(|name| (name.clone(), true));
    Ok(applied.chain(ledger.pending().map(|name| (name.clone(), false))).collect())
}

/// Whether the schema is exactly the one that this program knows. Writes nothing.
pub async fn check(db: &DatabaseConnection) -> Result<(), SchemaError> {
    let ledger = Ledger::look(db).await?;
    if ledger.applied.is_empty() {
        return Err(SchemaError::Missing);
    }
    ledger.refuse_newer()?;
    let pending: Vec<_> = ledger.pending().cloned().collect();
    if pending.is_empty() { Ok(()) } else { Err(SchemaError::Older { pending: pending.join(", ") }) }
}

/// The migrations as SeaORM sees them. `up` and `down` are the functions of this crate; what would take the
/// panel's tables or our record of charges along is refused.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        Unlocked::migrations()
    }

    fn migration_table_name() -> DynIden {
        Unlocked::migration_table_name()
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

/// The same migrations with SeaORM's own loop, which does not lock.
struct Unlocked;

impl MigratorTrait for Unlocked {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_panel_tables::Migration),
            Box::new(m20261122_000002_billing_tables::Migration),
            Box::new(m20261122_000003_job_control::Migration),
        ]
    }

    fn migration_table_name() -> DynIden {
        LEDGER.into_iden()
    }
}

/// What is applied, beside what this program knows; both in order.
struct Ledger {
    applied: Vec<String>,
    known: Vec<String>,
}

impl Ledger {
    /// Reads in a transaction of its own.
    async fn look(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let transaction = lock::begin_read(db).await?;
        let ledger = Self::read(&transaction).await?;
        transaction.rollback().await?;
        Ok(ledger)
    }

    /// SeaORM's own readers create the table first, or call a newer schema an error of the file system.
    async fn read<'c>(db: impl IntoSchemaManagerConnection<'c>) -> Result<Self, DbErr> {
        let manager = SchemaManager::new(db);
        let mut applied = Vec::new();
        if manager.has_table(LEDGER).await? {
            let query = Query::select().column("version").from(LEDGER).order_by("version", Order::Asc).take();
            for row in manager.get_connection().query_all(&query).await? {
                applied.push(row.try_get_by_index(0)?);
            }
        }
        let known = Unlocked::migrations().iter().map(|migration| migration.name().to_owned()).collect();
        Ok(Self { applied, known })
    }

    fn pending(&self) -> impl Iterator<Item = &String> {
        self.known.iter().filter(|name| !self.applied.contains(name))
    }

    fn refuse_newer(&self) -> Result<(), SchemaError> {
        let unknown: Vec<_> =
            self.applied.iter().filter(|name| !self.known.contains(name)).cloned().collect();
        if unknown.is_empty() { Ok(()) } else { Err(SchemaError::Newer { unknown: unknown.join(", ") }) }
    }
}

fn first<'a>(steps: Option<u32>, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.take(steps.map_or(usize::MAX, |steps| steps as usize)).cloned().collect()
}

/// Runs the script of the database at hand.
async fn run(manager: &SchemaManager<'_>, postgres: &str, sqlite: &str) -> Result<(), DbErr> {
    let script = match manager.get_database_backend() {
        DbBackend::Postgres => postgres,
        DbBackend::Sqlite => sqlite,
        _ => return Err(lock::unsupported()),
    };
    manager.get_connection().execute_unprepared(script).await?;
    Ok(())
}
