//! `demo --serve`: the demo's fleet with a history of its jobs, a daemon that runs them, and its console.

use std::{collections::BTreeSet, fs, net::TcpListener, path::Path, sync::Arc, time::Duration};

use billing_jobs::{
    BILLING_JOB,
    billing::{CurrencyTotals, Excess, RunDetails, Spike, SpikeAmount, spike_guard::record_pending_spike},
    currency::Currency,
    money::Money,
};
use billing_scheduler::{
    ControlAction, ControlRequest, JobState, RunCause, RunRecord, RunStatus, Store as _, SystemClock,
};
use billing_store::{Database, SeaOrmStore, begin_command, statement, submit_request};
use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use sea_orm::{ConnectionTrait as _, DbErr};
use serde_json::json;
use uuid::Uuid;

use super::{DemoArgs, DemoDatabase, prepare, show};
use crate::{
    commands::{console::new_token, session::Session},
    console::Right,
    exit::{Exit, Failure},
    host::identity::Identity,
    output::{json as say_json, line as say},
    panel_database::PanelDatabase,
    runtime::{self, reload::ConfigFile},
    telemetry::mask::Concealed,
};

/// How many past runs of billing the history has.
const RUNS: i64 = 60;
/// The hours that the wallets of three organizations cover.
const RUNWAYS: [i64; 3] = [60, 20, 0];
/// How often the start of the server is checked.
const POLL: Duration = Duration::from_millis(50);

/// Adds a history to a fleet that was billed.
async fn add_history(opened: &PanelDatabase, database: &Database) -> Result<(), Failure> {
    let now = opened.now().await.map_err(|error| failed(&error))?;
    let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
    let clock = Arc::new(SystemClock);
    let store =
        SeaOrmStore::new(opened.db.clone(), database.clone(), "north-7f3a", Duration::from_secs(10), clock);
    for age in (0..RUNS).rev() {
        for run in runs_of(hour, now, age) {
            let state = JobState::at(run.scheduled_at);
            store
                .record(None, &run, &state)
                .await
                .map_err(|error| Failure::store("write the history", error))?;
        }
    }
    pauses(opened, hour).await.map_err(|error| failed(&error))?;
    spend(opened).await.map_err(|error| failed(&error))?;
    let due = CurrencyTotals { charges: 902, hours: 1_204, amount: Money(4_128_000) };
    let spike = Spike { excesses: vec![Excess { currency: Currency::USD, due, limit: Money(611_000) }] };
    record_pending_spike(&opened.db, "run of the demo", &spike).await.map_err(|error| failed(&error))
}

fn failed(error: &DbErr) -> Failure {
    Failure::database("write the history of the demo", error)
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
    // A run with totals needs its batches, or the audit finds that they are missing.
    let done = |late_ms| record(RunStatus::Done, late_ms, took);
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
        // A little more than these hours, so that the carries do not matter.
        let left = (rate * hours + rate / 2) / 73_000;
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

/// The configuration of the demo's daemon: what a new installation runs, and a console for one person.
fn config(port: u16) -> String {
    let job = |name: &str, every: &str, more: &str| {
        format!(
            "[[job]]\nname = \"{name}\"\nkind = \"{name}\"\nschedule = {{ every = \"{every}\" }}\n{more}\n"
        )
    };
    [
        format!("[http]\nlisten = \"127.0.0.1:{port}\"\n\n[http.console]\naccess = \"operate\"\ntokens-file = \"console-tokens\"\n\n"),
        job("billing", "1h", ""),
        job("heartbeat", "1m", "scope = \"node\"\nrun-at-start = true"),
        job("prepaid", "1m", "run-at-start = true"),
        job("audit", "1d", "run-at-start = true"),
        job("prune-history", "1d", ""),
    ]
    .concat()
}

/// Serves the console of the demo until a signal arrives.
pub(super) async fn serve(
    target: &DemoDatabase,
    session: &Session<'_>,
    options: &DemoArgs,
) -> Result<(), Failure> {
    let (opened, database) = prepare(target, session).await?;
    show(&opened, &database, options).await?;
    add_history(&opened, &database).await?;
    opened.db.close().await.map_err(|error| Failure::database("close the database", &error))?;
    let folder = target.folder.as_deref().unwrap_or(Path::new("."));
    let io = |error: std::io::Error| {
        Failure::new(Exit::Internal, format!("cannot prepare the demo's daemon: {error}"))
    };
    // Another process could take the port before the daemon listens, which then reports it.
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(io)?.port();
    let rights = BTreeSet::from([Right::View, Right::Operate, Right::Approve, Right::AuditLog]);
    let (token, line) = new_token("ada", rights).map_err(|error| Failure::new(Exit::Internal, error))?;
    let tokens = folder.join("console-tokens");
    write_secret(&tokens, &line).map_err(io)?;
    let file = folder.join("jobs.toml");
    fs::write(
        &file,
        config(port).replace("\"console-tokens\"", &format!("{:?}", tokens.display().to_string())),
    )
    .map_err(io)?;
    let file = ConfigFile::open(&file, session.environment.clone(), session.plugins).map_err(io)?;
    let config = file.config().map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, problems.join("; "))
    })?;
    let identity = Identity::from_process(config.billing_interval);
    let url = format!("http://127.0.0.1:{port}");
    let announce = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
        if options.json {
            say_json(&json!({ "url": url, "token": token }));
        } else {
            say(format!("The console of the demo: {url}/console/"));
            say(format!("Sign in with the token  {token}"));
            say("It runs until you press Ctrl+C, and then removes its database.");
        }
        std::future::pending::<()>().await;
    };
    let running = runtime::run(config, Some(file), database, session.plugins, identity, Concealed::default());
    tokio::select! {
        ended = Box::pin(running) => ended,
        () = announce => Ok(()),
    }
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, "")?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    fs::write(path, format!("{text}\n"))
}
