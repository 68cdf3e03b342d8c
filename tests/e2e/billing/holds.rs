//! An instance that cannot be charged is held with a reason; other instances are not affected.

use billing_jobs::billing::{BillReport, BillingSettings, Scope, approve_catch_up};
use billing_test_support::{Db, Fleet, Instance, Plan, on_every_database, on_every_engine, on_variants};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{
    CENT, Daemon, Order, TEN_CENTS_AN_HOUR, assert_sound, charged, contents, hold_of, hour, in_usd, money,
    number, usd,
};

/// An instance that is to be held, in a wallet of a hundred with another one that is to be billed.
struct Case {
    name: &'static str,
    reason: &'static str,
    org: Uuid,
    plan: Uuid,
    instance: Uuid,
}

async fn case(fleet: &Fleet<'_>, name: &'static str, reason: &'static str, plan: Plan) -> Case {
    let org = fleet.wallet("100.00").await;
    let good = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    fleet.instance(Instance::new(org, good, hour(0))).await;
    let plan = fleet.plan(plan).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0)).label(name)).await;
    Case { name, reason, org, plan, instance }
}

async fn invalid_price_holds_only_its_instance(db: &Db) {
    let fleet = Fleet::new(db);
    let price = || Plan::monthly(TEN_CENTS_AN_HOUR);
    let mut cases = vec![
        case(&fleet, "no base price", "no_price", Plan::unpriced()).await,
        case(&fleet, "a negative base price", "invalid_price", Plan::monthly("-5.00")).await,
        case(&fleet, "a negative markup", "invalid_price", price().markup("-0.01")).await,
        case(&fleet, "no markup", "no_price", price()).await,
    ];
    let no_markup = cases[3].plan;
    db.execute(&format!("UPDATE vps_plans SET markup_price = NULL WHERE id = '{no_markup}'")).await;
    if db.backend() != DbBackend::Sqlite {
        for column in ["base_price", "markup_price"] {
            let case = case(&fleet, column, "invalid_price", price()).await;
            db.execute(&format!("UPDATE vps_plans SET {column} = 'NaN' WHERE id = '{}'", case.plan)).await;
            cases.push(case);
        }
    }
    if db.has_backups() {
        cases.push(case(&fleet, "a negative backup", "invalid_price", price().backup_hourly("-0.01")).await);
    }
    let daemon = Daemon::of(db).await;

    let count = u64::try_from(cases.len()).expect("a few");
    let totals = daemon.bill(hour(3)).await;

    assert_eq!((totals.charged, totals.held), (count, count));
    for case in &cases {
        let hold = hold_of(&fleet, case.instance).await;
        assert_eq!(
            (hold.reason.as_str(), hold.hours, hold.amount),
            (case.reason, Some(3), None),
            "{}",
            case.name
        );
        assert!(hold.detail.contains(&case.plan.to_string()), "{}: {}", case.name, hold.detail);
        assert_eq!(charged(&fleet, case.instance).await, (0, 0, 0), "{}", case.name);
        assert_eq!(fleet.balance(case.org).await, usd("99.70"), "{}", case.name);
    }

    db.execute("UPDATE vps_plans SET markup_price = 0").await;
    if db.has_backups() {
        db.execute("UPDATE vps_plans SET backup_price_hourly = 0").await;
    }
    for case in &cases {
        fleet.reprice(case.plan, Some(TEN_CENTS_AN_HOUR)).await;
    }
    assert_eq!(daemon.bill(hour(4)).await.held, 0);
    for case in cases {
        assert_eq!(charged(&fleet, case.instance).await, (1, 4, 40 * CENT), "{}", case.name);
        assert_eq!(fleet.holds(case.instance).await.iter().filter(|hold| hold.open).count(), 0);
    }
    assert_sound(db).await;
}

