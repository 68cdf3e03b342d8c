//! The panel guard inside the database: triggers that the unmodified panel cannot bypass.
//!
//! The one on the wallets' ledger decides about the panel's debits, by their method, provider and description (`ledger_guard.sql`). It acts
//! with the rights of the ledger's owner, so the panel's login needs none on our tables. The one on the wallets notes what a balance
//! was until the transaction that writes it ends (`balance_guard.sql`).
//!
//! Their definitions name no column, so that the panel's migrations may alter every one: see `ledger_guard.sql`.

use std::fmt;

use billing_store::{StatementLimit, Transaction};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr};
use serde_json::json;

use crate::{BILLING_JOB, daemon_status::alive};
use billing_store::{
    audit_log::{self, AuditEvent},
    begin_command, begin_read, statement,
};

/// The function of the trigger on the ledger.
const BODY: &str = include_str!("ledger_guard.sql");
/// The function of the trigger on the wallets.
const BALANCE_BODY: &str = include_str!("balance_guard.sql");

/// The owner of the ledger, whether this login may act for it, and the names of the tables.
const TARGET: &str = "
    SELECT quote_ident(r.rolname) AS owner, pg_has_role(r.oid, 'MEMBER') AS may_act,
           quote_ident(current_user::text) AS login, format('%I.%I', n.nspname, t.relname) AS ledger,
           (SELECT format('%I.%I', n.nspname, w.relname) FROM pg_class w JOIN pg_namespace n ON n.oid = w.relnamespace
             WHERE w.oid = to_regclass('wallets')) AS wallets, quote_ident(o.nspname) AS schema,
           CASE WHEN n.oid = o.oid THEN quote_ident(o.nspname)
                ELSE quote_ident(o.nspname) || ', ' || quote_ident(n.nspname) END AS path
      FROM pg_class t
      JOIN pg_namespace n ON n.oid = t.relnamespace
      JOIN pg_roles r ON r.oid = t.relowner
      JOIN pg_class c ON c.oid = to_regclass('billing_charges')
      JOIN pg_namespace o ON o.oid = c.relnamespace
     WHERE t.oid = to_regclass('payment_transactions') AND to_regclass('wallets') IS NOT NULL";

/// The rights that the panel guard needs, or without $1 only its removal and the entry in the audit log, and that the current role
/// lacks, as statements for the owner. Functions of the panel guard have another owner if the ledger changed its owner since.
const LACKING: &str = "
    SELECT format('GRANT %s ON %s TO %I', string_agg(privilege, ', '), relation::regclass, current_user) AS wanted
      FROM (VALUES ('scheduler_fencing', 'SELECT'), ('scheduler_fencing', 'INSERT'), ('scheduler_fencing', 'UPDATE'),
                   ('scheduler_jobs', 'SELECT'), ('billing_batches', 'SELECT'), ('billing_batches', 'INSERT'),
                   ('billing_charges', 'INSERT'), ('billing_meters', 'SELECT'), ('billing_meters', 'INSERT'),
                   ('billing_meters', 'UPDATE'), ('vps_instances', 'SELECT'), ('vps_instances', 'UPDATE'),
                   ('scheduler_audit_log', 'SELECT'), ('scheduler_audit_log', 'INSERT'))
             AS needed (relation, privilege)
     WHERE NOT has_table_privilege(relation::regclass, privilege) AND ($1 OR relation = 'scheduler_audit_log')
     GROUP BY relation
    UNION ALL
    SELECT format('GRANT CREATE, USAGE ON SCHEMA %I TO %I', n.nspname, current_user)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE $1 AND c.oid = to_regclass('billing_charges') AND NOT has_schema_privilege(n.oid, 'CREATE')
    UNION ALL
    SELECT format('ALTER TABLE %s OWNER TO %I', w.oid::regclass, current_user)
      FROM pg_class w WHERE w.oid = to_regclass('wallets') AND NOT pg_has_role(w.relowner, 'USAGE')
    UNION ALL
    SELECT format('ALTER FUNCTION %s OWNER TO %I', p.oid::regprocedure, current_user)
      FROM pg_proc p JOIN pg_class c ON c.relnamespace = p.pronamespace
     WHERE c.oid = to_regclass('billing_charges') AND p.proname IN ('billing_panel_guard', 'billing_panel_guard_balance')
       AND p.pronargs = 0 AND NOT pg_has_role(p.proowner, 'USAGE')
     ORDER BY wanted";

