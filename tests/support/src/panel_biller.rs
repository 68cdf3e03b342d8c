//! The panel's built-in biller as it ships, faults included: what the panel guard has to hold back without a change to it.
//!
//! It reads once what is due, and then bills instance by instance in two transactions: the first debits the wallet, by reading
//! the balance and writing it back, and books that; the second writes the cycle and moves `last_billed_at`. It calculates with the
//! milliseconds and the binary floating point of its language. It neither reads a heartbeat nor knows our tables.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement,
    TransactionTrait, Value,
};
use uuid::Uuid;

use crate::Panel;

const HOUR_MS: i64 = 3_600_000;
const HOURS_PER_MONTH: f64 = 730.0;
/// The price of an hour of an instance with an unknown plan.
const UNKNOWN_PLAN: f64 = 0.027;

/// One process of the panel.
#[derive(Debug)]
pub struct PanelBiller {
    db: DatabaseConnection,
    generation: Panel,
    /// From reading a balance to writing it back.
    pause: Duration,
}

/// An instance in the list of due instances, which may be old.
#[derive(Clone, Debug)]
pub struct Due {
    /// The id of the instance.
    pub instance: Uuid,
    /// The organization whose wallet pays.
    pub organization: Uuid,
    /// Its name in the debit.
    pub label: String,
    /// The number of whole hours that are due.
    pub hours: i64,
    /// The start of the hours, in milliseconds since 1970.
    pub start_ms: i64,
    /// The price of an hour.
    pub rate: f64,
}

/// The panel's first transaction, with the balance that it has read.
#[derive(Debug)]
pub struct Read {
    txn: DatabaseTransaction,
    balance: f64,
}

/// The point at which the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process survives both transactions.
    Never,
    /// Before the debit is committed.
    BeforeDebit,
    /// After the debit is committed, and before the cycle is.
    AfterDebit,
}

/// The result for one instance.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Debited, with a cycle.
    Billed,
    /// A failed cycle, and why.
    Failed(String),
    /// The process died.
    Crashed,
}

/// The result of one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pass {
    /// Instances with a cycle that is billed.
    pub billed: usize,
    /// What failed, in the order of the list.
    pub failed: Vec<String>,
}

impl Due {
    #[expect(clippy::cast_precision_loss, reason = "the language of the panel has no other numbers")]
    fn amount(&self) -> f64 {
        self.rate * self.hours as f64
    }
}

impl Read {
    /// The end of the first transaction: writes balance and debit, and commits.
    pub async fn finish(self, due: &Due) -> Result<Uuid, String> {
        let (txn, debit) = self.write(due, due.amount()).await?;
        txn.commit().await.map_err(failed)?;
        Ok(debit)
    }

    async fn write(self, due: &Due, amount: f64) -> Result<(DatabaseTransaction, Uuid), String> {
        let Self { txn, balance: before } = self;
        // Anything compared with NaN is false.
        if before < amount {
            return Err("insufficient_balance".to_owned());
        }
        let after = before - amount;
        let update =
            "UPDATE wallets SET balance = $1::text::numeric, updated_at = now() WHERE organization_id = $2";
        let values = [after.to_string().into(), due.organization.into()];
        txn.execute_raw(of(update, values)).await.map_err(failed)?;
        let insert = "INSERT INTO payment_transactions
                 (organization_id, amount, currency, payment_method, payment_provider, status, description, metadata)
             VALUES ($1, -($2::text::numeric), 'USD', 'wallet_debit', 'internal', 'completed', $3, $4::text::jsonb)
             RETURNING id";
        let number = |number: f64| if number.is_nan() { "null".to_owned() } else { number.to_string() };
        let metadata =
            format!(r#"{{"balance_before":{},"balance_after":{}}}"#, number(before), number(after));
        let values = [
            due.organization.into(),
            amount.to_string().into(),
            format!("VPS Hourly Billing - {} ({}h)", due.label, due.hours).into(),
            metadata.into(),
        ];
        let row = txn.query_one_raw(of(insert, values)).await.map_err(failed)?;
        Ok((txn, get(&row.expect("an INSERT answers with its row"), "id")))
    }
}

impl PanelBiller {
    /// The biller of this generation, on the panel's own connection.
    #[must_use]
    pub fn new(db: DatabaseConnection, generation: Panel) -> Self {
        Self { db, generation, pause: Duration::ZERO }
    }

