//! The settings of the original, which keep working, and its interval limit.

use billing_test_support::{Db, eventually};

use super::{HEARTBEAT, daemon, fetch, program};

const HOURLY: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1h" }
run-at-start = true
"#;

/// An interval above 90 minutes hands billing back to the panel between any two runs.
#[tokio::test]
async fn interval_beyond_takeover_needs_permission() {
    let db = Db::sqlite().await;
    let meant = format!("{HOURLY}allow-long-gaps = true\n");
    for (minutes, jobs, refused) in [("91", HOURLY, true), ("90", HOURLY, false), ("91", &meant, false)] {
        let program = daemon(&db, &[jobs, HEARTBEAT]).env("BILLING_INTERVAL_MINUTES", minutes);
        if refused {
            let ended = program.run("run").await.expect_code(78);
            let message = "environment: BILLING_INTERVAL_MINUTES has no run for 1h 31m";
            assert!(ended.err[0].starts_with(message), "{}", ended.text());
            assert_eq!(fetch(&db, "SELECT count(*) FROM scheduler_jobs").await, "0", "nothing was begun");
        } else {
            let running = program.start("run");
            running.wait_for_line("runs billing, heartbeat as").await;
            running.terminated().await.expect_code(0);
        }
    }
}

#[tokio::test]
async fn unknown_log_level_means_info() {
    let db = Db::sqlite().await;
    for level in ["loud", "sqlx=loud"] {
        let program = daemon(&db, &[HOURLY, HEARTBEAT]).env("LOG_LEVEL", level);
        let running = program.start("run");
        running.wait_for_line("warning: environment: LOG_LEVEL: ").await;
        running.wait_for_line("[INFO] billing-daemon ").await;
        let ended = running.terminated().await.expect_code(0);
        assert_eq!(ended.text().matches("`info` is used").count(), 1, "{}", ended.text());
        let checked = program.run("check").await.expect_code(0);
        assert!(checked.err[0].ends_with("; `info` is used"), "{}", checked.text());
    }
}

/// What the original read from `.env`, and from the environment before it, does the same here.
#[tokio::test]
async fn legacy_settings_are_read() {
    for (in_environment, minutes, level) in [(false, "30", "DEBUG"), (true, "15", "INFO")] {
        let db = Db::g1_role().await;
        let file = format!(
            "# the original's\nexport DATABASE_URL='{}'\nBILLING_INTERVAL_MINUTES=30\nLOG_LEVEL=debug # loud\n",
            db.url
        );
        let mut program = program().file(".env", &file).file("jobs.toml", &[HOURLY, HEARTBEAT].concat());
        if in_environment {
            program = program.env("BILLING_INTERVAL_MINUTES", "15").env("LOG_LEVEL", "info");
        }
        let running = program.start("run");
        running.wait_for_line("job `billing` done").await;
        let interval = "SELECT metadata ->> 'billingIntervalMinutes' FROM billing_daemon_status
                         WHERE heartbeat_at IS NOT NULL";
        let interval_minutes = eventually("it beats", async || {
            let interval_minutes = fetch(&db, interval).await;
            (interval_minutes != "-").then_some(interval_minutes)
        });
        assert_eq!(interval_minutes.await, minutes);
        // The row of a run is written after the job has logged its end.
        let aligned = format!(
            "SELECT extract(epoch FROM max(scheduled_at))::bigint % (60 * {minutes}) FROM scheduler_runs
             WHERE job = 'billing'"
        );
        eventually("it is the schedule, too", async || (fetch(&db, &aligned).await == "0").then_some(()))
            .await;
        let ended = running.terminated().await.expect_code(0);
        let debug = ended.out.iter().any(|line| line.contains("] [DEBUG] "));
        assert_eq!(debug, level == "DEBUG", "{}", ended.text());
    }
}
