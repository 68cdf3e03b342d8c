//! The prepaid policy in the status: the standings, and the deliveries that wait or are given up.

use std::collections::BTreeMap;

use billing_jobs::prepaid::State;
use billing_store::{columns, query_fleet};
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, QueryResult, Statement};
use serde::Serialize;
use utoipa::ToSchema;

use super::Problem;

/// The state of the prepaid policy. Everything is empty or zero if no job of kind `prepaid` ever ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PrepaidStatus {
    /// The number of organizations in each state: `ok`, `low`, `exhausted`, `suspended` and `unknown`.
    pub standings: BTreeMap<&'static str, u64>,
    /// The number of deliveries that are attempted again.
    pub pending_deliveries: u64,
    /// When the event of the oldest of them was made.
    pub oldest_pending_at: Option<DateTime<Utc>>,
    /// The deliveries that are given up, by endpoint.
    pub dead_deliveries: Vec<DeadDeliveries>,
}

/// Deliveries to one endpoint that are not attempted again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeadDeliveries {
    /// The name of the endpoint in jobs.toml.
    pub endpoint: String,
    /// The number of deliveries.
    pub deliveries: u64,
    /// Whether the endpoint answered that it is gone: it gets nothing more.
    pub gone: bool,
}

impl DeadDeliveries {
    pub(super) fn problem(&self) -> Problem {
        let Self { endpoint, deliveries, gone } = self;
        let what = if *gone { "the endpoint answers that it is gone" } else { "every attempt failed" };
        let message = format!(
            "dead deliveries to endpoint `{endpoint}`: {deliveries}, {what}; `billing-daemon events list --status dead` shows them, \
             `events redeliver` sends them again and `events cancel` gives them up"
        );
        Problem::new("delivery_dead", message)
    }
}

pub(super) async fn read(db: &DatabaseConnection) -> Result<PrepaidStatus, DbErr> {
    let backend = db.get_database_backend();
    let rows = async |sql: &str| query_fleet(db, Statement::from_string(backend, sql)).await;
    let number = |row: &QueryResult, column| row.try_get::<i64>("", column).map(i64::unsigned_abs);
    let oldest = match backend {
        DbBackend::Sqlite => "min(e.created_at)",
        _ => "(extract(epoch FROM min(e.created_at)) * 1000000)::bigint",
    };
    let pending = format!(
        "SELECT count(*) AS deliveries, {oldest} AS oldest
           FROM billing_deliveries d JOIN billing_events e ON e.id = d.event_id WHERE d.status = 'pending'"
    );
    let (counted, pending, dead) = tokio::try_join!(
        rows("SELECT state, count(*) AS organizations FROM billing_standings GROUP BY state"),
        rows(&pending),
        rows(
            "SELECT endpoint, count(*) AS deliveries, count(CASE WHEN last_code = 410 THEN 1 END) AS gone
               FROM billing_deliveries WHERE status = 'dead' GROUP BY endpoint ORDER BY endpoint",
        ),
    )?;
    let mut standings: BTreeMap<_, _> = State::ALL.iter().map(|state| (state.as_str(), 0)).collect();
    for row in &counted {
        if let Some(organizations) = standings.get_mut(columns::lossy(row, "state").as_str()) {
            *organizations = number(row, "organizations")?;
        }
    }
    let (pending_deliveries, oldest) = match pending.first() {
        Some(row) => (number(row, "deliveries")?, row.try_get::<Option<i64>>("", "oldest")?),
        None => (0, None),
    };
    let view = |row: &QueryResult| {
        Ok(DeadDeliveries {
            endpoint: columns::lossy(row, "endpoint"),
            deliveries: number(row, "deliveries")?,
            gone: number(row, "gone")? > 0,
        })
    };
    Ok(PrepaidStatus {
        standings,
        pending_deliveries,
        oldest_pending_at: oldest.and_then(DateTime::from_timestamp_micros),
        dead_deliveries: dead.iter().map(view).collect::<Result<_, DbErr>>()?,
    })
}
