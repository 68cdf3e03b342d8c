//! `bill` and `audit`: manual runs, dry runs, and violated invariants.

use billing_test_support::{
    Db, Fleet, Instance, Panel, Plan, Program, eventually, on_every_engine, on_variants, process::Signal,
};
use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DbBackend, TransactionTrait};
use serde_json::{Value, json};

use super::{json, keys};
use crate::daemon::{
    check_all_charged_once, check_audit, fetch, job, now, program, rows, seed, until_it_waits_for_a_lock,
    with_panel_billing_off,
};

fn with(db: &Db) -> Program {
    let program = program().env("DATABASE_URL", &db.url);
    match db.panel {
        Panel::Empty | Panel::G1 => program,
        Panel::G2 | Panel::G3 => {
            let jobs = job("billing", "billing", "1h", "");
            program.file("jobs.toml", &with_panel_billing_off(db, &jobs))
        }
    }
}

/// What `bill --json` prints.
async fn bill_in_full(db: &Db, arguments: &str) -> Value {
    json(&with(db).run(&format!("bill --json {arguments}")).await.expect_code(0))
}

/// The figures of `bill --json`, apart from how long it took.
async fn bill(db: &Db, arguments: &str) -> Value {
    let mut shown = bill_in_full(db, arguments).await;
    let figures = ["amounts", "charged", "dry_run", "held", "hours"];
    let others = [
        "approved_until",
        "beyond_limit",
        "findings",
        "first_seen_prices",
        "seconds",
        "uncharged",
        "waits_for_approval",
    ];
    let mut all = [&figures[..], &others[..]].concat();
    all.sort_unstable();
    assert_eq!(keys(&shown), all);
    assert!(shown["seconds"].is_f64());
    shown.as_object_mut().expect("an object").retain(|key, _| figures.contains(&key.as_str()));
    shown
}

/// An instance without a wallet to pay for it.
async fn beggar(db: &Db) {
    let fleet = Fleet::new(db);
    let (org, plan) = (fleet.organization().await, fleet.plan(Plan::monthly("5.00")).await);
    fleet.instance(Instance::new(org, plan, now(db).await - TimeDelta::hours(5))).await;
}

async fn bill_charges_once_and_prints_totals(db: &Db) {
    let organizations = seed(db, 4).await;
    beggar(db).await;
    let expected =
        json!({ "charged": 4, "held": 1, "hours": 12, "amounts": { "USD": "0.12" }, "dry_run": false });
    assert_eq!(bill(db, "").await, expected);
    let expected = json!({ "charged": 0, "held": 1, "hours": 0, "amounts": {}, "dry_run": false });
    assert_eq!(bill(db, "").await, expected);
    let ended = with(db).run("bill").await.expect_code(0);
    let sentence = "charged 0.00 for 0 hours of 0 instances; 1 held; ";
    assert!(ended.out.len() == 1 && ended.out[0].starts_with(sentence), "{}", ended.text());

    let recorded = "status || ' ' || cause || ' ' || items FROM scheduler_runs ORDER BY started_at";
    assert_eq!(rows(db, recorded).await, ["done manual 4", "done manual 0", "done manual 0"]);
    assert_eq!(fetch(db, "SELECT holder FROM scheduler_jobs").await, "-", "the lease is given back");
    assert_ne!(fetch(db, "SELECT last_success_at FROM scheduler_fencing").await, "-", "billing works");
    check_all_charged_once(db, &organizations).await;
}

async fn hours_beyond_catch_up_limit_need_approval(db: &Db) {
    let fleet = Fleet::new(db);
    let (org, plan) = (fleet.wallet("100.00").await, fleet.plan(Plan::monthly("7.30")).await);
    fleet.instance(Instance::new(org, plan, now(db).await - TimeDelta::hours(100))).await;
    let held = json!({ "charged": 0, "held": 1, "hours": 0, "amounts": {}, "dry_run": false });
    assert_eq!(bill(db, "").await, held);
    let jobs = job("billing", "billing", "1h", "params = { max-catch-up-hours = 99 }");
    let shown = json(
        &with(db)
            .file("jobs.toml", &with_panel_billing_off(db, &jobs))
            .run("bill --json")
            .await
            .expect_code(0),
    );
    assert_eq!(shown["held"], 1, "the limit is the configuration's");
    let expected =
        json!({ "charged": 1, "held": 0, "hours": 100, "amounts": { "USD": "1.00" }, "dry_run": true });
    assert_eq!(bill(db, "--approve-catch-up --all --dry-run").await, expected);
    let expected =
        json!({ "charged": 1, "held": 0, "hours": 100, "amounts": { "USD": "1.00" }, "dry_run": false });
    assert_eq!(bill(db, "--approve-catch-up --all").await, expected);
}

