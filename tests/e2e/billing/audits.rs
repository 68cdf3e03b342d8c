//! The audit: every way to tamper with the ledger breaks an invariant.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use billing_jobs::{
    AuditJob, AuditParams, Services,
    audit::{audit, audit_until},
    daemon_status::StatusRow,
    panel::Panel,
    restore_detection::RestoreDetection,
};
use billing_scheduler::{Job as _, JobContext, Outcome, StopReason, SystemClock};
use billing_test_support::{Db, Fleet, Instance, Plan, on_variants};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};
use serde_json::json;
use uuid::Uuid;

use super::{CENT, Daemon, TEN_CENTS_AN_HOUR, assert_sound, connect, hour, minute, money, number};

/// The tables that the audit reads and that are tampered with.
const TABLES: [&str; 10] = [
    "wallets",
    "vps_instances",
    "payment_transactions",
    "vps_billing_cycles",
    "billing_charges",
    "billing_meters",
    "billing_holds",
    "billing_batches",
    "billing_wallet_openings",
    "scheduler_runs",
];

/// The rows of the tables, to restore them after each case.
pub(super) struct Snapshot {
    restore: String,
}

impl Snapshot {
    /// Copies the rows, and drops the triggers that protect the charges and the meters.
    pub(super) async fn of(db: &Db) -> Self {
        let (lift, without_keys, with_keys) = match db.backend() {
            DbBackend::Sqlite => (
                "DROP TRIGGER billing_charges_no_update; DROP TRIGGER billing_charges_no_delete;
                 DROP TRIGGER billing_meters_forward; DROP TRIGGER billing_meters_no_delete",
                "PRAGMA foreign_keys = OFF",
                "PRAGMA foreign_keys = ON",
            ),
            _ => (
                "DROP TRIGGER billing_charges_append_only ON billing_charges",
                "SET session_replication_role = replica",
                "RESET session_replication_role",
            ),
        };
        db.execute(lift).await;
        let save =
            TABLES.map(|table| format!("CREATE TABLE saved_{table} AS SELECT * FROM {table};")).concat();
        db.execute(&save).await;
        // A meter does not let earlier hours be charged, so all tables are empty first.
        let delete = TABLES.map(|table| format!("DELETE FROM {table};")).concat();
        let insert = TABLES.map(|table| format!("INSERT INTO {table} SELECT * FROM saved_{table};")).concat();
        Self { restore: format!("{without_keys}; {delete} {insert} {with_keys}") }
    }

    /// Restores the rows.
    pub(super) async fn restore(&self, db: &Db) {
        db.execute(&self.restore).await;
    }
}

/// The change, made before the batches were written.
pub(super) fn before_batches(db: &Db, change: &str) -> String {
    match db.backend() {
        DbBackend::Sqlite => {
            format!("{change}; UPDATE billing_batches SET created_at = created_at + 60000000")
        }
        // PostgreSQL knows the order of the transactions.
        _ => format!("{change}; COMMIT; UPDATE billing_batches SET held = held"),
    }
}

/// One instance that paid two charges, the first of one hour and the second of two, and one that could not pay.
pub(super) struct Books {
    pub(super) paid: Uuid,
    pub(super) unpaid: Uuid,
    /// The organization of the unpaid instance, without money.
    pub(super) poor: Uuid,
}

impl Books {
    pub(super) async fn on(db: &Db) -> Self {
        let fleet = Fleet::new(db);
        let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
        let (rich, poor) = (fleet.wallet("100.00").await, fleet.wallet("0.00").await);
        let paid = fleet.instance(Instance::new(rich, plan, hour(0))).await;
        let unpaid = fleet.instance(Instance::new(poor, plan, hour(0))).await;
        let daemon = Daemon::of(db).await;
        daemon.bill(hour(1)).await;
        daemon.bill(hour(3)).await;
        assert_sound(db).await;
        Self { paid, unpaid, poor }
    }
}

/// A step of a case.
pub(super) enum Step {
    /// Changes rows behind the daemon's back.
    Sql(String),
    /// A run bills every hour that ended this many hours after the start of these tests' time.
    Bill(i64),
    /// An operator adopts the fleet.
    Adopt,
    /// A query results in this number.
    Number(String, i64),
}

impl Step {
    pub(super) async fn take(&self, db: &Db, daemon: &Daemon) {
        match self {
            Self::Sql(sql) => db.execute(sql).await,
            Self::Bill(hours) => drop(daemon.bill(hour(*hours)).await),
            Self::Adopt => drop(daemon.biller().adopt(true, "ada").await.expect("the fleet is adopted")),
            Self::Number(query, expected) => assert_eq!(number(db, query).await, *expected, "{query}"),
        }
    }
}

