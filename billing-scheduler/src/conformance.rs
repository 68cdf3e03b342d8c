//! The suite that every [`Store`] must pass. Call [`check_all`] with stores that share one empty database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use uuid::Uuid;

use crate::{
    Claim, FencingToken, JobState, Lease, RunRecord, RunStatus, Store, StoreError, Trigger, store::Retrying,
};

/// Gives the suite two processes' views of one store, and lets leases run out.
#[async_trait]
pub trait Bench: Send + Sync {
    /// The store as one process sees it, and as another does.
    fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Store>);

    /// Makes every lease of `job` look expired to the store.
    async fn expire(&self, job: &str);

    /// How many rows the history of `job` has.
    async fn runs(&self, job: &str) -> u64;
}

/// Runs the whole suite.
///
/// # Panics
/// At the first promise of [`Store`] that is broken, with a sentence that names it.
pub async fn check_all(bench: &dyn Bench) {
    a_new_job_begins_with_the_first_cursor(bench).await;
    a_held_lease_is_not_given_twice(bench).await;
    a_released_lease_is_free_at_once(bench).await;
    an_expired_lease_goes_to_the_next_under_a_greater_fence(bench).await;
    an_old_holder_records_nothing(bench).await;
    an_old_holder_releases_nothing(bench).await;
    a_renewed_lease_is_kept(bench).await;
    recording_moves_the_state_with_the_row(bench).await;
    an_occurrence_is_finished_once(bench).await;
    every_attempt_leaves_a_row(bench).await;
    a_node_run_needs_no_lease(bench).await;
    of_many_claims_one_wins(bench).await;
}

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).single().expect("a date without ambiguity in UTC")
}

async fn held(store: &dyn Store, job: &str) -> Lease {
    match store.acquire(job, noon()).await.expect("the store answers") {
        Claim::Held(lease) => lease,
        Claim::Busy { holder } => panic!("the lease of {job} should be free, but {holder} has it"),
    }
}

fn run(lease: &Lease, scheduled_at: DateTime<Utc>, status: RunStatus) -> RunRecord {
    RunRecord {
        id: Uuid::now_v7(),
        job: lease.job.clone(),
        per_node: false,
        scheduled_at,
        status,
        trigger: Trigger::Schedule,
        attempt: 1,
        fence: lease.fence,
        started_at: scheduled_at,
        finished_at: scheduled_at + TimeDelta::milliseconds(1500),
        items: 3,
        reason: None,
        error: None,
        details: serde_json::json!({ "amount": "1.25" }),
    }
}

async fn a_new_job_begins_with_the_first_cursor(bench: &dyn Bench) {
    let (a, _) = bench.stores();
    let lease = held(&*a, "first").await;
    assert_eq!(lease.state, JobState::at(noon()), "a job never seen begins with the first cursor");
    assert!(lease.fence > FencingToken(0), "a claim's number is positive");
    assert!(lease.ttl > Duration::ZERO, "a lease lasts");
}

async fn a_held_lease_is_not_given_twice(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let _lease = held(&*a, "held").await;
    let answer = b.acquire("held", noon()).await.expect("the store answers");
    assert!(matches!(answer, Claim::Busy { .. }), "a lease in force is not given to another");
    let answer = a.acquire("held", noon()).await.expect("the store answers");
    assert!(matches!(answer, Claim::Busy { .. }), "nor to its holder a second time");
}

async fn a_released_lease_is_free_at_once(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let first = held(&*a, "released").await;
    a.release(&first).await.expect("the store answers");
    let second = held(&*b, "released").await;
    assert!(second.fence > first.fence, "each claim has a greater number");
}

async fn an_expired_lease_goes_to_the_next_under_a_greater_fence(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let first = held(&*a, "expired").await;
    bench.expire("expired").await;
    let second = held(&*b, "expired").await;
    assert!(second.fence > first.fence, "a take-over has a greater number");
    let renewal = a.renew(&first).await;
    assert!(matches!(renewal, Err(StoreError::LeaseLost { .. })), "the old holder cannot renew");
    b.renew(&second).await.expect("the new holder can renew");
}

async fn an_old_holder_records_nothing(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let first = held(&*a, "paused").await;
    bench.expire("paused").await;
    let second = held(&*b, "paused").await;
    let late = run(&first, noon() + TimeDelta::hours(1), RunStatus::Done);
    let answer = a.record(Some(&first), &late, &JobState::at(late.scheduled_at)).await;
    assert!(matches!(answer, Err(StoreError::LeaseLost { .. })), "an old fence records nothing");
    assert_eq!(bench.runs("paused").await, 0, "a refused record leaves no row");
    b.release(&second).await.expect("the store answers");
    assert_eq!(held(&*b, "paused").await.state.cursor, noon(), "nor does it move the cursor");
}

