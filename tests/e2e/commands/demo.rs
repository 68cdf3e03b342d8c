//! `demo`: the same fleet for the same seed on every database, and none that is in use.

use std::process::Command;

use billing_test_support::{Login, Panel, Postgres, Sqlite, connect};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde_json::{Value, json};

use super::{json, keys};
use crate::daemon::program;

/// The output of a demo of a fleet with all special cases, without durations.
async fn figures(arguments: &str) -> Value {
    let program = program();
    let mut shown =
        json(&program.run(&format!("demo --instances 250 --json {arguments}")).await.expect_code(0));
    assert_eq!(
        keys(&shown),
        ["amounts", "audit", "charged", "held", "hours", "instances", "second_run_charged", "seconds"]
    );
    assert_eq!(keys(&shown["audit"]), ["checked", "violations"]);
    let seconds = shown.as_object_mut().and_then(|shown| shown.remove("seconds"));
    assert!(seconds.is_some_and(|seconds| seconds.is_f64()));
    let left = std::fs::read_dir(program.folder()).expect("a folder of ours is read").count();
    assert_eq!(left, 0, "a script has no use for the demo's database");
    shown
}

async fn number(db: &DatabaseConnection, sql: &str) -> i64 {
    let sql = format!("SELECT CAST(({sql}) AS bigint)");
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await;
    row.expect("the query is valid").expect("there is a row").try_get_by_index(0).expect("a number")
}

/// The figures without the number of rows that the audit checked: SQLite has one more check, in place of its foreign keys.
fn without_checked(mut figures: Value) -> Value {
    figures["audit"].as_object_mut().expect("the audit is an object").remove("checked");
    figures
}

#[tokio::test]
async fn demo_depends_on_seed_alone() {
    let shown = figures("").await;
    assert_eq!(figures("--seed 1").await, shown, "1 is the seed that is not given");
    assert_ne!(figures("--seed 2").await, shown);
    assert_eq!(shown["instances"], 250);
    assert_eq!(shown["second_run_charged"], 0);
    assert_eq!(shown["audit"]["violations"], 0);

    let file = Sqlite::database();
    let postgres = Postgres::database(Panel::Empty).await;
    for url in [file.url(), postgres.url(Login::Owner)] {
        let billed = figures(&format!("--database-url {url}")).await;
        assert_eq!(without_checked(billed), without_checked(shown.clone()), "{url}");
        let db = connect(&url).await;
        let charged = number(&db, "SELECT count(DISTINCT instance_id) FROM billing_charges").await;
        let held = number(&db, "SELECT count(*) FROM billing_holds WHERE closed_at IS NULL").await;
        let hours = number(&db, "SELECT sum(hours) FROM billing_charges").await;
        let amount = number(&db, "SELECT sum(amount) FROM billing_charges").await;
        assert_eq!(shown["charged"], charged);
        assert_eq!(shown["held"], held);
        assert_eq!(shown["hours"], hours);
        assert_eq!(shown["amounts"]["USD"], json!(format!("{}.{:04}", amount / 10_000, amount % 10_000)));
        let waiting = "SELECT count(*) FROM vps_instances i
                        WHERE NOT EXISTS (SELECT 1 FROM billing_charges c WHERE CAST(c.instance_id AS text) = CAST(i.id AS text))
                          AND NOT EXISTS (SELECT 1 FROM billing_holds h WHERE CAST(h.instance_id AS text) = CAST(i.id AS text))";
        let both = "SELECT count(DISTINCT h.instance_id) FROM billing_holds h
                      JOIN billing_charges c ON CAST(c.instance_id AS text) = CAST(h.instance_id AS text)";
        assert_eq!(
            charged + held - number(&db, both).await + number(&db, waiting).await,
            250,
            "every instance is counted"
        );
        assert!(held > 0 && charged > held, "{shown}");
    }
}

