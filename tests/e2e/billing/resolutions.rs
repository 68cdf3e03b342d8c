//! Each violation that is not evidence of tampering has an action that clears it.

use billing_test_support::Db;
use sea_orm::DbBackend;

use super::{
    Daemon,
    audits::{Books, Snapshot, Sql, Step, at, before_batches, broken, cycles, second},
    connect,
};

/// The cause of a violation, its name, and the action that its `resolve` names.
struct Case {
    steps: Vec<Step>,
    violation: &'static str,
    action: Vec<Step>,
}

fn case(steps: Vec<Step>, violation: &'static str, action: Vec<Step>) -> Case {
    Case { steps, violation, action }
}

fn cases(sql: &Sql<'_>) -> Vec<Case> {
    let mut cases = cases_of_the_ledger(sql);
    cases.extend(cases_of_the_panel(sql));
    cases
}

fn cases_of_the_ledger(sql: &Sql<'_>) -> Vec<Case> {
    let created = |minutes| sql.instance(&format!("created_at = {}", at(minutes)));
    let seen = |step| match step {
        Step::Sql(change) => Step::Sql(before_batches(sql.db, &change)),
        step => step,
    };
    vec![
        case(
            vec![sql.instance(&format!("last_billed_at = {}", at(300))), Step::Bill(6)],
            "charges_contiguous",
            vec![sql.cycle(3, 5, 0, "refunded")],
        ),
        case(vec![created(30)], "charges_within_life", vec![created(0)]),
        case(
            vec![created(30)],
            "charges_within_life",
            vec![cycles("status = 'refunded'", &format!("billing_period_start = {}", at(0)))],
        ),
        case(vec![seen(sql.instance("last_billed_at = NULL"))], "watermark", vec![Step::Bill(4)]),
        case(
            vec![Step::Sql(format!("DELETE FROM billing_holds WHERE instance_id = '{}'", sql.books.unpaid))],
            "due_charged_or_held",
            vec![Step::Bill(4)],
        ),
        case(
            vec![Step::Sql("DELETE FROM billing_wallet_openings".to_owned())],
            "wallet_without_opening",
            vec![Step::Adopt],
        ),
        case(
            vec![Step::Sql(without_key(sql.db).to_owned())],
            "unique_key",
            vec![Step::Sql(with_key(sql.db).to_owned())],
        ),
    ]
}

fn without_key(db: &Db) -> &'static str {
    match db.backend() {
        DbBackend::Sqlite => {
            "CREATE TABLE keyless AS SELECT * FROM billing_charges; ALTER TABLE billing_charges RENAME TO keyed;
             ALTER TABLE keyless RENAME TO billing_charges"
        }
        _ => "ALTER TABLE billing_charges DROP CONSTRAINT billing_charges_pkey",
    }
}

fn with_key(db: &Db) -> &'static str {
    match db.backend() {
        DbBackend::Sqlite => "DROP TABLE billing_charges; ALTER TABLE keyed RENAME TO billing_charges",
        _ => "ALTER TABLE billing_charges ADD PRIMARY KEY (period_start, instance_id)",
    }
}

fn cases_of_the_panel(sql: &Sql<'_>) -> Vec<Case> {
    // A column of PostgreSQL that is too narrow for a large amount still takes what is not a number.
    let too_large = if sql.db.backend() == DbBackend::Sqlite { "9000000000000" } else { "'NaN'" };
    let second = second();
    let delete = || Step::Sql(format!("DELETE FROM vps_billing_cycles WHERE {second}"));
    let repair = || vec![delete(), sql.instance(&format!("last_billed_at = {}", at(60))), Step::Bill(4)];
    let refund_second = |count: i64| {
        Step::Sql(format!(
            "UPDATE vps_billing_cycles SET status = 'refunded'
              WHERE id IN (SELECT id FROM vps_billing_cycles WHERE {second} ORDER BY id LIMIT {count})"
        ))
    };
    vec![
        case(vec![delete()], "charge_in_cycles", repair()),
        case(vec![cycles("total_amount = total_amount + 1", &second)], "charge_in_cycles", repair()),
        case(vec![sql.cycle(1, 3, 20, "billed")], "hours_billed_twice", vec![refund_second(1)]),
        case(
            panel_bills_twice(sql),
            "hours_billed_twice",
            vec![cycles(
                "status = 'refunded'",
                &format!(
                    "id IN (SELECT id FROM vps_billing_cycles WHERE billing_period_start = {} ORDER BY id LIMIT 1)",
                    at(180)
                ),
            )],
        ),
        case(
            // The second cycle begins within the hours of the first.
            vec![sql.cycle(2, 4, 20, "billed")],
            "hours_billed_twice",
            vec![cycles("status = 'refunded'", &format!("billing_period_start = {}", at(120)))],
        ),
        case(vec![sql.balance(1)], "wallet_balance", vec![sql.ledger(1, "completed")]),
        case(vec![sql.balance(-1)], "wallet_balance", vec![sql.balance(1)]),
        // A refund does not explain a difference beyond it, or in the other direction.
        case(
            vec![sql.ledger(20, "refunded"), sql.balance(21)],
            "wallet_balance",
            vec![sql.ledger(1, "completed")],
        ),
        case(vec![sql.ledger(20, "refunded"), sql.balance(-1)], "wallet_balance", vec![sql.balance(1)]),
        case(
            vec![sql.ledger(7_777, "completed"), amount_of_last(too_large)],
            "ledger_amount",
            vec![amount_of_last("0")],
        ),
    ]
}

/// Sets the amount of the newest row that is not a debit.
fn amount_of_last(amount: &str) -> Step {
    Step::Sql(format!(
        "UPDATE payment_transactions SET amount = {amount}
          WHERE id = (SELECT id FROM payment_transactions WHERE amount > 0 OR amount IS NULL
                       ORDER BY created_at DESC LIMIT 1)"
    ))
}

/// Two processes of the panel debit the same two hours, with a cycle each.
fn panel_bills_twice(sql: &Sql<'_>) -> Vec<Step> {
    let debit = || [sql.ledger(-20, "completed"), sql.balance(-20), sql.cycle(3, 5, 20, "billed")];
    let steps = debit().into_iter().chain(debit());
    steps.chain([sql.instance(&format!("last_billed_at = {}", at(300)))]).collect()
}

async fn resolve_action_clears_each_violation(db: &Db) {
    let books = Books::on(db).await;
    let snapshot = Snapshot::of(db).await;
    let daemon = Daemon::of(db).await;
    let (_, connection) = connect(&db.url).await;
    for (place, Case { steps, violation, action }) in cases(&Sql { db, books: &books }).iter().enumerate() {
        for step in steps {
            step.take(db, &daemon).await;
        }
        assert_eq!(broken(&connection).await, [*violation], "case {place}");
        for step in action {
            step.take(db, &daemon).await;
        }
        assert_eq!(broken(&connection).await, [""; 0], "{violation}, case {place}");
        snapshot.restore(db).await;
    }
}

on_each_kind!(resolve_action_clears_each_violation);
