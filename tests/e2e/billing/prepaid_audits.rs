//! The audit of the prepaid policy: every way to tamper with standings, notices, events and deliveries is reported.

use billing_jobs::{audit::audit, prepaid::Mode};
use billing_test_support::{Db, Fleet};
use sea_orm::DbBackend;

use super::{audits::broken, number, prepaid_deliveries::params, prepaid_enforced::World};

/// The tables of the policy, in the order in which their rows refer to each other.
const TABLES: [&str; 4] = ["billing_standings", "billing_notices", "billing_events", "billing_deliveries"];

/// The rows, to restore them after each case.
struct Snapshot {
    restore: String,
}

impl Snapshot {
    /// Copies the rows, and removes what protects them.
    async fn of(db: &Db) -> Self {
        let (lift, without_keys, with_keys) = match db.backend() {
            DbBackend::Sqlite => (
                "DROP TRIGGER billing_events_no_update".to_owned(),
                "PRAGMA foreign_keys = OFF",
                "PRAGMA foreign_keys = ON",
            ),
            _ => (
                "DROP TRIGGER billing_events_append_only ON billing_events;
                 ALTER TABLE billing_notices DROP CONSTRAINT billing_notices_pkey;
                 DO $$ DECLARE name text; BEGIN
                     FOR name IN SELECT conname FROM pg_constraint
                                  WHERE conrelid = 'billing_standings'::regclass AND contype = 'c' LOOP
                         EXECUTE format('ALTER TABLE billing_standings DROP CONSTRAINT %I', name);
                     END LOOP;
                 END $$"
                    .to_owned(),
                "SET session_replication_role = replica",
                "RESET session_replication_role",
            ),
        };
        db.execute(&lift).await;
        for table in TABLES {
            db.execute(&format!("CREATE TABLE saved_{table} AS SELECT * FROM {table}")).await;
        }
        let rows = TABLES
            .map(|table| format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved_{table};"));
        Self { restore: format!("{without_keys}; {} {with_keys}", rows.concat()) }
    }
}

/// What tampers with a customer who is suspended, and the invariants that it breaks.
fn tamperings(db: &Db) -> Vec<(String, &'static [&'static str])> {
    let sqlite = db.backend() == DbBackend::Sqlite;
    let hours = |hours: i64| {
        if sqlite { (hours * 3_600_000_000).to_string() } else { format!("interval '{hours} hours'") }
    };
    let standing = |set: &str| {
        // A program that is not this one may have a connection without constraints.
        let set = format!("UPDATE billing_standings SET {set}");
        if sqlite {
            format!("PRAGMA ignore_check_constraints = ON; {set}; PRAGMA ignore_check_constraints = OFF")
        } else {
            set
        }
    };
    let notices = |set: &str| format!("UPDATE billing_notices SET {set}");
    let delete = |table: &str, condition: &str| format!("DELETE FROM {table} WHERE {condition}");
    let facts: &[&str] = &["standing_facts"];
    let unwarned: &[&str] = &["suspension_without_notices"];
    let order = "type = 'billing.service.suspend'";
    let mut cases: Vec<(String, &[&str])> = vec![
        (notices("delivered_at = NULL"), unwarned),
        (notices("delivered_at = NULL WHERE level <> 0"), unwarned),
        (notices(&format!("delivered_at = delivered_at + {}", hours(21))), unwarned),
        (
            notices(&format!(
                "delivered_at = (SELECT since FROM billing_standings) - {} WHERE event_id IS NOT NULL",
                hours(5)
            )),
            unwarned,
        ),
        (notices("episode = 1"), unwarned),
        (standing("order_number = order_number + 1"), &["order_without_event"]),
        (standing("acked_order = order_number + 1"), &["acknowledged_order"]),
        (standing("burn = NULL"), facts),
        (standing("state = 'unknown', desired = 'running'"), &["order_without_event", "standing_facts"]),
        (standing("desired = 'running'"), &["order_without_event", "standing_facts"]),
        (standing("state = 'low'"), facts),
        (standing("watched = false"), facts),
        (
            standing("state = 'low', desired = 'running', order_number = 0, acked_order = NULL"),
            // Hours are due that the wallet does not cover.
            facts,
        ),
        (
            standing(
                "state = 'exhausted', exhausted_at = since, desired = 'running', order_number = 0, acked_order = NULL, \
                 runway_hours = 1",
            ),
            facts,
        ),
        (
            standing("state = 'ok', desired = 'running', order_number = 0, acked_order = NULL, owed = 0"),
            // No level is reached in state `ok`.
            facts,
        ),
        (delete("billing_deliveries", "endpoint = 'mail'"), &["event_without_delivery"]),
        (
            format!(
                "{}; {}",
                delete(
                    "billing_deliveries",
                    &format!("event_id IN (SELECT id FROM billing_events WHERE {order})")
                ),
                delete("billing_events", order)
            ),
            &["order_without_event"],
        ),
        (notices("event_id = NULL, delivered_at = NULL WHERE level = 1"), &["notice_twice"]),
        (delete("billing_notices", "level = -1"), &["notice_twice"]),
    ];
    if !sqlite {
        cases.push((
            "INSERT INTO billing_notices SELECT * FROM billing_notices WHERE level = 0".to_owned(),
            &["notice_twice"],
        ));
    }
    cases
}

