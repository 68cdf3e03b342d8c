//! The prepaid policy in mode `watch`: runway, standings and notices, next to billing.

use std::{sync::Arc, time::Duration};

use billing_jobs::{
    PREPAID_KIND, PrepaidParams, Services,
    daemon_status::StatusRow,
    prepaid::{Claim, DeliverySettings, Endpoint, Evaluation, EvaluationError, Prepaid, State},
    restore_detection::RestoreDetection,
};
use billing_scheduler::{
    Claim as LeaseClaim, Clock as _, FencingToken, JobContext, ManualClock, Occurrence, StopHandle,
    Store as _, SystemClock,
};
use billing_test_support::{Db, Fleet, Instance, Plan};
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{CENT, Daemon, TEN_CENTS_AN_HOUR, fetch_rows, hold_of, hour, minute, number};

/// The prepaid job of a daemon.
pub(super) struct Checker {
    pub(super) daemon: Daemon,
    pub(super) prepaid: Prepaid,
    fencing_token: FencingToken,
}

impl Checker {
    async fn of(db: &Db) -> Self {
        Self::with(db, &PrepaidParams::default(), Vec::new()).await
    }

    /// With these parameters and endpoints.
    pub(super) async fn with(db: &Db, params: &PrepaidParams, endpoints: Vec<Endpoint>) -> Self {
        let daemon = Daemon::of(db).await;
        let interval = Duration::from_hours(1);
        let prepaid = Prepaid::new(daemon.db.clone(), daemon.panel, params, interval);
        let prepaid = prepaid.with_endpoints(endpoints.into());
        let lease = match daemon.store.acquire(PREPAID_KIND, hour(0)).await {
            Ok(LeaseClaim::Held(lease)) => lease,
            other => panic!("the job is not free: {other:?}"),
        };
        let fencing_token = lease.fencing_token;
        daemon.store.release(&lease).await.expect("released");
        Self { daemon, prepaid, fencing_token }
    }

    /// What the jobs of the policy work with.
    pub(super) fn services(&self, params: &PrepaidParams, endpoints: Vec<Endpoint>) -> Services {
        let db = self.daemon.db.clone();
        Services {
            status: Arc::new(StatusRow::new(db.clone(), "", "", &serde_json::json!({}))),
            panel: self.daemon.panel,
            started: Duration::ZERO,
            billing_interval: Duration::from_hours(1),
            deliveries: DeliverySettings { endpoints: endpoints.into(), params: params.clone() },
            problems: None,
            needs_guard: false,
            restores: Arc::new(RestoreDetection::new(db.clone(), "")),
            clock: Arc::new(SystemClock),
            db,
        }
    }

    /// A run of the job on this clock.
    pub(super) fn context(&self, clock: &ManualClock) -> JobContext {
        let occurrence = Occurrence { job: PREPAID_KIND.to_owned(), scheduled_at: clock.now() };
        JobContext::new(occurrence, 1, self.fencing_token, Arc::new(clock.clone()), StopHandle::new())
    }

    async fn try_check(&self, minutes: i64) -> Result<Evaluation, EvaluationError> {
        let claim = Claim { job: PREPAID_KIND, fencing_token: self.fencing_token };
        self.prepaid.evaluate(claim, Some(minute(minutes).timestamp_micros()), &|| false).await
    }

    pub(super) async fn check(&self, minutes: i64) -> Evaluation {
        self.try_check(minutes).await.expect("the check finishes")
    }

    /// Bills at the hour, with a run of that time in the history, and checks a minute later.
    pub(super) async fn bill_and_check(&self, db: &Db, hours: i64) -> Evaluation {
        self.bill(db, hours).await;
        self.check(60 * hours + 1).await
    }

    /// Bills at the hour, with a run of that time in the history.
    pub(super) async fn bill(&self, db: &Db, hours: i64) {
        self.daemon.bill(hour(hours)).await;
        let at = match db.backend() {
            DbBackend::Sqlite => hour(hours).timestamp_micros().to_string(),
            _ => format!("'{}'", hour(hours).to_rfc3339()),
        };
        let newest = "SELECT id FROM scheduler_runs WHERE job = 'billing' ORDER BY id DESC LIMIT 1";
        db.execute(&format!(
            "UPDATE scheduler_runs SET started_at = {at}, finished_at = {at} WHERE id = ({newest})"
        ))
        .await;
    }
}

