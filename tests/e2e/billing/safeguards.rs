//! A charge is written whole or not at all: each safeguard against a wrong charge, and its effect.

use billing_jobs::billing::BillingError;
use billing_store::{ErrorClass, classify};
use billing_test_support::{Db, Fleet, Instance, Plan, on_every_database, on_every_engine, on_variants};
use sea_orm::{ConnectionTrait as _, DbBackend};
use uuid::Uuid;

use super::{
    CENT, CONSTRAINT_VIOLATION, Daemon, REFUSAL, TEN_CENTS_AN_HOUR, Then, add_instances, assert_sound,
    charged, contents, drop_trigger, hold_of, hour, number, trigger, usd,
};

/// An instance with a fault, in one wallet with another instance, among three wallets.
struct Victim<'a> {
    fleet: Fleet<'a>,
    db: &'a Db,
    org: Uuid,
    instance: Uuid,
}

impl<'a> Victim<'a> {
    async fn among_others(db: &'a Db) -> Self {
        let fleet = Fleet::new(db);
        let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
        for _ in 0..2 {
            let org = fleet.wallet("100.00").await;
            add_instances(db, org, plan, 3).await;
        }
        let org = fleet.wallet("100.00").await;
        add_instances(db, org, plan, 1).await;
        let instance = fleet.instance(Instance::new(org, plan, hour(0)).label("victim")).await;
        Self { fleet, db, org, instance }
    }

    /// Alone, so that nothing has to be taken apart.
    async fn alone(db: &'a Db) -> Self {
        let fleet = Fleet::new(db);
        let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
        let org = fleet.wallet("100.00").await;
        let instance = fleet.instance(Instance::new(org, plan, hour(0)).label("victim")).await;
        Self { fleet, db, org, instance }
    }

    /// No table has a part of the charge.
    async fn assert_untouched(&self, what: &str) {
        assert_eq!(charged(&self.fleet, self.instance).await, (0, 0, 0), "{what}");
        assert_eq!(self.fleet.cycles(self.instance).await, [], "{what}");
        let ledger = self.fleet.ledger(self.org).await;
        assert!(ledger.iter().all(|row| !row.description.contains("victim")), "{what}: {ledger:?}");
        assert_eq!(self.fleet.last_billed_at(self.instance).await, None, "{what}");
        let debited: i64 = ledger.iter().map(|row| row.amount).sum();
        assert_eq!(self.fleet.balance(self.org).await, usd("100.00") + debited, "{what}");
    }

    async fn assert_held(&self, what: &str) {
        let hold = hold_of(&self.fleet, self.instance).await;
        assert_eq!(
            (hold.reason.as_str(), hold.hours, hold.amount),
            ("failed", Some(2), Some(20 * CENT)),
            "{what}"
        );
    }

    /// Charged once, and the hold is closed.
    async fn assert_charged(&self, what: &str) {
        assert_eq!(charged(&self.fleet, self.instance).await, (1, 3, 30 * CENT), "{what}");
        assert_eq!(self.fleet.cycles(self.instance).await.len(), 1, "{what}");
        assert!(self.fleet.holds(self.instance).await.iter().all(|hold| !hold.open), "{what}");
        assert_sound(self.db).await;
    }
}

async fn failed_charge_is_rolled_back_alone(db: &Db) {
    let victim = Victim::among_others(db).await;
    let condition = format!("NEW.vps_instance_id = '{}'", victim.instance);
    let refuse = Then::Refuse(CONSTRAINT_VIOLATION);
    trigger(db, "refuse", "BEFORE INSERT ON vps_billing_cycles", &condition, &refuse).await;
    let daemon = Daemon::of(db).await;

    let totals = daemon.bill(hour(2)).await;

    assert_eq!(
        (totals.charged, totals.hours, totals.held),
        (7, 14, 1),
        "one bad instance never blocks the others"
    );
    victim.assert_untouched("refused").await;
    victim.assert_held("refused").await;
    assert!(hold_of(&victim.fleet, victim.instance).await.detail.contains(REFUSAL));
    assert_eq!(victim.fleet.balance(victim.org).await, usd("99.80"));
    assert_sound(db).await;

    drop_trigger(db, "refuse").await;
    daemon.bill(hour(3)).await;
    victim.assert_charged("accepted").await;
}

