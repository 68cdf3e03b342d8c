//! The brake on a spike: a run that would charge far more for an hour than the runs before it charges nothing until a person has
//! looked. Before the first batch one statement bounds what the run can come to; only if that is too much is every batch decided,
//! without a lock or a write, to know exactly.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Instant,
};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::debug;

use super::{
    BillingError, Totals,
    decide::Posting,
    pass::{Pass, Read},
    postgres, read,
};
use crate::{
    BILLING_JOB,
    db::{SQLITE_NOW, begin_read, query_all, query_one, statement},
    money::{Carry, Money, Rate, cost},
    panel::Panel,
    period::Micros,
    record::{self, Entry},
};

/// How many of the runs before are compared with.
const RECENT: i64 = 24;
/// Among how many rows of the history they are looked for.
const LOOKED_AT: i64 = 10_000;
/// How many instances are decided at a time where it must be known exactly.
const PAGE: u32 = 5_000;
/// For how many hours an approval holds.
pub const APPROVED_FOR_HOURS: i64 = 24;
/// By how many tenths an approved run may exceed what was announced for each hour: more hours are due by then, of other machines.
const APPROVED_TENTHS: i64 = 11;

/// Money for hours: what a run comes to, as far as the brake looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// How much, in ten-thousandths.
    pub amount: Money,
    /// For how many hours of machines.
    pub hours: i64,
}

/// A run that waits for an approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Its row on record.
    pub id: i64,
    /// What it would charge.
    pub sum: Sum,
}

/// A run that would charge far more than usual, and the most that it may charge without an approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spike {
    /// What is due at the prices that are known or, where that is more, at those of now. An approval names this amount.
    pub sum: Sum,
    /// The most that needs no approval.
    pub limit: Money,
}

/// What is due, compared with recent runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Assessment {
    /// The most that a run may charge; unset if there is nothing to compare with.
    pub(super) ceiling: Option<Money>,
    /// Set if it would charge more.
    pub(super) waits: Option<Spike>,
}

/// What one run may charge.
#[derive(Debug, Default)]
pub(super) struct Brake {
    /// None: whatever it comes to.
    ceiling: Option<Money>,
    charged: AtomicI64,
}

impl Brake {
    /// Takes `amount` from what may still be charged; whether that was enough.
    pub(super) fn admits(&self, amount: Money) -> bool {
        let charged = self.charged.fetch_add(amount.0, Ordering::Relaxed).saturating_add(amount.0);
        let admitted = self.ceiling.is_none_or(|ceiling| charged <= ceiling.0);
        if !admitted {
            self.give_back(amount);
        }
        admitted
    }

    /// A batch that was admitted was rolled back.
    pub(super) fn give_back(&self, amount: Money) {
        self.charged.fetch_sub(amount.0, Ordering::Relaxed);
    }

    /// Why a batch was not admitted.
    pub(super) fn overrun(&self) -> BillingError {
        BillingError::Overrun {
            charged: Money(self.charged.load(Ordering::Relaxed)),
            ceiling: self.ceiling.unwrap_or_default(),
        }
    }

    /// What the run of `pass` may charge.
    ///
    /// # Errors
    /// It would charge too much. That is announced in the audit log.
    pub(super) async fn of(pass: &Pass<'_>, assessment: &Assessment) -> Result<Self, BillingError> {
        if let Some(spike) = assessment.waits {
            let by = format!("run {}", pass.run.id);
            let announced = announce(&pass.biller.db, &by, spike).await;
            announced.map_err(BillingError::database("announce what this run would charge"))?;
            return Err(BillingError::Spike(spike));
        }
        Ok(Self { ceiling: assessment.ceiling, charged: AtomicI64::new(0) })
    }
}

