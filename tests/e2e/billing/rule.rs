//! The rule that customers know: which hours are due, what an hour costs, and what the panel shows of it.

use billing_jobs::{billing::BillingSettings, price::DailyBackupFactor};
use billing_test_support::{ChargeRow, Db, Fleet, Instance, Plan};
use chrono::TimeDelta;
use sea_orm::DbBackend;
use serde_json::json;

use super::{
    CENT, Daemon, Order, TEN_CENTS_AN_HOUR, assert_sound, charged, hour, in_usd, minute, number, usd,
};

async fn instance_is_billed_in_every_status(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let statuses = [
        "running",
        "offline",
        "stopped",
        "provisioning",
        "rebooting",
        "migrating",
        "suspended",
        "",
        "on fire 🔥",
    ];
    let mut instances = Vec::new();
    for status in statuses {
        instances.push(fleet.instance(Instance::new(org, plan, hour(0)).status(status)).await);
    }
    let without = fleet.instance(Instance::new(org, plan, hour(0))).await;
    db.execute(&format!("UPDATE vps_instances SET status = NULL WHERE id = '{without}'")).await;
    instances.push(without);

    let totals = Daemon::of(db).await.bill(hour(3)).await;

    assert_eq!((totals.charged, totals.hours, totals.held), (10, 30, 0));
    for instance in instances {
        assert_eq!(charged(&fleet, instance).await, (1, 3, 30 * CENT));
    }
    assert_eq!(fleet.balance(org).await, usd("97.00"));
    assert_sound(db).await;
}

async fn only_whole_hours_since_anchor_are_due(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let now = hour(10);
    let ago = |minutes| now - TimeDelta::minutes(minutes);
    let rows = [
        ("never billed", ago(150), None, 2),
        ("made this instant", ago(0), None, 0),
        ("made an hour ago, but for a microsecond", ago(60) + TimeDelta::microseconds(1), None, 0),
        ("made an hour ago", ago(60), None, 1),
        ("charged for its creation", ago(60), Some(ago(60)), 1),
        ("charged for its creation just now", ago(59), Some(ago(59)), 0),
        ("billed up to the middle of an hour", ago(600), Some(ago(90)), 1),
        ("billed up to now", ago(600), Some(ago(0)), 0),
        ("billed ahead by minutes", ago(600), Some(ago(-5)), 0),
    ];
    let mut instances = Vec::new();
    for (label, created, billed, _) in rows {
        let mut instance = Instance::new(org, plan, created).label(label);
        if let Some(billed) = billed {
            instance = instance.billed(billed);
        }
        instances.push(fleet.instance(instance).await);
    }

    Daemon::of(db).await.bill(now).await;

    for ((label, created, billed, hours), instance) in rows.into_iter().zip(instances) {
        let start = billed.unwrap_or(created);
        let expected = ChargeRow { start, hours, amount: hours * 10 * CENT };
        let expected = if hours == 0 { vec![] } else { vec![expected] };
        assert_eq!(fleet.charges(instance).await, expected, "{label}");
        assert_eq!(fleet.holds(instance).await, [], "{label}");
        let moved = if hours == 0 { billed } else { Some(start + TimeDelta::hours(hours)) };
        assert_eq!(fleet.last_billed_at(instance).await, moved, "{label}");
    }
    assert_sound(db).await;
}

async fn periods_are_anchored_and_never_drift(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;

    // Each run is later within its hour than the one before; the third and the fifth are late by hours.
    for (run, billed_hours) in
        [(minute(60), 1), (minute(125), 1), (minute(270), 2), (minute(299), 0), (minute(539), 4)]
    {
        assert_eq!(daemon.bill(run).await.hours, billed_hours, "at {run}");
    }

    let periods = [(0, 1), (1, 2), (2, 4), (4, 8)].map(|(start, end)| (hour(start), hour(end)));
    let cycles = fleet.cycles(instance).await;
    assert_eq!(cycles.iter().map(|cycle| (cycle.start, cycle.end)).collect::<Vec<_>>(), periods);
    assert_eq!(fleet.last_billed_at(instance).await, Some(hour(8)));
    assert_sound(db).await;
}

