//! Requested runs: run now and replay.

use std::{sync::Arc, time::Duration};

use billing_scheduler::{Control, JobSpec, RunFilter};

use crate::support::{Act, World, at, daemon, each_node, hourly};

#[tokio::test]
async fn manual_run_ignores_pause_and_schedule() {
    let world = World::new("13:30:00", &[], |_| {});
    let spec = JobSpec::new("job", "script", hourly());
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    for scheduler in [&world.scheduler, &other] {
        scheduler.tick();
        scheduler.idle().await;
    }
    world.control.pause("job", "tea").await.unwrap();
    let request = world.control.run_now("job", Some("to see it")).await.unwrap();
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(1));
        for scheduler in [&world.scheduler, &other] {
            scheduler.tick();
        }
        world.scheduler.idle().await;
        other.idle().await;
    }
    assert_eq!(world.history(), ["done manual 13:30"]);
    let filter = RunFilter { request_id: Some(request), ..RunFilter::default() };
    let answer = &world.control.runs(&filter).await.unwrap()[0];
    assert_eq!(answer.run.reason.as_deref(), Some("requested by ada: to see it"));
    world.control.resume("job", None).await.unwrap();
    world.tick_at("14:00:00").await;
    world.two_seconds().await;
    assert_eq!(world.history()[1..], ["done schedule 14:00"], "the schedule did not notice");
}

#[tokio::test]
async fn request_for_unknown_job_is_rejected() {
    let world = World::new("13:30:00", &[], |_| {});
    let bob = Control::new(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), "bob");
    // The scheduler knows the job before its first run, but the store does not.
    assert!(world.control.run_now("job", None).await.is_ok());
    for (control, job) in [(&world.control, "jbo"), (&bob, "job")] {
        let refused = [
            control.run_now(job, None).await.map(drop),
            control.replay(job, at("12:00:00"), None).await.map(drop),
        ];
        for refused in refused {
            let error = refused.expect_err("the job is unknown");
            assert_eq!(error.to_string(), format!("unknown job `{job}`"));
        }
    }
    assert_eq!(world.store.audit().len(), 1, "what is refused is not written down");
    world.two_seconds().await;
    assert!(bob.run_now("job", None).await.is_ok(), "now the store has seen it");
    let sure = Control::new(Arc::new(world.store.clone()), Arc::new(world.clock.clone()), "eve");
    assert!(sure.with_known_jobs(|job| job == "new").run_now("new", None).await.is_ok());
}

#[tokio::test]
async fn manual_run_waits_for_current_run() {
    let world = World::new("13:59:00", &[Act::WaitForStop], |_| {});
    world.tick().await;
    world.begin_at("14:00:00").await;
    let scheduled = world.store.runs().len();
    world.control.run_now("job", None).await.unwrap();
    for _ in 0..5 {
        world.clock.advance(Duration::from_secs(1));
        world.scheduler.tick();
        world.scheduler.renew_leases().await;
        tokio::task::yield_now().await;
    }
    assert_eq!(world.store.runs().len(), scheduled, "the first one is still at it");
    world.control.cancel("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(
        world.history(),
        ["interrupted schedule 14:00"],
        "a cancellation withdraws what has not begun"
    );
    world.control.run_now("job", None).await.unwrap();
    world.two_seconds().await;
    assert_eq!(world.history()[1..], ["done manual 14:00"]);
}

#[tokio::test]
async fn failed_replay_is_not_retried() {
    let world = World::new("13:59:00", &[Act::Fail, Act::Fail], |spec| spec.retry.max_attempts = 1);
    world.tick().await;
    world.tick_at("14:00:00").await;
    for _ in 0..2 {
        world.control.replay("job", at("14:00:00"), Some("repaired")).await.unwrap();
        world.two_seconds().await;
    }
    assert_eq!(world.history(), ["dead schedule 14:00", "dead replay 14:00", "done replay 14:00"]);
    assert_eq!(world.control.jobs().await.unwrap()[0].state.cursor, at("14:00:00"), "the cursor stays");
}

#[tokio::test]
async fn manual_run_interrupted_by_drain_is_repeated() {
    let world = World::new("13:30:00", &[Act::WaitForStop], |_| {});
    world.tick().await;
    world.control.run_now("job", None).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    world.scheduler.tick();
    world.script.started.notified().await;
    world.scheduler.drain(Duration::ZERO).await;
    let spec = JobSpec::new("job", "script", hourly());
    let next = daemon(&world.store.as_holder("next"), &world.clock, &world.script, spec);
    next.tick();
    next.idle().await;
    assert_eq!(world.history(), ["interrupted manual 13:30", "done manual 13:30"]);
    let ids: Vec<_> = world.store.runs().iter().map(|run| run.request_id.is_some()).collect();
    assert_eq!(ids, [false, true], "only the second answers");
}

