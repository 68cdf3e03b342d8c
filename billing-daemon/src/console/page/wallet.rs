//! One organization: what its wallet covers, what the prepaid policy has decided, and what spends the money.

use billing_jobs::{
    currency::Currency,
    money::Rate,
    period::Micros,
    prepaid::{Assessment, Given, Prepaid, Runway, earliest, unmet},
};
use billing_store::{columns, query_fleet, statement};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use sea_orm::{DbBackend, DbErr};
use serde::Serialize;

use super::wallets::{level, runway, state_badge};
use crate::{
    console::{
        layout::{facts, table, text, time},
        problem::Problem,
        visit::{View, Visit},
    },
    subjects,
};

/// How many instances are shown, the most expensive ones.
const INSTANCES: u32 = 50;

#[derive(Serialize)]
pub(in crate::console) struct Wallet {
    organization: String,
    name: String,
    balance: Option<String>,
    credit_limit: Option<String>,
    currency: Option<Currency>,
    owed: Option<String>,
    burn_per_hour: Option<String>,
    runway_hours: Option<i64>,
    /// Whether nothing is spent.
    is_unlimited: bool,
    state: &'static str,
    since: DateTime<Utc>,
    episode: i64,
    notices: Vec<NoticeSent>,
    order: Option<i64>,
    desired: &'static str,
    /// The conditions of a suspension that are not met.
    unmet: Vec<&'static str>,
    /// When a suspension is possible at the earliest, if only time is missing.
    suspension_from: Option<DateTime<Utc>>,
    /// Why the figures are unknown.
    problem: Option<String>,
    instances: Vec<Spender>,
}

#[derive(Serialize)]
struct NoticeSent {
    level: i32,
    at: DateTime<Utc>,
    outcome: &'static str,
}

/// An instance with its price.
#[derive(Serialize)]
struct Spender {
    id: String,
    label: String,
    status: String,
    /// None before its first charge.
    per_hour: Option<String>,
}

fn at(micros: Micros) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Wallet, Problem> {
    let name = visit.param("organization");
    let id = subjects::organization(visit.db(), name).await?;
    let expected = visit.console.shared.expected();
    let interval = expected.billing_interval.unwrap_or(crate::config::DEFAULT_BILLING_INTERVAL);
    let prepaid = Prepaid::new(visit.db().clone(), visit.console.reading.panel, &expected.prepaid, interval);
    let failed = |error: DbErr| Problem::database("read the wallet", &error);
    let found = prepaid.organization(&id).await.map_err(failed)?;
    let found = found.ok_or_else(|| Problem::NotFound(format!("organization `{name}` was deleted")))?;
    let instances = spenders(visit, &id).await.map_err(failed)?;
    Ok(Wallet::of(&prepaid, found, instances))
}

async fn spenders(visit: &Visit, organization: &str) -> Result<Vec<Spender>, DbErr> {
    let uuid = if visit.db().get_database_backend() == DbBackend::Sqlite { "" } else { "::uuid" };
    let sql = format!(
        "SELECT CAST(i.id AS text) AS id, i.label, i.status, m.rate
           FROM vps_instances i LEFT JOIN billing_meters m ON m.instance_id = i.id
          WHERE i.organization_id = $1{uuid} ORDER BY coalesce(m.rate, 0) DESC, i.id LIMIT {INSTANCES}"
    );
    let rows = query_fleet(visit.db(), statement(visit.db(), &sql, [organization.into()])).await?;
    let spender = |row: &sea_orm::QueryResult| {
        Ok(Spender {
            id: columns::lossy(row, "id"),
            label: columns::lossy(row, "label"),
            status: columns::lossy(row, "status"),
            per_hour: row.try_get::<Option<i64>>("", "rate")?.map(|rate| Rate(rate).per_hour(4)),
        })
    };
    rows.iter().map(spender).collect()
}

impl Wallet {
    fn of(prepaid: &Prepaid, found: Assessment, instances: Vec<Spender>) -> Self {
        let unmet = unmet(prepaid.rules(), prepaid.mode(), &found.standing, &found.facts);
        let account = found.account.as_ref().ok();
        let notices = found.facts.notices.iter().map(|notice| NoticeSent {
            level: notice.level.0,
            at: at(notice.at),
            outcome: match notice.given {
                Given::Recorded => "recorded",
                Given::Passed => "passed",
                Given::Sent => "sent",
                Given::Delivered(_) => "delivered",
            },
        });
        Self {
            balance: account.map(|account| account.balance.to_string()),
            credit_limit: account.map(|account| account.credit_limit.to_string()),
            owed: account.map(|account| account.owed.to_string()),
            burn_per_hour: account.map(|account| account.burn.per_hour(4)),
            currency: found.currency,
            runway_hours: found.facts.runway.and_then(Runway::hours),
            is_unlimited: found.facts.runway == Some(Runway::Infinite),
            state: found.standing.state.as_str(),
            since: at(found.standing.since),
            episode: found.standing.episode,
            notices: notices.collect(),
            order: Some(found.standing.epoch).filter(|epoch| *epoch > 0),
            desired: found.standing.desired.as_str(),
            suspension_from: earliest(&unmet).map(at),
            unmet: unmet.iter().map(|unmet| unmet.guard.as_str()).collect(),
            problem: found.account.err(),
            organization: found.organization,
            name: found.name,
            instances,
        }
    }
}

impl View for Wallet {
    fn title(&self) -> String {
        format!("Wallet of {}", if self.name.is_empty() { &self.organization } else { &self.name })
    }

    fn body(&self, visit: &Visit) -> Markup {
        let currency = self.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
        let amount = |amount: &Option<String>| {
            text(amount.as_ref().map_or_else(|| "unknown".to_owned(), |amount| format!("{amount}{currency}")))
        };
        let covered =
            if self.is_unlimited { text("no limit: nothing is spent") } else { runway(self.runway_hours) };
        let suspension = self.suspension_from.map_or_else(|| text("not foreseeable"), time);
        let notices = self
            .notices
            .iter()
            .map(|notice| [text(level(notice.level)), time(notice.at), text(notice.outcome)]);
        let instances = self.instances.iter().map(|spender| {
            [
                html! { a href=(visit.link(format!("charges/{}", spender.id))) { (spender.label) } },
                text(&spender.status),
                text(spender.per_hour.as_deref().unwrap_or("not charged yet")),
            ]
        });
        html! {
            @if let Some(problem) = &self.problem { p.notice.bad { (problem) } }
            (facts(&[
                ("balance", amount(&self.balance)),
                ("per hour", amount(&self.burn_per_hour)),
                ("runway", covered),
                ("owed", amount(&self.owed)),
                ("credit limit", amount(&self.credit_limit)),
                ("state", html! { (state_badge(self.state)) " since " (time(self.since)) }),
                ("episode", text(self.episode.to_string())),
                ("newest order", text(self.order.map_or_else(|| "none".to_owned(), |order| format!("{order}: {}", self.desired)))),
                ("suspension from", suspension),
                ("a suspension lacks", text(if self.unmet.is_empty() { "nothing".to_owned() } else { self.unmet.join(", ") })),
            ]))
            h2 { "Notices of this episode" }
            (table(["notice", "at", "outcome"], &notices.collect::<Vec<_>>(), "No notice."))
            h2 { "Instances by price" }
            (table(["instance", "status", "#per hour"], &instances.collect::<Vec<_>>(), "No instance."))
            p { a href=(visit.link(format!("holds?organization={}", self.organization))) { "Holds of this organization" } }
            p.hint { "Organization " code { (self.organization) } }
        }
    }
}
