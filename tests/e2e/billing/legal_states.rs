//! States that a panel may create: none of them is a violation, before and after the next run.

use billing_test_support::Db;
use sea_orm::DbBackend;

use super::{
    Daemon,
    audits::{Books, Snapshot, Sql, Step, at, broken, cycles, second},
    connect,
};

/// What a panel does, with the runs in between.
fn legal_states(sql: &Sql<'_>) -> Vec<(&'static str, Vec<Step>)> {
    [refunds(sql), rebuilds(sql), restored(sql), unseen(sql), hours_of_the_panel(sql)]
        .into_iter()
        .flatten()
        .collect()
}

fn refunds(sql: &Sql<'_>) -> Vec<(&'static str, Vec<Step>)> {
    let debit =
        || Step::Sql(format!("UPDATE payment_transactions SET status = 'refunded' WHERE {}", second_debit()));
    let count = |status: &str| format!("SELECT count(*) FROM vps_billing_cycles WHERE status = '{status}'");
    vec![
        ("cycles refunded", vec![cycles("status = 'refunded'", "true"), Step::Bill(4)]),
        ("debit refunded to the wallet", vec![debit_and(sql, 20), Step::Bill(4)]),
        ("debit refunded with a separate row", vec![debit(), refund(sql, "completed"), Step::Bill(4)]),
        ("refund with a separate row", vec![refund(sql, "refunded"), Step::Bill(4)]),
        ("debit refunded outside", vec![debit(), Step::Bill(4)]),
        (
            "refunded cycle is not repaired",
            vec![
                cycles("status = 'refunded'", &second()),
                sql.instance(&format!("last_billed_at = {}", at(60))),
                Step::Bill(4),
                Step::Number(count("refunded"), 1),
                Step::Number(count("billed"), 2),
            ],
        ),
    ]
}

fn second_debit() -> String {
    format!("id = (SELECT payment_transaction_id FROM vps_billing_cycles WHERE {})", second())
}

/// The second debit is refunded into the wallet.
fn debit_and(sql: &Sql<'_>, cents: i64) -> Step {
    let (Step::Sql(balance), debit) = (sql.balance(cents), second_debit()) else { unreachable!("it is SQL") };
    Step::Sql(format!("UPDATE payment_transactions SET status = 'refunded' WHERE {debit}; {balance}"))
}

/// The amount of the second debit is paid into the wallet and booked.
fn refund(sql: &Sql<'_>, status: &str) -> Step {
    let (Step::Sql(balance), Step::Sql(ledger)) = (sql.balance(20), sql.ledger(20, status)) else {
        unreachable!("both are SQL")
    };
    Step::Sql(format!("{balance}; {ledger}"))
}

fn rebuilds(sql: &Sql<'_>) -> Vec<(&'static str, Vec<Step>)> {
    let rebuilt = |minutes| sql.instance(&format!("created_at = {}, last_billed_at = NULL", at(minutes)));
    let (poor, unpaid) = (sql.books.poor, sql.books.unpaid);
    let (amount, moved) = (super::money(sql.db, 1_000), at(120));
    vec![
        ("rebuilt after the last run", vec![rebuilt(200), Step::Bill(4), Step::Bill(5)]),
        ("rebuilt between two runs", vec![rebuilt(120), Step::Bill(4)]),
        (
            "rebuilt while it was held",
            vec![
                Step::Sql(format!("UPDATE vps_instances SET created_at = {moved} WHERE id = '{unpaid}'")),
                Step::Sql(format!(
                    "UPDATE wallets SET balance = balance + {amount} WHERE organization_id = '{poor}';
                     INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
                     VALUES ('{poor}', {amount}, 'paypal', 'paypal', 'completed')"
                )),
                Step::Bill(4),
                Step::Number(
                    format!("SELECT sum(hours) FROM billing_charges WHERE instance_id = '{unpaid}'"),
                    4,
                ),
            ],
        ),
    ]
}

/// On PostgreSQL its cycles are deleted together with an instance.
fn restored(sql: &Sql<'_>) -> Vec<(&'static str, Vec<Step>)> {
    let paid = sql.books.paid;
    let delete = || {
        Step::Sql(format!(
            "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT * FROM vps_instances WHERE id = '{paid}';
             DELETE FROM vps_instances WHERE id = '{paid}'"
        ))
    };
    let restore = || Step::Sql("INSERT INTO vps_instances SELECT * FROM kept".to_owned());
    let cycles = if sql.db.backend() == DbBackend::Sqlite { 2 } else { 0 };
    let cycles_after = || Step::Number("SELECT count(*) FROM vps_billing_cycles".to_owned(), cycles);
    let anew = format!("created_at = {}, last_billed_at = {}", at(330), at(330));
    vec![
        ("restored at once", vec![delete(), cycles_after(), restore(), Step::Bill(4), Step::Bill(5)]),
        ("restored after a run", vec![delete(), Step::Bill(5), restore(), Step::Bill(6), Step::Bill(7)]),
        (
            "restored without its anchor",
            vec![delete(), restore(), sql.instance("last_billed_at = NULL"), Step::Bill(5), Step::Bill(6)],
        ),
        (
            "created anew with its id",
            vec![delete(), Step::Bill(4), restore(), sql.instance(&anew), Step::Bill(7), Step::Bill(8)],
        ),
    ]
}