#[tokio::test]
async fn idempotency_key_follows_request_not_attempt() {
    let acts = [Act::Fail, Act::Fail, Act::WaitForStop];
    let world = World::new("13:59:00", &acts, |spec| {
        spec.retry.max_attempts = 2;
        spec.retry.backoff = Duration::from_secs(1);
    });
    world.tick().await;
    world.tick_at("14:00:00").await;
    world.tick_at("14:00:02").await;
    world.script.started.notified().await;
    // A request that a shutdown interrupts runs again with the same id.
    let mut requests = vec![world.control.run_now("job", None).await.unwrap()];
    world.clock.advance(Duration::from_secs(1));
    world.scheduler.tick();
    world.script.started.notified().await;
    world.scheduler.interrupt();
    world.scheduler.drain(Duration::from_secs(30)).await;
    let spec = JobSpec::new("job", "script", hourly());
    let next = daemon(&world.store.as_holder("next"), &world.clock, &world.script, spec);
    requests.extend([
        world.control.run_now("job", None).await.unwrap(),
        world.control.run_now("job", None).await.unwrap(),
        world.control.replay("job", at("14:00:00"), None).await.unwrap(),
    ]);
    for _ in 0..2 {
        next.tick();
        next.idle().await;
        world.clock.advance(Duration::from_secs(1));
    }
    let scheduled = "job@1767621600".to_owned();
    let [first, second, third, replay] =
        requests.try_into().map(|ids: [_; 4]| ids.map(|id| format!("job@{id}"))).unwrap();
    let expected = [scheduled.clone(), scheduled, first.clone(), first, second, third, replay];
    assert_eq!(*world.script.keys.lock().unwrap(), expected);
}

#[tokio::test]
async fn request_older_than_hour_is_missed() {
    let world = World::new("13:30:00", &[], |_| {});
    world.control.run_now("job", None).await.unwrap();
    world.clock.advance(Duration::from_secs(3_601));
    world.tick().await;
    assert_eq!(world.history(), ["missed manual 13:30"]);
    let reason = world.store.runs()[0].reason.clone();
    assert_eq!(reason.as_deref(), Some("requested by ada, but no daemon ran it within an hour"));
}

#[tokio::test]
async fn request_during_manual_run_is_kept() {
    let world = World::new("13:30:00", &[Act::Pause], each_node);
    world.tick().await;
    world.control.run_now("job", None).await.unwrap();
    world.begin_at("13:30:01").await;
    world.control.run_now("job", None).await.unwrap();
    world.poll().await;
    world.proceed().await;
    world.two_seconds().await;
    assert_eq!(world.history(), ["done manual 13:30"; 2]);
}

#[tokio::test]
async fn interrupted_request_moves_to_other_node() {
    let world = World::new("13:30:00", &[Act::WaitForStop], each_node);
    let mut spec = JobSpec::new("job", "script", hourly());
    each_node(&mut spec);
    let other = daemon(&world.store.as_holder("other"), &world.clock, &world.script, spec);
    let other_looks = async || {
        world.clock.advance(Duration::from_secs(1));
        other.tick();
        other.idle().await;
    };
    world.tick().await;
    other_looks().await;
    world.control.run_now("job", None).await.unwrap();
    world.begin_at("13:30:02").await;
    other_looks().await;
    world.scheduler.drain(Duration::ZERO).await;
    other_looks().await;
    other_looks().await;
    assert_eq!(world.history(), ["interrupted manual 13:30", "done manual 13:30"]);
}

#[tokio::test]
async fn every_request_is_in_audit_log() {
    let world = World::new("13:30:00", &[], |_| {});
    world.control.pause("job", "tea").await.unwrap();
    world.control.pause("job", "more tea").await.unwrap();
    world.control.run_now("job", None).await.unwrap();
    world.control.resume("job", Some("done")).await.unwrap();
    let audit: Vec<_> = world
        .store
        .audit()
        .into_iter()
        .map(|request| (request.action.as_str(), request.by, request.reason.unwrap_or_default()))
        .collect();
    let ada = || "ada".to_owned();
    assert_eq!(
        audit,
        [
            ("pause", ada(), "tea".to_owned()),
            ("run_now", ada(), String::new()),
            ("resume", ada(), "done".to_owned())
        ]
    );
}
