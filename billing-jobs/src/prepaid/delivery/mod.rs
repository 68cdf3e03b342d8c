//! The delivery of events: at least once under one id, until the receiver accepts it or an operator must know.

mod job;
mod outbox;

use std::{collections::BTreeMap, time::Duration};

use billing_scheduler::{Clock as _, SystemClock};
use futures_util::{StreamExt as _, future::join_all, stream};
use sea_orm::DbErr;

pub use self::job::DeliverJob;
pub(super) use self::job::report;
use self::outbox::Claimed;
use super::{
    Prepaid,
    endpoint::{Endpoint, Status, settle},
    read::Context,
};
use crate::period::Micros;

/// How many deliveries of one endpoint are made at the same time.
const CONCURRENT: usize = 8;
/// How long a claimed delivery belongs to its process.
const CLAIM: Duration = Duration::from_mins(1);
/// How long after a claim an attempt may begin. None takes longer than the rest of the claim.
const BEGINS_WITHIN: Duration = Duration::from_secs(30);

/// The results of the attempts of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// The deliveries that a receiver accepted.
    pub sent: u64,
    /// The attempts that failed and are repeated.
    pub failed: u64,
    /// The deliveries that are not attempted again without an operator.
    pub dead: u64,
}

/// Which deliveries are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The orders to suspend and to resume.
    Orders,
    /// Orders, notices and all other events.
    All,
}

impl Prepaid {
    /// Makes the deliveries that are due, those of each endpoint apart: a slow one delays no other. It ends when none is due, or when
    /// `stop` is true. The present is `as_of` instead of the time of the database, if it is given.
    ///
    /// # Errors
    /// The database fails. What was claimed is attempted again.
    pub async fn deliver(
        &self,
        which: Which,
        as_of: Option<Micros>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Drained, DbErr> {
        let context = self.context(as_of).await?;
        let mut drained = Drained::default();
        if !context.is_due {
            return Ok(drained);
        }
        let each = self.endpoints.iter().map(|endpoint| self.drain_endpoint(&context, endpoint, which, stop));
        for of_one in join_all(each).await {
            let of_one = of_one?;
            drained.sent += of_one.sent;
            drained.failed += of_one.failed;
            drained.dead += of_one.dead;
        }
        Ok(drained)
    }

    async fn drain_endpoint(
        &self,
        context: &Context,
        endpoint: &Endpoint,
        which: Which,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Drained, DbErr> {
        let mut drained = Drained::default();
        while !stop() {
            let claimed = self.claim(context, &endpoint.name, which).await?;
            if claimed.is_empty() {
                break;
            }
            // The events of one organization follow each other.
            let mut of_each: BTreeMap<String, Vec<Claimed>> = BTreeMap::new();
            for one in claimed {
                of_each.entry(one.organization.clone().unwrap_or_default()).or_default().push(one);
            }
            let until = SystemClock.monotonic() + BEGINS_WITHIN;
            let attempts = of_each.into_values().map(async |all| {
                let mut statuses = Vec::new();
                for one in all {
                    if !statuses.is_empty() && (stop() || SystemClock.monotonic() > until) {
                        self.postpone(context, endpoint, &one, Duration::ZERO).await?;
                        continue;
                    }
                    statuses.push(self.attempt(context, endpoint, &one).await?);
                }
                Ok::<_, DbErr>(statuses)
            });
            let mut attempts = stream::iter(attempts).buffer_unordered(CONCURRENT);
            while let Some(statuses) = attempts.next().await {
                for status in statuses?.into_iter().flatten() {
                    match status {
                        Status::Sent => drained.sent += 1,
                        Status::Pending => drained.failed += 1,
                        Status::Dead => drained.dead += 1,
                        Status::Superseded | Status::Cancelled => {}
                    }
                }
            }
        }
        Ok(drained)
    }

    /// Attempts one delivery, and stores the answer. Nothing if it must not be sent, or was decided meanwhile.
    async fn attempt(
        &self,
        context: &Context,
        endpoint: &Endpoint,
        claimed: &Claimed,
    ) -> Result<Option<Status>, DbErr> {
        if !self.may_send(context, endpoint, claimed).await? {
            return Ok(None);
        }
        let recipient = if endpoint.is_mail() { self.recipient(claimed).await? } else { None };
        // Outside of any transaction.
        let answer = endpoint.send(&claimed.event, &claimed.body, recipient).await;
        let (status, delay) = settle(claimed.attempts, &answer, claimed.spread());
        let is_stored = self.settle(context, endpoint, claimed, &answer, (status, delay)).await?;
        Ok(is_stored.then_some(status))
    }
}