    /// The same, but it takes this long from reading a balance to writing it back.
    #[must_use]
    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// One hourly pass over everything that is due.
    pub async fn pass(&self) -> Pass {
        let mut pass = Pass::default();
        for due in self.due().await {
            match self.bill(&due, Crash::Never).await {
                Outcome::Billed => pass.billed += 1,
                Outcome::Failed(reason) => pass.failed.push(reason),
                Outcome::Crashed => unreachable!("no crash was requested"),
            }
        }
        pass
    }

    /// What is due now.
    pub async fn due(&self) -> Vec<Due> {
        let backups = if self.generation == Panel::G1 {
            "NULL::float8"
        } else {
            "CASE i.backup_frequency WHEN 'none' THEN 0 WHEN 'daily' THEN $1 ELSE 1 END
                 * (coalesce(p.backup_price_hourly, 0) + coalesce(p.backup_upcharge_hourly, 0))::float8"
        };
        let daily = if self.generation == Panel::G2 { 1.5 } else { 1.0 };
        let sql = format!(
            "SELECT i.id, i.organization_id, i.label,
                    floor(extract(epoch FROM coalesce(i.last_billed_at, i.created_at)) * 1000)::bigint AS start_ms,
                    floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms, p.id IS NOT NULL AS known,
                    p.base_price::float8 AS base, p.markup_price::float8 AS markup, {backups} AS backups,
                    $1::float8 AS daily
               FROM vps_instances i LEFT JOIN vps_plans p ON i.plan_id IN (p.id::text, p.provider_plan_id)
              WHERE coalesce(i.last_billed_at, i.created_at) <= now() - interval '1 hour'
              ORDER BY i.created_at, i.id"
        );
        let rows =
            self.db.query_all_raw(of(&sql, [daily.into()])).await.expect("the panel reads what is due");
        let due = rows.iter().map(|row| {
            let start_ms = get(row, "start_ms");
            // A price that is NULL makes NaN of the sum, and of the wallet.
            let price = |column| get::<Option<f64>>(row, column).unwrap_or(f64::NAN);
            let rate = if get(row, "known") {
                (price("base") + price("markup")) / HOURS_PER_MONTH
                    + get::<Option<f64>>(row, "backups").unwrap_or(0.0)
            } else {
                UNKNOWN_PLAN
            };
            Due {
                instance: get(row, "id"),
                organization: get(row, "organization_id"),
                label: get(row, "label"),
                hours: (get::<i64>(row, "now_ms") - start_ms) / HOUR_MS,
                start_ms,
                rate,
            }
        });
        due.filter(|due| due.hours >= 1).collect()
    }

    /// Bills one instance of the list in two transactions.
    pub async fn bill(&self, due: &Due, crash: Crash) -> Outcome {
        let amount = due.amount();
        match self.debit(due, amount, crash).await {
            Ok(None) => Outcome::Crashed,
            Ok(Some(_)) if crash == Crash::AfterDebit => Outcome::Crashed,
            Ok(Some(transaction)) => {
                self.write_cycle(due, amount, transaction).await.expect("the panel writes its cycle");
                Outcome::Billed
            }
            Err(reason) => {
                self.write_failure(due, amount, &reason).await.expect("the panel writes that it failed");
                Outcome::Failed(reason)
            }
        }
    }

