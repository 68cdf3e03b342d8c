//! This process's row in the panel's table of daemons: what the panel reads to decide whether it bills itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use billing_scheduler::Clock;
use sea_orm::{ConnectionTrait as _, DbBackend, DbErr, QueryResult, Value};
use serde_json::json;

use crate::{BILLING_JOB, billing::Totals, currency::Amounts};
use billing_store::{DedicatedConnection, Transaction, statement};

/// A daemon that has written nothing for this long counts as dead: two and a half heartbeat intervals.
pub const ALIVE_WITHIN: Duration = Duration::from_secs(150);

/// The key of the metadata that has the minutes between two billings; null if the daemon has no billing job.
const INTERVAL: &str = "billingIntervalMinutes";

/// The key of the metadata that has the measured difference between the database's clock and the host's, in milliseconds.
pub const CLOCK_OFFSET: &str = "clockOffsetMs";

/// How a run of billing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd<'a> {
    /// It billed the whole fleet.
    Done,
    /// It stopped early, and the next run continues from there.
    Interrupted,
    /// It failed, and why.
    Failed(&'a str),
}

/// One process's row of `billing_daemon_status`.
#[derive(Debug)]
pub struct StatusRow {
    connection: DedicatedConnection,
    daemon_id: String,
    hostname: String,
    metadata: Mutex<Metadata>,
    /// The clock whose measured offset the row contains.
    clock: OnceLock<Arc<dyn Clock>>,
    /// When this process wrote the row last.
    written: Mutex<Option<Instant>>,
}

/// What the column `metadata` holds.
#[derive(Debug)]
struct Metadata {
    /// The row's metadata about the process.
    process: serde_json::Value,
    /// The amounts of the last run in each currency, of which the panel's own column has room for one.
    amounts: Option<Amounts>,
}

impl StatusRow {
    /// The row of the daemon `daemon_id`, on this host; `metadata` describes the process.
    #[must_use]
    pub fn new(
        connection: impl Into<DedicatedConnection>,
        daemon_id: impl Into<String>,
        hostname: impl Into<String>,
        metadata: &serde_json::Value,
    ) -> Self {
        let metadata = Mutex::new(Metadata { process: metadata.clone(), amounts: None });
        Self {
            connection: connection.into(),
            daemon_id: daemon_id.into(),
            hostname: hostname.into(),
            metadata,
            clock: OnceLock::new(),
            written: Mutex::default(),
        }
    }

    /// Sets the description of the process, which the next write stores.
    pub fn set_metadata(&self, metadata: &serde_json::Value) {
        self.locked().process = metadata.clone();
    }

    /// Writes the measured offset of `clock` into the row from now on.
    pub fn report_clock(&self, clock: Arc<dyn Clock>) {
        // A process has one scheduler.
        let _ = self.clock.set(clock);
    }

