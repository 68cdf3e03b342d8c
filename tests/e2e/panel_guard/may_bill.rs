//! An application that bills when no daemon does: the rule, and the example that applies it.

use std::time::Duration;

use billing_jobs::{PANEL_TAKEOVER_AFTER, may_bill};
use billing_test_support::{Db, eventually, on_every_engine, on_variants, process::Signal};
use chrono::TimeDelta;
use sea_orm::DbBackend;

use self::biller::{Pass, pass};
use super::{assert_sound, install_guard, number, seed};
use crate::daemon::{BILLING, HEARTBEAT, daemon, fetch, now};

#[path = "../../../examples/panel/biller.rs"]
mod biller;

async fn may_bill_uses_newest_heartbeat(db: &Db) {
    let app = db.connect().await;
    assert!(may_bill(&app, PANEL_TAKEOVER_AFTER).await, "there was no heartbeat");
    for (heartbeats, expected) in [
        (vec![("running", None)], true),
        (vec![("running", Some(0))], false),
        (vec![("running", Some(89))], false),
        (vec![("running", Some(91))], true),
        (vec![("stopped", Some(1))], false),
        (vec![("error", Some(1))], false),
        (vec![("running", Some(300)), ("running", Some(2)), ("running", None)], false),
        (vec![("running", Some(300)), ("running", Some(95))], true),
        // The clock was set back.
        (vec![("running", Some(-30))], false),
    ] {
        db.execute("DELETE FROM billing_daemon_status").await;
        let now = now(db).await;
        for (number, (status, minutes)) in heartbeats.iter().enumerate() {
            let at = minutes.map_or("NULL".to_owned(), |ago| {
                format!("'{}'", (now - TimeDelta::minutes(ago)).to_rfc3339())
            });
            db.execute(&format!(
                "INSERT INTO billing_daemon_status (daemon_instance_id, status, heartbeat_at)
                 VALUES ('{number}', '{status}', {at})"
            ))
            .await;
        }
        assert_eq!(may_bill(&app, PANEL_TAKEOVER_AFTER).await, expected, "{heartbeats:?}");
    }
    let hour = Duration::from_hours(1);
    let sql = if db.backend() == DbBackend::Sqlite {
        "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '-61 minutes')"
    } else {
        "now() - interval '61 minutes'"
    };
    db.execute(&format!("UPDATE billing_daemon_status SET heartbeat_at = {sql}")).await;
    assert!(
        may_bill(&app, hour).await && !may_bill(&app, PANEL_TAKEOVER_AFTER).await,
        "it is the caller's threshold"
    );
}

/// As the panel does; but what the panel guard knows is better than a guess.
async fn may_bill_defaults_to_true_without_guard(db: &Db) {
    let app = db.connect().await;
    db.execute("ALTER TABLE billing_daemon_status RENAME TO gone").await;
    assert!(may_bill(&app, PANEL_TAKEOVER_AFTER).await);
    if db.backend() == DbBackend::Postgres {
        install_guard(db).await;
        assert!(!may_bill(&app, PANEL_TAKEOVER_AFTER).await);
        db.execute("ALTER TABLE payment_transactions DISABLE TRIGGER billing_panel_guard").await;
        assert!(may_bill(&app, PANEL_TAKEOVER_AFTER).await);
    }
    app.clone().close().await.expect("it was open");
    assert!(may_bill(&app, PANEL_TAKEOVER_AFTER).await, "without any database");
}

on_every_engine!(may_bill_uses_newest_heartbeat);
on_variants!(may_bill_defaults_to_true_without_guard: sqlite, g1_role, g3_role);

/// The example `panel`, with a daemon that starts, dies and starts again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn application_pauses_while_daemon_is_alive() {
    let db = Db::sqlite().await;
    let app = db.connect().await;
    let bills =
        async || pass(&app, PANEL_TAKEOVER_AFTER, now(&db).await).await.expect("the database answers");
    seed(&db, 2, 1, 2).await;
    assert_eq!(bills().await, Pass::Billed(4));
    assert_eq!(bills().await, Pass::Billed(0));

    let ours = daemon(&db, &[BILLING, HEARTBEAT]);
    let running = ours.start("run");
    eventually("it beats", async || (bills().await == Pass::Paused).then_some(())).await;
    seed(&db, 1, 1, 2).await;
    assert_eq!(bills().await, Pass::Paused);
    assert_eq!(
        number(&db, "SELECT count(*) FROM payment_transactions").await,
        2,
        "the hours wait for the daemon"
    );

    running.signal(Signal::KILL);
    running.ended().await;
    assert_eq!(bills().await, Pass::Paused, "it may come back");
    let long_ago = "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '-91 minutes')";
    db.execute(&format!("UPDATE billing_daemon_status SET heartbeat_at = {long_ago}")).await;
    assert_eq!(bills().await, Pass::Billed(2));

    // A daemon that stops cleanly takes its heartbeat back.
    let running = ours.start("run");
    eventually("it beats", async || (bills().await == Pass::Paused).then_some(())).await;
    running.terminated().await.expect_code(0);
    assert_eq!(bills().await, Pass::Billed(0));
    assert_eq!(fetch(&db, "SELECT sum(amount) FROM payment_transactions").await, "-600");
    assert_sound(&db).await;
}
