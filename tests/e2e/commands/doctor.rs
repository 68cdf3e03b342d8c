//! `doctor`: its findings, and the content of a support bundle.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use billing_test_support::{
    Db, Fleet, Instance, Login, Panel, Plan, Postgres, Program, on_every_engine, on_variants, operations,
};
use chrono::TimeDelta;
use serde_json::Value;

use super::json;
use crate::daemon::{BILLING, HEARTBEAT, STATE, daemon, job, now, program, seed, with_panel_billing_off};

async fn findings(program: &Program, code: i32) -> Vec<Value> {
    let shown = json(&program.run("doctor --json").await.expect_code(code));
    assert_eq!(shown["ok"], code == 0);
    shown["findings"].as_array().expect("a list").clone()
}

/// The checks that did not pass, with their level.
fn wrong(findings: &[Value]) -> Vec<String> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let wrong = findings.iter().filter(|finding| finding["verdict"] != "ok");
    wrong.map(|finding| format!("{} {}", text(finding, "verdict"), text(finding, "check"))).collect()
}

/// What depends on the host that the tests run on.
const OF_THE_HOST: [&str; 6] = ["service", "restart", "watchdog", "stopping", "time zones", "disk"];

fn without_host(wrong: Vec<String>) -> Vec<String> {
    wrong.into_iter().filter(|wrong| !OF_THE_HOST.iter().any(|check| wrong.ends_with(check))).collect()
}

async fn documented_roles_pass_doctor(db: &Db) {
    seed(db, 1).await;
    let found = findings(&daemon(db, &[STATE, BILLING, HEARTBEAT]), 0).await;
    assert_eq!(without_host(wrong(&found)), ["warn daemons"], "{found:#?}");
    let narrow = daemon(db, &[BILLING, HEARTBEAT]).env("COLUMNS", "80");
    let output = narrow.run("doctor").await.expect_code(0);
    assert!(output.out.last().is_some_and(|line| line.ends_with(" 0 failed")), "{}", output.text());
    // A path is not split.
    let fits = |line: &String| line.chars().count() <= 80 || line.contains('/');
    assert!(output.out.iter().all(fits), "{}", output.text());
}

async fn doctor_counts_audit_violations(db: &Db) {
    let fleet = Fleet::new(db);
    let (priced, unpriced) = (fleet.plan(Plan::monthly("5.00")).await, fleet.plan(Plan::unpriced()).await);
    let org = fleet.wallet("1.00").await;
    fleet.wallet_of(org, "2.00").await;
    let created = now(db).await - TimeDelta::minutes(30);
    fleet.instance(Instance::new(org, unpriced, created)).await;
    fleet.instance(Instance::new(org, "no-such-plan", created)).await;
    fleet.instance(Instance::new(fleet.organization().await, priced, created)).await;
    fleet.instance(Instance::new(org, priced, created).billed(created + TimeDelta::days(90))).await;
    let found = findings(&daemon(db, &[BILLING, HEARTBEAT]), 0).await;
    let expected = [
        "warn restore detection",
        "warn duplicate wallets",
        "warn missing wallets",
        "warn unknown plans",
        "warn missing prices",
        "warn invalid times",
        "warn daemons",
    ];
    let mut found_wrong = without_host(wrong(&found));
    found_wrong.retain(|wrong| wrong != "warn too many rights");
    assert_eq!(found_wrong, expected);
    let one = found.iter().find(|finding| finding["check"] == "missing prices").expect("it was looked at");
    assert_eq!(one["message"], "instances on a plan without a price: 1");
}

