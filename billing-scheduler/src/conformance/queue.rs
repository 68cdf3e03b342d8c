//! The rules of a [`QueueStore`].

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    job::FencingToken,
    runtime::store::{
        NewQueuedJob, QueueNext, QueueResult, QueueStore, QueueTime, QueuedJob, RunCause, RunRecord,
        RunStatus,
    },
};

/// Provides the suite with a queue as two processes use it, and expires claims.
#[async_trait]
pub trait QueueHarness: Send + Sync {
    /// Returns the store as one process uses it, and as another does.
    fn stores(&self) -> (Arc<dyn QueueStore>, Arc<dyn QueueStore>);

    /// Makes every claim of a job of `kind` expired for the store.
    async fn expire(&self, kind: &str);

    /// Returns the rows in the history of `kind`, in any order.
    async fn runs(&self, kind: &str) -> Vec<RunRecord>;
}

/// Runs the whole suite for queues.
///
/// # Panics
/// If the store violates the contract of [`QueueStore`], with a message that names the violated rule.
pub async fn check_queue(harness: &dyn QueueHarness) {
    job_is_returned_as_added(harness).await;
    job_is_claimed_when_due(harness).await;
    claim_follows_priority_and_limit(harness).await;
    claimed_job_is_held(harness).await;
    expired_claim_has_greater_token(harness).await;
    old_claim_settles_nothing(harness).await;
    renewal_keeps_current_claims(harness).await;
    result_is_recorded_in_history(harness).await;
    repeated_settlement_changes_nothing(harness).await;
    unique_key_is_free_after_finish(harness).await;
    repeated_enqueue_adds_nothing(harness).await;
    prune_keeps_unfinished_jobs(harness).await;
    concurrent_claims_share_jobs(harness).await;
}

const AVAILABLE: &str = "the store is available";

fn past(kind: &str) -> NewQueuedJob {
    NewQueuedJob {
        time: QueueTime::At(DateTime::UNIX_EPOCH),
        ..NewQueuedJob::new(kind, serde_json::Value::Null)
    }
}

async fn add(store: &dyn QueueStore, job: NewQueuedJob) -> Uuid {
    let id = job.id;
    assert_eq!(store.enqueue(&[job]).await.expect(AVAILABLE), [id], "a new job is added");
    id
}

async fn claim(store: &dyn QueueStore, kind: &str, limit: u32) -> Vec<QueuedJob> {
    store.claim(&[(kind.to_owned(), limit)]).await.expect(AVAILABLE)
}

async fn claim_one(store: &dyn QueueStore, kind: &str) -> QueuedJob {
    let mut jobs = claim(store, kind, 10).await;
    assert_eq!(jobs.len(), 1, "one job of kind `{kind}` is due");
    jobs.remove(0)
}

fn result(job: &QueuedJob, status: RunStatus, next: QueueNext) -> QueueResult {
    let started_at = job.scheduled_at + TimeDelta::seconds(1);
    let run = RunRecord {
        attempt: job.failed_attempts + 1,
        fencing_token: job.fencing_token,
        finished_at: started_at + TimeDelta::milliseconds(1500),
        items: 3,
        request_id: Some(job.id),
        details: serde_json::json!({ "sent": "3 'messages' \\ \u{e9}" }),
        ..RunRecord::new(&job.kind, job.scheduled_at, status, RunCause::Queue, started_at)
    };
    QueueResult { id: job.id, run, next }
}

fn done(job: &QueuedJob) -> QueueResult {
    result(job, RunStatus::Done, QueueNext::Finished)
}

async fn settle(store: &dyn QueueStore, result: &QueueResult) -> bool {
    store.settle(std::slice::from_ref(result)).await.expect(AVAILABLE) == [result.id]
}

async fn job_is_returned_as_added(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    let payload = serde_json::json!({ "to": "O'Hara \\ \"x\" \u{1f600}", "n": [1, 2.5, null] });
    let id = add(&*a, NewQueuedJob { payload: payload.clone(), ..past("as-added") }).await;
    let job = claim_one(&*b, "as-added").await;
    let expected = QueuedJob {
        id,
        kind: "as-added".to_owned(),
        payload,
        scheduled_at: DateTime::UNIX_EPOCH,
        failed_attempts: 0,
        fencing_token: job.fencing_token,
    };
    assert_eq!(job, expected, "a claim returns the job as it was added");
    assert!(job.fencing_token > FencingToken(0), "a fencing token is positive");
}

async fn job_is_claimed_when_due(harness: &dyn QueueHarness) {
    let (a, _) = harness.stores();
    let far = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(365 * 200);
    add(&*a, NewQueuedJob { time: QueueTime::At(far), ..past("due") }).await;
    add(&*a, NewQueuedJob { time: QueueTime::After(Duration::from_hours(1)), ..past("due") }).await;
    assert!(claim(&*a, "due", 10).await.is_empty(), "a job is not claimed before it is due");
    let id = add(&*a, NewQueuedJob { time: QueueTime::After(Duration::ZERO), ..past("due") }).await;
    let job = claim_one(&*a, "due").await;
    assert_eq!(job.id, id, "a job without a time is due immediately");
    assert_eq!(job.scheduled_at.timestamp_subsec_micros(), 0, "scheduled times are whole seconds");
}

