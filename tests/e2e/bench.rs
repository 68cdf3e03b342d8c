//! Each benchmark runs with a small fleet, to see that it works; no time is checked.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use billing_test_support::Program;
use serde_json::Value;

const TOOLS: &str = env!("CARGO_BIN_EXE_e2e-tools");

async fn check_small_benchmark(database: &str) {
    let program = Program::new(TOOLS).env("PATH", &std::env::var("PATH").unwrap_or_default());
    let arguments = format!(
        "bench-billing --database {database} --instances 60 --history 100 --rounds 1 --sample 5 --hours 2 --json"
    );
    let ended = program.run(&arguments).await.expect_code(0);
    let report: Value = serde_json::from_str(&ended.out.join("\n")).expect("one line of JSON");
    assert_eq!(report["database"], database);
    assert_eq!((&report["instances"], &report["history"]), (&60.into(), &100.into()));
    for figure in ["ours_per_s", "original_per_s", "floor_per_s", "vs_original", "vs_floor", "rss_mb"] {
        assert!(report[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure} in {report}");
    }
}

#[tokio::test]
async fn benchmark_of_sqlite_prints_json() {
    check_small_benchmark("sqlite").await;
}

#[tokio::test]
async fn benchmark_of_postgres_prints_json() {
    check_small_benchmark("postgres").await;
}

#[tokio::test]
async fn fleet_benchmark_prints_each_hour() {
    let program = Program::new(TOOLS).env("PATH", &std::env::var("PATH").unwrap_or_default());
    let ended = program.run("bench-fleet --instances 60").await.expect_code(0);
    let report: Value = serde_json::from_str(&ended.out.join("\n")).expect("one line of JSON");
    let hours = report["hours"].as_array().expect("one element for each hour");
    assert_eq!(hours.len(), 2);
    for figure in ["instances_per_s", "server_cpu_us_per_instance", "rss_mb", "top_up_max_ms"] {
        assert!(hours[1][figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure} in {report}");
    }
}

#[tokio::test]
async fn panel_guard_benchmark_prints_costs() {
    let program = Program::new(TOOLS).env("PATH", &std::env::var("PATH").unwrap_or_default());
    let ended = program.run("bench-panel-guard --rows 20 --rounds 1").await.expect_code(0);
    let report: Value = serde_json::from_str(&ended.out.join("\n")).expect("one line of JSON");
    let figures = [
        "debit_of_ours_us",
        "debit_of_the_panel_us",
        "other_row_us",
        "balance_of_ours_us",
        "other_balance_us",
    ];
    for figure in figures {
        for what in ["without", "with"] {
            let each = &report[figure][what];
            assert!(each.as_f64().is_some_and(|each| each > 0.0), "{figure} {what} in {report}");
        }
    }
}

#[tokio::test]
async fn takeover_benchmark_prints_delays() {
    let program = Program::new(TOOLS);
    let ended = program.run("bench-takeover --database sqlite --rounds 1 --leases 3").await.expect_code(0);
    let report: Value = serde_json::from_str(&ended.out.join("\n")).expect("one line of JSON");
    for figure in [
        &report["holder_killed"][0]["s"],
        &report["late_after_idle_killed_s"],
        &report["late_after_idle_stopped_s"],
    ] {
        assert!(figure["median"].is_f64() && figure["max"] == figure["median"], "{report}");
    }
}

#[test]
fn benchmark_worker_prints_costs_per_round() {
    let mut worker = Command::new(TOOLS)
        .args([
            "bench-billing",
            "--workload",
            "billing",
            "--database",
            "sqlite",
            "--instances",
            "60",
            "--worker",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the benchmark starts");
    worker.stdin.take().expect("a pipe").write_all(b"round\nround\n").expect("the worker reads");
    let output = worker.wait_with_output().expect("the worker ends");
    assert!(output.status.success(), "{output:?}");
    let rounds: Vec<Value> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert_eq!(rounds.len(), 2);
    assert!(rounds.iter().all(|round| round["seconds"].as_f64() > Some(0.0)), "{rounds:?}");
}
