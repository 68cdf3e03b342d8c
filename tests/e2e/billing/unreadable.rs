//! Rows that cannot be read cost their own customer, and no other one.

use billing_jobs::{
    audit::audit,
    billing::{BillingError, BillingSettings},
};
use billing_test_support::{Db, Fleet, Instance, Plan, eventually, on_every_engine, on_variants};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{
    CONSTRAINT_VIOLATION, Daemon, Order, REFUSAL, TEN_CENTS_AN_HOUR, Then, connect, drop_trigger, hour,
    number, texts, trigger,
};
use crate::{
    commands::json,
    daemon::{BILLING, HEARTBEAT, check_all_charged_once, daemon, now, program, seed},
};

/// How many healthy customers there are, and how many one batch takes: most batches follow a bad one.
const HEALTHY: u32 = 3_000;
const BATCH: u32 = 100;

/// A value that a column may contain, in a row of a separate customer.
struct Hostile {
    table: &'static str,
    column: &'static str,
    value: &'static str,
    /// The reason of the hold of its instance; `None` if it is billed.
    held: Option<&'static str>,
}

fn hostile(table: &'static str, column: &'static str, value: &'static str, held: &'static str) -> Hostile {
    Hostile { table, column, value, held: (held != "billed").then_some(held) }
}

/// The values that each database accepts. On PostgreSQL after a migration of the panel that drops NOT NULL and widens its types.
fn hostile_values(db: &Db, any_text: bool) -> Vec<Hostile> {
    let sqlite = db.backend() == DbBackend::Sqlite;
    let mut values = Vec::new();
    if sqlite {
        let invalid = "CAST(x'77ff62' AS TEXT)";
        for column in ["organization_id", "plan_id", "label", "provider_id"] {
            values.push(hostile("vps_instances", column, invalid, "unreadable"));
        }
        values.extend([
            hostile("vps_instances", "label", "'a' || char(0) || 'b'", "billed"),
            hostile("wallets", "currency", invalid, "unreadable"),
            hostile("wallets", "id", invalid, "unreadable"),
            hostile("wallets", "balance", "9223372036854775807", "billed"),
            hostile("wallets", "balance", "-9223372036854775807 - 1", "insufficient_balance"),
            hostile("vps_plans", "base_price", "-9223372036854775807 - 1", "invalid_price"),
            hostile("vps_plans", "base_price", "9223372036854775807", "invalid_price"),
            hostile("vps_plans", "provider_plan_id", invalid, "unreadable"),
            hostile("vps_plans", "provider_id", invalid, "unreadable"),
            hostile("payment_transactions", "amount", "9223372036854775807", "billed"),
            hostile("payment_transactions", "amount", "-9223372036854775807 - 1", "billed"),
            hostile("payment_transactions", "metadata", "'{'", "billed"),
            hostile("payment_transactions", "description", invalid, "billed"),
            hostile("billing_meters", "rate_changes", "'{'", "unreadable"),
            hostile("billing_meters", "rate_changes", "'[[5,1,0],[4,1,0]]'", "unreadable"),
            hostile("billing_meters", "rate_changes", "'[[5,-1,0]]'", "unreadable"),
            hostile("billing_meters", "rate_changes", "'[[5,1,2]]'", "unreadable"),
            hostile("billing_meters", "rate_changes", invalid, "unreadable"),
        ]);
        return values;
    }
    values.extend([
        hostile("vps_instances", "organization_id", "NULL", "unreadable"),
        hostile("vps_instances", "plan_id", "NULL", "unreadable"),
        hostile("vps_instances", "label", "NULL", "unreadable"),
        hostile("wallets", "organization_id", "NULL", "no_wallet"),
        hostile("wallets", "balance", "1e20", "invalid_balance"),
        hostile("wallets", "balance", "'Infinity'", "invalid_balance"),
        hostile("wallets", "balance", "12.34567891", "invalid_balance"),
        hostile("vps_plans", "base_price", "1e20", "invalid_price"),
        hostile("vps_plans", "base_price", "'NaN'", "invalid_price"),
        hostile("vps_plans", "provider_plan_id", "NULL", "billed"),
        hostile("vps_plans", "name", "NULL", "billed"),
        hostile("payment_transactions", "amount", "'NaN'", "billed"),
        hostile("payment_transactions", "amount", "1e30", "billed"),
        hostile("payment_transactions", "metadata", "'[1, {\"balance_before\": \"x\"}]'", "billed"),
        hostile("billing_meters", "rate_changes", "'{}'", "unreadable"),
        hostile("billing_meters", "rate_changes", "'[[5, -1, 0]]'", "unreadable"),
    ]);
    if any_text {
        for column in ["plan_id", "label"] {
            values.push(hostile("vps_instances", column, r"E'w\377b'", "unreadable"));
        }
        values.extend([
            hostile("vps_plans", "provider_plan_id", r"E'w\377b'", "unreadable"),
            hostile("vps_plans", "name", r"E'w\377b'", "billed"),
            hostile("wallets", "currency", r"E'\377'", "unreadable"),
            hostile("payment_transactions", "description", r"E'w\377b'", "billed"),
        ]);
    }
    values
}

