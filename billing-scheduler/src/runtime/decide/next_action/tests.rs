use std::time::Duration;

use super::{hints::claim_hint, *};
use crate::runtime::{decide::spec::Misfire, store::Retrying};

fn at(clock: &str) -> DateTime<Utc> {
    format!("2026-01-05T{clock}Z").parse().expect("a time of day")
}

fn hourly() -> Schedule {
    Schedule::every(Duration::from_hours(1)).expect("valid")
}

fn pause(since: &str, until: Option<&str>) -> Pause {
    Pause { since: at(since), until: until.map(at), by: "ada".to_owned(), reason: Some("tea".to_owned()) }
}

fn request(action: ControlAction, requested: &str) -> ControlRequest {
    let (job, by) = ("job".to_owned(), "ada".to_owned());
    ControlRequest { id: Uuid::nil(), job, action, by, reason: None, at: at(requested) }
}

/// Returns a short description of the actions of an hourly job's lease cycle.
fn check(job: Job<'_>, now: &str, expected: &str) {
    let mut state = JobState::at(at(job.cursor));
    if let Some(not_before) = job.retry {
        let (scheduled_at, not_before) = (at("10:00:00"), at(not_before));
        let failed_attempts = u32::from(!job.has_not_begun);
        state.retrying = Some(Retrying { scheduled_at, failed_attempts, not_before });
    }
    let replaced = |&(schedule, until): &(&str, &str)| ReplacedSchedule {
        schedule: schedule.to_owned(),
        until: at(until),
    };
    let hint = ClaimHint {
        replaced: job.replaced.iter().map(replaced).collect(),
        ..claim_hint(&JobSpec::new("job", "kind", hourly()), &state, &[])
    };
    let snapshot = JobSnapshot { state, claim_hint: Some(hint), pauses: job.pauses, requests: job.requests };
    let spec = JobSpec { misfire: job.misfire, ..JobSpec::new("job", "kind", hourly()) };
    let time = |at: DateTime<Utc>| at.format("%H:%M").to_string();
    let actual = match next_action(&spec, &snapshot, at(now)).expect("an hourly schedule can be computed") {
        Action::Run(run) => format!("{} run of {}", run.cause.as_str(), time(run.scheduled_at)),
        Action::Skip(pass) => {
            format!("{} from {} until {}", pass.status.as_str(), time(pass.from), time(pass.until))
        }
        Action::Refuse { .. } => "refuse".to_owned(),
        Action::Reset { .. } => "reset".to_owned(),
        Action::Wait(until) => format!("wait until {}", time(until)),
    };
    assert_eq!(actual, expected, "at {now}");
}

#[derive(Default)]
struct Job<'a> {
    cursor: &'a str,
    retry: Option<&'a str>,
    has_not_begun: bool,
    /// The schedules before the hourly one, and until when they were in force.
    replaced: &'a [(&'a str, &'a str)],
    pauses: Vec<Pause>,
    requests: Vec<ControlRequest>,
    misfire: Misfire,
}

#[test]
fn paused_times_are_skipped_together() {
    let paused = |until| vec![pause("10:30:00", until)];
    let job = |cursor, until| Job { cursor, pauses: paused(until), ..Job::default() };
    check(job("10:00:00", None), "14:10:00", "wait until 14:11");
    check(job("10:00:00", Some("14:05:00")), "14:10:00", "paused from 11:00 until 14:00");
    check(job("14:00:00", Some("14:05:00")), "14:10:00", "wait until 15:00");
    // The instant of resumption is no longer paused.
    check(job("10:00:00", Some("14:00:00")), "14:00:00", "paused from 11:00 until 13:00");
    check(job("13:00:00", Some("14:00:00")), "14:00:00", "schedule run of 14:00");
    // A pause between two scheduled times leaves no row.
    check(job("10:00:00", Some("10:40:00")), "11:00:00", "schedule run of 11:00");
}