/// A query of one row: the triggers as the catalog has them, compared with what they should be. 7 is BEFORE INSERT and 19 BEFORE
/// UPDATE, each FOR EACH ROW; a condition or a list of columns could let a debit through.
fn status_sql() -> String {
    let (body, balance_body) = (audit_log::fingerprint(BODY), audit_log::fingerprint(BALANCE_BODY));
    format!("
    SELECT coalesce(bool_or(t.oid IS NOT NULL AND g.decides), false) AS installed,
           coalesce(bool_and(t.tgenabled IN ('O', 'A')), false) AS enabled,
           coalesce(bool_and(t.tgenabled IN ('O', 'A') AND t.tgtype = g.fires AND t.tgqual IS NULL
                             AND t.tgattr = ''::int2vector AND p.prosecdef = g.decides
                             AND encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex') = g.body), false)
             AND bool_and(t.oid IS NOT NULL) AS effective,
           coalesce(bool_and(p.proowner = l.relowner AND array_to_string(p.proconfig, ';') LIKE 'search_path=pg_catalog, %')
                        FILTER (WHERE g.decides), false) AS confined
      FROM (VALUES ('payment_transactions', 'billing_panel_guard', true, 7, '{body}'),
                   ('wallets', 'billing_panel_guard_balance', false, 19, '{balance_body}'))
             AS g (relation, name, decides, fires, body)
      LEFT JOIN pg_trigger t
        ON t.tgrelid = to_regclass(g.relation)::oid AND t.tgname = g.name::name AND NOT t.tgisinternal
      LEFT JOIN pg_class l ON l.oid = t.tgrelid
      LEFT JOIN pg_proc p ON p.oid = t.tgfoid")
}

/// An expression: whether both triggers are in place, enabled, and those of this version.
pub(crate) fn is_effective_sql() -> String {
    format!("(SELECT guard.effective FROM ({}) AS guard)", status_sql())
}

/// Why the panel guard cannot be installed, removed or read.
#[derive(Debug, thiserror::Error)]
pub enum PanelGuardError {
    /// SQLite has no logins, and no panel writes to it.
    #[error(
        "the panel guard is for PostgreSQL: on SQLite no panel writes to the database, so there is no built-in biller to hold back"
    )]
    NotPostgres,
    /// One of the tables is not where the connection looks for it.
    #[error(
        "the database has no payment_transactions, no wallets or no billing_charges: run `billing-daemon migrate up` first"
    )]
    NoTables,
    /// The trigger belongs to the ledger's owner.
    #[error(
        "{ledger} belongs to {owner}, which alone can change its triggers: run this as {owner}, or run \
         `GRANT {owner} TO {login}` first"
    )]
    NotOwner {
        /// The wallets' ledger.
        ledger: String,
        /// The owner of the ledger.
        owner: String,
        /// The login of this connection.
        login: String,
    },
    /// The trigger would fail, or the change could not be recorded in the audit log.
    #[error(
        "{owner} lacks rights that this needs: run `{}` as their owner or, for an ALTER, as a superuser, and then this again",
        .grants.join("; ")
    )]
    Rights {
        /// The owner of the ledger.
        owner: String,
        /// The statements that grant them.
        grants: Vec<String>,
    },
    /// Without the panel guard, the panel could charge the hours that a daemon charges.
    #[error(
        "{instance} bills, and without the panel guard the panel could charge the same hours: stop every daemon first, or use `--force`"
    )]
    Billing {
        /// The daemon or command that is alive.
        instance: String,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbErr),
}

/// The state of the panel guard.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate fact about the triggers")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PanelGuardStatus {
    /// Whether the trigger on the ledger exists.
    pub installed: bool,
    /// Whether no trigger of it is disabled.
    pub enabled: bool,
    /// Whether both triggers exist, are enabled, and run the functions of this version: an hourly debit of the panel goes through it.
    pub effective: bool,
    /// Whether it is not the one that this program would install.
    pub outdated: bool,
}

