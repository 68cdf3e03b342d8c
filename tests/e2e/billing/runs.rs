//! A run as a whole: its changes, its number of round trips, dry runs, and how it stops.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use billing_jobs::billing::{BillReport, Mode};
use billing_scheduler::{StopReason, Store};
use billing_test_support::{Db, Fleet, Instance, Plan, on_every_database, on_every_engine};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{
    Daemon, Order, TEN_CENTS_AN_HOUR, add_instances, assert_sound, contents, hour, in_usd, number, texts, usd,
};

/// One instance of each kind: paid, short of money, without a wallet, without a plan.
async fn mixed_fleet(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    for org in [fleet.wallet("100.00").await, fleet.wallet("0.15").await, fleet.organization().await] {
        add_instances(db, org, plan, 2).await;
        fleet.instance(Instance::new(org, "unheard-of", hour(0))).await;
    }
}

async fn catalog(db: &Db) -> Vec<String> {
    let everything = match db.backend() {
        DbBackend::Sqlite => "SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY 1",
        _ => {
            "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) AS thing
               FROM information_schema.columns WHERE table_schema = 'public'
             UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
             UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
             UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger
             UNION ALL SELECT concat(oid, relname, relfilenode, relacl) FROM pg_class
                        WHERE relnamespace = 'public'::regnamespace
             ORDER BY 1"
        }
    };
    texts(db, everything).await
}

/// The daemon's own role could not do so anyway.
async fn run_changes_no_schema(db: &Db) {
    mixed_fleet(db).await;
    let before = catalog(db).await;
    Daemon::of(db).await.bill(hour(2)).await;
    assert_eq!(catalog(db).await, before);
    assert_sound(db).await;
}

async fn statements_of_a_run_over(db: &Db, instances: u32) -> usize {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    for _ in 0..4 {
        let org = fleet.wallet("1000.00").await;
        add_instances(db, org, plan, instances / 4).await;
    }
    let mut daemon = Daemon::of(db).await;
    let statements = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&statements);
    daemon.db.set_metric_callback(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(daemon.bill(hour(1)).await.charged, u64::from(instances));
    assert_sound(db).await;
    statements.load(Ordering::Relaxed)
}

/// The original daemon sent ten queries for each instance. (The rows of a file are tested in `rows`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_are_independent_of_fleet_size() {
    let [small, large] = [Db::g3_role().await, Db::g3_role().await];
    let few = statements_of_a_run_over(&small, 20).await;
    let many = statements_of_a_run_over(&large, 2_000).await;
    assert!(many <= few, "{many} instead of {few}");
    assert!((5..60).contains(&few), "{few}");
}

async fn dry_run_predicts_run_and_changes_nothing(db: &Db) {
    mixed_fleet(db).await;
    let daemon = Daemon::of(db).await;
    let before = contents(db).await;

    let preview = daemon.preview(&Order::by(hour(2))).await;

    assert_eq!(contents(db).await, before, "not a row of any table");
    assert_eq!((preview.charged, preview.hours, preview.held), (3, 5, 7));
    assert_eq!(daemon.bill(hour(2)).await, preview);
    assert_ne!(contents(db).await, before);
    assert_sound(db).await;
}

async fn stopped_run_keeps_its_batches(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut orgs = Vec::new();
    for _ in 0..5 {
        let org = fleet.wallet("100.00").await;
        add_instances(db, org, plan, 2).await;
        orgs.push(org);
    }
    let daemon = Daemon::with_batches_of(db, 2).await;
    let calls = AtomicUsize::new(0);
    let stop = || (calls.fetch_add(1, Ordering::Relaxed) == 3).then_some(StopReason::Drain);
    let lease = daemon.claim().await;

    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let order = Order { stop: &stop, ..Order::by(hour(1)) };
    let stopped =
        daemon.run(first, Mode::Commit(lease.fencing_token), &order).await.expect("a stop is no error");
    assert_eq!(stopped.stopped, Some(StopReason::Drain));
    let rest =
        daemon.run(second, Mode::Commit(lease.fencing_token), &Order::by(hour(1))).await.expect("no error");
    assert_eq!(rest.stopped, None);
    daemon.store.release(&lease).await.expect("released");

    for (run, BillReport { totals, .. }, charged) in [(first, stopped, 6), (second, rest, 4)] {
        assert_eq!((totals.charged, totals.hours, totals.held), (charged, charged, 0));
        let charges = format!(
            "FROM billing_charges c JOIN billing_batches b ON b.id = c.batch_id WHERE b.run_id = '{run}'"
        );
        assert_eq!(number(db, &format!("SELECT sum(c.amount) {charges}")).await, in_usd(&totals));
        assert_eq!(number(db, &format!("SELECT count(*) {charges}")).await, totals.charges.cast_signed());
    }
    for org in orgs {
        assert_eq!(fleet.balance(org).await, usd("99.80"), "each batch is whole");
    }
    assert_sound(db).await;
}

async fn run_without_due_hours_writes_no_batch(db: &Db) {
    let fleet = Fleet::new(db);
    let daemon = Daemon::of(db).await;
    assert_eq!(daemon.bill(hour(1)).await.charged, 0, "an empty panel");
    let org = fleet.wallet("100.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    fleet.instance(Instance::new(org, plan, hour(1))).await;
    assert_eq!(daemon.bill(hour(1)).await.charged, 0);
    assert_eq!(number(db, "SELECT count(*) FROM billing_batches").await, 0);
    assert_sound(db).await;
}

on_every_database!(run_changes_no_schema);
on_each_kind!(dry_run_predicts_run_and_changes_nothing, stopped_run_keeps_its_batches,);
on_every_engine!(run_without_due_hours_writes_no_batch);
