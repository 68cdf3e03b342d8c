//! One event: what was sent, and to whom. An operator sends it again, or gives up what is pending.

use uuid::Uuid;

use super::{events::delivery_badge, prelude::*};
use crate::prepaid::{DeliveryFilter, DeliveryView, read_deliveries};

/// How many deliveries are shown.
const SHOWN: u32 = 100;

#[derive(Serialize)]
pub(in crate::console) struct EventPage {
    body: serde_json::Value,
    /// Without an endpoint there is one row that has none.
    deliveries: Vec<DeliveryView>,
}

async fn deliveries(visit: &Visit, limit: u32) -> Result<Vec<DeliveryView>, Problem> {
    let id = visit.param("id");
    let unknown = || Problem::not_found(format!("there is no event `{id}`: it may be pruned"));
    let event = id.parse::<Uuid>().map_err(|_| unknown())?.to_string();
    let filter = DeliveryFilter { event: &event, limit, ..DeliveryFilter::default() };
    let read = read_deliveries(visit.db(), filter).await;
    let read = read.map_err(|error| Problem::database("read the event", &error))?;
    if read.is_empty() { Err(unknown()) } else { Ok(read) }
}

/// Returns the id of the event in the path.
pub(in crate::console) async fn known(visit: &Visit) -> Result<String, Problem> {
    Ok(deliveries(visit, 1).await?.remove(0).event)
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<EventPage, Problem> {
    let deliveries = deliveries(visit, SHOWN).await?;
    let body = &deliveries[0].body;
    let body = serde_json::from_str(body).unwrap_or_else(|_| body.clone().into());
    Ok(EventPage { body, deliveries })
}

impl View for EventPage {
    fn title(&self) -> String {
        format!("Event {}", self.deliveries[0].kind)
    }

    fn body(&self, visit: &Visit) -> Markup {
        let event = &self.deliveries[0];
        let has = |status: &str| self.deliveries.iter().any(|one| one.status.as_deref() == Some(status));
        let sent = self.deliveries.iter().filter(|one| one.endpoint.is_some());
        let rows = sent.map(|one| {
            [
                text(one.endpoint.as_deref().unwrap_or_default()),
                delivery_badge(one),
                text(one.attempts.unwrap_or_default().to_string()),
                text(one.answer()),
                one.next_at.map_or_else(|| text("-"), time),
                one.sent_at.map_or_else(|| text("-"), time),
            ]
        });
        let act = |verb: &str, label: &str, hint: &str| {
            let path = format!("events/{}/{verb}", event.event);
            form(visit, &Form { path: &path, label, hidden: &[], visible: &[], hint })
        };
        let headings = ["endpoint", "status", "#attempts", "last answer", "next attempt", "sent"];
        html! {
            @if visit.may(Right::Operate) && event.endpoint.is_some() {
                div.actions {
                    @if !self.deliveries.iter().all(|one| one.status.as_deref() == Some("sent")) {
                        (act("redeliver", "Send again", "Each endpoint that has not accepted it gets it again, under its id."))
                    }
                    @if has("pending") { (act("cancel", "Give up", "What is pending is not sent.")) }
                }
            }
            (facts(&[
                ("at", time(event.at)),
                ("organization", event.organization.as_deref().map_or_else(|| text("none"), |id| organization(visit, id, ""))),
                ("id", html! { code { (event.event) } }),
            ]))
            h2 { "Deliveries" }
            (table(headings, rows, "No endpoint receives events of this type."))
            h2 { "Body" }
            pre tabindex="0" { (format!("{:#}", self.body)) }
        }
    }
}
