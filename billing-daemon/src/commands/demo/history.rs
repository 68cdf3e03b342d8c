//! The history of the demo that is served: 60 hours of billing, the last of them with real charges, with an instance held for each reason
//! and wallets that run out. The demo's database is an SQLite file.

use std::{sync::Arc, time::Duration};

use billing_jobs::{
    BILLING_JOB,
    billing::{
        Biller, BillingOptions, BillingSettings, CurrencyTotals, Excess, Mode, RunDetails, Spike,
        SpikeAmount, Totals, spike_guard::record_pending_spike,
    },
    currency::Currency,
    money::Money,
};
use billing_scheduler::{
    Claim, ControlAction, ControlRequest, JobState, Lease, RunCause, RunRecord, RunStatus, Store as _,
    SystemClock,
};
use billing_store::{Database, SeaOrmStore, begin_command, statement, submit_request};
use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use indicatif::ProgressBar;
use sea_orm::{ConnectionTrait as _, DbErr};
use serde_json::json;
use uuid::Uuid;

use super::{DemoArgs, generate};
use crate::{
    commands::bill::billing_failure,
    exit::{Exit, Failure},
    panel_database::PanelDatabase,
};

/// How many past runs of billing the history has.
const RUNS: i64 = 60;
/// How many of them charged the fleet; the others are records alone.
const BILLED: i64 = 24;
/// The hours that the wallets of three organizations cover.
const RUNWAYS: [i64; 3] = [60, 20, 0];

fn failed(error: &DbErr) -> Failure {
    Failure::database("write the history of the demo", error)
}

/// Generates the fleet, and what happened to it. Returns the scheduled time of the newest run of billing.
pub(super) async fn write(
    opened: &PanelDatabase,
    database: &Database,
    options: &DemoArgs,
) -> Result<DateTime<Utc>, Failure> {
    let now = opened.now().await.map_err(|error| failed(&error))?;
    // The next run of billing is almost an hour later, so the demo stays as it begins.
    let hour = now.duration_trunc(TimeDelta::minutes(1)).unwrap_or(now);
    generate(opened, options, hour - TimeDelta::hours(BILLED), &ProgressBar::hidden()).await?;
    mistakes(opened, &MISTAKES).await.map_err(|error| failed(&error))?;
    let clock = Arc::new(SystemClock);
    let ttl = Duration::from_mins(10);
    let store = SeaOrmStore::new(opened.db.clone(), database.clone(), "north-7f3a", ttl, clock);
    let unrecorded = |error| Failure::store("write the history of the demo", error);
    let claim = store.acquire(BILLING_JOB, hour - TimeDelta::hours(RUNS)).await.map_err(unrecorded)?;
    let Claim::Held(lease) = claim else {
        return Err(Failure::new(Exit::Internal, "cannot claim billing: another process uses the demo"));
    };
    for age in (0..RUNS).rev() {
        for mut run in runs_of(hour, now, age) {
            if age <= BILLED && run.status == RunStatus::Done {
                bill(opened, &lease, &mut run).await?;
            }
            run.fencing_token = lease.fencing_token;
            let state = JobState::at(run.scheduled_at);
            store.record(Some(&lease), &run, &state).await.map_err(unrecorded)?;
        }
        if age == 2 {
            departures(opened).await.map_err(|error| failed(&error))?;
            mistakes(opened, &LATE_MISTAKES).await.map_err(|error| failed(&error))?;
        }
    }
    store.release(&lease).await.map_err(unrecorded)?;
    pauses(opened, hour).await.map_err(|error| failed(&error))?;
    spend(opened).await.map_err(|error| failed(&error))?;
    events(opened, hour).await.map_err(|error| failed(&error))?;
    let due = CurrencyTotals { charges: 902, hours: 1_204, amount: Money(4_128_000) };
    let spike = Spike { excesses: vec![Excess { currency: Currency::USD, due, limit: Money(611_000) }] };
    record_pending_spike(&opened.db, "run of the demo", &spike).await.map_err(|error| failed(&error))?;
    Ok(hour)
}

/// Charges the hours that had ended by the scheduled time of `run`.
async fn bill(opened: &PanelDatabase, lease: &Lease, run: &mut RunRecord) -> Result<(), Failure> {
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let options = BillingOptions {
        id: run.id,
        mode: Mode::Commit(lease.fencing_token),
        as_of: Some(run.scheduled_at),
        approved: None,
        lists_beyond_limit: false,
        stop: &|| None,
        progress: &|_| {},
        first_prices: &|_| {},
    };
    let report = biller.bill(&options).await.map_err(billing_failure)?;
    (run.items, run.details) = (report.totals.charged, RunDetails::finished(&report).to_json());
    let success = biller.record_success(lease.fencing_token).await;
    success.map_err(|error| failed(&error))
}

