//! When the daemon charges (while it works) and when the panel does (once the daemon has failed for long enough).

use billing_jobs::billing::{BillingError, Mode};
use billing_test_support::{
    Db, Fleet, Instance, Login, Plan, on_every_panel,
    panel_biller::{Crash, Outcome},
};
use sea_orm::{ConnectionTrait, TransactionTrait};
use uuid::Uuid;

use super::{Daemon, assert_sound, cents, debit, install_guard, number, panel, seed, silent_for};
use crate::daemon::{fetch, now, rows};

const BY_PANEL: &str = "SELECT count(*) FROM billing_charges WHERE by_panel";
const FAILED_CYCLES: &str = "SELECT count(*) FROM vps_billing_cycles WHERE status = 'failed'";
const TOKEN: &str = "SELECT fencing_token FROM scheduler_fencing WHERE job = 'billing'";

/// The panel's process, and the daemon's; each has its own login or both have the same.
async fn panel_charges_after_takeover_time(db: &Db) {
    install_guard(db).await;
    let daemon = Daemon::of(db).await;
    daemon.bill().await.expect("there is nothing to bill");
    for (round, login) in [(1, db.url_for(Login::Owner)), (2, db.url.clone())] {
        let panel = panel(db, &login).await;
        let due = seed(db, 5, 3, 2).await.len();
        let (before, charged) = (cents(db).await, number(db, BY_PANEL).await);
        let old = daemon.claim().await;
        daemon.biller().record_success(old.fencing_token).await.expect("billing works");

        let pass = panel.pass().await;
        assert_eq!((pass.billed, pass.failed.len()), (0, due));
        for reason in &pass.failed {
            assert!(reason.contains("billing-daemon charges the hours of this database"), "{reason}");
        }
        assert_eq!(cents(db).await, before, "the wallets are untouched");
        assert_eq!(number(db, FAILED_CYCLES).await, 30 * round - 15);
        silent_for(db, 74).await;
        assert_eq!(panel.pass().await.billed, 0, "74 minutes are not 75");

        silent_for(db, 91).await;
        let pass = panel.pass().await;
        assert_eq!((pass.billed, pass.failed), (due, vec![]));
        assert_eq!(cents(db).await, before - 2 * 15, "two hours of each at a cent");
        assert_eq!(number(db, BY_PANEL).await, charged + 15);
        assert_eq!(number(db, TOKEN).await, old.fencing_token.0 + 1, "raised once, and not for each debit");
        assert_sound(db).await;

        seed(db, 1, 1, 3).await;
        let refused = daemon.bill_under(old.fencing_token).await;
        assert!(matches!(refused, Err(BillingError::Fenced)), "{refused:?}");
        daemon.let_go(&old).await;
        assert_eq!(daemon.bill().await.expect("a new claim bills"), 3, "what the panel left");
        assert_eq!(panel.pass().await.billed, 0);
        assert_sound(db).await;
    }
}

async fn daemon_continues_where_panel_stopped(db: &Db) {
    install_guard(db).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let instance = seed(db, 1, 1, 5).await[0];
    for hours in [2, 1] {
        let mut due = panel.due().await.remove(0);
        due.hours = hours;
        assert_eq!(panel.bill(&due, Crash::Never).await, Outcome::Billed);
        assert_sound(db).await;
    }
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 2);

    let charges = Fleet::new(db).charges(instance).await;
    assert_eq!(charges.iter().map(|charge| charge.hours).collect::<Vec<_>>(), [2, 1, 2]);
    assert_eq!(cents(db).await, 10_000 - 5);
    assert_sound(db).await;
}

/// The panel's charges do not contain the price: it rounds each hour, and the daemon does not adopt that.
async fn panel_rounding_is_not_a_price(db: &Db) {
    install_guard(db).await;
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    // 1.37 cents an hour, of which the panel takes 1 or 2 in its first generations.
    let plan = fleet.plan(Plan::monthly("10.00")).await;
    let created = now(db).await - chrono::TimeDelta::minutes(60 * 40 + 30);
    let instance = fleet.instance(Instance::new(org, plan, created).backups("none")).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let mut due = panel.due().await.remove(0);
    due.hours = 3;
    assert_eq!(panel.bill(&due, Crash::Never).await, Outcome::Billed);
    assert_eq!(Daemon::of(db).await.bill().await.expect("it bills"), 37);

    let charges = fleet.charges(instance).await;
    assert_eq!(charges.len(), 2, "37 hours at one price");
    // 37 hours of 10.00 / 730, rounded down to what a wallet holds.
    let unit = db.wallet_unit();
    assert_eq!(charges[1].amount, 37 * 100_000 / 730 / unit * unit);
    assert_sound(db).await;
}

