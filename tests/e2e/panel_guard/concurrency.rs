//! Panel and daemon at the same time: no process waits without limit, and no hour is charged twice.

use billing_test_support::{
    Db, Login, on_variants,
    panel_biller::{Crash, Outcome},
};
use futures_util::future::join_all;

use super::{Daemon, assert_sound, cents, install_guard, number, panel, seed, silent_for};

/// Four processes of the panel bill the same fleet while a daemon returns after a long silence.
async fn concurrent_panel_and_daemon_charge_once(db: &Db) {
    install_guard(db).await;
    let instances = seed(db, 12, 3, 4).await.len();
    let daemon = Daemon::of(db).await;
    // A token is in force, so the first debit has to supersede it.
    let lease = daemon.claim().await;
    daemon.let_go(&lease).await;
    silent_for(db, 91).await;
    let url = db.url_for(Login::Owner);
    let panels = join_all((0..4).map(|_| panel(db, &url))).await;
    // The panel alone loses updates of one wallet, so each process has separate organizations.
    let list = panels[0].due().await;
    let shares = panels.iter().enumerate().map(async |(share, panel)| {
        for due in list.iter().filter(|due| usize::from(due.organization.as_bytes()[15]) % 4 == share) {
            let mut due = due.clone();
            // Hour by hour, so that hours are left when the daemon returns.
            for hours in [1; 4] {
                due.hours = hours;
                if panel.bill(&due, Crash::Never).await != Outcome::Billed {
                    break;
                }
                due.start_ms += 3_600_000;
            }
        }
    });
    let returning = async {
        // A debit in between supersedes its claim, and it starts again.
        while daemon.bill().await.is_err() {}
    };
    tokio::join!(join_all(shares), returning);

    assert_eq!(number(db, "SELECT sum(hours) FROM billing_charges").await, 4 * 36);
    assert_eq!(
        number(db, "SELECT count(*) FROM billing_meters").await,
        i64::try_from(instances).expect("small")
    );
    assert_eq!(cents(db).await, 12 * 10_000 - 4 * 36, "each hour at a cent");
    db.execute("UPDATE billing_meters SET panel_debited_at = panel_debited_at - interval '5 minutes'").await;
    daemon.bill().await.expect("it bills");
    assert_sound(db).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(number(db, deadlocks).await, 0);
}

on_variants!(
    concurrent_panel_and_daemon_charge_once: g1_role, g2_owner, g3_role, g3_owner
);