/// Faulty rows for the reasons that a generated fleet does not have. `?N` is the organization of the instance with that number.
const MISTAKES: [&str; 6] = [
    "UPDATE wallets SET balance = NULL WHERE organization_id = ?25",
    "UPDATE wallets SET currency = 'dollars' WHERE organization_id = ?30",
    "INSERT INTO vps_plans (name, provider_plan_id, base_price)
     VALUES ('twin', 'g6-twin', 50000), ('twin', 'g6-twin', 60000), ('refund', 'g6-refund', -10000)",
    "UPDATE vps_instances SET plan_id = 'g6-twin' WHERE label LIKE '%-00040'",
    "UPDATE vps_instances SET plan_id = 'g6-refund' WHERE label LIKE '%-00041'",
    "UPDATE vps_instances SET last_billed_at = 'yesterday' WHERE label LIKE '%-00042'",
];
/// Those of which each run warns: they are made before the last run alone.
const LATE_MISTAKES: [&str; 3] = [
    "UPDATE wallets SET currency = CAST(x'ff' AS text) WHERE organization_id = ?35",
    "CREATE TABLE demo_closed_customers AS SELECT ?45 AS organization_id",
    "CREATE TRIGGER demo_closed_customers BEFORE INSERT ON payment_transactions
     WHEN NEW.organization_id IN (SELECT organization_id FROM demo_closed_customers)
     BEGIN SELECT RAISE(ABORT, 'the account of this customer is closed'); END",
];

async fn mistakes(opened: &PanelDatabase, statements: &[&str]) -> Result<(), DbErr> {
    let txn = begin_command(&opened.db).await?;
    for &sql in statements {
        let (before, number, after) = match sql.split_once('?') {
            Some((before, rest)) => (before, &rest[..2], &rest[2..]),
            None => (sql, "", ""),
        };
        let organization =
            format!("(SELECT organization_id FROM vps_instances WHERE label LIKE '%-000{number}')");
        let organization = if number.is_empty() { "" } else { &organization };
        txn.execute_unprepared(&format!("{before}{organization}{after}")).await?;
    }
    txn.commit().await
}

/// Deletes an instance whose hours are unpaid, and gives another one to another customer.
async fn departures(opened: &PanelDatabase) -> Result<(), DbErr> {
    const UNPAID: &str = "SELECT instance_id FROM billing_holds WHERE closed_at IS NULL AND reason = 'insufficient_balance' ORDER BY id LIMIT 1";
    let txn = begin_command(&opened.db).await?;
    for sql in [
        format!("DELETE FROM vps_instances WHERE id = ({UNPAID})"),
        format!(
            "UPDATE vps_instances SET organization_id = (SELECT organization_id FROM vps_instances WHERE label LIKE '%-00050')
              WHERE id = ({UNPAID} OFFSET 1)"
        ),
    ] {
        txn.execute_unprepared(&sql).await?;
    }
    txn.commit().await
}

/// The runs of the hour that was `age` hours before `hour`: most are done, some are late, one was retried, three were paused, and the
/// newest waits for an approval.
fn runs_of(hour: DateTime<Utc>, now: DateTime<Utc>, age: i64) -> Vec<RunRecord> {
    let at = hour - TimeDelta::hours(age);
    let record = |status, late_ms: i64, took_ms: i64| {
        let started = at + TimeDelta::milliseconds(late_ms);
        RunRecord {
            attempt: 1,
            finished_at: started + TimeDelta::milliseconds(took_ms),
            ..RunRecord::new(BILLING_JOB, at, status, RunCause::Schedule, started)
        }
    };
    let took = 2_600 + (age * 7_919) % 1_900;
    // The audit compares the totals of a run with its batches: these runs have none.
    let nothing = RunDetails { totals: Some(Totals::default()), ..RunDetails::default() }.to_json();
    let done = |late_ms| RunRecord { details: nothing.clone(), ..record(RunStatus::Done, late_ms, took) };
    match age {
        0 => {
            let amount = SpikeAmount { amount: Money(4_128_000), hours: 1_204, limit: Money(611_000) };
            let details =
                RunDetails { spike: [(Currency::USD, amount)].into(), ..RunDetails::default() }.to_json();
            let error =
                "nothing was charged, because 412.80 USD is due for 1204 hours, and recent runs allow 61.10";
            vec![RunRecord {
                attempt: 1,
                finished_at: now + TimeDelta::milliseconds(310),
                error: Some(error.to_owned()),
                reason: Some("requested by ada: new price list".to_owned()),
                details,
                ..RunRecord::new(BILLING_JOB, now, RunStatus::Dead, RunCause::Manual, now)
            }]
        }
        17..=19 => vec![RunRecord {
            attempt: 0,
            reason: Some("paused by grace: price list".to_owned()),
            ..record(RunStatus::Paused, 0, 0)
        }],
        31 => {
            let error = Some("the connection to the database was lost".to_owned());
            let first = RunRecord { error, ..record(RunStatus::Retrying, 15, 5_020) };
            vec![first, RunRecord { attempt: 2, ..done(9_400) }]
        }
        24 => vec![done(61_000)],
        8 | 44 => vec![done(2_400)],
        _ => vec![done(4 + age % 17)],
    }
}

