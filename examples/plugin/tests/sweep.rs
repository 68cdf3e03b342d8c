//! The plugin alone: no scheduler, no database, and a clock that stands still.

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

/// A file that was last written so many hours before noon.
fn file(folder: &Path, name: &str, hours: i64) {
    let file = fs::File::create(folder.join(name)).expect("a file is made");
    file.set_modified((noon() - TimeDelta::hours(hours)).into()).expect("its time is set");
}

fn sweep(folder: &Path) -> Sweep {
    let params = json!({ "folder": folder, "older-than-days": 2 });
    let params: SweepParams = billing_scheduler::serde_json::from_value(params).expect("the parameters fit");
    Sweep::new(params)
}

#[test]
fn files_are_removed_by_their_age_at_the_scheduled_time() {
    let folder = tempfile::tempdir().expect("a folder is made");
    for (name, hours) in [("old", 49), ("young", 47), ("new", 0)] {
        file(folder.path(), name, hours);
    }
    let outcome = sweep(folder.path()).run(&JobContext::for_test("sweep", noon())).expect("it works");
    assert_eq!(outcome, Outcome::Done { items: 1, details: json!({ "removed": 1 }) });
    assert!(!folder.path().join("old").exists() && folder.path().join("young").exists());
}

#[test]
fn it_stops_when_its_lease_is_not_to_be_trusted_any_more() {
    let folder = tempfile::tempdir().expect("a folder is made");
    file(folder.path(), "old", 49);
    let clock = ManualClock::at(noon());
    let occurrence = Occurrence { job: "sweep".to_owned(), scheduled_at: noon() };
    let ctx = JobContext::new(occurrence, 1, FencingToken(1), Arc::new(clock.clone()), StopHandle::new());
    ctx.stop_handle().trust_lease_until(Duration::from_secs(8));
    clock.advance(Duration::from_secs(8));
    let outcome = sweep(folder.path()).run(&ctx).expect("no failure");
    assert_eq!(outcome, Outcome::Interrupted { items: 0 });
    assert!(folder.path().join("old").exists());
}

#[test]
fn a_folder_that_is_not_there_is_final() {
    let result = sweep(Path::new("/no/such/folder")).run(&JobContext::for_test("sweep", noon()));
    assert!(matches!(result, Err(JobError::Fatal(_))), "{result:?}");
}

#[test]
fn wrong_parameters_are_refused() {
    let mut registry = Registry::new();
    sweep_plugin::register(&mut registry);
    let error = registry.check("acme.sweep", json!({ "folder": "/tmp", "older-than-days": -1 }));
    assert!(matches!(error, Err(BuildError::Params { path, .. }) if path == ["older-than-days"]));
}