/// The state, the episode, the runway and the level of the organization.
pub(super) async fn standing(db: &Db, organization: Uuid) -> Option<(String, i64, Option<i64>, Option<i32>)> {
    let sql = "SELECT state, episode, runway_hours, level, CAST(organization_id AS text) AS organization FROM billing_standings";
    let rows = fetch_rows(db, sql).await;
    let is_wanted = |row: &&sea_orm::QueryResult| {
        row.try_get::<String>("", "organization").expect("text") == organization.to_string()
    };
    rows.iter().find(is_wanted).map(|row| {
        let value = (
            row.try_get("", "state"),
            row.try_get("", "episode"),
            row.try_get("", "runway_hours"),
            row.try_get("", "level"),
        );
        (
            value.0.expect("a state"),
            value.1.expect("a number"),
            value.2.expect("a number"),
            value.3.expect("a level"),
        )
    })
}

/// The levels of an episode in the order in which they were recorded, without those that were passed.
async fn levels(db: &Db, episode: i64) -> Vec<i32> {
    let sql = format!(
        "SELECT level FROM billing_notices WHERE episode = {episode} AND NOT passed AND event_id IS NULL
          ORDER BY created_at, level DESC"
    );
    fetch_rows(db, &sql).await.iter().map(|row| row.try_get("", "level").expect("a level")).collect()
}

async fn falling_wallet_records_each_notice_once(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let (falls, rich) = (fleet.wallet("7.50").await, fleet.wallet("90.00").await);
    for org in [falls, rich] {
        fleet.instance(Instance::new(org, plan, hour(0))).await;
    }
    let checker = Checker::of(db).await;
    let mut billed = 0;
    for (hours, state, runway, level) in [
        (1, "ok", 74, None),
        (2, "ok", 73, None),
        (3, "low", 72, Some(72)),
        (4, "low", 71, Some(72)),
        (51, "low", 24, Some(24)),
        (74, "low", 1, Some(1)),
        (75, "low", 0, Some(1)),
        (76, "exhausted", -1, Some(0)),
        (77, "exhausted", -2, Some(0)),
        // Six hours before the end of the grace period.
        (94, "exhausted", -19, Some(-1)),
        (200, "exhausted", -125, Some(-1)),
    ] {
        // A longer gap would be an outage, which begins the grace period again.
        for hour in (billed + 1..=hours).skip(if hours == 200 { 104 } else { 0 }) {
            checker.bill_and_check(db, hour).await;
        }
        billed = hours;
        let expected = (state.to_owned(), 0, Some(runway), level);
        assert_eq!(standing(db, falls).await, Some(expected), "after {hours} hours");
    }
    assert_eq!(levels(db, 0).await, [72, 24, 1, 0, -1]);
    assert_eq!(standing(db, rich).await, None, "an organization that was never low has no row");
    assert_eq!(checker.check(60 * 200 + 2).await, Evaluation { checked: 1, ..Evaluation::default() });

    // A payment that any system makes is seen by the next check, before the next run of billing.
    fleet.top_up(falls, "12.60").await;
    checker.check(60 * 200 + 3).await;
    assert_eq!(standing(db, falls).await, Some(("low".to_owned(), 0, Some(1), Some(-1))));
    fleet.top_up(falls, "9.00").await;
    checker.check(60 * 200 + 4).await;
    assert_eq!(standing(db, falls).await, Some(("ok".to_owned(), 1, Some(91), None)));
    checker.bill_and_check(db, 225).await;
    assert_eq!(standing(db, falls).await, Some(("low".to_owned(), 1, Some(66), Some(72))));
    assert_eq!(levels(db, 1).await, [72]);
    assert_eq!(
        number(db, "SELECT count(*) FROM billing_standings WHERE desired <> 'running' OR order_number <> 0")
            .await,
        0
    );
}

async fn outage_delays_grace_and_passes_notices(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("8.00").await;
    fleet.instance(Instance::new(org, plan, hour(0))).await;
    let checker = Checker::of(db).await;
    checker.bill_and_check(db, 1).await;
    assert_eq!(standing(db, org).await, Some(("ok".to_owned(), 0, Some(79), None)));

    checker.bill_and_check(db, 65).await;

    assert_eq!(standing(db, org).await, Some(("low".to_owned(), 0, Some(15), Some(24))));
    assert_eq!(levels(db, 0).await, [24]);
    assert_eq!(number(db, "SELECT count(*) FROM billing_notices WHERE passed AND level = 72").await, 1);

    for hours in 66..=81 {
        checker.bill_and_check(db, hours).await;
    }
    assert_eq!(levels(db, 0).await, [24, 1, 0]);
    // The final notice would be due after 99 hours, but billing does not work.
    checker.check(60 * 100).await;
    assert_eq!(levels(db, 0).await, [24, 1, 0], "no grace period ends in an outage");
    for hours in 101..=118 {
        checker.bill_and_check(db, hours).await;
    }
    assert_eq!(levels(db, 0).await, [24, 1, 0], "the grace period begins again after it");
    checker.bill_and_check(db, 119).await;
    assert_eq!(levels(db, 0).await, [24, 1, 0, -1]);
}