/// This many organizations of one instance each, in one statement per table.
async fn add_customers(db: &Db, plan: Uuid) {
    let uuid = |prefix: &str| match db.backend() {
        DbBackend::Sqlite => format!("printf('{prefix}%06d-0000-4000-8000-000000000000', n)"),
        _ => format!("('{prefix}' || lpad(n::text, 6, '0') || '-0000-4000-8000-000000000000')::uuid"),
    };
    let owner = texts(db, "SELECT CAST(id AS text) FROM users LIMIT 1").await.remove(0);
    let balance = super::money(db, 10_000);
    let created = hour(0).to_rfc3339();
    let text = |value: &str| match db.backend() {
        DbBackend::Sqlite => value.to_owned(),
        _ => format!("{value}::text"),
    };
    // The first digits are spread, so that the bad ones are among them.
    for (table, columns, values) in [
        (
            "organizations",
            "id, name, slug, owner_id",
            format!("{}, 'Healthy', {}, '{owner}'", uuid("%"), text(&uuid("%"))),
        ),
        ("wallets", "organization_id, balance", format!("{}, {balance}", uuid("%"))),
        (
            "vps_instances",
            "id, organization_id, plan_id, provider_instance_id, label, created_at",
            format!("{0}, {0}, '{plan}', 'provider', 'healthy', '{created}'", uuid("%")),
        ),
    ] {
        for digit in 0..10 {
            let values = values
                .replace('%', &format!("{digit}{digit}"))
                .replace(&format!("{digit}{digit}06d"), "%06d");
            let count = HEALTHY / 10;
            db.execute(&format!(
                "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
                 INSERT INTO {table} ({columns}) SELECT {values} FROM numbers"
            ))
            .await;
        }
    }
}

