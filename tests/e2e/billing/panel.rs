//! The panel changes anchors and instances while the daemon bills; no hour is charged twice because of it.

use billing_test_support::{ChargeRow, Db, Fleet, Instance, Plan};
use serde_json::json;
use uuid::Uuid;

use super::{CENT, Daemon, TEN_CENTS_AN_HOUR, assert_sound, charged, hold_of, hour, in_usd, minute, usd};

/// The panel bills these whole hours itself, as its built-in biller does.
async fn panel_bills(db: &Db, fleet: &Fleet<'_>, org: Uuid, instance: Uuid, from: i64, hours: i64) {
    let amount = super::money(db, 10 * hours);
    let (start, end) = (hour(from).to_rfc3339(), hour(from + hours).to_rfc3339());
    let before = fleet.balance(org).await;
    for sql in [
        format!("UPDATE wallets SET balance = balance - {amount} WHERE organization_id = '{org}'"),
        format!(
            "INSERT INTO payment_transactions
                 (organization_id, amount, payment_method, payment_provider, status, description)
             VALUES ('{org}', -{amount}, 'wallet_debit', 'internal', 'completed', 'VPS Hourly Billing - x ({hours}h)')"
        ),
        format!(
            "INSERT INTO vps_billing_cycles
                 (vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate,
                  total_amount, status)
             VALUES ('{instance}', '{org}', '{start}', '{end}', {}, {amount}, 'billed')",
            super::money(db, 10)
        ),
        format!("UPDATE vps_instances SET last_billed_at = '{end}' WHERE id = '{instance}'"),
    ] {
        db.execute(&sql).await;
    }
    assert_eq!(fleet.balance(org).await, before - 10 * CENT * hours);
}

async fn hours_billed_by_panel_are_skipped(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    panel_bills(db, &fleet, org, instance, 2, 3).await;

    assert_eq!(daemon.bill(hour(5)).await.hours, 0);
    daemon.bill(hour(7)).await;

    let amount = 20 * CENT;
    let expected = [0, 5].map(|start| ChargeRow { start: hour(start), hours: 2, amount });
    assert_eq!(fleet.charges(instance).await, expected);
    assert_eq!(fleet.balance(org).await, usd("100.00") - 70 * CENT);
    assert_sound(db).await;
}

async fn reset_anchor_is_repaired_without_charge(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    for hours in [2, 3, 6] {
        daemon.bill(hour(hours)).await;
    }
    let cycles = fleet.cycles(instance).await;

    // As a restore of the panel's tables alone would: two cycles lost, and the anchor where it was before them.
    let lost = hour(2).to_rfc3339();
    db.execute(&format!("DELETE FROM vps_billing_cycles WHERE billing_period_start >= '{lost}'")).await;
    db.execute(&format!("UPDATE vps_instances SET last_billed_at = '{lost}'")).await;
    let totals = daemon.bill(hour(6)).await;

    assert_eq!((totals.charged, totals.held, in_usd(&totals)), (0, 0, 0));
    assert_eq!(fleet.balance(org).await, usd("99.40"));
    assert_eq!(fleet.last_billed_at(instance).await, Some(hour(6)));
    let repaired = fleet.cycles(instance).await;
    assert_eq!(repaired.len(), 3);
    for (repaired, lost) in repaired.iter().zip(&cycles).skip(1) {
        assert_eq!(
            (repaired.start, repaired.end, repaired.status.as_str()),
            (lost.start, lost.end, "billed")
        );
        assert_eq!((repaired.hourly_rate, repaired.total), (lost.hourly_rate, lost.total));
        assert_eq!(repaired.payment_transaction_id, lost.payment_transaction_id);
        let hours = (lost.end - lost.start).num_hours();
        assert_eq!(repaired.metadata["hours_charged"], json!(hours));
    }
    assert_sound(db).await;

    // With hours due besides, and the cycles in place.
    db.execute("UPDATE vps_instances SET last_billed_at = NULL").await;
    daemon.bill(hour(7)).await;
    assert_eq!(charged(&fleet, instance).await, (4, 7, 70 * CENT));
    assert_eq!(fleet.cycles(instance).await.len(), 4);
    assert_sound(db).await;
}

async fn anchor_is_repaired_without_price(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    db.execute("UPDATE vps_instances SET last_billed_at = NULL").await;
    fleet.reprice(plan, None).await;

    daemon.bill(hour(3)).await;

    assert_eq!(hold_of(&fleet, instance).await.reason, "no_price");
    assert_eq!(
        fleet.last_billed_at(instance).await,
        Some(hour(2)),
        "or the panel would bill from its creation on"
    );
    assert_sound(db).await;
}

async fn deleted_organization_affects_no_other(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (gone, stays) = (fleet.wallet("0.05").await, fleet.wallet("10.00").await);
    let orphan = fleet.instance(Instance::new(gone, plan, hour(0))).await;
    let other = fleet.instance(Instance::new(stays, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;

    db.execute(&format!("DELETE FROM organizations WHERE id = '{gone}'")).await;
    daemon.bill(minute(130)).await;

    let hold = hold_of(&fleet, orphan).await;
    assert_eq!((hold.reason.as_str(), hold.hours), ("no_wallet", Some(2)));
    assert_eq!(charged(&fleet, other).await, (2, 2, 20 * CENT));
    assert_sound(db).await;
}

on_each_kind!(
    hours_billed_by_panel_are_skipped,
    reset_anchor_is_repaired_without_charge,
    anchor_is_repaired_without_price,
    deleted_organization_affects_no_other,
);
