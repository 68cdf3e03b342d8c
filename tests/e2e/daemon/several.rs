//! Several daemons on one database.

use std::collections::BTreeSet;

use e2e::{Db, eventually, on_every_engine};

use super::{BILLING, HEARTBEAT, TICK, ask, check_all_charged_once, daemon, rows, seed};

/// Fault D9: runs of the original overlapped, and there was no lease and no fence.
async fn two_daemons_never_run_the_same_occurrence_twice(db: &Db) {
    let organizations = seed(db, 4).await;
    let program = daemon(db, &[BILLING, HEARTBEAT, TICK]);
    let (one, other) = (program.start("run"), program.start("run"));
    one.says("runs billing, heartbeat, tick as").await;
    other.says("runs billing, heartbeat, tick as").await;
    let runs = "SELECT CASE WHEN count(*) > 4 THEN 'yes' END FROM billing_job_runs WHERE job = 'tick'";
    eventually("both had their chances", async || (ask(db, runs).await == "yes").then_some(())).await;
    let ended = [one.terminated().await.expect_code(0), other.terminated().await.expect_code(0)];

    let ticks: Vec<&str> = ended
        .iter()
        .flat_map(|ended| &ended.out)
        .filter_map(|line| line.split_once("tick of ").map(|(_, at)| at))
        .collect();
    assert_eq!(ticks.len(), ticks.iter().collect::<BTreeSet<_>>().len(), "each ran once: {ticks:?}");
    let recorded =
        "SELECT count(DISTINCT scheduled_at) FROM billing_job_runs WHERE job = 'tick' AND status = 'done'";
    assert_eq!(ask(db, recorded).await, ticks.len().to_string(), "and was recorded");
    assert_eq!(
        rows(db, "status || ' ' || items FROM billing_job_runs WHERE job = 'billing'").await,
        ["done 4"]
    );
    check_all_charged_once(db, &organizations).await;
}

on_every_engine!(two_daemons_never_run_the_same_occurrence_twice);