impl fmt::Display for PanelGuardStatus {
    /// One sentence on the state, and what to do about it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self { installed: false, .. } => "the panel guard is off: install it with `billing-daemon guard install`",
            Self { enabled: false, .. } => {
                "the panel guard is installed but disabled: enable it with `billing-daemon guard install`"
            }
            Self { effective: false, .. } => {
                "the panel guard is not the one of this version, so billing cannot rely on it: run `billing-daemon guard install`"
            }
            Self { outdated: true, .. } => {
                "the panel guard is on, but not as this program would install it: run `billing-daemon guard install`"
            }
            _ => "the panel guard is on",
        })
    }
}

/// What [`install`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallReport {
    /// What was there before.
    pub before: PanelGuardStatus,
    /// Whether anything had to be done.
    pub changed: bool,
    /// With whose rights the panel guard acts.
    pub owner: String,
    /// Whether the login of this connection is the owner.
    pub by_owner: bool,
}

/// Installs the panel guard in one transaction, or brings it up to date. A change is logged in the audit log as the work of `by`.
pub async fn install(db: &DatabaseConnection, by: &str) -> Result<InstallReport, PanelGuardError> {
    let (txn, place) = open(db).await?;
    check_rights(&txn, &place, true).await?;
    let row = "INSERT INTO scheduler_fencing (job) VALUES ($1) ON CONFLICT DO NOTHING";
    txn.execute_raw(statement(&txn, row, [BILLING_JOB.into()])).await?;
    let before = read(&txn).await?;
    let changed = before.outdated || !before.effective;
    if changed {
        let now = PanelGuardStatus { installed: true, enabled: true, effective: true, outdated: false };
        audit_log::append(&txn, &entry("guard install", by, before, now)).await?;
        let TriggerTarget { schema, path, ledger, wallets, owner, .. } = &place;
        // The panel waits for as long as this holds its tables: everything else comes before. It locks the wallets first as well.
        let sql = format!(
            "SET LOCAL search_path = pg_catalog, pg_temp;
             CREATE OR REPLACE FUNCTION {schema}.billing_panel_guard() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
                 SET search_path = pg_catalog, {path}, pg_temp AS $billing_panel_guard${BODY}$billing_panel_guard$;
             CREATE OR REPLACE FUNCTION {schema}.billing_panel_guard_balance() RETURNS trigger LANGUAGE plpgsql
                 AS $billing_panel_guard${BALANCE_BODY}$billing_panel_guard$;
             ALTER FUNCTION {schema}.billing_panel_guard() OWNER TO {owner};
             ALTER FUNCTION {schema}.billing_panel_guard_balance() OWNER TO {owner};
             REVOKE ALL ON FUNCTION {schema}.billing_panel_guard(), {schema}.billing_panel_guard_balance() FROM PUBLIC;
             DROP TRIGGER IF EXISTS billing_panel_guard_balance ON {wallets};
             CREATE TRIGGER billing_panel_guard_balance BEFORE UPDATE ON {wallets} FOR EACH ROW
                 EXECUTE FUNCTION {schema}.billing_panel_guard_balance();
             DROP TRIGGER IF EXISTS billing_panel_guard ON {ledger};
             CREATE TRIGGER billing_panel_guard BEFORE INSERT ON {ledger} FOR EACH ROW
                 EXECUTE FUNCTION {schema}.billing_panel_guard()"
        );
        txn.execute_unprepared(&sql).await?;
    }
    txn.commit().await?;
    Ok(InstallReport { before, changed, by_owner: place.owner == place.login, owner: place.owner })
}

fn entry(action: &'static str, by: &str, before: PanelGuardStatus, after: PanelGuardStatus) -> AuditEvent {
    let view = |status: PanelGuardStatus| {
        json!({
            "installed": status.installed,
            "enabled": status.enabled,
            "outdated": status.outdated,
        })
    };
    let details = json!({ "before": view(before), "after": view(after) });
    AuditEvent::new(by, action, BILLING_JOB, details)
}

