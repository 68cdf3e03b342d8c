//! The panel reads a balance without a lock and writes it back, less its debit: it never overwrites a change in between.

use billing_test_support::{
    Db, Fleet, Instance, Login, Plan, eventually, on_variants,
    panel_biller::{Crash, Due, Outcome},
};
use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, TransactionTrait};
use uuid::Uuid;

use super::{Daemon, assert_sound, cents, install_guard, number, panel, silent_for};
use crate::daemon::now;

const CENT: &str = "7.30";

/// An instance of this organization that costs a cent an hour, with this many hours due.
async fn instance(db: &Db, org: Uuid, hours: i64) -> Uuid {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(CENT)).await;
    let created = now(db).await - TimeDelta::minutes(60 * hours + 30);
    fleet.instance(Instance::new(org, plan, created).backups("none")).await
}

/// The instance as the panel reads it.
async fn due(db: &Db, instance: Uuid) -> Due {
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let due = panel.due().await.into_iter().find(|due| due.instance == instance);
    due.expect("it is due")
}

/// A daemon that was silent charges at that moment. The balance that the panel then writes may equal the current one.
async fn charge_is_not_overwritten(db: &Db) {
    install_guard(db).await;
    let daemon = Daemon::of(db).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    for hours in [1, 2, 5] {
        let org = Fleet::new(db).wallet("100.00").await;
        let ours = due(db, instance(db, org, 2).await).await;
        silent_for(db, 91).await;
        let old = daemon.claim().await;
        let read = panel.read_balance(&ours).await.expect("the wallet is there");
        assert_eq!(daemon.bill_under(old.fencing_token).await.expect("it bills").totals.hours, 2);

        let theirs = due(db, instance(db, org, hours).await).await;
        let refused = read.finish(&theirs).await.expect_err("it read 100.00");
        assert!(refused.contains("when it was read, and 99.98"), "{refused}");
        daemon.let_go(&old).await;
        assert_eq!(Fleet::new(db).balance(org).await, 999_800, "the charge is still taken");
        assert_eq!(panel.bill(&theirs, Crash::Never).await, Outcome::Billed, "at its next look");
        assert_eq!(Fleet::new(db).balance(org).await, 999_800 - 100 * hours);
        assert_sound(db).await;
    }
}

/// The panel wants the wallet while a batch of ours holds it.
async fn awaited_charge_is_not_overwritten(db: &Db) {
    install_guard(db).await;
    let org = Fleet::new(db).wallet("100.00").await;
    let theirs = due(db, instance(db, org, 2).await).await;
    let daemon = Daemon::of(db).await;
    let number_in_force = daemon.claim().await.fencing_token.0;
    silent_for(db, 91).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let read = panel.read_balance(&theirs).await.expect("the wallet is there");

    let batch = daemon.db.begin().await.expect("a transaction begins");
    let charge = format!(
        "SET LOCAL app.current_user_is_admin = 'true'; SET LOCAL billing.fencing_token = '{number_in_force}';
         UPDATE wallets SET balance = balance - 0.02"
    );
    batch.execute_unprepared(&charge).await.expect("the wallet is free");
    let commit = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'UPDATE wallets%'";
        eventually("the panel waits for the wallet", async || (number(db, waiting).await == 1).then_some(()))
            .await;
        batch.commit().await.expect("it ends");
    };
    let (refused, ()) = tokio::join!(read.finish(&theirs), commit);
    assert!(refused.is_err_and(|refused| refused.contains("when it was read, and 99.98")));
    assert_eq!(cents(db).await, 9_998);
}

async fn payment_is_not_overwritten(db: &Db) {
    install_guard(db).await;
    let org = Fleet::new(db).wallet("100.00").await;
    let theirs = due(db, instance(db, org, 2).await).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let read = panel.read_balance(&theirs).await.expect("the wallet is there");
    Fleet::new(db).top_up(org, "50.00").await;
    let refused = read.finish(&theirs).await.expect_err("it read 100.00");
    assert!(refused.contains("when it was read, and 150.00"), "{refused}");
    assert_eq!(panel.bill(&theirs, Crash::Never).await, Outcome::Billed);
    assert_eq!(cents(db).await, 14_998);
    assert_sound(db).await;
}

