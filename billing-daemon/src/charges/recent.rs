//! The newest charges of an organization, found through the keys of the charge ledger, which does not begin with the organization.

use billing_entities::Instant;
use billing_jobs::money::Money;
use billing_store::{columns, query_fleet, statement};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, QueryResult};
use serde::Serialize;

/// The number of charges, and of the instances that were charged last, whose charges are read.
const SHOWN: u32 = 10;
/// The hours before the end of the last charge of an instance in which its charges are searched.
const HOURS: u32 = 24;
/// The number of batches in which SQLite searches.
const BATCHES: u32 = 1_000;

/// A charge of one instance.
#[derive(Debug, Serialize)]
pub(crate) struct RecentCharge {
    pub(crate) instance: String,
    pub(crate) label: String,
    pub(crate) period_start: DateTime<Utc>,
    pub(crate) period_end: DateTime<Utc>,
    pub(crate) hours: i32,
    pub(crate) amount: String,
    pub(crate) currency: String,
}

/// Reads the newest charges of the present instances of an organization, the newest first.
pub(crate) async fn recent(db: &DatabaseConnection, organization: &str) -> Result<Vec<RecentCharge>, DbErr> {
    let instances = |id: &str| {
        format!(
            "(SELECT i.id, i.label, m.billed_through FROM vps_instances i JOIN billing_meters m ON m.instance_id = i.id
               WHERE i.organization_id = {id} ORDER BY m.billed_through DESC, i.id LIMIT {SHOWN}) AS newest"
        )
    };
    let columns =
        "CAST(newest.id AS text) AS instance, newest.label, c.period_start, c.hours, c.amount, c.currency";
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => format!(
            "SELECT {columns} FROM billing_batches b CROSS JOIN {} CROSS JOIN billing_charges c
                 ON c.batch_id = b.id AND c.instance_id = newest.id
              WHERE b.id > (SELECT max(id) FROM billing_batches) - {BATCHES}
              ORDER BY b.id DESC, c.period_start DESC, newest.id LIMIT {SHOWN}",
            instances("$1")
        ),
        _ => format!(
            "SELECT {columns} FROM {} CROSS JOIN generate_series(1, {HOURS}) AS back JOIN billing_charges c
                 ON c.instance_id = newest.id AND c.period_start = newest.billed_through - back * interval '1 hour'
              ORDER BY c.period_start DESC, newest.id LIMIT {SHOWN}",
            instances("$1::uuid")
        ),
    };
    query_fleet(db, statement(db, &sql, [organization.into()])).await?.iter().map(charge).collect()
}

fn charge(row: &QueryResult) -> Result<RecentCharge, DbErr> {
    let (Instant(period_start), hours): (Instant, i32) =
        (row.try_get("", "period_start")?, row.try_get("", "hours")?);
    Ok(RecentCharge {
        instance: row.try_get("", "instance")?,
        label: columns::lossy(row, "label"),
        period_start,
        period_end: period_start + TimeDelta::hours(i64::from(hours)),
        hours,
        amount: Money(row.try_get("", "amount")?).to_string(),
        currency: row.try_get("", "currency")?,
    })
}
