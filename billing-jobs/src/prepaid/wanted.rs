//! The wanted state of organizations, for a receiver that compares it with its own.

use billing_store::{StatementLimit, begin_read, statement};
use sea_orm::{ConnectionTrait as _, DbErr, QueryResult, Value};
use serde::Serialize;

use super::{
    Desired, Prepaid,
    event::{Instance, InstanceList},
};
use crate::period::Micros;

/// What is wanted of one organization.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wanted {
    /// The id of the organization.
    pub organization: String,
    /// The word for its state.
    pub state: String,
    /// The word for what the newest order wants.
    pub desired: String,
    /// The number of the newest order; none if there was none.
    pub order: Option<i64>,
    /// The number of the last order that every needed endpoint has carried out.
    pub acked_order: Option<i64>,
    /// When the state began; none of an organization that was never low.
    pub since: Option<Micros>,
    /// The instances that the panel has now: all that its newest order concerns.
    #[serde(flatten)]
    pub instances: InstanceList,
}

impl Wanted {
    fn of(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            organization: row.try_get("", "organization")?,
            state: row.try_get("", "state")?,
            desired: row.try_get("", "desired")?,
            order: row.try_get::<Option<i64>>("", "order_number")?.filter(|number| *number > 0),
            acked_order: row.try_get("", "acked_order")?,
            since: row.try_get("", "since")?,
            instances: InstanceList::from(Vec::new()),
        })
    }
}

impl Prepaid {
    /// The wanted states of at most `limit` organizations that have a standing, after `after` in the order of their ids; of those with
    /// the wanted state `desired`, if it is given.
    ///
    /// # Errors
    /// The database cannot be reached, or does not answer within ten seconds. Nothing is written, so a retry is harmless.
    pub async fn wanted(
        &self,
        desired: Option<Desired>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Wanted>, DbErr> {
        let desired = desired.map(Desired::as_str).unwrap_or_default();
        let values: [Value; 3] = [self.id(after), i64::from(limit).into(), desired.into()];
        self.read_wanted(&self.sql.wanted, values.to_vec()).await
    }

    /// The wanted state of one organization; none if it neither exists nor has a standing.
    ///
    /// # Errors
    /// The database cannot be reached, or does not answer within ten seconds. Nothing is written, so a retry is harmless.
    pub async fn wanted_of(&self, organization: &str) -> Result<Option<Wanted>, DbErr> {
        Ok(self.read_wanted(&self.sql.wanted_of, vec![organization.into()]).await?.pop())
    }

    /// The instances of an organization after the one with the id `after`, at most `limit` in the order of their ids; none if the
    /// organization neither exists nor has a standing.
    ///
    /// # Errors
    /// The database cannot be reached, or does not answer within ten seconds. Nothing is written, so a retry is harmless.
    pub async fn instances_of(
        &self,
        organization: &str,
        after: &str,
        limit: usize,
    ) -> Result<Option<Vec<Instance>>, DbErr> {
        let txn = begin_read(&self.db, StatementLimit::Batch).await?;
        let known = txn.query_one_raw(statement(&txn, &self.sql.wanted_of, [organization.into()])).await?;
        let mut found = self.instances_after(&txn, &[organization], after, limit).await?;
        txn.commit().await?;
        Ok(known.map(|_| found.remove(organization).unwrap_or_default()))
    }

    async fn read_wanted(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Wanted>, DbErr> {
        let txn = begin_read(&self.db, StatementLimit::Batch).await?;
        let rows = txn.query_all_raw(statement(&txn, sql, values)).await?;
        let mut found = rows.iter().map(Wanted::of).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<&str> = found.iter().map(|one| one.organization.as_str()).collect();
        let mut instances = self.instances(&txn, &ids).await?;
        txn.commit().await?;
        for one in &mut found {
            if let Some(found) = instances.remove(&one.organization) {
                one.instances = found;
            }
        }
        Ok(found)
    }
}