async fn an_old_holder_releases_nothing(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let first = held(&*a, "stale-release").await;
    bench.expire("stale-release").await;
    let _second = held(&*b, "stale-release").await;
    a.release(&first).await.expect("releasing a lost lease is no error");
    let answer = a.acquire("stale-release", noon()).await.expect("the store answers");
    assert!(matches!(answer, Claim::Busy { .. }), "an old holder cannot free the new one's lease");
}

async fn a_renewed_lease_is_kept(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let lease = held(&*a, "renewed").await;
    a.renew(&lease).await.expect("a lease in force can be renewed");
    let answer = b.acquire("renewed", noon()).await.expect("the store answers");
    assert!(matches!(answer, Claim::Busy { .. }), "a renewed lease is in force");
}

async fn recording_moves_the_state_with_the_row(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let lease = held(&*a, "recorded").await;
    let failed_at = noon() + TimeDelta::hours(1);
    let retrying = Retrying {
        scheduled_at: failed_at,
        failed_attempts: 1,
        not_before: failed_at + TimeDelta::seconds(15),
    };
    let state = JobState { cursor: noon(), retrying: Some(retrying) };
    let failed = RunRecord { error: Some("boom".to_owned()), ..run(&lease, failed_at, RunStatus::Retrying) };
    a.record(Some(&lease), &failed, &state).await.expect("the newest fence records");
    a.release(&lease).await.expect("the store answers");
    let lease = held(&*b, "recorded").await;
    assert_eq!(lease.state, state, "the state comes back as it was recorded");
    let done = RunRecord { attempt: 2, ..run(&lease, failed_at, RunStatus::Done) };
    b.record(Some(&lease), &done, &JobState::at(failed_at)).await.expect("the newest fence records");
    b.release(&lease).await.expect("the store answers");
    assert_eq!(held(&*a, "recorded").await.state, JobState::at(failed_at), "a finished retry is forgotten");
}

async fn an_occurrence_is_finished_once(bench: &dyn Bench) {
    let (a, _) = bench.stores();
    let lease = held(&*a, "once").await;
    let at = noon() + TimeDelta::hours(1);
    a.record(Some(&lease), &run(&lease, at, RunStatus::Done), &JobState::at(at))
        .await
        .expect("the first is recorded");
    let later = JobState::at(at + TimeDelta::hours(1));
    let again = a.record(Some(&lease), &run(&lease, at, RunStatus::Done), &later).await;
    assert!(
        matches!(again, Err(StoreError::AlreadyFinished { .. })),
        "the same occurrence is not done twice"
    );
    assert_eq!(bench.runs("once").await, 1, "a refused record leaves no row");
    a.release(&lease).await.expect("the store answers");
    assert_eq!(held(&*a, "once").await.state.cursor, at, "nor does it move the cursor");
}

async fn every_attempt_leaves_a_row(bench: &dyn Bench) {
    let (a, _) = bench.stores();
    let lease = held(&*a, "attempts").await;
    let at = noon() + TimeDelta::hours(1);
    for status in [RunStatus::Retrying, RunStatus::Interrupted, RunStatus::Retrying, RunStatus::Dead] {
        a.record(Some(&lease), &run(&lease, at, status), &JobState::at(noon()))
            .await
            .expect("each is recorded");
    }
    assert_eq!(bench.runs("attempts").await, 4, "each attempt at one occurrence has a row");
}

async fn a_node_run_needs_no_lease(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let nobody = Lease {
        job: "node".to_owned(),
        fence: FencingToken(0),
        ttl: Duration::ZERO,
        state: JobState::at(noon()),
    };
    let at = noon() + TimeDelta::hours(1);
    for store in [a, b] {
        let run = RunRecord { per_node: true, ..run(&nobody, at, RunStatus::Done) };
        store.record(None, &run, &JobState::at(at)).await.expect("each node records its own run");
    }
    assert_eq!(bench.runs("node").await, 2, "two nodes finish the same scheduled time once each");
}

async fn of_many_claims_one_wins(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let claims: Vec<_> = (0..16)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &a } else { &b });
            tokio::spawn(async move { store.acquire("contended", noon()).await })
        })
        .collect();
    let mut won = 0;
    for claim in claims {
        let answer = claim.await.expect("a claim does not panic").expect("the store answers");
        won += u32::from(matches!(answer, Claim::Held(_)));
    }
    assert_eq!(won, 1, "of claims made at once exactly one wins");
}
