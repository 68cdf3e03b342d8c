//! Debts that were closed without a charge: what a run, the status and the audit count of them.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;

use crate::{db::statement, money::Money, period::Micros};

/// The debts that were closed for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncharged {
    /// `instance_deleted`, `instance_transferred` or `written_off`.
    pub reason: String,
    /// The sums.
    pub debt: Debt,
}

/// Hours that were not charged, and their price as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Debt {
    /// The instances.
    pub instances: u64,
    /// Their hours; an upper bound where an instance was deleted between two runs.
    pub hours: u64,
    /// The sum of the amounts that are known.
    #[serde(serialize_with = "as_text")]
    pub amount: Money,
    /// Instances whose hours have no known price. They are not in `amount`.
    pub unpriced: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn as_text<S: serde::Serializer>(amount: &Money, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

impl Debt {
    /// Adds the hours of one instance.
    pub fn add(&mut self, hours: i64, amount: Option<Money>) {
        self.instances += 1;
        self.hours += hours.unsigned_abs();
        match amount {
            Some(amount) => self.amount.0 = self.amount.0.saturating_add(amount.0),
            None => self.unpriced += 1,
        }
    }

    /// The amount if any of it is known.
    #[must_use]
    pub fn known_amount(&self) -> Option<Money> {
        (self.unpriced < self.instances || self.instances == 0).then_some(self.amount)
    }

    /// The amount for people; what is unknown is not counted as nothing.
    #[must_use]
    pub fn amount_in_words(&self) -> String {
        match (self.known_amount(), self.unpriced) {
            (None, _) => "unknown".to_owned(),
            (Some(amount), 0) => amount.to_string(),
            (Some(amount), unpriced) => format!("{amount} and an unknown amount of {unpriced}"),
        }
    }
}

/// Which closed debts are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// By the run whose hours were due until this instant.
    By(Micros),
    /// Since this instant.
    Since(Micros),
}

/// Returns the debts that were closed without a charge, by reason.
///
/// # Errors
/// The database does not answer.
pub async fn uncharged(db: &impl ConnectionTrait, closed: Closed) -> Result<Vec<Uncharged>, DbErr> {
    let at = match db.get_database_backend() {
        DbBackend::Sqlite => "$1",
        _ => "timestamptz 'epoch' + $1::float8 * interval '1 microsecond'",
    };
    let (comparison, at_micros) = match closed {
        Closed::By(at) => ("=", at),
        Closed::Since(at) => (">=", at),
    };
    let sql = format!(
        "SELECT closed_reason AS reason, count(*) AS instances, count(*) - count(amount_due) AS unpriced,
                CAST(coalesce(sum(hours_due), 0) AS bigint) AS hours,
                CAST(coalesce(sum(amount_due), 0) AS bigint) AS amount
           FROM billing_holds WHERE closed_reason IS NOT NULL AND closed_at {comparison} {at}
          GROUP BY closed_reason ORDER BY closed_reason"
    );
    let values: [Value; 1] = [at_micros.into()];
    db.query_all_raw(statement(db, &sql, values)).await?.iter().map(read).collect()
}

fn read(row: &QueryResult) -> Result<Uncharged, DbErr> {
    let count = |column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
    let debt = Debt {
        instances: count("instances")?,
        hours: count("hours")?,
        amount: Money(row.try_get("", "amount")?),
        unpriced: count("unpriced")?,
    };
    Ok(Uncharged { reason: row.try_get("", "reason")?, debt })
}