async fn audit_finds_tampering_with_policy(db: &Db) {
    let world = World::new(db, &params(Mode::Enforce)).await;
    world.live(1..=26).await;
    assert_eq!(number(db, "SELECT count(*) FROM billing_standings WHERE state = 'suspended'").await, 1);
    let connection = &world.checker.daemon.db;
    assert_eq!(broken(connection).await, [""; 0]);
    let snapshot = Snapshot::of(db).await;
    for (tampering, expected) in tamperings(db) {
        db.execute(&tampering).await;
        assert_eq!(broken(connection).await, expected, "{tampering}");
        db.execute(&snapshot.restore).await;
    }
    assert_eq!(broken(connection).await, [""; 0]);
}

/// In every state of the policy, also right after the commands of an operator, nothing is reported.
async fn legal_standings_break_no_invariant(db: &Db) {
    let world = World::new(db, &params(Mode::Enforce)).await;
    let connection = world.checker.daemon.db.clone();
    let fleet = Fleet::new(db);
    let sound = async |when: &str| {
        let audit = audit(&connection).await.expect("the audit runs");
        let of_policy = audit.violations.iter().filter(|violation| {
            // A balance that a test sets has no row in the wallet ledger.
            violation.check != "wallet_balance"
        });
        assert_eq!(of_policy.collect::<Vec<_>>(), [] as [&billing_jobs::audit::Violation; 0], "{when}");
    };
    for hours in 1..=26 {
        world.live(hours..=hours).await;
        if [1, 2, 20, 26].contains(&hours) {
            sound(&format!("after {hours} hours")).await;
        }
    }
    let org = world.org;
    db.execute(&format!("UPDATE wallets SET balance = NULL WHERE organization_id = '{org}'")).await;
    world.checker.check(60 * 26 + 5).await;
    sound("unknown").await;
    let now = Some(super::minute(60 * 26 + 6).timestamp_micros());
    world.checker.prepaid.reconcile("ada", now).await.expect("reconciled");
    sound("reconciled while a fact is unknown").await;
    db.execute(&format!("UPDATE wallets SET balance = 0 WHERE organization_id = '{org}'")).await;
    world.checker.prepaid.reconcile("ada", now.map(|now| now + 1)).await.expect("reconciled");
    sound("reconciled before the next check").await;
    fleet.top_up(org, "50.00").await;
    world.checker.check(60 * 26 + 7).await;
    sound("resumed").await;
}

billing_test_support::on_every_engine!(audit_finds_tampering_with_policy, legal_standings_break_no_invariant,);
