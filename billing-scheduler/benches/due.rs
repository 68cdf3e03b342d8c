//! Measures the decision of a tick for one job.

use std::{hint::black_box, time::Duration};

use billing_scheduler::{JobSpec, JobState, Schedule, due};
use chrono::{DateTime, TimeDelta, Utc};
use criterion::{Criterion, criterion_group, criterion_main};

fn schedules() -> [(&'static str, Schedule); 3] {
    let hour = Duration::from_hours(1);
    [
        ("every hour", Schedule::every(hour).expect("a period of whole seconds")),
        ("cron in UTC", Schedule::cron("0 5 * * * *", "UTC").expect("a cron text")),
        ("cron in Berlin", Schedule::cron("0 30 2 * * 1-5", "Europe/Berlin").expect("a cron text")),
    ]
}

fn now() -> DateTime<Utc> {
    "2026-03-28T13:45:12Z".parse().expect("an instant")
}

fn next_after(criterion: &mut Criterion) {
    for (name, schedule) in schedules() {
        criterion.bench_function(&format!("next_after, {name}"), |bencher| {
            bencher.iter(|| schedule.next_after(black_box(now())));
        });
    }
}

fn decision(criterion: &mut Criterion) {
    for (name, schedule) in schedules() {
        let spec = JobSpec::new("billing", "billing", schedule);
        for (case, behind) in [("nothing yet", TimeDelta::zero()), ("a day behind", TimeDelta::days(1))] {
            let state = JobState::at(now() - behind);
            criterion.bench_function(&format!("due, {name}, {case}"), |bencher| {
                bencher.iter(|| due(&spec, &state, black_box(now())));
            });
        }
    }
}

/// Texts of up to a kilobyte, valid and invalid. A text without a schedule in use is parsed each time.
fn validation(criterion: &mut Criterion) {
    let texts = [
        ("short", "0 30 2 * * 1-5".to_owned()),
        ("kilobyte of a list", format!("{}0 * * * *", "0-59/1,".repeat(144))),
        ("kilobyte of names", format!("0 0 * * {}SUN", "MON#1,".repeat(168))),
        ("kilobyte of commas", ",".repeat(1_024)),
        ("never", "0 0 30 2 *".to_owned()),
    ];
    for (name, text) in texts {
        assert!(text.len() <= 1_024);
        criterion.bench_function(&format!("validate, {name}"), |bencher| {
            bencher.iter(|| Schedule::cron(black_box(&text), "UTC"));
        });
    }
}

criterion_group!(benches, next_after, decision, validation);
criterion_main!(benches);
