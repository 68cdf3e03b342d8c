//! The history: each record is written once.

use std::time::Duration;

use chrono::TimeDelta;
use uuid::Uuid;

use super::{
    Harness,
    shared::{accepted, busy, control_state, held, hint_at, noon, request, run},
};
use crate::{
    job::FencingToken,
    runtime::store::{
        ControlAction, JobState, Lease, OccurrenceRange, Retrying, RunCause, RunFilter, RunRecord, RunStatus,
        StoreError,
    },
};

pub(super) async fn record_updates_state_with_history(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let lease = held(&*a, "recorded").await;
    let failed_at = noon() + TimeDelta::hours(1);
    let retrying = Retrying {
        scheduled_at: failed_at,
        failed_attempts: 1,
        not_before: failed_at + TimeDelta::seconds(15),
    };
    let state = JobState { cursor: noon(), retrying: Some(retrying) };
    let failed = RunRecord { error: Some("boom".to_owned()), ..run(&lease, failed_at, RunStatus::Retrying) };
    a.record(Some(&lease), &failed, &state).await.expect("the newest fencing token records");
    a.release(&lease).await.expect("the store is available");
    let lease = held(&*b, "recorded").await;
    assert_eq!(lease.state, state, "the state is returned as it was recorded");
    let done = RunRecord { attempt: 2, ..run(&lease, failed_at, RunStatus::Done) };
    b.record(Some(&lease), &done, &JobState::at(failed_at)).await.expect("the newest fencing token records");
    b.release(&lease).await.expect("the store is available");
    assert_eq!(held(&*a, "recorded").await.state, JobState::at(failed_at), "a finished retry is removed");
}

pub(super) async fn occurrence_is_finished_once(harness: &dyn Harness) {
    let (a, _) = harness.stores();
    let lease = held(&*a, "once").await;
    let at = noon() + TimeDelta::hours(1);
    a.record(Some(&lease), &run(&lease, at, RunStatus::Done), &JobState::at(at))
        .await
        .expect("the first record is accepted");
    let later = JobState::at(at + TimeDelta::hours(1));
    let again = a.record(Some(&lease), &run(&lease, at, RunStatus::Done), &later).await;
    assert!(
        matches!(again, Err(StoreError::AlreadyFinished { .. })),
        "the same occurrence is not finished twice"
    );
    assert_eq!(harness.runs("once").await, 1, "a rejected record leaves no row");
    a.release(&lease).await.expect("the store is available");
    assert_eq!(held(&*a, "once").await.state.cursor, at, "nor does it move the cursor");
}

pub(super) async fn every_attempt_is_recorded(harness: &dyn Harness) {
    let (a, _) = harness.stores();
    let lease = held(&*a, "attempts").await;
    let at = noon() + TimeDelta::hours(1);
    for status in [RunStatus::Retrying, RunStatus::Interrupted, RunStatus::Retrying, RunStatus::Dead] {
        a.record(Some(&lease), &run(&lease, at, status), &JobState::at(noon()))
            .await
            .expect("each record is accepted");
    }
    assert_eq!(harness.runs("attempts").await, 4, "each attempt at one occurrence has a row");
}

pub(super) async fn any_text_is_recorded(harness: &dyn Harness) {
    let (a, _) = harness.stores();
    let lease = held(&*a, "any-text").await;
    let text = "a NUL \0, 'it''s' \"$1\"; -- \\' /* ? %s\n\u{1f980} and \\u0000";
    let record = RunRecord {
        reason: Some(text.to_owned()),
        error: Some(text.to_owned()),
        details: serde_json::json!({ text: [text] }),
        ..run(&lease, noon() + TimeDelta::hours(1), RunStatus::Dead)
    };
    a.record(Some(&lease), &record, &JobState::at(record.scheduled_at)).await.expect("any text is recorded");
    let rows = a.runs(&RunFilter { job: Some("any-text".to_owned()), ..RunFilter::default() }).await;
    let error = rows.expect("the store is available").remove(0).run.error.expect("a failed run has an error");
    let (_, kept) = text.split_once('\0').expect("the text has a NUL");
    assert!(error.ends_with(kept), "the text after a NUL is kept: {error:?}");
    a.release(&lease).await.expect("the store is available");
}