/// A crash between the two transactions charged again at each retry.
async fn unrecorded_panel_debit_is_charged_once(db: &Db) {
    install_guard(db).await;
    let url = db.url_for(Login::Owner);
    let instance = seed(db, 1, 1, 2).await[0];
    let fleet = Fleet::new(db);
    let crashed = panel(db, &url).await;
    let due = crashed.due().await.remove(0);
    assert_eq!(crashed.bill(&due, Crash::BeforeDebit).await, Outcome::Crashed);
    assert_eq!((cents(db).await, number(db, BY_PANEL).await), (10_000, 0), "it left nothing behind");
    assert_eq!(crashed.bill(&due, Crash::AfterDebit).await, Outcome::Crashed);
    assert_sound(db).await;

    let restarted = panel(db, &url).await;
    for _ in 0..3 {
        let pass = restarted.pass().await;
        assert!(pass.billed == 0 && pass.failed[0].contains("pays for hours that are not due"), "{pass:?}");
    }
    assert_eq!(cents(db).await, 99_98);

    // The second transaction could still follow and write the cycle.
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 0);
    let billed = async || fleet.cycles(instance).await.into_iter().filter(|cycle| cycle.status == "billed");
    assert_eq!(billed().await.count(), 0);
    assert_sound(db).await;

    db.execute("UPDATE billing_meters SET panel_debited_at = panel_debited_at - interval '5 minutes'").await;
    for _ in 0..2 {
        assert_eq!(daemon.bill().await.expect("it bills"), 0);
        let repaired: Vec<_> = billed().await.collect();
        assert_eq!(repaired.len(), 1);
        assert_eq!((repaired[0].total, (repaired[0].end - repaired[0].start).num_hours()), (200, 2));
        assert_eq!(fleet.last_billed_at(instance).await, Some(repaired[0].end));
        let paid = fetch(db, "SELECT id FROM payment_transactions").await;
        assert_eq!(repaired[0].payment_transaction_id.map(|id| id.to_string()), Some(paid));
    }
    assert_eq!(cents(db).await, 99_98);
    assert_sound(db).await;
}

/// The daemon returns between the panel's two transactions.
async fn late_panel_transaction_writes_no_cycle(db: &Db) {
    install_guard(db).await;
    let instance = seed(db, 1, 1, 2).await[0];
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let due = panel.due().await.remove(0);
    let daemon = Daemon::of(db).await;
    let transaction = panel.first_transaction(&due).await.expect("billing is silent");
    assert_eq!(daemon.bill().await.expect("it bills"), 0);
    panel.second_transaction(&due, transaction).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 0);
    assert_eq!(Fleet::new(db).cycles(instance).await.len(), 1);
    assert_sound(db).await;
}

async fn stale_panel_list_charges_nothing_twice(db: &Db) {
    install_guard(db).await;
    seed(db, 3, 2, 2).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let list = panel.due().await;
    assert_eq!(Daemon::of(db).await.bill().await.expect("it bills"), 12);
    silent_for(db, 91).await;
    for due in &list {
        let outcome = panel.bill(due, Crash::Never).await;
        assert!(matches!(&outcome, Outcome::Failed(why) if why.contains("not due")), "{outcome:?}");
    }
    assert_eq!((cents(db).await, number(db, BY_PANEL).await), (3 * 10_000 - 12, 0));
    assert_sound(db).await;
}

/// A daemon that is suspended between its fencing check and its commit.
async fn open_batch_is_not_overtaken(db: &Db) {
    install_guard(db).await;
    seed(db, 5, 3, 2).await;
    let daemon = Daemon::of(db).await;
    let old = daemon.claim().await;
    silent_for(db, 91).await;
    let batch = daemon.db.begin().await.expect("a transaction begins");
    let keep = format!("SELECT set_config('billing.fencing_token', '{}', true)", old.fencing_token.0);
    batch.execute_unprepared(&keep).await.expect("a setting is set");
    batch.execute_unprepared("SELECT FROM scheduler_fencing FOR SHARE").await.expect("the row is there");

    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let pass = panel.pass().await;
    assert_eq!((pass.billed, pass.failed.len()), (0, 15));
    assert!(pass.failed[0].contains("right now"), "{pass:?}");
    batch.rollback().await.expect("it ends");
    assert_eq!(panel.pass().await.billed, 15);
    seed(db, 1, 1, 2).await;
    let refused = daemon.bill_under(old.fencing_token).await;
    assert!(matches!(refused, Err(BillingError::Fenced)), "{refused:?}");
    assert_eq!(cents(db).await, 6 * 10_000 - 30);
}