/// An instant as the tables of the panel have it.
pub(super) fn at(minutes: i64) -> String {
    format!("'{}'", minute(minutes).to_rfc3339())
}

/// A change of the cycles that fulfil a condition.
pub(super) fn cycles(set: &str, condition: &str) -> Step {
    Step::Sql(format!("UPDATE vps_billing_cycles SET {set} WHERE {condition}"))
}

/// The condition for the cycle of the second charge.
pub(super) fn second() -> String {
    format!("billing_period_start >= {}", at(60))
}

/// The statements of the cases.
pub(super) struct Sql<'a> {
    pub(super) db: &'a Db,
    pub(super) books: &'a Books,
}

impl Sql<'_> {
    /// A change of the paid instance.
    pub(super) fn instance(&self, set: &str) -> Step {
        Step::Sql(format!("UPDATE vps_instances SET {set} WHERE id = '{}'", self.books.paid))
    }

    /// A cycle of the paid instance that the panel writes.
    pub(super) fn cycle(&self, from: i64, until: i64, cents: i64, status: &str) -> Step {
        Step::Sql(format!(
            "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                             hourly_rate, total_amount, status)
             SELECT id, organization_id, {}, {}, {cent}, {}, '{status}' FROM vps_instances WHERE id = '{}'",
            at(60 * from),
            at(60 * until),
            money(self.db, cents),
            self.books.paid,
            cent = money(self.db, 10),
        ))
    }

    /// A row in the ledger of the organization that paid.
    pub(super) fn ledger(&self, cents: i64, status: &str) -> Step {
        Step::Sql(format!(
            "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
             SELECT organization_id, {}, 'refund', 'internal', '{status}' FROM wallets WHERE organization_id <> '{}'",
            money(self.db, cents),
            self.books.poor,
        ))
    }

    /// A change of the balance of the organization that paid.
    pub(super) fn balance(&self, cents: i64) -> Step {
        let (cents, poor) = (money(self.db, cents), self.books.poor);
        Step::Sql(format!("UPDATE wallets SET balance = balance + {cents} WHERE organization_id <> '{poor}'"))
    }
}

