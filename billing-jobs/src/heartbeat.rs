//! The heartbeat means that billing works, not that a process exists.

use std::time::Duration;

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome};
use schemars::JsonSchema;
use sea_orm::{DbBackend, DbErr};
use serde::Deserialize;
use tracing::{error, info};

use crate::{BILLING_JOB, Services, billing::HAND_BACK_AFTER, restore_detection::Halt};
use billing_store::job_error;

/// The parameters of kind `heartbeat`: there are none.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatParams {}

/// The facts that a heartbeat depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatFacts {
    /// How long this process has run.
    pub since_start: Duration,
    /// How long ago any daemon's billing worked.
    pub since_worked: Option<Duration>,
    /// After how long without that the panel may bill, as it was written with that success.
    pub hand_back_after: Duration,
    /// How the latest billing run failed, if it did.
    pub last_error: Option<String>,
    /// Whether that run waits for an approval of what it would charge.
    pub spike: bool,
    /// Why no daemon bills, if a committed batch is missing.
    pub halt: Option<String>,
}

/// What the daemon reports to the panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartbeatDecision {
    /// Billing works: write a heartbeat.
    Write,
    /// It fails, but the panel need not take over yet.
    Failing(String),
    /// A spike or a restored database waits for an operator: the panel would charge the same, so it must wait.
    AwaitingOperator(String),
    /// It has failed for too long: the panel bills from its next poll on.
    HandBack(String),
}

/// Decides what the daemon reports to the panel. A process that has just started may send heartbeats for one `billing_interval`
/// before its first result.
#[must_use]
pub fn decide(facts: &HeartbeatFacts, billing_interval: Duration) -> HeartbeatDecision {
    if let Some(halt) = &facts.halt {
        return HeartbeatDecision::AwaitingOperator(format!("billing is halted: {halt}"));
    }
    let fresh = facts.since_start < billing_interval;
    // The panel guard lets the panel bill from the same moment on.
    let stalled = facts.since_worked.is_none_or(|since| since >= facts.hand_back_after) && !fresh;
    let message = match (&facts.last_error, facts.since_worked) {
        (Some(error), _) => format!("the last billing run failed: {error}"),
        (None, Some(since)) => format!("billing has not worked for {} minutes", since.as_secs() / 60),
        (None, None) => "no billing run has worked since the start".to_owned(),
    };
    if facts.spike && facts.last_error.is_some() {
        return HeartbeatDecision::AwaitingOperator(message);
    }
    match (stalled, &facts.last_error) {
        (true, _) => HeartbeatDecision::HandBack(message),
        (false, Some(_)) => HeartbeatDecision::Failing(message),
        (false, None) => HeartbeatDecision::Write,
    }
}

/// The job of kind `heartbeat`.
#[derive(Debug)]
pub struct Heartbeat {
    services: Services,
}

impl Heartbeat {
    /// A job that writes the heartbeat for the process of `services`.
    #[must_use]
    pub fn new(services: Services, _params: HeartbeatParams) -> Self {
        Self { services }
    }

