//! The status of a healthy fleet, which tests change.

use billing_jobs::{currency::Currency, money::Money};
use billing_scheduler::{RunCause, RunRecord, RunRow, RunStatus};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    AmountDue, BillingRole, Daemon, HoldSummary, JobState, JobView, Liveness, PanelGuardView, PanelStatus,
    RunView, Status,
};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_secs(1_800_000_000).expect("a time")
}

pub(crate) fn minutes_ago(minutes: i64) -> DateTime<Utc> {
    now() - TimeDelta::minutes(minutes)
}

pub(crate) fn daemon(liveness: Liveness) -> Daemon {
    Daemon {
        daemon_id: "web-1".to_owned(),
        host: None,
        version: None,
        liveness,
        last_seen_at: Some(minutes_ago(4)),
        heartbeat_at: None,
        started_at: None,
        billing_role: BillingRole::None,
        has_billing: true,
        clock_offset_ms: None,
        error: None,
    }
}

pub(crate) fn run(status: RunStatus) -> RunView {
    let at = minutes_ago(10);
    let record = RunRecord {
        id: Uuid::nil(),
        attempt: 1,
        ..RunRecord::new("billing", at, status, RunCause::Schedule, at)
    };
    RunRow { run: record, daemon_id: "web-1".to_owned() }.into()
}

pub(crate) fn job(late_seconds: Option<u64>) -> JobView {
    JobView {
        job: "billing".to_owned(),
        kind: None,
        state: JobState::Waiting,
        schedule: None,
        cursor: None,
        due_at: None,
        late_seconds,
        ahead_until: None,
        lease: None,
        paused: None,
        retrying: None,
        last_run: None,
    }
}

pub(crate) fn held(reason: &str) -> HoldSummary {
    let mut owed = AmountDue { instances: 2, hours: 3, ..AmountDue::default() };
    owed.amounts.add(Currency::USD, Money(300));
    let advice = crate::holds::advice(reason).to_owned();
    HoldSummary { reason: reason.to_owned(), since: minutes_ago(60), owed, accepted: 0, advice }
}

pub(crate) fn healthy() -> Status {
    Status {
        ok: true,
        problems: Vec::new(),
        observed_at: now(),
        version: String::new(),
        engine: String::new(),
        schema: String::new(),
        has_billing: true,
        halt: None,
        panel: PanelStatus {
            generation: "G1".to_owned(),
            present: true,
            billing_off: false,
            guard: PanelGuardView::default(),
        },
        last_success_at: Some(minutes_ago(59)),
        hand_back_after_seconds: 4_500,
        last_run: Some(run(RunStatus::Done)),
        last_audit: None,
        arrears: AmountDue::default(),
        holds: vec![held("insufficient_balance")],
        prepaid: crate::status::PrepaidStatus::default(),
        uncharged: Vec::new(),
        daemons: vec![daemon(Liveness::Alive), daemon(Liveness::Stopped)],
        jobs: vec![job(None)],
    }
}