/// The charge for a new instance is one more read-modify-write of the panel. Every known panel names in it what it has read.
async fn creation_charge_never_overwrites_unseen_balance(db: &Db) {
    install_guard(db).await;
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    let named = Some(r#"{"balance_before":100,"balance_after":99.99}"#);
    let nan = Some(r#"{"balance_before":null,"balance_after":null}"#);
    for (meanwhile, written, metadata, passes) in [
        ("SELECT", Some("99.99"), named, true),
        ("UPDATE wallets SET balance = 99.98", Some("99.99"), named, false),
        // What the panel writes is what the wallet holds already.
        ("UPDATE wallets SET balance = 99.99", Some("99.99"), named, false),
        ("UPDATE wallets SET balance = 150", Some("99.99"), named, false),
        ("UPDATE wallets SET balance = 150", Some("99.99"), nan, false),
        // Without `balance_before`, the wallet must have changed by the debit.
        ("SELECT", Some("99.99"), None, true),
        ("SELECT", Some("99.99"), Some(r#"{"vps_id":"x"}"#), true),
        ("UPDATE wallets SET balance = 99.98", Some("99.99"), None, false),
        ("UPDATE wallets SET balance = 150", Some("99.99"), Some("[]"), false),
        ("UPDATE wallets SET balance = 150", Some("balance - 0.01"), None, true),
        ("UPDATE wallets SET balance = 150", None, None, true),
    ] {
        let org = Fleet::new(db).wallet("100.00").await;
        db.execute(&format!(
            "{meanwhile} {}",
            if meanwhile == "SELECT" { "" } else { "WHERE balance = 100" }
        ))
        .await;
        let txn = owner.begin().await.expect("it begins");
        if let Some(written) = written {
            let write = format!("UPDATE wallets SET balance = {written} WHERE organization_id = '{org}'");
            txn.execute_unprepared(&write).await.expect("the wallet is free");
        }
        let sql = format!(
            "INSERT INTO payment_transactions
                 (organization_id, amount, payment_method, payment_provider, status, description, metadata)
             VALUES ('{org}', -0.01, 'wallet_debit', 'internal', 'completed', 'VPS Creation - web (Initial Hour)', {})",
            metadata.map_or("NULL".to_owned(), |metadata| format!("'{metadata}'"))
        );
        let debited = txn.execute_unprepared(&sql).await;
        let case = format!("{meanwhile}, {written:?}, {metadata:?}");
        assert_eq!(debited.is_ok(), passes, "{case}: {debited:?}");
        if let Err(refused) = debited {
            assert!(refused.to_string().contains("when it was read, and"), "{case}: {refused}");
        }
        txn.rollback().await.expect("it ends");
        db.execute("UPDATE wallets SET balance = 0").await;
    }
}

/// Changes in another transaction are noted for that transaction's debits alone.
async fn noted_balance_ends_with_transaction(db: &Db) {
    install_guard(db).await;
    let org = Fleet::new(db).wallet("100.00").await;
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    let write = "UPDATE wallets SET balance = balance + 1";
    let noted = "SELECT current_setting('billing.overwritten_balance', true) AS noted";
    let fetch = async |db: &sea_orm::DatabaseTransaction| {
        let query = sea_orm::Statement::from_string(db.get_database_backend(), noted);
        let row = db.query_one_raw(query).await.expect("it answers").expect("one row");
        row.try_get::<Option<String>>("", "noted").expect("a text").unwrap_or_default()
    };
    for (setting, expected) in [("SELECT", true), ("SET LOCAL billing.fencing_token = '7'", false)] {
        let txn = owner.begin().await.expect("it begins");
        txn.execute_unprepared(setting).await.expect("a setting");
        txn.execute_unprepared(write).await.expect("the wallet is free");
        assert_eq!(fetch(&txn).await.starts_with(&org.to_string()), expected, "{setting}");
        txn.commit().await.expect("it ends");
        let txn = owner.begin().await.expect("it begins");
        assert_eq!(fetch(&txn).await, "");
        txn.rollback().await.expect("it ends");
    }
}

on_variants!(creation_charge_never_overwrites_unseen_balance: g1_role, g3_role);
on_variants!(charge_is_not_overwritten: g1_role, g2_owner, g3_role);
on_variants!(awaited_charge_is_not_overwritten: g1_role, g3_role);
on_variants!(payment_is_not_overwritten: g2_owner, g3_role);
on_variants!(noted_balance_ends_with_transaction: g3_owner);
