//! Sends the wanted state of every organization again, after a restore: a receiver may know orders that the database lost.

use billing_store::{
    audit_log::{self, AuditEvent},
    begin, query_all, statement,
};
use sea_orm::Value;
use serde_json::{Value as Json, json};

use super::{
    Mode, PREPAID_KIND, Prepaid,
    evaluate::{BATCH, EvaluationError, insert},
    read::{Context, RECONCILED},
};
use crate::period::Micros;

impl Prepaid {
    /// Orders the wanted state of every organization that has a standing, under a new number, and ends the time in which a restored
    /// database is only watched. Returns the number of orders, which are none unless the policy is enforced. The present is `as_of`
    /// instead of the time of the database, if it is given.
    ///
    /// # Errors
    /// Orders that were committed before an error stay, and are replaced when this is repeated.
    pub async fn reconcile(&self, by: &str, as_of: Option<Micros>) -> Result<u64, EvaluationError> {
        let context = self.context(as_of).await?;
        let sent = if self.mode == Mode::Enforce { self.order_all(&context).await? } else { 0 };
        let txn = begin(&self.db).await?;
        let event = AuditEvent::new(by, RECONCILED, PREPAID_KIND, json!({ "sent": sent }));
        audit_log::append(&txn, &event).await?;
        txn.commit().await?;
        Ok(sent)
    }

    async fn order_all(&self, context: &Context) -> Result<u64, EvaluationError> {
        let (mut sent, mut after) = (0, String::new());
        loop {
            let batch = i64::try_from(BATCH).unwrap_or(i64::MAX);
            let values: [Value; 2] = [self.id(&after), batch.into()];
            let rows = query_all(&self.db, statement(&self.db, &self.sql.standings, values)).await?;
            let ids = rows.iter().map(|row| row.try_get("", "organization"));
            let ids = ids.collect::<Result<Vec<String>, _>>()?;
            let Some(last) = ids.last() else { return Ok(sent) };
            after.clone_from(last);
            sent += self.order_again(context, &ids).await?;
        }
    }

    async fn order_again(&self, context: &Context, ids: &[String]) -> Result<u64, EvaluationError> {
        let prices = self.prices(context).await?;
        let txn = begin(&self.db).await?;
        self.lock_wallets(&txn, ids).await?;
        let found = self.listed(&txn, context, prices, ids).await?;
        let again: Vec<_> = found.iter().map(|one| (one, one.order_again())).collect();
        let decided: Vec<_> = again.iter().map(|(one, decision)| (*one, decision)).collect();
        let mut orders = self.events(&txn, self.mode, &decided).await?;
        orders.retain(|event| event.order_number.is_some());
        let numbers = again.iter().map(
            |(one, decision)| json!({ "organization_id": one.organization, "order_number": decision.standing.order_number }),
        );
        let numbers: Vec<Json> = numbers.collect();
        insert(&txn, "billing_standings", &self.sql.renumber, &numbers).await?;
        self.store_events(&txn, context.now, &orders).await?;
        txn.commit().await?;
        Ok(orders.len() as u64)
    }
}
