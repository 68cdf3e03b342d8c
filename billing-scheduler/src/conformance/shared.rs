//! What the parts of the suite share.

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use uuid::Uuid;

use crate::runtime::store::{
    Claim, Lease, Pause, Receipt, Request, RunRecord, RunStatus, Store, Trigger, What,
};

pub(super) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).single().expect("a date without ambiguity in UTC")
}

pub(super) async fn held(store: &dyn Store, job: &str) -> Lease {
    match store.acquire(job, noon()).await.expect("the store answers") {
        Claim::Held(lease) => lease,
        Claim::Busy { holder } => panic!("the lease of {job} should be free, but {holder} has it"),
    }
}

pub(super) fn run(lease: &Lease, scheduled_at: DateTime<Utc>, status: RunStatus) -> RunRecord {
    RunRecord {
        attempt: 1,
        fence: lease.fence,
        finished_at: scheduled_at + TimeDelta::milliseconds(1500),
        items: 3,
        details: serde_json::json!({ "amount": "1.25" }),
        ..RunRecord::new(&lease.job, scheduled_at, status, Trigger::Schedule, scheduled_at)
    }
}

pub(super) fn request(job: &str, what: What, minutes: i64) -> Request {
    Request {
        id: Uuid::now_v7(),
        job: job.to_owned(),
        what,
        by: "ada@desk".to_owned(),
        reason: Some("a test".to_owned()),
        at: noon() + TimeDelta::minutes(minutes),
    }
}

pub(super) async fn accepted(store: &dyn Store, request: &Request) {
    let receipt = store.request(request).await.expect("the store answers");
    assert_eq!(receipt, Receipt::Accepted, "{request:?} changes something");
}

pub(super) async fn unchanged(store: &dyn Store, request: &Request) {
    let receipt = store.request(request).await.expect("the store answers");
    assert!(matches!(receipt, Receipt::Unchanged(_)), "{request:?} changes nothing");
}

/// The revision, and what is open for `job`.
pub(super) async fn wishes(store: &dyn Store, job: &str) -> (i64, Option<Pause>, Vec<Request>) {
    let wishes = store.wishes(None).await.expect("the store answers").expect("everything is news");
    let paused = wishes.paused.into_iter().find(|(paused, _)| paused == job).map(|(_, pause)| pause);
    let requests = wishes.requests.into_iter().filter(|request| request.job == job).collect();
    (wishes.revision, paused, requests)
}
