//! The instances that are billed.

use sea_orm::entity::prelude::*;

use crate::types::Id;

/// One instance. `backup_frequency`, `provider_type`, `provider_id`, `created_by`, `notes` and `os_disk_id` do not exist in every
/// generation of the panel, and only PostgreSQL has the type of `ip_address`: these columns are not read.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "vps_instances")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Id,
    /// The organization that pays.
    pub organization_id: Id,
    /// The `id` of the plan as text, or its `provider_plan_id`.
    pub plan_id: String,
    /// The id of the instance at the provider.
    pub provider_instance_id: String,
    /// The name that the panel shows; not unique.
    pub label: String,
    /// Free text; instances are billed in every status.
    pub status: Option<String>,
    /// The order of the customer.
    pub configuration: Option<Json>,
    /// The time up to which the instance is paid; `None` before the first charge.
    pub last_billed_at: Option<DateTimeUtc>,
    pub created_at: Option<DateTimeUtc>,
    pub updated_at: Option<DateTimeUtc>,
    #[sea_orm(belongs_to, from = "organization_id", to = "id")]
    pub organization: BelongsTo<super::organizations::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