/// Compares what is due with the recent runs. Changes nothing.
pub(super) async fn assess(pass: &Pass<'_>) -> Result<Assessment, BillingError> {
    let db = &pass.biller.db;
    let settings = pass.biller.settings;
    if settings.spike_factor == 0 {
        return Ok(Assessment::default());
    }
    let recent = pass.insist("look at what the last runs charged", || recent(db)).await?;
    if recent.is_empty() {
        return Ok(Assessment::default());
    }
    let approved = pass.insist("look for an approval", || approved(db)).await?;
    let limit = |hours| limit(settings, &recent, approved, hours);
    let began = Instant::now();
    let catch_up = i64::from(pass.biller.settings.max_catch_up_hours);
    let bounded = pass.insist("add up what is due", || bound(pass, catch_up)).await?;
    let took_ms = began.elapsed().as_millis();
    debug!(
        took_ms,
        "at most {} for {} hours are due; to find that took {took_ms} ms", bounded.amount, bounded.hours
    );
    // The statement knows no approvals. Where they can make a difference, only the decision knows what they cover.
    let everything = if pass.approvals.is_empty() {
        bounded
    } else {
        pass.insist("add up what is due", || bound(pass, i64::MAX)).await?
    };
    let mut sum = bounded;
    if everything != bounded || sum.amount > limit(sum.hours) {
        sum = exact(pass).await?;
    }
    let limit = limit(sum.hours);
    let waits = (sum.amount > limit).then_some(Spike { sum, limit });
    Ok(Assessment { ceiling: Some(limit), waits })
}

/// What may be charged for so many hours: as much for each as the dearest of the recent runs, and a factor of that; at least the
/// floor; and at least what was approved.
fn limit(settings: super::Settings, recent: &[Sum], approved: Option<Sum>, hours: i64) -> Money {
    let for_hours = |sum: &Sum, tenths: i64| {
        let wide = i128::from(sum.amount.0) * i128::from(hours) * i128::from(tenths);
        let most = wide / (i128::from(sum.hours.max(1)) * 10);
        Money(i64::try_from(most).unwrap_or(i64::MAX))
    };
    let recent = recent.iter().map(|sum| for_hours(sum, settings.spike_factor));
    let approved = approved.iter().map(|sum| for_hours(sum, APPROVED_TENTHS));
    recent.chain(approved).max().unwrap_or_default().max(settings.spike_floor)
}

/// What each of the last runs that came to their end charged, if it charged anything.
async fn recent(db: &DatabaseConnection) -> Result<Vec<Sum>, DbErr> {
    let hours = match db.get_database_backend() {
        DbBackend::Sqlite => "details ->> 'hours'",
        _ => "(details ->> 'hours')::bigint",
    };
    let sql = format!(
        "SELECT details ->> 'amount' AS amount, {hours} AS hours
           FROM (SELECT details, status, items, started_at FROM billing_job_runs
                  WHERE job = $1 ORDER BY started_at DESC LIMIT $2) AS runs
          WHERE status = 'done' AND items > 0 AND {hours} > 0
          ORDER BY started_at DESC LIMIT $3"
    );
    let values: [Value; 3] = [BILLING_JOB.into(), LOOKED_AT.into(), RECENT.into()];
    let rows = query_all(db, statement(db, &sql, values)).await?;
    let mut recent = Vec::with_capacity(rows.len());
    for row in &rows {
        let (amount, hours): (String, i64) = (row.try_get("", "amount")?, row.try_get("", "hours")?);
        recent.extend(amount.parse().ok().map(|amount| Sum { amount, hours }));
    }
    Ok(recent)
}

/// What the run comes to at most, and for how many hours. Machines that are held because their wallet does not cover an hour count
/// with what that holds, and not with their hours: however long they owe, they must not make a spike look small.
async fn bound(pass: &Pass<'_>, most_hours: i64) -> Result<Sum, DbErr> {
    let db = &pass.biller.db;
    let values: [Value; 2] = [pass.as_of.into(), most_hours.into()];
    let groups = query_all(db, statement(db, &due(pass.biller.panel), values)).await?;
    let mut sum = Sum::default();
    for group in &groups {
        let Some(Sum { amount, hours }) = of_group(pass, group)? else { continue };
        sum.amount.0 = sum.amount.0.saturating_add(amount.0);
        sum.hours = sum.hours.saturating_add(hours);
    }
    Ok(sum)
}

