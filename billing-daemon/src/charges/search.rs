//! Finds the charge of an instance at a time, in a ledger whose key begins with the period.

use billing_entities::billing_charges;
use billing_store::Transaction;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait as _, DbBackend, DbErr, EntityTrait as _, Statement, Value};
use uuid::Uuid;

/// The number of hours before a known end in which a charge is searched by its key.
const HOURS_BY_KEY: i64 = 24;

/// What is known about the newest charge that begins at `until` or before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) instance: Uuid,
    pub(super) until: DateTime<Utc>,
    /// The charges of the instance follow each other in whole hours, mostly up to this time, and none begins then or later.
    pub(super) end: DateTime<Utc>,
    /// The charge is in the batch with this id, or in an older one.
    pub(super) newest_batch: i64,
}

/// The first instant after the charged hours.
pub(super) fn end(charge: &billing_charges::Model) -> DateTime<Utc> {
    charge.period_start.0 + TimeDelta::hours(i64::from(charge.hours))
}

impl Search {
    pub(super) async fn run(&self, txn: &Transaction) -> Result<Option<billing_charges::Model>, DbErr> {
        match self.by_key(txn).await? {
            Some(charge) => Ok(Some(charge)),
            None => self.anywhere(txn).await,
        }
    }

    /// Reads the charge of the hour `until` by its key, as far as charges follow each other up to `end`. The key of PostgreSQL begins with
    /// the start of the period, so a search by instance would read the charges of all instances. Periods do not overlap: no other charge
    /// begins between the start of this one and `until`.
    async fn by_key(&self, txn: &Transaction) -> Result<Option<billing_charges::Model>, DbErr> {
        if txn.get_database_backend() == DbBackend::Sqlite {
            return Ok(None);
        }
        let until = self.until.min(self.end - TimeDelta::microseconds(1));
        // The last start of an hour that is not later than `until`.
        let hours = (self.end - until - TimeDelta::microseconds(1)).num_hours() + 1;
        let start = self.end - TimeDelta::hours(1) * i32::try_from(hours).unwrap_or(i32::MAX);
        let sql = format!(
            "SELECT * FROM billing_charges
              WHERE instance_id = $1::uuid AND batch_id <= $3 AND period_start = ANY (ARRAY(
                    SELECT timestamptz 'epoch' + $2 * interval '1 microsecond' - hours * interval '1 hour'
                      FROM generate_series(0, {}) AS hours))",
            HOURS_BY_KEY - 1
        );
        let charges =
            billing_charges::Entity::find().from_raw_sql(self.query(txn, &sql, start)).all(txn).await?;
        Ok(charges
            .into_iter()
            .max_by_key(|charge| charge.period_start.0)
            .filter(|charge| until < end(charge)))
    }

    /// Reads the newest charge that begins at `until` or before, wherever it is.
    async fn anywhere(&self, txn: &Transaction) -> Result<Option<billing_charges::Model>, DbErr> {
        // No text form of an instant works on both databases.
        let sql = match txn.get_database_backend() {
            // One search by the key for each batch, from the newest on.
            DbBackend::Sqlite => {
                "SELECT c.* FROM billing_batches b
                  CROSS JOIN billing_charges c ON c.batch_id = b.id AND c.instance_id = $1 AND c.period_start <= $2
                  WHERE b.id <= $3 ORDER BY b.id DESC, c.period_start DESC LIMIT 1"
            }
            _ => {
                "SELECT * FROM billing_charges
                  WHERE instance_id = $1::uuid AND period_start <= timestamptz 'epoch' + $2 * interval '1 microsecond'
                    AND batch_id <= $3 ORDER BY period_start DESC LIMIT 1"
            }
        };
        billing_charges::Entity::find().from_raw_sql(self.query(txn, sql, self.until)).one(txn).await
    }

    /// A statement with the instance, a time and the newest batch.
    fn query(&self, txn: &Transaction, sql: &str, at: DateTime<Utc>) -> Statement {
        // The range of PostgreSQL ends before the range of this type.
        let at = at.timestamp_micros().min(8_000_000_000_000_000);
        let values: [Value; 3] = [self.instance.to_string().into(), at.into(), self.newest_batch.into()];
        Statement::from_sql_and_values(txn.get_database_backend(), sql, values)
    }
}
