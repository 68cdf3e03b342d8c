//! The status row of a daemon, from its start until after its end.

use billing_test_support::{Db, eventually, on_every_engine, on_variants};
use sea_orm::DbBackend;

use super::{BILLING, HEARTBEAT, check_all_charged_once, daemon, fetch, program, rows, seed};

const SHIPPED: &str = include_str!("../../../jobs.toml");

const STALE_DAEMONS: &str = r#"
[[job]]
name = "stale-daemons"
kind = "stale-daemons"
schedule = { every = "365d" }
run-at-start = true
"#;

/// The original exited after 32 seconds and never wrote a heartbeat.
async fn default_jobs_bill_and_beat(db: &Db) {
    let organizations = seed(db, 4).await;
    let mut daemon = daemon(db, &[SHIPPED]).start("run");
    daemon.wait_for_line("charged 0.12 USD for 12 hours of 4 instances, 0 held").await;
    let beats = "SELECT status FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
    eventually("it beats", async || (fetch(db, beats).await == "running").then_some(())).await;
    assert!(daemon.is_alive(), "it received no signal");
    let ended = daemon.terminated().await.expect_code(0);
    assert!(ended.out.last().is_some_and(|line| line.ends_with("[INFO] stopped")), "{}", ended.text());
    check_all_charged_once(db, &organizations).await;
}

