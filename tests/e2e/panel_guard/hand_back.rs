//! One threshold: the heartbeat ends, and the panel guard opens, at the same moment after the last success.

use std::{sync::Arc, time::Duration};

use billing_jobs::{
    Heartbeat, HeartbeatParams, PANEL_TAKEOVER_AFTER, Services,
    billing::BillingSettings,
    daemon_status::StatusRow,
    may_bill,
    restore_detection::{RestoreDetection, RestoreError, accept},
};
use billing_scheduler::{FencingToken, Job, JobContext, ManualClock, Occurrence, StopHandle};
use billing_test_support::{Db, Login, on_variants};
use chrono::DateTime;
use serde_json::json;

use super::{Daemon, install_guard, number, panel, seed, silent_for};

const MINUTE: Duration = Duration::from_mins(1);

/// Writes one heartbeat like a daemon that has run for days.
async fn beat(daemon: &Daemon, interval: Duration) {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    clock.advance(Duration::from_hours(1_000));
    let clock = Arc::new(clock);
    let services = Services {
        db: daemon.db.clone(),
        panel: daemon.panel,
        status: Arc::new(StatusRow::new(daemon.db.clone(), "one", "here", &json!({}))),
        started: Duration::ZERO,
        billing_interval: interval,
        deliveries: billing_jobs::prepaid::DeliverySettings::default(),
        problems: None,
        needs_guard: false,
        restores: Arc::new(RestoreDetection::new(daemon.db.clone(), "one")),
        clock: clock.clone(),
    };
    let occurrence = Occurrence { job: "heartbeat".to_owned(), scheduled_at: DateTime::UNIX_EPOCH };
    let ctx = JobContext::new(occurrence, 1, FencingToken(0), clock, StopHandle::new());
    Heartbeat::new(services, HeartbeatParams {}).run(&ctx).await.expect("it beats or does not");
}

async fn heartbeat_ends_when_guard_opens(db: &Db) {
    install_guard(db).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    for (configured, interval, minutes, handed_back) in [
        (75, 60, 74, false),
        (75, 60, 75, true),
        // At least five quarters of an interval.
        (10, 60, 74, false),
        (10, 60, 75, true),
        (10, 8, 9, false),
        (10, 8, 10, true),
        (180, 60, 179, false),
        (180, 60, 180, true),
        (75, 360, 449, false),
        (75, 360, 450, true),
    ] {
        let interval = interval * MINUTE;
        let settings = BillingSettings { hand_back_after: configured * MINUTE, ..BillingSettings::default() };
        let daemon = Daemon::with(db, settings.at_interval(interval)).await;
        assert_eq!(daemon.bill().await.expect("it bills"), 0);
        beat(&daemon, interval).await;
        let beating = "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
        assert_eq!(number(db, beating).await, 1);

        silent_for(db, minutes).await;
        let case = format!("{configured} of {interval:?}, {minutes} min ago");
        beat(&daemon, interval).await;
        assert_eq!(number(db, beating).await, i64::from(!handed_back), "{case}");
        // As if the daemon had died long ago: only the panel guard is left.
        db.execute("UPDATE billing_daemon_status SET heartbeat_at = NULL").await;
        assert_eq!(may_bill(&daemon.db, PANEL_TAKEOVER_AFTER).await, handed_back, "{case}");
        seed(db, 1, 1, 2).await;
        let pass = panel.pass().await;
        assert_eq!(pass.billed, usize::from(handed_back), "{case}: {pass:?}");
        db.execute("UPDATE vps_instances SET last_billed_at = now()").await;
        db.execute("DELETE FROM billing_meters").await;
    }
}

async fn presence_leaves_fresh_row_alone(db: &Db) {
    let daemon = Daemon::with(db, BillingSettings::default()).await;
    let status = StatusRow::new(daemon.db.clone(), "one", "here", &json!({ "version": "1" }));
    status.heartbeat().await.expect("the row is writable");
    status.set_metadata(&json!({ "version": "2" }));
    let rewritten = "SELECT count(*) FROM billing_daemon_status WHERE metadata ->> 'version' = '2'";
    status.present(60 * MINUTE).await.expect("nothing is written");
    assert_eq!(number(db, rewritten).await, 0);
    status.present(Duration::ZERO).await.expect("the row is writable");
    assert_eq!(number(db, rewritten).await, 1);
}

/// The last success is as old as the backup that was restored.
async fn halted_billing_holds_panel_back(db: &Db) {
    install_guard(db).await;
    let panel = panel(db, &db.url_for(Login::Owner)).await;
    seed(db, 1, 1, 2).await;
    let daemon = Daemon::with(db, BillingSettings::default()).await;
    assert_eq!(daemon.bill().await.expect("it bills"), 2);
    let restores = RestoreDetection::new(daemon.db.clone(), "one");
    restores.check().await.expect("the batch exists");
    db.execute("DELETE FROM billing_batches").await;
    let halted = restores.check().await.expect_err("the batch is missing");
    assert!(matches!(halted, RestoreError::Halted(_)), "{halted}");
    db.execute("UPDATE vps_instances SET last_billed_at = now() - interval '150 minutes'").await;
    db.execute("DELETE FROM billing_meters").await;

    silent_for(db, 600).await;
    let beating = "SELECT count(*) FROM billing_daemon_status WHERE heartbeat_at IS NOT NULL";
    beat(&daemon, 60 * MINUTE).await;
    assert_eq!(number(db, beating).await, 1);
    db.execute("UPDATE billing_daemon_status SET heartbeat_at = NULL").await;
    assert!(!may_bill(&daemon.db, PANEL_TAKEOVER_AFTER).await);
    let pass = panel.pass().await;
    assert!(pass.billed == 0 && pass.failed[0].contains("billing of this database is halted"), "{pass:?}");
    daemon.bill().await.expect_err("billing is halted");

    accept(&daemon.db, "ada").await.expect("it is recorded");
    restores.check().await.expect("it was accepted");
    beat(&daemon, 60 * MINUTE).await;
    assert_eq!(number(db, beating).await, 0, "billing has not worked for ten hours");
    assert_eq!(panel.pass().await.billed, 1);
}

on_variants!(heartbeat_ends_when_guard_opens: g1_role, g3_role);
on_variants!(halted_billing_holds_panel_back: g1_role, g3_role);
on_variants!(presence_leaves_fresh_row_alone: g3_role);
