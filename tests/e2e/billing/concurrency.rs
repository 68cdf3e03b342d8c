//! Concurrent runs, claims, payments and broken connections: one charge for each hour.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use billing_jobs::billing::{BillingError, BillingSettings};
use billing_test_support::{Db, Fleet, Instance, Plan, on_every_database, on_every_engine, on_variants};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Barrier,
};
use uuid::Uuid;

use super::{
    CENT, Daemon, TEN_CENTS_AN_HOUR, Then, add_instances, assert_sound, charged, contents, drop_trigger,
    hour, in_usd, number, trigger, usd,
};

/// This many organizations with a hundred in the wallet and `instances` each.
async fn organizations(db: &Db, count: usize, instances: u32) -> Vec<Uuid> {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let mut orgs = Vec::new();
    for _ in 0..count {
        let org = fleet.wallet("100.00").await;
        add_instances(db, org, plan, instances).await;
        orgs.push(org);
    }
    orgs
}

/// All of them have the same, valid claim: it is the ledger that protects.
async fn concurrent_runs_charge_each_hour_once(db: &Db) {
    let fleet = Fleet::new(db);
    let orgs = organizations(db, 20, 10).await;
    let fencing_token = Daemon::of(db).await.claim().await.fencing_token;

    for (round, runners) in [(1, 2), (2, 8)] {
        let start = Arc::new(Barrier::new(runners));
        let mut running = Vec::new();
        for runner in 0..runners {
            // Batches of all sizes, so that they overlap in every way.
            let daemon = Daemon::with_batches_of(db, [5_000, 5_000, 30, 7][runner % 4]).await;
            let start = Arc::clone(&start);
            running.push(tokio::spawn(async move {
                start.wait().await;
                daemon.bill_under(fencing_token, hour(round)).await
            }));
        }
        let mut together = 0;
        for runner in running {
            together += runner.await.expect("no panic").expect("no error").totals.charged;
        }

        assert_eq!(together, 200, "{runners} runners");
        assert_eq!(number(db, "SELECT count(*) FROM billing_charges").await, 200 * round);
        assert_eq!(number(db, "SELECT count(*) FROM vps_billing_cycles").await, 200 * round);
        assert_eq!(number(db, "SELECT count(*) FROM payment_transactions").await, 200 * round);
        assert_eq!(number(db, "SELECT count(*) FROM billing_holds").await, 0);
        for org in &orgs {
            assert_eq!(fleet.balance(*org).await, usd("100.00") - 10 * 10 * CENT * round);
        }
        assert_sound(db).await;
    }
}

async fn superseded_claim_commits_nothing(db: &Db) {
    organizations(db, 2, 2).await;
    let daemon = Daemon::of(db).await;
    let old = daemon.claim().await;
    // Either row alone: a claim is two steps, and the old holder may resume between them.
    for table in ["scheduler_jobs", "scheduler_fencing"] {
        db.execute(&format!("UPDATE {table} SET fencing_token = fencing_token + 1")).await;
        let before = contents(db).await;

        let result = daemon.bill_under(old.fencing_token, hour(1)).await;

        assert!(matches!(result, Err(BillingError::Fenced)), "{table}: {result:?}");
        assert_eq!(contents(db).await, before, "{table}");
        db.execute(&format!("UPDATE {table} SET fencing_token = fencing_token - 1")).await;
    }
    assert_eq!(
        daemon.bill_under(old.fencing_token, hour(1)).await.expect("the newest again").totals.charged,
        4
    );
    assert_sound(db).await;
}

async fn claim_lost_during_run_ends_it(db: &Db) {
    organizations(db, 4, 2).await;
    let overtake = "UPDATE scheduler_fencing SET fencing_token = fencing_token + 1";
    trigger(db, "overtake", "AFTER INSERT ON billing_batches", "NEW.charges > 0", &Then::Run(overtake)).await;
    let daemon = Daemon::with_batches_of(db, 1).await;
    let lease = daemon.claim().await;

    let result = daemon.bill_under(lease.fencing_token, hour(1)).await;

    assert!(matches!(result, Err(BillingError::Fenced)), "{result:?}");
    assert_eq!(number(db, "SELECT count(*) FROM billing_charges").await, 2, "the first batch stays");
    drop_trigger(db, "overtake").await;
    billing_scheduler::Store::release(&daemon.store, &lease).await.expect("released");
    assert_eq!(daemon.bill(hour(1)).await.charged, 6, "the next claim does the rest");
    assert_sound(db).await;
}

async fn payments_during_run_are_kept(db: &Db) {
    let fleet = Fleet::new(db);
    let orgs = organizations(db, 3, 2).await;
    let daemon = Daemon::with_batches_of(db, 1).await;

    let pay = async {
        for _ in 0..10 {
            for org in &orgs {
                fleet.top_up(*org, "1.00").await;
            }
        }
    };
    let bill = async {
        for hours in 1..=10 {
            daemon.bill(hour(hours)).await;
        }
    };
    tokio::join!(pay, bill);

    for org in orgs {
        assert_eq!(fleet.balance(org).await, usd("110.00") - 2 * 10 * 10 * CENT);
    }
    assert_sound(db).await;
}

