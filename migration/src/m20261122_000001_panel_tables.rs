//! The panel's core tables, for a database without a panel: on a live one they are all there.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, include_str!("sql/panel_postgres.sql"), include_str!("sql/panel_sqlite.sql"))
            .await
    }

    /// Nothing: these tables hold the panel's customers and their money, whoever made them.
    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Ok(())
    }
}
