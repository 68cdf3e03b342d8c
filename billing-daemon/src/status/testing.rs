//! A status of a fleet that is well, for tests to spoil.

use billing_jobs::{currency::Currency, money::Money};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Bills, Daemon, FenceState, Held, JobStatus, Life, Owed, PanelStatus, RunStatus, Status};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_secs(1_800_000_000).expect("a time")
}

pub(crate) fn minutes_ago(minutes: i64) -> DateTime<Utc> {
    now() - TimeDelta::minutes(minutes)
}

pub(crate) fn daemon(state: Life) -> Daemon {
    Daemon {
        instance: "web-1".to_owned(),
        host: None,
        version: None,
        state,
        heard_at: Some(minutes_ago(4)),
        heartbeat_at: None,
        started_at: None,
        bills: Bills::No,
        has_billing: true,
        error: None,
    }
}

pub(crate) fn run(status: &str) -> RunStatus {
    RunStatus {
        id: Uuid::nil(),
        job: "billing".to_owned(),
        scheduled_at: minutes_ago(10),
        started_at: minutes_ago(10),
        finished_at: minutes_ago(10),
        status: status.to_owned(),
        trigger: "schedule".to_owned(),
        attempt: 1,
        lateness_ms: 0,
        daemon: "web-1".to_owned(),
        reason: None,
        error: None,
        details: None,
        totals: None,
    }
}

pub(crate) fn job(late_seconds: Option<u64>) -> JobStatus {
    JobStatus {
        name: "billing".to_owned(),
        cursor: None,
        holder: None,
        fence: None,
        due_at: None,
        late_seconds,
        ahead_until: None,
        paused: None,
        failed_attempts: 0,
        last_run: None,
    }
}

pub(crate) fn held(reason: &str) -> Held {
    let mut owed = Owed { instances: 2, hours: 3, ..Owed::default() };
    owed.amounts.add(Currency::USD, Money(300));
    let advice = crate::holds::advice(reason).to_owned();
    Held { reason: reason.to_owned(), since: minutes_ago(60), owed, accepted: 0, advice }
}

pub(crate) fn healthy() -> Status {
    Status {
        ok: true,
        problems: Vec::new(),
        as_of: now(),
        version: String::new(),
        engine: String::new(),
        schema: String::new(),
        has_billing: true,
        panel: PanelStatus {
            generation: "G1".to_owned(),
            inhabited: true,
            billing_off: false,
            fence: FenceState::default(),
        },
        worked_at: Some(minutes_ago(59)),
        hand_back_after_seconds: 4_500,
        last_run: Some(run("done")),
        last_audit: None,
        arrears: Owed::default(),
        holds: vec![held("insufficient_balance")],
        uncharged: Vec::new(),
        daemons: vec![daemon(Life::Alive), daemon(Life::Stopped)],
        jobs: vec![job(None)],
    }
}
