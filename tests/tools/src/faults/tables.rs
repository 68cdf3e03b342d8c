//! The final tables, read whole: the model needs nothing of the database but this.

use std::collections::BTreeMap;

use chrono::DateTime;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement, TryGetable};
use uuid::Uuid;

use super::fleet::Micros;
use billing_test_support::Db;

/// The content of the database at the end. Money is in ten-thousandths.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By instance, and then in the order of their hours.
    pub(super) charges: Vec<Charge>,
    pub(super) batches: BTreeMap<i64, Batch>,
    pub(super) runs: Vec<Run>,
    /// The hours of each open hold.
    pub(super) holds: BTreeMap<Uuid, i64>,
    /// What the wallet of each organization holds.
    pub(super) wallets: BTreeMap<Uuid, i64>,
    pub(super) ledger: Vec<Entry>,
    pub(super) cycles: Vec<Cycle>,
}

#[derive(Debug)]
pub(super) struct Charge {
    pub(super) instance: Uuid,
    pub(super) organization: Uuid,
    pub(super) start: Micros,
    pub(super) hours: i64,
    pub(super) rate: i64,
    pub(super) amount: i64,
    pub(super) batch: i64,
    pub(super) by_panel: bool,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) run: Uuid,
    pub(super) fencing_token: i64,
    pub(super) as_of: Micros,
    /// When its transaction began, by the real time.
    pub(super) begun: Micros,
    pub(super) instances: i64,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: Uuid,
    pub(super) status: String,
    pub(super) fencing_token: i64,
    pub(super) started: Micros,
    pub(super) finished: Micros,
    pub(super) items: i64,
    pub(super) details: serde_json::Value,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) organization: Uuid,
    pub(super) amount: i64,
    pub(super) description: String,
}

#[derive(Debug)]
pub(super) struct Cycle {
    pub(super) instance: Uuid,
    pub(super) start: Micros,
    pub(super) end: Micros,
    pub(super) amount: i64,
}

impl Tables {
    pub(super) async fn read(db: &Db) -> Result<Self, DbErr> {
        let words = Words { db };
        let charges = format!(
            "SELECT CAST(instance_id AS text) AS instance, CAST(organization_id AS text) AS organization, {} AS start,
                    CAST(hours AS bigint) AS hours, rate, amount, coalesce(CAST(batch_id AS bigint), 0) AS batch, by_panel
               FROM billing_charges ORDER BY instance_id, period_start, batch_id",
            words.ours("period_start")
        );
        let batches = format!(
            "SELECT CAST(id AS bigint) AS id, CAST(run_id AS text) AS run, fencing_token, {} AS as_of, {} AS begun,
                    CAST(instances AS bigint) AS instances
               FROM billing_batches",
            words.ours("as_of"),
            words.ours("created_at")
        );
        let runs = format!(
            "SELECT CAST(id AS text) AS id, status, fencing_token, {} AS started, {} AS finished, items, CAST(details AS text) AS details
               FROM scheduler_runs WHERE job = 'billing' ORDER BY fencing_token, started_at, finished_at",
            words.ours("started_at"),
            words.ours("finished_at")
        );
        let holds =
            "SELECT CAST(instance_id AS text) AS instance, CAST(coalesce(hours_due, 0) AS bigint) AS hours
                       FROM billing_holds WHERE closed_at IS NULL";
        let wallets = format!(
            "SELECT CAST(organization_id AS text) AS organization, {} AS amount FROM wallets",
            words.money("balance")
        );
        let ledger = format!(
            "SELECT CAST(organization_id AS text) AS organization, {} AS units, coalesce(description, '') AS description
               FROM payment_transactions WHERE status = 'completed'",
            words.money("amount")
        );
        let cycles = format!(
            "SELECT CAST(vps_instance_id AS text) AS instance, {} AS starts, {} AS ends, {} AS units
               FROM vps_billing_cycles WHERE status = 'billed' ORDER BY vps_instance_id, billing_period_start",
            words.panels("billing_period_start"),
            words.panels("billing_period_end"),
            words.money("total_amount")
        );
        Ok(Self {
            charges: words
                .read(&charges, |row| {
                    Ok(Charge {
                        instance: id(row, "instance")?,
                        organization: id(row, "organization")?,
                        start: get(row, "start")?,
                        hours: get(row, "hours")?,
                        rate: get(row, "rate")?,
                        amount: get(row, "amount")?,
                        batch: get(row, "batch")?,
                        by_panel: get(row, "by_panel")?,
                    })
                })
                .await?,
            batches: words.read(&batches, batch).await?.into_iter().collect(),
            runs: words.read(&runs, run).await?,
            holds: words
                .read(holds, |row| Ok((id(row, "instance")?, get(row, "hours")?)))
                .await?
                .into_iter()
                .collect(),
            wallets: words
                .read(&wallets, |row| Ok((id(row, "organization")?, get(row, "amount")?)))
                .await?
                .into_iter()
                .collect(),
            ledger: words
                .read(&ledger, |row| {
                    Ok(Entry {
                        organization: id(row, "organization")?,
                        amount: get(row, "units")?,
                        description: get(row, "description")?,
                    })
                })
                .await?,
            cycles: words
                .read(&cycles, |row| {
                    Ok(Cycle {
                        instance: id(row, "instance")?,
                        start: panels(row, "starts")?,
                        end: panels(row, "ends")?,
                        amount: get(row, "units")?,
                    })
                })
                .await?,
        })
    }
}

