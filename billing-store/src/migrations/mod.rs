//! The migrations of the scheduler's tables, and a runner for lists of migrations that lets one migrator work at a time.
//!
//! [`migrate`] is all that an application needs. A program with more tables lists its own migrations together with
//! [`scheduler_tables`] in one [`Migrations`] type.

mod history;
mod lock;
mod m20261122_000002_scheduler_tables;

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};

use crate::error_class::with_help;

use self::history::{MigrationHistory, UnlockedMigrator};

/// A list of migrations, and the table of their history.
pub trait Migrations: 'static {
    /// The table of the applied migrations.
    const HISTORY_TABLE: &'static str;
    /// The help in error messages: how to apply the migrations, such as "run `billing-daemon migrate up`".
    const APPLY: &'static str;

    /// The migrations, in order.
    fn list() -> Vec<Box<dyn MigrationTrait>>;
}

/// Returns the migration that creates the scheduler's tables. Its statements are idempotent.
#[must_use]
pub fn scheduler_tables() -> Box<dyn MigrationTrait> {
    Box::new(m20261122_000002_scheduler_tables::Migration)
}

/// The migrations of the scheduler's tables alone; their history is in `scheduler_migrations`.
pub struct SchedulerMigrations;

impl Migrations for SchedulerMigrations {
    const HISTORY_TABLE: &'static str = "scheduler_migrations";
    const APPLY: &'static str = "call `billing_store::migrate`";

    fn list() -> Vec<Box<dyn MigrationTrait>> {
        vec![scheduler_tables()]
    }
}

/// Why the schema does not fit this program.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// No migration is applied.
    #[error("the schema is missing: {apply}")]
    Missing {
        /// How to apply the migrations.
        apply: &'static str,
    },
    /// An earlier version migrated the database.
    #[error("the schema is older than this program (it lacks {pending}): {apply}")]
    Older {
        /// The names that are not applied yet.
        pending: String,
        /// How to apply the migrations.
        apply: &'static str,
    },
    /// A later version migrated the database.
    #[error(
        "the schema is newer than this program (which does not know {unknown}): install a newer version, or undo these with the \
         version that applied them"
    )]
    Newer {
        /// The applied names that this program does not know.
        unknown: String,
    },
    /// The query failed.
    #[error("cannot read which migrations are applied: {}", with_help(.0))]
    Database(#[from] DbErr),
}

/// Why the schema was not changed. A call is one transaction, so nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The schema is not one that this program can change.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A statement failed.
    #[error("cannot change the schema, so nothing was changed: {}", with_help(.0))]
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

/// Creates the scheduler's tables that are missing.
///
/// # Errors
/// The database rejects a statement, for example because the login may not create tables; or its tables are of a newer version, which
/// this program must not change. No table was created or changed then.
pub async fn migrate(db: &DatabaseConnection) -> Result<(), MigrationError> {
    up::<SchedulerMigrations>(db, None).await.map(drop)
}

/// Applies the next `steps` migrations, or all that are pending if `None`, and returns their names.
pub async fn up<M: Migrations>(
    db: impl IntoSchemaManagerConnection<'_>,
    steps: Option<u32>,
) -> Result<Vec<String>, MigrationError> {
    let transaction = lock::begin(db).await?;
    let history = MigrationHistory::read::<M>(&transaction).await?;
    history.ensure_not_newer()?;
    let names = first(steps, history.pending());
    // SeaORM's loop begins with a statement that only an owner may execute.
    if !names.is_empty() {
        UnlockedMigrator::<M>::up(&transaction, steps).await?;
    }
    transaction.commit().await?;
    Ok(names)
}

/// Reverts the last `steps` migrations, or all if `None`, and returns their names. It drops exactly the tables that [`up`] created.
pub async fn down<M: Migrations>(
    db: impl IntoSchemaManagerConnection<'_>,
    steps: Option<u32>,
) -> Result<Vec<String>, MigrationError> {
    let transaction = lock::begin(db).await?;
    let history = MigrationHistory::read::<M>(&transaction).await?;
    history.ensure_not_newer()?;
    let names = first(steps, history.applied.iter().rev());
    UnlockedMigrator::<M>::down(&transaction, steps).await?;
    if names.len() == history.applied.len() {
        UnlockedMigrator::<M>::uninstall(&transaction).await?;
    }
    transaction.commit().await?;
    Ok(names)
}

/// Returns the name of the newest migration that this program knows.
#[must_use]
pub fn newest<M: Migrations>() -> String {
    M::list().last().map(|migration| migration.name().to_owned()).unwrap_or_default()
}

/// Returns the name of each migration, in order, and whether it is applied. Writes nothing.
pub async fn status<M: Migrations>(db: &DatabaseConnection) -> Result<Vec<(String, bool)>, SchemaError> {
    let history = MigrationHistory::read_alone::<M>(db).await?;
    let applied = history.applied.iter().map(|name| (name.clone(), true));
    Ok(applied.chain(history.pending().map(|name| (name.clone(), false))).collect())
}

/// Checks that the schema is exactly the one that this program knows. Writes nothing.
pub async fn check<M: Migrations>(db: &DatabaseConnection) -> Result<(), SchemaError> {
    let history = MigrationHistory::read_alone::<M>(db).await?;
    if history.applied.is_empty() {
        return Err(SchemaError::Missing { apply: M::APPLY });
    }
    history.ensure_not_newer()?;
    let pending: Vec<_> = history.pending().cloned().collect();
    if pending.is_empty() {
        Ok(())
    } else {
        Err(SchemaError::Older { pending: pending.join(", "), apply: M::APPLY })
    }
}

fn first<'a>(steps: Option<u32>, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.take(steps.map_or(usize::MAX, |steps| steps as usize)).cloned().collect()
}

/// Executes the script for the backend of the connection.
pub async fn run_script(manager: &SchemaManager<'_>, postgres: &str, sqlite: &str) -> Result<(), DbErr> {
    let script = match manager.get_database_backend() {
        DbBackend::Postgres => postgres,
        DbBackend::Sqlite => sqlite,
        _ => return Err(lock::unsupported()),
    };
    manager.get_connection().execute_unprepared(script).await?;
    Ok(())
}