/// Even our own code cannot forget the panel guard: without the newest token it is treated like the panel.
async fn debit_with_old_token_is_panel_debit(db: &Db) {
    install_guard(db).await;
    seed(db, 1, 1, 2).await;
    let org: Uuid = rows(db, "id::text FROM organizations").await[0].parse().expect("an id");
    let label = rows(db, "label FROM vps_instances").await.remove(0);
    let description = format!("VPS Hourly Billing - {label} (2h)");
    let daemon = Daemon::of(db).await;
    let old = daemon.claim().await;
    daemon.let_go(&old).await;
    let current = daemon.claim().await;
    daemon.biller().record_success(current.fencing_token).await.expect("billing works");
    for (number, passes) in [
        (None, false),
        (Some(old.fencing_token.0), false),
        (Some(current.fencing_token.0 + 1), false),
        (Some(current.fencing_token.0), true),
    ] {
        let txn = daemon.db.begin().await.expect("a transaction begins");
        txn.execute_unprepared("SET LOCAL app.current_user_is_admin = 'true'").await.expect("a setting");
        if let Some(number) = number {
            let sql = format!("SELECT set_config('billing.fencing_token', '{number}', true)");
            txn.execute_unprepared(&sql).await.expect("a setting");
        }
        let debited = debit(&txn, org, "-0.02", &description).await;
        assert_eq!(debited.is_ok(), passes, "{number:?}: {debited:?}");
        txn.rollback().await.expect("it ends");
        // Behind a pooler the next transaction may be that of another client.
        assert!(debit(&daemon.db, org, "-0.02", &description).await.is_err());
    }
}

async fn other_transactions_pass_the_guard(db: &Db) {
    install_guard(db).await;
    seed(db, 1, 1, 2).await;
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 2);
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    let before = fetch(db, "SELECT count(*) FROM payment_transactions").await;
    for silence in [0, 91] {
        silent_for(db, silence).await;
        for (method, provider, amount, description) in [
            ("wallet_debit", "internal", "-0.01", "'VPS Creation - web (Initial Hour)'"),
            ("wallet_debit", "internal", "-1.00", "'Egress - web (3h)'"),
            ("wallet_debit", "internal", "-1.00", "'vps hourly billing - web (3h)'"),
            ("wallet_debit", "internal", "-1.00", "NULL"),
            ("paypal", "paypal", "25.00", "'Wallet top-up'"),
            ("paypal", "paypal", "25.00", "'VPS Hourly Billing - web (1h)'"),
            ("wallet_debit", "stripe", "-0.01", "'VPS Hourly Billing - web (1h)'"),
            ("refund", "internal", "0.01", "'VPS Hourly Billing - web (1h)'"),
        ] {
            let sql = format!(
                "INSERT INTO payment_transactions
                     (organization_id, amount, payment_method, payment_provider, status, description)
                 SELECT id, {amount}, '{method}', '{provider}', 'completed', {description} FROM organizations"
            );
            owner.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{description}: {error}"));
        }
    }
    let expected = before.parse::<u32>().expect("a number") + 16;
    assert_eq!(fetch(db, "SELECT count(*) FROM payment_transactions").await, expected.to_string());
    assert_eq!(number(db, BY_PANEL).await, 0);
}

async fn dry_run_leaves_guard_unchanged(db: &Db) {
    install_guard(db).await;
    seed(db, 2, 2, 2).await;
    let daemon = Daemon::of(db).await;
    for worked in [false, true] {
        if worked {
            let lease = daemon.claim().await;
            daemon.biller().record_success(lease.fencing_token).await.expect("billing works");
            daemon.let_go(&lease).await;
        }
        let token = fetch(db, TOKEN).await;
        let bill = daemon.run(Mode::DryRun).await.expect("it finishes");
        assert_eq!((bill.totals.charged, bill.totals.held, bill.totals.hours), (4, 0, 8));
        assert_eq!((cents(db).await, fetch(db, TOKEN).await), (20_000, token));
    }
}

/// Before the first start of a daemon, and after the last one stopped cleanly.
async fn panel_without_daemon_bills_immediately(db: &Db) {
    install_guard(db).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    seed(db, 1, 2, 2).await;
    assert_eq!(panel.pass().await.billed, 2);
    assert_eq!(number(db, TOKEN).await, 0, "there was no claim to supersede");
    let daemon = Daemon::of(db).await;
    daemon.bill().await.expect("it bills");
    seed(db, 1, 2, 2).await;
    assert_eq!(panel.pass().await.billed, 0);
    db.execute("UPDATE scheduler_fencing SET last_success_at = NULL").await;
    assert_eq!(panel.pass().await.billed, 2);
    assert_sound(db).await;
}

on_every_panel!(
    panel_charges_after_takeover_time,
    daemon_continues_where_panel_stopped,
    panel_rounding_is_not_a_price,
    unrecorded_panel_debit_is_charged_once,
    dry_run_leaves_guard_unchanged,
    debit_with_old_token_is_panel_debit,
);

billing_test_support::on_variants!(late_panel_transaction_writes_no_cycle: g1_role, g3_role);
billing_test_support::on_variants!(stale_panel_list_charges_nothing_twice: g1_role, g3_role);
billing_test_support::on_variants!(open_batch_is_not_overtaken: g1_role, g3_owner);
billing_test_support::on_variants!(other_transactions_pass_the_guard: g1_owner, g3_role);
billing_test_support::on_variants!(panel_without_daemon_bills_immediately: g2_role, g3_owner);
