//! Billing end to end: a fleet, a run as the daemon makes it, and the contents of the tables afterwards.

/// Runs each named check on both engines, on each generation of the panel and as both logins, though not on all
/// combinations of these.
macro_rules! on_each_kind {
    ($($check:ident),+ $(,)?) => {$(
        billing_test_support::on_variants!($check: sqlite, g1_owner, g2_role, g3_role);
    )+};
}

mod audits;
mod concurrency;
mod deleted;
mod history;
mod holds;
mod legal_states;
mod money;
mod panel;
mod prepaid;
mod prepaid_audits;
mod prepaid_daemon;
mod prepaid_deliveries;
mod prepaid_enforced;
mod prepaid_killed;
mod prices;
mod resolutions;
mod rule;
mod runs;
mod safeguards;
mod shortage;
mod simulation;
mod spike_guard;
mod sqlite_contention;
mod times;
mod transfers;
mod unreadable;

use std::{fmt::Write, sync::Arc, time::Duration};

use billing_jobs::{
    BILLING_JOB,
    audit::audit,
    billing::{
        BillReport, Biller, BillingError, BillingOptions, BillingSettings, Mode, RunDetails, Scope, Totals,
    },
    currency::Currency,
    panel::Panel,
};
use billing_scheduler::{
    Claim, FencingToken, Lease, RunCause, RunRecord, RunStatus, StopReason, Store, SystemClock,
};
use billing_store::{Database, Pool, SeaOrmStore};
use billing_test_support::{Amount, Db, Fleet, HoldRow};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement};
use uuid::Uuid;

/// Ten-thousandths of the wallet's currency.
const CENT: i64 = 100;

/// The price a month of a plan that costs ten cents an hour: no rounding in any generation.
const TEN_CENTS_AN_HOUR: &str = "73.00";

/// Longer than any test takes: nothing renews the leases here.
const LEASE_TTL: Duration = Duration::from_mins(1);

/// An amount in ten-thousandths.
fn usd(amount: &str) -> i64 {
    Amount::from(amount).0
}

/// What was charged in dollars; nothing was in another currency.
fn in_usd(totals: &Totals) -> i64 {
    assert!(totals.amounts().iter().all(|(currency, _)| currency == Currency::USD), "{totals:?}");
    totals.amounts().of(Currency::USD).0
}

/// `minutes` after the start of these tests' time, which is not a full hour, so that a period that drifts or is rounded is visible.
fn minute(minutes: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2025-03-01T00:17:23.456789Z".parse().expect("an instant");
    start + TimeDelta::minutes(minutes)
}

/// `hours` after the start of these tests' time.
fn hour(hours: i64) -> DateTime<Utc> {
    minute(60 * hours)
}

/// One daemon's view of a database.
struct Daemon {
    db: DatabaseConnection,
    store: SeaOrmStore,
    panel: Panel,
    settings: BillingSettings,
}

/// The options of a run.
struct Order<'a> {
    as_of: DateTime<Utc>,
    approved: Option<Scope>,
    stop: &'a (dyn Fn() -> Option<StopReason> + Sync),
}

impl Order<'_> {
    /// Everything that is due by then, within the limits.
    fn by(as_of: DateTime<Utc>) -> Self {
        Self { as_of, approved: None, stop: &|| None }
    }

    /// Everything that is due by then, with an approval of every hold.
    fn approved_by(as_of: DateTime<Utc>) -> Self {
        Self { approved: Some(Scope { all: true, ..Scope::default() }), ..Self::by(as_of) }
    }
}

impl Daemon {
    /// A daemon with default settings.
    async fn of(db: &Db) -> Self {
        Self::with(db, BillingSettings::default()).await
    }

    async fn with(db: &Db, settings: BillingSettings) -> Self {
        Self::at(&db.url, settings).await
    }

    async fn at(url: &str, settings: BillingSettings) -> Self {
        let (database, connection) = connect(url).await;
        let panel = Panel::detect(&connection).await.expect("the catalog is readable");
        let holder = Uuid::new_v4().to_string();
        let store = SeaOrmStore::new(connection.clone(), database, holder, LEASE_TTL, Arc::new(SystemClock));
        Self { db: connection, store, panel, settings }
    }

    /// A daemon that bills about this many instances in a transaction.
    async fn with_batches_of(db: &Db, batch_instances: u32) -> Self {
        Self::with(
            db,
            BillingSettings { batch_instances: Some(batch_instances), ..BillingSettings::default() },
        )
        .await
    }