async fn unknown_plan_holds_its_instance(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let good = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    fleet.instance(Instance::new(org, good, hour(0))).await;
    let unheard_of = fleet.instance(Instance::new(org, "g6-unheard-of", hour(0))).await;
    let empty = fleet.instance(Instance::new(org, "", hour(0))).await;
    let daemon = Daemon::of(db).await;

    let totals = daemon.bill(hour(2)).await;

    assert_eq!((totals.charged, totals.held), (1, 2));
    for (instance, detail) in [(unheard_of, "no plan `g6-unheard-of`"), (empty, "no plan ``")] {
        let hold = hold_of(&fleet, instance).await;
        assert_eq!((hold.reason.as_str(), hold.detail.as_str()), ("unknown_plan", detail));
    }
    assert_eq!(fleet.balance(org).await, usd("99.80"));

    fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR).provider_plan_id("g6-unheard-of")).await;
    daemon.bill(hour(3)).await;
    assert_eq!(charged(&fleet, unheard_of).await, (1, 3, 30 * CENT));
    assert_sound(db).await;
}

async fn plan_matches_id_or_provider_name(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let nano = |price| Plan::monthly(price).provider_plan_id("nano");
    let small = fleet.plan(Plan::monthly("146.00").provider_plan_id("small")).await;
    let nanos = [fleet.plan(nano("73.00")).await, fleet.plan(nano("73.00")).await];
    let rows =
        [(small.to_string(), 20), ("small".into(), 20), (nanos[1].to_string(), 10), ("nano".into(), 10)];
    let mut instances = Vec::new();
    for (plan, _) in &rows {
        instances.push(fleet.instance(Instance::new(org, plan, hour(0))).await);
    }
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    for ((plan, cents), instance) in rows.iter().zip(&instances) {
        assert_eq!(charged(&fleet, *instance).await, (1, 1, cents * CENT), "{plan}");
    }

    // From now on it depends on the plan what the name costs, and a guess could be wrong.
    fleet.reprice(nanos[0], Some("219.00")).await;
    let totals = daemon.bill(hour(2)).await;
    assert_eq!((totals.charged, totals.held), (3, 1));
    let hold = hold_of(&fleet, instances[3]).await;
    assert_eq!(hold.reason, "ambiguous_plan");
    let mut names = nanos.map(|plan| plan.to_string());
    names.sort_unstable();
    assert!(hold.detail.ends_with(&names.join(", ")), "{}", hold.detail);

    // The provider decides, where the panel names it.
    let providers = [Uuid::new_v4(), Uuid::new_v4()];
    for (plan, provider) in nanos.iter().zip(providers) {
        db.execute(&format!("UPDATE vps_plans SET provider_id = '{provider}' WHERE id = '{plan}'")).await;
    }
    if db.has_backups() {
        for (provider, hours, cents) in [(providers[1], 2, 10), (providers[0], 4, 30)] {
            let of_provider =
                format!("UPDATE vps_instances SET provider_id = '{provider}' WHERE id = '{}'", instances[3]);
            db.execute(&of_provider).await;
            let preview = daemon.preview(&Order::by(hour(hours + 1))).await;
            assert_eq!(preview.held, 0);
            daemon.bill(hour(hours + 1)).await;
            daemon.bill(hour(hours + 2)).await;
            let last = fleet.charges(instances[3]).await.pop().expect("it is charged");
            assert_eq!(last.amount, cents * CENT, "{last:?}");
        }
    } else {
        daemon.bill(hour(3)).await;
        assert_eq!(hold_of(&fleet, instances[3]).await.reason, "ambiguous_plan");
    }
    assert_sound(db).await;
}

