//! What went wrong in a campaign, counted from what the receivers got and what the customers did.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use billing_test_support::Db;
use sea_orm::{ConnectionTrait as _, QueryResult, Statement};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Options, Report,
    campaign::{BILLING_SECONDS, GRACE, RECOVERED},
    receivers::micros,
    record::{Action, Entries, OrderReceipt},
};
use crate::faults::fleet::{HOUR, Micros};

/// An event as it is stored.
struct Event {
    id: String,
    organization: Uuid,
    suspends: Option<bool>,
    level: Option<i64>,
    /// The time of the decision, in whole seconds.
    decided: Micros,
    number: i64,
}

/// Adds what went wrong to `report`.
pub(super) async fn count(report: &mut Report, db: &Db, entries: &Entries, options: &Options) {
    let events = events(db).await;
    // Two intervals of billing are no outage, and an hour more certainly is one.
    let certain_gap = (i64::from(options.hours_per_second * 2 * BILLING_SECONDS) + 1) * HOUR;
    check_counts(report, entries);
    for order in entries.orders.iter().filter(|order| order.suspends) {
        check_warned(report, entries, &events, order);
        check_outages(report, entries, order, certain_gap);
        check_unpaid(report, entries, order);
    }
    check_notices_once(report, entries, &events);
    check_orders_alternate(report, &events);
    if !options.has_outages && !options.has_failing_receivers && options.faults.is_empty() {
        check_unrepeated(report, entries);
    }
    check_deliveries(report, db, entries, &events).await;
    check_end(report, db, entries).await;
    let audit = billing_jobs::audit::audit(db.admin()).await.expect("the audit reads its tables");
    for violation in audit.violations {
        report.violate(format!("audit: {}: {}", violation.check, violation.detail));
    }
}

fn check_counts(report: &mut Report, entries: &Entries) {
    let carried_out = |suspends: bool| {
        let orders = entries.orders.iter().filter(|order| order.accepted && order.suspends == suspends);
        orders.map(|order| order.id.as_str()).collect::<BTreeSet<_>>().len() as u64
    };
    (report.suspended, report.resumed) = (carried_out(true), carried_out(false));
    let accepted = entries.mails.iter().filter(|mail| mail.accepted).map(|mail| mail.id.as_str());
    report.notices = accepted.collect::<BTreeSet<_>>().len() as u64;
    report.refused = entries.orders.iter().filter(|order| !order.accepted).count() as u64
        + entries.mails.iter().filter(|mail| !mail.accepted).count() as u64;
    let resumes = entries.actions.iter().filter(|action| action.suffices);
    let mut times = Vec::new();
    for action in resumes {
        match resumed_after(entries, action) {
            Ok(time) => times.extend(time),
            Err(finding) => report.violate(finding),
        }
    }
    report.set_resumes(times);
}

/// The time from a payment until the panel resumed, without those in which that was not possible. None if nothing was suspended.
fn resumed_after(entries: &Entries, action: &Action) -> Result<Option<Duration>, String> {
    let of_customer = || {
        let orders = entries.orders.iter().filter(|order| order.accepted);
        orders.filter(|order| order.organization == action.organization)
    };
    let before = of_customer().filter(|order| order.at <= action.done).max_by_key(|order| order.number);
    let Some(suspended) = before.filter(|order| order.suspends) else { return Ok(None) };
    let resumed = of_customer().find(|order| !order.suspends && order.number > suspended.number);
    let Some(resumed) = resumed else {
        return Err(format!("{} has paid and was not resumed", action.organization));
    };
    let outages = entries.outages.iter().map(|outage| (outage.from.1, outage.until.1));
    let mut disturbed: Vec<(Instant, Instant)> = outages.chain(entries.panel_failures.clone()).collect();
    disturbed.sort_unstable();
    let (mut at, mut time) = (action.done, Duration::ZERO);
    for (from, until) in disturbed {
        time += from.min(resumed.at).saturating_duration_since(at);
        at = at.max(until);
    }
    Ok(Some(time + resumed.at.saturating_duration_since(at)))
}