async fn backups_are_billed_by_hourly_price(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    // Three cents an hour with the upcharge.
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR).backup_hourly("0.020000")).await;
    if db.has_backups() {
        // Hourly prices have millionths on SQLite, where money elsewhere has ten-thousandths.
        let cent = if db.backend() == DbBackend::Sqlite { "10000" } else { "0.01" };
        db.execute(&format!("UPDATE vps_plans SET backup_upcharge_hourly = {cent}")).await;
    }
    let frequencies = ["none", "weekly", "daily"];
    let mut instances = Vec::new();
    for frequency in frequencies {
        instances.push(fleet.instance(Instance::new(org, plan, hour(0)).backups(frequency)).await);
    }
    let level =
        BillingSettings { daily_backup_factor: Some(DailyBackupFactor::ONE), ..BillingSettings::default() };
    let level = Daemon::with(db, level).await;
    level.bill(hour(2)).await;
    let surcharging =
        BillingSettings { daily_backup_factor: Some(DailyBackupFactor(15)), ..BillingSettings::default() };
    let surcharging = Daemon::with(db, surcharging).await;
    // The new price is seen at hour 4, and counts for the hours after it.
    surcharging.bill(hour(4)).await;
    surcharging.bill(hour(6)).await;

    let backup = |cents: f64| if db.has_backups() { cents } else { 0.0 };
    let rows = [("none", [0.0, 0.0]), ("weekly", [0.03, 0.03]), ("daily", [0.03, 0.045])];
    for ((frequency, [first, last]), instance) in rows.into_iter().zip(instances) {
        let cycles = fleet.cycles(instance).await;
        assert_eq!(cycles.len(), 3, "{frequency}");
        // The cycle of the hours before the new price was seen has the parts of the old one.
        for (cycle, backup_rate) in cycles.iter().zip([first, first, last].map(backup)) {
            let shown = if db.has_backups() { frequency } else { "none" };
            assert_eq!(cycle.metadata["backup_frequency"], shown, "{frequency}");
            assert_eq!(cycle.metadata["base_hourly_rate"], json!(0.1), "{frequency}");
            assert_eq!(cycle.metadata["backup_hourly_rate"], json!(backup_rate), "{frequency}");
            #[expect(clippy::cast_possible_truncation, reason = "a few cents")]
            let hourly = ((0.1 + backup_rate) * 10_000.0).round() as i64;
            assert_eq!((cycle.hourly_rate, cycle.total), (hourly, 2 * hourly), "{frequency}");
        }
    }
    assert_sound(db).await;
}

/// The panel charged 2.75 on G2 for these 50 hours, and 2.00 on G3.
async fn daily_backups_cost_panel_price(db: &Db) {
    let fleet = Fleet::new(db);
    let g2 = db.has_backups() && db.backend() != DbBackend::Sqlite && db.wallet_unit() == CENT;
    let expected = match (db.has_backups(), g2) {
        (false, _) => [50 * CENT; 3],
        (true, false) => [200 * CENT, 200 * CENT, 350 * CENT],
        (true, true) => [275 * CENT, 200 * CENT, 350 * CENT],
    };
    let factors = [None, Some(DailyBackupFactor::ONE), Some(DailyBackupFactor(20))];
    for (daily_backup_factor, expected) in factors.into_iter().zip(expected) {
        let settings = BillingSettings { daily_backup_factor, ..BillingSettings::default() };
        let daemon = Daemon::with(db, settings).await;
        let org = fleet.wallet("100.00").await;
        let plan = fleet.plan(Plan::monthly("7.30").backup_hourly("0.030000")).await;
        let instance = fleet.instance(Instance::new(org, plan, hour(0)).backups("daily")).await;
        let previewed = daemon.preview(&Order::by(hour(50))).await;
        assert_eq!(in_usd(&previewed), expected, "{daily_backup_factor:?}");
        daemon.bill(hour(50)).await;
        assert_eq!(charged(&fleet, instance).await, (1, 50, expected), "{daily_backup_factor:?}");
        fleet.delete(instance).await;
    }
}