async fn price_with_too_many_decimals_is_reported(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let fine = fleet.plan(Plan::monthly("73.00")).await;
    db.execute("ALTER TABLE vps_plans ALTER COLUMN base_price TYPE numeric(14, 8)").await;
    db.execute(&format!("UPDATE vps_plans SET base_price = 73.00000012 WHERE id = '{plan}'")).await;
    let dear = fleet.instance(Instance::new(org, plan, hour(0)).backups("none")).await;
    let charged = fleet.instance(Instance::new(org, fine, hour(0)).backups("none")).await;

    Daemon::of(db).await.bill(hour(1)).await;

    let hold = hold_of(&fleet, dear).await;
    let detail = format!("plan `{plan}`: base_price 73.00000012 has more than 6 decimals");
    assert_eq!((hold.reason.as_str(), hold.detail), ("invalid_price", detail));
    assert_eq!(fleet.charges(charged).await.len(), 1);
}

async fn organization_without_payable_wallet_is_held(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let none = fleet.organization().await;
    let two = fleet.wallet("100.00").await;
    fleet.wallet_of(two, "50.00").await;
    let null = fleet.wallet("100.00").await;
    db.execute(&format!("UPDATE wallets SET balance = NULL WHERE organization_id = '{null}'")).await;
    let mut rows = vec![(none, "no_wallet"), (two, "duplicate_wallets"), (null, "invalid_balance")];
    if db.backend() != DbBackend::Sqlite {
        let nan = fleet.wallet("100.00").await;
        db.execute(&format!("UPDATE wallets SET balance = 'NaN' WHERE organization_id = '{nan}'")).await;
        rows.push((nan, "invalid_balance"));
    }
    let mut instances = Vec::new();
    for (org, _) in &rows {
        instances.push(fleet.instance(Instance::new(*org, plan, hour(0))).await);
    }
    let solvent = fleet.wallet("100.00").await;
    fleet.instance(Instance::new(solvent, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;

    let totals = daemon.bill(hour(2)).await;

    assert_eq!((totals.charged, totals.held), (1, rows.len() as u64));
    for ((_, reason), instance) in rows.iter().zip(&instances) {
        let hold = hold_of(&fleet, *instance).await;
        assert_eq!((hold.reason.as_str(), hold.hours, hold.amount), (*reason, Some(2), Some(20 * CENT)));
        assert_eq!(fleet.cycles(*instance).await, []);
    }
    assert_eq!(fleet.balances(two).await, [usd("50.00"), usd("100.00")]);
    assert_eq!(number(db, "SELECT count(*) FROM payment_transactions").await, 1);

    fleet.wallet_of(none, "100.00").await;
    let more_than = money(db, 5_000);
    db.execute(&format!("DELETE FROM wallets WHERE organization_id = '{two}' AND balance > {more_than}"))
        .await;
    daemon.bill(hour(3)).await;
    for instance in &instances[..2] {
        assert_eq!(charged(&fleet, *instance).await, (1, 3, 30 * CENT));
    }
    assert_eq!(fleet.balance(two).await, usd("49.70"));
    assert_sound(db).await;
}

async fn hours_beyond_limit_are_held_whole(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let long = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let short = fleet.instance(Instance::new(org, plan, hour(1))).await;
    let daemon = Daemon::of(db).await;

    let totals = daemon.bill(hour(73)).await;

    assert_eq!((totals.charged, totals.hours, totals.held), (1, 72, 1));
    assert_eq!(charged(&fleet, short).await, (1, 72, usd("7.20")));
    let hold = hold_of(&fleet, long).await;
    assert_eq!(
        (hold.reason.as_str(), hold.hours, hold.amount),
        ("catch_up_limit", Some(73), Some(usd("7.30")))
    );
    assert!(hold.detail.contains("--approve-catch-up"), "the detail contains the command: {}", hold.detail);

    let before = contents(db).await;
    let approved = Order::approved_by(hour(74));
    let preview = daemon.preview(&approved).await;
    assert_eq!((preview.charged, preview.hours, in_usd(&preview)), (2, 75, usd("7.50")));
    assert_eq!(contents(db).await, before, "a dry run writes nothing at all");

    assert_eq!(daemon.bill(hour(74)).await.hours, 1, "without approval it is still held");
    let BillReport { totals, .. } = daemon.carry_out(&approved).await.expect("the approved run finishes");
    assert_eq!((totals.charged, totals.hours), (1, 74));
    assert_eq!(charged(&fleet, long).await, (1, 74, usd("7.40")));
    assert!(!fleet.holds(long).await[0].open);
    assert_sound(db).await;
}

/// An approval is in the database, so that the next run of any daemon applies it.
async fn recorded_approval_is_applied_by_any_run(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (one, two) = (fleet.wallet("100.00").await, fleet.wallet("100.00").await);
    let long = fleet.instance(Instance::new(one, plan, hour(0))).await;
    let longer = fleet.instance(Instance::new(one, plan, hour(-100))).await;
    let other = fleet.instance(Instance::new(two, plan, hour(0))).await;
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill(hour(100)).await.held, 3);
    let approve = async |scope: Scope| {
        approve_catch_up(&daemon.db, &scope, "ada", None).await.expect("it is recorded");
    };
    let instances = |instance: Uuid| Scope { instances: vec![instance.to_string()], ..Scope::default() };

    approve(Scope { max_hours: Some(99), ..instances(long) }).await;
    approve(instances(Uuid::nil())).await;
    assert_eq!(Daemon::of(db).await.bill(hour(100)).await.held, 3, "none of the approvals covers one");
    approve(Scope { organizations: vec![one.to_string()], max_hours: Some(150), ..Scope::default() }).await;
    let last =
        number(db, "SELECT max(id) FROM scheduler_audit_log WHERE action = 'approve a catch-up'").await;
    let age = |by: &str| match db.backend() {
        DbBackend::Sqlite => format!(
            "DROP TRIGGER IF EXISTS scheduler_audit_log_no_update;
             UPDATE scheduler_audit_log SET at = at {by} 25 * 3600000000 WHERE id = {last}"
        ),
        _ => format!(
            "ALTER TABLE scheduler_audit_log DISABLE TRIGGER ALL;
             UPDATE scheduler_audit_log SET at = at {by} interval '25 hours' WHERE id = {last}"
        ),
    };
    db.execute(&age("-")).await;
    assert_eq!(Daemon::of(db).await.bill(hour(101)).await.held, 3, "an approval ends after a day");
    db.execute(&age("+")).await;
    let totals = Daemon::of(db).await.bill(hour(102)).await;
    assert_eq!((totals.charged, totals.hours, totals.held), (1, 102, 2));
    assert_eq!(charged(&fleet, long).await, (1, 102, usd("10.20")));

    approve(instances(other)).await;
    approve(Scope { all: true, max_hours: Some(203), ..Scope::default() }).await;
    assert_eq!(daemon.bill(hour(103)).await.held, 0);
    assert_eq!(charged(&fleet, longer).await, (1, 203, usd("20.30")));
    assert_eq!(charged(&fleet, other).await, (1, 103, usd("10.30")));
    assert_sound(db).await;
}

async fn catch_up_limit_is_configurable(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    fleet.instance(Instance::new(org, plan, hour(0))).await;
    for (limit, hours) in [(3, 0), (4, 4)] {
        let settings = BillingSettings { max_catch_up_hours: limit, ..BillingSettings::default() };
        assert_eq!(Daemon::with(db, settings).await.bill(hour(4)).await.hours, hours);
    }
    assert_sound(db).await;
}

on_every_database!(
    invalid_price_holds_only_its_instance,
    unknown_plan_holds_its_instance,
    organization_without_payable_wallet_is_held,
);
on_each_kind!(
    plan_matches_id_or_provider_name,
    hours_beyond_limit_are_held_whole,
    recorded_approval_is_applied_by_any_run,
);
on_every_engine!(catch_up_limit_is_configurable);
on_variants!(price_with_too_many_decimals_is_reported: g1_owner, g2_owner, g3_owner);