/// A suspension states two delivered notices, the oldest of them six hours old, and the mail server has accepted each of them.
fn check_warned(report: &mut Report, entries: &Entries, events: &[Event], order: &OrderReceipt) {
    let oldest = order.notices.iter().map(|(_, at)| *at).min();
    let is_accepted = |(level, delivered): &(i32, Micros)| {
        let level = Some(i64::from(*level));
        let of_level = events.iter().filter(|event| {
            event.organization == order.organization && event.level == level && event.decided <= *delivered
        });
        // The stated times are whole seconds.
        let ids: BTreeSet<&str> = of_level.map(|event| event.id.as_str()).collect();
        let mut mails = entries.mails.iter().filter(|mail| mail.accepted && ids.contains(mail.id.as_str()));
        mails.any(|mail| mail.at < delivered + 1_000_000)
    };
    let is_warned = order.notices.len() >= 2
        && oldest.is_some_and(|oldest| oldest <= order.decided - 6 * HOUR)
        && order.notices.iter().all(is_accepted);
    if !is_warned {
        report.stopped_unwarned += 1;
        report.find(format!("order {} suspends unwarned: {order:?}", order.number));
    }
}

/// No suspension follows an outage within the grace period, and none that was decided before it reaches a customer who paid during it.
fn check_outages(report: &mut Report, entries: &Entries, order: &OrderReceipt, certain_gap: Micros) {
    for outage in &entries.outages {
        let (from, until) = (outage.from.0, outage.until.0);
        let grace_end = until + GRACE * HOUR;
        if until - from >= certain_gap && (until..grace_end - 1_000_000).contains(&order.decided) {
            report.stopped_by_outage += 1;
            report.find(format!(
                "order {}, decided at {}, suspends within the grace period after an outage until {until}",
                order.number, order.decided
            ));
        }
    }
    // The daemon that sends it was started after the payment, and so has read it.
    let paid = entries.actions.iter().any(|action| {
        action.organization == order.organization && action.suffices && action.generation < order.generation
    });
    if paid {
        report.stopped_by_outage += 1;
        report.find(format!("order {} was sent by a daemon that started after the payment", order.number));
    }
}

/// No suspension is decided after the customer has paid for the rest of the campaign.
fn check_unpaid(report: &mut Report, entries: &Entries, order: &OrderReceipt) {
    let is_paid = entries.actions.iter().any(|action| {
        action.organization == order.organization && action.suffices && action.between.1 <= order.decided
    });
    if is_paid {
        report.stopped_paid += 1;
        report.find(format!("order {} was decided after the payment", order.number));
    }
}

/// A level is sent again only after payments that suffice for a new episode, or after an instance was deleted.
fn check_notices_once(report: &mut Report, entries: &Entries, events: &[Event]) {
    let accepted: BTreeSet<&str> =
        entries.mails.iter().filter(|mail| mail.accepted).map(|mail| mail.id.as_str()).collect();
    let mut of_level: BTreeMap<(Uuid, i64), Vec<&Event>> = BTreeMap::new();
    for event in events.iter().filter(|event| accepted.contains(event.id.as_str())) {
        let Some(level) = event.level else { continue };
        of_level.entry((event.organization, level)).or_default().push(event);
    }
    for ((organization, level), sent) in of_level {
        for pair in sent.windows(2) {
            let (first, second) = (pair[0].decided, pair[1].decided);
            let between = entries.actions.iter().filter(|action| {
                action.organization == organization
                    && action.between.1 >= first
                    && action.between.0 <= second + 1_000_000
            });
            let hours: Option<i64> = between.map(|action| action.hours).sum();
            // An hour more: the runway is a number of whole hours.
            if hours.is_some_and(|hours| hours + level.max(0) + 1 < RECOVERED) {
                report.twice += 1;
                report.find(format!(
                    "{organization} got level {level} twice in an episode: {} {}",
                    pair[0].id, pair[1].id
                ));
            }
        }
    }
}

/// An order wants another state than the one before it.
fn check_orders_alternate(report: &mut Report, events: &[Event]) {
    let mut last: BTreeMap<Uuid, bool> = BTreeMap::new();
    let mut orders: Vec<&Event> = events.iter().filter(|event| event.suspends.is_some()).collect();
    orders.sort_unstable_by_key(|event| event.number);
    for order in orders {
        let suspends = order.suspends.unwrap_or_default();
        if last.insert(order.organization, suspends).unwrap_or(false) == suspends {
            report.twice += 1;
            report.find(format!("order {} of {} repeats the one before", order.number, order.organization));
        }
    }
}

