//! `charges explain`: the parts of one charge or hold.

use billing_test_support::{Db, Fleet, Instance, Plan, on_every_engine, on_variants};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DbBackend;
use serde_json::json;

use super::json;
use crate::daemon::{BILLING, daemon, fetch, now};

fn at(value: &serde_json::Value) -> DateTime<Utc> {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no time: {value}"))
}

async fn charges_explain_accounts_for_every_fraction(db: &Db) {
    let fleet = Fleet::new(db);
    let (org, plan) = (fleet.wallet("1.00").await, fleet.plan(Plan::monthly("5.00").markup("0.11")).await);
    let created = now(db).await - TimeDelta::minutes(3 * 60 + 30);
    let billed = created + TimeDelta::hours(1);
    let instance = fleet.instance(Instance::new(org, plan, created).billed(billed).label("web-1")).await;
    let program = daemon(db, &[BILLING]);
    program.run("bill").await.expect_code(0);

    let shown = json(&program.run("charges explain web-1 --json").await.expect_code(0));
    let charge = &shown["charge"];
    assert_eq!(shown["instance"], instance.to_string());
    assert_eq!((&shown["label"], &shown["deleted"]), (&json!("web-1"), &json!(false)));
    assert_eq!(shown["plan"]["monthly"], "5.11");
    assert_eq!(
        (at(&charge["period_start"]), at(&charge["period_end"])),
        (billed, billed + TimeDelta::hours(2))
    );
    assert_eq!(at(&shown["billed_through"]), billed + TimeDelta::hours(2));
    // 5.11 a month are 0.007 an hour; a panel of cents takes 1 and carries 0.004.
    let cents = db.wallet_unit() == 100;
    assert_eq!(charge["hourly_price"], "0.007000");
    assert_eq!((&charge["rate"], &charge["carry_before"]), (&json!(5_110_000), &json!(0)));
    let (amount, carry, after) = if cents { ("0.01", 2_920_000, "0.99") } else { ("0.0140", 0, "0.986") };
    assert_eq!((&charge["amount"], &charge["carry_after"]), (&json!(amount), &json!(carry)));
    assert_eq!((&charge["adds_up"], &charge["by_panel"]), (&json!(true), &json!(false)));
    let money = |value: &serde_json::Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
    assert_eq!(money(&charge["ledger"]["balance_before"]), Some(1.0), "{shown}");
    assert_eq!(money(&charge["ledger"]["balance_after"]), after.parse().ok(), "{shown}");
    assert_eq!(charge["ledger"]["description"], "VPS Hourly Billing - web-1 (2h)");
    let run = fetch(db, "SELECT id FROM scheduler_runs").await;
    let batch = &charge["batch"];
    assert_eq!((&batch["run"], &batch["cause"]), (&json!(run), &json!("manual")), "{shown}");
    assert_eq!(charge["cycle"]["id"], fetch(db, "SELECT id FROM vps_billing_cycles").await, "{shown}");

    let output = program.run(&format!("charges explain {instance}")).await.expect_code(0);
    assert!(
        output.text().contains("0.007000 (5.11 per month of 730 hours, with backups)"),
        "{}",
        output.text()
    );
    assert!(output.text().contains("adds up       exactly"), "{}", output.text());

    // Each hour has one charge.
    let inside = (billed + TimeDelta::minutes(90)).to_rfc3339();
    let same =
        json(&program.run(&format!("charges explain web-1 --json --at {inside}")).await.expect_code(0));
    assert_eq!(same["charge"], *charge);
    let before = (billed - TimeDelta::minutes(1)).to_rfc3339();
    let ended = program.run(&format!("charges explain web-1 --at {before}")).await.expect_code(1);
    assert!(ended.text().contains("was neither charged nor held at"), "{}", ended.text());

    // The output after the instance is deleted.
    fleet.delete(instance).await;
    let gone = json(&program.run(&format!("charges explain {instance} --json")).await.expect_code(0));
    assert_eq!((&gone["deleted"], &gone["charge"]["amount"]), (&json!(true), &json!(amount)));
    // PostgreSQL deletes the cycles together with the instance.
    let sqlite = db.backend() == DbBackend::Sqlite;
    assert_eq!(
        gone["charge"]["cycle"],
        if sqlite { charge["cycle"].clone() } else { serde_json::Value::Null }
    );
    program.run("charges explain web-1").await.expect_code(1);
}