/// Machines of one plan at one rate; nothing if they cannot be charged.
fn of_group(pass: &Pass<'_>, group: &QueryResult) -> Result<Option<Sum>, DbErr> {
    if group.try_get("", "broke")? {
        let balance: i64 = group.try_get("", "balance")?;
        return Ok(Some(Sum { amount: Money(balance.max(0)), hours: 0 }));
    }
    let gone: bool = group.try_get("", "gone")?;
    let (plan, backups): (String, Option<String>) =
        (group.try_get("", "plan")?, group.try_get("", "backups")?);
    let now = pass.prices.rate(&plan, backups.as_deref()).ok().map(|rate| rate.total).filter(|_| !gone);
    if now.is_none() && !gone {
        return Ok(None);
    }
    let known: Option<i64> = group.try_get("", "rate")?;
    let changes: Option<String> = group.try_get("", "changes")?;
    let changes: Vec<(Micros, Rate)> =
        changes.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    // A price that is seen now for the first time is for the hours from now on. It counts all the same: a wrong one must be found
    // before the meters know it, or the hours until it is corrected keep it.
    let known = known.map(Rate).into_iter().chain(changes.iter().map(|(_, rate)| *rate)).chain(now);
    let Some(rate) = known.max() else { return Ok(None) };
    let (hours, machines): (i64, i64) = (group.try_get("", "hours")?, group.try_get("", "machines")?);
    // Each may carry up to one unit of its wallet.
    let unit = pass.biller.panel.unit;
    let carried = machines.saturating_mul(unit.ten_thousandths());
    let amount = cost(rate, hours, Carry(0), unit).map_or(i64::MAX, |(amount, _)| amount.0);
    Ok(Some(Sum { amount: Money(amount.saturating_add(carried)), hours }))
}

/// `(as_of, most hours) -> plan, backups, rate, changes, gone, broke, machines, hours, balance`: what is due, by what it costs.
///
/// The meter of a machine that is due for an hour is not looked up: it could say only that this hour is charged already, or that
/// it began at the price before, which is one to compare with. That spares most of the time that this takes.
fn due(panel: Panel) -> String {
    let sqlite = panel.backend == DbBackend::Sqlite;
    let anchor = "coalesce(last_billed_at, created_at)";
    let (anchor_hours, through_hours, gone_hours, hour_ago) = if sqlite {
        (
            format!("($1 / 1000000 - unixepoch({anchor})) / 3600"),
            "($1 - m.billed_through) / 3600000000",
            "(m.seen_at - m.billed_through) / 3600000000",
            format!("unixepoch({anchor}) <= $1 / 1000000 - 3600"),
        )
    } else {
        // As floating-point numbers, an instant that is infinite is one more that is too long ago.
        (
            format!("floor(($1::float8 / 1000000 - date_part('epoch', {anchor})) / 3600)"),
            "floor(($1::float8 / 1000000 - date_part('epoch', m.billed_through)) / 3600)",
            "floor(date_part('epoch', m.seen_at - m.billed_through) / 3600)",
            format!("{anchor} <= (SELECT {})", postgres::instant("($1 - 3600000000)")),
        )
    };
    let (no, yes, least, text, integer) =
        if sqlite { ("0", "1", "min", "", "") } else { ("false", "true", "least", "::text", "::bigint") };
    let backups = if panel.backups { "backup_frequency".to_owned() } else { format!("NULL{text}") };
    let balance = if sqlite { "w.balance".to_owned() } else { postgres::ten_thousandths("w.balance") };
    let wallet = |organization: &str| {
        format!(
            "(SELECT coalesce(max({balance}), 0) FROM wallets w WHERE w.organization_id = {organization})"
        )
    };
    format!(
        "SELECT plan, backups, rate, changes, gone,
                coalesce(balance < coalesce(rate / 73000, 1), {no}) AS broke,
                count(*) AS machines, sum(hours){integer} AS hours, coalesce(sum(balance), 0){integer} AS balance
           FROM (SELECT i.plan, i.backups, m.rate, m.rate_changes{text} AS changes, {no} AS gone,
                        CASE WHEN m.billed_through IS NULL THEN i.hours
                             ELSE {least}(i.hours, {through_hours}) END AS hours,
                        CASE WHEN i.poor THEN {of_machine} END AS balance
                   FROM (SELECT id, organization_id, plan_id AS plan, {backups} AS backups, {anchor_hours} AS hours,
                                id IN (SELECT instance_id FROM billing_holds
                                        WHERE closed_at IS NULL AND reason = 'insufficient_balance') AS poor
                           FROM vps_instances WHERE {hour_ago}) AS i
                   LEFT JOIN billing_meters m ON m.instance_id = CASE WHEN i.poor OR i.hours > 1 THEN i.id END
                 UNION ALL
                 SELECT '', NULL{text}, m.rate, m.rate_changes{text}, {yes}, {gone_hours}, {of_gone}
                   FROM billing_holds h JOIN billing_meters m ON m.instance_id = h.instance_id
                  WHERE h.closed_at IS NULL AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = h.instance_id)) AS due
          WHERE hours BETWEEN 1 AND $2
          GROUP BY 1, 2, 3, 4, 5, 6",
        of_machine = wallet("i.organization_id"),
        of_gone = wallet("h.organization_id"),
    )
}

