//! The database: whether it answers, what it lets us do, and what is wrong in the panel's books.

use std::time::Instant;

use billing_jobs::{
    billing::{Biller, BillingSettings},
    hold::Reason,
    panel::Panel,
};
use billing_scheduler::{Clock, SystemClock};
use billing_store::{
    GRANTS_PAGE,
    audit_log::{self, ChainCheck},
    begin, query_one,
};
use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};

use super::{Finding, rights};
use crate::{
    holds::advice,
    panel_database::PanelDatabase,
    status::{Expected, HoldSummary, Liveness, Status, panel_presence::PanelPresence},
};
use billing_store::{Database, Pool};

/// By how much the database's clock and ours may differ before somebody should know.
const CLOCKS_AGREE: TimeDelta = TimeDelta::seconds(2);

/// Everything about the database, and how billing stands if that could be read.
pub(crate) async fn examine(database: &Database, expected: &Expected) -> (Vec<Finding>, Option<Status>) {
    let mut findings = Vec::new();
    let before = Instant::now();
    let db = match database.connect(Pool::Shared).await {
        Ok(db) => db,
        Err(error) => {
            let advice = "is the server up, the address right, the password valid, and this machine allowed by \
                          pg_hba.conf?";
            findings.push(Finding::fail("database", error.to_string(), advice));
            return (findings, None);
        }
    };
    let took = before.elapsed().as_millis();
    findings.push(Finding::ok("database", format!("{} answers, in {took} ms", database.url())));
    if let Err(error) = migration::check(&db).await {
        let advice = format!(
            "the message says what to run; migrations need the login that owns the panel's tables ({GRANTS_PAGE})"
        );
        findings.push(Finding::fail("schema", error.to_string(), advice));
        return (findings, None);
    }
    findings.push(Finding::ok("schema", "as this program expects it"));
    match rest(db, expected, &mut findings).await {
        Ok(status) => (findings, Some(status)),
        Err(message) => {
            findings.push(Finding::fail(
                "questions",
                message,
                format!("grant the missing rights ({GRANTS_PAGE}), then run this again"),
            ));
            (findings, None)
        }
    }
}

async fn rest(
    db: DatabaseConnection,
    expected: &Expected,
    findings: &mut Vec<Finding>,
) -> Result<Status, String> {
    let text = |error: DbErr| error.to_string();
    let panel = Panel::detect(&db).await.map_err(text)?;
    let opened = PanelDatabase { db, panel };
    findings.push(clock(&opened).await.map_err(text)?);
    // A daemon without a billing job is not judged by what billing needs.
    let bills = expected.has_billing().unwrap_or(true);
    let rights = rights::examine(&opened.db, bills).await.map_err(text)?;
    let may_write = rights.iter().all(|finding| finding.verdict != super::Verdict::Fail);
    findings.extend(rights);
    if bills && panel.row_security && may_write {
        findings.push(row_security(&opened.db).await.map_err(text)?);
    }
    let books = BOOKS.into_iter().chain([times(opened.db.get_database_backend())]);
    for books in books.filter(|_| bills) {
        findings.push(of_books(&opened.db, books).await.map_err(text)?);
    }
    findings.push(on_record(&opened.db).await.map_err(text)?);
    let presence = PanelPresence::detect(&opened).await.map_err(|failure| failure.message)?;
    findings.push(match presence.ensure_may_charge(expected.panel_billing) {
        Ok(()) => Finding::ok("who else bills", presence.to_string()),
        Err(_) if !bills => {
            Finding::ok("who else bills", format!("{presence}; no billing is configured here"))
        }
        Err(failure) => Finding::fail("who else bills", failure.message, "the message says what to do"),
    });
    let status = crate::status::read(&opened, expected).await.map_err(|failure| failure.message)?;
    findings.push(daemons(&status));
    if bills {
        findings.extend(holds(&status));
    }
    findings.push(schedules(&status));
    Ok(status)
}