/// As the original: its README promised that the address of the database is all that it needs.
async fn database_url_alone_runs_built_in_jobs(db: &Db) {
    let organizations = seed(db, 4).await;
    let program = program().env("DATABASE_URL", &db.url);
    let checked = program.run("check").await.expect_code(0);
    let jobs = "4 jobs of the built-in defaults (billing, heartbeat, stale-daemons, prune-history)";
    assert!(checked.out[0].starts_with(&format!("ok: {jobs} on ")), "{}", checked.text());
    let printed = program.run("check --print-defaults").await.expect_code(0).out.join("\n");

    let daemon = program.start("run");
    daemon
        .wait_for_line("no ./jobs.toml and no /etc/billing-daemon/jobs.toml: using the built-in defaults")
        .await;
    daemon.wait_for_line("charged 0.12 USD for 12 hours of 4 instances, 0 held").await;
    let beats = "SELECT status FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
    eventually("it beats", async || (fetch(db, beats).await == "running").then_some(())).await;
    let billed = program.run("bill").await;
    assert!(billed.code == Some(0) || billed.text().contains("billing is being run by"), "{}", billed.text());
    assert!(billed.err[0].contains("using the built-in defaults (billing, "), "{}", billed.text());

    // The printed text is a valid file.
    let _program = program.file("jobs.toml", &printed.replace("every = \"10m\"", "every = \"20m\""));
    daemon.wait_for_line("jobs.toml: stale-daemons: schedule every 10m -> every 20m").await;
    daemon.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

/// And its heartbeat continues.
async fn heartbeat_continues(db: &Db) {
    let mut daemon = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    let mut seen = Vec::new();
    for beat in ["first", "second", "third"] {
        let new = async || {
            let beat = fetch(db, "SELECT heartbeat_at FROM billing_daemon_status").await;
            (beat != "-" && !seen.contains(&beat)).then_some(beat)
        };
        let at = eventually(beat, new).await;
        seen.push(at);
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(daemon.is_alive());
}

/// The original's clean stop kept the built-in billing paused and erased the last run's figures, which moreover
/// were not those of the ledger.
async fn clean_stop_hands_billing_back(db: &Db) {
    seed(db, 3).await;
    let host = hostname();
    remember(db, "dead-here", &host, "running", "-3 hours").await;
    remember(db, "dead-there", "elsewhere", "running", "-3 hours").await;
    let daemon = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    daemon.wait_for_line("job `billing` done").await;
    let own = format!("daemon_instance_id LIKE '{host}-{}-%'", daemon.pid());
    let beats =
        format!("SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL AND {own}");
    eventually("it beats", async || (fetch(db, &beats).await == "1").then_some(())).await;
    daemon.terminated().await.expect_code(0);

    assert_eq!(
        fetch(db, "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL").await,
        "0"
    );
    assert_eq!(fetch(db, "SELECT last_success_at FROM scheduler_fencing WHERE job = 'billing'").await, "-");
    assert_eq!(status_of(db, "dead-here").await, "stopped");
    assert_eq!(status_of(db, "dead-there").await, "running", "what another host is doing is not ours to say");
    let (dollars, true_) = match db.backend() {
        DbBackend::Sqlite => ("(total_amount / 10000.0)", "1"),
        _ => ("CAST(total_amount AS real)", "true"),
    };
    let figures = format!(
        "SELECT status || ' ' || last_run_success || ' ' || instances_billed || ' ' || {dollars} || ' '
                || CAST(total_hours AS integer) || ' ' || (last_run_at IS NOT NULL)
           FROM billing_daemon_status WHERE {own}"
    );
    assert_eq!(fetch(db, &figures).await, format!("stopped {true_} 3 0.09 9 {true_}"));
    let ledger = match db.backend() {
        DbBackend::Sqlite => "SELECT count(*) || ' ' || (-sum(amount) / 10000.0) FROM payment_transactions",
        _ => "SELECT count(*) || ' ' || CAST(-sum(amount) AS real) FROM payment_transactions",
    };
    assert_eq!(fetch(db, ledger).await, "3 0.09", "the same as in the ledger");
}

/// While another daemon is alive, the panel leaves billing to that one.
async fn clean_stop_leaves_billing_to_other_daemon(db: &Db) {
    remember(db, "dead-here", &hostname(), "running", "-3 hours").await;
    remember(db, "alive-there", "elsewhere", "running", "-1 seconds").await;
    let daemon = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    daemon.wait_for_line("job `billing` done").await;
    daemon.terminated().await.expect_code(0);
    let beating = "daemon_instance_id FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
    assert_eq!(rows(db, beating).await, ["alive-there"]);
    assert_ne!(fetch(db, "SELECT last_success_at FROM scheduler_fencing WHERE job = 'billing'").await, "-");
}

/// The panel shows the row with the newest heartbeat, which may be that of a daemon that has not billed.
async fn idle_daemon_row_carries_newest_run(db: &Db) {
    seed(db, 3).await;
    let billing = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    billing.wait_for_line("job `billing` done").await;
    billing.terminated().await.expect_code(0);
    let idle = daemon(db, &[HEARTBEAT]).start("run");
    let shown = "SELECT last_run_success || ' ' || instances_billed || ' ' || CAST(total_hours AS integer) || ' '
                        || (last_run_at = (SELECT min(last_run_at) FROM billing_daemon_status))
                   FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL ORDER BY heartbeat_at DESC LIMIT 1";
    let yes = if db.backend() == DbBackend::Sqlite { "1" } else { "true" };
    let expected = format!("{yes} 3 9 {yes}");
    eventually("it beats with the figures", async || (fetch(db, shown).await == expected).then_some(()))
        .await;
    idle.terminated().await.expect_code(0);
}

/// The original's rows were named `{hostname}-{pid}`, which repeats in containers, and stayed without limit.
async fn stale_daemon_rows_are_deleted(db: &Db) {
    for (name, status, age) in [
        ("silent", "running", "-11 minutes"),
        ("failing", "error", "-11 minutes"),
        ("alive", "running", "-9 minutes"),
        ("stopped", "stopped", "-29 days"),
        ("forgotten", "stopped", "-31 days"),
    ] {
        remember(db, name, "elsewhere", status, age).await;
    }
    let program = daemon(db, &[BILLING, HEARTBEAT, STALE_DAEMONS]).env("BILLING_INTERVAL_MINUTES", "30");
    let (one, other) = (program.start("run"), program.start("run"));
    let ours =
        "daemon_instance_id FROM billing_daemon_status WHERE daemon_instance_id LIKE '%-%-%' ORDER BY 1";
    let names = eventually("both are there", async || {
        let names = rows(db, ours).await;
        (names.len() == 2).then_some(names)
    })
    .await;
    let mut random = Vec::new();
    for daemon in [&one, &other] {
        let prefix = format!("{}-{}-", hostname(), daemon.pid());
        let name = names.iter().find_map(|name| name.strip_prefix(&prefix)).expect("host and process");
        assert!(name.len() == 12 && name.chars().all(|c| c.is_ascii_hexdigit()), "{name} is random");
        assert!(!random.contains(&name), "{name} is new each time");
        random.push(name);
        let metadata = fetch(
            db,
            &format!(
                "SELECT metadata FROM billing_daemon_status WHERE daemon_instance_id = '{prefix}{name}'"
            ),
        )
        .await;
        let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("metadata is JSON");
        assert_eq!(metadata["os"], std::env::consts::OS);
        assert_eq!(metadata["hostname"], hostname());
        assert_eq!(metadata["pid"], daemon.pid());
        assert_eq!(metadata["billingIntervalMinutes"], 30);
        assert!(metadata["startTime"].is_string() && metadata["version"].is_string(), "{metadata}");
    }
    let tidied = "SELECT count(*) FROM scheduler_runs WHERE job = 'stale-daemons' AND status = 'done'";
    eventually("one of them tidied", async || (fetch(db, tidied).await == "1").then_some(())).await;
    let others = "daemon_instance_id || ' ' || status || ' ' || CASE WHEN heartbeat_at IS NULL THEN 'silent' ELSE 'beats' END
                    FROM billing_daemon_status WHERE daemon_instance_id NOT LIKE '%-%-%' ORDER BY 1";
    assert_eq!(
        rows(db, others).await,
        ["alive running beats", "failing stopped silent", "silent stopped silent", "stopped stopped beats"]
    );
}

on_every_engine!(
    idle_daemon_row_carries_newest_run,
    heartbeat_continues,
    clean_stop_hands_billing_back,
    clean_stop_leaves_billing_to_other_daemon,
    stale_daemon_rows_are_deleted,
);
on_variants!(default_jobs_bill_and_beat: sqlite, g1_role, g2_role, g3_role);
on_variants!(database_url_alone_runs_built_in_jobs: sqlite, g1_role);

/// Writes the row of a daemon of this host with an update at that age.
async fn remember(db: &Db, name: &str, host: &str, status: &str, age: &str) {
    let at = match db.backend() {
        DbBackend::Sqlite => format!("strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '{age}')"),
        _ => format!("now() + interval '{age}'"),
    };
    db.execute(&format!(
        "INSERT INTO billing_daemon_status
                (daemon_instance_id, status, heartbeat_at, metadata, created_at, updated_at)
         VALUES ('{name}', '{status}', {at}, '{{\"hostname\": \"{host}\"}}', {at}, {at})"
    ))
    .await;
}

async fn status_of(db: &Db, name: &str) -> String {
    fetch(db, &format!("SELECT status FROM billing_daemon_status WHERE daemon_instance_id = '{name}'")).await
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("this system has a name");
    name.trim().to_owned()
}
