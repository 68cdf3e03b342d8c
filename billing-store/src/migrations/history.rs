//! The applied migrations, compared with those of this program.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DynIden};

use super::{Migrations, SchemaError, lock};

/// The migrations of `M` for SeaORM's loop, which acquires no lock.
pub(super) struct UnlockedMigrator<M>(std::marker::PhantomData<fn() -> M>);

impl<M: Migrations> MigratorTrait for UnlockedMigrator<M> {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        M::list()
    }

    fn migration_table_name() -> DynIden {
        M::HISTORY_TABLE.into_iden()
    }
}

/// The names of the applied migrations and of the known ones, both in order.
pub(super) struct MigrationHistory {
    pub(super) applied: Vec<String>,
    known: Vec<String>,
}

impl MigrationHistory {
    /// Reads the history in a separate transaction.
    pub(super) async fn read_alone<M: Migrations>(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let transaction = lock::begin_read(db).await?;
        let history = Self::read::<M>(&transaction).await?;
        transaction.rollback().await?;
        Ok(history)
    }

    /// Reads the history without creating its table, unlike SeaORM's functions.
    pub(super) async fn read<M: Migrations>(db: impl IntoSchemaManagerConnection<'_>) -> Result<Self, DbErr> {
        let manager = SchemaManager::new(db);
        let mut applied = Vec::new();
        if manager.has_table(M::HISTORY_TABLE).await? {
            let query = Query::select()
                .column("version")
                .from(M::HISTORY_TABLE)
                .order_by("version", Order::Asc)
                .take();
            for row in manager.get_connection().query_all(&query).await? {
                applied.push(row.try_get_by_index(0)?);
            }
        }
        let known = M::list().iter().map(|migration| migration.name().to_owned()).collect();
        Ok(Self { applied, known })
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = &String> {
        self.known.iter().filter(|name| !self.applied.contains(name))
    }

    pub(super) fn ensure_not_newer(&self) -> Result<(), SchemaError> {
        let unknown: Vec<_> =
            self.applied.iter().filter(|name| !self.known.contains(name)).cloned().collect();
        if unknown.is_empty() { Ok(()) } else { Err(SchemaError::Newer { unknown: unknown.join(", ") }) }
    }
}