/// Removes the panel guard, and nothing else, as the work of `by`. Returns whether there was one.
///
/// # Errors
/// Among others, a daemon is alive or a run of billing is in progress. With `force` neither is checked; a daemon that relies on the
/// panel guard then stops billing with its next batch.
pub async fn remove(db: &DatabaseConnection, by: &str, force: bool) -> Result<bool, PanelGuardError> {
    if !force && let Some(instance) = billing_instance(db).await? {
        return Err(PanelGuardError::Billing { instance });
    }
    let (txn, place) = open(db).await?;
    let before = read(&txn).await?;
    if before.installed {
        check_rights(&txn, &place, false).await?;
    }
    let TriggerTarget { schema, ledger, wallets, .. } = place;
    txn.execute_unprepared(&format!(
        "DROP TRIGGER IF EXISTS billing_panel_guard_balance ON {wallets}; DROP TRIGGER IF EXISTS billing_panel_guard ON {ledger};
         DROP FUNCTION IF EXISTS {schema}.billing_panel_guard(), {schema}.billing_panel_guard_balance()"
    ))
    .await?;
    if before.installed {
        audit_log::append(&txn, &entry("guard remove", by, before, PanelGuardStatus::default())).await?;
    }
    txn.commit().await?;
    Ok(before.installed)
}

/// The daemon that is alive, or the holder of the lease of billing, which may be a command.
async fn billing_instance(db: &DatabaseConnection) -> Result<Option<String>, PanelGuardError> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Err(PanelGuardError::NotPostgres);
    }
    let sql =
        "SELECT holder FROM scheduler_jobs WHERE job = $1 AND holder IS NOT NULL AND expires_at > now()";
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    let holder = txn.query_one_raw(statement(&txn, sql, [BILLING_JOB.into()])).await?;
    let holder = holder.map(|row| row.try_get("", "holder")).transpose()?;
    let instance = alive(&txn).await?.or(holder);
    txn.commit().await?;
    Ok(instance)
}

/// The state of the panel guard. There is none on SQLite.
pub async fn status(db: &DatabaseConnection) -> Result<PanelGuardStatus, DbErr> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Ok(PanelGuardStatus::default());
    }
    let txn = begin_read(db, StatementLimit::Fleet).await?;
    let status = read(&txn).await?;
    txn.commit().await?;
    Ok(status)
}

/// Whether the panel guard is effective, queried without a transaction, so that the connection of an application is left as it was.
pub(crate) async fn is_installed(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Ok(false);
    }
    Ok(read(db).await?.effective)
}

/// Checks that the current role has the rights of the panel guard, or only those of the audit log.
async fn check_rights(txn: &Transaction, place: &TriggerTarget, all: bool) -> Result<(), PanelGuardError> {
    let grants = txn.query_all_raw(statement(txn, LACKING, [all.into()])).await?;
    let grants = grants.iter().map(|row| row.try_get("", "wanted")).collect::<Result<Vec<String>, _>>()?;
    if grants.is_empty() {
        Ok(())
    } else {
        Err(PanelGuardError::Rights { owner: place.owner.clone(), grants })
    }
}

async fn read(db: &impl ConnectionTrait) -> Result<PanelGuardStatus, DbErr> {
    let row = db.query_one_raw(statement(db, &status_sql(), [])).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the state of the panel guard".to_owned()))?;
    let is = |column| row.try_get::<bool>("", column);
    let (installed, effective) = (is("installed")?, is("effective")?);
    Ok(PanelGuardStatus {
        installed,
        enabled: installed && is("enabled")?,
        effective,
        outdated: installed && !(effective && is("confined")?),
    })
}

struct TriggerTarget {
    owner: String,
    login: String,
    ledger: String,
    wallets: String,
    /// Where the functions belong.
    schema: String,
    /// Where they find their tables.
    path: String,
}

/// A transaction that acts for the owner of the ledger.
async fn open(db: &DatabaseConnection) -> Result<(Transaction, TriggerTarget), PanelGuardError> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Err(PanelGuardError::NotPostgres);
    }
    let txn = begin_command(db).await?;
    let row = txn.query_one_raw(statement(&txn, TARGET, [])).await?.ok_or(PanelGuardError::NoTables)?;
    let text = |column| row.try_get::<String>("", column);
    let place = TriggerTarget {
        owner: text("owner")?,
        login: text("login")?,
        ledger: text("ledger")?,
        wallets: text("wallets")?,
        schema: text("schema")?,
        path: text("path")?,
    };
    if !row.try_get::<bool>("", "may_act")? {
        let TriggerTarget { owner, login, ledger, .. } = place;
        return Err(PanelGuardError::NotOwner { ledger, owner, login });
    }
    txn.execute_unprepared(&format!("SET LOCAL ROLE {}", place.owner)).await?;
    Ok((txn, place))
}