    /// Bills every hour that ended by then.
    async fn bill(&self, as_of: DateTime<Utc>) -> Totals {
        self.carry_out(&Order::by(as_of)).await.expect("the run finishes").totals
    }

    /// Bills, where everything that is due is refused: the run is a failure, and what was refused is held.
    async fn refused(&self, as_of: DateTime<Utc>) {
        let error = self.carry_out(&Order::by(as_of)).await.expect_err("everything is refused");
        assert!(matches!(error, BillingError::Refused { .. }), "{error}");
    }

    /// One run from claim to release, with its row in the history, as the scheduler does it.
    async fn carry_out(&self, order: &Order<'_>) -> Result<BillReport, BillingError> {
        let lease = self.claim().await;
        let id = Uuid::now_v7();
        let result = self.run(id, Mode::Commit(lease.fencing_token), order).await;
        if let Ok(BillReport { stopped: None, .. }) = result {
            self.biller().record_success(lease.fencing_token).await.expect("the fencing row is writable");
        }
        self.store.record(Some(&lease), &record(id, &lease, &result), &lease.state).await.expect("recorded");
        self.store.release(&lease).await.expect("released");
        result
    }

    /// The totals of a dry run.
    async fn preview(&self, order: &Order<'_>) -> Totals {
        self.run(Uuid::now_v7(), Mode::DryRun, order).await.expect("a dry run finishes").totals
    }

    /// A run under an earlier claim, without a row in the history.
    async fn bill_under(
        &self,
        fencing_token: FencingToken,
        as_of: DateTime<Utc>,
    ) -> Result<BillReport, BillingError> {
        self.run(Uuid::now_v7(), Mode::Commit(fencing_token), &Order::by(as_of)).await
    }

    async fn claim(&self) -> Lease {
        match self.store.acquire(BILLING_JOB, hour(0)).await {
            Ok(Claim::Held(lease)) => lease,
            other => panic!("billing is not free: {other:?}"),
        }
    }

    fn biller(&self) -> Biller {
        Biller::new(self.db.clone(), self.panel, self.settings)
    }

    async fn run(&self, id: Uuid, mode: Mode, order: &Order<'_>) -> Result<BillReport, BillingError> {
        let run = BillingOptions {
            id,
            mode,
            as_of: Some(order.as_of),
            approved: order.approved.as_ref(),
            lists_beyond_limit: true,
            stop: order.stop,
            progress: &|_| {},
            first_prices: &|_| {},
        };
        self.biller().bill(&run).await
    }
}

/// Connects as the daemon does.
async fn connect(url: &str) -> (Database, DatabaseConnection) {
    let database = Database::new(url.parse().expect("the harness has a valid URL"))
        .with_application_name("billing-daemon");
    let connection = Box::pin(database.connect(Pool::Shared)).await.expect("the daemon connects");
    (database, connection)
}

fn record(id: Uuid, lease: &Lease, result: &Result<BillReport, BillingError>) -> RunRecord {
    let (status, items, details) = match result {
        Ok(bill) if bill.stopped.is_none() => {
            (RunStatus::Done, bill.totals.charged, RunDetails::finished(bill).to_json())
        }
        Ok(bill) => (RunStatus::Interrupted, bill.totals.charged, serde_json::Value::Null),
        Err(_) => (RunStatus::Dead, 0, serde_json::Value::Null),
    };
    let at = lease.state.cursor;
    RunRecord {
        id,
        attempt: 1,
        fencing_token: lease.fencing_token,
        items,
        error: result.as_ref().err().map(ToString::to_string),
        details,
        ..RunRecord::new(BILLING_JOB, at, status, RunCause::Manual, at)
    }
}

/// Asserts that every invariant of the ledger holds, as the daemon sees it.
async fn assert_sound(db: &Db) {
    assert_eq!(audit(&connect(&db.url).await.1).await.expect("the audit runs").violations, []);
}

/// The only hold that the instance ever had; it is open.
async fn hold_of(fleet: &Fleet<'_>, instance: Uuid) -> HoldRow {
    let holds = fleet.holds(instance).await;
    assert!(matches!(&holds[..], [HoldRow { open: true, .. }]), "not one open hold: {holds:?}");
    holds.into_iter().next().expect("there is one")
}

/// The number of charges of an instance, their hours and their amount.
async fn charged(fleet: &Fleet<'_>, instance: Uuid) -> (usize, i64, i64) {
    let charges = fleet.charges(instance).await;
    let hours = charges.iter().map(|charge| charge.hours).sum();
    (charges.len(), hours, charges.iter().map(|charge| charge.amount).sum())
}

