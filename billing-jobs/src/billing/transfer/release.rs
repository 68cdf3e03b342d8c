//! From this biller back to the built-in one of the panel: the tables of the panel get what they lack, and the panel need not wait.

use billing_store::Transaction;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use serde_json::json;

use super::{HandoverError, all, begin_alone};
use crate::{
    BILLING_JOB,
    billing::{
        Biller,
        decide::SECOND_TRANSACTION,
        id::Id,
        model::{AnchorRow, RepairRow},
        sql::{micros, rows},
    },
    currency::{Amounts, Currency},
    daemon_status::alive,
    money::Money,
    period::Micros,
    uncharged::Debt,
};
use billing_store::{
    audit_log::{self, AuditEvent},
    statement,
};

/// What a release changed, and what it leaves to the panel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Instances whose `last_billed_at` was moved to where our charges end.
    pub anchors: u64,
    /// Cycles that the panel lacked and has now.
    pub cycles: u64,
    /// Instances that the panel itself has just debited: it writes their cycle and anchor, or a daemon does later.
    pub left_alone: u64,
    /// Instances that are due and were not charged, for the reasons in `billing_holds`. The panel applies its own rules.
    pub held: u64,
    /// The due hours of the held instances.
    pub held_hours: u64,
    /// The price of these hours, as far as it is known.
    pub held_amounts: Amounts,
    /// Held instances whose hours have no known price. They are not in `held_amounts`.
    pub held_unpriced: u64,
    /// Rows of daemons that a panel no longer waits for.
    pub heartbeats: u64,
}

impl Release {
    /// The hours and amounts of the open holds.
    #[must_use]
    pub fn owed(&self) -> Debt {
        let (hours, amounts) = (self.held_hours, self.held_amounts.clone());
        Debt { instances: self.held, hours, amounts, unpriced: self.held_unpriced }
    }
}

impl Biller {
    /// Hands billing back to the panel: it may charge from its next poll on. The audit log records that as the work of `by`.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn release(&self, by: &str) -> Result<Release, HandoverError> {
        let failed = HandoverError::database("hand billing back");
        let as_of = self.now().await.map_err(&failed)?.timestamp_micros();
        let txn = begin_alone(&self.db, &self.sql).await?;
        if let Some(instance) = alive(&txn).await.map_err(&failed)? {
            txn.rollback().await.map_err(&failed)?;
            return Err(HandoverError::Alive { instance });
        }
        let release = self.give_back(&txn, as_of).await.map_err(&failed)?;
        let details = json!({
            "before": { "heartbeats": release.heartbeats },
            "after": { "heartbeats": 0, "anchors": release.anchors, "cycles": release.cycles },
        });
        audit_log::append(&txn, &AuditEvent::new(by, "release", BILLING_JOB, details))
            .await
            .map_err(&failed)?;
        txn.commit().await.map_err(&failed)?;
        Ok(release)
    }

    async fn give_back(&self, txn: &Transaction, as_of: Micros) -> Result<Release, DbErr> {
        let mut release = Release::default();
        let (mut anchors, mut repairs) = (Vec::new(), Vec::new());
        for row in all(txn, &behind_sql(txn.get_database_backend())).await? {
            let instance = Id::from(row.try_get::<String>("", "id")?);
            let anchor: Option<Micros> = row.try_get("", "anchor")?;
            let after: Micros = row.try_get("", "billed_through")?;
            let debited: Option<Micros> = row.try_get("", "panel_debited_at")?;
            if debited.is_some_and(|at| as_of.saturating_sub(at) < SECOND_TRANSACTION) {
                release.left_alone += 1;
                continue;
            }
            if let Some(since) = anchor {
                repairs.push(RepairRow { instance: instance.clone(), since, until: after });
            }
            anchors.push(AnchorRow { instance, before: row.try_get("", "last_billed_at")?, after });
        }
        let on = txn.get_database_backend();
        for statement in self.repair_statements(&repairs) {
            release.cycles += txn.execute_raw(statement).await?.rows_affected();
        }
        for statement in rows::anchors(on, &anchors).statements(&self.sql.update_anchors) {
            release.anchors += txn.execute_raw(statement).await?.rows_affected();
        }
        let holds = "SELECT count(*) AS held, CAST(coalesce(sum(hours_due), 0) AS bigint) AS hours,
                            CAST(coalesce(sum(amount_due), 0) AS bigint) AS amount,
                            count(*) - count(amount_due) AS unpriced, currency
                       FROM billing_holds WHERE closed_at IS NULL GROUP BY currency";
        for row in all(txn, holds).await? {
            release.held += row.try_get::<i64>("", "held")?.unsigned_abs();
            release.held_hours += row.try_get::<i64>("", "hours")?.unsigned_abs();
            release.held_unpriced += row.try_get::<i64>("", "unpriced")?.unsigned_abs();
            let currency = Currency::of_column(row.try_get("", "currency")?).unwrap_or(Currency::NONE);
            release.held_amounts.add(currency, Money(row.try_get("", "amount")?));
        }
        // This write makes rows of dead daemons look alive.
        let heartbeats = "UPDATE billing_daemon_status SET heartbeat_at = NULL, status = 'stopped'
                           WHERE heartbeat_at IS NOT NULL OR status <> 'stopped'";
        release.heartbeats = txn.execute_raw(statement(txn, heartbeats, [])).await?.rows_affected();
        // A suspended process that still has a fencing token can no longer commit.
        let fencing_token = "UPDATE scheduler_fencing
                        SET last_success_at = NULL,
                            fencing_token = fencing_token + CASE WHEN fencing_token = (SELECT s.fencing_token FROM scheduler_jobs s WHERE s.job = $1)
                                                 THEN 1 ELSE 0 END
                      WHERE job = $1";
        txn.execute_raw(statement(txn, fencing_token, [BILLING_JOB.into()])).await?;
        Ok(release)
    }

    /// The cycles that our charges lack.
    fn repair_statements(&self, repairs: &[RepairRow]) -> Vec<Statement> {
        let on = self.panel.backend;
        match &self.sql.repair_all_cycles {
            Some(sql) => {
                let each =
                    |repair: &RepairRow| json!([repair.instance.to_string(), repair.since, repair.until]);
                let list = repairs.iter().map(each).collect::<serde_json::Value>();
                vec![Statement::from_sql_and_values(on, sql, [list.to_string().into()])]
            }
            None => rows::repairs(on, repairs).statements(&self.sql.repair_cycles),
        }
    }
}

/// Selects the instances whose anchor is behind our watermark.
fn behind_sql(backend: DbBackend) -> String {
    let ours = |column: &str| match backend {
        DbBackend::Sqlite => column.to_owned(),
        _ => micros(backend, column),
    };
    let id = if backend == DbBackend::Sqlite { "i.id" } else { "i.id::text" };
    let anchor = micros(backend, "coalesce(i.last_billed_at, i.created_at)");
    let (through, billed) = (ours("m.billed_through"), micros(backend, "i.last_billed_at"));
    let debited = ours("m.panel_debited_at");
    format!(
        "SELECT {id} AS id, {billed} AS last_billed_at, {anchor} AS anchor, {through} AS billed_through,
                {debited} AS panel_debited_at
           FROM billing_meters m JOIN vps_instances i ON i.id = m.instance_id
          WHERE {anchor} IS NULL OR {anchor} < {through}"
    )
}
