//! Tests of the plugin alone: no scheduler, no database, and a manual clock.

use std::{fs, path::Path, sync::Arc, time::Duration};

use billing_scheduler::{
    BlockingJob, BuildError, FencingToken, JobContext, JobError, ManualClock, Occurrence, Outcome, Registry,
    StopHandle,
    chrono::{DateTime, TimeDelta, Utc},
    serde_json::json,
};
use sweep_plugin::{Sweep, SweepParams};

fn noon() -> DateTime<Utc> {
    "2026-01-05T12:00:00Z".parse().expect("an instant")
}

/// Creates a file that was last written this number of hours before noon.
fn file(folder: &Path, name: &str, hours: i64) {
    let file = fs::File::create(folder.join(name)).expect("creating the file");
    file.set_modified((noon() - TimeDelta::hours(hours)).into()).expect("setting its time");
}

fn sweep(folder: &Path) -> Sweep {
    let params = json!({ "folder": folder, "older-than-days": 2 });
    let params: SweepParams = billing_scheduler::serde_json::from_value(params).expect("valid parameters");
    Sweep::new(params)
}

#[test]
fn files_are_removed_by_age() {
    let folder = tempfile::tempdir().expect("creating a folder");
    for (name, hours) in [("old", 49), ("young", 47), ("new", 0)] {
        file(folder.path(), name, hours);
    }
    let outcome = sweep(folder.path()).run(&JobContext::for_test("sweep", noon())).expect("the run succeeds");
    assert_eq!(outcome, Outcome::Done { items: 1, details: json!({ "removed": 1 }) });
    assert!(!folder.path().join("old").exists() && folder.path().join("young").exists());
}

#[test]
fn expired_lease_stops_run() {
    let folder = tempfile::tempdir().expect("creating a folder");
    file(folder.path(), "old", 49);
    let clock = ManualClock::at(noon());
    let occurrence = Occurrence { job: "sweep".to_owned(), scheduled_at: noon() };
    let ctx = JobContext::new(occurrence, 1, FencingToken(1), Arc::new(clock.clone()), StopHandle::new());
    ctx.stop_handle().trust_lease_until(Duration::from_secs(8));
    clock.advance(Duration::from_secs(8));
    let outcome = sweep(folder.path()).run(&ctx).expect("the run does not fail");
    assert_eq!(outcome, Outcome::Interrupted { items: 0 });
    assert!(folder.path().join("old").exists());
}

#[test]
fn missing_folder_is_fatal() {
    let result = sweep(Path::new("/no/such/folder")).run(&JobContext::for_test("sweep", noon()));
    assert!(matches!(result, Err(JobError::Fatal(_))), "{result:?}");
}

#[test]
fn invalid_parameters_are_rejected() {
    let mut registry = Registry::new();
    sweep_plugin::register(&mut registry);
    let error = registry.check("acme.sweep", json!({ "folder": "/tmp", "older-than-days": -1 }));
    assert!(matches!(error, Err(BuildError::Params { path, .. }) if path == ["older-than-days"]));
}
