//! One check: the watched organizations and, after a run of billing, all others. What changes is decided again under the lock of the
//! wallet before it is written.

use std::collections::BTreeMap;

use billing_scheduler::FencingToken;
use billing_store::{Transaction, begin, columns, statement};
use sea_orm::{ConnectionTrait as _, DbErr, Value};
use serde_json::{Value as Json, json};

use super::{
    Decision, Desired, Mode, Prepaid,
    assessment::{Assessment, Change},
    event::{Event, Instance, InstanceList, LISTED_INSTANCES, events},
    read::{Context, PAGE, Selection},
};
use crate::{fault_injection::mutated, period::Micros};

/// How many organizations are decided in one transaction. Their wallets are locked meanwhile.
pub(super) const BATCH: usize = 250;

/// Whose check it is.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The name of the job.
    pub job: &'a str,
    /// The number of its claim.
    pub fencing_token: FencingToken,
}

/// What a check did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// The organizations whose facts were compared with their standing.
    pub checked: u64,
    /// The standings that were written.
    pub changed: u64,
    /// The notices that were recorded, without those that a more urgent one replaced.
    pub notices: u64,
    /// The orders to suspend.
    pub suspended: u64,
    /// The orders to resume.
    pub resumed: u64,
    /// Whether a delivery is due.
    pub has_deliveries: bool,
    /// Whether it ended early, because it had to stop.
    pub stopped: bool,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// Another daemon has claimed the job since.
    #[error("another daemon has claimed job `{0}`")]
    Fenced(String),
    /// A statement wrote another number of rows than expected.
    #[error("wrote {found} rows of {table} instead of {expected}")]
    Count {
        /// The name of the table that the statement wrote.
        table: &'static str,
        /// The number of rows in the statement.
        expected: usize,
        /// The number of rows that were written.
        found: u64,
    },
}

impl Prepaid {
    /// Checks once. The present is `as_of` instead of the time of the database, if it is given.
    ///
    /// # Errors
    /// What was committed before an error stays committed; the next check continues from there.
    pub async fn evaluate(
        &self,
        claim: Claim<'_>,
        as_of: Option<Micros>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Evaluation, EvaluationError> {
        let context = self.context(as_of).await?;
        let mut evaluation = Evaluation { has_deliveries: context.is_due, ..Evaluation::default() };
        let mut after = String::new();
        loop {
            let page = self.page(&context, &Selection::Watched(after)).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|found| found < PAGE);
            after = page.last().map(|last| last.organization.clone()).unwrap_or_default();
            evaluation.checked += page.len() as u64;
            let mode = self.effective_mode(&context);
            let changing = page.iter().filter(|one| one.change(&self.rules, mode).is_some());
            let changing: Vec<String> = changing.map(|one| one.organization.clone()).collect();
            self.write(claim, &context, &changing, stop, &mut evaluation).await?;
            if is_last || evaluation.stopped {
                break;
            }
        }
        if !evaluation.stopped && self.is_new_run(&context) {
            self.find_low(claim, &context, stop, &mut evaluation).await?;
        }
        Ok(evaluation)
    }

    /// Whether billing has finished a run since the last check of all organizations.
    fn is_new_run(&self, context: &Context) -> bool {
        let checked = self.checked_run.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *checked != Some(context.last_run.unwrap_or(Micros::MIN))
    }

    async fn find_low(
        &self,
        claim: Claim<'_>,
        context: &Context,
        stop: &(dyn Fn() -> bool + Sync),
        evaluation: &mut Evaluation,
    ) -> Result<(), EvaluationError> {
        let mut after = String::new();
        loop {
            let (found, is_last) = self.low(context.now, &after).await?;
            after = found.last().cloned().unwrap_or_default();
            evaluation.checked += found.len() as u64;
            self.write(claim, context, &found, stop, evaluation).await?;
            if evaluation.stopped {
                return Ok(());
            }
            if is_last {
                break;
            }
        }
        *self.checked_run.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(context.last_run.unwrap_or(Micros::MIN));
        Ok(())
    }

