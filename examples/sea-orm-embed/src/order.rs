//! The application's own table.
#![expect(missing_docs, reason = "a column with an unambiguous name needs no documentation")]

use sea_orm::entity::prelude::*;

/// What a customer has ordered; the mail about it is in the queue.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "orders")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub customer: String,
}

impl ActiveModelBehavior for ActiveModel {}
