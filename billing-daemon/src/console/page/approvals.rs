//! What waits for an approval: a run that would charge far more than usual, and instances with more due hours than the catch-up limit.

use billing_entities::Instant;
use billing_jobs::{
    billing::{Excess, spike_guard::pending_spike},
    hold::Reason,
    money::Money,
};
use billing_store::{columns, query_fleet, statement};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use sea_orm::{DatabaseConnection, DbErr, QueryResult};
use serde::Serialize;

use crate::console::{
    action::{Field, Form, form},
    auth::Right,
    layout::{grouped, since, table, text},
    problem::Problem,
    visit::{View, Visit},
};

/// How many organizations are shown.
const SHOWN: u32 = 50;

#[derive(Serialize)]
pub(in crate::console) struct Approvals {
    /// The entry of the audit log that announced the spike.
    announced: Option<i64>,
    excesses: Vec<Excess>,
    catch_up: Vec<CatchUp>,
}

/// The instances of one organization that are held for the catch-up limit.
#[derive(Debug, PartialEq, Serialize)]
pub(in crate::console) struct CatchUp {
    pub(in crate::console) organization: String,
    name: String,
    pub(in crate::console) instances: i64,
    pub(in crate::console) hours: i64,
    amount: Option<String>,
    currency: Option<String>,
    since: DateTime<Utc>,
}

/// Reads what waits, of one organization or of the first ones.
pub(in crate::console) async fn catch_up(
    db: &DatabaseConnection,
    organization: Option<&str>,
) -> Result<Vec<CatchUp>, DbErr> {
    let sql = format!(
        "SELECT h.*, o.name FROM (
            SELECT organization_id AS id, CAST(organization_id AS text) AS organization, count(*) AS instances,
                   CAST(coalesce(sum(hours_due), 0) AS bigint) AS hours, CAST(sum(amount_due) AS bigint) AS amount,
                   min(currency) AS currency, min(opened_at) AS since
              FROM billing_holds
             WHERE closed_at IS NULL AND reason = $1 AND (CAST(organization_id AS text) = $2 OR $2 = '')
             GROUP BY organization_id ORDER BY min(opened_at), organization_id LIMIT {SHOWN}) AS h
         LEFT JOIN organizations o ON o.id = h.id ORDER BY h.since, h.organization"
    );
    let values = [Reason::CatchUpLimit.as_str().into(), organization.unwrap_or_default().into()];
    let rows = query_fleet(db, statement(db, &sql, values)).await?;
    let waiting = |row: &QueryResult| {
        let Instant(since) = row.try_get("", "since")?;
        Ok(CatchUp {
            organization: row.try_get("", "organization")?,
            name: columns::lossy(row, "name"),
            instances: row.try_get("", "instances")?,
            hours: row.try_get("", "hours")?,
            amount: row.try_get::<Option<i64>>("", "amount")?.map(|amount| Money(amount).to_string()),
            currency: row.try_get("", "currency")?,
            since,
        })
    };
    rows.iter().map(waiting).collect()
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Approvals, Problem> {
    let failed = |error: DbErr| Problem::database("read what waits for an approval", &error);
    let spike = pending_spike(visit.db()).await.map_err(failed)?;
    let catch_up = catch_up(visit.db(), None).await.map_err(failed)?;
    let (announced, excesses) = spike.map_or((None, Vec::new()), |spike| (Some(spike.id), spike.excesses));
    Ok(Approvals { announced, excesses, catch_up })
}

impl View for Approvals {
    fn title(&self) -> String {
        "Approvals".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.catch_up.iter().map(|waiting| {
            let name = if waiting.name.is_empty() { &waiting.organization } else { &waiting.name };
            let amount = waiting.amount.as_deref().unwrap_or("unknown");
            [
                html! { a href=(visit.link(format!("wallets/{}", waiting.organization))) { (name) } },
                text(grouped(waiting.instances.unsigned_abs())),
                text(grouped(waiting.hours.unsigned_abs())),
                text(format!("{amount} {}", waiting.currency.as_deref().unwrap_or_default())),
                text(since(&visit.status, waiting.since)),
                Self::approve_catch_up(visit, waiting),
            ]
        });
        html! {
            h2 { "Runs that would charge far more than usual" }
            @if self.excesses.is_empty() { p.empty { "No run waits for an approval." } }
            @for excess in &self.excesses { (self.spike(visit, excess)) }
            h2 { "Instances beyond the catch-up limit" }
            (table(["organization", "#instances", "#hours", "#amount", "since", "approve"], &rows.collect::<Vec<_>>(),
                "No instance waits for an approval."))
        }
    }
}

impl Approvals {
    fn spike(&self, visit: &Visit, excess: &Excess) -> Markup {
        let (amount, currency) = (excess.due.amount.to_string(), excess.currency.to_string());
        let announced = self.announced.unwrap_or_default().to_string();
        html! {
            div.notice.bad {
                p {
                    "A run would charge " b { (amount) " " (currency) } " for " (grouped(excess.due.hours.unsigned_abs()))
                    " instance hours. Recent runs allow " (excess.limit.to_string()) ". Check the prices first."
                }
                @if visit.may(Right::Approve) {
                    (form(visit, &Form {
                        path: "approvals/spike",
                        label: "Approve for 24 h",
                        hidden: &[("announced", &announced), ("currency", &currency)],
                        visible: &[Field::new("amount")],
                        hint: "Every run of the next 24 hours may charge this much per hour.",
                    }))
                }
            }
        }
    }

    fn approve_catch_up(visit: &Visit, waiting: &CatchUp) -> Markup {
        if !visit.may(Right::Approve) {
            return text("needs the right approve");
        }
        let (instances, hours) = (waiting.instances.to_string(), waiting.hours.to_string());
        form(
            visit,
            &Form {
                path: "approvals/catch-up",
                label: "Approve",
                hidden: &[
                    ("organization", &waiting.organization),
                    ("instances", &instances),
                    ("hours", &hours),
                ],
                visible: &[],
                hint: "The hours that are due now are charged by the next run.",
            },
        )
    }
}
