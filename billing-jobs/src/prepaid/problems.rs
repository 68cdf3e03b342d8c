//! The problems of `status` as events for operators: one when a kind of problem appears, and one when it clears.

use std::collections::BTreeMap;

use billing_store::{begin, statement};
use sea_orm::{ConnectionTrait as _, DbErr, Value};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::{
    Claim, EvaluationError, Prepaid,
    event::{Event, body},
    event_type::{PROBLEM_APPEARED, PROBLEM_CLEARED},
};

impl Prepaid {
    /// Whether an endpoint receives problems.
    pub(super) fn reports_problems(&self) -> bool {
        let kinds = [PROBLEM_APPEARED, PROBLEM_CLEARED];
        self.endpoints.iter().any(|endpoint| kinds.iter().any(|kind| endpoint.receives(kind)))
    }

    /// Stores an event for each kind of problem that has appeared or cleared since the last call of any daemon.
    ///
    /// # Errors
    /// The database fails, or another daemon has claimed the job.
    pub async fn report_problems(
        &self,
        claim: Claim<'_>,
        problems: &[(&'static str, String)],
    ) -> Result<u64, EvaluationError> {
        let mut present: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, message) in problems {
            present.entry(kind).or_default().push(message);
        }
        let context = self.context(None).await?;
        let txn = begin(&self.db).await?;
        // Only one daemon compares at a time.
        self.lock(&txn, claim, &[]).await?;
        let known: [Value; 2] = [PROBLEM_APPEARED.into(), PROBLEM_CLEARED.into()];
        let mut open: BTreeMap<String, bool> = BTreeMap::new();
        for row in txn.query_all_raw(statement(&txn, &self.sql.problems, known)).await? {
            let body: String = row.try_get("", "body")?;
            let body: Json = serde_json::from_str(&body).map_err(|error| DbErr::Json(error.to_string()))?;
            let kind = body["data"]["kind"].as_str().unwrap_or_default().to_owned();
            open.insert(kind, body["type"] == PROBLEM_APPEARED);
        }
        let event = |kind: &'static str, data: Json| Event {
            id: Uuid::now_v7(),
            kind,
            organization: None,
            order_number: None,
            level: None,
            body: body(kind, context.now, &data),
        };
        let appeared = present.iter().filter(|(kind, _)| open.get(**kind) != Some(&true));
        let appeared = appeared
            .map(|(kind, messages)| event(PROBLEM_APPEARED, json!({ "kind": kind, "messages": messages })));
        let cleared = open.iter().filter(|(kind, is_open)| **is_open && !present.contains_key(kind.as_str()));
        let cleared = cleared.map(|(kind, _)| event(PROBLEM_CLEARED, json!({ "kind": kind })));
        let events: Vec<Event> = appeared.chain(cleared).collect();
        self.store_events(&txn, context.now, &events).await?;
        txn.commit().await?;
        Ok(events.len() as u64)
    }
}
