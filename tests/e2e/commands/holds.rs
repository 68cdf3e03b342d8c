//! `holds`: the list of holds, and the operator's decisions.

use billing_test_support::{Db, Fleet, Instance, Plan, Program, eventually, on_variants};
use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{json, keys};
use crate::daemon::{BILLING, HEARTBEAT, daemon, fetch, now, rows};

/// Three held instances: one without a price, one whose wallet is empty, and one that the panel deleted.
struct Held {
    unpriced: Uuid,
    owes: Uuid,
    deleted: Uuid,
    organization: Uuid,
}

async fn held(db: &Db, program: &Program) -> Held {
    let fleet = Fleet::new(db);
    let created = now(db).await - TimeDelta::minutes(150);
    let (rich, poor, left) =
        (fleet.wallet("1.00").await, fleet.wallet("0.00").await, fleet.wallet("0.00").await);
    let (unpriced, priced) = (fleet.plan(Plan::unpriced()).await, fleet.plan(Plan::monthly("7.30")).await);
    let instance =
        async |org, plan, label: &str| fleet.instance(Instance::new(org, plan, created).label(label)).await;
    let held = Held {
        unpriced: instance(rich, unpriced, "=web,\u{1b}1").await,
        owes: instance(poor, priced, "web-2").await,
        deleted: instance(left, priced, "web-3").await,
        organization: rich,
    };
    program.run("bill").await.expect_code(0);
    fleet.delete(held.deleted).await;
    held
}

async fn list(program: &Program, arguments: &str) -> Vec<Value> {
    let ended = program.run(&format!("holds list --json {arguments}")).await.expect_code(0);
    let text = ended.out.join("\n");
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    list.as_array().expect("a list").clone()
}