async fn claim_follows_priority_and_limit(harness: &dyn QueueHarness) {
    let (a, _) = harness.stores();
    let at =
        |seconds| QueueTime::At(DateTime::UNIX_EPOCH - TimeDelta::minutes(1) + TimeDelta::seconds(seconds));
    let low = add(&*a, NewQueuedJob { priority: -1, ..past("order") }).await;
    let later = add(&*a, NewQueuedJob { time: at(2), ..past("order") }).await;
    let earlier = add(&*a, NewQueuedJob { time: at(1), ..past("order") }).await;
    let high = add(&*a, NewQueuedJob { time: at(3), priority: 5, ..past("order") }).await;
    add(&*a, past("order-other")).await;
    let ids = async || claim(&*a, "order", 2).await.iter().map(|job| job.id).collect::<HashSet<_>>();
    assert_eq!(ids().await, HashSet::from([high, earlier]), "the highest priority, then the earliest time");
    assert_eq!(ids().await, HashSet::from([later, low]), "a claim has at most as many jobs as its limit");
}

async fn claimed_job_is_held(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    add(&*a, past("held")).await;
    claim_one(&*a, "held").await;
    for store in [&a, &b] {
        assert!(claim(&**store, "held", 10).await.is_empty(), "no process claims a held job");
    }
}

async fn expired_claim_has_greater_token(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    add(&*a, past("expired")).await;
    let first = claim_one(&*a, "expired").await;
    harness.expire("expired").await;
    let second = claim_one(&*b, "expired").await;
    assert_eq!(second.id, first.id, "a job is claimed again when its claim has expired");
    assert!(second.fencing_token > first.fencing_token, "each claim of a job has a greater token");
    let failed = (first.failed_attempts, second.failed_attempts);
    assert_eq!(failed, (0, 1), "a claim that expired without a result counts as a failed attempt");
}

async fn old_claim_settles_nothing(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    add(&*a, past("old")).await;
    let first = claim_one(&*a, "old").await;
    harness.expire("old").await;
    let second = claim_one(&*b, "old").await;
    assert!(!settle(&*a, &done(&first)).await, "an old claim settles nothing");
    assert!(harness.runs("old").await.is_empty(), "a rejected result leaves no row");
    let both = [done(&first), done(&second)];
    assert_eq!(b.settle(&both).await.expect(AVAILABLE), [second.id], "the current claim settles the job");
    assert!(!settle(&*a, &done(&first)).await, "an old claim settles nothing after the end, either");
    assert_eq!(
        harness.runs("old").await,
        [both[1].run.clone()],
        "only the run of the current claim is recorded"
    );
}

async fn renewal_keeps_current_claims(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    add(&*a, past("renewed")).await;
    let first = claim_one(&*a, "renewed").await;
    let renew = async |store: &dyn QueueStore, job: &QueuedJob| {
        store.renew_claims(&[(job.id, job.fencing_token)]).await.expect(AVAILABLE)
    };
    assert_eq!(renew(&*a, &first).await, [first.id], "a held claim is renewed");
    assert!(claim(&*b, "renewed", 10).await.is_empty(), "a renewed claim holds the job");
    harness.expire("renewed").await;
    assert!(renew(&*a, &first).await.is_empty(), "an expired claim is not renewed");
    let second = claim_one(&*b, "renewed").await;
    assert!(renew(&*a, &first).await.is_empty(), "an old claim is not renewed");
    assert_eq!(renew(&*b, &second).await, [second.id], "the new claim is renewed");
    assert!(settle(&*b, &done(&second)).await, "the current claim settles the job");
    assert!(renew(&*b, &second).await.is_empty(), "the claim of a finished job is not renewed");
}

async fn result_is_recorded_in_history(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    add(&*a, past("recorded")).await;
    let first = claim_one(&*a, "recorded").await;
    let again = QueueNext::Again { after: Duration::ZERO, failed_attempts: 1 };
    let retrying = result(&first, RunStatus::Retrying, again);
    assert!(settle(&*a, &retrying).await, "a failed attempt is recorded");
    let second = claim_one(&*b, "recorded").await;
    assert_eq!(second.failed_attempts, 1, "the job counts its failed attempts");
    assert_eq!(second.scheduled_at, first.scheduled_at, "a retry keeps the scheduled time");
    let wait = QueueNext::Again { after: Duration::from_hours(1), failed_attempts: 2 };
    let waiting = result(&second, RunStatus::Retrying, wait);
    assert!(settle(&*b, &waiting).await, "a failed attempt is recorded");
    assert!(claim(&*a, "recorded", 10).await.is_empty(), "a retry is not claimed before its wait is over");
    add(&*a, past("recorded-done")).await;
    let finished = done(&claim_one(&*a, "recorded-done").await);
    assert!(settle(&*a, &finished).await, "a result is recorded");
    harness.expire("recorded-done").await;
    assert!(claim(&*b, "recorded-done", 10).await.is_empty(), "a finished job is not claimed");
    assert_eq!(
        harness.runs("recorded-done").await,
        [finished.run],
        "the history has the run as it was written"
    );
    let mut runs: Vec<_> = harness.runs("recorded").await.iter().map(|run| run.attempt).collect();
    runs.sort_unstable();
    assert_eq!(runs, [1, 2], "each attempt has a row");
}