/// What the run comes to: every batch read and decided as it will be, and at the prices of now, one in memory at a time, with nothing
/// locked or written.
async fn exact(pass: &Pass<'_>) -> Result<Sum, BillingError> {
    let mut totals = Totals::default();
    let mut after = None;
    while let Some(range) = pass.next_range(after, PAGE).await? {
        if (pass.run.stop)().is_some() {
            break;
        }
        let look = || look(pass, &range.first, &range.last);
        let mut read = pass.insist("add up what is due", look).await?;
        let Posting { totals: as_known, .. } = pass.decide(&range, &read);
        for instance in read.instances.iter_mut().filter(|instance| !instance.gone) {
            if let Some(meter) = &mut instance.meter {
                meter.rates = None;
            }
        }
        let Posting { totals: as_of_now, .. } = pass.decide(&range, &read);
        totals += if as_known.amount > as_of_now.amount { as_known } else { as_of_now };
        after = Some(range.last);
    }
    Ok(Sum { amount: totals.amount, hours: i64::try_from(totals.hours).unwrap_or(i64::MAX) })
}

async fn look(pass: &Pass<'_>, first: &str, last: &str) -> Result<Read, DbErr> {
    let sql = &pass.biller.sql;
    let txn = begin_read(&pass.biller.db).await?;
    if let Some(settings) = &sql.plan_settings {
        txn.query_one_raw(statement(&txn, settings, [])).await?;
    }
    let wallets = txn.query_all_raw(statement(&txn, &sql.read_wallets, [first.into(), last.into()])).await?;
    let values: [Value; 3] = [pass.as_of.into(), first.into(), last.into()];
    let instances = txn.query_all_raw(statement(&txn, &sql.read_due, values)).await?;
    txn.commit().await?;
    Ok(Read {
        wallets: wallets.iter().map(read::wallet).collect::<Result<_, _>>()?,
        instances: instances.iter().map(read::instance).collect::<Result<_, _>>()?,
        at: Instant::now(),
    })
}

const ANNOUNCE: &str = "announce a spike";
const APPROVE: &str = "approve a spike";

/// Logs in the audit log what waits for an approval, once for each sum.
///
/// # Errors
/// The database does not answer.
pub async fn announce(db: &DatabaseConnection, by: &str, spike: Spike) -> Result<(), DbErr> {
    let Spike { sum, limit } = spike;
    if newest(db, ANNOUNCE).await?.is_some_and(|(announced, _)| announced.sum == sum) {
        return Ok(());
    }
    let entry = Entry {
        by: by.to_owned(),
        action: ANNOUNCE,
        job: BILLING_JOB.to_owned(),
        reason: None,
        details: json!({ "amount": sum.amount, "hours": sum.hours, "limit": limit }),
    };
    record::note(db, &entry).await
}

