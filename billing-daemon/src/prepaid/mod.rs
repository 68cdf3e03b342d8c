//! The prepaid policy as operators see it: what is decided of an organization, what applies to it alone, and what was sent. Each change
//! is one transaction with its entry in the audit log.

mod events;
mod policy;
mod views;

use billing_jobs::period::Micros;
use billing_store::{
    SQLITE_NOW,
    audit_log::{self, AuditEvent},
};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use uuid::Uuid;

pub(crate) use events::{DeliveryChange, DeliveryFilter, DeliveryView, change_deliveries, read_deliveries};
pub(crate) use policy::{Policy, PolicyEdit, PolicyError, read_policy, set_policy};
pub(crate) use views::{StandingView, WalletView, level_in_words};

/// Who makes a change, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Author<'a> {
    pub(crate) name: &'a str,
    pub(crate) reason: Option<&'a str>,
    /// The id of the form that was sent, which changes something once.
    pub(crate) request: Option<Uuid>,
}

impl Author<'_> {
    /// Appends the entry for a change in its transaction; returns false if the same form has one already.
    async fn record(self, txn: &billing_store::Transaction, event: AuditEvent) -> Result<bool, DbErr> {
        let event = AuditEvent { reason: self.reason.map(str::to_owned), ..event };
        match self.request {
            Some(request) => audit_log::append_once(txn, &event, request).await,
            None => audit_log::append(txn, &event).await.map(|()| true),
        }
    }
}

pub(crate) fn time(micros: Micros) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// The expression for a column with an instant as microseconds since 1970.
fn micros(db: &impl ConnectionTrait, column: &str) -> String {
    match db.get_database_backend() {
        DbBackend::Sqlite => column.to_owned(),
        _ => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
    }
}

fn now(db: &impl ConnectionTrait) -> &'static str {
    match db.get_database_backend() {
        DbBackend::Sqlite => SQLITE_NOW,
        _ => "now()",
    }
}