#[test]
fn time_due_before_pause_is_kept() {
    let job = |cursor, misfire| Job {
        cursor,
        misfire,
        pauses: vec![pause("10:30:00", Some("14:05:00"))],
        ..Job::default()
    };
    check(job("08:00:00", Misfire::Coalesce), "14:10:00", "schedule run of 10:00");
    check(job("08:00:00", Misfire::CatchUp), "14:10:00", "schedule run of 09:00");
    check(job("08:00:00", Misfire::Skip), "14:10:00", "skipped from 09:00 until 10:00");
    let retrying = |pauses| Job { cursor: "09:00:00", retry: Some("10:01:00"), pauses, ..Job::default() };
    check(retrying(vec![pause("10:00:30", None)]), "10:02:00", "wait until 10:03");
    check(retrying(vec![pause("10:00:30", Some("12:10:00"))]), "12:20:00", "schedule run of 10:00");
}

#[test]
fn pause_skips_time_without_attempt() {
    let job = |has_not_begun, until| Job {
        cursor: "12:00:00",
        retry: Some("10:00:00"),
        has_not_begun,
        pauses: vec![pause("09:30:00", Some(until))],
        ..Job::default()
    };
    check(job(true, "10:30:00"), "12:20:00", "paused from 10:00 until 10:00");
    check(job(true, "10:00:00"), "12:20:00", "schedule run of 10:00");
    check(job(false, "10:30:00"), "12:20:00", "schedule run of 10:00");
}

#[test]
fn separate_pauses_are_recorded_separately() {
    let pauses = vec![pause("10:30:00", Some("12:30:00")), pause("13:30:00", Some("15:30:00"))];
    let job = |cursor| Job { cursor, pauses: pauses.clone(), ..Job::default() };
    check(job("10:00:00"), "16:10:00", "paused from 11:00 until 12:00");
    check(job("12:00:00"), "16:10:00", "schedule run of 13:00");
    check(job("13:00:00"), "16:10:00", "paused from 14:00 until 15:00");
    check(job("15:00:00"), "16:10:00", "schedule run of 16:00");
}

#[test]
fn fresh_request_precedes_pause() {
    let replay = ControlAction::Replay { scheduled_at: at("03:00:00") };
    let job = |what, pauses| Job {
        cursor: "08:00:00",
        requests: vec![request(what, "14:09:59")],
        pauses,
        ..Job::default()
    };
    check(job(ControlAction::RunNow, vec![]), "14:10:00", "manual run of 14:09");
    check(job(ControlAction::RunNow, vec![pause("10:00:00", None)]), "14:10:00", "manual run of 14:09");
    check(job(replay, vec![]), "14:10:00", "replay run of 03:00");
    check(job(ControlAction::RunNow, vec![]), "15:09:59", "manual run of 14:09");
    check(job(ControlAction::RunNow, vec![]), "15:10:00", "refuse");
}

#[test]
fn replaced_schedule_follows_misfire_policy() {
    let edited = [("every 30m", "10:45:00")];
    let job = |cursor, misfire| Job { cursor, misfire, replaced: &edited, ..Job::default() };
    // Half-hourly until 10:45, hourly from then on: 10:30 was done, and 11:00 is the next of both.
    check(job("10:30:00", Misfire::Coalesce), "10:45:00", "wait until 11:00");
    // 10:30 was due and not done.
    check(job("10:00:00", Misfire::Coalesce), "10:45:00", "schedule run of 10:30");
    check(job("10:00:00", Misfire::Skip), "10:45:00", "skipped from 10:30 until 10:30");
    // Several were due. None of the hours before the edit was.
    check(job("08:40:00", Misfire::Coalesce), "12:10:00", "schedule run of 10:30");
    check(job("08:40:00", Misfire::Skip), "12:10:00", "skipped from 09:00 until 10:30");
    for (cursor, run) in
        [("08:40:00", "09:00"), ("09:00:00", "09:30"), ("10:00:00", "10:30"), ("10:30:00", "11:00")]
    {
        check(job(cursor, Misfire::CatchUp), "12:10:00", &format!("schedule run of {run}"));
    }
}

