//! Faults at chosen moments of a billing transaction.

use billing_test_support::{
    Db, Ended, Fleet, Instance, Login, Panel, Plan, Postgres, Program, eventually, on_every_engine,
    process::Signal,
};
use billing_tools::faults::Proxy;
use chrono::TimeDelta;
use sea_orm::DbBackend;
use uuid::Uuid;

use crate::daemon::{
    BILLING, check_all_charged_once, check_audit, fetch, free_all_jobs, now, program, seed,
    with_panel_billing_off,
};

/// More statements than a batch has.
const STATEMENTS: usize = 200;
const LOST_ANSWERS: u64 = 100;
/// Of a stress test.
const PHASES: usize = 3;

/// One organization for each effect of a batch.
struct Customers {
    rich: Uuid,
    poor: Uuid,
    instances: Vec<Uuid>,
}

impl Customers {
    /// A second batch writes to every table: charges of meters old and new, an anchor behind, and holds that open and close.
    async fn seed(db: &Db) -> Self {
        let fleet = Fleet::new(db);
        let plan = fleet.plan(Plan::monthly("7.30")).await;
        let created = now(db).await - TimeDelta::minutes(3 * 60 + 30);
        let (rich, poor) = (fleet.wallet("10.00").await, fleet.wallet("0.01").await);
        let anchored = fleet.instance(Instance::new(rich, plan, created)).await;
        let short = fleet.instance(Instance::new(poor, plan, created)).await;
        bill(db, None).await.expect_code(0);
        fleet.top_up(poor, "0.03").await;
        let behind = match db.backend() {
            DbBackend::Sqlite => "created_at",
            _ => "created_at + interval '1 hour'",
        };
        db.execute(&format!("UPDATE vps_instances SET last_billed_at = {behind} WHERE id = '{anchored}'"))
            .await;
        let newer = fleet.instance(Instance::new(rich, plan, created)).await;
        let beyond = fleet.instance(Instance::new(poor, plan, created + TimeDelta::hours(1))).await;
        Self { rich, poor, instances: vec![anchored, short, newer, beyond] }
    }

    /// The final charges: the hours of each instance, and the balances.
    async fn charged(&self, db: &Db) -> (Vec<i64>, i64, i64) {
        let fleet = Fleet::new(db);
        let mut hours = Vec::new();
        for instance in &self.instances {
            hours.push(fleet.charges(*instance).await.iter().map(|charge| charge.hours).sum());
        }
        (hours, fleet.balance(self.rich).await, fleet.balance(self.poor).await)
    }
}

/// Bills once, and dies before this statement.
async fn bill(db: &Db, abort_at: Option<usize>) -> Ended {
    let mut program = program().env("DATABASE_URL", &db.url);
    if let Some(number) = abort_at {
        program = program.env("BILLING_ABORT_AT", &number.to_string());
    }
    program.run("bill").await
}

async fn abort_before_any_statement_changes_nothing(db: &Db) {
    for number in 1..STATEMENTS {
        let customers = Customers::seed(db).await;
        let before = customers.charged(db).await;
        let ended = bill(db, Some(number)).await;
        if ended.code == Some(0) {
            assert!(number > 12, "a batch has more than {number} statements");
            return;
        }
        assert_eq!(ended.code, None, "{}", ended.text());
        assert_eq!(customers.charged(db).await, before, "before statement {number}");
        free_all_jobs(db).await;
        bill(db, None).await.expect_code(0);
        assert_eq!(customers.charged(db).await, (vec![3, 3, 3, 1], 99_400, 0), "after statement {number}");
        check_audit(db).await;
    }
    panic!("a batch has no end");
}

/// A build of the whole workspace compiles into the shipped program what tests break, and it must do nothing there.
#[tokio::test]
async fn shipped_program_ignores_mutations() {
    let db = Db::sqlite().await;
    let organizations = seed(&db, 2).await;
    let shipped = program()
        .env("E2E_AS_SHIPPED", "1")
        .env("DATABASE_URL", &db.url)
        .env("BILLING_ABORT_AT", "1")
        .env("BILLING_MUTATION", "debit-apart,cycles-apart,no-such-mutation")
        .env("BILLING_CLOCK", "SELECT 0 AS now");
    shipped.run("bill").await.expect_code(0);
    check_all_charged_once(&db, &organizations).await;
}

/// The result of a kill between two transactions where one is needed; the audit detects it.
async fn separate_write_is_lost_by_kill(db: &Db) {
    for (mutation, missed) in
        [("", None), ("debit-apart", Some("wallet_balance: ")), ("cycles-apart", Some("charge_in_cycles: "))]
    {
        seed(db, 1).await;
        // An instance without any cycle may have been deleted and restored. This one has a cycle of the panel.
        db.execute(
            "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                             hourly_rate, total_amount, status)
             SELECT id, organization_id, created_at, created_at, 0, 0, 'failed' FROM vps_instances",
        )
        .await;
        let charges = "SELECT count(*) FROM billing_charges";
        let before = fetch(db, charges).await;
        let program = program().env("DATABASE_URL", &db.url).env("BILLING_MUTATION", mutation);
        let running = program.clone().env("BILLING_LINGER_MS", "700").start("bill");
        eventually("it is charged", async || (fetch(db, charges).await != before).then_some(())).await;
        running.signal(Signal::KILL);
        running.ended().await;
        free_all_jobs(db).await;
        program.env("BILLING_MUTATION", "").run("bill").await.expect_code(0);
        let audit = self::program().env("DATABASE_URL", &db.url).run("audit").await;
        match missed {
            None => drop(audit.expect_code(0)),
            Some(rule) => assert!(audit.text().contains(rule), "{mutation}:\n{}", audit.text()),
        }
    }
}

