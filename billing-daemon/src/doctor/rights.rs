//! Compares the rights of the login with those that billing needs, which `docs/operate/roles.md` lists as well.

use billing_store::{GRANTS_PAGE, query_all, query_one, statement};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, Statement};

use super::{Finding, Verdict};

/// Table, privileges, and their columns; all columns if none is named.
type Right = (&'static str, &'static str, &'static [&'static str]);

/// The role that may write what applies to a single customer.
const ADJUST: &str = "billing_adjust";

/// What that role needs.
const NEEDED_TO_ADJUST: [Right; 4] = [
    ("organizations", "SELECT", &[]),
    ("billing_migrations", "SELECT", &[]),
    ("billing_policies", "SELECT, INSERT, UPDATE", &[]),
    ("scheduler_audit_log", "SELECT, INSERT", &[]),
];

/// The rights without which the login of the daemon cannot bill.
const NEEDED: [Right; 39] = [
    ("organizations", "SELECT", &[]),
    ("wallets", "SELECT", &[]),
    ("wallets", "UPDATE", &["balance", "updated_at"]),
    ("vps_plans", "SELECT", &[]),
    ("vps_instances", "SELECT", &[]),
    ("vps_instances", "UPDATE", &["last_billed_at", "updated_at"]),
    ("payment_transactions", "SELECT", &[]),
    (
        "payment_transactions",
        "INSERT",
        &[
            "id",
            "organization_id",
            "amount",
            "currency",
            "payment_method",
            "payment_provider",
            "status",
            "description",
            "metadata",
            "created_at",
        ],
    ),
    ("vps_billing_cycles", "SELECT", &[]),
    (
        "vps_billing_cycles",
        "INSERT",
        &[
            "id",
            "vps_instance_id",
            "organization_id",
            "billing_period_start",
            "billing_period_end",
            "hourly_rate",
            "total_amount",
            "status",
            "payment_transaction_id",
            "metadata",
        ],
    ),
    ("billing_daemon_status", "SELECT, INSERT, UPDATE, DELETE", &[]),
    ("billing_migrations", "SELECT", &[]),
    ("scheduler_jobs", "SELECT", &[]),
    ("scheduler_jobs", "INSERT", &[]),
    ("scheduler_jobs", "UPDATE", &[]),
    ("scheduler_fencing", "SELECT", &[]),
    ("scheduler_fencing", "INSERT", &[]),
    ("scheduler_fencing", "UPDATE", &[]),
    ("scheduler_runs", "SELECT", &[]),
    ("scheduler_runs", "INSERT", &[]),
    ("scheduler_pauses", "SELECT, INSERT, UPDATE, DELETE", &[]),
    ("scheduler_requests", "SELECT, INSERT, UPDATE, DELETE", &[]),
    ("scheduler_queue", "SELECT, INSERT, UPDATE, DELETE", &[]),
    ("billing_batches", "SELECT", &[]),
    ("billing_batches", "INSERT", &[]),
    ("billing_charges", "SELECT", &[]),
    ("billing_charges", "INSERT", &[]),
    ("billing_meters", "SELECT, INSERT, UPDATE", &[]),
    ("billing_holds", "SELECT, INSERT, UPDATE", &[]),
    ("billing_standings", "SELECT, INSERT, UPDATE", &[]),
    ("billing_notices", "SELECT, INSERT, UPDATE", &[]),
    ("billing_events", "SELECT, INSERT, DELETE", &[]),
    ("billing_deliveries", "SELECT, INSERT, UPDATE, DELETE", &[]),
    ("billing_policies", "SELECT", &[]),
    ("users", "SELECT", &["id", "email", "name"]),
    ("scheduler_audit_log", "SELECT, INSERT", &[]),
    ("billing_seen_rates", "SELECT, INSERT", &[]),
    ("billing_wallet_openings", "SELECT", &[]),
    ("billing_wallet_openings", "INSERT", &[]),
];

/// Whether a daemon without a billing job needs the table as well.
fn is_of_scheduler(table: &str) -> bool {
    table.starts_with("scheduler_") || ["billing_daemon_status", "billing_migrations"].contains(&table)
}

