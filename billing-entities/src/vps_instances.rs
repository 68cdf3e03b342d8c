//! The machines that are billed.

use sea_orm::entity::prelude::*;

use crate::types::Id;

/// A machine. `backup_frequency`, `provider_type`, `provider_id`, `created_by`, `notes` and `os_disk_id` are not in every
/// generation of the panel, and `ip_address` is of a type that only PostgreSQL has, so they are not here.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "vps_instances")]
pub struct Model {
    /// Its key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// Who pays for it.
    pub organization_id: Id,
    /// The `id` of its plan as text, or the plan's `provider_plan_id`.
    pub plan_id: String,
    /// Its name at the provider.
    pub provider_instance_id: String,
    /// As shown; not unique.
    pub label: String,
    /// Free text; every status is billed.
    pub status: Option<String>,
    /// How it was ordered.
    pub configuration: Option<Json>,
    /// Up to when it is paid; unset before its first charge.
    pub last_billed_at: Option<DateTimeUtc>,
    /// When the row was made.
    pub created_at: Option<DateTimeUtc>,
    /// When the row last changed.
    pub updated_at: Option<DateTimeUtc>,
    /// Who pays for it.
    #[sea_orm(belongs_to, from = "organization_id", to = "id")]
    pub organization: BelongsTo<super::organizations::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
