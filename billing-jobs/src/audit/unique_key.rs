//! The unique key of the charges, which keeps an hour from being charged twice.

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr};

use super::Violation;
use billing_store::{begin, code, query_one, statement};

fn missing(detail: &str) -> Violation {
    let resolve = "stop billing and restore the primary key (period_start, instance_id) of billing_charges, on SQLite its trigger \
                   billing_charges_once";
    Violation::new("unique_key", detail, resolve)
}

/// Tries to insert a second charge of the same hour, which the key must reject, and rolls it back.
pub(super) async fn unique_key(db: &DatabaseConnection) -> Result<Option<Violation>, DbErr> {
    let txn = begin(db).await?;
    let again = match txn.get_database_backend() {
        // In another batch, and of an instance whose meter shows that it was charged.
        DbBackend::Sqlite => {
            "INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry, currency)
             SELECT c.period_start, c.instance_id, c.organization_id, -1, c.hours, c.rate, c.amount, c.carry, c.currency
               FROM billing_charges c JOIN billing_meters m ON m.instance_id = c.instance_id AND m.billed_through > c.period_start
              LIMIT 1"
        }
        _ => "INSERT INTO billing_charges SELECT * FROM billing_charges LIMIT 1",
    };
    let result = txn.execute_raw(statement(&txn, again, [])).await;
    txn.rollback().await?;
    match result {
        Ok(inserted) if inserted.rows_affected() == 0 => Ok(None),
        Ok(_) => Ok(Some(missing("the same hour of an instance can be charged twice"))),
        // A unique violation on PostgreSQL, a trigger's error on SQLite.
        Err(error) if matches!(code(&error).as_deref(), Some("23505" | "1811")) => Ok(None),
        // A login that only reads cannot try it, so the catalog decides.
        Err(error) if code(&error).as_deref() == Some("42501") => unique_key_by_catalog(db).await,
        Err(error) => Err(error),
    }
}

async fn unique_key_by_catalog(db: &DatabaseConnection) -> Result<Option<Violation>, DbErr> {
    let sql = "SELECT 1 AS found FROM pg_index
                WHERE indrelid = to_regclass('billing_charges') AND indisunique AND indisvalid AND indpred IS NULL
                  AND indkey::text = (SELECT string_agg(attnum::text, ' ' ORDER BY attname DESC) FROM pg_attribute
                                       WHERE attrelid = indrelid AND attname IN ('period_start', 'instance_id'))";
    let found = query_one(db, statement(db, sql, [])).await?;
    Ok(found.is_none().then(|| missing("no unique index on the hour and the instance of a charge")))
}