/// Three notices with their deliveries: one was sent, one waits for its next attempt, one was given up.
async fn events(opened: &PanelDatabase, hour: DateTime<Utc>) -> Result<(), DbErr> {
    const EVENT: &str = "INSERT INTO billing_events (id, type, organization_id, endpoints, body, created_at) VALUES ($1, $2, $3, 1, $4, $5)";
    const NOTICE: &str = "INSERT INTO billing_notices (organization_id, episode, level, event_id, passed, created_at, delivered_at)
        VALUES ($1, 0, $2, $3, 0, $4, CASE $5 WHEN 'sent' THEN $4 END)";
    const DELIVERY: &str = "INSERT INTO billing_deliveries
            (event_id, endpoint, organization_id, needed, status, attempts, next_at, last_code, last_error, sent_at)
        VALUES ($1, 'crm', $2, 1, $3, $4, $5, $6, $7, CASE $3 WHEN 'sent' THEN $5 END)";
    let txn = begin_command(&opened.db).await?;
    let sql = "SELECT organization_id AS id FROM vps_instances WHERE label LIKE '%-00055' LIMIT 1";
    let organization = txn.query_one_raw(statement(&txn, sql, [])).await?;
    let Some(organization) = organization else { return Ok(()) };
    let organization: String = organization.try_get("", "id")?;
    for (age, kind, level, status, attempts, code, error) in [
        (30, "billing.wallet.low", 72, "sent", 1, Some(200), None),
        (9, "billing.wallet.exhausted", 0, "dead", 12, None, Some("connection refused")),
        (2, "billing.wallet.final_notice", -1, "pending", 3, Some(503), Some("Service Unavailable")),
    ] {
        let at = hour - TimeDelta::hours(age);
        let (id, micros) = (Uuid::now_v7().to_string(), at.timestamp_micros());
        let body = json!({ "type": kind, "timestamp": at, "data": { "organization": organization } });
        let values = [
            id.as_str().into(),
            kind.into(),
            organization.clone().into(),
            body.to_string().into(),
            micros.into(),
        ];
        txn.execute_raw(statement(&txn, EVENT, values)).await?;
        let values =
            [organization.clone().into(), level.into(), id.as_str().into(), micros.into(), status.into()];
        txn.execute_raw(statement(&txn, NOTICE, values)).await?;
        let values = [
            id.into(),
            organization.clone().into(),
            status.into(),
            attempts.into(),
            (micros + 3_600_000_000 * if status == "pending" { age + 1 } else { 0 }).into(),
            code.into(),
            error.into(),
        ];
        txn.execute_raw(statement(&txn, DELIVERY, values)).await?;
    }
    txn.commit().await
}

/// Two pauses, of which one has ended.
async fn pauses(opened: &PanelDatabase, hour: DateTime<Utc>) -> Result<(), DbErr> {
    for (job, action, age, by, reason) in [
        (BILLING_JOB, ControlAction::Pause, 19 * 60 + 20, "grace", "price list"),
        (BILLING_JOB, ControlAction::Resume, 16 * 60 + 40, "grace", "prices are right"),
        ("prune-history", ControlAction::Pause, 95, "ada", "keeping the history for the auditor"),
    ] {
        let at = hour - TimeDelta::minutes(age);
        let (id, job, by) = (Uuid::now_v7(), job.to_owned(), by.to_owned());
        submit_request(
            &opened.db,
            &ControlRequest { id, job, action, by, reason: Some(reason.to_owned()), at },
        )
        .await?;
    }
    Ok(())
}

/// Lets three organizations with one wallet each spend until they have [`RUNWAYS`]. The demo's database is an SQLite file.
async fn spend(opened: &PanelDatabase) -> Result<(), DbErr> {
    let sql = "SELECT CAST(w.organization_id AS text) AS organization, CAST(sum(m.rate) AS bigint) AS rate
                 FROM wallets w JOIN billing_meters m ON m.organization_id = w.organization_id
                WHERE NOT EXISTS (SELECT 1 FROM billing_holds h WHERE h.organization_id = w.organization_id AND h.closed_at IS NULL)
                GROUP BY w.organization_id HAVING count(DISTINCT w.id) = 1 AND count(m.rate) = count(*) AND sum(m.rate) > 0
                ORDER BY 1 LIMIT 3";
    let txn = begin_command(&opened.db).await?;
    let rows = txn.query_all_raw(statement(&txn, sql, [])).await?;
    for (row, hours) in rows.iter().zip(RUNWAYS) {
        let (organization, rate): (String, i64) =
            (row.try_get("", "organization")?, row.try_get("", "rate")?);
        // A little more than these hours, so that the carries do not matter, and the hour that the newest run left due.
        let left = (rate * (hours + 1) + rate / 2) / 73_000;
        let spent = "INSERT INTO payment_transactions
                    (organization_id, amount, currency, payment_method, payment_provider, status, description)
             SELECT organization_id, $2 - balance, currency, 'manual', 'internal', 'completed', 'Refund of a payment'
               FROM wallets WHERE organization_id = $1";
        let wallet = "UPDATE wallets SET balance = $2 WHERE organization_id = $1";
        for sql in [spent, wallet] {
            txn.execute_raw(statement(&txn, sql, [organization.as_str().into(), left.into()])).await?;
        }
    }
    txn.commit().await
}
