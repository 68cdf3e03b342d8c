//! The users of the panel.

use sea_orm::entity::prelude::*;

use crate::types::Id;

/// One row per user.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// The unique e-mail address.
    #[sea_orm(unique)]
    pub email: String,
    pub name: String,
    /// `admin` or `user`.
    pub role: String,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {}