/// A container that starts again finds the fleet of its first start.
#[tokio::test]
async fn generated_fleet_is_left_to_daemon() {
    let file = Sqlite::database();
    let generate = format!("demo --instances 250 --generate-only --database-url {}", file.url());
    let printed = program().run(&generate).await.expect_code(0);
    assert_eq!(printed.out, ["Generated a fleet of 250 instances"]);
    let printed = json(&program().run(&format!("{generate} --json")).await.expect_code(0));
    assert_eq!(printed, json!({ "generated": 0 }));
    let db = file.connect().await;
    assert_eq!(number(&db, "SELECT count(*) FROM vps_instances").await, 250);
    assert_eq!(number(&db, "SELECT count(*) FROM billing_charges").await, 0);
    let billed = program().env("DATABASE_URL", &file.url()).run("bill").await.expect_code(0);
    assert!(billed.text().contains("charged"), "{}", billed.text());
    assert!(number(&db, "SELECT count(*) FROM billing_charges").await > 0);
}

#[tokio::test]
async fn demo_prints_next_commands() {
    let program = program();
    let ended = program.run("demo --instances 250").await.expect_code(0);
    assert_eq!(ended.out[0], "A generated fleet of 250 instances of 50 organizations, on SQLite");
    assert!(
        ended.text().contains("charged at the same instant: no hour is charged twice"),
        "{}",
        ended.text()
    );
    // The lines below "Try next" are pasted into a shell, but for the daemon itself, which runs until it is stopped.
    let after = ended.out.iter().skip_while(|line| !line.starts_with("Try next:"));
    let lines: Vec<_> = after.filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(lines.iter().any(|line| line.ends_with(" run")), "{lines:?}");
    let pasted = lines.into_iter().filter(|line| !line.ends_with(" run"));
    let script = pasted.map(|line| format!("{line} || echo \"exit $?\"")).collect::<Vec<_>>().join("\n");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(&script).env_clear().env("PATH", "/usr/bin:/bin").current_dir(program.folder());
    let shell = shell.output().expect("there is a shell");
    let output = String::from_utf8_lossy(&shell.stdout);
    // `status` ends with 1: no daemon is alive.
    let codes: Vec<_> = output.lines().filter(|line| line.starts_with("exit ")).collect();
    assert_eq!(codes, ["exit 1"], "{script}\n{output}\n{}", String::from_utf8_lossy(&shell.stderr));
    assert!(output.contains("would charge ") && output.contains(" rows checked"), "{output}");
    let left = std::fs::read_dir(program.folder()).expect("a folder of ours is read").count();
    assert_eq!(left, 0, "the last line removes the database");
}

#[tokio::test]
async fn failed_demo_leaves_no_folder() {
    let program = program();
    // A disk that is full, or a limit as here, lets the demo fail in the middle.
    let limited =
        format!("trap '' XFSZ; ulimit -f 64; exec {} demo --instances 250", env!("CARGO_BIN_EXE_e2e-daemon"));
    let shell = Command::new("sh").arg("-c").arg(limited).env("TMPDIR", program.folder()).output();
    let shell = shell.expect("there is a shell");
    let output = String::from_utf8_lossy(&shell.stderr);
    assert!(!shell.status.success() && output.contains("error: cannot "), "{output}");
    assert_eq!(std::fs::read_dir(program.folder()).expect("a folder of ours is read").count(), 0);
}

#[tokio::test]
async fn demo_rejects_database_in_use() {
    let used = Sqlite::migrated().await;
    let db = used.connect().await;
    db.execute_unprepared("INSERT INTO vps_plans (name, provider_plan_id) VALUES ('Plan', 'plan')")
        .await
        .expect("a plan");
    let ended = program().run(&format!("demo --database-url {}", used.url())).await.expect_code(78);
    assert_eq!(ended.err, ["error: cannot use this database for the demo: it has organizations or plans"]);
    for table in ["vps_instances", "organizations", "billing_charges", "scheduler_jobs"] {
        assert_eq!(number(&db, &format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}
