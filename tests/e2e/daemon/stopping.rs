//! The end of a daemon: clean, immediate, or killed; and how the next one continues.

use billing_test_support::{
    Db, eventually, on_variants,
    process::{Running, Signal},
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, TransactionTrait};
use uuid::Uuid;

use super::{
    BILLING, HANGS_FOREVER, HEARTBEAT, HOURS, SHORT_LEASE, check_all_charged_once, check_audit, daemon,
    fetch, rows, seed, until_it_waits_for_a_lock,
};

/// Enough for a signal to arrive during the run on SQLite, where batches are slow and none waits.
const ORGANIZATIONS: usize = 20;

/// The original abandoned the run in progress while its log claimed a graceful stop.
async fn sigterm_during_run_completes_it(db: &Db) {
    let organizations = seed(db, ORGANIZATIONS).await;
    let obstacle = Obstacle::before_the_fifth(db, &organizations).await;
    let running = daemon(db, &[BILLING, HEARTBEAT]).start("run");
    obstacle.is_met(db).await;
    running.signal(Signal::TERM);
    running.wait_for_line("SIGTERM: nothing new starts; runs in progress continue for up to 60 s").await;
    obstacle.remove().await;
    let ended = running.ended().await.expect_code(0);
    assert!(ended.text().contains(&charged(ORGANIZATIONS)), "{}", ended.text());
    check_all_charged_once(db, &organizations).await;
    let run = "status || ' ' || items || ' ' || attempt FROM scheduler_runs WHERE job = 'billing'";
    assert_eq!(rows(db, run).await, [format!("done {ORGANIZATIONS} 1")]);
    let status =
        "status || ' ' || (heartbeat_at IS NULL) || ' ' || instances_billed FROM billing_daemon_status";
    assert_eq!(rows(db, status).await, [format!("stopped {} {ORGANIZATIONS}", yes(db))]);
}

async fn second_signal_stops_run_after_batch(db: &Db) {
    check_stopped_after_batch(db, "", async |running| {
        running.signal(Signal::TERM);
        running.wait_for_line("nothing new starts").await;
        running.signal(Signal::INT);
        running.wait_for_line("SIGINT while stopping: runs in progress are requested to stop").await;
    })
    .await;
}

async fn drain_timeout_stops_run_after_batch(db: &Db) {
    check_stopped_after_batch(db, "[daemon]\ndrain-timeout = '1s'\n", async |running| {
        running.signal(Signal::TERM);
        running.wait_for_line("1 runs did not end within 1 s and are requested to stop").await;
    })
    .await;
}

/// Stops a daemon in its fifth batch so that its run does not end; the next daemon completes the same occurrence.
async fn check_stopped_after_batch(db: &Db, settings: &str, stop: impl AsyncFnOnce(&Running)) {
    let organizations = seed(db, ORGANIZATIONS).await;
    let obstacle = Obstacle::before_the_fifth(db, &organizations).await;
    let program = daemon(db, &[settings, BILLING, HEARTBEAT]);
    let running = program.start("run");
    obstacle.is_met(db).await;
    stop(&running).await;
    obstacle.remove().await;
    let ended = running.ended().await.expect_code(0);
    drop_trigger(db).await;
    let billed = charged_until_stop(db, 5).await;
    let sentence = format!("billing stopped after {billed} instances: the daemon is shutting down");
    assert!(ended.text().contains(&sentence), "{}", ended.text());
    check_charged(db, &organizations[..billed]).await;
    let run = "status || ' ' || items || ' ' || attempt FROM scheduler_runs WHERE job = 'billing'";
    assert_eq!(rows(db, run).await, [format!("interrupted {billed} 1")]);
    let status = "status || ' ' || (heartbeat_at IS NULL) || ' ' || instances_billed || ' ' || (last_run_success IS NULL)
                  FROM billing_daemon_status";
    assert_eq!(
        rows(db, status).await,
        [format!("stopped {0} {billed} {0}", yes(db))],
        "neither done nor failed"
    );

    let running = program.start("run");
    let left = organizations.len() - billed;
    running.wait_for_line(&charged(left)).await;
    running.wait_for_line("job `billing` done").await;
    running.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
    let finished = "status || ' ' || items || ' ' || attempt FROM scheduler_runs WHERE job = 'billing' ORDER BY started_at";
    assert_eq!(
        rows(db, finished).await,
        [format!("interrupted {billed} 1"), format!("done {left} 1")],
        "an interruption is no attempt"
    );
    let times = "SELECT count(DISTINCT scheduled_at) FROM scheduler_runs WHERE job = 'billing'";
    assert_eq!(fetch(db, times).await, "1", "it is the same occurrence");
}

/// A crash between the debit and its cycle charged again at each retry.
async fn kill_during_run_charges_each_hour_once(db: &Db) {
    let organizations = seed(db, ORGANIZATIONS).await;
    let obstacle = Obstacle::before_the_fifth(db, &organizations).await;
    let program = daemon(db, &[SHORT_LEASE, BILLING, HEARTBEAT]);
    let running = program.start("run");
    obstacle.is_met(db).await;
    running.signal(Signal::KILL);
    assert_eq!(running.ended().await.code, None);
    obstacle.remove().await;
    drop_trigger(db).await;
    let billed = charged_until_stop(db, 4).await;
    check_charged(db, &organizations[..billed]).await;
    assert_eq!(fetch(db, "SELECT count(*) FROM scheduler_runs WHERE job = 'billing'").await, "0");

    // The lease of the dead one has to run out first.
    let running = program.start("run");
    running.wait_for_line(&charged(organizations.len() - billed)).await;
    running.terminated().await.expect_code(0);
    check_all_charged_once(db, &organizations).await;
}