    fn locked(&self) -> MutexGuard<'_, Metadata> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metadata(&self) -> String {
        let metadata = self.locked();
        let mut all = metadata.process.clone();
        let offset = self.clock.get().and_then(|clock| clock.offset());
        if let Some(all) = all.as_object_mut() {
            all.extend(metadata.amounts.as_ref().map(|amounts| ("totalAmounts".to_owned(), json!(amounts))));
            all.extend(offset.map(|offset| (CLOCK_OFFSET.to_owned(), json!(offset.num_milliseconds()))));
        }
        all.to_string()
    }

    /// The id of this daemon, unique to this process.
    #[must_use]
    pub fn daemon_id(&self) -> &str {
        &self.daemon_id
    }

    /// Billing works: the panel leaves it to us.
    pub async fn heartbeat(&self) -> Result<(), DbErr> {
        let now = self.now();
        let values = [self.daemon_id.as_str().into(), self.metadata().into()];
        let changes = format!(
            "status = 'running', heartbeat_at = {now}, metadata = excluded.metadata, error_message = NULL"
        );
        self.write(&self.upsert("'running'", now, "NULL", &changes), values).await
    }

    /// The process runs, whether or not it bills: its row is as fresh as after a heartbeat, and `heartbeat_at`, which the panel reads,
    /// stays as it is. Writes nothing if this process wrote the row less than `interval` ago.
    pub async fn present(&self, interval: Duration) -> Result<(), DbErr> {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_some_and(|written| written.elapsed() < interval) {
            return Ok(());
        }
        let values = [self.daemon_id.as_str().into(), self.metadata().into()];
        let changes = "status = CASE WHEN own.status = 'stopped' THEN 'running' ELSE own.status END, \
                       metadata = excluded.metadata";
        self.write(&self.upsert("'running'", "NULL", "NULL", changes), values).await
    }

    /// Billing fails: the row contains the message, and its last heartbeat ages.
    pub async fn report_failure(&self, message: &str) -> Result<(), DbErr> {
        let values = [self.daemon_id.as_str().into(), self.metadata().into(), message.into()];
        let changes = "status = 'error', error_message = excluded.error_message";
        self.write(&self.upsert("'error'", "NULL", "$3", changes), values).await
    }

    /// Writes the row of this process, with the figures of the newest run of any daemon: the panel shows the row with the newest
    /// heartbeat alone, which may be that of a daemon that has not billed yet. Figures that this process wrote meanwhile stay.
    fn upsert(&self, status: &str, heartbeat: &str, message: &str, changes: &str) -> String {
        const FIGURES: [&str; 5] =
            ["last_run_at", "last_run_success", "instances_billed", "total_amount", "total_hours"];
        let newer = "(own.last_run_at IS NULL OR excluded.last_run_at > own.last_run_at)";
        let keep = |column: &str| {
            format!("{column} = CASE WHEN {newer} THEN excluded.{column} ELSE own.{column} END")
        };
        format!(
            "INSERT INTO billing_daemon_status AS own
                 (daemon_instance_id, status, started_at, heartbeat_at, metadata, error_message, created_at, updated_at, {figures})
             SELECT $1, {status}, {now}, {heartbeat}, {metadata}, {message}, {now}, {now}, run.last_run_at, run.last_run_success,
                    coalesce(run.instances_billed, 0), coalesce(run.total_amount, 0), coalesce(run.total_hours, 0)
               FROM (SELECT 1 AS one) AS here
               LEFT JOIN (SELECT {figures} FROM billing_daemon_status WHERE last_run_at IS NOT NULL
                           ORDER BY last_run_at DESC LIMIT 1) AS run ON true
              WHERE true
             ON CONFLICT (daemon_instance_id) DO UPDATE SET {changes}, updated_at = {now}, {kept}",
            figures = FIGURES.join(", "),
            kept = FIGURES.map(keep).join(", "),
            now = self.now(),
            heartbeat = if heartbeat == "NULL" { self.null_instant() } else { heartbeat },
            metadata = self.json("$2"),
        )
    }

    /// PostgreSQL takes a bare NULL of a SELECT for text.
    fn null_instant(&self) -> &'static str {
        match self.backend() {
            DbBackend::Sqlite => "NULL",
            _ => "NULL::timestamptz",
        }
    }

    /// Billing waits for an approval: the row contains the message, and the panel leaves billing to us all the same.
    pub async fn keep_billing(&self, message: &str) -> Result<(), DbErr> {
        self.report_failure(message).await?;
        let sql = format!(
            "UPDATE billing_daemon_status SET heartbeat_at = {} WHERE daemon_instance_id = $1",
            self.now()
        );
        self.execute(&sql, [self.daemon_id.as_str().into()]).await
    }

    /// Hands billing back: no row of any daemon has a heartbeat, so the panel takes over at its next poll.
    pub async fn release_billing(&self) -> Result<(), DbErr> {
        let sql = format!(
            "UPDATE billing_daemon_status SET heartbeat_at = NULL, updated_at = {} WHERE heartbeat_at IS NOT NULL",
            self.now()
        );
        self.execute(&sql, []).await
    }

    /// A billing run of this process ended: its figures are the ledger's sums for that run. One that was interrupted is neither a
    /// success nor a failure, for the next run finishes it: its `last_run_success` is NULL, which the panel's page does not show as
    /// a success. `total_amount` is in the currency with the most charges; `metadata` has the amounts of all.
    pub async fn report_run(&self, totals: &Totals, end: RunEnd<'_>) -> Result<(), DbErr> {
        self.locked().amounts = Some(totals.amounts());
        let (success, error) = match end {
            RunEnd::Done => (Some(true), None),
            RunEnd::Interrupted => (None, None),
            RunEnd::Failed(error) => (Some(false), Some(error)),
        };
        let (amount, hours) = match self.backend() {
            DbBackend::Sqlite => ("$5", "$6"),
            _ => ("$5 * 0.0001", "$6::numeric"),
        };
        let sql = format!(
            "INSERT INTO billing_daemon_status
                 (daemon_instance_id, status, last_run_at, last_run_success, instances_billed, total_amount, total_hours,
                  error_message, started_at, heartbeat_at, metadata, created_at, updated_at)
             VALUES ($1, CASE WHEN $7 IS NULL THEN 'running' ELSE 'error' END, {now}, $3, {charged}, {amount}, {hours}, $7,
                     {now}, NULL, {metadata}, {now}, {now})
             ON CONFLICT (daemon_instance_id) DO UPDATE
                SET status = excluded.status, last_run_at = excluded.last_run_at,
                    last_run_success = excluded.last_run_success, instances_billed = excluded.instances_billed,
                    total_amount = excluded.total_amount, total_hours = excluded.total_hours,
                    error_message = excluded.error_message, metadata = excluded.metadata, updated_at = {now}",
            now = self.now(),
            metadata = self.json("$2"),
            charged = match self.backend() {
                DbBackend::Sqlite => "$4",
                _ => "$4::bigint::int",
            },
        );
        let values = [
            self.daemon_id.as_str().into(),
            self.metadata().into(),
            success.into(),
            i64::try_from(totals.charged).unwrap_or(i64::MAX).into(),
            totals.currencies.main().map_or(0, |(_, amount)| amount.0).into(),
            i64::try_from(totals.hours).unwrap_or(i64::MAX).into(),
            error.into(),
        ];
        self.write(&sql, values).await
    }

    /// A clean stop: the totals of the last run stay, and the panel no longer waits for this daemon. Dead rows of this host lose
    /// their heartbeat; if this process was configured to bill and no other such daemon is alive, all rows do, and the panel may bill
    /// at once.
    pub async fn stop(&self) -> Result<(), DbErr> {
        let now = self.now();
        let sql = format!(
            "UPDATE billing_daemon_status SET status = 'stopped', heartbeat_at = NULL, updated_at = {now}
              WHERE daemon_instance_id = $1"
        );
        self.execute(&sql, [self.daemon_id.as_str().into()]).await?;
        let silent = self.silent_since("$1");
        let hostname = match self.backend() {
            DbBackend::Sqlite => "metadata ->> '$.hostname'",
            _ => "metadata ->> 'hostname'",
        };
        let sql = format!(
            "UPDATE billing_daemon_status SET status = 'stopped', heartbeat_at = NULL, updated_at = {now}
              WHERE status <> 'stopped' AND {hostname} = $2 AND {silent}"
        );
        let alive_within = alive_within_seconds();
        self.execute(&sql, [alive_within.into(), self.hostname.as_str().into()]).await?;
        if self.locked().process.get(INTERVAL).is_some_and(serde_json::Value::is_null) {
            return Ok(());
        }
        let sql = format!(
            "SELECT count(*) AS others FROM billing_daemon_status
              WHERE status <> 'stopped' AND NOT ({silent}) AND {}",
            may_bill(self.backend())
        );
        let row = self.query_one(&sql, [alive_within.into()]).await?;
        let others: i64 = row.map_or(Ok(0), |row| row.try_get("", "others"))?;
        if others == 0 {
            self.release_billing().await?;
            let sql = "UPDATE scheduler_fencing SET last_success_at = NULL WHERE job = $1";
            self.execute(sql, [BILLING_JOB.into()]).await?;
        }
        Ok(())
    }

    /// Marks rows of daemons that have written nothing for `dead_after` as stopped; returns how many.
    pub async fn mark_dead(&self, dead_after: Duration) -> Result<u64, DbErr> {
        let sql = format!(
            "UPDATE billing_daemon_status SET status = 'stopped', heartbeat_at = NULL, updated_at = {}
              WHERE status <> 'stopped' AND {}",
            self.now(),
            self.silent_since("$1")
        );
        self.affected(&sql, [seconds(dead_after).into()]).await
    }

    /// Deletes rows of daemons that stopped longer than `keep` ago; returns how many.
    pub async fn prune(&self, keep: Duration) -> Result<u64, DbErr> {
        let sql = format!(
            "DELETE FROM billing_daemon_status WHERE status = 'stopped' AND {}",
            self.silent_since("$1")
        );
        self.affected(&sql, [seconds(keep).into()]).await
    }

    fn silent_since(&self, seconds: &str) -> String {
        silent_since(self.backend(), seconds)
    }

    fn now(&self) -> &'static str {
        match self.backend() {
            DbBackend::Sqlite => "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')",
            _ => "now()",
        }
    }

    fn json(&self, parameter: &str) -> String {
        match self.backend() {
            DbBackend::Sqlite => parameter.to_owned(),
            _ => format!("{parameter}::jsonb"),
        }
    }

    /// Executes a statement that writes the row of this process.
    async fn write(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<(), DbErr> {
        self.execute(sql, values).await?;
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    async fn execute(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<(), DbErr> {
        self.affected(sql, values).await.map(drop)
    }

    async fn affected(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<u64, DbErr> {
        self.connection.execute(statement(self.connection.pool(), sql, values)).await
    }

    /// Returns the first row of a statement that only reads a few rows.
    pub(crate) async fn query_one(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<QueryResult>, DbErr> {
        let rows = self.connection.query_all(statement(self.connection.pool(), sql, values)).await?;
        Ok(rows.into_iter().next())
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.connection.pool().get_database_backend()
    }
}

/// The daemon that is configured to bill and wrote its row last, if that was not too long ago to be alive.
pub(crate) async fn alive(txn: &Transaction) -> Result<Option<String>, DbErr> {
    let sql = format!(
        "SELECT daemon_instance_id AS instance FROM billing_daemon_status
          WHERE status <> 'stopped' AND NOT ({}) AND {}
          ORDER BY updated_at DESC LIMIT 1",
        silent_since(txn.get_database_backend(), "$1"),
        may_bill(txn.get_database_backend())
    );
    let row = txn.query_one_raw(statement(txn, &sql, [alive_within_seconds().into()])).await?;
    row.map(|row| row.try_get("", "instance")).transpose()
}

/// A condition: the row's daemon does not report that it has no billing job, by an interval that is null.
fn may_bill(backend: DbBackend) -> String {
    match backend {
        DbBackend::Sqlite => format!(
            "CASE WHEN json_valid(metadata) THEN coalesce(json_type(metadata, '$.{INTERVAL}'), '') <> 'null' ELSE true END"
        ),
        _ => format!("NOT coalesce(metadata @> '{{\"{INTERVAL}\": null}}', false)"),
    }
}

/// A condition: the row was not written for the parameter's number of seconds.
pub(crate) fn silent_since(backend: DbBackend, seconds: &str) -> String {
    match backend {
        DbBackend::Sqlite => {
            format!(
                "coalesce(unixepoch(updated_at), unixepoch(created_at), 0) < unixepoch('now') - {seconds}"
            )
        }
        _ => {
            format!("coalesce(updated_at, created_at, '-infinity') < now() - {seconds} * interval '1 second'")
        }
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn alive_within_seconds() -> i64 {
    seconds(ALIVE_WITHIN)
}
