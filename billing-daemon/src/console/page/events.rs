//! What the prepaid policy sends, and how the receivers answered: the newest events first.

use uuid::Uuid;

use super::prelude::*;
use crate::prepaid::{DeliveryFilter, DeliveryView, read_deliveries};

/// How many deliveries are shown at once.
const SHOWN: u32 = 50;
/// More deliveries than these are not counted.
const COUNTED: i64 = 10_000;
/// Every status of a delivery.
const STATUSES: [&str; 5] = ["pending", "sent", "dead", "superseded", "cancelled"];

#[derive(Serialize)]
pub(in crate::console) struct Events {
    /// How many deliveries wait, up to 10,001.
    pending: i64,
    /// How many deliveries were given up after their last attempt, up to 10,001.
    dead: i64,
    deliveries: Vec<DeliveryView>,
    /// The values of `event` and `endpoint` for the next page.
    next: Option<(String, String)>,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Events, Problem> {
    let organization = match visit.query("organization") {
        Some(name) => nearest::organization(visit, name).await?,
        None => String::new(),
    };
    let status = visit.query("status").unwrap_or_default();
    if !status.is_empty() && !STATUSES.contains(&status) {
        return Err(Problem::BadRequest(format!(
            "`status` is one of {}, not `{status}`",
            STATUSES.join(", ")
        )));
    }
    let event: Option<Uuid> = visit.parsed("event")?;
    let endpoint = visit.query("endpoint").unwrap_or_default();
    let filter = DeliveryFilter {
        organization: &organization,
        status,
        after: event.map(|event| (event, endpoint)),
        limit: SHOWN + 1,
        ..DeliveryFilter::default()
    };
    let read = read_deliveries(visit.db(), filter).await;
    let mut deliveries = read.map_err(|error| Problem::database("read the events", &error))?;
    let next = keep(&mut deliveries, SHOWN as usize);
    let next = next.map(|last| (last.event.clone(), last.endpoint.clone().unwrap_or_default()));
    let [pending, dead] = [count(visit, "pending").await?, count(visit, "dead").await?];
    Ok(Events { pending, dead, deliveries, next })
}

/// The number of deliveries with this status, up to 10,001.
pub(super) async fn count(visit: &Visit, status: &str) -> Result<i64, Problem> {
    let sql = format!(
        "SELECT count(*) AS number FROM (SELECT 1 FROM billing_deliveries WHERE status = '{status}' LIMIT {}) AS first",
        COUNTED + 1
    );
    let counts = visit.rows("count the deliveries", &sql, [], |row| row.try_get("", "number")).await?;
    Ok(counts.first().copied().unwrap_or_default())
}

/// A number from [`count`].
pub(super) fn counted(number: i64) -> Markup {
    text(if number > COUNTED { "more than 10,000".to_owned() } else { number.to_string() })
}

/// The status of a delivery as a badge.
pub(super) fn delivery_badge(delivery: &DeliveryView) -> Markup {
    let tone = match delivery.status.as_deref() {
        Some("sent") => Tone::Good,
        Some("pending") if delivery.attempts == Some(0) => Tone::Busy,
        Some("pending") => Tone::Warning,
        Some("dead") => Tone::Bad,
        _ => Tone::Idle,
    };
    badge(tone, delivery.status.as_deref().unwrap_or("no endpoint"))
}

impl View for Events {
    fn title(&self) -> String {
        "Events".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.deliveries.iter().map(|delivery| {
            [
                link(visit, format!("events/{}", delivery.event), time(delivery.at)),
                text(&delivery.kind),
                delivery.organization.as_deref().map_or_else(|| text(""), |id| organization(visit, id, "")),
                text(delivery.endpoint.as_deref().unwrap_or_default()),
                delivery_badge(delivery),
                text(delivery.attempts.unwrap_or_default().to_string()),
                text(delivery.answer()),
            ]
        });
        let headings = ["~at", "~type", "organization", "endpoint", "status", "#attempts", "last answer"];
        let query = |key: &str| visit.query(key).unwrap_or_default();
        html! {
            (facts(&[("pending", counted(self.pending)), ("dead letters", counted(self.dead))]))
            form.filter method="get" action=(visit.link("events")) {
                label {
                    "Status "
                    select name="status" {
                        option value="" { "any" }
                        @for status in STATUSES { option selected[status == query("status")] { (status) } }
                    }
                }
                label { "Organization (id, slug or name) " input name="organization" value=(query("organization")); }
                button { "Show" }
            }
            (table(headings, rows, "No event."))
            @if let Some((event, endpoint)) = &self.next {
                @let filters = pairs(&[("status", query("status")), ("organization", query("organization")),
                    ("event", event), ("endpoint", endpoint)]);
                p { (link(visit, format!("events?{filters}"), "Older events")) }
            }
        }
    }
}