async fn held_instances_are_listed_with_advice(db: &Db) {
    let program = daemon(db, &[BILLING]);
    assert_eq!(list(&program, "").await, [Value::Null; 0]);
    program.run("holds list").await.expect_code(0);
    let held = held(db, &program).await;

    let all = list(&program, "").await;
    let ids: Vec<_> = all.iter().map(|row| row["instance"].as_str().expect("text")).collect();
    assert_eq!(ids.len(), 3, "{all:?}");
    assert_eq!(ids[2], held.unpriced.to_string(), "by reason");
    assert_eq!(
        keys(&all[0]),
        [
            "accepted_by",
            "accepted_note",
            "accepted_until",
            "advice",
            "amount",
            "currency",
            "deleted",
            "detail",
            "hours",
            "instance",
            "label",
            "organization",
            "organization_name",
            "reason",
            "since"
        ]
    );
    assert_eq!(
        (&all[2]["amount"], &all[2]["hours"], &all[2]["deleted"]),
        (&Value::Null, &json!(2), &json!(false))
    );
    assert_eq!(all[2]["advice"], "set the plan's price, to 0 if it is free");
    let owing = list(&program, "--reason insufficient_balance").await;
    assert!(owing.iter().all(|row| row["amount"] == "0.02" && row["hours"] == 2), "{owing:?}");
    let owing: Vec<_> =
        owing.iter().map(|row| (row["label"].as_str().expect("text"), row["deleted"] == true)).collect();
    assert_eq!(owing.len(), 2);
    assert!(owing.contains(&("web-2", false)) && owing.contains(&("web-3", true)), "{owing:?}");
    let of_one = list(&program, &format!("--organization {}", held.organization)).await;
    assert_eq!(of_one.len(), 1);
    program.run("holds list --reason cold_feet").await.expect_code(64);
    program.run("holds list --organization nowhere").await.expect_code(64);

    let csv = program.run("holds list --csv --reason no_price").await.expect_code(0);
    assert_eq!(csv.out.len(), 2, "{}", csv.text());
    assert!(csv.out[0].contains(",hours,amount,currency,"), "{}", csv.text());
    assert!(
        csv.out[1].contains(r#","'=web,\u{1b}1","#) && csv.out[1].contains(",2,unknown,"),
        "{}",
        csv.text()
    );
    let output = program.run("holds list").await.expect_code(0);
    assert!(output.text().contains("  to do: set the plan's price, to 0 if it is free"), "{}", output.text());
    assert!(output.text().contains("unknown") && !output.text().contains('\u{1b}'), "{}", output.text());
}

async fn accepted_hold_counts_after_reason_changes(db: &Db) {
    let program = daemon(db, &[BILLING, HEARTBEAT]);
    let held = held(db, &program).await;
    let problems = async |accepted: u64| {
        let shown = json(&program.run("status --json").await.expect_code(1));
        let unpriced =
            shown["holds"].as_array().expect("a list").iter().find(|row| row["reason"] == "no_price");
        assert_eq!(unpriced.expect("it is still listed")["accepted"], accepted, "{shown}");
        let problems = shown["problems"].as_array().expect("a list").iter();
        problems.map(|problem| problem["kind"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(problems(0).await, ["no_daemon", "held"]);
    for (arguments, message) in [
        (format!("{}", held.unpriced), "--reason"),
        ("web-9 --reason x".to_owned(), "no held instance is named \"web-9\""),
        (format!("{} --reason x --until 2020-01-01", held.unpriced), "is in the past"),
    ] {
        let refused = program.run(&format!("holds accept {arguments}")).await.expect_code(64);
        assert!(refused.text().contains(message), "{}", refused.text());
    }
    let accept = format!("holds accept {} --reason free --until 2999-01-01", held.unpriced);
    let output = program.run(&accept).await.expect_code(0);
    assert!(output.text().contains("`no_price` is accepted until 2999-01-01T00:00:00Z"), "{}", output.text());
    assert_eq!(problems(1).await, ["no_daemon"]);
    assert!(program.run("status").await.text().contains(", accepted"), "it is still listed");
    let row = list(&program, "--reason no_price").await.remove(0);
    assert!(row["accepted_by"].is_string() && row["accepted_note"] == "free", "{row}");
    program.run("bill").await.expect_code(0);
    assert_eq!(problems(1).await, ["no_daemon"], "the next run keeps it");

    // It was accepted for its reason, not for a later one.
    db.execute("UPDATE billing_holds SET reason = 'unknown_plan' WHERE reason = 'no_price'").await;
    assert_eq!(list(&program, "--reason unknown_plan").await[0]["accepted_by"], Value::Null);
    db.execute("UPDATE billing_holds SET reason = 'no_price', accepted_until = opened_at WHERE reason = 'unknown_plan'").await;
    assert_eq!(problems(0).await, ["no_daemon", "held"], "it has expired");
    let entry = rows(
        db,
        "action || ' ' || reason || ' ' || details FROM scheduler_audit_log WHERE action = 'accept a hold'",
    );
    let entry = entry.await.remove(0);
    assert!(
        entry.starts_with("accept a hold free {") && entry.contains(&held.unpriced.to_string()),
        "{entry}"
    );
}

async fn deleted_instance_debt_can_be_written_off(db: &Db) {
    let program = daemon(db, &[BILLING]);
    let held = held(db, &program).await;
    let refused = program.run(&format!("holds write-off {} --reason x", held.owes)).await.expect_code(64);
    assert!(refused.text().contains("exists, and its hours stay due"), "{}", refused.text());
    let refused = program.run(&format!("holds write-off web-3 {} --reason x", held.owes)).await;
    refused.expect_code(64);
    assert_eq!(list(&program, "").await.len(), 3, "all of them or none");
    let output = program.run("holds write-off web-3 --reason left --as grace").await.expect_code(0);
    assert!(
        output.text().contains(&format!("instance {} (web-3): 0.02 written off", held.deleted)),
        "{}",
        output.text()
    );
    program.run("bill").await.expect_code(0);
    let open = format!(
        "SELECT count(*) FROM billing_holds WHERE closed_at IS NULL AND instance_id = '{}'",
        held.deleted
    );
    assert_eq!(fetch(db, &open).await, "0", "the next run does not open it again");
    program.run("holds write-off web-3 --reason left").await.expect_code(64);

    let shown = json(&program.run("status --json").await.expect_code(1));
    let expected = json!({ "reason": "written_off", "instances": 1, "hours": 2, "amounts": { "USD": "0.02" }, "unpriced": 0 });
    assert!(shown["uncharged"].as_array().is_some_and(|list| list.contains(&expected)), "{shown}");
    let audit = json(&program.run("audit --json").await.expect_code(0));
    assert_eq!(audit["uncharged"]["written_off"]["hours"], 2, "{audit}");
    let entry = rows(
        db,
        "actor || ' ' || reason || ' ' || details FROM scheduler_audit_log WHERE action = 'write off a hold'",
    );
    let entry = entry.await;
    assert!(
        entry.len() == 1 && entry[0].starts_with("grace left {") && entry[0].contains("\"0.02\""),
        "{entry:?}"
    );
}

/// A batch that has read a hold as open would open it again, so a write-off waits for it.
#[tokio::test]
async fn write_off_waits_for_batch_in_progress() {
    let db = Db::g1_role().await;
    let program = daemon(&db, &[BILLING]);
    let held = held(&db, &program).await;
    db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;
         CREATE TRIGGER wait BEFORE INSERT ON billing_batches FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    .await;
    let lock = db.admin().begin().await.expect("a transaction begins");
    lock.execute_unprepared("SELECT pg_advisory_xact_lock(7)").await.expect("it is free");
    let waiting = async |count: &'static str| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("they wait", async || (fetch(&db, sql).await == count).then_some(())).await;
    };
    let bill = program.start("bill");
    waiting("1").await;
    let write_off = program.start("holds write-off web-3 --reason left");
    waiting("2").await;
    lock.rollback().await.expect("the lock is given back");
    bill.ended().await.expect_code(0);
    write_off.ended().await.expect_code(0);
    let open = format!(
        "SELECT count(*) FROM billing_holds WHERE closed_at IS NULL AND instance_id = '{}'",
        held.deleted
    );
    assert_eq!(fetch(&db, &open).await, "0");
}

on_variants!(held_instances_are_listed_with_advice: sqlite, g1_role);
on_variants!(accepted_hold_counts_after_reason_changes: sqlite, g1_role);
on_variants!(deleted_instance_debt_can_be_written_off: sqlite, g1_role, g3_role);
