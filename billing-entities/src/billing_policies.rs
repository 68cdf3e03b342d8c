//! What operators have set for single organizations.

use sea_orm::entity::prelude::*;

use crate::types::{Id, Instant};

/// How the prepaid policy treats one organization.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "billing_policies")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub organization_id: Id,
    /// `prepaid` (the rules apply), `postpaid` (neither notices nor suspension) or `exempt` (notices, no suspension).
    pub mode: String,
    /// How much the organization may owe before its wallet counts as exhausted.
    pub credit_limit: i64,
    /// The organization is not suspended before this time.
    pub never_suspend_until: Option<Instant>,
    /// The address for mails; that of the owner by default.
    pub contact: Option<String>,
    pub changed_by: String,
    pub reason: String,
    pub changed_at: Instant,
}

impl ActiveModelBehavior for ActiveModel {}