/// The newest row of this action, and how many hours old it is.
async fn newest(db: &DatabaseConnection, action: &str) -> Result<Option<(Announced, i64)>, DbErr> {
    let age = match db.get_database_backend() {
        DbBackend::Sqlite => format!("({SQLITE_NOW} - at) / 3600000000"),
        _ => "floor(extract(epoch FROM now() - at) / 3600)::bigint".to_owned(),
    };
    let sql = format!(
        "SELECT id, details, {age} AS age FROM billing_job_audit WHERE action = $1 AND job = $2 ORDER BY id DESC LIMIT 1"
    );
    let Some(row) = query_one(db, statement(db, &sql, [action.into(), BILLING_JOB.into()])).await? else {
        return Ok(None);
    };
    let details: String = row.try_get("", "details")?;
    let sum = serde_json::from_str(&details)
        .map_err(|error| DbErr::Type(format!("billing_job_audit.details: {error}")))?;
    Ok(Some((Announced { id: row.try_get("", "id")?, sum }, row.try_get("", "age")?)))
}

/// The run that was announced last and that nobody has approved.
///
/// # Errors
/// The database does not answer.
pub async fn announced(db: &DatabaseConnection) -> Result<Option<Announced>, DbErr> {
    let approved = newest(db, APPROVE).await?.map_or(0, |(approved, _)| approved.id);
    Ok(newest(db, ANNOUNCE)
        .await?
        .map(|(announced, _)| announced)
        .filter(|announced| announced.id > approved))
}

/// Lets a run charge what was `announced`, in the name of `by`, for [`APPROVED_FOR_HOURS`].
///
/// # Errors
/// The database does not answer.
pub async fn approve(db: &DatabaseConnection, announced: Announced, by: &str) -> Result<(), DbErr> {
    let Announced { id, sum } = announced;
    let entry = Entry {
        by: by.to_owned(),
        action: APPROVE,
        job: BILLING_JOB.to_owned(),
        reason: None,
        details: json!({
            "announced": id, "amount": sum.amount, "hours": sum.hours, "for_hours": APPROVED_FOR_HOURS,
        }),
    };
    record::note(db, &entry).await
}

async fn approved(db: &DatabaseConnection) -> Result<Option<Sum>, DbErr> {
    let newest = newest(db, APPROVE).await?;
    Ok(newest.filter(|(_, age)| *age < APPROVED_FOR_HOURS).map(|(approved, _)| approved.sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::Settings;

    #[test]
    fn the_limit_is_a_factor_of_the_dearest_hour_of_late() {
        let settings = Settings { spike_factor: 30, spike_floor: Money(1_000), ..Settings::default() };
        let sum = |amount, hours| Sum { amount: Money(amount), hours };
        let recent = [sum(70_000, 1_000), sum(60_000, 1_000)];
        for (hours, approved, expected) in [
            (1_000, None, 210_000),
            (72_000, None, 72 * 210_000),
            (2, None, 1_000),
            (1_000, Some(sum(700_000, 1_000)), 770_000),
            (2_000, Some(sum(700_000, 1_000)), 1_540_000),
            (1_000, Some(sum(1, 1)), 210_000),
            (i64::MAX, None, i64::MAX),
        ] {
            assert_eq!(limit(settings, &recent, approved, hours), Money(expected), "{hours} {approved:?}");
        }
    }

    #[test]
    fn no_batch_goes_beyond_the_ceiling() {
        let brake = Brake { ceiling: Some(Money(100)), charged: AtomicI64::new(0) };
        assert!(brake.admits(Money(60)) && !brake.admits(Money(41)) && brake.admits(Money(40)));
        assert!(!brake.admits(Money(1)));
        brake.give_back(Money(60));
        assert!(brake.admits(Money(60)));
        assert!(Brake::default().admits(Money(i64::MAX)), "nothing to compare with");
    }
}