/// Checks each right and returns the GRANT for a missing one; checks those of billing and of the prepaid policy only if the daemon has
/// their jobs.
pub(super) async fn examine(
    db: &DatabaseConnection,
    bills: bool,
    has_prepaid: bool,
) -> Result<Vec<Finding>, DbErr> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Ok(vec![Finding::ok("rights", "SQLite has no logins: write access to the file is enough")]);
    }
    let sql =
        "SELECT current_user::text AS login, EXISTS (SELECT FROM pg_roles WHERE rolname = $1) AS may_adjust";
    let row = query_one(db, statement(db, sql, [ADJUST.into()])).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the login".to_owned()))?;
    let login: String = row.try_get("", "login")?;
    let needed = NEEDED.into_iter().filter(|(table, ..)| bills || is_of_scheduler(table));
    let mut findings = rights(db, &login, needed).await?;
    if has_prepaid {
        if row.try_get("", "may_adjust")? {
            let of_role = rights(db, ADJUST, NEEDED_TO_ADJUST).await?;
            // Without them, the daemon works and `policy set` does not.
            findings.extend(of_role.into_iter().map(|finding| {
                let verdict = finding.verdict.min(Verdict::Warn);
                Finding { check: format!("{ADJUST}: {}", finding.check), verdict, ..finding }
            }));
        } else {
            findings.push(Finding::warn(
                ADJUST,
                "this role does not exist, so `policy set` has no login",
                format!("create it: {GRANTS_PAGE} lists its GRANTs"),
            ));
        }
    }
    findings.push(owner(db).await?);
    Ok(findings)
}

/// A finding for each right of `role`.
async fn rights(
    db: &DatabaseConnection,
    role: &str,
    needed: impl IntoIterator<Item = Right>,
) -> Result<Vec<Finding>, DbErr> {
    let mut findings = Vec::new();
    for (table, privileges, columns) in needed {
        for privilege in privileges.split(", ") {
            findings.push(right(db, role, table, privilege, columns).await?);
        }
    }
    Ok(findings)
}

async fn right(
    db: &DatabaseConnection,
    role: &str,
    table: &str,
    privilege: &str,
    columns: &[&str],
) -> Result<Finding, DbErr> {
    let allowed = if columns.is_empty() {
        "has_table_privilege($3::name, c.oid, $2)".to_owned()
    } else {
        let each =
            columns.iter().map(|column| format!("has_column_privilege($3::name, c.oid, '{column}', $2)"));
        each.collect::<Vec<_>>().join(" AND ")
    };
    let sql = format!(
        "SELECT coalesce((SELECT {allowed} FROM pg_class c WHERE c.oid = to_regclass($1)), false) AS allowed,
                quote_ident($3) AS login"
    );
    let row = query_one(db, statement(db, &sql, [table.into(), privilege.into(), role.into()])).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the catalog returned no row".to_owned()))?;
    let check = format!("{privilege} on {table}");
    if row.try_get("", "allowed")? {
        return Ok(Finding::ok(check, "granted"));
    }
    let login: String = row.try_get("", "login")?;
    let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    Ok(Finding::fail(
        check,
        format!("{login} lacks this right"),
        format!(
            "as the tables' owner: GRANT {privilege}{columns} ON {table} TO {login}; -- all of them: {GRANTS_PAGE}"
        ),
    ))
}

/// More rights than needed work, but they make a stolen password more dangerous.
async fn owner(db: &DatabaseConnection) -> Result<Finding, DbErr> {
    let sql = "SELECT r.rolsuper AS super, pg_has_role(t.relowner, 'MEMBER') AS owner
                 FROM pg_roles r, pg_class t
                WHERE r.rolname = current_user AND t.oid = to_regclass('payment_transactions')";
    let rows = query_all(db, Statement::from_string(DbBackend::Postgres, sql)).await?;
    let any = |column: &str| rows.iter().any(|row| row.try_get("", column).unwrap_or(false));
    let who = match (any("super"), any("owner")) {
        (true, _) => "a superuser",
        (false, true) => "the owner of the panel's tables",
        (false, false) => {
            return Ok(Finding::ok("too many rights", "this login owns no table of the panel"));
        }
    };
    Ok(Finding::warn(
        "too many rights",
        format!("this login is {who}, which can rewrite the ledger and drop the panel guard"),
        format!("use a separate login for the daemon: {GRANTS_PAGE} lists its GRANTs"),
    ))
}
