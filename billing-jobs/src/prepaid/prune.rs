//! Removes old events: not those with a delivery that is pending or dead, and not the newest order of an organization.

use billing_store::{SQLITE_NOW, begin, statement};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, Value};
use serde_json::Value as Json;

/// Removes at most `limit` events that are older than `keep_ms`, with their deliveries; returns how many.
pub(crate) async fn prune_events(db: &DatabaseConnection, keep_ms: i64, limit: i64) -> Result<u64, DbErr> {
    let (age, ids) = match db.get_database_backend() {
        DbBackend::Sqlite => (format!("{SQLITE_NOW} - $1 * 1000"), "SELECT value FROM json_each($1)"),
        _ => (
            "now() - $1 * interval '1 millisecond'".to_owned(),
            "SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb)",
        ),
    };
    let old = format!(
        "SELECT CAST(e.id AS text) AS id FROM billing_events e
          WHERE e.created_at < {age}
            AND NOT EXISTS (SELECT 1 FROM billing_deliveries d WHERE d.event_id = e.id AND d.status IN ('pending', 'dead'))
            AND NOT EXISTS (SELECT 1 FROM billing_standings s
                             WHERE s.organization_id = e.organization_id AND s.order_number = e.order_number)
          ORDER BY e.created_at LIMIT $2"
    );
    let txn = begin(db).await?;
    let values: [Value; 2] = [keep_ms.into(), limit.into()];
    let rows = txn.query_all_raw(statement(&txn, &old, values)).await?;
    let found = rows.iter().map(|row| row.try_get("", "id")).collect::<Result<Vec<String>, _>>()?;
    let found = Json::from(found).to_string();
    let deliveries = format!("DELETE FROM billing_deliveries WHERE event_id IN ({ids})");
    txn.execute_raw(statement(&txn, &deliveries, [found.as_str().into()])).await?;
    let events = format!("DELETE FROM billing_events WHERE id IN ({ids})");
    let pruned = txn.execute_raw(statement(&txn, &events, [found.into()])).await?.rows_affected();
    txn.commit().await?;
    Ok(pruned)
}