    /// Decides for these organizations under the locks of their wallets, and writes what changes.
    async fn write(
        &self,
        claim: Claim<'_>,
        context: &Context,
        organizations: &[String],
        stop: &(dyn Fn() -> bool + Sync),
        evaluation: &mut Evaluation,
    ) -> Result<(), EvaluationError> {
        // Outside of the transactions, which may hold the only connection.
        let prices = if organizations.is_empty() { return Ok(()) } else { self.prices(context).await? };
        for batch in organizations.chunks(BATCH) {
            if stop() {
                evaluation.stopped = true;
                return Ok(());
            }
            let txn = begin(&self.db).await?;
            self.lock(&txn, claim, batch).await?;
            let found = self.listed(&txn, context, prices, batch).await?;
            #[cfg(feature = "testing")]
            crate::fault_injection::linger().await;
            let mode = self.effective_mode(context);
            let changes: Vec<Changed<'_>> =
                found.iter().filter_map(|one| Some((one, one.change(&self.rules, mode)?))).collect();
            self.store(&txn, context, &changes).await?;
            txn.commit().await?;
            evaluation.add(&changes);
        }
        Ok(())
    }

    /// Writes the standings, the notices, the events and their deliveries.
    async fn store(
        &self,
        txn: &Transaction,
        context: &Context,
        changes: &[Changed<'_>],
    ) -> Result<(), EvaluationError> {
        let decided: Vec<_> = changes.iter().map(|(one, change)| (*one, &change.decision)).collect();
        let events = self.events(txn, self.effective_mode(context), &decided).await?;
        let standings: Vec<Json> = changes.iter().map(|(one, change)| standing_row(one, change)).collect();
        let notices: Vec<Json> =
            changes.iter().flat_map(|(one, change)| notice_rows(one, change, &events)).collect();
        insert(txn, "billing_standings", &self.sql.write_standings, &standings).await?;
        insert(txn, "billing_notices", &self.sql.insert_notices, &notices).await?;
        self.store_events(txn, context.now, &events).await
    }

    /// The events of these decisions, whose orders list the instances.
    pub(super) async fn events(
        &self,
        txn: &Transaction,
        mode: Mode,
        decided: &[(&Assessment, &Decision)],
    ) -> Result<Vec<Event>, DbErr> {
        let ordered = decided.iter().filter(|(_, decision)| decision.order.is_some());
        let ordered: Vec<&str> = ordered.map(|(one, _)| one.organization.as_str()).collect();
        let instances = self.instances(txn, &ordered).await?;
        let none = InstanceList::from(Vec::new());
        let of_one = |(one, decision): &(&Assessment, &Decision)| {
            let instances = instances.get(&one.organization).unwrap_or(&none);
            events(&self.rules, mode, one, decision, instances)
        };
        Ok(decided.iter().flat_map(of_one).collect())
    }

    /// Writes events, each with a delivery for every endpoint that receives it. Older orders of the same organizations are not sent any
    /// more.
    pub(super) async fn store_events(
        &self,
        txn: &Transaction,
        now: Micros,
        events: &[Event],
    ) -> Result<(), EvaluationError> {
        let orders = events.iter().filter(|event| event.order_number.is_some());
        let ordered: Vec<&str> = orders.filter_map(|event| event.organization.as_deref()).collect();
        if !ordered.is_empty() {
            let ordered = Json::from(ordered).to_string();
            txn.execute_raw(statement(txn, &self.sql.supersede, [ordered.into()])).await?;
        }
        let receivers = |event: &Event| {
            let kind = event.kind;
            self.endpoints.iter().filter(move |endpoint| endpoint.receives(kind))
        };
        let rows: Vec<Json> =
            events.iter().map(|event| event_row(event, receivers(event).count(), now)).collect();
        insert(txn, "billing_events", &self.sql.insert_events, &rows).await?;
        let deliveries = events.iter().flat_map(|event| {
            receivers(event).map(|endpoint| {
                json!({
                    "event_id": event.id,
                    "endpoint": endpoint.name,
                    "organization_id": event.organization,
                    "needed": endpoint.needed,
                    "next_at": now,
                })
            })
        });
        let deliveries: Vec<Json> = deliveries.collect();
        insert(txn, "billing_deliveries", &self.sql.insert_deliveries, &deliveries).await
    }

    /// The instances of these organizations, as an order lists them.
    pub(super) async fn instances(
        &self,
        txn: &Transaction,
        organizations: &[&str],
    ) -> Result<BTreeMap<String, InstanceList>, DbErr> {
        if organizations.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = self.instances_after(txn, organizations, "", LISTED_INSTANCES + 1).await?;
        Ok(found.into_iter().map(|(organization, found)| (organization, found.into())).collect())
    }

    /// The instances of these organizations after the one with the id `after`, at most `limit` of each.
    pub(super) async fn instances_after(
        &self,
        txn: &Transaction,
        organizations: &[&str],
        after: &str,
        limit: usize,
    ) -> Result<BTreeMap<String, Vec<Instance>>, DbErr> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values: [Value; 3] = [Json::from(organizations).to_string().into(), limit.into(), self.id(after)];
        let mut instances: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for row in txn.query_all_raw(statement(txn, &self.sql.instances, values)).await? {
            let instance = Instance {
                id: row.try_get("", "id")?,
                provider_instance_id: columns::lossy(&row, "provider_instance_id"),
                label: columns::lossy(&row, "label"),
            };
            instances.entry(row.try_get("", "organization")?).or_default().push(instance);
        }
        Ok(instances)
    }