async fn owed_amount_is_what_billing_holds(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("9.99")).await;
    let org = fleet.wallet("0.05").await;
    let [poor, gone] = [(); 2].map(|()| Instance::new(org, plan, hour(0)));
    let (poor, gone) = (fleet.instance(poor).await, fleet.instance(gone).await);
    let checker = Checker::of(db).await;
    for hours in 1..=5 {
        checker.daemon.bill(hour(hours)).await;
    }
    // The hours until the new price was seen keep the old one, and those of a deleted instance end.
    fleet.reprice(plan, Some("99.99")).await;
    fleet.delete(gone).await;
    for hours in 6..=9 {
        checker.bill_and_check(db, hours).await;
    }
    // A new instance has no meter yet.
    fleet.instance(Instance::new(org, plan, hour(9))).await;
    checker.check(60 * 9 + 2).await;

    let (held, of_gone) = (hold_of(&fleet, poor).await, fleet.holds(gone).await);
    let open = of_gone.iter().find(|hold| hold.open).and_then(|hold| hold.amount);
    let expected = held.amount.expect("a price") + open.expect("a price");
    assert!(expected > 40 * CENT, "{held:?} {of_gone:?}");
    assert_eq!(number(db, "SELECT owed FROM billing_standings").await, expected);
    assert_eq!(number(db, "SELECT burn FROM billing_standings").await, 2 * 99_990_000);
    checker.check(60 * 10 + 30).await;
    let of_new = 99_990_000 / 73_000 / 100 * 100;
    let an_hour_later = number(db, "SELECT owed FROM billing_standings").await;
    assert!(
        (expected + of_new..=expected + 2 * of_new + 2 * CENT).contains(&an_hour_later),
        "{an_hour_later}"
    );
}

async fn missing_fact_makes_standing_unknown(db: &Db) {
    let fleet = Fleet::new(db);
    let (plan, unpriced) =
        (fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await, fleet.plan(Plan::unpriced()).await);
    let (none, two, null, no_price) = (
        fleet.organization().await,
        fleet.wallet("1.00").await,
        fleet.wallet("0.10").await,
        fleet.wallet("9.00").await,
    );
    fleet.wallet_of(two, "2.00").await;
    for (org, plan) in [(none, plan), (two, plan), (null, plan), (no_price, unpriced)] {
        fleet.instance(Instance::new(org, plan, hour(0))).await;
    }
    let checker = Checker::of(db).await;
    checker.bill_and_check(db, 1).await;
    assert_eq!(standing(db, null).await, Some(("low".to_owned(), 0, Some(0), Some(1))));
    db.execute(&format!("UPDATE wallets SET balance = NULL WHERE organization_id = '{null}'")).await;
    let repaired = format!("UPDATE wallets SET balance = 0 WHERE organization_id = '{null}'");

    checker.bill_and_check(db, 2).await;
    for org in [none, two, null, no_price] {
        let standing = standing(db, org).await.expect("a standing");
        assert_eq!(standing.0, State::Unknown.as_str(), "{standing:?}");
    }
    assert_eq!(levels(db, 0).await, [1], "nothing is sent meanwhile");
    assert_eq!(checker.check(122).await.changed, 0, "an unknown standing is written once");

    db.execute(&repaired).await;
    fleet.reprice(unpriced, Some(TEN_CENTS_AN_HOUR)).await;
    checker.bill_and_check(db, 3).await;
    assert_eq!(standing(db, null).await, Some(("exhausted".to_owned(), 0, Some(-2), Some(0))));
    assert_eq!(standing(db, no_price).await.map(|standing| standing.2), Some(Some(87)));
}

async fn fenced_check_writes_nothing(db: &Db) {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly(TEN_CENTS_AN_HOUR)).await;
    let org = fleet.wallet("1.00").await;
    fleet.instance(Instance::new(org, plan, hour(0))).await;
    let older = Checker::of(db).await;
    let newer = Checker::of(db).await;

    let error = older.try_check(30).await.expect_err("its claim is not the newest");
    assert!(matches!(error, EvaluationError::Fenced(_)), "{error}");
    assert_eq!(standing(db, org).await, None);

    assert_eq!(
        newer.check(30).await,
        Evaluation { checked: 1, changed: 1, notices: 1, ..Evaluation::default() }
    );
}

on_each_kind!(
    falling_wallet_records_each_notice_once,
    fenced_check_writes_nothing,
    missing_fact_makes_standing_unknown,
    outage_delays_grace_and_passes_notices,
    owed_amount_is_what_billing_holds,
);
