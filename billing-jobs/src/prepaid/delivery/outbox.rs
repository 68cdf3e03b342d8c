//! The rows of deliveries: which one is attempted next, whether it may still be sent, and how it was answered.

use std::time::Duration;

use billing_store::{begin, columns, execute, query_one, statement};
use sea_orm::{ConnectionTrait as _, DbErr, QueryResult, Value};

use super::{CLAIM, CONCURRENT, Which};
use crate::{
    fault_injection::{mutated, scaled},
    prepaid::{
        Context, Desired, Mode, Prepaid, State,
        endpoint::{Answer, Endpoint, Recipient, Status},
        rules::micros,
    },
};

/// How long a delivery waits that must not be sent at present.
const POSTPONED: Duration = Duration::from_mins(1);

/// A delivery that belongs to this process for a while.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) event: String,
    pub(super) body: String,
    pub(super) organization: Option<String>,
    /// The number of an order.
    order_number: Option<i64>,
    /// The number of this attempt, which identifies the claim.
    pub(super) attempts: u32,
}

impl Claimed {
    fn of(row: &QueryResult) -> Result<Self, DbErr> {
        let attempts: i32 = row.try_get("", "attempts")?;
        Ok(Self {
            event: row.try_get("", "event")?,
            body: row.try_get("", "body")?,
            organization: row.try_get("", "organization")?,
            order_number: row.try_get("", "order_number")?,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        })
    }

    /// A number that differs between events and attempts, and is the same for a repetition.
    pub(super) fn spread(&self) -> u64 {
        let bytes = self.event.bytes().chain(self.attempts.to_le_bytes());
        bytes.fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
    }
}

/// Whether a delivery is sent.
enum Permission {
    Now,
    Later,
    Never(Status, &'static str),
}

impl Prepaid {
    /// Claims the next deliveries of an endpoint that are due.
    pub(super) async fn claim(
        &self,
        context: &Context,
        endpoint: &str,
        which: Which,
    ) -> Result<Vec<Claimed>, DbErr> {
        let values: [Value; 5] = [
            context.as_of.into(),
            endpoint.into(),
            i64::try_from(CONCURRENT).unwrap_or(i64::MAX).into(),
            micros(scaled(CLAIM)).into(),
            (which == Which::Orders).into(),
        ];
        let txn = begin(&self.db).await?;
        let rows = txn.query_all_raw(statement(&txn, &self.sql.claim_deliveries, values)).await?;
        txn.commit().await?;
        let mut claimed = rows.iter().map(Claimed::of).collect::<Result<Vec<_>, _>>()?;
        // Ids are in the order of time.
        claimed.sort_by(|one, other| one.event.cmp(&other.event));
        Ok(claimed)
    }

    /// Whether a claimed delivery may be sent: decided again under the lock of the wallet, because the customer may have paid since. If
    /// not, that is stored.
    pub(super) async fn may_send(
        &self,
        context: &Context,
        endpoint: &Endpoint,
        claimed: &Claimed,
    ) -> Result<bool, DbErr> {
        let permission = match &claimed.organization {
            Some(_) if self.effective_mode(context) == Mode::Watch => Permission::Later,
            Some(organization) => match claimed.order_number {
                Some(_) if mutated("prepaid-no-recheck") => Permission::Now,
                Some(order_number) => self.permission(context, organization, order_number).await?,
                None => Permission::Now,
            },
            None => Permission::Now,
        };
        match permission {
            Permission::Now => return Ok(true),
            Permission::Later => self.postpone(context, endpoint, claimed, POSTPONED).await?,
            Permission::Never(status, reason) => {
                let answer = Answer::none(reason);
                self.settle(context, endpoint, claimed, &answer, (status, Duration::ZERO)).await?;
            }
        }
        Ok(false)
    }