    async fn facts(&self) -> Result<HeartbeatFacts, DbErr> {
        let status = &self.services.status;
        let (age, spike) = match status.backend() {
            DbBackend::Sqlite => (
                "max(0, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) - f.last_success_at / 1000)",
                "r.details ->> '$.spike'",
            ),
            _ => (
                "greatest(0, extract(epoch FROM now() - f.last_success_at) * 1000)::bigint",
                "r.details ->> 'spike'",
            ),
        };
        // A job that no daemon has claimed yet has neither row.
        let sql = format!(
            "SELECT CASE WHEN s.job IS NOT NULL THEN {age} END AS age_ms, s.last_error, f.hand_back_after_seconds, f.halt,
                    coalesce((SELECT {spike} FROM scheduler_runs r
                               WHERE r.job = $1 AND r.status IN ('done', 'dead', 'retrying')
                               ORDER BY r.started_at DESC, r.id DESC LIMIT 1), '') <> '' AS spike
               FROM (SELECT 1 AS one) AS here
               LEFT JOIN scheduler_jobs s ON s.job = $1 LEFT JOIN scheduler_fencing f ON f.job = $1"
        );
        let row = status.query_one(&sql, [BILLING_JOB.into()]).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the state of billing".to_owned()))?;
        let number = |column| -> Result<Option<u64>, DbErr> {
            Ok(row.try_get::<Option<i64>>("", column)?.map(i64::unsigned_abs))
        };
        let hand_back_after = number("hand_back_after_seconds")?.map(Duration::from_secs);
        let halt: Option<String> = row.try_get("", "halt")?;
        Ok(HeartbeatFacts {
            since_start: self.services.clock.monotonic().saturating_sub(self.services.started),
            since_worked: number("age_ms")?.map(Duration::from_millis),
            hand_back_after: hand_back_after.unwrap_or(HAND_BACK_AFTER),
            last_error: row.try_get("", "last_error")?,
            spike: row.try_get("", "spike")?,
            halt: halt.map(|halt| Halt::of_json(&halt).map(|halt| halt.to_string())).transpose()?,
        })
    }
}

#[async_trait]
impl Job for Heartbeat {
    async fn run(&self, _ctx: &JobContext) -> Result<Outcome, JobError> {
        let status = &self.services.status;
        let facts = self.facts().await.map_err(job_error)?;
        let written = match decide(&facts, self.services.billing_interval) {
            HeartbeatDecision::Write => status.heartbeat().await,
            HeartbeatDecision::Failing(message) => {
                info!("no heartbeat: {message}");
                status.report_failure(&message).await
            }
            HeartbeatDecision::AwaitingOperator(message) => {
                info!("billing waits for an operator, and the panel for billing: {message}");
                status.keep_billing(&message).await
            }
            HeartbeatDecision::HandBack(message) => {
                error!("billing is handed back to the panel: {message}");
                match status.report_failure(&message).await {
                    Ok(()) => status.release_billing().await,
                    failed => failed,
                }
            }
        };
        written.map_err(job_error)?;
        Ok(Outcome::done(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeat_follows_billing_success() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let rows = [
            // A new process may send heartbeats for one interval before its first result.
            (59, None, None, "beat"),
            (60, None, None, "give back"),
            (59, Some(600), None, "beat"),
            (60, Some(76), None, "give back"),
            (60, Some(75), None, "give back"),
            (60, Some(74), None, "beat"),
            // A process that cannot bill sends no heartbeat, even if it has just started.
            (0, None, Some("refused"), "failing"),
            (500, Some(10), Some("refused"), "failing"),
            (500, Some(76), Some("refused"), "give back"),
            // Neither biller charges a spike before it is approved.
            (0, None, Some("spike"), "hold"),
            (500, Some(10_000), Some("spike"), "hold"),
            // Neither biller charges a database that lost a batch, whatever the last run was.
            (0, None, Some("halt"), "hold"),
            (500, Some(10_000), Some("halt"), "hold"),
        ];
        for (since_start, since_worked, last_error, expected) in rows {
            let facts = HeartbeatFacts {
                since_start: minutes(since_start),
                since_worked: since_worked.map(minutes),
                hand_back_after: minutes(75),
                last_error: last_error.map(str::to_owned),
                spike: last_error == Some("spike"),
                halt: last_error.filter(|error| *error == "halt").map(str::to_owned),
            };
            let decision = match decide(&facts, minutes(60)) {
                HeartbeatDecision::Write => "beat",
                HeartbeatDecision::Failing(_) => "failing",
                HeartbeatDecision::AwaitingOperator(_) => "hold",
                HeartbeatDecision::HandBack(_) => "give back",
            };
            assert_eq!(decision, expected, "{facts:?}");
        }
    }
}
