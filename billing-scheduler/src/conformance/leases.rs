//! Leases: one holder at a time, and increasing fencing tokens.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;

use super::{
    Harness,
    shared::{busy, held, hint_at, noon, run},
};
use crate::{
    job::FencingToken,
    runtime::store::{Claim, JobState, RunStatus, StoreError},
};

pub(super) async fn new_job_starts_at_first_cursor(harness: &dyn Harness) {
    let (a, _) = harness.stores();
    let lease = held(&*a, "first").await;
    assert_eq!(lease.state, JobState::at(noon()), "a new job starts at the first cursor");
    assert!(lease.fencing_token > FencingToken(0), "a fencing token is positive");
    assert!(lease.ttl > Duration::ZERO, "a lease has a lifetime");
}

pub(super) async fn held_lease_is_not_claimed(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let _lease = held(&*a, "held").await;
    assert!(busy(&*b, "held").await, "no other process claims a held lease");
    assert!(busy(&*a, "held").await, "its holder does not claim it a second time");
}

pub(super) async fn released_lease_is_free_immediately(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let first = held(&*a, "released").await;
    a.release(&first).await.expect("the store is available");
    let second = held(&*b, "released").await;
    assert!(second.fencing_token > first.fencing_token, "each claim has a greater token");
}

pub(super) async fn expired_lease_is_claimed_with_greater_token(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let first = held(&*a, "expired").await;
    harness.expire("expired").await;
    let second = held(&*b, "expired").await;
    assert!(second.fencing_token > first.fencing_token, "a takeover has a greater token");
    let renewal = a.renew(&first).await;
    assert!(matches!(renewal, Err(StoreError::LeaseLost { .. })), "the old holder cannot renew");
    b.renew(&second).await.expect("the new holder can renew");
}

pub(super) async fn old_holder_cannot_record(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let first = held(&*a, "paused").await;
    harness.expire("paused").await;
    let second = held(&*b, "paused").await;
    let late = run(&first, noon() + TimeDelta::hours(1), RunStatus::Done);
    let answer = a.record(Some(&first), &late, &JobState::at(late.scheduled_at)).await;
    assert!(matches!(answer, Err(StoreError::LeaseLost { .. })), "an old fencing token records nothing");
    assert_eq!(harness.runs("paused").await, 0, "a rejected record leaves no row");
    b.release(&second).await.expect("the store is available");
    assert_eq!(held(&*b, "paused").await.state.cursor, noon(), "nor does it move the cursor");
}

pub(super) async fn old_holder_cannot_release(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let first = held(&*a, "stale-release").await;
    harness.expire("stale-release").await;
    let _second = held(&*b, "stale-release").await;
    a.release(&first).await.expect("releasing a lost lease is not an error");
    assert!(busy(&*a, "stale-release").await, "an old holder cannot release the lease of the new one");
}

pub(super) async fn renewed_lease_is_kept(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let lease = held(&*a, "renewed").await;
    a.renew(&lease).await.expect("a held lease can be renewed");
    assert!(busy(&*b, "renewed").await, "a renewed lease is held");
}

pub(super) async fn one_of_concurrent_claims_wins(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let claims: Vec<_> = (0..16)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &a } else { &b });
            tokio::spawn(async move { store.acquire("contended", noon()).await })
        })
        .collect();
    let mut won = 0;
    for claim in claims {
        let answer = claim.await.expect("a claim does not panic").expect("the store is available");
        won += u32::from(matches!(answer, Claim::Held(_)));
    }
    assert_eq!(won, 1, "exactly one of concurrent claims wins");
}

pub(super) async fn claim_hint_is_stored_at_release(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let mut lease = held(&*a, "planned").await;
    assert_eq!(lease.claim_hint, None, "a new job has no claim hint");
    let hint = hint_at(noon() + TimeDelta::hours(1));
    lease.claim_hint = Some(hint.clone());
    a.release(&lease).await.expect("the store is available");
    let mut stale = lease;
    let lease = held(&*b, "planned").await;
    assert_eq!(lease.claim_hint, Some(hint.clone()), "the claim hint is returned unchanged");
    stale.claim_hint = None;
    a.release(&stale).await.expect("releasing a lost lease is not an error");
    b.release(&lease).await.expect("the store is available");
    assert_eq!(held(&*b, "planned").await.claim_hint, Some(hint), "an old holder stores no claim hint");
}