    /// The first transaction alone: the id of the debit, or why it failed.
    pub async fn first_transaction(&self, due: &Due) -> Result<Uuid, String> {
        let debited = self.debit(due, due.amount(), Crash::Never).await?;
        Ok(debited.expect("no crash was requested"))
    }

    /// The second transaction alone.
    pub async fn second_transaction(&self, due: &Due, debit: Uuid) {
        self.write_cycle(due, due.amount(), debit).await.expect("the panel writes its cycle");
    }

    /// None if the process died in it.
    async fn debit(&self, due: &Due, amount: f64, crash: Crash) -> Result<Option<Uuid>, String> {
        let read = self.read_balance(due).await?;
        tokio::time::sleep(self.pause).await;
        let (txn, debit) = read.write(due, amount).await?;
        if crash == Crash::BeforeDebit {
            return Ok(None);
        }
        txn.commit().await.map_err(failed)?;
        Ok(Some(debit))
    }

    /// The beginning of the first transaction: the balance is read, and nothing is locked.
    pub async fn read_balance(&self, due: &Due) -> Result<Read, String> {
        let txn = self.begin().await.map_err(failed)?;
        let wallet = "SELECT balance::float8 AS balance FROM wallets WHERE organization_id = $1";
        let wallet = txn.query_one_raw(of(wallet, [due.organization.into()])).await.map_err(failed)?;
        let balance = get(&wallet.ok_or("no wallet")?, "balance");
        Ok(Read { txn, balance })
    }

    async fn write_cycle(&self, due: &Due, amount: f64, transaction: Uuid) -> Result<(), DbErr> {
        let txn = self.begin().await?;
        self.insert_cycle(&txn, due, amount, "billed", Some(transaction), "{}").await?;
        let update = "UPDATE vps_instances SET last_billed_at = timestamptz 'epoch' + $1 * interval '1 ms' WHERE id = $2";
        let values = [(due.start_ms + due.hours * HOUR_MS).into(), due.instance.into()];
        txn.execute_raw(of(update, values)).await?;
        txn.commit().await
    }

    async fn write_failure(&self, due: &Due, amount: f64, reason: &str) -> Result<(), DbErr> {
        let txn = self.begin().await?;
        let metadata = serde_json::json!({ "reason": reason }).to_string();
        self.insert_cycle(&txn, due, amount, "failed", None, &metadata).await?;
        txn.commit().await
    }

    async fn insert_cycle(
        &self,
        txn: &DatabaseTransaction,
        due: &Due,
        amount: f64,
        status: &str,
        transaction: Option<Uuid>,
        metadata: &str,
    ) -> Result<(), DbErr> {
        let sql = "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,
                           billing_period_end, hourly_rate, total_amount, status, payment_transaction_id, metadata)
             VALUES ($1, $2, timestamptz 'epoch' + $3 * interval '1 ms', timestamptz 'epoch' + $4 * interval '1 ms',
                     $5::text::numeric, $6::text::numeric, $7, $8, $9::text::jsonb)";
        let values: [Value; 9] = [
            due.instance.into(),
            due.organization.into(),
            due.start_ms.into(),
            (due.start_ms + due.hours * HOUR_MS).into(),
            due.rate.to_string().into(),
            amount.to_string().into(),
            status.into(),
            transaction.into(),
            metadata.into(),
        ];
        txn.execute_raw(of(sql, values)).await?;
        Ok(())
    }

    async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        let txn = self.db.begin().await?;
        if self.generation == Panel::G3 {
            txn.execute_unprepared("SET LOCAL app.current_user_is_admin = 'true'").await?;
        }
        Ok(txn)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is mapped over results")]
fn failed(error: DbErr) -> String {
    error.to_string()
}

fn of<const N: usize>(sql: &str, values: [Value; N]) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

fn get<T: sea_orm::TryGetable>(row: &QueryResult, column: &str) -> T {
    row.try_get("", column).unwrap_or_else(|error| panic!("reading `{column}`: {error}"))
}