    /// Gives a claim back, which is no attempt.
    pub(super) async fn postpone(
        &self,
        context: &Context,
        endpoint: &Endpoint,
        claimed: &Claimed,
        delay: Duration,
    ) -> Result<(), DbErr> {
        let reason = "waits: the mode of the policy does not permit it, or a fact is unknown";
        let values: [Value; 6] = [
            context.as_of.into(),
            claimed.event.as_str().into(),
            endpoint.name.as_str().into(),
            i64::from(claimed.attempts).into(),
            micros(delay).into(),
            Some(reason).filter(|_| !delay.is_zero()).into(),
        ];
        execute(&self.db, statement(&self.db, &self.sql.postpone_delivery, values)).await?;
        Ok(())
    }

    /// Whether an order may be sent.
    async fn permission(
        &self,
        context: &Context,
        organization: &str,
        order_number: i64,
    ) -> Result<Permission, DbErr> {
        let prices = self.prices(context).await?;
        let txn = begin(&self.db).await?;
        let ids = [organization.to_owned()];
        self.lock_wallets(&txn, &ids).await?;
        let found = self.listed(&txn, context, prices, &ids).await?;
        txn.commit().await?;
        let Some(found) = found.first().filter(|found| found.standing.order_number == order_number) else {
            return Ok(Permission::Never(Status::Superseded, "a newer order replaces it"));
        };
        if found.standing.desired == Desired::Running {
            return Ok(Permission::Now);
        }
        if self.effective_mode(context) != Mode::Enforce || found.facts.runway.is_none() {
            return Ok(Permission::Later);
        }
        let is_paid = found.facts.runway.is_some_and(|runway| runway.covers(self.rules.resume_hours));
        let is_wanted = found.standing.state == State::Suspended;
        if is_paid || !is_wanted || !found.facts.policy.allows_suspension(found.facts.now) {
            return Ok(Permission::Never(Status::Cancelled, "the suspension is not due any more"));
        }
        Ok(Permission::Now)
    }

    /// Stores what came of an attempt; false if the delivery was decided meanwhile, or claimed by another process.
    pub(super) async fn settle(
        &self,
        context: &Context,
        endpoint: &Endpoint,
        claimed: &Claimed,
        answer: &Answer,
        (status, delay): (Status, Duration),
    ) -> Result<bool, DbErr> {
        let txn = begin(&self.db).await?;
        if let (Some(lock), Some(organization)) = (&self.sql.lock_standing, &claimed.organization) {
            // The answers of two endpoints for one event follow each other, so the later one finds the earlier one.
            txn.query_all_raw(statement(&txn, lock, [organization.as_str().into()])).await?;
        }
        let values: [Value; 8] = [
            context.as_of.into(),
            claimed.event.as_str().into(),
            endpoint.name.as_str().into(),
            i64::from(claimed.attempts).into(),
            status.as_str().into(),
            micros(delay).into(),
            answer.code.into(),
            answer.detail.clone().into(),
        ];
        let stored =
            txn.execute_raw(statement(&txn, &self.sql.settle_delivery, values)).await?.rows_affected();
        if let (1, Status::Sent, Some(organization)) = (stored, status, &claimed.organization) {
            let confirm =
                if claimed.order_number.is_some() { &self.sql.acknowledge } else { &self.sql.confirm_notice };
            let values: [Value; 3] =
                [context.as_of.into(), claimed.event.as_str().into(), organization.as_str().into()];
            txn.execute_raw(statement(&txn, confirm, values)).await?;
        }
        txn.commit().await?;
        Ok(stored == 1)
    }

    /// Who gets the mails to an organization: the contact of its policy, or else its owner.
    pub(super) async fn recipient(&self, claimed: &Claimed) -> Result<Option<Recipient>, DbErr> {
        let Some(organization) = &claimed.organization else { return Ok(None) };
        let recipient = statement(&self.db, &self.sql.recipient, [organization.as_str().into()]);
        let Some(row) = query_one(&self.db, recipient).await? else { return Ok(None) };
        if let Some(contact) = row.try_get::<Option<String>>("", "contact")? {
            return Ok(Some(contact.into()));
        }
        let owner = row.try_get::<Option<String>>("", "email")?;
        Ok(owner.map(|address| Recipient { address, name: columns::lossy(&row, "name") }))
    }
}