fn batch(row: &QueryResult) -> Result<(i64, Batch), DbErr> {
    let batch = Batch {
        run: id(row, "run")?,
        fencing_token: get(row, "fencing_token")?,
        as_of: get(row, "as_of")?,
        begun: get(row, "begun")?,
        instances: get(row, "instances")?,
    };
    Ok((get(row, "id")?, batch))
}

fn run(row: &QueryResult) -> Result<Run, DbErr> {
    let details: Option<String> = get(row, "details")?;
    Ok(Run {
        id: id(row, "id")?,
        status: get(row, "status")?,
        fencing_token: get(row, "fencing_token")?,
        started: get(row, "started")?,
        finished: get(row, "finished")?,
        items: get(row, "items")?,
        details: details.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
    })
}

fn get<T: TryGetable>(row: &QueryResult, column: &str) -> Result<T, DbErr> {
    row.try_get("", column)
}

fn id(row: &QueryResult, column: &str) -> Result<Uuid, DbErr> {
    let text: String = get(row, column)?;
    text.parse().map_err(|error| DbErr::Type(format!("`{text}`: {error}")))
}

/// An instant of the panel's tables, which is text.
fn panels(row: &QueryResult, column: &str) -> Result<Micros, DbErr> {
    let text: String = get(row, column)?;
    match text.parse() {
        Ok(micros) => Ok(micros),
        Err(_) => DateTime::parse_from_rfc3339(&text)
            .map(|instant| instant.timestamp_micros())
            .map_err(|error| DbErr::Type(format!("`{text}`: {error}"))),
    }
}

/// What the two databases spell differently.
struct Words<'a> {
    db: &'a Db,
}

impl Words<'_> {
    fn ours(&self, column: &str) -> String {
        match self.db.backend() {
            DbBackend::Sqlite => column.to_owned(),
            _ => format!("CAST(extract(epoch FROM {column}) * 1000000 AS bigint)"),
        }
    }

    /// As text in any case.
    fn panels(&self, column: &str) -> String {
        format!("CAST({} AS text)", self.ours(column))
    }

    fn money(&self, column: &str) -> String {
        match self.db.backend() {
            DbBackend::Sqlite => column.to_owned(),
            _ => format!("CAST({column} * 10000 AS bigint)"),
        }
    }

    async fn read<T>(
        &self,
        sql: &str,
        row: impl Fn(&QueryResult) -> Result<T, DbErr>,
    ) -> Result<Vec<T>, DbErr> {
        let rows = self.db.admin().query_all_raw(Statement::from_string(self.db.backend(), sql)).await?;
        rows.iter().map(row).collect()
    }
}