async fn repeated_settlement_changes_nothing(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    add(&*a, past("repeated")).await;
    let again = QueueNext::Again { after: Duration::ZERO, failed_attempts: 1 };
    let retrying = result(&claim_one(&*a, "repeated").await, RunStatus::Retrying, again);
    assert!(settle(&*a, &retrying).await, "a failed attempt is recorded");
    settle(&*a, &retrying).await;
    let second = claim_one(&*b, "repeated").await;
    assert!(!settle(&*a, &retrying).await, "a repeated result is not that of the new claim");
    let finished = done(&second);
    assert!(settle(&*b, &finished).await, "the current claim settles the job");
    settle(&*b, &finished).await;
    assert_eq!(harness.runs("repeated").await.len(), 2, "a repeated result adds no row");
}

async fn unique_key_is_free_after_finish(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    let job =
        |kind: &str, key: Option<&str>| NewQueuedJob { unique_key: key.map(str::to_owned), ..past(kind) };
    add(&*a, job("unique", Some("one"))).await;
    let same = job("unique", Some("one"));
    assert!(b.enqueue(&[same]).await.expect(AVAILABLE).is_empty(), "an unfinished job has the unique key");
    let claimed = claim_one(&*a, "unique").await;
    let same = job("unique", Some("one"));
    assert!(b.enqueue(&[same]).await.expect(AVAILABLE).is_empty(), "a claimed job keeps its unique key");
    add(&*a, job("unique-other", Some("one"))).await;
    let batch =
        [job("unique", Some("two")), job("unique", Some("two")), job("unique", None), job("unique", None)];
    let added = a.enqueue(&batch).await.expect(AVAILABLE);
    assert_eq!(
        added.len(),
        3,
        "of two jobs with one key in a call, one is added; jobs without a key are not unique"
    );
    assert!(settle(&*a, &done(&claimed)).await, "the job is finished");
    add(&*a, job("unique", Some("one"))).await;
}

async fn repeated_enqueue_adds_nothing(harness: &dyn QueueHarness) {
    let (a, _) = harness.stores();
    let job = past("again");
    add(&*a, job.clone()).await;
    assert!(a.enqueue(std::slice::from_ref(&job)).await.expect(AVAILABLE).is_empty(), "an id is added once");
    assert!(settle(&*a, &done(&claim_one(&*a, "again").await)).await, "the job is finished");
    assert!(a.enqueue(&[job]).await.expect(AVAILABLE).is_empty(), "nor is it added after its end");
}

async fn prune_keeps_unfinished_jobs(harness: &dyn QueueHarness) {
    let (a, _) = harness.stores();
    for _ in 0..3 {
        add(&*a, past("pruned")).await;
    }
    let jobs = claim(&*a, "pruned", 2).await;
    assert!(settle(&*a, &done(&jobs[0])).await, "a job is finished");
    a.prune(Duration::from_hours(1)).await.expect(AVAILABLE);
    assert!(
        a.enqueue(&[NewQueuedJob { id: jobs[0].id, ..past("pruned") }]).await.expect(AVAILABLE).is_empty()
    );
    // A millisecond is the smallest difference that every store must notice.
    tokio::time::sleep(Duration::from_millis(2)).await;
    harness.expire("pruned").await;
    assert!(a.prune(Duration::ZERO).await.expect(AVAILABLE) >= 1, "a finished job is removed after its time");
    assert_eq!(claim(&*a, "pruned", 10).await.len(), 2, "unfinished jobs are kept");
}

async fn concurrent_claims_share_jobs(harness: &dyn QueueHarness) {
    let (a, b) = harness.stores();
    let jobs: Vec<_> = (0..40).map(|_| past("contended")).collect();
    assert_eq!(a.enqueue(&jobs).await.expect(AVAILABLE).len(), 40, "all jobs are added");
    let claims: Vec<_> = (0..16)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &a } else { &b });
            tokio::spawn(async move { store.claim(&[("contended".to_owned(), 5)]).await })
        })
        .collect();
    let mut ids = Vec::new();
    for claim in claims {
        let jobs = claim.await.expect("a claim does not panic").expect(AVAILABLE);
        ids.extend(jobs.iter().map(|job| job.id));
    }
    let distinct: HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "no job is claimed twice");
    // Concurrent claims may skip each other's jobs, but none is lost.
    ids.extend(claim(&*a, "contended", 100).await.iter().map(|job| job.id));
    assert_eq!(ids.len(), 40, "every job is claimed");
}