on_variants!(sigterm_during_run_completes_it: sqlite, g1_role, g3_role);
on_variants!(second_signal_stops_run_after_batch: sqlite, g1_role);
on_variants!(drain_timeout_stops_run_after_batch: sqlite, g1_role);
on_variants!(kill_during_run_charges_each_hour_once: sqlite, g1_role, g3_role);

/// The charges when a daemon stopped: this many, or some more on SQLite, where the obstacle slows batches down and holds none.
async fn charged_until_stop(db: &Db, expected: usize) -> usize {
    let charges: usize = fetch(db, "SELECT count(*) FROM billing_charges").await.parse().expect("a count");
    let is_sqlite = db.backend() == DbBackend::Sqlite;
    assert!(charges == expected || (is_sqlite && (4..ORGANIZATIONS).contains(&charges)), "{charges}");
    charges
}

async fn check_charged(db: &Db, organizations: &[Uuid]) {
    let charged =
        "CAST(organization_id AS text) || ' ' || hours FROM billing_charges ORDER BY organization_id";
    let expected: Vec<_> = organizations.iter().map(|org| format!("{org} {HOURS}")).collect();
    assert_eq!(rows(db, charged).await, expected, "whole batches and nothing else");
    check_audit(db).await;
}

/// What the run logs that bills this many instances.
fn charged(instances: usize) -> String {
    format!("charged 0.{0:02} USD for {0} hours of {instances} instances", 3 * instances)
}

fn yes(db: &Db) -> &'static str {
    if db.backend() == DbBackend::Sqlite { "1" } else { "true" }
}

#[tokio::test]
async fn third_signal_ends_process_at_once() {
    let db = Db::sqlite().await;
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let running = daemon(&db, &[HANGS_FOREVER]).start("run");
        running.wait_for_line("hangs until the process ends").await;
        running.signal(Signal::TERM);
        running.wait_for_line("nothing new starts").await;
        running.signal(signal);
        running.wait_for_line("another signal ends the process at once").await;
        running.signal(signal);
        let ended = running.ended().await.expect_code(code);
        let reported = ended.err.iter().any(|line| line.contains("while stopping: the process ends at once"));
        assert!(reported, "{}", ended.text());
        db.execute("DELETE FROM scheduler_jobs").await;
    }
}

/// One job waits without end, and one blocks its thread: only the end of the process ends them.
#[tokio::test]
async fn unstoppable_jobs_are_abandoned_after_grace() {
    let (db, other) = tokio::join!(Db::g1_role(), Db::sqlite());
    let at_once = "[daemon]\ndrain-timeout = '1s'\n";
    let runaway = daemon(&db, &[at_once, HANGS_FOREVER, HEARTBEAT]).start("run");
    let stuck = daemon(&other, &[at_once, &HANGS_FOREVER.replace("hangs-forever", "stuck")]).start("run");
    runaway.wait_for_line("hangs until the process ends").await;
    stuck.wait_for_line("stuck from now on").await;
    let beats = "SELECT status FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
    eventually("it beats", async || (fetch(&db, beats).await == "running").then_some(())).await;
    let (ended, stuck) = tokio::join!(runaway.terminated(), stuck.terminated());
    stuck.expect_code(70);
    let sentence = "error: stopped, but 1 runs did not end in time and run again later";
    let ended = ended.expect_code(70);
    assert_eq!(ended.err.last().map(String::as_str), Some(sentence), "{}", ended.text());
    assert_eq!(rows(&db, "status FROM billing_daemon_status WHERE heartbeat_at IS NULL").await, ["stopped"]);
}

/// Keeps a billing run from its fifth batch for as long as a test needs.
enum Obstacle {
    /// A locked wallet.
    Lock(DatabaseTransaction),
    /// A trigger that slows batches down.
    Trigger,
}

impl Obstacle {
    async fn before_the_fifth(db: &Db, organizations: &[Uuid]) -> Self {
        if db.backend() == DbBackend::Sqlite {
            db.execute(
                "CREATE TRIGGER slow AFTER INSERT ON billing_batches WHEN (SELECT count(*) FROM billing_batches) >= 5
                 BEGIN
                     SELECT count(*) FROM (WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 500000)
                                           SELECT n FROM c);
                 END",
            )
            .await;
            return Self::Trigger;
        }
        let lock = db.admin().begin().await.expect("a transaction begins");
        let wallet = format!("SELECT FROM wallets WHERE organization_id = '{}' FOR UPDATE", organizations[4]);
        lock.execute_unprepared(&wallet).await.expect("a wallet is locked");
        Self::Lock(lock)
    }

    /// Waits until four batches are committed and, where that can be seen, the fifth has begun.
    async fn is_met(&self, db: &Db) {
        let batches = "SELECT count(*) FROM billing_batches";
        let four =
            async || fetch(db, batches).await.parse::<usize>().is_ok_and(|count| count >= 4).then_some(());
        eventually("four are billed", four).await;
        if let Self::Lock(_) = self {
            until_it_waits_for_a_lock(db).await;
        }
    }

    async fn remove(self) {
        match self {
            Self::Lock(lock) => lock.rollback().await.expect("a lock is given back"),
            // The batches end without help, and no test can drop the trigger while one of them holds the file.
            Self::Trigger => {}
        }
    }
}

/// Removes what is left of an obstacle once no daemon runs.
async fn drop_trigger(db: &Db) {
    if db.backend() == DbBackend::Sqlite {
        db.execute("DROP TRIGGER slow").await;
    }
}