async fn panel_rows_match_its_own(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("6.00").markup("3.12")).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0)).label("web-1").backups("daily")).await;

    Daemon::of(db).await.bill(minute(5 * 60 + 30)).await;

    // 9.12 a month, 5 hours: 0.062465...
    let taken = if db.wallet_unit() == CENT { 600 } else { 624 };
    let ledger = fleet.ledger(org).await;
    assert_eq!(ledger.len(), 1);
    let row = &ledger[0];
    assert_eq!((row.amount, row.currency.as_str()), (-taken, "USD"));
    assert_eq!(
        (row.method.as_str(), row.provider.as_str(), row.status.as_str()),
        ("wallet_debit", "internal", "completed")
    );
    assert_eq!(row.description, "VPS Hourly Billing - web-1 (5h)");
    let after = if db.wallet_unit() == CENT { 99.94 } else { 99.9376 };
    assert_eq!(row.metadata, json!({ "balance_before": 100.0, "balance_after": after }));

    let cycles = fleet.cycles(instance).await;
    assert_eq!(cycles.len(), 1);
    let cycle = &cycles[0];
    assert_eq!((cycle.start, cycle.end, cycle.status.as_str()), (hour(0), hour(5), "billed"));
    assert_eq!((cycle.hourly_rate, cycle.total), (125, taken));
    let payment = cycle.payment_transaction_id.expect("the cycle names its payment");
    let payments = format!("SELECT count(*) FROM payment_transactions WHERE id = '{payment}'");
    assert_eq!(number(db, &payments).await, 1);
    let metadata = json!({
        "hours_charged": 5,
        "elapsed_hours": 5,
        "base_hourly_rate": 0.012_493,
        "backup_hourly_rate": 0.0,
        "backup_frequency": if db.has_backups() { "daily" } else { "none" },
        "vps_label": "web-1",
    });
    assert_eq!(cycle.metadata, metadata);
    assert_sound(db).await;
}

async fn label_may_contain_any_text(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let longest = "🦀".repeat(255);
    let labels = [
        "",
        " ",
        "o'brien",
        r#"say "cheese""#,
        r"back\slash \u0041",
        "100 % {} %s $1 ?1 :name",
        "'); DROP TABLE wallets; --",
        "two\nlines\tand a tab",
        "(24h)",
        "Grüße, 世界, مرحبا",
        "👩‍👩‍👧‍👦",
        longest.as_str(),
    ];
    let mut instances = Vec::new();
    for label in labels {
        instances.push(fleet.instance(Instance::new(org, plan, hour(0)).label(label)).await);
    }

    let totals = Daemon::of(db).await.bill(hour(1)).await;

    assert_eq!((totals.charged, totals.held), (12, 0));
    let ledger = fleet.ledger(org).await;
    for (label, instance) in labels.into_iter().zip(instances) {
        let description = format!("VPS Hourly Billing - {label} (1h)");
        assert_eq!(ledger.iter().filter(|row| row.description == description).count(), 1, "{label}");
        assert_eq!(fleet.cycles(instance).await[0].metadata["vps_label"], label);
    }
    assert_sound(db).await;
}

on_each_kind!(
    instance_is_billed_in_every_status,
    only_whole_hours_since_anchor_are_due,
    periods_are_anchored_and_never_drift,
    backups_are_billed_by_hourly_price,
    daily_backups_cost_panel_price,
    panel_rows_match_its_own,
    label_may_contain_any_text,
);
