//! Changes by operators are in the audit log, and changes of the log are detected.

use std::os::unix::fs::MetadataExt;

use billing_store::audit_log::{AuditEvent, ChainCheck, append_in_own_transaction, verify};
use billing_store::{Database, Pool};
use billing_test_support::{Db, Login, on_every_engine, on_variants};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{BROKEN, run_json, with};
use crate::daemon::{STATE, TICK, rows, seed};

async fn hash_chain_reveals_changed_rows(db: &Db) {
    let program = with(db, &[TICK]);
    run_json(&program, "jobs pause tick --reason tea --as grace").await;
    run_json(&program, "jobs pause tick --reason more").await;
    run_json(&program, "jobs trigger tick --force").await;
    run_json(&program, "jobs resume tick --as grace").await;
    // Cron and systemd name no user.
    let unnamed = program.clone().env("USER", "");
    run_json(&unnamed, "jobs pause tick --reason tea").await;
    run_json(&program, "jobs resume tick --as grace").await;
    let uid = std::fs::metadata(program.folder()).expect("it is there").uid();
    let chain = "id || ' ' || actor || ' ' || action || ' ' || job || ' ' || coalesce(reason, '-')
                 FROM scheduler_audit_log ORDER BY id";
    let found = rows(db, chain).await;
    assert!(found[1].starts_with("2 ada@"), "{found:?}");
    assert_eq!((found[0].as_str(), found[2].as_str()), ("1 grace pause tick tea", "3 grace resume tick -"));
    assert!(found[3].starts_with(&format!("4 uid {uid}@")), "{found:?}");
    let daemon = Database::new(db.url.parse().expect("the URL of a database of ours"));
    let daemon = daemon.connect(Pool::Single).await.expect("it opens");
    let broken = async || verify(&daemon).await.expect("it answers").broken;
    assert_eq!(broken().await, None);

    for change in [
        "UPDATE scheduler_audit_log SET actor = 'other' WHERE id = 2",
        "DELETE FROM scheduler_audit_log WHERE id = 2",
    ] {
        let refused = db.admin().execute_unprepared(change).await.expect_err(change).to_string();
        assert!(refused.contains("scheduler_audit_log is append-only"), "{refused}");
    }
    db.execute(match db.backend() {
        DbBackend::Sqlite => {
            "DROP TRIGGER scheduler_audit_log_no_update; DROP TRIGGER scheduler_audit_log_no_delete"
        }
        _ => "ALTER TABLE scheduler_audit_log DISABLE TRIGGER scheduler_audit_log_append_only",
    })
    .await;
    db.execute("UPDATE scheduler_audit_log SET actor = 'other' WHERE id = 2").await;
    assert_eq!(broken().await, Some(2), "it was changed");
    let audit = program.run("audit").await.expect_code(1);
    assert!(audit.text().contains("record_chain: row 2 of scheduler_audit_log"), "{}", audit.text());
    let doctor = program.run("doctor").await.expect_code(1);
    assert!(doctor.text().contains("row 2 of scheduler_audit_log"), "{}", doctor.text());
    db.execute("DELETE FROM scheduler_audit_log WHERE id = 2").await;
    assert_eq!(broken().await, Some(3), "its predecessor is gone");
}

/// Actor, action and details of each change, oldest first.
const CHANGES: &str =
    "actor || ' ' || action || ' ' || job || ' ' || details FROM scheduler_audit_log ORDER BY id";

async fn operator_changes_are_in_audit_log(db: &Db) {
    let program = with(db, &[STATE, BROKEN]).env("DATABASE_URL", &db.url_for(Login::Owner));
    seed(db, 2).await;
    for (looking, code) in [
        ("bill --dry-run", 0),
        ("adopt --dry-run", 0),
        ("status", 1),
        ("jobs list", 0),
        ("charges explain 1", 1),
    ] {
        program.run(looking).await.expect_code(code);
    }
    assert_eq!(rows(db, CHANGES).await, [""; 0], "reading changes nothing");

    program.run("adopt").await.expect_code(0);
    program.run("bill --approve-catch-up --all --reason outage --as grace").await.expect_code(0);
    program.run("release").await.expect_code(0);
    program.run("accept-restore").await.expect_code(0);
    let mut expected = vec![
        (" adopt billing ", r#""baselines":2"#),
        (" approve a catch-up billing ", r#""all":true"#),
        (" bill billing ", r#""run":"#),
        (" release billing ", r#""cycles":0"#),
        (" accept a restore billing ", r#","before":{"halt":null}}"#),
    ];
    if db.backend() == DbBackend::Postgres {
        for command in ["guard install", "guard install", "guard remove", "guard remove"] {
            program.run(command).await.expect_code(0);
        }
        expected.extend([
            (" guard install billing ", r#""before":{"enabled":false,"installed":false"#),
            (" guard remove billing ", r#""before":{"enabled":true,"installed":true"#),
        ]);
    }
    let found = rows(db, CHANGES).await;
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (row, (did, details)) in found.iter().zip(expected) {
        let by = if did.contains("catch-up") || did.contains("bill billing") { "grace " } else { "ada@" };
        assert!(
            row.starts_with(by) && row.contains(did) && row.contains(details),
            "{row} is not {did}{details}"
        );
    }
    program.run("audit").await.expect_code(0);
}

#[tokio::test]
async fn applied_migration_is_in_audit_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/new.db", folder.path().display());
    let program = crate::daemon::program().env("DATABASE_URL", &url).env("USER", "ada");
    program.run("migrate up").await.expect_code(0);
    program.run("migrate up").await.expect_code(0);
    let db = billing_test_support::db::connect(&url).await;
    let rows = db
        .query_all_raw(Statement::from_string(
            DbBackend::Sqlite,
            "SELECT actor, action, details FROM scheduler_audit_log",
        ))
        .await
        .expect("it answers");
    let text = |column| rows[0].try_get::<String>("", column).expect("text");
    assert_eq!((rows.len(), text("action").as_str()), (1, "migrate up"));
    assert!(
        text("actor").starts_with("ada@") && text("details").contains("billing_tables"),
        "{}",
        text("details")
    );
}

/// Concurrent changes: each has its place, and none of them fails.
async fn concurrent_changes_are_chained_in_order(db: &Db) {
    let daemon = Database::new(db.url.parse().expect("the URL of a database of ours"));
    let daemon = daemon.connect(Pool::Shared).await.expect("it opens");
    let mut all = tokio::task::JoinSet::new();
    for number in 0..24 {
        let (daemon, by) = (daemon.clone(), format!("ada {number}"));
        let entry = AuditEvent {
            by,
            action: "test",
            job: String::new(),
            reason: None,
            details: serde_json::json!({}),
        };
        all.spawn(
            async move { append_in_own_transaction(&daemon, &entry).await.expect("it finds its place") },
        );
    }
    all.join_all().await;
    assert_eq!(verify(&daemon).await.expect("it answers"), ChainCheck { rows: 24, broken: None });
}

on_every_engine!(hash_chain_reveals_changed_rows, concurrent_changes_are_chained_in_order,);
on_variants!(operator_changes_are_in_audit_log: sqlite, postgres, g1_role, g3_role);
