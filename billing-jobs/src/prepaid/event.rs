//! The events of the policy: what a receiver gets, as it is signed and stored.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::{
    assessment::Assessment,
    decide::{Decision, Desired, Given, suspension_time},
    event_type::{RECOVERED, notice_type, order_type},
    rules::{Level, Mode, Rules},
    runway::Runway,
};
use crate::period::{HOUR, Micros};

/// How many instances an order lists at most.
pub(super) const LISTED_INSTANCES: usize = 1_000;

/// An instance that is to be suspended or resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// The id of the instance in the panel.
    pub id: String,
    /// Its id at the provider; empty if it has none.
    pub provider_instance_id: String,
    /// Its name, as the customer chose it.
    pub label: String,
}

/// The instances of an organization, or that there are more than an order lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceList {
    /// None if there are more than 1,000.
    pub instances: Option<Vec<Instance>>,
    /// Whether they must be read in pages.
    pub more: bool,
}

impl From<Vec<Instance>> for InstanceList {
    fn from(found: Vec<Instance>) -> Self {
        let more = found.len() > LISTED_INSTANCES;
        Self { instances: Some(found).filter(|_| !more), more }
    }
}

/// An event to be stored.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) id: Uuid,
    pub(super) kind: &'static str,
    /// None of an event for operators.
    pub(super) organization: Option<String>,
    /// The number of an order.
    pub(super) order_number: Option<i64>,
    /// The notice that it sends.
    pub(super) level: Option<Level>,
    pub(super) body: String,
}

/// The events of a decision; in mode `watch` there are none. `instances` are those of the organization if there is an order.
pub(super) fn events(
    rules: &Rules,
    mode: Mode,
    found: &Assessment,
    decision: &Decision,
    instances: &InstanceList,
) -> Vec<Event> {
    if mode == Mode::Watch {
        return Vec::new();
    }
    let now = found.facts.now;
    let event = |kind: &'static str, order_number, level, fields: Json| {
        let mut data = account(rules, found);
        data.extend(fields.as_object().cloned().unwrap_or_default());
        let body = body(kind, now, &data.into());
        Event {
            id: Uuid::now_v7(),
            kind,
            organization: Some(found.organization.clone()),
            order_number,
            level,
            body,
        }
    };
    let mut events = Vec::new();
    for notice in decision.notices.iter().filter(|notice| !notice.passed) {
        let mut fields = json!({ "level": notice.level.0 });
        if notice.level == Level::FINAL {
            let at = suspension_time(rules, mode, &decision.standing, &found.facts);
            fields["suspend_at"] = json!(at.map(instant));
        }
        events.push(event(notice_type(notice.level), None, Some(notice.level), fields));
    }
    if let Some(order) = &decision.order {
        let mut fields = json!({
            "order": order.number,
            "since": instant(found.standing.since),
            "notices": delivered(found),
            "instances": instances.instances,
            "more": instances.more,
        });
        if order.desired == Desired::Suspended {
            fields["reason"] = json!("insufficient_balance");
        }
        events.push(event(order_type(order.desired), Some(order.number), None, fields));
        // A customer is thanked for a payment, not for an exemption.
        let is_paid = found.facts.runway.is_some_and(|runway| runway.covers(rules.resume_hours));
        if order.desired == Desired::Running && is_paid {
            events.push(event(RECOVERED, None, None, json!({})));
        }
    }
    events
}

/// The text of an event that is signed and sent.
pub(super) fn body(kind: &str, now: Micros, data: &Json) -> String {
    json!({ "type": kind, "timestamp": instant(now), "data": data }).to_string()
}

/// The figures that every event contains.
fn account(rules: &Rules, found: &Assessment) -> Map<String, Json> {
    let account = found.account.as_ref().ok();
    let runway = found.facts.runway.and_then(Runway::hours);
    let empty_at =
        runway.filter(|hours| (0..24 * 366).contains(hours)).map(|hours| found.facts.now + hours * HOUR);
    let data = json!({
        "organization": found.organization,
        "name": found.name,
        "balance": account.map(|account| account.balance.to_string()),
        "owed": account.map(|account| account.owed.to_string()),
        "burn_per_hour": account.map(|account| account.burn.per_hour(4)),
        "currency": found.currency.map(|currency| currency.to_string()),
        "runway_hours": runway,
        "empty_at": empty_at.map(instant),
        "grace_hours": rules.grace / HOUR,
    });
    data.as_object().cloned().unwrap_or_default()
}

/// The notices of the episode that were delivered.
fn delivered(found: &Assessment) -> Vec<Json> {
    let notices = found.facts.notices.iter().filter_map(|notice| match notice.given {
        Given::Delivered(at) => Some(json!({ "level": notice.level.0, "delivered_at": instant(at) })),
        _ => None,
    });
    notices.collect()
}

fn instant(at: Micros) -> String {
    let at: DateTime<Utc> = DateTime::from_timestamp_micros(at).unwrap_or_default();
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
