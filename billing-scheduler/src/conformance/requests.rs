//! Control requests, and the views of jobs.

use std::sync::Arc;

use chrono::TimeDelta;
use uuid::Uuid;

use super::{
    Harness,
    shared::{accepted, control_state, held, noon, request, run, unchanged},
};
use crate::{
    job::FencingToken,
    runtime::store::{
        ClaimHint, ControlAction, ControlReceipt, ControlRequest, JobState, Pause, Retrying, RunCause,
        RunRecord, RunStatus, Store,
    },
};

pub(super) async fn reset_requires_future_cursor(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    unchanged(&*a, &request("reset", ControlAction::Reset, 0)).await;
    let lease = held(&*a, "reset").await;
    unchanged(&*a, &request("reset", ControlAction::Reset, 0)).await;
    let requested = request("reset", ControlAction::Reset, -1);
    accepted(&*b, &requested).await;
    assert_eq!(control_state(&*a, "reset").await.2, std::slice::from_ref(&requested), "a poll returns it");
    a.release(&lease).await.expect("the store is available");
    let lease = held(&*a, "reset").await;
    assert_eq!(lease.requests, std::slice::from_ref(&requested), "a claim returns it, too");
    let cause = RunCause::Manual;
    let answer =
        RunRecord { request_id: Some(requested.id), cause, ..run(&lease, requested.at, RunStatus::Skipped) };
    let present = JobState::at(requested.at);
    a.finish(&lease, &answer, &present).await.expect("a cursor may go back");
    let lease = held(&*b, "reset").await;
    assert_eq!(
        (lease.state, lease.requests),
        (present, vec![]),
        "the cursor is set back, the request closed"
    );
}

pub(super) async fn polls_agree_about_time(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let mut times = Vec::new();
    for store in [&a, &b, &a] {
        times.push(store.poll(Some(i64::MAX)).await.expect("the store is available").now);
        times.push(store.poll(None).await.expect("the store is available").now);
    }
    assert!(times.is_sorted(), "its clock goes forward: {times:?}");
    assert!(times.iter().all(|time| time.is_some() == times[0].is_some()), "always or never: {times:?}");
}

pub(super) async fn pause_is_visible_to_claim_and_poll(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let (known, nothing, _) = control_state(&*b, "pausing").await;
    assert_eq!(nothing, None, "no operator paused it yet");
    assert_eq!(
        b.poll(Some(known)).await.expect("the store is available").changed,
        None,
        "what is known is no news"
    );
    unchanged(&*a, &request("pausing", ControlAction::Resume, 0)).await;
    assert_eq!(
        b.poll(Some(known)).await.expect("the store is available").changed,
        None,
        "no change is no news"
    );
    let pause = request("pausing", ControlAction::Pause, 30);
    accepted(&*a, &pause).await;
    unchanged(&*b, &request("pausing", ControlAction::Pause, 40)).await;
    let mut expected = Pause { since: pause.at, until: None, by: pause.by, reason: pause.reason };
    let (revision, paused, _) = control_state(&*b, "pausing").await;
    assert!(revision > known, "each request is news");
    assert_eq!(paused, Some(expected.clone()), "a poll returns the pause");
    let lease = held(&*b, "pausing").await;
    assert_eq!(lease.pauses, [expected.clone()], "a claim returns it, too");
    b.release(&lease).await.expect("the store is available");

    accepted(&*b, &request("pausing", ControlAction::Resume, 90)).await;
    assert_eq!(control_state(&*a, "pausing").await.1, None, "it is resumed");
    expected.until = Some(noon() + TimeDelta::minutes(90));
    let lease = held(&*a, "pausing").await;
    assert_eq!(lease.pauses, [expected.clone()], "the claim sees the pause until the cursor is behind it");
    let row = run(&lease, noon() + TimeDelta::minutes(60), RunStatus::Paused);
    a.record(Some(&lease), &row, &JobState::at(noon() + TimeDelta::minutes(60))).await.expect("recorded");
    a.release(&lease).await.expect("the store is available");
    let lease = held(&*a, "pausing").await;
    assert_eq!(lease.pauses, [expected.clone()], "it may hold more");
    let behind = noon() + TimeDelta::minutes(120);
    let scheduled_at = noon() + TimeDelta::minutes(60);
    let retrying = Some(Retrying { scheduled_at, failed_attempts: 0, not_before: scheduled_at });
    let row = run(&lease, behind, RunStatus::Skipped);
    a.record(Some(&lease), &row, &JobState { cursor: behind, retrying }).await.expect("recorded");
    a.release(&lease).await.expect("the store is available");
    let lease = held(&*a, "pausing").await;
    assert_eq!(lease.pauses, [expected], "a time within it is still to be run");
    let row = run(&lease, behind, RunStatus::Done);
    a.record(Some(&lease), &row, &JobState::at(behind)).await.expect("recorded");
    a.release(&lease).await.expect("the store is available");
    assert_eq!(held(&*a, "pausing").await.pauses, [], "what is finished with is forgotten");
}

