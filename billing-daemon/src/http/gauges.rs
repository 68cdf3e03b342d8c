//! The gauges of the metrics endpoint, set from the status at each scrape.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use billing_jobs::{
    currency::{Amounts, Currency},
    hold::Reason,
    prepaid::State,
};
use metrics::gauge;

use crate::{
    status::Status,
    telemetry::metrics::{
        ARREARS_AMOUNT, ARREARS_INSTANCES, AUDIT_VIOLATIONS, DAEMONS_ALIVE, DELIVERIES, GUARD_MISSING,
        HALTED, HEARTBEAT, HELD_INSTANCES, INTERVAL, JOBS_AHEAD_UNTIL, JOBS_LATE, LAST_SUCCESS,
        OLDEST_DELIVERY, PROBLEMS, SPIKE_AMOUNT, STANDINGS,
    },
};

/// Sets the gauge `name` of each currency, and to zero that of each that had an amount before and has none now.
#[expect(clippy::cast_precision_loss, reason = "amounts of money are far below 2^52")]
fn set_amounts(name: &'static str, amounts: &Amounts) {
    static SEEN: Mutex<BTreeSet<Currency>> = Mutex::new(BTreeSet::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.insert(Currency::USD);
    seen.extend(amounts.iter().map(|(currency, _)| currency));
    for currency in &*seen {
        gauge!(name, "currency" => currency.to_string()).set(amounts.of(*currency).0 as f64 / 10_000.0);
    }
}

/// Sets every gauge of billing to the values of `status`.
#[expect(clippy::cast_precision_loss, reason = "counts of instances and seconds are far below 2^52")]
pub(crate) fn set_gauges(status: &Status, billing_interval: Option<std::time::Duration>) {
    for reason in Reason::ALL {
        let held = status.holds.iter().find(|held| held.reason == reason.as_str());
        let instances = held.map_or(0, |held| held.owed.instances);
        gauge!(HELD_INSTANCES, "reason" => reason.as_str()).set(instances as f64);
    }
    gauge!(ARREARS_INSTANCES).set(status.arrears.instances as f64);
    set_amounts(ARREARS_AMOUNT, &status.arrears.amounts);
    let alive = status.daemons.iter().filter(|daemon| daemon.liveness.is_alive()).count();
    gauge!(DAEMONS_ALIVE).set(alive as f64);
    gauge!(JOBS_LATE).set(status.jobs.iter().filter(|job| job.late_seconds.is_some()).count() as f64);
    let until = status.jobs.iter().filter_map(|job| job.ahead_until).map(|until| until.timestamp()).max();
    gauge!(JOBS_AHEAD_UNTIL).set(until.unwrap_or_default() as f64);
    gauge!(PROBLEMS).set(status.problems.len() as f64);
    let heartbeat = status.daemons.iter().filter_map(|daemon| daemon.heartbeat_at).max();
    gauge!(HEARTBEAT).set(heartbeat.map_or(0, |at| at.timestamp()) as f64);
    let began = || {
        status
            .daemons
            .iter()
            .filter(|daemon| daemon.has_billing && daemon.liveness.is_alive())
            .filter_map(|daemon| daemon.started_at)
            .min()
    };
    let success = status.last_success_at.or_else(began);
    gauge!(LAST_SUCCESS).set(success.map_or(0, |at| at.timestamp()) as f64);
    if let Some(interval) = billing_interval {
        gauge!(INTERVAL).set(interval.as_secs_f64());
    }
    let spike = status.last_run.as_ref().and_then(|run| run.billing_details().pending_amounts());
    set_amounts(SPIKE_AMOUNT, &spike.unwrap_or_default());
    gauge!(GUARD_MISSING).set(f64::from(u8::from(status.lacks_guard())));
    gauge!(HALTED).set(f64::from(u8::from(status.halt.is_some())));
    set_prepaid(status);
    let audit = status.last_audit.as_ref().and_then(|run| run.details.as_ref());
    if let Some(violations) = audit.and_then(|details| details.get("violations")?.as_u64()) {
        gauge!(AUDIT_VIOLATIONS).set(violations as f64);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of organizations and seconds are far below 2^52")]
fn set_prepaid(status: &Status) {
    let prepaid = &status.prepaid;
    for state in State::ALL {
        let organizations = prepaid.standings.get(state.as_str()).copied().unwrap_or_default();
        gauge!(STANDINGS, "state" => state.as_str()).set(organizations as f64);
    }
    let dead: u64 = prepaid.dead_deliveries.iter().map(|dead| dead.deliveries).sum();
    gauge!(DELIVERIES, "status" => "pending").set(prepaid.pending_deliveries as f64);
    gauge!(DELIVERIES, "status" => "dead").set(dead as f64);
    let age = prepaid.oldest_pending_at.map_or(0, |at| (status.observed_at - at).num_seconds().max(0));
    gauge!(OLDEST_DELIVERY).set(age as f64);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::status::{DeadDeliveries, PrepaidStatus};
    use crate::telemetry::metrics::tests::{rendered, shows};

    #[test]
    fn held_instances_has_a_line_per_reason() {
        let status = crate::status::testing::healthy();
        let text = rendered(|| set_gauges(&status, Some(Duration::from_hours(1))));
        shows(&text, r#"billing_daemon_held_instances{reason="insufficient_balance"} 2"#);
        shows(&text, r#"billing_daemon_held_instances{reason="no_price"} 0"#);
        shows(&text, "billing_daemon_billing_interval_seconds 3600");
        shows(&text, "billing_daemon_daemons_alive 1");
        assert_eq!(text.matches("billing_daemon_held_instances{").count(), Reason::ALL.len());
    }

    #[test]
    fn deliveries_and_standings_are_shown() {
        let mut status = crate::status::testing::healthy();
        status.prepaid = PrepaidStatus {
            standings: [("low", 7)].into(),
            pending_deliveries: 3,
            oldest_pending_at: Some(status.observed_at - chrono::TimeDelta::seconds(90)),
            dead_deliveries: ["mail", "panel"]
                .map(|endpoint| DeadDeliveries { endpoint: endpoint.to_owned(), deliveries: 2, gone: false })
                .into(),
        };
        let text = rendered(|| set_gauges(&status, None));
        shows(&text, r#"billing_daemon_prepaid_standings{state="low"} 7"#);
        shows(&text, r#"billing_daemon_prepaid_standings{state="suspended"} 0"#);
        shows(&text, r#"billing_daemon_deliveries{status="pending"} 3"#);
        shows(&text, r#"billing_daemon_deliveries{status="dead"} 4"#);
        shows(&text, "billing_daemon_oldest_delivery_age_seconds 90");
    }

    #[test]
    fn violations_are_those_of_last_complete_audit() {
        let audit = |details| {
            Some(crate::status::RunView {
                details,
                ..crate::status::testing::run(billing_scheduler::RunStatus::Done)
            })
        };
        let text = rendered(|| {
            let mut status = crate::status::testing::healthy();
            status.last_audit = audit(Some(json!({ "checked": 9, "violations": 3 })));
            // A later run of it that failed.
            status.jobs[0].last_run = audit(None);
            set_gauges(&status, None);
        });
        shows(&text, "billing_daemon_audit_violations 3");
        let text = rendered(|| set_gauges(&crate::status::testing::healthy(), None));
        assert!(!text.contains("\nbilling_daemon_audit_violations "), "no audit ran: {text}");
    }
}