/// Without the lock on the wallet the instance would be held for missing money that is about to be committed.
async fn billing_waits_for_open_payment(db: &Db) {
    let fleet = Fleet::new(db);
    let org = fleet.wallet("0.00").await;
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let instance = fleet.instance(Instance::new(org, plan, hour(0))).await;
    let payment = db.admin().begin().await.expect("a payment begins");
    for sql in [
        format!("UPDATE wallets SET balance = 10 WHERE organization_id = '{org}'"),
        format!(
            "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
             VALUES ('{org}', 10, 'paypal', 'paypal', 'completed')"
        ),
    ] {
        payment.execute_unprepared(&sql).await.expect("a payment is booked");
    }

    let daemon = Daemon::of(db).await;
    let billing = tokio::spawn(async move { daemon.bill(hour(1)).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while number(db, waiting).await == 0 && !billing.is_finished() {}
    payment.commit().await.expect("a payment is kept");

    assert_eq!(billing.await.expect("no panic").held, 0);
    assert_eq!(charged(&fleet, instance).await, (1, 1, 10 * CENT));
    assert_sound(db).await;
}

async fn conflict_or_lost_connection_is_retried(db: &Db) {
    organizations(db, 2, 2).await;
    let daemon = Daemon::of(db).await;
    let faults = [
        ("serialization failure", Then::Refuse("40001")),
        ("deadlock", Then::Refuse("40P01")),
        ("lock timeout", Then::Refuse("55P03")),
        ("statement timeout", Then::Refuse("57014")),
        ("terminated", Then::Run("PERFORM pg_terminate_backend(pg_backend_pid())")),
    ];
    for (round, (fault, then)) in (1..).zip(faults) {
        // A sequence does not roll back.
        db.execute("CREATE SEQUENCE attempts").await;
        trigger(db, "fail", "BEFORE UPDATE ON wallets", "nextval('attempts') < 3", &then).await;
        assert_eq!(daemon.bill(hour(round)).await.charged, 4, "{fault}");
        drop_trigger(db, "fail").await;
        assert_eq!(
            number(db, "SELECT last_value FROM attempts").await,
            4,
            "{fault}: the third attempt serves"
        );
        db.execute("DROP SEQUENCE attempts").await;
    }
    assert_sound(db).await;
}

async fn repeated_conflicts_delay_one_batch_only(db: &Db) {
    let fleet = Fleet::new(db);
    let orgs = organizations(db, 3, 2).await;
    let condition = format!("NEW.organization_id = '{}'", orgs[1]);
    trigger(db, "lock", "BEFORE INSERT ON payment_transactions", &condition, &Then::Refuse("55P03")).await;
    let daemon = Daemon::with_batches_of(db, 1).await;

    let result = daemon.carry_out(&super::Order::by(hour(1))).await;

    let Err(BillingError::Unposted { batches: 1, .. }) = result else { panic!("{result:?}") };
    assert_eq!(number(db, "SELECT count(*) FROM billing_charges").await, 4);
    assert_eq!(
        number(db, "SELECT count(*) FROM billing_holds").await,
        0,
        "a conflict is no reason for a hold"
    );
    assert_eq!(fleet.balance(orgs[1]).await, usd("100.00"));
    drop_trigger(db, "lock").await;
    assert_eq!(daemon.bill(hour(1)).await.charged, 2);
    assert_sound(db).await;
}

/// The batch is committed, and the response is lost.
async fn commit_with_lost_response_is_not_repeated(db: &Db) {
    organizations(db, 2, 3).await;
    let lost = Arc::new(AtomicBool::new(false));
    let url = url_through_lossy_proxy(&db.url, Arc::clone(&lost)).await;
    let fencing_token = Daemon::of(db).await.claim().await.fencing_token;
    let daemon = Daemon::at(&url, BillingSettings::default()).await;

    let bill = daemon.bill_under(fencing_token, hour(1)).await.expect("the second attempt is answered");

    assert!(lost.load(Ordering::SeqCst), "the answer was lost");
    assert_eq!(
        (bill.totals.charged, in_usd(&bill.totals)),
        (6, 60 * CENT),
        "the run counts what was committed"
    );
    assert_eq!(number(db, "SELECT count(*) FROM billing_charges").await, 6);
    assert_eq!(number(db, "SELECT count(*) FROM billing_batches").await, 2);
    assert_sound(db).await;
}

/// A URL that leads to the same database, where the first COMMIT of a batch gets no response: the connection is closed instead.
async fn url_through_lossy_proxy(url: &str, lost: Arc<AtomicBool>) -> String {
    let proxy = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = proxy.local_addr().expect("it is bound").port();
    let (front, database) = url.rsplit_once('/').expect("a database");
    let (login, server) = front.rsplit_once('@').expect("a login");
    let (there, through) = (server.to_owned(), format!("{login}@127.0.0.1:{port}/{database}"));
    tokio::spawn(async move {
        while let Ok((client, _)) = proxy.accept().await {
            let server = TcpStream::connect(&there).await.expect("the server is there");
            tokio::spawn(relay(client, server, Arc::clone(&lost)));
        }
    });
    through
}

async fn relay(mut client: TcpStream, mut server: TcpStream, lost: Arc<AtomicBool>) {
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut posting, mut cut) = (false, false);
    let has = |sent: &[u8], text: &[u8]| sent.windows(text.len()).any(|window| window == text);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let sent = &from_client[..length];
                posting |= has(sent, b"INSERT INTO billing_batches");
                cut = posting && has(sent, b"COMMIT\0") && !lost.swap(true, Ordering::SeqCst);
                if server.write_all(sent).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                if cut || client.write_all(&from_server[..length]).await.is_err() { return }
            }
        }
    }
}

on_every_database!(concurrent_runs_charge_each_hour_once);
on_each_kind!(superseded_claim_commits_nothing, claim_lost_during_run_ends_it,);
on_every_engine!(payments_during_run_are_kept);
on_variants!(billing_waits_for_open_payment: g1_owner, g3_role);
on_variants!(conflict_or_lost_connection_is_retried: g3_role);
on_variants!(repeated_conflicts_delay_one_batch_only: g3_role);
on_variants!(commit_with_lost_response_is_not_repeated: g3_role);
