//! What operators decide about a hold, each in one transaction with its entry in the audit log.

use billing_jobs::{BILLING_JOB, money::Money};
use billing_store::Transaction;
use billing_store::{
    SQLITE_NOW,
    audit_log::{self, AuditEvent},
    begin,
};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, Value};
use serde_json::json;
use uuid::Uuid;

use crate::exit::{Exit, Failure};

/// An acceptance of holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acceptance<'a> {
    /// The name of the operator.
    pub(crate) by: &'a str,
    /// The operator's reason.
    pub(crate) note: &'a str,
    /// When it ends; never if unset.
    pub(crate) until: Option<DateTime<Utc>>,
}

/// An open hold.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    id: i64,
    /// The instance's id.
    pub(crate) instance: String,
    /// The label that the panel shows for the instance.
    pub(crate) label: String,
    /// The reason of the hold.
    pub(crate) reason: String,
    hours: Option<i64>,
    amount: Option<i64>,
    deleted: bool,
}

/// Accepts the holds of these instances: status lists them, and reports no problem. That ends with `until`, with another reason,
/// and with the hold.
///
/// # Errors
/// An instance is not held. Nothing was changed.
pub(crate) async fn accept(
    db: &DatabaseConnection,
    instances: &[String],
    acceptance: Acceptance<'_>,
) -> Result<Vec<Hold>, Failure> {
    let failed = |error| Failure::database("accept the hold", &error);
    let txn = begin(db).await.map_err(failed)?;
    let mut holds = Vec::new();
    for instance in instances {
        let hold = find(&txn, instance).await?;
        accept_one(&txn, &hold, acceptance).await.map_err(failed)?;
        holds.push(hold);
    }
    txn.commit().await.map_err(failed)?;
    Ok(holds)
}

async fn accept_one(
    txn: &Transaction,
    hold: &Hold,
    Acceptance { by, note, until }: Acceptance<'_>,
) -> Result<(), DbErr> {
    let instant = match txn.get_database_backend() {
        DbBackend::Sqlite => "$3",
        _ => "timestamptz 'epoch' + $3::float8 * interval '1 microsecond'",
    };
    let sql = format!(
        "UPDATE billing_holds SET accepted_for = $2, accepted_until = {instant}, accepted_by = $4, accepted_note = $5
          WHERE id = $1 AND closed_at IS NULL AND reason = $2"
    );
    let until_micros = until.map(|until| until.timestamp_micros());
    let values: [Value; 5] =
        [hold.id.into(), hold.reason.as_str().into(), until_micros.into(), by.into(), note.into()];
    changed_one(txn, &sql, values).await?;
    let details = json!({ "until": until });
    audit_log::append(txn, &hold.entry("accept a hold", by, note, details)).await
}

