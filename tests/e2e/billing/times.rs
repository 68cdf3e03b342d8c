//! Times that the panel stores: what is not plausible holds its instance, and what is decides where its hours begin.

use billing_test_support::{ChargeRow, Db, Fleet, Instance, Plan};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{CENT, Daemon, TEN_CENTS_AN_HOUR, charged, hold_of, hour, number, texts};

/// A column of the panel with a value that is not plausible, as SQL, and what the hold shows of it.
fn implausible(db: &Db) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut rows = vec![
        ("last_billed_at", "'2099-01-01T00:00:00Z'", "`2099-01-01T00:00:00Z`, which is in the future"),
        ("last_billed_at", "'2025-03-01T04:17:24Z'", "`2025-03-01T04:17:24Z`, which is in the future"),
        ("last_billed_at", "'1999-12-31T23:59:59Z'", "`1999-12-31T23:59:59Z`, which is before the year 2000"),
        ("created_at", "'2099-01-01T00:00:00Z'", "`2099-01-01T00:00:00Z`, which is in the future"),
        ("created_at", "'1970-01-01T00:00:00Z'", "`1970-01-01T00:00:00Z`, which is before the year 2000"),
    ];
    if db.backend() == DbBackend::Sqlite {
        rows.extend([
            ("last_billed_at", "'yesterday'", "`yesterday`, which is not an instant"),
            // SQLite's own functions take these for times.
            ("last_billed_at", "'now'", "`now`, which is not an instant"),
            ("last_billed_at", "'2460000.5'", "`2460000.5`, which is not an instant"),
            ("created_at", "''", "``, which is not an instant"),
        ]);
    } else {
        rows.extend([
            ("last_billed_at", "'infinity'", "`infinity`, which is not an instant"),
            ("last_billed_at", "'-infinity'", "`-infinity`, which is not an instant"),
            ("created_at", "'infinity'", "`infinity`, which is not an instant"),
        ]);
    }
    rows
}

async fn set(db: &Db, instance: Uuid, column: &str, value: &str) {
    db.execute(&format!("UPDATE vps_instances SET {column} = {value} WHERE id = '{instance}'")).await;
}

async fn implausible_times_hold_until_corrected(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let daemon = Daemon::of(db).await;
    let instance = || fleet.instance(Instance::new(org, plan, hour(0)).billed(hour(0)));
    let mut cases = Vec::new();
    for row in implausible(db) {
        cases.push((row, instance().await, 1));
    }
    daemon.bill(hour(1)).await;
    for row in implausible(db) {
        cases.push((row, instance().await, 0));
    }
    for ((column, value, _), instance, _) in &cases {
        set(db, *instance, column, value).await;
    }
    let neither = fleet.instance(Instance::new(org, plan, hour(0))).await;
    set(db, neither, "created_at", "NULL").await;
    let good = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let stored =
        "SELECT CAST(id AS text) || coalesce(CAST(last_billed_at AS text), '-') || CAST(created_at AS text)
                    FROM vps_instances ORDER BY id";
    let panels =
        texts(db, &stored.replace("ORDER", &format!("WHERE id <> '{good}' AND id <> '{neither}' ORDER")))
            .await;
    let meters = number(db, "SELECT count(*) FROM billing_meters").await;

    for run in [2, 3] {
        let totals = daemon.bill(hour(run)).await;
        assert_eq!(
            (totals.charged, totals.held),
            (1, cases.len() as u64 + 1),
            "only the good one is charged"
        );
    }

    assert_eq!(charged(&fleet, good).await, (2, 3, 30 * CENT));
    assert_eq!(
        number(db, "SELECT count(*) FROM billing_meters").await,
        meters + 1,
        "only the good one gets a meter"
    );
    let unmoved = stored.replace("ORDER", &format!("WHERE id <> '{good}' AND id <> '{neither}' ORDER"));
    assert_eq!(texts(db, &unmoved).await, panels, "the panel's columns stay as they are");
    for ((column, value, shown), instance, hours) in &cases {
        let hold = hold_of(&fleet, *instance).await;
        assert_eq!((hold.reason.as_str(), hold.hours, hold.amount), ("invalid_time", None, None), "{value}");
        assert!(hold.detail.starts_with(&format!("{column} is {shown}")), "{}", hold.detail);
        assert_eq!(charged(&fleet, *instance).await.1, *hours, "{column} {value}");
    }
    assert!(hold_of(&fleet, neither).await.detail.contains("are both NULL"));

    let corrected = hour(3).to_rfc3339();
    for ((column, ..), instance, _) in &cases {
        let value = if *column == "created_at" { hour(0).to_rfc3339() } else { corrected.clone() };
        set(db, *instance, column, &format!("'{value}'")).await;
    }
    set(db, neither, "last_billed_at", &format!("'{corrected}'")).await;
    daemon.bill(hour(5)).await;
    for ((column, value, _), instance, before) in &cases {
        let hours = match *column {
            "created_at" => 5,
            _ => before + 2,
        };
        assert_eq!(
            charged(&fleet, *instance).await.1,
            hours,
            "{column} was {value}, {before} h charged before"
        );
        assert!(!fleet.holds(*instance).await[0].open);
    }
    assert_eq!(charged(&fleet, neither).await.1, 2);
    let adrift = "SELECT count(*) FROM billing_charges WHERE period_start < (SELECT min(period_start) FROM billing_charges)";
    assert_eq!(number(db, adrift).await, 0);
}

async fn adoption_makes_no_meter_from_implausible_time(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut instances = Vec::new();
    for (column, value, _) in implausible(db) {
        let instance = fleet.instance(Instance::new(org, plan, hour(0)).billed(hour(0))).await;
        // By the database's clock, which is later than these tests' time.
        if value != "'2025-03-01T04:17:24Z'" {
            set(db, instance, column, value).await;
            instances.push(instance);
        }
    }
    let early = fleet.instance(Instance::new(org, plan, hour(10)).billed(hour(0))).await;
    let adoption = Daemon::of(db).await.biller().adopt(true, "test").await.expect("adopted");
    let found = &adoption.findings["invalid_time"];
    assert_eq!(found.count, instances.len() as u64, "{found:?}");
    assert_eq!(adoption.findings["billed_before_created"].count, 1);
    assert_eq!(number(db, "SELECT count(*) FROM billing_meters").await, 2);
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(12)).await;
    assert_eq!(charged(&fleet, early).await.1, 2, "the meter begins at the creation");
}

async fn hours_before_creation_are_not_charged(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let early = fleet.instance(Instance::new(org, plan, hour(5)).billed(hour(0))).await;
    let noise = hour(0) - TimeDelta::milliseconds(999);
    let close = fleet.instance(Instance::new(org, plan, hour(0)).billed(noise)).await;
    let rebuilt = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(3)).await;
    assert_eq!(charged(&fleet, early).await.1, 0);
    // A rebuild moves the creation, with or without the anchor.
    set(db, rebuilt, "created_at", &format!("'{}'", hour(5).to_rfc3339())).await;
    daemon.bill(hour(6)).await;

    assert_eq!(fleet.charges(early).await, [ChargeRow { start: hour(5), hours: 1, amount: 10 * CENT }]);
    assert_eq!(fleet.charges(close).await[0].start, noise, "a difference below a second is noise");
    assert_eq!(charged(&fleet, rebuilt).await.1, 6, "with a meter the watermark decides");
}

on_each_kind!(
    implausible_times_hold_until_corrected,
    adoption_makes_no_meter_from_implausible_time,
    hours_before_creation_are_not_charged,
);