async fn clock(opened: &PanelDatabase) -> Result<Finding, DbErr> {
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let before = SystemClock.now();
    let theirs = biller.now().await?;
    let after = SystemClock.now();
    let ours = before + (after - before) / 2;
    let off = (theirs - ours).abs();
    // Nobody knows at which moment between question and answer the database looked.
    let uncertain = (after - before) / 2;
    let shown = format!("{}.{} s", off.num_seconds(), off.subsec_nanos().unsigned_abs() / 100_000_000);
    if off <= CLOCKS_AGREE + uncertain {
        return Ok(Finding::ok("clocks", format!("the database's differs from ours by {shown}")));
    }
    Ok(Finding::warn(
        "clocks",
        format!("the database's differs from ours by {shown}"),
        "hours are charged by the database's clock, jobs start by ours: let NTP set both",
    ))
}

/// Row-level security makes a write that it forbids change nothing, without an error: so it is tried, and rolled back.
async fn row_security(db: &DatabaseConnection) -> Result<Finding, DbErr> {
    let txn = begin(db).await?;
    txn.execute_unprepared("SET LOCAL app.current_user_is_admin = 'true'").await?;
    let sql = "SELECT (SELECT count(*) FROM (SELECT FROM wallets LIMIT 1) w) AS seen,
                      (SELECT count(*) FROM (SELECT FROM wallets ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) w) AS locked,
                      (SELECT count(*) FROM (SELECT FROM wallets ORDER BY id LIMIT 1 FOR KEY SHARE) w) AS writable";
    let row = txn.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    txn.rollback().await?;
    let count = |column: &str| row.as_ref().map_or(Ok(0), |row| row.try_get::<i64>("", column));
    let (seen, writable) = (count("seen")?, count("writable")?.max(count("locked")?));
    if seen == 0 || writable > 0 {
        return Ok(Finding::ok("row-level security", "lets this login change wallets while it bills"));
    }
    Ok(Finding::fail(
        "row-level security",
        "this login sees wallets and cannot change them, whatever it sets",
        "as the tables' owner: CREATE POLICY billing_run_wallets ON wallets FOR UPDATE TO billing_run USING (true);",
    ))
}

/// What is wrong in the panel's books, counted.
struct Books {
    check: &'static str,
    count: &'static str,
    what: &'static str,
    /// For which their instances are held.
    reason: Reason,
}

const BOOKS: [Books; 4] = [
    Books {
        check: "one wallet each",
        count: "SELECT count(*) AS n FROM (SELECT organization_id FROM wallets GROUP BY organization_id
                                            HAVING count(*) > 1) AS several",
        what: "organizations with several wallets",
        reason: Reason::DuplicateWallets,
    },
    Books {
        check: "a wallet each",
        count: "SELECT count(*) AS n FROM vps_instances i
                 WHERE NOT EXISTS (SELECT 1 FROM wallets w WHERE w.organization_id = i.organization_id)",
        what: "machines of organizations without a wallet",
        reason: Reason::NoWallet,
    },
    Books {
        check: "a plan each",
        count: "SELECT count(*) AS n FROM vps_instances i
                 WHERE NOT EXISTS (SELECT 1 FROM vps_plans p
                                    WHERE CAST(p.id AS text) = i.plan_id OR p.provider_plan_id = i.plan_id)",
        what: "machines on a plan that does not exist",
        reason: Reason::UnknownPlan,
    },
    Books {
        check: "a price each",
        count: "SELECT count(*) AS n FROM vps_instances i
                 WHERE EXISTS (SELECT 1 FROM vps_plans p
                                WHERE (CAST(p.id AS text) = i.plan_id OR p.provider_plan_id = i.plan_id)
                                  AND p.base_price IS NULL)",
        what: "machines on a plan without a price",
        reason: Reason::NoPrice,
    },
];