/// A statement that is rejected only at the COMMIT.
async fn charge_rejected_at_commit_fails_alone(db: &Db) {
    let victim = Victim::among_others(db).await;
    db.execute(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.vps_instance_id = '{}' THEN RAISE EXCEPTION '{REFUSAL}'; END IF; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON vps_billing_cycles DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION refuse()",
        victim.instance
    ))
    .await;
    let daemon = Daemon::of(db).await;

    let totals = daemon.bill(hour(2)).await;

    assert_eq!((totals.charged, totals.held), (7, 1));
    victim.assert_untouched("refused").await;
    victim.assert_held("refused").await;
    drop_trigger(db, "refuse").await;
    daemon.bill(hour(3)).await;
    victim.assert_charged("accepted").await;
}

/// A failed repair of the panel's tables must not affect other instances.
async fn unrepairable_anchor_holds_only_its_instance(db: &Db) {
    let victim = Victim::among_others(db).await;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(2)).await;
    let (instance, created) = (victim.instance, hour(0).to_rfc3339());
    db.execute(&format!("DELETE FROM vps_billing_cycles WHERE vps_instance_id = '{instance}'")).await;
    db.execute(&format!("UPDATE vps_instances SET last_billed_at = '{created}' WHERE id = '{instance}'"))
        .await;
    let condition = format!("NEW.vps_instance_id = '{instance}'");
    let refuse = Then::Refuse(CONSTRAINT_VIOLATION);
    trigger(db, "refuse", "BEFORE INSERT ON vps_billing_cycles", &condition, &refuse).await;

    // Nothing is due for it in the first run, an hour in the second.
    for (as_of, others) in [(hour(2), 0), (hour(3), 7)] {
        let totals = daemon.bill(as_of).await;
        assert_eq!((totals.charged, totals.held), (others, 1));
        assert_eq!(hold_of(&victim.fleet, instance).await.reason, "failed");
    }

    drop_trigger(db, "refuse").await;
    daemon.bill(hour(3)).await;
    assert_eq!(charged(&victim.fleet, instance).await, (2, 3, 30 * CENT));
    assert_eq!(victim.fleet.cycles(instance).await.len(), 2);
    assert_sound(db).await;
}

/// Row-level security drops an UPDATE without an error.
async fn silently_dropped_row_is_an_error(db: &Db) {
    let victim = Victim::alone(db).await;
    let (instance, org) = (victim.instance, victim.org);
    let by_instance = format!("NEW.instance_id = '{instance}'");
    let by_org = format!("NEW.organization_id = '{org}'");
    let rows = [
        ("INSERT", "billing_wallet_openings", &by_org),
        ("INSERT", "payment_transactions", &by_org),
        ("INSERT", "billing_charges", &by_instance),
        ("INSERT", "vps_billing_cycles", &by_org),
        ("UPDATE", "vps_instances", &by_org),
        ("UPDATE", "wallets", &by_org),
        // The first of these runs has made the meter.
        ("UPDATE", "billing_meters", &format!("NEW.billed_through <> OLD.billed_through AND {by_instance}")),
    ];
    let daemon = Daemon::of(db).await;
    for (verb, table, condition) in rows {
        let name = format!("ignore_{table}");
        trigger(db, &name, &format!("BEFORE {verb} ON {table}"), condition, &Then::Ignore).await;
        daemon.refused(hour(2)).await;
        victim.assert_untouched(table).await;
        victim.assert_held(table).await;
        drop_trigger(db, &name).await;
    }
    daemon.bill(hour(3)).await;
    victim.assert_charged("written").await;
}

/// What was read is compared when it is written, whichever process changed it meanwhile.
async fn concurrent_change_is_not_overwritten(db: &Db) {
    let victim = Victim::alone(db).await;
    let (instance, org) = (victim.instance, victim.org);
    let through = match db.backend() {
        DbBackend::Sqlite => "billed_through + 3600000000",
        _ => "billed_through + interval '1 hour'",
    };
    let mut rows = vec![
        ("balance", format!("UPDATE wallets SET balance = balance + 1 WHERE organization_id = '{org}'")),
        // The first of these runs has made the meter.
        (
            "watermark",
            format!("UPDATE billing_meters SET billed_through = {through} WHERE instance_id = '{instance}'"),
        ),
    ];
    if db.backend() != DbBackend::Sqlite {
        // SQLite has no other writer while a batch is written, and no panel.
        rows.push((
            "anchor",
            format!("UPDATE vps_instances SET last_billed_at = now() WHERE id = '{instance}'"),
        ));
    }
    let daemon = Daemon::of(db).await;
    for (what, change) in rows {
        let name = format!("meddle_with_{what}");
        trigger(db, &name, "AFTER INSERT ON payment_transactions", "NEW.amount < 0", &Then::Run(&change))
            .await;
        daemon.refused(hour(2)).await;
        victim.assert_untouched(what).await;
        victim.assert_held(what).await;
        drop_trigger(db, &name).await;
    }
    daemon.bill(hour(3)).await;
    victim.assert_charged("unchanged").await;
}

