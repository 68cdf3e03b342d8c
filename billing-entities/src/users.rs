//! The people of the panel: who owns an organization, and who administers.

use sea_orm::entity::prelude::*;

use crate::types::Id;

/// A person who signs in to the panel.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Unique.
    #[sea_orm(unique)]
    pub email: String,
    /// As shown.
    pub name: String,
    /// `admin` or `user`.
    pub role: String,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