#[test]
fn times_before_edit_are_rescheduled() {
    let daily = [("0 23 * * * in UTC", "10:45:00")];
    let job = |cursor| Job { cursor, replaced: &daily, ..Job::default() };
    check(job("03:15:00"), "10:45:00", "rescheduled from 04:00 until 10:00");
    check(job("03:15:00"), "14:10:00", "rescheduled from 04:00 until 10:00");
    check(job("10:00:00"), "10:45:00", "wait until 11:00");
    let unknown = [("by the moon", "10:45:00")];
    check(
        Job { cursor: "08:00:00", replaced: &unknown, ..Job::default() },
        "10:45:00",
        "rescheduled from 09:00 until 10:00",
    );
    // A clock was set back after the edit.
    check(job("08:00:00"), "09:10:00", "rescheduled from 09:00 until 09:00");
}

#[test]
fn replaced_schedules_follow_each_other() {
    // It was removed at 09:10, added again at 10:10, and edited at 11:10.
    let replaced = [("every 20m", "09:10:00"), ("no schedule", "10:10:00"), ("every 15m", "11:10:00")];
    let expected = [
        ("08:20:00", "schedule run of 08:40"),
        ("08:40:00", "schedule run of 09:00"),
        ("09:00:00", "schedule run of 10:15"),
        ("10:15:00", "schedule run of 10:30"),
        ("10:45:00", "schedule run of 11:00"),
        ("11:00:00", "schedule run of 12:00"),
    ];
    for (cursor, expected) in expected {
        check(
            Job { cursor, misfire: Misfire::CatchUp, replaced: &replaced, ..Job::default() },
            "12:30:00",
            expected,
        );
    }
}

#[test]
fn schedule_edited_during_pause_runs_nothing() {
    let job = |cursor, since, replaced| Job {
        cursor,
        pauses: vec![pause(since, Some("14:05:00"))],
        replaced,
        ..Job::default()
    };
    // The hours before the pause were not due by the schedule of then.
    let daily = &[("0 23 * * * in UTC", "13:10:00")];
    check(job("08:00:00", "10:40:00", daily), "14:10:00", "rescheduled from 09:00 until 13:00");
    check(job("13:00:00", "10:40:00", daily), "14:10:00", "paused from 14:00 until 14:00");
    // 10:30 was due before the pause, and not done. What came after that came while the job was paused.
    let half = &[("every 30m", "13:10:00")];
    check(job("10:00:00", "10:40:00", half), "14:10:00", "schedule run of 10:30");
    check(job("10:30:00", "10:40:00", half), "14:10:00", "paused from 11:00 until 13:00");
}

#[test]
fn edits_are_added_to_hint() {
    let spec = JobSpec::new("job", "kind", hourly());
    let replaced =
        |schedule: &str, until| ReplacedSchedule { schedule: schedule.to_owned(), until: at(until) };
    let hint = |schedule: &str, replaced: &[ReplacedSchedule]| ClaimHint {
        schedule: schedule.to_owned(),
        replaced: replaced.to_vec(),
        ..claim_hint(&spec, &JobState::at(at("08:00:00")), &[])
    };
    let now = at("12:00:00");
    let edited = |hint: &ClaimHint, edits: &[ReplacedSchedule]| {
        edited_hint(&spec, hint, edits, now).map(|hint| (hint.schedule, hint.replaced))
    };
    let every = |replaced: &[ReplacedSchedule]| Some(("every 1h".to_owned(), replaced.to_vec()));
    assert_eq!(edited(&hint("every 1h", &[]), &[]), None);
    // Another process left it, or this one before it was started again.
    assert_eq!(edited(&hint("every 2h", &[]), &[]), every(&[replaced("every 2h", "12:00:00")]));
    let edits = [replaced("every 2h", "10:00:00"), replaced("every 3h", "11:00:00")];
    assert_eq!(edited(&hint("every 2h", &[]), &edits), every(&edits));
    assert_eq!(edited(&hint("every 3h", &edits[..1]), &edits), every(&edits));
    assert_eq!(edited(&hint("every 1h", &edits), &[]), None, "they are stored");
    // A clock was set back.
    let ahead = [replaced("every 2h", "13:00:00")];
    assert_eq!(edited(&hint("every 1h", &ahead), &[]), every(&[replaced("every 2h", "12:00:00")]));
}