/// Each documented right is reported when it is missing, with the GRANT that restores it.
async fn missing_right_is_reported_with_grant(db: &Db) {
    let program = daemon(db, &[BILLING, HEARTBEAT]);
    for (revoked, check) in [
        ("UPDATE (balance) ON wallets", "UPDATE on wallets"),
        ("INSERT ON payment_transactions", "INSERT on payment_transactions"),
        ("SELECT ON vps_plans", "SELECT on vps_plans"),
        ("INSERT ON billing_charges", "INSERT on billing_charges"),
        ("UPDATE ON scheduler_fencing", "UPDATE on scheduler_fencing"),
        ("DELETE ON billing_daemon_status", "DELETE on billing_daemon_status"),
    ] {
        db.execute(&format!("REVOKE {revoked} FROM billing_run")).await;
        let found = findings(&program, 1).await;
        let failed = found.iter().find(|finding| finding["verdict"] == "fail").expect("something failed");
        assert_eq!(failed["check"], check, "{revoked}");
        let advice = failed["advice"].as_str().expect("text");
        let grant = advice.split_once(": ").expect("a statement").1;
        db.execute(grant).await;
        let again = findings(&program, 0).await;
        assert!(!wrong(&again).iter().any(|wrong| wrong.starts_with("fail")), "{grant}");
    }
}

/// Role, table and rights, of which none is granted on all columns if there are columns.
const OF_PREPAID: [(&str, &str, &[&str], &str); 8] = [
    ("billing_run", "billing_standings", &["SELECT", "INSERT", "UPDATE"], ""),
    ("billing_run", "billing_notices", &["SELECT", "INSERT", "UPDATE"], ""),
    ("billing_run", "billing_events", &["SELECT", "INSERT", "DELETE"], ""),
    ("billing_run", "billing_deliveries", &["SELECT", "INSERT", "UPDATE", "DELETE"], ""),
    ("billing_run", "users", &["SELECT"], " (id, email, name)"),
    ("billing_run", "scheduler_requests", &["SELECT", "INSERT", "DELETE"], ""),
    ("billing_adjust", "billing_policies", &["SELECT", "INSERT", "UPDATE"], ""),
    ("billing_adjust", "scheduler_audit_log", &["SELECT", "INSERT"], ""),
];

/// Each right that the prepaid policy needs is reported when it is missing, also those of the role that sets policies.
async fn missing_prepaid_rights_are_reported(db: &Db) {
    let program = daemon(db, &[STATE, BILLING, HEARTBEAT, &job("prepaid", "prepaid", "60s", "")]);
    for (role, table, rights, columns) in OF_PREPAID {
        for right in rights {
            db.execute(&format!("REVOKE {right}{columns} ON {table} FROM {role}")).await;
        }
    }
    let found = findings(&program, 1).await;
    for (role, table, rights, columns) in OF_PREPAID {
        let (prefix, verdict) =
            if role == "billing_run" { ("", "fail") } else { ("billing_adjust: ", "warn") };
        for right in rights {
            let check = format!("{prefix}{right} on {table}");
            let finding = found.iter().find(|finding| finding["check"] == check).expect(&check);
            assert_eq!(finding["verdict"], verdict, "{finding}");
            let grant = format!("GRANT {right}{columns} ON {table} TO {role};");
            assert!(finding["advice"].to_string().contains(&grant), "{finding}");
            db.execute(&grant).await;
        }
    }
    assert_eq!(without_host(wrong(&findings(&program, 0).await)), ["warn daemons"]);
}

/// Roles belong to all databases of a server, so this test has a separate one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_adjust_role_is_reported() {
    let db = Db::on_server(Postgres::private().await, Panel::G2, Login::Billing).await;
    let jobs = |prepaid: &str| daemon(&db, &[STATE, BILLING, HEARTBEAT, prepaid]);
    let with_prepaid = jobs(&job("prepaid", "prepaid", "60s", ""));
    db.execute("ALTER ROLE billing_adjust RENAME TO former_billing_adjust").await;
    let found = findings(&with_prepaid, 0).await;
    let finding = found.iter().find(|finding| finding["check"] == "billing_adjust").expect("a finding");
    assert_eq!(finding["verdict"], "warn");
    assert!(finding["advice"].to_string().contains("docs/operate/roles.md"), "{finding}");
    let without = findings(&jobs(""), 0).await;
    assert!(without.iter().all(|finding| finding["check"] != "billing_adjust"), "no policy is set there");
    db.execute("ALTER ROLE former_billing_adjust RENAME TO billing_adjust").await;
    assert!(!wrong(&findings(&with_prepaid, 0).await).contains(&"warn billing_adjust".to_owned()));
}