/// An approval names what it is for; what it covers is listed before and after.
async fn catch_up_approval_covers_named_subjects_only(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let start = now(db).await - TimeDelta::minutes(100 * 60 + 30);
    let (one, two) = (fleet.wallet("100.00").await, fleet.wallet("100.00").await);
    let mut ids = Vec::new();
    for (org, label) in [(one, "web-1"), (one, "web-2"), (two, "web-2"), (two, "web-3")] {
        ids.push(fleet.instance(Instance::new(org, plan, start).label(label)).await);
    }
    for (arguments, message) in [
        ("--approve-catch-up", "name the instances or organizations after `--approve-catch-up`"),
        ("--approve-catch-up web-1 --all", "name the instances or organizations"),
        ("--all", "--approve-catch-up"),
        ("--hours 5", "--approve-catch-up"),
        ("--approve-catch-up web-9", "no instance and no organization is named \"web-9\""),
        ("--approve-catch-up web-2", "\"web-2\" is ambiguous, use an id: instance "),
    ] {
        let refused = with(db).run(&format!("bill {arguments}")).await.expect_code(64);
        assert!(refused.text().contains(message), "{arguments}: {}", refused.text());
    }
    let listed = |shown: &Value| {
        let listed = shown["beyond_limit"].as_array().expect("a list").iter();
        let mut listed: Vec<_> = listed
            .map(|row| {
                assert_eq!((&row["hours"], &row["amount"]), (&json!(100), &json!("1.00")), "{row}");
                assert!(row["start"].as_str().is_some_and(|start| start.ends_with('Z')), "{row}");
                (row["label"].as_str().expect("text").to_owned(), row["approved"] == true)
            })
            .collect();
        listed.sort_unstable();
        listed
    };
    let state = |approved: [bool; 4]| {
        ["web-1", "web-2", "web-2", "web-3"].map(str::to_owned).into_iter().zip(approved).collect::<Vec<_>>()
    };
    let shown = bill_in_full(db, "--dry-run").await;
    assert_eq!(listed(&shown), state([false; 4]), "{shown}");
    let shown = bill_in_full(db, "--dry-run --approve-catch-up web-1").await;
    assert_eq!((listed(&shown), &shown["charged"]), (state([true, false, false, false]), &json!(1)));
    let shown = bill_in_full(db, "--dry-run --approve-catch-up --all --hours 99").await;
    assert_eq!(listed(&shown), state([false; 4]), "{shown}");
    let narrow = with(db).env("COLUMNS", "80");
    let output = narrow.run("bill --dry-run --approve-catch-up web-1 web-3").await.expect_code(0);
    assert!(output.text().contains("4 instances have more than 72 hours due:"), "{}", output.text());
    assert!(output.out.iter().all(|line| line.chars().count() <= 80), "{}", output.text());

    let arguments = format!("--approve-catch-up web-1 {two} --hours 100 --reason outage");
    let shown = bill_in_full(db, &arguments).await;
    assert_eq!((&shown["charged"], &shown["held"]), (&json!(3), &json!(1)), "{shown}");
    assert!(shown["approved_until"].is_string(), "{shown}");
    let entry = "reason || ' ' || details FROM scheduler_audit_log WHERE action = 'approve a catch-up'";
    let entry = rows(db, entry).await.remove(0);
    for part in ["outage {", &ids[0].to_string(), &two.to_string(), r#""max_hours":100"#, "expires_at"] {
        assert!(entry.contains(part), "no {part} in {entry}");
    }
    assert_eq!(bill(db, "").await["held"], 1, "the other instance of the first organization");
}

/// Only one process at a time may charge; a dry run is always permitted.
async fn held_lease_permits_dry_run_only(db: &Db) {
    seed(db, 3).await;
    beggar(db).await;
    let (later, now) = match db.backend() {
        DbBackend::Sqlite => ("(unixepoch('now') + 3600) * 1000000", "0"),
        _ => ("now() + interval '1 hour'", "now()"),
    };
    db.execute(&format!(
        "INSERT INTO scheduler_jobs (job, fencing_token, holder, expires_at, cursor_at)
         VALUES ('billing', 7, 'another process', {later}, {now});
         INSERT INTO scheduler_fencing (job, fencing_token) VALUES ('billing', 7)"
    ))
    .await;
    let before = everything(db).await;
    let expected =
        json!({ "charged": 3, "held": 1, "hours": 9, "amounts": { "USD": "0.09" }, "dry_run": true });
    assert_eq!(bill(db, "--dry-run").await, expected);
    let ended = with(db).run("bill --dry-run").await.expect_code(0);
    assert!(
        ended.out[0].starts_with("would charge 0.09 USD for 9 hours of 3 instances; 1 held; "),
        "{}",
        ended.text()
    );
    let ended = with(db).run("bill").await.expect_code(75);
    let last = ended.err.last().map(String::as_str);
    assert_eq!(last, Some("error: billing is being run by another process: try again when it is done"));
    assert_eq!(everything(db).await, before, "nothing was written");
}