/// Times that hold an instance, as a run would find them.
fn times(backend: DbBackend) -> Books {
    let count = match backend {
        DbBackend::Sqlite => {
            "SELECT count(*) AS n
               FROM (SELECT coalesce(last_billed_at, created_at) AS anchor, coalesce(created_at, last_billed_at) AS created
                       FROM vps_instances) AS i
              WHERE (anchor GLOB '[2-9][0-9][0-9][0-9]-*' AND unixepoch(anchor) <= unixepoch() + 300
                     AND created GLOB '[2-9][0-9][0-9][0-9]-*' AND unixepoch(created) <= unixepoch() + 300) IS NOT TRUE"
        }
        _ => {
            "SELECT count(*) AS n
               FROM (SELECT coalesce(last_billed_at, created_at) AS anchor, coalesce(created_at, last_billed_at) AS created
                       FROM vps_instances) AS i
              WHERE (anchor >= '2000-01-01Z' AND anchor <= now() + interval '5 minutes'
                     AND created >= '2000-01-01Z' AND created <= now() + interval '5 minutes') IS NOT TRUE"
        }
    };
    Books {
        check: "plausible times",
        count,
        what: "instances with a `last_billed_at` or `created_at` that is not plausible",
        reason: Reason::InvalidTime,
    }
}

async fn of_books(db: &DatabaseConnection, books: Books) -> Result<Finding, DbErr> {
    let row = query_one(db, Statement::from_string(db.get_database_backend(), books.count)).await?;
    let count: i64 = row.map_or(Ok(0), |row| row.try_get("", "n"))?;
    let message = format!("{}: {count}", books.what);
    Ok(if count == 0 {
        Finding::ok(books.check, message)
    } else {
        Finding::warn(books.check, message, advice(books.reason.as_str()))
    })
}

/// What people changed is on record, and nobody has changed the record.
async fn on_record(db: &DatabaseConnection) -> Result<Finding, DbErr> {
    let ChainCheck { rows, broken } = audit_log::verify(db).await?;
    Ok(match broken {
        None => Finding::ok("record of changes", format!("{rows} rows, each as it was written")),
        Some(id) => Finding::fail(
            "record of changes",
            format!("row {id} of scheduler_audit_log is not what was written, or the row before it is gone"),
            "compare it with a backup: whoever changed it had the rights of the tables' owner",
        ),
    })
}

/// What is held and neither accepted nor the customer's own debt.
fn holds(status: &Status) -> Vec<Finding> {
    let open = |held: &&HoldSummary| {
        held.owed.instances > held.accepted && held.reason != Reason::InsufficientBalance.as_str()
    };
    let finding = |held: &HoldSummary| {
        let message = format!("{} for `{}`", held.owed.instances - held.accepted, held.reason);
        Finding::warn("held instances", message, held.advice.clone())
    };
    let held: Vec<_> = status.holds.iter().filter(open).map(finding).collect();
    if held.is_empty() { vec![Finding::ok("held instances", "none that needs an operator")] } else { held }
}

/// No job waits for a time that it ran at while a clock was ahead.
fn schedules(status: &Status) -> Finding {
    let waits = status.problems.iter().filter(|problem| problem.kind == "job_ahead");
    let waits: Vec<&str> = waits.map(|problem| problem.message.as_str()).collect();
    if waits.is_empty() {
        return Finding::ok("schedules", "none is finished up to a future time");
    }
    let advice = "let NTP set the clocks first; then reset each job, or wait";
    Finding::warn("schedules", waits.join("; "), advice)
}

fn daemons(status: &Status) -> Finding {
    let there = status.daemons.iter().filter(|daemon| daemon.liveness.is_alive()).count();
    let dead = status.daemons.iter().filter(|daemon| daemon.liveness == Liveness::Dead).count();
    let message = format!("{there} alive, {dead} dead");
    if there > 0 && dead == 0 {
        Finding::ok("daemons", message)
    } else {
        Finding::warn(
            "daemons",
            message,
            "start one with `billing-daemon run`; `billing-daemon status` tells more",
        )
    }
}
