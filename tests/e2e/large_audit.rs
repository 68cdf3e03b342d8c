//! The audit of a large ledger, on a panel without an index that is not a key.

use std::time::{Duration, Instant};

use billing_test_support::{Db, on_variants};
use serde_json::{Value, json};

use crate::daemon::{fetch, program};

/// The time in which 100,000 charges are checked.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(10);

async fn large_audit_needs_no_optional_index(db: &Db) {
    let began = Instant::now();
    db.seed_ledger(20_000, 5).await;
    // On a busy host, and without optimization, both take longer; a quadratic audit takes minutes.
    let limit = AUDIT_TIMEOUT.max(4 * began.elapsed());
    db.drop_optional_indexes().await;
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "100000");
    let began = Instant::now();
    let ended = program().env("DATABASE_URL", &db.url).run("audit --json").await.expect_code(0);
    let took = began.elapsed();
    let audit: Value = serde_json::from_str(&ended.out.concat()).expect("JSON");
    assert_eq!(audit["violations"], json!([]));
    assert!(audit["checked"].as_u64() > Some(800_000), "{audit}");
    assert!(took <= limit, "the audit took {took:?}, and may take {limit:?}");
}

/// However many rows break an invariant, the memory of the audit is bounded.
async fn violations_are_listed_in_part(db: &Db) {
    db.seed_ledger(250, 1).await;
    db.execute("UPDATE billing_meters SET carry = 1").await;
    let ended = program().env("DATABASE_URL", &db.url).run("audit --json").await.expect_code(1);
    let audit: Value = serde_json::from_str(&ended.out.concat()).expect("JSON");
    let violations = audit["violations"].as_array().expect("a list");
    assert!(violations.iter().all(|violation| violation["check"] == "meter_carry"), "{audit}");
    assert_eq!((violations.len(), &violations[100]["detail"]), (101, &json!("and 150 more")));
}

on_variants!(large_audit_needs_no_optional_index: sqlite, postgres, g1_role);
on_variants!(violations_are_listed_in_part: sqlite, g3_role);