async fn charges_explain_describes_hold(db: &Db) {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let poor = Instance::new(fleet.wallet("0.01").await, plan, created).label("poor");
    fleet.instance(poor).await;
    for _ in 0..2 {
        let twin = Instance::new(fleet.wallet("9.00").await, plan, created).label("twin");
        fleet.instance(twin).await;
    }
    let program = daemon(db, &[BILLING]);
    program.run("bill").await.expect_code(0);
    let shown = json(&program.run("charges explain poor --json").await.expect_code(0));
    assert_eq!(shown["charge"]["amount"], "0.01", "the hour that it could pay");
    let hold = &shown["hold"];
    assert_eq!((&hold["reason"], &hold["hours_due"]), (&json!("insufficient_balance"), &json!(1)), "{shown}");
    assert_eq!((&hold["amount_due"], &hold["closed_at"]), (&json!("0.01"), &serde_json::Value::Null));
    let output = program.run("charges explain poor").await.expect_code(0);
    assert!(output.text().contains("held            insufficient_balance: "), "{}", output.text());
    let ended = program.run("charges explain twin").await.expect_code(64);
    assert!(ended.text().contains("several instances are labelled `twin`"), "{}", ended.text());
    program.run("charges explain 0191e6a0-0000-7000-8000-000000000000").await.expect_code(1);
}

/// A charge has the price that was seen before its last hour ended; a later one is listed, and applies to later hours.
async fn charges_explain_lists_prices(db: &Db) {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    fleet.instance(Instance::new(fleet.wallet("9.00").await, plan, created).label("web-1")).await;
    let program = daemon(db, &[BILLING]);
    program.run("bill").await.expect_code(0);
    fleet.reprice(plan, Some("14.60")).await;
    program.run("bill").await.expect_code(0);
    let shown = json(&program.run("charges explain web-1 --json").await.expect_code(0));
    let prices = shown["prices"].as_array().expect("a list");
    let price = |place: usize| (&prices[place]["hourly_price"], &prices[place]["applied"]);
    assert_eq!(price(0), (&json!("0.020000"), &json!(false)), "{shown}");
    assert_eq!(price(1), (&json!("0.010000"), &json!(true)), "{shown}");
    assert_eq!(shown["charge"]["hourly_price"], prices[1]["hourly_price"]);
    assert!(at(&prices[1]["seen_at"]) < at(&prices[0]["seen_at"]));
    let output = program.run("charges explain web-1").await.expect_code(0);
    assert!(output.text().contains("price since"), "{}", output.text());
}

/// The output names the organization that paid each hour and the one whose hours were closed.
async fn transferred_hours_name_their_organization(db: &Db) {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let (previous, new) = (fleet.wallet("0.01").await, fleet.wallet("9.00").await);
    let instance = fleet.instance(Instance::new(previous, plan, created).label("web-1")).await;
    let program = daemon(db, &[BILLING]);
    program.run("bill").await.expect_code(0);
    fleet.transfer(instance, new).await;
    let output = program.run("bill").await.expect_code(0);
    let expected = "1 instance transferred with 1 hour of the previous organization uncharged (0.01 USD)";
    assert!(output.text().contains(expected), "{}", output.text());

    let shown = json(&program.run("charges explain web-1 --json").await.expect_code(0));

    assert_eq!(shown["charge"]["organization"], previous.to_string());
    let hold = &shown["hold"];
    assert_eq!(hold["organization"], previous.to_string());
    assert_eq!((&hold["closed_reason"], &hold["hours_due"]), (&json!("instance_transferred"), &json!(1)));
    let output = program.run("charges explain web-1").await.expect_code(0);
    let detail = format!("instance_transferred: organization {new} has the instance now");
    assert!(output.text().contains(&detail), "{}", output.text());
}

on_variants!(transferred_hours_name_their_organization: sqlite, g3_role);
on_variants!(charges_explain_accounts_for_every_fraction: sqlite, postgres, g1_role, g3_role);
on_every_engine!(charges_explain_describes_hold, charges_explain_lists_prices);