/// Closes the holds of these instances, which the panel deleted: what they owe is not charged any more.
///
/// # Errors
/// An instance is not held, or the panel has it. Nothing was changed.
pub(crate) async fn write_off(
    db: &DatabaseConnection,
    instances: &[String],
    by: &str,
    note: &str,
) -> Result<Vec<Hold>, Failure> {
    let failed = |error| Failure::database("write off the hold", &error);
    let txn = begin(db).await.map_err(failed)?;
    exclude_billing(&txn).await.map_err(failed)?;
    let mut holds = Vec::new();
    for instance in instances {
        let hold = find(&txn, instance).await?;
        if !hold.deleted {
            let message = format!(
                "instance {} exists, and its hours stay due: only holds of deleted instances can be written off; \
                 `billing-daemon holds accept` accepts one",
                hold.instance
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        write_off_one(&txn, &hold, by, note).await.map_err(failed)?;
        holds.push(hold);
    }
    txn.commit().await.map_err(failed)?;
    Ok(holds)
}

/// Waits for the batches of a run and lets no other begin until the end of `txn`: a batch that has read a hold as open would open
/// it again. (SQLite has one writer, and refuses a batch whose reading is outdated.)
async fn exclude_billing(txn: &Transaction) -> Result<(), DbErr> {
    if txn.get_database_backend() != DbBackend::Sqlite {
        let sql = "SELECT fencing_token FROM scheduler_fencing WHERE job = $1 FOR NO KEY UPDATE";
        txn.query_one_raw(statement(txn, sql, [BILLING_JOB.into()])).await?;
    }
    Ok(())
}

async fn write_off_one(txn: &Transaction, hold: &Hold, by: &str, note: &str) -> Result<(), DbErr> {
    let now = match txn.get_database_backend() {
        DbBackend::Sqlite => SQLITE_NOW,
        _ => "now()",
    };
    let sql = format!(
        "UPDATE billing_holds SET closed_at = {now}, closed_reason = 'written_off' WHERE id = $1 AND closed_at IS NULL"
    );
    changed_one(txn, &sql, [hold.id.into()]).await?;
    let details = json!({ "hours": hold.hours, "amount": hold.amount() });
    audit_log::append(txn, &hold.entry("write off a hold", by, note, details)).await
}

impl Hold {
    /// The price of its hours as decimal text, if it is known.
    pub(crate) fn amount(&self) -> Option<String> {
        self.amount.map(|amount| Money(amount).to_string())
    }

    fn entry(
        &self,
        action: &'static str,
        by: &str,
        note: &str,
        mut details: serde_json::Value,
    ) -> AuditEvent {
        details["instance"] = json!(self.instance);
        details["reason"] = json!(self.reason);
        AuditEvent {
            by: by.to_owned(),
            action,
            job: BILLING_JOB.to_owned(),
            reason: Some(note.to_owned()),
            details,
        }
    }
}

/// Finds the open hold of the instance with this id, or with this label if no other held instance has it.
async fn find(txn: &Transaction, instance: &str) -> Result<Hold, Failure> {
    let failed = |error| Failure::database("look up the hold", &error);
    let name = instance.parse::<Uuid>().map_or_else(|_| instance.to_owned(), |id| id.to_string());
    let sql =
        "SELECT h.id, CAST(h.instance_id AS text) AS instance, h.label, h.reason, h.hours_due, h.amount_due,
                      NOT EXISTS (SELECT 1 FROM vps_instances i WHERE i.id = h.instance_id) AS deleted
                 FROM billing_holds h
                WHERE h.closed_at IS NULL AND (h.label = $1 OR CAST(h.instance_id AS text) = $1)
                ORDER BY h.id LIMIT 20";
    let rows = txn.query_all_raw(statement(txn, sql, [name.into()])).await.map_err(failed)?;
    let hold = |row: &sea_orm::QueryResult| {
        Ok::<_, DbErr>(Hold {
            id: row.try_get("", "id")?,
            instance: row.try_get("", "instance")?,
            label: row.try_get("", "label")?,
            reason: row.try_get("", "reason")?,
            hours: row.try_get("", "hours_due")?,
            amount: row.try_get("", "amount_due")?,
            deleted: row.try_get("", "deleted")?,
        })
    };
    let mut holds = rows.iter().map(hold).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    match holds.len() {
        0 => {
            let message =
                format!("no held instance is named {instance:?}: `billing-daemon holds list` shows them");
            Err(Failure::new(Exit::Usage, message))
        }
        1 => Ok(holds.remove(0)),
        _ => {
            let ids: Vec<_> = holds.iter().map(|hold| hold.instance.as_str()).collect();
            let message = format!("{instance:?} is ambiguous, use an id: {}", ids.join(", "));
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

/// The hold was read in the same transaction; a run may have changed it since.
async fn changed_one(
    txn: &Transaction,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<(), DbErr> {
    match txn.execute_raw(statement(txn, sql, values)).await?.rows_affected() {
        1 => Ok(()),
        _ => Err(DbErr::RecordNotUpdated),
    }
}

fn statement(txn: &Transaction, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(txn.get_database_backend(), sql, values)
}
