//! `wallets`, `standing show` and `prepaid simulate`, next to a daemon that runs the job.

use billing_test_support::{Db, Fleet, Instance, Plan, Program, eventually, on_variants};
use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{json, keys};
use crate::daemon::{BILLING, daemon, fetch, job, now};

const PREPAID: &str = "run-at-start = true\nparams = { notice-hours = [48, 12], grace = '12h' }";

async fn list(program: &Program, arguments: &str) -> Vec<Value> {
    let ended = program.run(arguments).await.expect_code(0);
    let text = ended.out.join("\n");
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    list.as_array().expect("a list").clone()
}

/// A program whose daemon has checked four wallets once: rich, low, exhausted, and without instances.
async fn checked(db: &Db) -> (Program, [Uuid; 4]) {
    let program = daemon(db, &[BILLING, &job("prepaid", "prepaid", "1s", PREPAID)]);
    assert_eq!(list(&program, "wallets --json").await, [Value::Null; 0]);
    program.run("wallets").await.expect_code(0);
    let fleet = Fleet::new(db);
    // Ten cents an hour, with two hours due.
    let plan = fleet.plan(Plan::monthly("73.00")).await;
    let created = now(db).await - TimeDelta::minutes(150);
    let (rich, low, poor, idle) = (
        fleet.wallet("90.00").await,
        fleet.wallet("3.25").await,
        fleet.wallet("0.05").await,
        fleet.wallet("0.00").await,
    );
    for org in [rich, low, poor] {
        fleet.instance(Instance::new(org, plan, created)).await;
    }
    let running = program.start("run");
    eventually("the wallets were checked", async || {
        (fetch(db, "SELECT count(*) FROM billing_standings WHERE state = 'low' OR state = 'exhausted'").await
            == "2")
            .then_some(())
    })
    .await;
    running.terminated().await.expect_code(0);

    (program, [rich, low, poor, idle])
}

async fn wallets_show_runway_and_state(db: &Db) {
    let (program, [rich, low, poor, idle]) = checked(db).await;
    let all = list(&program, "wallets --json").await;
    let expected = [
        (poor, json!(-2), "exhausted"),
        (low, json!(30), "low"),
        (rich, json!(898), "ok"),
        (idle, Value::Null, "ok"),
    ];
    for (wallet, (organization, runway, state)) in all.iter().zip(&expected) {
        let shown = (&wallet["organization"], &wallet["runway_hours"], &wallet["state"]);
        assert_eq!(shown, (&json!(organization), runway, &json!(state)));
    }
    assert_eq!(all.len(), expected.len());
    assert_eq!(
        keys(&all[0]),
        [
            "balance",
            "burn_per_hour",
            "credit_limit",
            "currency",
            "episode",
            "name",
            "notices",
            "order",
            "organization",
            "owed",
            "problem",
            "runway_hours",
            "state",
        ]
    );
    let poorest = &all[0];
    assert_eq!(
        (&poorest["balance"], &poorest["owed"], &poorest["burn_per_hour"], &poorest["currency"]),
        (&json!("0.05"), &json!("0.20"), &json!("0.1000"), &json!("USD"))
    );
    assert_eq!(list(&program, "wallets --json --below 30h").await.len(), 1);
    assert_eq!(list(&program, "wallets --json --below 31h").await.len(), 2);
    assert_eq!(list(&program, &format!("wallets --json --organization {rich}")).await.len(), 1);
    let text = program.run("wallets --below 72h").await.expect_code(0).text();
    assert!(
        text.contains("owes 2 h") && text.contains("wallet exhausted") && text.contains("48 h left"),
        "{text}"
    );
}

async fn standing_and_simulation_show_what_follows(db: &Db) {
    let (program, [rich, low, poor, _]) = checked(db).await;
    let standing = json(&program.run(&format!("standing show {poor} --json")).await.expect_code(0));
    assert_eq!((&standing["state"], &standing["desired"]), (&json!("exhausted"), &json!("running")));
    let unmet: Vec<_> =
        standing["suspension"]["unmet"].as_array().expect("a list").iter().map(|one| &one["guard"]).collect();
    assert_eq!(unmet, ["mode", "grace", "notices", "final_notice"], "{standing}");
    assert_eq!(standing["suspension"]["earliest"], Value::Null);
    let outcomes: Vec<_> =
        standing["notices"].as_array().expect("a list").iter().map(|one| &one["outcome"]).collect();
    assert_eq!(outcomes, ["passed", "passed", "recorded"], "{standing}");
    let text = program.run(&format!("standing show {poor}")).await.expect_code(0).text();
    assert!(text.contains("- the policy is not enforced"), "{text}");

    let events = list(&program, &format!("prepaid simulate --json --hours 60 --organization {low}")).await;
    let events: Vec<_> =
        events.iter().map(|event| (event["type"].as_str().expect("text"), &event["level"])).collect();
    assert_eq!(
        events,
        [
            ("billing.wallet.low", &json!(48)),
            ("billing.wallet.low", &json!(12)),
            ("billing.wallet.exhausted", &json!(0)),
            ("billing.wallet.final_notice", &json!(-1)),
            ("billing.service.suspend", &Value::Null),
        ]
    );
    assert_eq!(
        list(&program, &format!("prepaid simulate --json --organization {rich}")).await,
        [Value::Null; 0]
    );
    program.run(&format!("prepaid simulate --organization {poor}")).await.expect_code(0);

    for unknown in
        ["wallets --organization missing", "standing show missing", "prepaid simulate --organization missing"]
    {
        program.run(unknown).await.expect_code(64);
    }
    let invalid = daemon(
        db,
        &[BILLING, &job("prepaid", "prepaid", "60s", "params = { mode = 'enforce', notice-hours = [1, 2] }")],
    );
    let text = invalid.run("check").await.expect_code(78).text();
    assert!(text.contains("notice-hours") || text.contains("is not a list of hours"), "{text}");
}

on_variants!(wallets_show_runway_and_state: sqlite, g1_owner, g2_role, g3_role);
on_variants!(standing_and_simulation_show_what_follows: sqlite, g3_role);