async fn charge_key_holds_when_watermarks_are_reset(db: &Db) {
    let victim = Victim::alone(db).await;
    let instance = victim.instance;
    let daemon = Daemon::of(db).await;
    daemon.bill(hour(1)).await;
    let start = match db.backend() {
        DbBackend::Sqlite => hour(0).timestamp_micros().to_string(),
        _ => format!("'{}'", hour(0).to_rfc3339()),
    };
    let reset =
        db.admin().execute_unprepared(&format!("UPDATE billing_meters SET billed_through = {start}")).await;
    db.execute("UPDATE vps_instances SET last_billed_at = NULL").await;
    if db.backend() == DbBackend::Sqlite {
        let error = reset.expect_err("a trigger rejects it").to_string();
        assert!(error.contains("a watermark never moves back"), "{error}");
        daemon.bill(hour(2)).await;
        assert_eq!(charged(&victim.fleet, instance).await, (2, 2, 20 * CENT), "no hour is charged twice");
        return;
    }
    reset.expect("the meter is reset");

    daemon.refused(hour(2)).await;

    assert_eq!(hold_of(&victim.fleet, instance).await.reason, "failed");
    assert_eq!(charged(&victim.fleet, instance).await, (1, 1, 10 * CENT));
    assert_eq!(victim.fleet.balance(victim.org).await, usd("99.90"));
}

async fn rejecting_database_fails_run_without_changes(db: &Db) {
    let victim = Victim::alone(db).await;
    trigger(db, "refuse", "BEFORE INSERT ON billing_batches", "true", &Then::Refuse(CONSTRAINT_VIOLATION))
        .await;
    let daemon = Daemon::of(db).await;

    let error = daemon
        .bill_under(daemon.claim().await.fencing_token, hour(2))
        .await
        .expect_err("nothing can be written");

    let BillingError::Database { source, .. } = &error else { panic!("{error}") };
    assert_eq!(classify(source), ErrorClass::Rows);
    assert!(error.to_string().contains(REFUSAL), "{error}");
    victim.assert_untouched("refused").await;
    assert_sound(db).await;
}

/// Row-level security without the setting that lifts it: wallets can be read, but neither locked nor changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_wallets_fail_the_run() {
    let db = Db::g3_role().await;
    let victim = Victim::alone(&db).await;
    db.execute("ALTER POLICY wallets_update ON wallets USING (false)").await;
    let daemon = Daemon::of(&db).await;
    let lease = daemon.claim().await;
    daemon.bill_under(lease.fencing_token, hour(0)).await.expect("nothing is due");
    let before = contents(&db).await;

    let error = daemon
        .bill_under(lease.fencing_token, hour(2))
        .await
        .expect_err("no wallet can be charged")
        .to_string();

    assert!(error.contains("row-level security"), "{error}");
    assert_eq!(contents(&db).await, before);
    db.execute("ALTER POLICY wallets_update ON wallets USING (current_user_is_admin())").await;
    daemon.bill_under(lease.fencing_token, hour(3)).await.expect("the wallets are writable");
    victim.assert_charged("writable").await;
    assert_eq!(number(&db, "SELECT count(*) FROM billing_holds").await, 0);
}

on_every_database!(failed_charge_is_rolled_back_alone);
on_variants!(charge_rejected_at_commit_fails_alone: g1_owner, g3_role);
on_variants!(silently_dropped_row_is_an_error: sqlite, g1_owner, g3_role);
on_every_engine!(
    unrepairable_anchor_holds_only_its_instance,
    concurrent_change_is_not_overwritten,
    charge_key_holds_when_watermarks_are_reset,
    rejecting_database_fails_run_without_changes,
);
