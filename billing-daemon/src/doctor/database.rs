//! The database: whether it answers, which rights the login has, and which rows of the panel hold instances.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use billing_jobs::{hold::Reason, panel::Panel};
use billing_scheduler::{Clock as _, StoreClock, SystemClock};
use billing_store::{
    GRANTS_PAGE,
    audit_log::{ChainCheck, verify},
    begin_command, query_fleet, query_one, with_help,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};

use super::{Finding, Verdict, rights};
use crate::{
    holds::advice,
    panel_database::PanelDatabase,
    status::{Expected, HoldSummary, Liveness, Status, panel_presence::PanelPresence, wrong_clock},
};
use billing_store::{Database, Pool};

/// The time that a transaction of billing may take when the server is busy.
const LONGEST_BATCH: Duration = Duration::from_mins(1);
/// The time that a statement of a report may take.
const LONGEST_REPORT: Duration = Duration::from_mins(10);

/// Checks the database; returns the findings, and the status if it could be read.
pub(crate) async fn examine(database: &Database, expected: &Expected) -> (Vec<Finding>, Option<Status>) {
    let mut findings = Vec::new();
    let before = Instant::now();
    let db = match database.connect(Pool::Shared).await {
        Ok(db) => db,
        Err(error) => {
            let advice = "check that the server runs, that URL and password are correct, and that pg_hba.conf allows \
                          this host";
            findings.push(Finding::fail("database", error.to_string(), advice));
            return (findings, None);
        }
    };
    let took = before.elapsed().as_millis();
    findings.push(Finding::ok("database", format!("{} answers in {took} ms", database.url())));
    if let Err(error) = migration::check(&db).await {
        let advice = format!(
            "run `billing-daemon migrate up` with the login that owns the panel's tables ({GRANTS_PAGE})"
        );
        findings.push(Finding::fail("schema", error.to_string(), advice));
        return (findings, None);
    }
    findings.push(Finding::ok("schema", "matches this program"));
    match rest(db, expected, &mut findings).await {
        Ok(status) => (findings, Some(status)),
        Err(message) => {
            findings.push(Finding::fail(
                "queries",
                message,
                format!("grant missing rights ({GRANTS_PAGE}), then run this again"),
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
    let text = |error: DbErr| with_help(&error);
    let panel = Panel::detect(&db).await.map_err(text)?;
    let opened = PanelDatabase { db, panel };
    findings.push(clock(&opened).await.map_err(text)?);
    findings.extend(transaction_timeout(&opened.db).await.map_err(text)?);
    // A daemon without a billing job does not need the rights of billing.
    let bills = expected.has_billing().unwrap_or(true);
    let rights = rights::examine(&opened.db, bills, expected.has_prepaid()).await.map_err(text)?;
    let may_write = rights.iter().all(|finding| finding.verdict != Verdict::Fail);
    findings.extend(rights);
    if bills && panel.row_security && may_write {
        findings.push(row_security(&opened.db).await.map_err(text)?);
    }
    if bills {
        for check in ROW_CHECKS.into_iter().chain([invalid_times(opened.db.get_database_backend())]) {
            findings.push(count_rows(&opened.db, check).await.map_err(text)?);
        }
    }
    findings.push(audit_log(&opened.db).await.map_err(text)?);
    let presence = PanelPresence::detect(&opened).await.map_err(|failure| failure.message)?;
    findings.push(match presence.ensure_may_charge(expected.panel_billing) {
        Ok(()) => Finding::ok("panel", presence.to_string()),
        Err(_) if !bills => Finding::ok("panel", format!("{presence}; no billing job is configured")),
        Err(failure) => Finding::of_failure("panel", failure),
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
    let clock = StoreClock::new(Arc::new(SystemClock));
    let sent = clock.monotonic();
    let correction = clock.observe(sent, opened.now().await?);
    Ok(match correction.and_then(wrong_clock) {
        None => {
            let shown = clock.offset().unwrap_or_default().abs().as_seconds_f64();
            Finding::ok("clocks", format!("the database's clock differs from the host's by {shown:.1} s"))
        }
        Some(wrong) => Finding::warn(
            "clocks",
            format!("the clock of this host is {wrong} the database's"),
            "daemons follow the database's clock: synchronize both with NTP",
        ),
    })
}

/// PostgreSQL 17 can end every transaction after a time. Each transaction of the daemon replaces the other limits of its role.
async fn transaction_timeout(db: &DatabaseConnection) -> Result<Option<Finding>, DbErr> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Ok(None);
    }
    let sql = "SELECT setting::bigint AS ms FROM pg_settings WHERE name = 'transaction_timeout'";
    let row = query_one(db, Statement::from_string(DbBackend::Postgres, sql)).await?;
    let ms: Option<i64> = row.map(|row| row.try_get("", "ms")).transpose()?;
    Ok(ms.and_then(|ms| check_transaction_timeout(Duration::from_millis(ms.unsigned_abs()))))
}

fn check_transaction_timeout(limit: Duration) -> Option<Finding> {
    if limit.is_zero() || limit >= LONGEST_REPORT {
        return None;
    }
    let message = format!("the server ends every transaction of this login after {} ms", limit.as_millis());
    let advice = "ALTER ROLE ... SET transaction_timeout = 0: each transaction of the daemon has limits";
    let verdict = if limit < LONGEST_BATCH { Verdict::Fail } else { Verdict::Warn };
    Some(Finding { verdict, ..Finding::warn("transaction_timeout", message, advice) })
}

/// A write that row-level security forbids changes nothing and fails without an error, so this tries one and rolls it back.
async fn row_security(db: &DatabaseConnection) -> Result<Finding, DbErr> {
    let txn = begin_command(db).await?;
    txn.execute_unprepared("SET LOCAL app.current_user_is_admin = 'true'").await?;
    let sql = "SELECT (SELECT count(*) FROM (SELECT FROM wallets LIMIT 1) w) AS seen,
                      (SELECT count(*) FROM (SELECT FROM wallets ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) w) AS locked,
                      (SELECT count(*) FROM (SELECT FROM wallets ORDER BY id LIMIT 1 FOR KEY SHARE) w) AS writable";
    let row = txn.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    txn.rollback().await?;
    let count = |column: &str| row.as_ref().map_or(Ok(0), |row| row.try_get::<i64>("", column));
    let (seen, writable) = (count("seen")?, count("writable")?.max(count("locked")?));
    if seen == 0 || writable > 0 {
        return Ok(Finding::ok("row-level security", "allows this login to change wallets"));
    }
    Ok(Finding::fail(
        "row-level security",
        "this login can read wallets but not change them",
        "as the tables' owner: CREATE POLICY billing_run_wallets ON wallets FOR UPDATE TO billing_run USING (true);",
    ))
}

/// A count of the panel's rows that hold instances.
struct RowCheck {
    check: &'static str,
    count: &'static str,
    what: &'static str,
    /// Why their instances are held.
    reason: Reason,
}

const ROW_CHECKS: [RowCheck; 4] = [
    RowCheck {
        check: "duplicate wallets",
        count: "SELECT count(*) AS n FROM (SELECT organization_id FROM wallets GROUP BY organization_id
                                            HAVING count(*) > 1) AS several",
        what: "organizations with several wallets",
        reason: Reason::DuplicateWallets,
    },
    RowCheck {
        check: "missing wallets",
        count: "SELECT count(*) AS n FROM vps_instances i
                  LEFT JOIN (SELECT DISTINCT organization_id FROM wallets) AS w ON w.organization_id = i.organization_id
                 WHERE w.organization_id IS NULL",
        what: "instances of organizations without a wallet",
        reason: Reason::NoWallet,
    },
    RowCheck {
        check: "unknown plans",
        count: "SELECT count(*) AS n FROM vps_instances i
                  LEFT JOIN (SELECT CAST(id AS text) AS name FROM vps_plans
                             UNION SELECT provider_plan_id FROM vps_plans) AS p ON p.name = i.plan_id
                 WHERE p.name IS NULL",
        what: "instances on a plan that does not exist",
        reason: Reason::UnknownPlan,
    },
    RowCheck {
        check: "missing prices",
        count: "SELECT count(*) AS n FROM vps_instances i
                  JOIN (SELECT CAST(id AS text) AS name FROM vps_plans WHERE base_price IS NULL
                        UNION SELECT provider_plan_id FROM vps_plans WHERE base_price IS NULL) AS p ON p.name = i.plan_id",
        what: "instances on a plan without a price",
        reason: Reason::NoPrice,
    },
];

/// Counts the instances that a run would hold because of their times.
fn invalid_times(backend: DbBackend) -> RowCheck {
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
    RowCheck {
        check: "invalid times",
        count,
        what: "instances with a `last_billed_at` or `created_at` that is not plausible",
        reason: Reason::InvalidTime,
    }
}

async fn count_rows(db: &DatabaseConnection, check: RowCheck) -> Result<Finding, DbErr> {
    let rows = query_fleet(db, Statement::from_string(db.get_database_backend(), check.count)).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get("", "n"))?;
    let message = format!("{}: {count}", check.what);
    Ok(if count == 0 {
        Finding::ok(check.check, message)
    } else {
        Finding::warn(check.check, message, advice(check.reason.as_str()))
    })
}

/// Checks that no row of the audit log was changed or removed.
async fn audit_log(db: &DatabaseConnection) -> Result<Finding, DbErr> {
    let ChainCheck { rows, broken } = verify(db).await?;
    Ok(match broken {
        None => Finding::ok("audit log", format!("{rows} rows, unchanged")),
        Some(id) => Finding::fail(
            "audit log",
            format!("row {id} of scheduler_audit_log was changed, or the row before it was removed"),
            "compare it with a backup; the change needed the rights of the tables' owner",
        ),
    })
}

/// Holds that need an operator: neither accepted nor caused by an insufficient balance.
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

/// Checks that no job waits because a clock was ahead.
fn schedules(status: &Status) -> Finding {
    let waits = status.problems.iter().filter(|problem| problem.kind == "job_ahead");
    let waits: Vec<&str> = waits.map(|problem| problem.message.as_str()).collect();
    if waits.is_empty() {
        return Finding::ok("schedules", "no job waits because a clock was ahead");
    }
    let advice = "synchronize the clocks first; then reset each job, or wait";
    Finding::warn("schedules", waits.join("; "), advice)
}

fn daemons(status: &Status) -> Finding {
    let there = status.daemons.iter().filter(|daemon| daemon.liveness.is_alive()).count();
    let dead = status.daemons.iter().filter(|daemon| daemon.liveness == Liveness::Dead).count();
    let message = format!("{there} alive, {dead} dead");
    if there > 0 && dead == 0 {
        Finding::ok("daemons", message)
    } else {
        Finding::warn("daemons", message, "start one with `billing-daemon run`; see `billing-daemon status`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_transaction_timeout_is_reported() {
        for (limit, verdict) in [
            (Duration::ZERO, None),
            (Duration::from_secs(5), Some(Verdict::Fail)),
            (LONGEST_BATCH, Some(Verdict::Warn)),
            (LONGEST_REPORT, None),
        ] {
            assert_eq!(check_transaction_timeout(limit).map(|finding| finding.verdict), verdict, "{limit:?}");
        }
    }
}