/// No run has seen what the panel has written since.
fn unseen(sql: &Sql<'_>) -> Vec<(&'static str, Vec<Step>)> {
    let paid = sql.books.paid;
    let imported = |created: i64, billed: &str| {
        Step::Sql(format!(
            "INSERT INTO vps_instances (organization_id, plan_id, provider_instance_id, label, created_at, last_billed_at)
             SELECT organization_id, plan_id, 'imported', 'imported', {}, {billed} FROM vps_instances WHERE id = '{paid}'",
            at(created),
        ))
    };
    let just_before = (super::minute(30) - chrono::TimeDelta::milliseconds(900)).to_rfc3339();
    vec![
        ("imported", vec![imported(0, "NULL"), Step::Bill(4)]),
        (
            "imported and billed before its creation",
            vec![
                imported(30, &at(0)),
                Step::Bill(4),
                Step::Number("SELECT max(hours) FROM billing_charges".to_owned(), 3),
            ],
        ),
        (
            "imported and billed just before its creation",
            vec![imported(30, &format!("'{just_before}'")), Step::Bill(4)],
        ),
        (
            "back-dated",
            vec![
                imported(150, "NULL"),
                Step::Bill(3),
                Step::Sql(format!(
                    "UPDATE vps_instances SET created_at = {}, updated_at = {now} WHERE label = 'imported'",
                    at(0),
                    now = now(sql.db),
                )),
                Step::Bill(4),
            ],
        ),
        (
            "anchor moved back",
            vec![
                sql.instance(&format!("last_billed_at = {}, updated_at = {}", at(60), now(sql.db))),
                Step::Bill(4),
            ],
        ),
        (
            "anchor that is not plausible",
            vec![sql.instance("last_billed_at = '1999-12-31T00:00:00+00:00'"), Step::Bill(5)],
        ),
    ]
}

/// The panel writes the current time with its changes.
fn now(db: &Db) -> &'static str {
    match db.backend() {
        DbBackend::Sqlite => "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '+1 seconds')",
        _ => "now()",
    }
}

/// The panel charges hours itself while no daemon does.
fn hours_of_the_panel(sql: &Sql<'_>) -> Vec<(&'static str, Vec<Step>)> {
    let charged = || {
        let (Step::Sql(cycle), Step::Sql(anchor)) =
            (sql.cycle(3, 5, 20, "billed"), sql.instance(&format!("last_billed_at = {}", at(60 * 5))))
        else {
            unreachable!("both are SQL")
        };
        Step::Sql(format!("{cycle}; {anchor}"))
    };
    let refunded = || cycles("status = 'refunded'", &format!("billing_period_start = {}", at(180)));
    let paid = sql.books.paid;
    vec![
        ("hours charged by the panel", vec![charged(), Step::Bill(6), refunded(), Step::Bill(7)]),
        (
            "hours charged by the panel before the instance was restored",
            vec![
                charged(),
                Step::Bill(6),
                Step::Sql(format!(
                    "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT * FROM vps_instances WHERE id = '{paid}';
                     DELETE FROM vps_instances WHERE id = '{paid}'; INSERT INTO vps_instances SELECT * FROM kept"
                )),
                Step::Bill(7),
            ],
        ),
        (
            "failed cycles over charged hours",
            vec![sql.cycle(0, 3, 30, "failed"), sql.cycle(1, 2, 10, "pending"), Step::Bill(4)],
        ),
    ]
}

async fn legal_panel_states_are_no_violations(db: &Db) {
    let books = Books::on(db).await;
    let snapshot = Snapshot::of(db).await;
    let daemon = Daemon::of(db).await;
    let (_, connection) = connect(&db.url).await;
    for (state, steps) in legal_states(&Sql { db, books: &books }) {
        for (place, step) in steps.iter().enumerate() {
            step.take(db, &daemon).await;
            assert_eq!(broken(&connection).await, [""; 0], "{state}, step {place}");
        }
        snapshot.restore(db).await;
    }
}

on_each_kind!(legal_panel_states_are_no_violations);