pub(super) async fn node_run_needs_no_lease(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let no_lease = Lease {
        job: "node".to_owned(),
        fencing_token: FencingToken(0),
        ttl: Duration::ZERO,
        state: JobState::at(noon()),
        claim_hint: None,
        pauses: Vec::new(),
        requests: Vec::new(),
    };
    let at = noon() + TimeDelta::hours(1);
    for store in [a, b] {
        let run = RunRecord { per_node: true, ..run(&no_lease, at, RunStatus::Done) };
        store.record(None, &run, &JobState::at(at)).await.expect("each node records its own run");
    }
    assert_eq!(harness.runs("node").await, 2, "two nodes finish the same scheduled time once each");
}

pub(super) async fn finish_records_and_releases(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let requested = request("last", ControlAction::RunNow, 0);
    accepted(&*a, &requested).await;
    let mut lease = held(&*a, "last").await;
    let at = noon() + TimeDelta::hours(1);
    let hint = hint_at(at);
    lease.claim_hint = Some(hint.clone());
    let done = RunRecord { request_id: Some(requested.id), ..run(&lease, at, RunStatus::Done) };
    a.finish(&lease, &done, &JobState::at(at)).await.expect("the newest fencing token records");
    assert_eq!(harness.runs("last").await, 1, "the record leaves a row");
    assert_eq!(control_state(&*b, "last").await.2, [], "and closes the request that it answers");
    let next = held(&*b, "last").await;
    assert_eq!(next.state, JobState::at(at), "the state moves with the row");
    assert_eq!(next.claim_hint, Some(hint.clone()), "the claim hint is stored");

    lease.claim_hint = None;
    let late = run(&lease, at + TimeDelta::hours(1), RunStatus::Done);
    let open = request("last", ControlAction::RunNow, 1);
    accepted(&*a, &open).await;
    let late = RunRecord { request_id: Some(open.id), ..late };
    let answer = a.finish(&lease, &late, &JobState::at(late.scheduled_at)).await;
    assert!(matches!(answer, Err(StoreError::LeaseLost { .. })), "an old fencing token records nothing");
    assert_eq!(harness.runs("last").await, 1, "a rejected record leaves no row");
    assert_eq!(control_state(&*b, "last").await.2.len(), 1, "nor does it close a request");
    assert!(busy(&*a, "last").await, "nor does it release the lease of the new holder");
    let again = b.finish(&next, &done, &JobState::at(at)).await;
    assert!(matches!(again, Err(StoreError::AlreadyFinished { .. })), "an occurrence is finished once");
    b.release(&next).await.expect("the store is available");
    let last = held(&*a, "last").await;
    assert_eq!((last.state, last.claim_hint), (JobState::at(at), Some(hint)), "nor does it move the job");
}

pub(super) async fn history_is_read_as_written(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let lease = held(&*a, "history").await;
    let at = |hours| noon() + TimeDelta::hours(hours);
    let range = OccurrenceRange { from: at(2), count: 3 };
    let requested = Uuid::now_v7();
    let rows = [
        RunRecord { reason: Some("early".to_owned()), ..run(&lease, at(1), RunStatus::Done) },
        RunRecord {
            range: Some(range),
            details: serde_json::Value::Null,
            ..run(&lease, at(4), RunStatus::Paused)
        },
        RunRecord {
            request_id: Some(requested),
            cause: RunCause::Replay,
            error: Some("boom".to_owned()),
            ..run(&lease, at(5), RunStatus::Dead)
        },
        run(&lease, at(6), RunStatus::Missed),
    ];
    for row in &rows {
        a.record(Some(&lease), row, &JobState::at(row.scheduled_at)).await.expect("each record is accepted");
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
        (RunFilter { request_id: Some(requested), ..RunFilter::default() }, vec![2]),
        (RunFilter { job: Some("unknown".to_owned()), ..RunFilter::default() }, vec![]),
    ] {
        let found = b.runs(&filter).await.expect("the store is available");
        assert!(found.iter().all(|row| !row.daemon_id.is_empty()), "a row has the name of its writer");
        let found: Vec<_> = found.into_iter().map(|row| row.run).collect();
        let expected: Vec<_> = expected.into_iter().map(|index: usize| rows[index].clone()).collect();
        assert_eq!(found, expected, "the rows of {filter:?}, newest first");
    }
}
