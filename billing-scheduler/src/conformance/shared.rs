//! Helpers of the suite.

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use uuid::Uuid;

use crate::runtime::store::{
    Claim, ClaimHint, ControlAction, ControlReceipt, ControlRequest, Lease, Pause, ReplacedSchedule,
    RunCause, RunRecord, RunStatus, Store,
};

pub(super) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).single().expect("a date without ambiguity in UTC")
}

pub(super) async fn held(store: &dyn Store, job: &str) -> Lease {
    match store.acquire(job, noon()).await.expect("the store is available") {
        Claim::Held(lease) => lease,
        Claim::Busy { holder } => panic!("the lease of {job} should be free, but {holder} holds it"),
    }
}

/// Whether another claim holds the lease of `job`.
pub(super) async fn busy(store: &dyn Store, job: &str) -> bool {
    matches!(store.acquire(job, noon()).await.expect("the store is available"), Claim::Busy { .. })
}

/// Returns the claim hint of a job that is due at `next_at`.
pub(super) fn hint_at(next_at: DateTime<Utc>) -> ClaimHint {
    ClaimHint {
        schedule: "every 1h".to_owned(),
        next_at: Some(next_at),
        late_at: Some(next_at + TimeDelta::minutes(1)),
        stuck_at: None,
        replaced: vec![ReplacedSchedule {
            schedule: "every 30m".to_owned(),
            until: next_at - TimeDelta::minutes(1),
        }],
    }
}

pub(super) fn run(lease: &Lease, scheduled_at: DateTime<Utc>, status: RunStatus) -> RunRecord {
    RunRecord {
        attempt: 1,
        fencing_token: lease.fencing_token,
        finished_at: scheduled_at + TimeDelta::milliseconds(1500),
        items: 3,
        details: serde_json::json!({ "amount": "1.25" }),
        ..RunRecord::new(&lease.job, scheduled_at, status, RunCause::Schedule, scheduled_at)
    }
}

pub(super) fn request(job: &str, action: ControlAction, minutes: i64) -> ControlRequest {
    ControlRequest {
        id: Uuid::now_v7(),
        job: job.to_owned(),
        action,
        by: "ada@host".to_owned(),
        reason: Some("a test".to_owned()),
        at: noon() + TimeDelta::minutes(minutes),
    }
}

pub(super) async fn accepted(store: &dyn Store, request: &ControlRequest) {
    let receipt = store.request(request).await.expect("the store is available");
    assert_eq!(receipt, ControlReceipt::Accepted, "{request:?} changes something");
}

pub(super) async fn unchanged(store: &dyn Store, request: &ControlRequest) {
    let receipt = store.request(request).await.expect("the store is available");
    assert!(matches!(receipt, ControlReceipt::Unchanged(_)), "{request:?} changes nothing");
}

/// Returns the revision, and the pause and the requests of `job`.
pub(super) async fn control_state(store: &dyn Store, job: &str) -> (i64, Option<Pause>, Vec<ControlRequest>) {
    let control_state = store
        .poll(None)
        .await
        .expect("the store is available")
        .changed
        .expect("a first poll returns the state");
    let paused = control_state.paused.into_iter().find(|(paused, _)| paused == job).map(|(_, pause)| pause);
    let requests = control_state.requests.into_iter().filter(|request| request.job == job).collect();
    (control_state.revision, paused, requests)
}