#[test]
fn hint_keeps_schedules_with_times_left() {
    let spec = JobSpec::new("job", "kind", hourly());
    let replaced = [ReplacedSchedule { schedule: "every 30m".to_owned(), until: at("10:45:00") }];
    let hint = |cursor| claim_hint(&spec, &JobState::at(at(cursor)), &replaced);
    assert_eq!((hint("09:00:00").next_at, hint("09:00:00").replaced.len()), (Some(at("09:30:00")), 1));
    assert_eq!((hint("10:30:00").next_at, hint("10:30:00").replaced.len()), (Some(at("11:00:00")), 0));
    let removed = |cursor| {
        hint_of_removed_job(
            &claim_hint(&spec, &JobState::at(at(cursor)), &[]),
            &JobState::at(at(cursor)),
            &[],
            at("10:10:00"),
        )
    };
    assert_eq!((removed("09:00:00").next_at, removed("09:00:00").replaced.len()), (Some(at("10:00:00")), 1));
    assert_eq!((removed("10:00:00").next_at, removed("10:00:00").replaced.len()), (None, 0));
}

#[test]
fn reset_continues_from_now() {
    let job = Job {
        cursor: "23:00:00",
        requests: vec![request(ControlAction::Reset, "10:29:58")],
        ..Job::default()
    };
    check(job, "10:30:00", "reset");
    let spec = JobSpec::new("job", "kind", hourly());
    let (record, state) = reset_record(&spec, None, "reset by ada", at("23:00:00"), at("10:30:00"));
    assert_eq!(state, JobState::at(at("10:30:00")));
    assert_eq!(
        record.reason.as_deref(),
        Some("reset by ada; the schedule was finished up to 2026-01-05T23:00:00Z")
    );
    let (_, state) = reset_record(&spec, None, "late", at("09:00:00"), at("10:30:00"));
    assert_eq!(state, JobState::at(at("09:00:00")), "the time to run is not passed over");
}

#[test]
fn occurrence_range_counts_its_times() {
    let count = |from, until| occurrence_range(&hourly(), at(from), at(until)).map(|range| range.count);
    assert_eq!(count("09:00:00", "09:00:00"), None);
    assert_eq!(count("09:00:00", "14:00:00"), Some(6));
    let secondly = Schedule::every(Duration::from_secs(1)).expect("valid");
    let month = occurrence_range(&secondly, at("00:00:00"), at("00:00:00") + TimeDelta::days(30));
    assert_eq!(month.map(|month| month.count), Some(OccurrenceRange::MAX_COUNTED));
}

#[test]
fn claim_hint_shows_when_job_is_late() {
    let spec = JobSpec::new("job", "kind", hourly());
    let expected = claim_hint(&spec, &JobState::at(at("09:00:00")), &[]);
    assert_eq!(expected.next_at, Some(at("10:00:00")));
    assert_eq!(expected.late_at, Some(at("10:01:00")));
    assert_eq!(expected.stuck_at, Some(at("10:11:00")));
    assert_eq!(expected.schedule, "every 1h");
    let retrying = Retrying { scheduled_at: at("10:00:00"), failed_attempts: 1, not_before: at("10:05:00") };
    let expected =
        claim_hint(&spec, &JobState { retrying: Some(retrying), ..JobState::at(at("09:00:00")) }, &[]);
    assert_eq!((expected.next_at, expected.late_at), (Some(at("10:00:00")), Some(at("10:06:00"))));
}