/// Every table that billing may write to, row by row.
async fn everything(db: &Db) -> Vec<String> {
    let mut everything = Vec::new();
    for (table, columns) in [
        ("wallets", "organization_id || ' ' || balance"),
        ("vps_instances", "id || ' ' || coalesce(CAST(last_billed_at AS text), 'never')"),
        ("payment_transactions", "id"),
        ("vps_billing_cycles", "id"),
        ("billing_daemon_status", "id"),
        ("scheduler_jobs", "job || fencing_token || holder"),
        ("scheduler_fencing", "job || fencing_token || coalesce(CAST(last_success_at AS text), '')"),
        ("scheduler_runs", "id"),
        ("billing_batches", "id"),
        ("billing_charges", "instance_id"),
        ("billing_meters", "instance_id"),
        ("billing_holds", "id"),
        ("billing_seen_rates", "plan_id || backups"),
        ("billing_wallet_openings", "wallet_id"),
    ] {
        everything.push(table.to_owned());
        everything.extend(rows(db, &format!("CAST({columns} AS text) FROM {table} ORDER BY 1")).await);
    }
    everything
}

async fn audit_command_reports_tampering(db: &Db) {
    seed(db, 2).await;
    bill(db, "").await;
    let shown = json(&with(db).run("audit --json").await.expect_code(0));
    assert_eq!(keys(&shown), ["checked", "uncharged", "violations"]);
    assert_eq!(shown["violations"], json!([]));
    let checked = shown["checked"].as_u64().expect("a number");
    assert!(checked > 10, "{shown}");
    let ended = with(db).run("audit").await.expect_code(0);
    assert_eq!(ended.out, [format!("{checked} rows checked, 0 violations")]);

    db.execute("UPDATE wallets SET balance = balance + 1").await;
    let shown = json(&with(db).run("audit --json").await.expect_code(1));
    let violations = shown["violations"].as_array().expect("a list");
    assert_eq!(violations.len(), 2, "{shown}");
    for violation in violations {
        assert_eq!(keys(violation), ["check", "detail", "resolve"]);
        assert_eq!(violation["check"], "wallet_balance");
    }
    let ended = with(db).run("audit").await.expect_code(1);
    assert!(
        ended.out[..2].iter().all(|line| line.starts_with("wallet_balance: wallet ")),
        "{}",
        ended.text()
    );
    assert_eq!(ended.out[2], format!("help: {}", violations[0]["resolve"].as_str().expect("text")));
    assert_eq!(ended.out[3], format!("{checked} rows checked, 2 violations"), "{}", ended.text());
    assert!(ended.err.is_empty(), "{}", ended.text());
}

on_every_engine!(held_lease_permits_dry_run_only, audit_command_reports_tampering);
on_variants!(bill_charges_once_and_prints_totals: sqlite, g1_role, g2_owner, g3_role);
on_variants!(hours_beyond_catch_up_limit_need_approval: sqlite, g3_role);
on_variants!(catch_up_approval_covers_named_subjects_only: sqlite, g1_role);

#[tokio::test]
async fn interrupted_bill_keeps_whole_batches() {
    let db = Db::g1_role().await;
    let organizations = seed(&db, 4).await;
    let lock = db.admin().begin().await.expect("a transaction begins");
    let locked = format!("SELECT FROM wallets WHERE organization_id = '{}' FOR UPDATE", organizations[1]);
    lock.execute_unprepared(&locked).await.expect("a wallet is locked");
    let jobs = job("billing", "billing", "1h", "params = { batch-instances = 1 }");
    let program = with(&db).file("jobs.toml", &jobs);
    let running = program.start("bill");
    until_it_waits_for_a_lock(&db).await;
    running.signal(Signal::TERM);
    // The signal is noticed when the lease is renewed, which the lock does not block.
    let expires = fetch(&db, "SELECT expires_at FROM scheduler_jobs").await;
    let renewed =
        async || (fetch(&db, "SELECT expires_at FROM scheduler_jobs").await != expires).then_some(());
    eventually("the signal is handled", renewed).await;
    lock.rollback().await.expect("a lock is given back");
    let ended = running.ended().await.expect_code(75);
    let last = [
        "error: stopped before the end: the daemon is shutting down",
        "help: run it again for the rest; what was charged stays charged",
    ];
    assert!(ended.err.ends_with(&last.map(str::to_owned)), "{}", ended.text());
    assert_eq!(fetch(&db, "SELECT count(*) FROM billing_charges").await, "2");
    check_audit(&db).await;
    with(&db).run("bill").await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}
