//! What the prepaid policy sends, and how the receivers answered.

use billing_store::{audit_log::AuditEvent, begin_command, columns, query_fleet, statement};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{Author, micros, now, time};

/// A delivery of an event; the fields of the delivery are unset for an event that no endpoint receives.
#[derive(Debug, Serialize)]
pub(crate) struct DeliveryView {
    pub(crate) event: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) organization: Option<String>,
    /// The number of the order that the event gives.
    pub(crate) order: Option<i64>,
    pub(crate) at: DateTime<Utc>,
    pub(crate) endpoint: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) attempts: Option<i32>,
    pub(crate) next_at: Option<DateTime<Utc>>,
    pub(crate) code: Option<i32>,
    pub(crate) error: Option<String>,
    pub(crate) sent_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    pub(crate) body: String,
}

impl DeliveryView {
    /// The last answer of the receiver.
    pub(crate) fn answer(&self) -> String {
        let code = self.code.map(|code| code.to_string());
        let parts = [code, self.error.clone()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Which deliveries are read; an empty text is no condition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeliveryFilter<'a> {
    pub(crate) event: &'a str,
    pub(crate) status: &'a str,
    pub(crate) organization: &'a str,
    /// Only events that order something.
    pub(crate) only_orders: bool,
    /// The event and the endpoint of the last delivery before.
    pub(crate) after: Option<(Uuid, &'a str)>,
    pub(crate) limit: u32,
}

/// Reads deliveries, those of the newest events first.
pub(crate) async fn read_deliveries(
    db: &DatabaseConnection,
    filter: DeliveryFilter<'_>,
) -> Result<Vec<DeliveryView>, DbErr> {
    let uuid = if db.get_database_backend() == DbBackend::Sqlite { "" } else { "::uuid" };
    let DeliveryFilter { event, status, organization, only_orders, after, limit } = filter;
    let (last, endpoint) = after.unwrap_or((Uuid::max(), ""));
    let mut values: Vec<Value> = vec![i64::from(limit).into(), last.to_string().into(), endpoint.into()];
    let mut conditions =
        if only_orders { "e.order_number IS NOT NULL AND ".to_owned() } else { String::new() };
    // The columns are compared as they are, so that their indexes find the rows.
    let filters =
        [("e.id", uuid, event), ("d.status", "", status), ("e.organization_id", uuid, organization)];
    for (column, cast, value) in filters.into_iter().filter(|(.., value)| !value.is_empty()) {
        values.push(value.into());
        conditions.extend([format!("{column} = ${}{cast} AND ", values.len())]);
    }
    let sql = format!(
        "SELECT CAST(e.id AS text) AS event, e.type, CAST(e.organization_id AS text) AS organization, e.order_number, {at} AS at, e.body,
                d.endpoint, d.status, d.attempts, {next_at} AS next_at, d.last_code, d.last_error, {sent_at} AS sent_at
           FROM billing_events e LEFT JOIN billing_deliveries d ON d.event_id = e.id
          WHERE {conditions} e.id <= $2{uuid} AND (e.id < $2{uuid} OR coalesce(d.endpoint, '') > $3)
          ORDER BY e.id DESC, d.endpoint LIMIT $1",
        at = micros(db, "e.created_at"),
        next_at = micros(db, "d.next_at"),
        sent_at = micros(db, "d.sent_at"),
    );
    query_fleet(db, statement(db, &sql, values)).await?.iter().map(view).collect()
}

fn view(row: &QueryResult) -> Result<DeliveryView, DbErr> {
    let at = |column| Ok::<_, DbErr>(row.try_get::<Option<i64>>("", column)?.map(time));
    let status: Option<String> = row.try_get("", "status")?;
    Ok(DeliveryView {
        event: row.try_get("", "event")?,
        kind: columns::lossy(row, "type"),
        organization: row.try_get("", "organization")?,
        order: row.try_get("", "order_number")?,
        at: time(row.try_get("", "at")?),
        endpoint: row.try_get("", "endpoint")?,
        attempts: row.try_get("", "attempts")?,
        // Only a pending delivery has a next attempt.
        next_at: at("next_at")?.filter(|_| status.as_deref() == Some("pending")),
        code: row.try_get("", "last_code")?,
        error: row.try_get("", "last_error")?,
        sent_at: at("sent_at")?,
        body: columns::lossy(row, "body"),
        status,
    })
}

/// What an operator changes about the deliveries of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeliveryChange<'a> {
    /// Send it again to the endpoints that have not accepted it; or to this one, even if it has.
    Redeliver(Option<&'a str>),
    /// Give up what is pending or dead.
    Cancel,
}

/// Changes the deliveries of the event with this id; returns their number, or none if the same form was sent before.
pub(crate) async fn change_deliveries(
    db: &DatabaseConnection,
    event: &str,
    change: DeliveryChange<'_>,
    author: Author<'_>,
) -> Result<Option<u64>, DbErr> {
    let again = format!(
        "status = 'pending', attempts = 0, next_at = {}, claimed_until = NULL, last_code = NULL, sent_at = NULL",
        now(db)
    );
    let mut details = json!({ "event": event });
    let mut values: Vec<Value> = vec![event.into()];
    let (action, set, condition) = match change {
        DeliveryChange::Redeliver(None) => ("redeliver", &*again, "status <> 'sent'"),
        DeliveryChange::Redeliver(Some(endpoint)) => {
            values.push(endpoint.into());
            details["endpoint"] = endpoint.into();
            ("redeliver", &*again, "endpoint = $2")
        }
        DeliveryChange::Cancel => {
            ("cancel delivery", "status = 'cancelled', claimed_until = NULL", "status IN ('pending', 'dead')")
        }
    };
    let uuid = if db.get_database_backend() == DbBackend::Sqlite { "" } else { "::uuid" };
    let sql = format!("UPDATE billing_deliveries SET {set} WHERE event_id = $1{uuid} AND {condition}");
    let txn = begin_command(db).await?;
    let changed = txn.execute_raw(statement(&txn, &sql, values)).await?.rows_affected();
    details["deliveries"] = changed.into();
    if !author.record(&txn, AuditEvent::new(author.name, action, "deliver", details)).await? {
        txn.rollback().await?;
        return Ok(None);
    }
    txn.commit().await?;
    Ok(Some(changed))
}