    /// Begins the work of a transaction: the check of the claim, and the locks of the wallets.
    pub(super) async fn lock(
        &self,
        txn: &Transaction,
        claim: Claim<'_>,
        batch: &[String],
    ) -> Result<(), EvaluationError> {
        let values: [Value; 2] = [claim.job.into(), claim.fencing_token.0.into()];
        if txn.query_one_raw(statement(txn, &self.sql.check_fence, values)).await?.is_none() {
            return Err(EvaluationError::Fenced(claim.job.to_owned()));
        }
        Ok(self.lock_wallets(txn, batch).await?)
    }

    /// Locks the wallets of these organizations in the order of their ids, as billing locks them.
    pub(super) async fn lock_wallets(
        &self,
        txn: &Transaction,
        organizations: &[String],
    ) -> Result<(), DbErr> {
        if let Some(settings) = &self.sql.settings {
            txn.query_one_raw(statement(txn, settings, [])).await?;
        }
        if let Some(lock) = &self.sql.lock_wallets {
            txn.query_all_raw(statement(txn, lock, [Json::from(organizations).to_string().into()])).await?;
        }
        Ok(())
    }
}

/// An organization with what a check writes for it.
type Changed<'a> = (&'a Assessment, Change);

impl Evaluation {
    fn add(&mut self, changes: &[Changed<'_>]) {
        self.changed += changes.len() as u64;
        for (_, change) in changes {
            let decision = &change.decision;
            self.notices += decision.notices.iter().filter(|notice| !notice.passed).count() as u64;
            match decision.order.map(|order| order.desired) {
                Some(Desired::Suspended) => self.suspended += 1,
                Some(Desired::Running) => self.resumed += 1,
                None => {}
            }
            self.has_deliveries |= decision.order.is_some();
        }
    }
}

fn standing_row(assessment: &Assessment, Change { decision, stored }: &Change) -> Json {
    let standing = &decision.standing;
    let account = assessment.account.as_ref().ok();
    json!({
        "organization_id": assessment.organization,
        "state": standing.state.as_str(),
        "since": standing.since,
        "watched": stored.watched,
        "episode": standing.episode,
        "level": standing.level.map(|level| level.0),
        "burn": account.map(|account| account.burn.0),
        "owed": account.map(|account| account.owed.0),
        "runway_hours": stored.runway_hours,
        "exhausted_at": standing.exhausted_at,
        "order_number": standing.order_number,
        "desired": standing.desired.as_str(),
        "evaluated_at": assessment.facts.now,
    })
}

fn event_row(event: &Event, endpoints: usize, now: Micros) -> Json {
    json!({
        "id": event.id,
        "type": event.kind,
        "organization_id": event.organization,
        "order_number": event.order_number,
        "endpoints": endpoints,
        "body": event.body,
        "created_at": now,
    })
}

fn notice_rows<'a>(
    assessment: &'a Assessment,
    change: &'a Change,
    events: &'a [Event],
) -> impl Iterator<Item = Json> + 'a {
    change.decision.notices.iter().map(|notice| {
        let is_of_notice = |event: &&Event| {
            event.organization.as_ref() == Some(&assessment.organization) && event.level == Some(notice.level)
        };
        json!({
            "event_id": events.iter().find(is_of_notice).map(|event| event.id),
            "organization_id": assessment.organization,
            "episode": notice.episode,
            "level": notice.level.0,
            "passed": notice.passed,
            "created_at": assessment.facts.now,
        })
    })
}

pub(super) async fn insert(
    txn: &Transaction,
    table: &'static str,
    sql: &str,
    rows: &[Json],
) -> Result<(), EvaluationError> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows_json = Json::from(rows).to_string();
    let found = txn.execute_raw(statement(txn, sql, [rows_json.into()])).await?.rows_affected();
    let expected = rows.len();
    if found == expected as u64 || mutated("prepaid-no-count-check") {
        Ok(())
    } else {
        Err(EvaluationError::Count { table, expected, found })
    }
}