async fn policy_hiding_wallets_is_reported(db: &Db) {
    seed(db, 1).await;
    let program = daemon(db, &[BILLING, HEARTBEAT]);
    db.execute("CREATE POLICY hidden ON wallets AS RESTRICTIVE FOR UPDATE TO billing_run USING (false)")
        .await;
    let found = findings(&program, 1).await;
    assert!(wrong(&found).contains(&"fail row-level security".to_owned()), "{found:#?}");
    db.execute("DROP POLICY hidden ON wallets").await;
    findings(&program, 0).await;
}

async fn owner_role_is_reported_as_excessive(db: &Db) {
    let jobs = with_panel_billing_off(db, &[BILLING, HEARTBEAT].concat());
    let owner = program().env("DATABASE_URL", &db.url_for(Login::Owner)).file("jobs.toml", &jobs);
    assert!(wrong(&findings(&owner, 0).await).contains(&"warn too many rights".to_owned()));
    assert!(!operations("panel").contains("ALL"), "the manual grants no role ALL");
}

async fn panel_biller_without_guard_fails_doctor(db: &Db) {
    let alone = program().env("DATABASE_URL", &db.url).file("jobs.toml", &[BILLING, HEARTBEAT].concat());
    let expected = db.panel != Panel::G1;
    let found = findings(&alone, i32::from(expected)).await;
    assert_eq!(wrong(&found).contains(&"fail panel".to_owned()), expected, "{found:#?}");
}

on_every_engine!(doctor_counts_audit_violations);
on_variants!(documented_roles_pass_doctor: sqlite, g1_role, g2_role, g3_role);
on_variants!(missing_right_is_reported_with_grant: g1_role, g3_role);
on_variants!(missing_prepaid_rights_are_reported: g2_role);
on_variants!(policy_hiding_wallets_is_reported: g3_role);
on_variants!(owner_role_is_reported_as_excessive: g1_role, g3_role);
on_variants!(panel_biller_without_guard_fails_doctor: g1_role, g2_role, g3_role);

#[tokio::test]
async fn doctor_reports_all_start_problems() {
    let program = program()
        .env("DATABASE_URL", "postgres://me@127.0.0.1:1/none")
        .file("jobs.toml", "[daemon]\nbanana = 1\nlog-level = 'loud'\n");
    let found = findings(&program, 1).await;
    let failed: Vec<_> = wrong(&found).into_iter().filter(|wrong| wrong.starts_with("fail")).collect();
    assert!(failed.iter().filter(|wrong| *wrong == "fail jobs.toml").count() >= 3, "{failed:?}");
    assert!(failed.contains(&"fail database".to_owned()), "{failed:?}");
}