/// Statements that tamper with the ledger, and the invariants that each breaks.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn tamperings(db: &Db, books: &Books) -> Vec<(String, &'static [&'static str])> {
    let Books { paid, unpaid, poor } = books;
    // On SQLite our tables have integers where the panel's have text.
    let sqlite = db.backend() == DbBackend::Sqlite;
    let panels = |hours| format!("'{}'", hour(hours).to_rfc3339());
    let ours = |hours| if sqlite { hour(hours).timestamp_micros().to_string() } else { panels(hours) };
    let half_an_hour = if sqlite { "1800000000" } else { "interval '30 minutes'" };
    let second_charge =
        |set: &str| format!("UPDATE billing_charges SET {set} WHERE period_start = {}", ours(1));
    let instance = |set: &str| format!("UPDATE vps_instances SET {set} WHERE id = '{paid}'");
    let meter = |set: &str| format!("UPDATE billing_meters SET {set} WHERE instance_id = '{paid}'");
    let ledger = |set: &str| format!("UPDATE payment_transactions SET {set}");
    let cycles = |set: &str| format!("UPDATE vps_billing_cycles SET {set}");
    let wallet = |set: &str| format!("UPDATE wallets SET {set} WHERE organization_id <> '{poor}'");
    let batch = |set: &str| format!("UPDATE billing_batches SET {set} WHERE id = 1");
    let set_json = |column: &str, path: &str| {
        if sqlite {
            format!("json_set({column}, '$.{path}', 99)")
        } else {
            format!("jsonb_set({column}, '{{{}}}', '99')", path.replace('.', ","))
        }
    };
    let details = |path: &str| format!("UPDATE scheduler_runs SET details = {}", set_json("details", path));
    let cent = money(db, 1);
    let cycle = "vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, \
                 total_amount, status";
    let far_future = 1_000 * 365 * 24;
    let mut cases: Vec<(String, &[&str])> = vec![
        (second_charge("carry = carry + 1"), &["charge_arithmetic", "meter_carry"]),
        (second_charge("rate = rate + 1"), &["charge_arithmetic"]),
        (
            second_charge(&format!("amount = amount + {CENT}")),
            &["charge_arithmetic", "charge_in_ledger", "charge_in_cycles", "batch_totals"],
        ),
        (second_charge("hours = hours + 1"), &["charge_arithmetic", "watermark", "batch_totals"]),
        (
            second_charge(&format!("period_start = period_start - {half_an_hour}")),
            &["charges_contiguous", "charge_in_cycles"],
        ),
        (
            second_charge(&format!("period_start = period_start + {half_an_hour}")),
            &["watermark", "charge_in_cycles"],
        ),
        (
            second_charge(&format!("period_start = {}", ours(far_future))),
            &["charges_within_life", "watermark", "charge_in_cycles"],
        ),
        // The other instance has no cycle at all, as after it was restored.
        (second_charge(&format!("instance_id = '{unpaid}'")), &["watermark"]),
        (
            second_charge(&format!("organization_id = '{poor}'")),
            &["charge_in_ledger", "wallet_without_opening"],
        ),
        (second_charge("currency = 'EUR'"), &["charge_in_ledger", "batch_totals"]),
        (second_charge("payment_transaction_id = NULL"), &["charge_in_ledger"]),
        (second_charge("batch_id = 1"), &["batch_totals"]),
        (format!("DELETE FROM billing_charges WHERE period_start = {}", ours(1)), &["batch_totals"]),
        (instance(&format!("created_at = '{}'", minute(30).to_rfc3339())), &["charges_within_life"]),
        (before_batches(db, &instance("last_billed_at = NULL")), &["watermark"]),
        (meter("carry = carry + 1"), &["meter_carry"]),
        (meter(&format!("billed_through = {}", ours(2))), &["watermark"]),
        (before_batches(db, &meter(&format!("billed_through = {}", ours(4)))), &["watermark"]),
        (format!("DELETE FROM billing_meters WHERE instance_id = '{paid}'"), &["charge_without_meter"]),
        (
            ledger(&format!("amount = amount - {cent}")),
            &["charge_in_ledger", "ledger_chain", "wallet_balance"],
        ),
        (ledger(&format!("organization_id = '{poor}'")), &["charge_in_ledger", "wallet_balance"]),
        (ledger("status = 'failed'"), &["wallet_balance"]),
        (ledger(r#"metadata = '{"balance_before": 1, "balance_after": 1}'"#), &["ledger_chain"]),
        (ledger("metadata = NULL"), &["ledger_chain"]),
        (
            format!(
                "INSERT INTO payment_transactions
                     (organization_id, amount, payment_method, payment_provider, status)
                 SELECT organization_id, {cent}, 'paypal', 'paypal', 'completed' FROM wallets"
            ),
            &["wallet_balance"],
        ),
        (
            format!("DELETE FROM vps_billing_cycles WHERE billing_period_start >= {}", panels(1)),
            &["charge_in_cycles"],
        ),
        (cycles("status = 'failed'"), &["charge_in_cycles"]),
        (cycles(&format!("total_amount = total_amount + {cent}")), &["charge_in_cycles"]),
        (
            format!("INSERT INTO vps_billing_cycles ({cycle}) SELECT {cycle} FROM vps_billing_cycles"),
            &["hours_billed_twice"],
        ),
        (wallet(&format!("balance = balance + {cent}")), &["wallet_balance"]),
        (wallet("balance = NULL"), &["wallet_balance"]),
        ("DELETE FROM billing_wallet_openings".to_owned(), &["wallet_without_opening"]),
        (batch("hours = hours + 1"), &["batch_totals", "run_totals"]),
        (
            batch(&format!("currencies = {}", set_json("currencies", "USD.amount"))),
            &["batch_totals", "run_totals"],
        ),
        (batch("charges = charges + 1"), &["batch_totals"]),
        (batch("instances = instances + 1"), &["batch_totals", "run_totals"]),
        ("DELETE FROM billing_batches WHERE id = 1".to_owned(), &["charge_without_batch", "run_totals"]),
        ("UPDATE scheduler_runs SET items = items + 1".to_owned(), &["run_totals"]),
        (details("charged"), &["run_totals"]),
        (details("hours"), &["run_totals"]),
        (details("currencies.USD.amount"), &["run_totals"]),
        (details("currencies.USD.hours"), &["run_totals"]),
        (format!("UPDATE billing_holds SET closed_at = {}", ours(3)), &["due_charged_or_held"]),
        (format!("DELETE FROM billing_holds WHERE instance_id = '{unpaid}'"), &["due_charged_or_held"]),
    ];
    if sqlite {
        cases.extend(cases_without_constraints());
    }
    cases
}

/// What constraints prevent on PostgreSQL only.
fn cases_without_constraints() -> Vec<(String, &'static [&'static str])> {
    let unknown = "00000000-0000-4000-8000-0000000000ff";
    vec![
        (
            // Without their meters.
            "CREATE TABLE metered AS SELECT * FROM billing_meters;
             DELETE FROM billing_meters;
             INSERT INTO billing_charges
             SELECT period_start, instance_id, organization_id, batch_id + 1, hours, rate, amount, carry,
                    payment_transaction_id, currency, by_panel
               FROM billing_charges WHERE batch_id = 1;
             INSERT INTO billing_meters SELECT * FROM metered;
             DROP TABLE metered"
                .to_owned(),
            &["charges_contiguous", "batch_totals"],
        ),
        (
            format!("UPDATE vps_billing_cycles SET payment_transaction_id = '{unknown}'"),
            &["cycle_references"],
        ),
        (
            format!(
                "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                                 hourly_rate, total_amount, status)
                 SELECT '{unknown}', organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount, status
                   FROM vps_billing_cycles LIMIT 1"
            ),
            &["cycle_references"],
        ),
    ]
}

