//! Debts that were closed without a charge: what a run, the status and the audit count of them.

use std::fmt;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Value};
use serde::{Deserialize, Serialize};

use crate::{
    currency::{Amounts, Currency},
    money::Money,
    period::Micros,
};
use billing_store::statement;

/// The debts that were closed for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncharged {
    /// `instance_deleted`, `instance_transferred` or `written_off`.
    pub reason: String,
    /// The hours and amounts of these debts.
    pub debt: Debt,
}

/// Hours that were not charged, and their price as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// The number of instances.
    pub instances: u64,
    /// Their hours; an upper bound where an instance was deleted between two runs.
    pub hours: u64,
    /// The sums of the amounts that are known, for each currency.
    pub amounts: Amounts,
    /// Instances whose hours have no known price. They are not in `amounts`.
    pub unpriced: u64,
}

impl Debt {
    /// Adds the hours of one instance.
    pub fn add(&mut self, hours: i64, amount: Option<Money>, currency: Currency) {
        self.instances += 1;
        self.hours += hours.unsigned_abs();
        match amount {
            Some(amount) => self.amounts.add(currency, amount),
            None => self.unpriced += 1,
        }
    }
}

impl fmt::Display for Debt {
    /// The amounts; an unknown amount is not counted as zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instances, amounts, unpriced, .. } = self;
        match *unpriced {
            0 => write!(f, "{amounts}"),
            unpriced if unpriced == *instances => f.write_str("an unknown amount"),
            1 => write!(f, "{amounts} and an unknown amount for 1 instance"),
            unpriced => write!(f, "{amounts} and an unknown amount for {unpriced} instances"),
        }
    }
}

impl std::ops::AddAssign for Debt {
    fn add_assign(&mut self, other: Self) {
        self.instances += other.instances;
        self.hours += other.hours;
        self.unpriced += other.unpriced;
        other.amounts.iter().for_each(|(currency, amount)| self.amounts.add(currency, amount));
    }
}

/// Which closed debts are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// By the run whose hours were due until this instant.
    By(Micros),
    /// Debts that were closed since this instant.
    Since(Micros),
}

/// Returns the debts that were closed without a charge, by reason.
///
/// # Errors
/// The database fails.
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
                CAST(sum(amount_due) AS bigint) AS amount, currency
           FROM billing_holds WHERE closed_reason IS NOT NULL AND closed_at {comparison} {at}
          GROUP BY closed_reason, currency ORDER BY closed_reason, currency"
    );
    let values: [Value; 1] = [at_micros.into()];
    let mut all: Vec<Uncharged> = Vec::new();
    for row in &db.query_all_raw(statement(db, &sql, values)).await? {
        let count = |column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
        let reason: String = row.try_get("", "reason")?;
        if all.last().is_none_or(|last| last.reason != reason) {
            all.push(Uncharged { reason, debt: Debt::default() });
        }
        let Some(Uncharged { debt, .. }) = all.last_mut() else { continue };
        debt.instances += count("instances")?;
        debt.hours += count("hours")?;
        debt.unpriced += count("unpriced")?;
        if let Some(amount) = row.try_get("", "amount")? {
            let currency = Currency::of_column(row.try_get("", "currency")?).unwrap_or(Currency::NONE);
            debt.amounts.add(currency, Money(amount));
        }
    }
    Ok(all)
}