pub(super) async fn request_is_open_until_answered(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let scheduled_at = noon() - TimeDelta::hours(3);
    let requested = [
        request("requested", ControlAction::RunNow, 1),
        request("requested", ControlAction::Replay { scheduled_at }, 2),
    ];
    for request in &requested {
        accepted(&*a, request).await;
    }
    assert_eq!(control_state(&*b, "requested").await.2, requested, "a poll returns them, oldest first");
    let lease = held(&*b, "requested").await;
    assert_eq!(lease.requests, requested, "a claim returns them, too");
    let unfinished = run(&lease, requested[0].at, RunStatus::Interrupted);
    b.record(Some(&lease), &unfinished, &lease.state).await.expect("the newest fencing token records");
    b.release(&lease).await.expect("the store is available");
    let lease = held(&*a, "requested").await;
    assert_eq!(lease.requests, requested, "a run that does not answer leaves it open");
    let cause = RunCause::Manual;
    let answer = RunRecord {
        request_id: Some(requested[0].id),
        cause,
        ..run(&lease, requested[0].at, RunStatus::Done)
    };
    a.record(Some(&lease), &answer, &lease.state).await.expect("the newest fencing token records");
    a.release(&lease).await.expect("the store is available");
    let lease = held(&*b, "requested").await;
    assert_eq!(lease.requests, requested[1..], "an answered one is closed");
    assert_eq!(lease.state, JobState::at(noon()), "and moves no cursor");
    let cause = RunCause::Replay;
    let answer =
        RunRecord { request_id: Some(requested[1].id), cause, ..run(&lease, scheduled_at, RunStatus::Done) };
    b.record(Some(&lease), &answer, &lease.state).await.expect("the newest fencing token records");
    let again = RunRecord { id: Uuid::now_v7(), request_id: None, ..answer };
    b.record(Some(&lease), &again, &lease.state)
        .await
        .expect("a scheduled time may be replayed again and again");
    assert_eq!(control_state(&*a, "requested").await.2, [], "nothing is left");
}

pub(super) async fn cancel_names_current_claim(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let cancel = ControlAction::Cancel { fencing_token: FencingToken(0) };
    accepted(&*b, &request("of-nodes", cancel, 0)).await;
    let of_nodes = control_state(&*a, "of-nodes").await.2;
    assert_eq!(of_nodes[0].action, cancel, "without a claim, it is meant for each node");

    let mut lease = held(&*a, "cancelled").await;
    let (schedule, never) = ("every 1h".to_owned(), None);
    lease.claim_hint =
        Some(ClaimHint { schedule, next_at: never, late_at: never, stuck_at: never, replaced: Vec::new() });
    a.release(&lease).await.expect("the store is available");
    unchanged(&*b, &request("cancelled", cancel, 0)).await;
    accepted(&*b, &request("cancelled", ControlAction::RunNow, 0)).await;
    let lease = held(&*a, "cancelled").await;
    let cancellation = request("cancelled", cancel, 1);
    accepted(&*b, &cancellation).await;
    let meant = ControlRequest {
        action: ControlAction::Cancel { fencing_token: lease.fencing_token },
        ..cancellation
    };
    assert_eq!(
        control_state(&*a, "cancelled").await.2,
        [meant],
        "it names the claim, and what was requested for is gone"
    );
    let stopped = run(&lease, noon() + TimeDelta::hours(1), RunStatus::Interrupted);
    a.record(Some(&lease), &stopped, &JobState::at(stopped.scheduled_at)).await.expect("recorded");
    a.release(&lease).await.expect("the store is available");
    assert_eq!(control_state(&*a, "cancelled").await.2, [], "it ends with the run that it stops");
    let lease = held(&*b, "cancelled").await;
    assert_eq!(lease.requests, [], "and is never run");
    let retrying = Retrying { scheduled_at: noon(), failed_attempts: 1, not_before: noon() };
    let failed = run(&lease, noon(), RunStatus::Retrying);
    let waits = JobState { retrying: Some(retrying), ..lease.state.clone() };
    b.record(Some(&lease), &failed, &waits).await.expect("recorded");
    b.release(&lease).await.expect("the store is available");
    accepted(&*a, &request("cancelled", cancel, 2)).await;
    assert_eq!(
        control_state(&*a, "cancelled").await.2,
        [],
        "no process runs a pending retry, so no request is opened"
    );
}