/// The broken invariants, in the order in which they are checked.
pub(super) async fn broken(connection: &DatabaseConnection) -> Vec<String> {
    let audit = audit(connection).await.expect("the audit runs");
    assert!(audit.checked > 0);
    let mut checks: Vec<String> = audit.violations.into_iter().map(|violation| violation.check).collect();
    checks.dedup();
    checks
}

async fn audit_finds_every_kind_of_tampering(db: &Db) {
    let books = Books::on(db).await;
    let snapshot = Snapshot::of(db).await;
    let (_, connection) = connect(&db.url).await;

    for (tampering, expected) in tamperings(db, &books) {
        db.execute(&tampering).await;
        assert_eq!(broken(&connection).await, expected, "{tampering}");
        snapshot.restore(db).await;
    }
    assert_sound(db).await;
}

/// A daemon that is stopped does not finish a running audit.
async fn audit_stops_before_any_step(db: &Db) {
    Books::on(db).await;
    let (_, connection) = connect(&db.url).await;
    let mut steps = 0;
    loop {
        let calls = AtomicUsize::new(0);
        let stop = || calls.fetch_add(1, Relaxed) == steps;
        let ended = audit_until(&connection, stop).await.expect("the audit runs");
        if let Some(audit) = ended {
            assert_eq!(audit.violations, [], "nothing was left behind");
            break;
        }
        assert_eq!(calls.into_inner(), steps + 1, "not a step is taken after that");
        steps += 1;
    }
    // Each invariant, the key of charges, and each page of the record.
    assert!(steps >= 18, "{steps} steps");

    let restores = Arc::new(RestoreDetection::new(connection.clone(), ""));
    let services = Services {
        status: Arc::new(StatusRow::new(connection.clone(), "", "", &json!({}))),
        panel: Panel::detect(&connection).await.expect("a panel"),
        db: connection,
        started: Duration::ZERO,
        billing_interval: Duration::ZERO,
        deliveries: billing_jobs::prepaid::DeliverySettings::default(),
        problems: None,
        needs_guard: false,
        restores,
        clock: Arc::new(SystemClock),
    };
    let job = AuditJob::new(&services, AuditParams {});
    let context = JobContext::for_test("audit", hour(4));
    context.stop_handle().stop(StopReason::Drain);
    let ended = job.run(&context).await.expect("it is no failure");
    assert!(matches!(ended, Outcome::Interrupted { items: 0 }), "{ended:?}");
}

async fn audit_finds_missing_charge_key(db: &Db) {
    Books::on(db).await;
    db.execute(match db.backend() {
        DbBackend::Sqlite => {
            "CREATE TABLE keyless AS SELECT * FROM billing_charges; DROP TABLE billing_charges;
             ALTER TABLE keyless RENAME TO billing_charges"
        }
        _ => "ALTER TABLE billing_charges DROP CONSTRAINT billing_charges_pkey",
    })
    .await;
    assert_eq!(broken(&connect(&db.url).await.1).await, ["unique_key"]);
}

async fn charges_cannot_be_changed_or_deleted(db: &Db) {
    Books::on(db).await;
    // Not even by a role without restrictions.
    for statement in ["UPDATE billing_charges SET amount = 0", "DELETE FROM billing_charges"] {
        let refusal = db.admin().execute_unprepared(statement).await.expect_err(statement).to_string();
        assert!(refusal.contains("billing_charges is append-only"), "{refusal}");
    }
    assert_sound(db).await;
}

on_variants!(audit_finds_every_kind_of_tampering: sqlite, postgres, g1_role);
on_variants!(audit_stops_before_any_step: sqlite, g1_role);
on_variants!(audit_finds_missing_charge_key: sqlite, postgres, g1_role);
on_variants!(charges_cannot_be_changed_or_deleted: sqlite, postgres, g1_role);