fn check_unrepeated(report: &mut Report, entries: &Entries) {
    let orders = entries.orders.iter().filter(|order| order.answered).map(|order| &order.id);
    let mails = entries.mails.iter().filter(|mail| mail.answered).map(|mail| &mail.id);
    let mut seen = BTreeSet::new();
    for id in orders.chain(mails) {
        if !seen.insert(id) {
            report.repeated += 1;
            report.find(format!("event {id} was sent again although it had been accepted"));
        }
    }
}

/// Every stored notice was accepted or rejected by the mail server, as its delivery states, and every mail is stored.
async fn check_deliveries(report: &mut Report, db: &Db, entries: &Entries, events: &[Event]) {
    let sql = "SELECT CAST(event_id AS text) AS id, status FROM billing_deliveries WHERE endpoint = 'mail'";
    let statuses: BTreeMap<String, String> =
        rows(db, sql).await.iter().map(|row| (text(row, "id"), text(row, "status"))).collect();
    for event in events.iter().filter(|event| event.suspends.is_none()) {
        let has = |is: fn(&super::record::MailReceipt) -> bool| {
            entries.mails.iter().any(|mail| mail.id == event.id && is(mail))
        };
        let status = statuses.get(&event.id).map_or("missing", String::as_str);
        let is_right = match status {
            "sent" => has(|mail| mail.accepted),
            "dead" => has(|mail| mail.rejected),
            _ => false,
        };
        if !is_right {
            report.notices_lost += 1;
            report.find(format!(
                "notice {} of {} is {status}, which the mail server does not confirm",
                event.id, event.organization
            ));
        }
    }
    let stored: BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    for mail in entries.mails.iter().filter(|mail| !stored.contains(mail.id.as_str())) {
        report.violate(format!("mail {} was sent and is not stored", mail.id));
    }
}

/// The panel, which keeps the greatest order of each organization, is in the wanted state.
async fn check_end(report: &mut Report, db: &Db, entries: &Entries) {
    let mut panel: BTreeMap<String, &OrderReceipt> = BTreeMap::new();
    for order in entries.orders.iter().filter(|order| order.accepted) {
        let newest = panel.entry(order.organization.to_string()).or_insert(order);
        if order.number > newest.number {
            *newest = order;
        }
    }
    let sql = "SELECT CAST(organization_id AS text) AS id, desired, order_number, acked_order FROM billing_standings";
    for row in rows(db, sql).await {
        let (id, desired) = (text(&row, "id"), text(&row, "desired"));
        let order_number: i64 = row.try_get("", "order_number").expect("a number");
        let acked: Option<i64> = row.try_get("", "acked_order").expect("a number");
        let order = panel.get(&id);
        let is_suspended = order.is_some_and(|order| order.suspends);
        if is_suspended != (desired == "suspended") {
            report.violate(format!("{id} is wanted {desired}, and the panel has {order:?}"));
        }
        if acked.is_some_and(|acked| order.is_none_or(|order| order.number < acked))
            || acked.unwrap_or(order_number) > order_number
        {
            report.violate(format!("{id}: order {acked:?} is acknowledged, and the panel has {order:?}"));
        }
    }
}

async fn events(db: &Db) -> Vec<Event> {
    let sql =
        "SELECT CAST(id AS text) AS id, type, CAST(organization_id AS text) AS organization, order_number, body
                 FROM billing_events ORDER BY id";
    let event = |row: &QueryResult| {
        let body: Value = serde_json::from_str(&text(row, "body")).expect("an event is JSON");
        let kind = text(row, "type");
        Event {
            id: text(row, "id"),
            organization: Uuid::parse_str(&text(row, "organization")).expect("an id"),
            suspends: kind.starts_with("billing.service.").then_some(kind.ends_with(".suspend")),
            level: body["data"]["level"].as_i64(),
            decided: micros(body["timestamp"].as_str().unwrap_or_default()),
            number: row.try_get::<Option<i64>>("", "order_number").expect("a number").unwrap_or_default(),
        }
    };
    rows(db, sql).await.iter().map(event).collect()
}

async fn rows(db: &Db, sql: &str) -> Vec<QueryResult> {
    db.admin().query_all_raw(Statement::from_string(db.backend(), sql)).await.expect("a valid statement")
}

fn text(row: &QueryResult, column: &str) -> String {
    row.try_get("", column).unwrap_or_else(|error| panic!("{column}: {error}"))
}
