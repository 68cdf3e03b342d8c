//! The line about the daemon that the service manager shows.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use billing_jobs::{
    BILLING_JOB,
    billing::{RunDetails, Totals},
};
use billing_scheduler::{JobSpec, Middleware, RunRecord, RunStatus};

/// The result of the last billing run of this process, in words.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastBilling {
    sentence: Arc<Mutex<Option<String>>>,
}

impl Middleware for LastBilling {
    fn on_outcome(&self, spec: &JobSpec, run: &RunRecord) {
        if spec.kind == BILLING_JOB
            && let Some(sentence) = sentence(run)
        {
            *self.sentence.lock().unwrap_or_else(PoisonError::into_inner) = Some(sentence);
        }
    }
}

impl LastBilling {
    /// Returns the status line of a daemon with this number of jobs.
    pub(crate) fn status_line(&self, jobs: usize) -> impl fmt::Display {
        let sentence = self.sentence.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let plural = if jobs == 1 { "job" } else { "jobs" };
        format!("{jobs} {plural}; {}", sentence.as_deref().unwrap_or("no billing by this process yet"))
    }
}

/// Describes a billing run. It does not repeat the error: every user of the host can read the status.
fn sentence(run: &RunRecord) -> Option<String> {
    let at = run.finished_at.format("%Y-%m-%d %H:%M:%S UTC");
    match run.status {
        RunStatus::Done => {
            let totals = RunDetails::from_json(&run.details).totals.unwrap_or_default();
            let (amounts, Totals { charged, held, hours, .. }) = (totals.amounts(), totals);
            Some(format!(
                "billing at {at} charged {amounts} for {hours} hours of {charged} instances, {held} held"
            ))
        }
        RunStatus::Retrying | RunStatus::Dead => Some(format!("billing failed at {at}: see the log")),
        RunStatus::Interrupted => Some(format!("billing was interrupted at {at}")),
        RunStatus::Skipped | RunStatus::Missed | RunStatus::Paused | RunStatus::Rescheduled => None,
    }
}

#[cfg(test)]
mod tests {
    use billing_scheduler::RunCause;
    use chrono::{TimeZone as _, Utc};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn status_line_shows_last_billing_without_error() {
        let line = |status, details: Value| {
            let at = Utc.with_ymd_and_hms(2026, 5, 1, 12, 0, 3).single().expect("no ambiguity in UTC");
            let mut run = RunRecord::new("billing", at, status, RunCause::Schedule, at);
            (run.details, run.error) = (details, Some("no route to 10.0.0.7".to_owned()));
            sentence(&run)
        };
        let currencies = json!({ "USD": { "charges": 3, "hours": 9, "amount": "0.09" } });
        let figures = json!({ "charged": 3, "charges": 3, "held": 1, "hours": 9, "currencies": currencies });
        for (status, sentence) in [
            (
                RunStatus::Done,
                Some(
                    "billing at 2026-05-01 12:00:03 UTC charged 0.09 USD for 9 hours of 3 instances, 1 held",
                ),
            ),
            (RunStatus::Retrying, Some("billing failed at 2026-05-01 12:00:03 UTC: see the log")),
            (RunStatus::Dead, Some("billing failed at 2026-05-01 12:00:03 UTC: see the log")),
            (RunStatus::Interrupted, Some("billing was interrupted at 2026-05-01 12:00:03 UTC")),
            (RunStatus::Paused, None),
        ] {
            assert_eq!(line(status, figures.clone()).as_deref(), sentence, "{status:?}");
        }
        assert_eq!(
            LastBilling::default().status_line(1).to_string(),
            "1 job; no billing by this process yet"
        );
    }
}
