//! A short fault campaign, the proof that it detects missing safeguards, and targeted faults.

mod mutations;
mod paused;
mod prepaid;
mod targeted_faults;

use std::{env, time::Duration};

use billing_tools::{
    Engine,
    faults::{self, Options, Report},
};

fn options(engine: Engine, seconds: u64) -> Options {
    Options::new(engine, Duration::from_secs(seconds), 1, env!("CARGO_BIN_EXE_e2e-tools").into())
}

/// `FAULTS_SECONDS` makes the campaigns longer, and `FAULTS_SEED` other ones.
fn campaign(engine: Engine) -> Options {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let mut options = options(engine, number("FAULTS_SECONDS").unwrap_or(20));
    options.seed = number("FAULTS_SEED").unwrap_or(1);
    options
}

async fn check_clean(options: &Options) -> Report {
    let report = Box::pin(faults::run(options)).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.hours_due, report.hours_charged + report.hours_held, "{report}");
    assert!(report.hours_charged > 0, "nothing was billed:\n{report}");
    assert!(report.kills + report.pauses > 0, "nothing went wrong:\n{report}");
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn campaign_on_sqlite_finds_nothing() {
    check_clean(&campaign(Engine::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn campaign_on_postgres_finds_nothing() {
    let report = check_clean(&campaign(Engine::Postgres)).await;
    assert!(report.panel_attempts > 0, "the panel was asleep:\n{report}");
}