pub(super) async fn job_row_shows_current_state(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let row_of = async |store: &dyn Store| {
        let jobs = store.jobs().await.expect("the store is available");
        assert!(jobs.is_sorted_by_key(|row| row.job.clone()), "jobs come by name");
        jobs.into_iter().find(|row| row.job == "shown").expect("it was claimed")
    };
    let mut lease = held(&*a, "shown").await;
    let late = async || b.late(noon()).await.expect("the store is available");
    assert_eq!(late().await, []);
    let row = row_of(&*b).await;
    assert_eq!(
        (row.state, row.claim_hint, row.paused, row.last_run),
        (JobState::at(noon()), None, None, None)
    );
    let holder = row.lease.expect("it is held");
    assert_eq!(holder.fencing_token, lease.fencing_token, "the holder's claim is shown");
    let (done, at) =
        (run(&lease, noon() + TimeDelta::hours(1), RunStatus::Done), noon() + TimeDelta::hours(1));
    a.record(Some(&lease), &done, &JobState::at(at)).await.expect("the newest fencing token records");
    let ago = |minutes| Some(noon() - TimeDelta::minutes(minutes));
    let schedule = "every 1h".to_owned();
    let (next_at, late_at, stuck_at) = (ago(60), ago(59), ago(-60));
    lease.claim_hint = Some(ClaimHint { schedule, next_at, late_at, stuck_at, replaced: Vec::new() });
    a.release(&lease).await.expect("the store is available");
    let found = late().await;
    assert_eq!(found.len(), 1, "it is the only one whose claim hint is overdue");
    assert_eq!((&*found[0].job, Some(found[0].scheduled_at), &found[0].held_by), ("shown", ago(60), &None));
    let lease = held(&*a, "shown").await;
    assert_eq!(late().await, [], "a process runs it in time");
    a.release(&lease).await.expect("the store is available");
    accepted(&*b, &request("shown", ControlAction::Pause, 70)).await;
    assert_eq!(late().await, [], "what is paused is not late");
    let row = row_of(&*b).await;
    assert_eq!((row.state, row.lease), (JobState::at(at), None), "the cursor moved, and the lease is free");
    assert_eq!(row.last_run.map(|last| last.run), Some(done), "its last run is shown");
    assert_eq!(row.paused.map(|pause| pause.since), Some(noon() + TimeDelta::minutes(70)));
}

pub(super) async fn concurrent_requests_are_all_kept(harness: &dyn Harness) {
    let (a, b) = harness.stores();
    let (before, ..) = control_state(&*a, "many").await;
    let requesting: Vec<_> = (0..16)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &a } else { &b });
            tokio::spawn(async move { store.request(&request("many", ControlAction::RunNow, 0)).await })
        })
        .collect();
    for requested in requesting {
        let receipt = requested.await.expect("the request does not panic").expect("the store is available");
        assert_eq!(receipt, ControlReceipt::Accepted);
    }
    let (after, _, requests) = control_state(&*a, "many").await;
    assert_eq!(requests.len(), 16, "each is open");
    assert!(after >= before + 16, "and each was news");
}