/// Each phase lasts until a batch was rolled back because of it. The run continues: its history has one attempt.
async fn lock_stress_delays_batches_only(db: &Db) {
    let orgs = seed(db, 60).await;
    let daemon = program()
        .env("DATABASE_URL", &db.url)
        // Five attempts at a batch take long enough to notice the first.
        .env("BILLING_LOCK_TIMEOUT_MS", "500")
        // So that the locks are taken while it bills.
        .env("BILLING_LINGER_MS", "25")
        .env("LOG_LEVEL", "debug")
        .file("jobs.toml", BILLING)
        .start("run");
    // On SQLite the first attempt reads before it conflicts with a writer, and is not counted.
    let (refused, times) = match db.backend() {
        DbBackend::Sqlite => (
            "a batch was rolled back: Query Error: error returned from database: (code: 5) database is locked",
            2,
        ),
        _ => (
            "a batch was rolled back: Query Error: error returned from database: canceling statement due to lock timeout",
            1,
        ),
    };
    for phase in 1..=PHASES {
        let in_progress = format!("SELECT count(*) >= {} FROM billing_charges", 5 * phase);
        let yes = if db.backend() == DbBackend::Sqlite { "1" } else { "true" };
        eventually("it bills", async || (fetch(db, &in_progress).await == yes).then_some(())).await;
        let refused_before = daemon.lines_with(refused).len();
        let transaction = db.begin().await.expect("a transaction begins");
        let lock = "UPDATE wallets SET currency = currency";
        sea_orm::ConnectionTrait::execute_unprepared(&transaction, lock).await.expect("its turn comes");
        daemon.wait_for_lines(refused, refused_before + times).await;
        transaction.rollback().await.expect("nothing was changed");
    }
    all_charged(db, orgs.len()).await;
    daemon.terminated().await.expect_code(0);
    let attempts =
        "SELECT count(*) || ' ' || min(status) || ' at attempt ' || max(attempt) FROM scheduler_runs";
    assert_eq!(fetch(db, attempts).await, "1 done at attempt 1", "a batch is done again, and not its run");
    check_all_charged_once(db, &orgs).await;
}

on_every_engine!(
    abort_before_any_statement_changes_nothing,
    separate_write_is_lost_by_kill,
    lock_stress_delays_batches_only,
);

/// A run that counts what it remembers, instead of what it committed, misses a batch whose commit was not answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_from_memory_miss_lost_response() {
    for (mutation, code) in [("", 0), ("totals-from-memory", 1)] {
        let db = Db::with_panel(Panel::G3, Login::Billing).await;
        seed(&db, 3).await;
        let server = Postgres::server().port();
        let proxy = Proxy::start(server).await.expect("a port is free");
        proxy.lose_batches(1);
        let url = db.url.replace(&format!(":{server}/"), &format!(":{}/", proxy.port()));
        let program = program()
            .env("BILLING_MUTATION", mutation)
            .file("jobs.toml", &with_panel_billing_off(&db, BILLING));
        program.clone().env("DATABASE_URL", &url).run("bill").await.expect_code(0);
        assert_eq!(proxy.lost_commits(), 1);
        let audit = program.env("DATABASE_URL", &db.url).run("audit").await.expect_code(code);
        assert_eq!(audit.text().contains("run_totals: "), code == 1, "{}", audit.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_commit_responses_charge_nothing_twice() {
    let db = Db::with_panel(Panel::G3, Login::Billing).await;
    let orgs = seed(&db, 150).await;
    let server = Postgres::server().port();
    let proxy = Proxy::start(server).await.expect("a port is free");
    let url = db.url.replace(&format!(":{server}/"), &format!(":{}/", proxy.port()));
    let daemon = Program::new(env!("CARGO_BIN_EXE_e2e-daemon"))
        .env("DATABASE_URL", &url)
        .file("jobs.toml", &with_panel_billing_off(&db, BILLING))
        .start("run");
    for lost in 0..LOST_ANSWERS {
        proxy.lose_batches(1);
        eventually("an answer is lost", async || (proxy.lost_commits() > lost).then_some(())).await;
    }
    all_charged(&db, orgs.len()).await;
    daemon.terminated().await.expect_code(0);
    assert_eq!(proxy.lost_commits(), LOST_ANSWERS);
    check_all_charged_once(&db, &orgs).await;
}

/// Waits until so many instances are charged, and a run has finished.
async fn all_charged(db: &Db, instances: usize) {
    let done = "SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND status = 'done'";
    let charged = "SELECT count(*) FROM billing_charges";
    eventually("everything is billed", async || {
        let all = fetch(db, charged).await == instances.to_string();
        (all && fetch(db, done).await != "0").then_some(())
    })
    .await;
}