#[tokio::test]
async fn support_bundle_has_no_secret() {
    let db = Db::g1_role().await;
    seed(&db, 2).await;
    let url = db.url_for(Login::Billing).replace("billing_run@", "billing_run:c4n4ry@");
    let jobs = format!("# smtp://me:c4n4ry@mail\n[daemon]\ndatabase-url = \"{url}\"\n{BILLING}{HEARTBEAT}");
    let program = program().file("jobs.toml", &jobs);
    // Others may read the password: doctor reports it and continues.
    let config = program.folder().join("jobs.toml");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).expect("our own file");
    let found = findings(&program, 1).await;
    assert!(wrong(&found).contains(&"fail secrets".to_owned()), "{found:#?}");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("our own file");
    program.run("bill").await.expect_code(0);
    db.execute(
        "UPDATE scheduler_runs SET error = 'no way to smtp://me:c4n4ry@mail', details = '{\"api-token\": \"c4n4ry\"}'",
    )
    .await;
    program.run("jobs pause billing --reason smtp://me:c4n4ry@mail").await.expect_code(0);
    let ended = program.run("doctor --bundle support.tar.gz").await.expect_code(0);
    assert!(!ended.text().contains("c4n4ry"), "{}", ended.text());
    let archive = program.folder().join("support.tar.gz");
    assert_eq!(fs::metadata(&archive).expect("it is there").permissions().mode() & 0o777, 0o600);
    let files = unpacked(&program, &archive);
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    let expected = [
        "audit_log.json",
        "doctor.json",
        "jobs.toml",
        "migrations.json",
        "runs.json",
        "settings.json",
        "status.json",
        "version.txt",
    ];
    assert_eq!(names, expected);
    for (name, text) in &files {
        assert!(!text.contains("c4n4ry"), "{name} has the password:\n{text}");
    }
    // The secret was configured, so it had to be hidden.
    for (name, masked) in [
        ("jobs.toml", "billing_run:***@"),
        ("jobs.toml", "smtp://me:***@mail"),
        ("settings.json", "billing_run:***@"),
        ("runs.json", "\"api-token\": \"***\""),
        ("runs.json", "no way to smtp://me:***@mail"),
        ("audit_log.json", "smtp://me:***@mail"),
    ] {
        assert!(files[name].contains(masked), "{masked} in {name}:\n{}", files[name]);
    }
    let json = |name: &str| {
        serde_json::from_str::<Value>(&files[name]).unwrap_or_else(|error| panic!("{error}: {}", files[name]))
    };
    assert_eq!(json("runs.json")[0]["job"], "billing");
    assert_eq!(json("audit_log.json")[0]["action"], "pause");
    assert_eq!(json("migrations.json")[0]["applied"], true);
    assert_eq!(json("settings.json")["daemon"]["lease-ttl"], "10s");
    assert!(json("status.json")["jobs"].is_array() && json("doctor.json").is_array());
    assert!(files["version.txt"].starts_with("billing-daemon "), "{}", files["version.txt"]);
    // An existing file is not overwritten.
    let before = fs::read(&archive).expect("it is there");
    let again = program.run("doctor --bundle support.tar.gz").await.expect_code(70);
    assert!(again.text().contains("support.tar.gz exists"), "{}", again.text());
    assert_eq!(fs::read(&archive).expect("it is there"), before);
}

/// The files of a bundle, as its recipient sees them.
pub(super) fn unpacked(program: &Program, archive: &Path) -> BTreeMap<String, String> {
    let folder = program.folder().join("unpacked");
    fs::create_dir(&folder).expect("our own folder");
    let tar = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&folder).status();
    assert!(tar.expect("tar is there").success());
    let files = fs::read_dir(folder.join("billing-daemon-support")).expect("it is a folder");
    files
        .map(|file| {
            let path = file.expect("it can be listed").path();
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("it is text"))
        })
        .collect()
}

/// A bundle is created when something does not work.
#[tokio::test]
async fn support_bundle_needs_no_database() {
    let program = program()
        .env("DATABASE_URL", "postgres://me:c4n4ry@127.0.0.1:1/none")
        .file("jobs.toml", "[daemon]\nbanana = 1\n");
    let ended = program.run("doctor --bundle support.tar.gz").await.expect_code(1);
    assert!(!ended.text().contains("c4n4ry"), "{}", ended.text());
    let files = unpacked(&program, &program.folder().join("support.tar.gz"));
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["doctor.json", "jobs.toml", "settings.json", "version.txt"]);
    assert!(files["settings.json"].contains("DATABASE_URL of environment"), "{}", files["settings.json"]);
    assert!(
        files["settings.json"].contains("postgres://me:***@127.0.0.1:1/none"),
        "{}",
        files["settings.json"]
    );
    assert!(files["doctor.json"].contains("unknown key `banana`"), "{}", files["doctor.json"]);
}
