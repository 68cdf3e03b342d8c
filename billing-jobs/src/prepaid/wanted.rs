//! The wanted state of organizations, for a receiver that compares it with its own.

use billing_store::{StatementLimit, begin_read, statement};
use sea_orm::{ConnectionTrait as _, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::Value as Json;

use super::{Desired, Prepaid};
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
    /// The instances, at most 1,001, each with `id`, `provider_instance_id` and `label`.
    pub instances: Vec<Json>,
}

impl Wanted {
    fn of(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            organization: row.try_get("", "organization")?,
            state: row.try_get("", "state")?,
            desired: row.try_get("", "desired")?,
            order: row.try_get::<Option<i64>>("", "epoch")?.filter(|epoch| *epoch > 0),
            acked_order: row.try_get("", "acked_epoch")?,
            since: row.try_get("", "since")?,
            instances: Vec::new(),
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

    async fn read_wanted(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Wanted>, DbErr> {
        let txn = begin_read(&self.db, StatementLimit::Batch).await?;
        let rows = txn.query_all_raw(statement(&txn, sql, values)).await?;
        let mut found = rows.iter().map(Wanted::of).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<&str> = found.iter().map(|one| one.organization.as_str()).collect();
        let mut instances = self.instances(&txn, &ids).await?;
        txn.commit().await?;
        for one in &mut found {
            one.instances = instances.remove(&one.organization).unwrap_or_default();
        }
        Ok(found)
    }
}