/// The one integer that a query returns.
async fn number(db: &Db, query: &str) -> i64 {
    let rows = fetch_rows(db, &format!("SELECT CAST(({query}) AS bigint) AS n")).await;
    let number: Option<i64> = rows[0].try_get("", "n").expect("an integer");
    number.unwrap_or_else(|| panic!("NULL, from {query}"))
}

/// An amount as this database writes it.
fn money(db: &Db, cents: i64) -> String {
    match db.backend() {
        DbBackend::Sqlite => (cents * CENT).to_string(),
        _ => format!("({cents} * 0.01)"),
    }
}

async fn fetch_rows(db: &Db, query: &str) -> Vec<QueryResult> {
    let rows = db.admin().query_all_raw(Statement::from_string(db.backend(), query)).await;
    rows.unwrap_or_else(|error| panic!("{error}, in:\n{query}"))
}

async fn texts(db: &Db, query: &str) -> Vec<String> {
    let rows = fetch_rows(db, query).await;
    rows.iter().map(|row| row.try_get_by_index(0).expect("text")).collect()
}

/// Every row of every table, to see that nothing has changed.
async fn contents(db: &Db) -> String {
    let sqlite = db.backend() == DbBackend::Sqlite;
    let mut contents = String::new();
    for table in texts(db, tables(db)).await {
        let rows = if sqlite {
            let columns = format!(
                "SELECT group_concat('quote(' || name || ')', '||'',''||') FROM pragma_table_info('{table}')"
            );
            let columns = texts(db, &columns).await.remove(0);
            texts(db, &format!("SELECT {columns} FROM {table} ORDER BY 1")).await
        } else {
            texts(db, &format!("SELECT t::text FROM {table} t ORDER BY 1")).await
        };
        writeln!(contents, "{table}:\n{}", rows.join("\n")).expect("a String takes everything");
    }
    contents
}

fn tables(db: &Db) -> &'static str {
    match db.backend() {
        DbBackend::Sqlite => "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1",
        _ => "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
    }
}

/// The action of a trigger.
enum Then<'a> {
    /// Fails the statement with this SQLSTATE (on SQLite: as a broken constraint).
    Refuse(&'static str),
    /// Leaves the row unchanged, without an error.
    Ignore,
    /// Runs another statement.
    Run(&'a str),
}

const REFUSAL: &str = "refused by a trigger of the test";
const CONSTRAINT_VIOLATION: &str = "23000";

/// A trigger of this name, `timing` such as `BEFORE INSERT ON wallets`, for the rows that fulfil `condition`.
async fn trigger(db: &Db, name: &str, timing: &str, condition: &str, then: &Then<'_>) {
    let sql = if db.backend() == DbBackend::Sqlite {
        let action = match then {
            Then::Refuse(_) => format!("SELECT RAISE(ABORT, '{REFUSAL}')"),
            Then::Ignore => "SELECT RAISE(IGNORE)".to_owned(),
            Then::Run(statement) => (*statement).to_owned(),
        };
        // A connection that has not seen a DROP by another one rejects the same name; a separate DROP refreshes it.
        format!(
            "DROP TRIGGER IF EXISTS {name}; CREATE TRIGGER {name} {timing} WHEN {condition} BEGIN {action}; END"
        )
    } else {
        let action = match then {
            Then::Refuse(code) => format!("RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = '{code}'"),
            Then::Ignore => "RETURN NULL".to_owned(),
            Then::Run(statement) => (*statement).to_owned(),
        };
        format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN IF {condition} THEN {action}; END IF; RETURN NEW; END $$;
             CREATE TRIGGER {name} {timing} FOR EACH ROW EXECUTE FUNCTION {name}()"
        )
    };
    db.execute(&sql).await;
}

async fn drop_trigger(db: &Db, name: &str) {
    match db.backend() {
        DbBackend::Sqlite => db.execute(&format!("DROP TRIGGER {name}")).await,
        _ => db.execute(&format!("DROP FUNCTION {name} CASCADE")).await,
    }
}

/// This many instances of one organization on one plan, made at the start of these tests' time.
async fn add_instances(db: &Db, org: Uuid, plan: Uuid, count: u32) {
    let created = hour(0).to_rfc3339();
    let sql = format!(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
         INSERT INTO vps_instances (organization_id, plan_id, provider_instance_id, label, created_at)
         SELECT '{org}', '{plan}', 'provider-' || n, 'vps-' || n, '{created}' FROM numbers"
    );
    db.execute(&sql).await;
}