/// Changes that a later panel may make to its tables.
async fn widen(db: &Db) {
    if db.backend() == DbBackend::Sqlite {
        return;
    }
    for (table, column) in [
        ("vps_instances", "organization_id"),
        ("vps_instances", "plan_id"),
        ("vps_instances", "label"),
        ("wallets", "organization_id"),
        ("vps_plans", "provider_plan_id"),
        ("vps_plans", "name"),
    ] {
        db.execute(&format!("ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL")).await;
    }
    for (table, column) in
        [("wallets", "balance"), ("vps_plans", "base_price"), ("payment_transactions", "amount")]
    {
        db.execute(&format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE numeric")).await;
    }
}

async fn corrupt(db: &Db, bad: &Hostile, org: Uuid, plan: Uuid, instance: Uuid) {
    let Hostile { table, column, value, .. } = bad;
    let row = match *table {
        "vps_instances" => format!("id = '{instance}'"),
        "vps_plans" => format!("id = '{plan}'"),
        "billing_meters" => format!("instance_id = '{instance}'"),
        _ => format!("organization_id = '{org}'"),
    };
    db.execute(&format!("UPDATE {table} SET {column} = {value} WHERE {row}")).await;
}

async fn hostile_value_costs_its_customer_alone(db: &Db) {
    let any_text = db.backend() != DbBackend::Sqlite
        && texts(db, "SELECT current_setting('server_encoding')").await == ["SQL_ASCII"];
    let fleet = Fleet::new(db);
    let good = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut cases = Vec::new();
    for bad in hostile_values(db, any_text) {
        let (org, plan) = (fleet.wallet("50.00").await, fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await);
        let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
        fleet.top_up(org, "50.00").await;
        cases.push((bad, org, plan, instance));
    }
    add_customers(db, good).await;
    widen(db).await;
    let ledger = |bad: &Hostile| bad.table == "payment_transactions";
    for (bad, org, plan, instance) in cases.iter().filter(|(bad, ..)| ledger(bad)) {
        corrupt(db, bad, *org, *plan, *instance).await;
    }
    let daemon =
        Daemon::with(db, BillingSettings { batch_instances: Some(BATCH), ..BillingSettings::default() })
            .await;
    let all = u64::from(HEALTHY) + cases.len() as u64;
    assert_eq!(daemon.bill(hour(1)).await.charged, all, "a bad row of the ledger causes no hold");
    for (bad, org, plan, instance) in cases.iter().filter(|(bad, ..)| !ledger(bad)) {
        corrupt(db, bad, *org, *plan, *instance).await;
    }

    let bill = daemon.carry_out(&Order::by(hour(3))).await.expect("the run finishes");

    let held = cases.iter().filter(|(bad, ..)| bad.held.is_some()).count() as u64;
    let reasons = |instance: Uuid| async move {
        let sql =
            format!("SELECT reason || ': ' || detail FROM billing_holds WHERE instance_id = '{instance}'");
        texts(db, &sql).await
    };
    for (bad, _, _, instance) in &cases {
        let name = format!("{}.{} = {}", bad.table, bad.column, bad.value);
        let found = reasons(*instance).await;
        match bad.held {
            None => assert_eq!(found, [""; 0], "{name}"),
            Some(reason) => {
                assert!(found.len() == 1 && found[0].starts_with(reason), "{name}: {found:?}");
                let column = format!("{}.{}", bad.table, bad.column);
                assert!(reason != "unreadable" || found[0].contains(&column), "{name}: {found:?}");
            }
        }
    }
    assert_eq!((bill.totals.charged, bill.totals.held), (all - held, held));
    let unreadable = &bill.findings["unreadable"];
    let expected = cases.iter().filter(|(bad, ..)| bad.held == Some("unreadable")).count() as u64;
    assert!(unreadable.count >= expected && unreadable.listed.len() <= 10, "{unreadable:?}");
    assert!(number(db, "SELECT count(*) FROM billing_batches WHERE charges > 0").await > 30);

    let connection = connect(&db.url).await.1;
    let audited = audit(&connection).await.expect("the audit finishes");
    let of_healthy = |detail: &str| detail.contains("-0000-4000-8000-000000000000");
    let wrong: Vec<_> = audited.violations.iter().filter(|found| of_healthy(&found.detail)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let adoption = daemon.biller().adopt(false, "a test").await.expect("a dry run finishes");
    assert_eq!(adoption.instances, all);
    read_by_command(db, &cases).await;
}

/// The commands that read, each to its end.
async fn read_by_command(db: &Db, cases: &[(Hostile, Uuid, Uuid, Uuid)]) {
    let command = program().env("DATABASE_URL", &db.url);
    let status = command.run("status --json").await;
    assert_eq!(json(&status)["last_run"]["status"], "done", "{}", status.text());
    for (bad, _, _, instance) in cases {
        let ended = command.run(&format!("charges explain {instance} --json")).await.expect_code(0);
        assert_eq!(json(&ended)["hold"]["reason"].as_str(), bad.held, "{}", ended.text());
    }
}

/// Every charge is refused, as by a constraint that a migration of the panel adds.
async fn run_that_posts_nothing_fails(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut customers = Vec::new();
    for _ in 0..40 {
        let org = fleet.wallet("50.00").await;
        customers.push((org, fleet.instance(Instance::new(org, plan, hour(0))).await));
    }
    let daemon = Daemon::with_batches_of(db, 5).await;
    for (then, complaint) in [
        (Then::Refuse(CONSTRAINT_VIOLATION), REFUSAL),
        (Then::Ignore, "the database discards changes of payment_transactions"),
    ] {
        trigger(db, "no_debits", "BEFORE INSERT ON payment_transactions", "true", &then).await;
        let error = daemon.carry_out(&Order::by(hour(2))).await.expect_err("nothing was posted");
        drop_trigger(db, "no_debits").await;
        assert!(matches!(error, BillingError::Refused { instances: 10.., .. }), "{error}");
        assert!(error.to_string().contains(complaint), "{error}");
        let held = number(db, "SELECT count(*) FROM billing_holds WHERE closed_at IS NULL").await;
        assert!(held < 20, "{held} were held before it stopped");
        assert_eq!(number(db, "SELECT count(last_success_at) FROM scheduler_fencing").await, 0);
    }
    let (bad, _) = customers[7];
    let condition = format!("NEW.organization_id = '{bad}'");
    trigger(db, "no_debits", "BEFORE INSERT ON payment_transactions", &condition, &Then::Ignore).await;
    let bill = daemon.carry_out(&Order::by(hour(2))).await.expect("one bad customer fails no run");
    assert_eq!((bill.totals.charged, bill.totals.held), (39, 1));
    assert_eq!(bill.findings["refused"].count, 1, "{:?}", bill.findings);
    assert_eq!(number(db, "SELECT count(last_success_at) FROM scheduler_fencing").await, 1);
    drop_trigger(db, "no_debits").await;

    trigger(
        db,
        "refuse_all",
        "BEFORE INSERT ON payment_transactions",
        "true",
        &Then::Refuse(CONSTRAINT_VIOLATION),
    )
    .await;
    fleet.plan(Plan::monthly("14.60")).await;
    let command = program().env("DATABASE_URL", &db.url);
    let ended = command.run("bill --approve-catch-up --all --reason test").await.expect_code(1);
    assert!(ended.text().contains(REFUSAL) && ended.err.len() < 10, "{}", ended.text());
    let listed = json(&command.run("runs list --job billing --limit 1 --json").await.expect_code(0));
    assert_eq!(listed[0]["status"], "dead");
    let first = &listed[0]["details"]["first_seen_prices"];
    assert_eq!((&first["count"], &first["listed"][0]["hourly_price"]), (&1.into(), &"0.020000".into()));
}

/// A migration of the panel may add such a constraint under a running daemon: heartbeats end at once, until it is removed.
async fn refused_run_stops_heartbeat(db: &Db) {
    const HEARTBEAT_AT: &str = "SELECT coalesce(CAST(heartbeat_at AS text), '-') FROM billing_daemon_status";
    let organizations = seed(db, 3).await;
    let refuse = Then::Refuse(CONSTRAINT_VIOLATION);
    let worked = "SELECT count(last_success_at) FROM scheduler_fencing";
    trigger(db, "no_debits", "BEFORE INSERT ON payment_transactions", "true", &refuse).await;
    let program = daemon(db, &[BILLING, HEARTBEAT]);
    let running = program.start("run");
    running.wait_for_line("attempt 1 of 100").await;
    running.wait_for_line("no heartbeat: the last billing run failed: the database refuses charges").await;
    // A heartbeat may have been running while the first run failed; after it there is none.
    let beat = texts(db, HEARTBEAT_AT).await;
    running.wait_for_line("attempt 2 of 100").await;
    running.wait_for_lines("no heartbeat: the last billing run failed", 3).await;
    assert_eq!(texts(db, HEARTBEAT_AT).await, beat, "it ages");
    let row = "SELECT count(*) FROM billing_daemon_status
                WHERE status = 'error' AND NOT last_run_success AND instances_billed = 0
                  AND error_message LIKE '%the database refuses charges%'";
    assert_eq!(number(db, row).await, 1);
    assert_eq!(number(db, worked).await, 0);

    drop_trigger(db, "no_debits").await;
    let row = "SELECT count(*) FROM billing_daemon_status
                WHERE status = 'running' AND last_run_success AND instances_billed > 0 AND heartbeat_at IS NOT NULL";
    eventually("the heartbeat continues", async || (number(db, row).await == 1).then_some(())).await;
    assert_eq!(number(db, worked).await, 1);
    running.terminated().await.expect_code(0);
    assert_eq!(number(db, worked).await, 0, "a stop takes the success back");
    // A run that was in progress when the trigger went may have had its first instances refused.
    program.run("bill").await.expect_code(0);
    check_all_charged_once(db, &organizations).await;

    seed(db, 2).await;
    trigger(db, "no_debits", "BEFORE INSERT ON payment_transactions", "true", &refuse).await;
    let charges = "SELECT count(*) FROM billing_charges";
    let before = number(db, charges).await;
    let ended = program.run("bill").await.expect_code(1);
    let refused = "the database refuses charges, so the run ends (2 instances were refused)";
    assert!(ended.text().contains(refused), "{}", ended.text());
    assert_eq!(number(db, charges).await, before);
}

/// Ten findings of all kinds together are logged; the others are counted.
async fn run_warns_ten_times(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (now, hours) = (now(db).await, chrono::TimeDelta::hours);
    let created = now - hours(9);
    let customer = async |instances| {
        let org = fleet.wallet("50.00").await;
        for _ in 0..instances {
            fleet.instance(Instance::new(org, plan, created)).await;
        }
        org
    };
    let deleted = customer(12).await;
    Daemon::of(db).await.bill(now - hours(4)).await;
    db.execute("UPDATE billing_meters SET rate_changes = '{}'").await;
    db.execute(&format!("DELETE FROM vps_instances WHERE organization_id = '{deleted}'")).await;
    let refused = customer(12).await;
    customer(1).await;
    let condition = format!("NEW.organization_id = '{refused}'");
    let refuse = Then::Refuse(CONSTRAINT_VIOLATION);
    trigger(db, "no_debits", "BEFORE INSERT ON payment_transactions", &condition, &refuse).await;

    let program = daemon(db, &[BILLING]);
    let ended = program.run("bill").await.expect_code(0);

    let warnings: Vec<&String> = ended.err.iter().filter(|line| line.contains("[WARN]")).collect();
    assert_eq!(warnings.len(), 11, "{}", ended.text());
    assert!(warnings[10].contains("14 more rows cannot be read or were refused"), "{}", warnings[10]);
    let listed = json(&program.run("runs list --job billing --limit 1 --json").await.expect_code(0));
    let findings = &listed[0]["details"]["findings"];
    assert_eq!((&findings["unreadable"]["count"], &findings["refused"]["count"]), (&12.into(), &12.into()));
}

/// A label that would forge a line and steer the terminal.
async fn hostile_label_is_shown_escaped(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let label = "web\nok  forged\u{1b}[2J\u{202e}";
    let org = fleet.wallet("0.00").await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0)).label(label)).await;
    Daemon::of(db).await.bill(hour(2)).await;
    let command = program().env("DATABASE_URL", &db.url);
    for line in [
        &format!("charges explain {instance}"),
        "adopt --dry-run",
        "status",
        "holds list",
        "holds list --csv",
    ] {
        let text = command.run(line).await.text();
        let is_safe = |c: char| !c.is_control() || c == '\n';
        assert!(text.chars().all(is_safe) && !text.contains('\u{202e}'), "{line}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("ok  forged")), "{line}: {text}");
    }
    let explained = json(&command.run(&format!("charges explain {instance} --json")).await);
    assert_eq!(explained["label"], label);
    let listed = command.run("holds list --json").await.expect_code(0);
    let listed: serde_json::Value = serde_json::from_str(&listed.out.join("\n")).expect("it is JSON");
    assert_eq!(listed[0]["label"], label);
}

/// The runs list ten of them and count the others.
async fn unreadable_meters_of_deleted_instances_are_listed(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("50.00").await;
    for _ in 0..12 {
        fleet.instance(Instance::new(org, plan, hour(0))).await;
    }
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    db.execute("UPDATE billing_meters SET rate_changes = '{}'; DELETE FROM vps_instances").await;

    let bill = daemon.carry_out(&Order::by(hour(3))).await.expect("the run finishes");

    let unreadable = &bill.findings["unreadable"];
    assert_eq!((unreadable.count, unreadable.listed.len()), (12, 10));
    assert!(unreadable.listed[0].contains("billing_meters.rate_changes"), "{unreadable:?}");
}

on_every_engine!(
    run_that_posts_nothing_fails,
    refused_run_stops_heartbeat,
    run_warns_ten_times,
    hostile_label_is_shown_escaped,
    unreadable_meters_of_deleted_instances_are_listed,
);
on_variants!(hostile_value_costs_its_customer_alone: sqlite, postgres, any_text);
