//! The panel's own migrations succeed while the panel guard is installed, and the panel guard decides as before after each of them.

use std::{process::Stdio, time::Duration};

use billing_test_support::{
    Db, Login, Panel, Postgres, on_variants, panel_biller::PanelBiller, postgres_command,
};
use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection};

use super::{assert_sound, cents, install_guard, number, panel, seed, silent_for};
use crate::daemon::{fetch, program};

/// What a panel may do to its tables between two of its versions. The names of the added columns are those of variables of the panel guard.
const CHANGES: [&str; 13] = [
    "ALTER TABLE wallets ALTER COLUMN balance TYPE numeric(12,4)",
    "ALTER TABLE payment_transactions ALTER COLUMN amount TYPE numeric(12,4)",
    "ALTER TABLE payment_transactions ALTER COLUMN description TYPE varchar(4000)",
    "ALTER TABLE payment_transactions ALTER COLUMN payment_method TYPE text",
    "ALTER TABLE payment_transactions ALTER COLUMN payment_provider TYPE varchar(60)",
    "ALTER TABLE payment_transactions ADD COLUMN organization text, ADD COLUMN debit jsonb DEFAULT '{}'",
    "ALTER TABLE payment_transactions DROP COLUMN provider_transaction_id, DROP COLUMN organization",
    "ALTER TABLE wallets ADD COLUMN organization text, ADD COLUMN frozen boolean DEFAULT false",
    "ALTER TABLE wallets DROP COLUMN frozen",
    "ALTER TABLE vps_instances ADD COLUMN description text, ADD COLUMN organization uuid, ADD COLUMN batch bigint",
    "ALTER INDEX payment_transactions_pkey RENAME TO payments_pkey",
    "VACUUM FULL wallets",
    "VACUUM FULL payment_transactions",
];

/// A panel whose one session is older than every change, so that it keeps its prepared statements.
async fn long_session(db: &Db) -> DatabaseConnection {
    let mut options = ConnectOptions::new(db.url_for(Login::Owner));
    options.max_connections(1).idle_timeout(Duration::from_hours(1)).sqlx_logging(false);
    options.map_sqlx_postgres_opts(|options| options.statement_cache_capacity(0));
    Box::pin(sea_orm::Database::connect(options)).await.expect("the panel connects")
}

async fn panel_migrations_succeed_with_guard(db: &Db) {
    install_guard(db).await;
    if db.panel == Panel::G3 {
        // It names columns, and docs/operate/roles.md describes what to do before such a change.
        db.execute("DROP POLICY billing_run_debits ON payment_transactions").await;
    }
    let session = long_session(db).await;
    let panel = PanelBiller::new(session.clone(), db.panel);
    for (round, change) in (1..).zip(["SELECT", "SELECT"].iter().chain(&CHANGES)) {
        db.execute(change).await;
        let credit = "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
                      SELECT organization_id, 0, 'paypal', 'paypal', 'completed' FROM wallets";
        session.execute_unprepared(credit).await.unwrap_or_else(|error| panic!("{change}: {error}"));

        seed(db, 1, 1, 2).await;
        db.execute("UPDATE scheduler_fencing SET last_success_at = now()").await;
        let pass = panel.pass().await;
        assert_eq!((pass.billed, pass.failed.len()), (0, 1), "{change}: {pass:?}");
        assert!(pass.failed[0].contains("charges the hours of this database"), "{change}: {pass:?}");

        silent_for(db, 91).await;
        let stale = panel.due().await.remove(0);
        let read = panel.read_balance(&stale).await.expect("the wallet is there");
        db.execute("UPDATE wallets SET balance = balance + 1, updated_at = now()").await;
        let refused = read.finish(&stale).await.expect_err("a payment came in between");
        assert!(refused.contains("when it was read, and"), "{change}: {refused}");
        db.execute("UPDATE wallets SET balance = balance - 1, updated_at = now()").await;
        assert_eq!(panel.pass().await.billed, 1, "{change}");
        assert_eq!(cents(db).await, (10_000 - 2) * round, "{change}");
    }
    assert_eq!(number(db, "SELECT sum(hours) FROM billing_charges").await, 2 * 15);
    let output = program().env("DATABASE_URL", &db.url).run("guard status --json").await.expect_code(0);
    assert!(output.out[0].contains(r#""outdated":false"#), "{}", output.text());
    assert_sound(db).await;
}

on_variants!(panel_migrations_succeed_with_guard: g1_role, g2_role, g3_role);

/// A backup of the whole database, restored into an empty one.
async fn dump_and_restore_keep_guard(db: &Db) {
    install_guard(db).await;
    seed(db, 1, 1, 2).await;
    super::Daemon::of(db).await.bill().await.expect("it bills");
    let restored = Postgres::database(Panel::Empty).await;
    let mut dump = postgres_command("pg_dump")
        .args(["--format=custom", "--dbname", &db.url_for(Login::Admin)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("pg_dump starts");
    let restore = postgres_command("pg_restore")
        .args(["--exit-on-error", "--clean", "--if-exists", "--dbname", &restored.url(Login::Admin)])
        .stdin(dump.stdout.take().expect("its output is a pipe"))
        .output()
        .expect("pg_restore runs");
    assert!(dump.wait().expect("pg_dump ends").success());
    assert!(restore.status.success(), "{}", String::from_utf8_lossy(&restore.stderr));

    let output =
        program().env("DATABASE_URL", &restored.url(Login::Billing)).run("guard status --json").await;
    let output = output.expect_code(0);
    assert!(output.out[0].contains(r#""effective":true"#), "{}", output.text());
    assert!(output.out[0].contains(r#""outdated":false"#), "{}", output.text());
    let copy = restored.connect(Login::Owner).await;
    let due = "UPDATE vps_instances SET last_billed_at = last_billed_at - interval '1 hour'";
    copy.execute_unprepared(due).await.expect("the owner may");
    let pass = PanelBiller::new(copy, db.panel).pass().await;
    assert!(pass.billed == 0 && pass.failed[0].contains("charges the hours of this database"), "{pass:?}");
    // The original is as it was.
    assert_eq!(fetch(db, "SELECT sum(hours) FROM billing_charges").await, "2");
    assert_eq!(panel(db, &db.url_for(Login::Owner)).await.pass().await.billed, 0);
}

on_variants!(dump_and_restore_keep_guard: g2_role, g3_role);
