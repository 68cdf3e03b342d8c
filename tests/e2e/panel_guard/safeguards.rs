//! Each safeguard of the panel guard is needed: a scenario passes with it and fails without it.

use std::pin::Pin;

use billing_jobs::billing::BillingError;
use billing_test_support::{
    Db, Login,
    panel_biller::{Crash, Outcome},
};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::join;
use uuid::Uuid;

use super::{Daemon, debit, install_guard, number, panel, seed, silent_for};
use crate::daemon::{fetch, rows};

/// A scenario on a database with the panel guard; returns whether it passes.
type Scene = for<'a> fn(&'a Db) -> Pin<Box<dyn Future<Output = bool> + 'a>>;

/// A safeguard, its text in the function, the replacement, and the scenario that then fails.
const GUARDS: [(&str, &str, &str, Scene); 11] = [
    ("silence", "ours.last_success_at > clock_timestamp() - ours.silence", "false", |db| {
        Box::pin(a_healthy_daemon(db))
    }),
    ("raise", "SET fencing_token = ours.number", "SET fencing_token = f.fencing_token", |db| {
        Box::pin(suspended_daemon_resumes(db))
    }),
    ("due", "OR charge_end > clock_timestamp()", "", |db| Box::pin(a_stale_list(db))),
    ("watermark", "greatest(panel_anchor, watermark)", "coalesce(panel_anchor, created)", |db| {
        Box::pin(a_crash(db))
    }),
    ("one instance", "pg_catalog.cardinality(instances) IS DISTINCT FROM 1", "instances IS NULL", |db| {
        Box::pin(two_of_a_name(db))
    }),
    (
        "its organization",
        "i.organization_id = organization AND",
        "i.organization_id <> organization AND",
        |db| Box::pin(a_name_elsewhere(db)),
    ),
    ("never wait", "FOR NO KEY UPDATE SKIP LOCKED", "FOR NO KEY UPDATE", |db| {
        Box::pin(batch_waits_for_wallet(db))
    }),
    (
        "what it overwrote",
        "balance_before <> coalesce(pg_catalog.to_jsonb(nullif(noted[2], 'null')::numeric), 'null'::jsonb)",
        "false",
        |db| Box::pin(a_charge_since_it_was_read(db)),
    ),
    (
        "what it changed",
        "IS DISTINCT FROM nullif(noted[2], 'null')::numeric + (debit ->> 'amount'::text)::numeric",
        "IS NULL",
        |db| Box::pin(a_creation_charge_without_metadata(db)),
    ),
    (
        "number in force",
        "f.fencing_token::text = current_setting('billing.fencing_token', true)",
        "current_setting('billing.fencing_token', true) <> ''",
        |db| Box::pin(an_old_number(db)),
    ),
    (
        "kept in force",
        "current_setting('billing.fencing_token', true) FOR SHARE",
        "current_setting('billing.fencing_token', true)",
        |db| Box::pin(a_claim_meanwhile(db)),
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_safeguard_of_guard_is_needed() {
    for (guard, text, instead, scene) in GUARDS {
        for (without, expected) in [(false, true), (true, false)] {
            let db = Db::g3_role().await;
            install_guard(&db).await;
            if without {
                let function = fetch(&db, "SELECT pg_get_functiondef('billing_panel_guard'::regproc)").await;
                assert!(function.contains(text), "the panel guard has no `{text}`");
                db.execute(&function.replace(text, instead)).await;
            }
            let well = scene(&db).await;
            assert_eq!(well, expected, "guard `{guard}`, left out: {without}");
        }
    }
}

async fn a_healthy_daemon(db: &Db) -> bool {
    Daemon::of(db).await.bill().await.expect("it bills");
    seed(db, 1, 1, 2).await;
    panel(db, &db.url_for(Login::Owner)).await.pass().await.billed == 0
}

async fn suspended_daemon_resumes(db: &Db) -> bool {
    let daemon = Daemon::of(db).await;
    let old = daemon.claim().await;
    seed(db, 1, 1, 2).await;
    assert_eq!(panel(db, &db.url_for(Login::Owner)).await.pass().await.billed, 1);
    seed(db, 1, 1, 2).await;
    matches!(daemon.bill_under(old.fencing_token).await, Err(BillingError::Fenced))
}

async fn a_stale_list(db: &Db) -> bool {
    seed(db, 1, 1, 2).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let due = panel.due().await.remove(0);
    Daemon::of(db).await.bill().await.expect("it bills");
    silent_for(db, 91).await;
    panel.bill(&due, Crash::Never).await != Outcome::Billed
}

/// The panel dies after its debit of one hour; started again, it wants both of them.
async fn a_crash(db: &Db) -> bool {
    seed(db, 1, 1, 2).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let mut due = panel.due().await.remove(0);
    due.hours = 1;
    panel.bill(&due, Crash::AfterDebit).await;
    due.hours = 2;
    let refused = panel.bill(&due, Crash::Never).await;
    // The unique key would reject it as well, but with a message that does not help.
    matches!(refused, Outcome::Failed(why) if why.contains("not due"))
}

async fn two_of_a_name(db: &Db) -> bool {
    seed(db, 1, 2, 2).await;
    db.execute("UPDATE vps_instances SET label = 'web'").await;
    panel(db, &db.url_for(Login::Owner)).await.pass().await.billed == 0
}

async fn a_name_elsewhere(db: &Db) -> bool {
    seed(db, 2, 1, 2).await;
    db.execute("UPDATE vps_instances SET label = 'web'").await;
    panel(db, &db.url_for(Login::Owner)).await.pass().await;
    number(
        db,
        "SELECT count(*) FROM billing_charges c JOIN vps_instances i ON i.id = c.instance_id
                 WHERE i.organization_id = c.organization_id",
    )
    .await
        == 2
}

/// A batch of ours holds the panel guard and waits for the wallet; the panel's debit holds the wallet and waits for the panel guard.
async fn batch_waits_for_wallet(db: &Db) -> bool {
    seed(db, 1, 1, 2).await;
    let daemon = Daemon::of(db).await;
    daemon.claim().await;
    let wallet = "UPDATE wallets SET balance = balance - 0.02";
    let (batch, panel) =
        (daemon.db.begin().await, billing_test_support::connect(&db.url_for(Login::Owner)).await);
    let (batch, debit) = (batch.expect("it begins"), panel.begin().await.expect("it begins"));
    batch.execute_unprepared("SET LOCAL app.current_user_is_admin = 'true'").await.expect("a setting");
    batch.execute_unprepared("SELECT FROM scheduler_fencing FOR SHARE").await.expect("the row is there");
    debit.execute_unprepared(wallet).await.expect("the wallet is free");
    let insert = "INSERT INTO payment_transactions
             (organization_id, amount, payment_method, payment_provider, status, description)
         SELECT organization_id, -0.02, 'wallet_debit', 'internal', 'completed',
                'VPS Hourly Billing - ' || label || ' (2h)' FROM vps_instances";
    let debit = async {
        let debited = debit.execute_unprepared(insert).await;
        debit.rollback().await.expect("it ends");
        debited
    };
    let (debited, batch) = join!(debit, batch.execute_unprepared(wallet));
    batch.is_ok() && debited.is_err_and(|refused| refused.to_string().contains("right now"))
}

/// A charge of ours for one instance, between the reading and the writing of the panel's debit for another.
async fn a_charge_since_it_was_read(db: &Db) -> bool {
    seed(db, 1, 2, 2).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    let due = panel.due().await.remove(0);
    let read = panel.read_balance(&due).await.expect("the wallet is there");
    db.execute("UPDATE wallets SET balance = balance - 0.05").await;
    let refused = read.finish(&due).await.is_err();
    refused && number(db, "SELECT (balance * 100)::bigint FROM wallets").await == 9_995
}

/// The charge for a new instance, which does not name the balance that was read, after a payment.
async fn a_creation_charge_without_metadata(db: &Db) -> bool {
    seed(db, 1, 1, 0).await;
    let panel = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    db.execute("UPDATE wallets SET balance = 150").await;
    let txn = panel.begin().await.expect("it begins");
    txn.execute_unprepared("UPDATE wallets SET balance = 99.99").await.expect("the wallet is free");
    debit(&txn, organization(db).await, "-0.01", "VPS Creation - web (Initial Hour)").await.is_err()
}

async fn an_old_number(db: &Db) -> bool {
    seed(db, 1, 1, 2).await;
    let daemon = Daemon::of(db).await;
    let old = daemon.claim().await;
    daemon.let_go(&old).await;
    daemon.bill().await.expect("it bills");
    db.execute("UPDATE vps_instances SET last_billed_at = last_billed_at - interval '1 hour'").await;
    !passes_under(db, &daemon, old.fencing_token.0).await
}

/// While a debit of ours is not committed, no other claim can take effect.
async fn a_claim_meanwhile(db: &Db) -> bool {
    seed(db, 1, 1, 2).await;
    let daemon = Daemon::of(db).await;
    let lease = daemon.claim().await;
    let txn = daemon.db.begin().await.expect("it begins");
    let settings = format!(
        "SET LOCAL app.current_user_is_admin = 'true'; SET LOCAL billing.fencing_token = '{}'",
        lease.fencing_token.0
    );
    txn.execute_unprepared(&settings).await.expect("settings");
    debit(&txn, organization(db).await, "-0.02", "VPS Hourly Billing - web (2h)").await.expect("it passes");
    let raise = "SET lock_timeout = '100ms'; UPDATE scheduler_fencing SET fencing_token = fencing_token + 1";
    db.admin().execute_unprepared(raise).await.is_err()
}

async fn passes_under(db: &Db, daemon: &Daemon, number: i64) -> bool {
    let txn = daemon.db.begin().await.expect("it begins");
    let settings =
        format!("SET LOCAL app.current_user_is_admin = 'true'; SET LOCAL billing.fencing_token = '{number}'");
    txn.execute_unprepared(&settings).await.expect("settings");
    debit(&txn, organization(db).await, "-0.02", "VPS Hourly Billing - web (2h)").await.is_ok()
}

async fn organization(db: &Db) -> Uuid {
    rows(db, "id::text FROM organizations").await[0].parse().expect("an id")
}
