//! The suite that every [`Store`] must pass. Call [`check_all`] with stores that share one empty database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use uuid::Uuid;

use crate::{
    Claim, FencingToken, JobState, Lease, Pause, Plan, Receipt, Request, Retrying, RunFilter, RunRecord,
    RunStatus, Store, StoreError, Stretch, Trigger, What,
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
    no_text_of_a_job_keeps_its_run_from_being_recorded(bench).await;
    a_node_run_needs_no_lease(bench).await;
    of_many_claims_one_wins(bench).await;
    a_plan_is_left_with_the_lease(bench).await;
    reset_needs_a_cursor_in_the_future(bench).await;
    the_last_record_of_a_turn_gives_the_lease_back(bench).await;
    the_history_is_read_as_it_was_written(bench).await;
    a_pause_is_seen_by_whoever_claims_and_by_whoever_asks(bench).await;
    a_request_is_open_until_a_run_answers_it(bench).await;
    a_wish_to_cancel_names_the_claim_in_force(bench).await;
    a_job_shows_how_it_stands(bench).await;
    of_many_requests_none_is_lost(bench).await;
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
        attempt: 1,
        fence: lease.fence,
        finished_at: scheduled_at + TimeDelta::milliseconds(1500),
        items: 3,
        details: serde_json::json!({ "amount": "1.25" }),
        ..RunRecord::new(&lease.job, scheduled_at, status, Trigger::Schedule, scheduled_at)
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

async fn no_text_of_a_job_keeps_its_run_from_being_recorded(bench: &dyn Bench) {
    let (a, _) = bench.stores();
    let lease = held(&*a, "wordy").await;
    let text = "a NUL \0, 'it''s' \"$1\"; -- \\' /* ? %s\n\u{1f980} and \\u0000";
    let wordy = RunRecord {
        reason: Some(text.to_owned()),
        error: Some(text.to_owned()),
        details: serde_json::json!({ text: [text] }),
        ..run(&lease, noon() + TimeDelta::hours(1), RunStatus::Dead)
    };
    a.record(Some(&lease), &wordy, &JobState::at(wordy.scheduled_at)).await.expect("any text is recorded");
    let rows = a.runs(&RunFilter { job: Some("wordy".to_owned()), ..RunFilter::default() }).await;
    let error = rows.expect("the store answers").remove(0).run.error.expect("it is there");
    let (_, kept) = text.split_once('\0').expect("there is one");
    assert!(error.ends_with(kept), "what a store has a place for is kept: {error:?}");
    a.release(&lease).await.expect("the store answers");
}

async fn a_node_run_needs_no_lease(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let nobody = Lease {
        job: "node".to_owned(),
        fence: FencingToken(0),
        ttl: Duration::ZERO,
        state: JobState::at(noon()),
        plan: None,
        pauses: Vec::new(),
        requests: Vec::new(),
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

fn request(job: &str, what: What, minutes: i64) -> Request {
    Request {
        id: Uuid::now_v7(),
        job: job.to_owned(),
        what,
        by: "ada@desk".to_owned(),
        reason: Some("a test".to_owned()),
        at: noon() + TimeDelta::minutes(minutes),
    }
}

async fn accepted(store: &dyn Store, request: &Request) {
    let receipt = store.request(request).await.expect("the store answers");
    assert_eq!(receipt, Receipt::Accepted, "{request:?} changes something");
}

async fn unchanged(store: &dyn Store, request: &Request) {
    let receipt = store.request(request).await.expect("the store answers");
    assert!(matches!(receipt, Receipt::Unchanged(_)), "{request:?} changes nothing");
}

/// The revision, and what is open for `job`.
async fn wishes(store: &dyn Store, job: &str) -> (i64, Option<Pause>, Vec<Request>) {
    let wishes = store.wishes(None).await.expect("the store answers").expect("everything is news");
    let paused = wishes.paused.into_iter().find(|(paused, _)| paused == job).map(|(_, pause)| pause);
    let requests = wishes.requests.into_iter().filter(|request| request.job == job).collect();
    (wishes.revision, paused, requests)
}

async fn a_plan_is_left_with_the_lease(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let mut lease = held(&*a, "planned").await;
    assert_eq!(lease.plan, None, "nothing is expected of a new job");
    let next_at = Some(noon() + TimeDelta::hours(1));
    let plan = Plan {
        schedule: "every 1h".to_owned(),
        next_at,
        late_at: next_at.map(|at| at + TimeDelta::minutes(1)),
        stuck_at: None,
    };
    lease.plan = Some(plan.clone());
    a.release(&lease).await.expect("the store answers");
    let mut stale = lease;
    let lease = held(&*b, "planned").await;
    assert_eq!(lease.plan, Some(plan.clone()), "the plan comes back as it was left");
    stale.plan = None;
    a.release(&stale).await.expect("releasing a lost lease is no error");
    b.release(&lease).await.expect("the store answers");
    assert_eq!(held(&*b, "planned").await.plan, Some(plan), "an old holder leaves no plan");
}

async fn the_last_record_of_a_turn_gives_the_lease_back(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let asked = request("last", What::Trigger, 0);
    accepted(&*a, &asked).await;
    let mut lease = held(&*a, "last").await;
    let at = noon() + TimeDelta::hours(1);
    let plan = Plan {
        schedule: "every 1h".to_owned(),
        next_at: Some(at),
        late_at: Some(at + TimeDelta::minutes(1)),
        stuck_at: None,
    };
    lease.plan = Some(plan.clone());
    let done = RunRecord { request: Some(asked.id), ..run(&lease, at, RunStatus::Done) };
    a.finish(&lease, &done, &JobState::at(at)).await.expect("the newest fence records");
    assert_eq!(bench.runs("last").await, 1, "it leaves its row");
    assert_eq!(wishes(&*b, "last").await.2, [], "and closes the request that it answers");
    let next = held(&*b, "last").await;
    assert_eq!(next.state, JobState::at(at), "the state moves with the row");
    assert_eq!(next.plan, Some(plan.clone()), "the plan is left");

    lease.plan = None;
    let late = run(&lease, at + TimeDelta::hours(1), RunStatus::Done);
    let open = request("last", What::Trigger, 1);
    accepted(&*a, &open).await;
    let late = RunRecord { request: Some(open.id), ..late };
    let answer = a.finish(&lease, &late, &JobState::at(late.scheduled_at)).await;
    assert!(matches!(answer, Err(StoreError::LeaseLost { .. })), "an old fence records nothing");
    assert_eq!(bench.runs("last").await, 1, "a refused record leaves no row");
    assert_eq!(wishes(&*b, "last").await.2.len(), 1, "nor does it close a request");
    let answer = a.acquire("last", noon()).await.expect("the store answers");
    assert!(matches!(answer, Claim::Busy { .. }), "nor does it free the new one's lease");
    let again = b.finish(&next, &done, &JobState::at(at)).await;
    assert!(matches!(again, Err(StoreError::AlreadyFinished { .. })), "an occurrence is finished once");
    b.release(&next).await.expect("the store answers");
    let last = held(&*a, "last").await;
    assert_eq!((last.state, last.plan), (JobState::at(at), Some(plan)), "nor does it move the job");
}

async fn the_history_is_read_as_it_was_written(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let lease = held(&*a, "history").await;
    let at = |hours| noon() + TimeDelta::hours(hours);
    let stretch = Stretch { from: at(2), count: 3 };
    let asked = Uuid::now_v7();
    let rows = [
        RunRecord { reason: Some("early".to_owned()), ..run(&lease, at(1), RunStatus::Done) },
        RunRecord {
            stretch: Some(stretch),
            details: serde_json::Value::Null,
            ..run(&lease, at(4), RunStatus::Paused)
        },
        RunRecord {
            request: Some(asked),
            trigger: Trigger::Replay,
            error: Some("boom".to_owned()),
            ..run(&lease, at(5), RunStatus::Dead)
        },
        run(&lease, at(6), RunStatus::Missed),
    ];
    for row in &rows {
        a.record(Some(&lease), row, &JobState::at(row.scheduled_at)).await.expect("each is recorded");
    }
    let job = Some("history".to_owned());
    let all = RunFilter { job, ..RunFilter::default() };
    let dead = Some(RunStatus::Dead);
    for (filter, expected) in [
        (all.clone(), vec![3, 2, 1, 0]),
        (RunFilter { limit: 2, ..all.clone() }, vec![3, 2]),
        (RunFilter { status: dead, ..all.clone() }, vec![2]),
        (RunFilter { since: Some(at(5)), ..all.clone() }, vec![3, 2]),
        (RunFilter { scheduled_at: Some(at(3)), ..all.clone() }, vec![1]),
        (RunFilter { scheduled_at: Some(at(5)), ..all.clone() }, vec![2]),
        (RunFilter { id: Some(rows[0].id), ..RunFilter::default() }, vec![0]),
        (RunFilter { request: Some(asked), ..RunFilter::default() }, vec![2]),
        (RunFilter { job: Some("nobody's".to_owned()), ..RunFilter::default() }, vec![]),
    ] {
        let found = b.runs(&filter).await.expect("the store answers");
        assert!(found.iter().all(|row| !row.daemon.is_empty()), "a row says who wrote it");
        let found: Vec<_> = found.into_iter().map(|row| row.run).collect();
        let expected: Vec<_> = expected.into_iter().map(|index: usize| rows[index].clone()).collect();
        assert_eq!(found, expected, "the rows of {filter:?}, newest first");
    }
}

async fn a_pause_is_seen_by_whoever_claims_and_by_whoever_asks(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let (known, nothing, _) = wishes(&*b, "pausing").await;
    assert_eq!(nothing, None, "nobody paused it yet");
    assert_eq!(b.wishes(Some(known)).await.expect("the store answers"), None, "what is known is no news");
    unchanged(&*a, &request("pausing", What::Resume, 0)).await;
    assert_eq!(b.wishes(Some(known)).await.expect("the store answers"), None, "no change is no news");
    let pause = request("pausing", What::Pause, 30);
    accepted(&*a, &pause).await;
    unchanged(&*b, &request("pausing", What::Pause, 40)).await;
    let mut expected = Pause { since: pause.at, until: None, by: pause.by, reason: pause.reason };
    let (revision, paused, _) = wishes(&*b, "pausing").await;
    assert!(revision > known, "each request is news");
    assert_eq!(paused, Some(expected.clone()), "whoever asks sees the pause");
    let lease = held(&*b, "pausing").await;
    assert_eq!(lease.pauses, [expected.clone()], "whoever claims sees it, too");
    b.release(&lease).await.expect("the store answers");

    accepted(&*b, &request("pausing", What::Resume, 90)).await;
    assert_eq!(wishes(&*a, "pausing").await.1, None, "it is resumed");
    expected.until = Some(noon() + TimeDelta::minutes(90));
    let lease = held(&*a, "pausing").await;
    assert_eq!(lease.pauses, [expected.clone()], "the claim sees the pause until the cursor is behind it");
    let row = run(&lease, noon() + TimeDelta::minutes(60), RunStatus::Paused);
    a.record(Some(&lease), &row, &JobState::at(noon() + TimeDelta::minutes(60))).await.expect("recorded");
    a.release(&lease).await.expect("the store answers");
    let lease = held(&*a, "pausing").await;
    assert_eq!(lease.pauses, [expected.clone()], "it may hold more");
    let behind = noon() + TimeDelta::minutes(120);
    let scheduled_at = noon() + TimeDelta::minutes(60);
    let retrying = Some(Retrying { scheduled_at, failed_attempts: 0, not_before: scheduled_at });
    let row = run(&lease, behind, RunStatus::Skipped);
    a.record(Some(&lease), &row, &JobState { cursor: behind, retrying }).await.expect("recorded");
    a.release(&lease).await.expect("the store answers");
    let lease = held(&*a, "pausing").await;
    assert_eq!(lease.pauses, [expected], "a time within it is still to be run");
    let row = run(&lease, behind, RunStatus::Done);
    a.record(Some(&lease), &row, &JobState::at(behind)).await.expect("recorded");
    a.release(&lease).await.expect("the store answers");
    assert_eq!(held(&*a, "pausing").await.pauses, [], "what is finished with is forgotten");
}

async fn a_request_is_open_until_a_run_answers_it(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let scheduled_at = noon() - TimeDelta::hours(3);
    let asked = [request("asked", What::Trigger, 1), request("asked", What::Replay { scheduled_at }, 2)];
    for request in &asked {
        accepted(&*a, request).await;
    }
    assert_eq!(wishes(&*b, "asked").await.2, asked, "whoever asks sees them, oldest first");
    let lease = held(&*b, "asked").await;
    assert_eq!(lease.requests, asked, "whoever claims sees them, too");
    let unfinished = run(&lease, asked[0].at, RunStatus::Interrupted);
    b.record(Some(&lease), &unfinished, &lease.state).await.expect("the newest fence records");
    b.release(&lease).await.expect("the store answers");
    let lease = held(&*a, "asked").await;
    assert_eq!(lease.requests, asked, "a run that does not answer leaves it open");
    let trigger = Trigger::Manual;
    let answer =
        RunRecord { request: Some(asked[0].id), trigger, ..run(&lease, asked[0].at, RunStatus::Done) };
    a.record(Some(&lease), &answer, &lease.state).await.expect("the newest fence records");
    a.release(&lease).await.expect("the store answers");
    let lease = held(&*b, "asked").await;
    assert_eq!(lease.requests, asked[1..], "an answered one is closed");
    assert_eq!(lease.state, JobState::at(noon()), "and moves no cursor");
    let trigger = Trigger::Replay;
    let answer =
        RunRecord { request: Some(asked[1].id), trigger, ..run(&lease, scheduled_at, RunStatus::Done) };
    b.record(Some(&lease), &answer, &lease.state).await.expect("the newest fence records");
    let again = RunRecord { id: Uuid::now_v7(), request: None, ..answer };
    b.record(Some(&lease), &again, &lease.state)
        .await
        .expect("a scheduled time may be replayed again and again");
    assert_eq!(wishes(&*a, "asked").await.2, [], "nothing is left");
}

async fn reset_needs_a_cursor_in_the_future(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    unchanged(&*a, &request("reset", What::Reset, 0)).await;
    let lease = held(&*a, "reset").await;
    unchanged(&*a, &request("reset", What::Reset, 0)).await;
    let asked = request("reset", What::Reset, -1);
    accepted(&*b, &asked).await;
    assert_eq!(wishes(&*a, "reset").await.2, std::slice::from_ref(&asked), "whoever runs the job sees it");
    a.release(&lease).await.expect("the store answers");
    let lease = held(&*a, "reset").await;
    assert_eq!(lease.requests, std::slice::from_ref(&asked), "so does whoever claims it");
    let trigger = Trigger::Manual;
    let answer = RunRecord { request: Some(asked.id), trigger, ..run(&lease, asked.at, RunStatus::Skipped) };
    let present = JobState::at(asked.at);
    a.finish(&lease, &answer, &present).await.expect("a cursor may go back");
    let lease = held(&*b, "reset").await;
    assert_eq!(
        (lease.state, lease.requests),
        (present, vec![]),
        "the cursor is set back, the request closed"
    );
}

async fn a_wish_to_cancel_names_the_claim_in_force(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let cancel = What::Cancel { fence: FencingToken(0) };
    accepted(&*b, &request("of-nodes", cancel, 0)).await;
    let of_nodes = wishes(&*a, "of-nodes").await.2;
    assert_eq!(of_nodes[0].what, cancel, "without a claim, it is meant for each node");

    let mut lease = held(&*a, "cancelled").await;
    let (schedule, never) = ("every 1h".to_owned(), None);
    lease.plan = Some(Plan { schedule, next_at: never, late_at: never, stuck_at: never });
    a.release(&lease).await.expect("the store answers");
    unchanged(&*b, &request("cancelled", cancel, 0)).await;
    accepted(&*b, &request("cancelled", What::Trigger, 0)).await;
    let lease = held(&*a, "cancelled").await;
    let ask = request("cancelled", cancel, 1);
    accepted(&*b, &ask).await;
    let meant = Request { what: What::Cancel { fence: lease.fence }, ..ask };
    assert_eq!(
        wishes(&*a, "cancelled").await.2,
        [meant],
        "it names the claim, and what was asked for is gone"
    );
    let stopped = run(&lease, noon() + TimeDelta::hours(1), RunStatus::Interrupted);
    a.record(Some(&lease), &stopped, &JobState::at(stopped.scheduled_at)).await.expect("recorded");
    a.release(&lease).await.expect("the store answers");
    assert_eq!(wishes(&*a, "cancelled").await.2, [], "it ends with the run that it stops");
    let lease = held(&*b, "cancelled").await;
    assert_eq!(lease.requests, [], "and is never run");
    let retrying = Retrying { scheduled_at: noon(), failed_attempts: 1, not_before: noon() };
    let failed = run(&lease, noon(), RunStatus::Retrying);
    let waits = JobState { retrying: Some(retrying), ..lease.state.clone() };
    b.record(Some(&lease), &failed, &waits).await.expect("recorded");
    b.release(&lease).await.expect("the store answers");
    accepted(&*a, &request("cancelled", cancel, 2)).await;
    assert_eq!(
        wishes(&*a, "cancelled").await.2,
        [],
        "nobody is at what waits to be tried again, so nobody is asked"
    );
}

async fn a_job_shows_how_it_stands(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let stands = async |store: &dyn Store| {
        let jobs = store.jobs().await.expect("the store answers");
        assert!(jobs.is_sorted_by_key(|row| row.job.clone()), "jobs come by name");
        jobs.into_iter().find(|row| row.job == "shown").expect("it was claimed")
    };
    let mut lease = held(&*a, "shown").await;
    let late = async || b.late(noon()).await.expect("the store answers");
    assert_eq!(late().await, []);
    let row = stands(&*b).await;
    assert_eq!((row.state, row.plan, row.paused, row.last), (JobState::at(noon()), None, None, None));
    let holder = row.held.expect("it is held");
    assert_eq!(holder.fence, lease.fence, "the holder's claim is shown");
    let (done, at) =
        (run(&lease, noon() + TimeDelta::hours(1), RunStatus::Done), noon() + TimeDelta::hours(1));
    a.record(Some(&lease), &done, &JobState::at(at)).await.expect("the newest fence records");
    let ago = |minutes| Some(noon() - TimeDelta::minutes(minutes));
    let schedule = "every 1h".to_owned();
    lease.plan = Some(Plan { schedule, next_at: ago(60), late_at: ago(59), stuck_at: ago(-60) });
    a.release(&lease).await.expect("the store answers");
    let found = late().await;
    assert_eq!(found.len(), 1, "it is the only one whose plan is overdue");
    assert_eq!((&*found[0].job, Some(found[0].scheduled_at), &found[0].held_by), ("shown", ago(60), &None));
    let lease = held(&*a, "shown").await;
    assert_eq!(late().await, [], "somebody is at it, and may be");
    a.release(&lease).await.expect("the store answers");
    accepted(&*b, &request("shown", What::Pause, 70)).await;
    assert_eq!(late().await, [], "what is paused is not late");
    let row = stands(&*b).await;
    assert_eq!((row.state, row.held), (JobState::at(at), None), "the schedule moved, and nobody has it");
    assert_eq!(row.last.map(|last| last.run), Some(done), "its last run is shown");
    assert_eq!(row.paused.map(|pause| pause.since), Some(noon() + TimeDelta::minutes(70)));
}

async fn of_many_requests_none_is_lost(bench: &dyn Bench) {
    let (a, b) = bench.stores();
    let (before, ..) = wishes(&*a, "many").await;
    let asking: Vec<_> = (0..16)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &a } else { &b });
            tokio::spawn(async move { store.request(&request("many", What::Trigger, 0)).await })
        })
        .collect();
    for asked in asking {
        let receipt = asked.await.expect("asking does not panic").expect("the store answers");
        assert_eq!(receipt, Receipt::Accepted);
    }
    let (after, _, requests) = wishes(&*a, "many").await;
    assert_eq!(requests.len(), 16, "each is open");
    assert!(after >= before + 16, "and each was news");
}
