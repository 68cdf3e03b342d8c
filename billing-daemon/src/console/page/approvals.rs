//! What waits for an approval: a run that would charge far more than usual, and instances with more due hours than the catch-up limit.

use std::collections::HashMap;

use billing_entities::Instant;
use billing_jobs::{
    billing::{Biller, Excess, spike_guard::pending_spike},
    hold::Reason,
    money::{Money, Rate},
    price::{Backups, PriceChange},
};
use billing_store::{columns, query_fleet, statement};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, QueryResult};

use super::prelude::*;
use crate::status::DeadDeliveries;

/// How many organizations are shown.
const SHOWN: u32 = 50;

#[derive(Serialize)]
pub(in crate::console) struct Approvals {
    /// The entry of the audit log that announced the spike.
    announced: Option<i64>,
    excesses: Vec<Excess>,
    /// The plans whose prices rose since the last run, those that raise the spike most first.
    raised: Vec<RaisedPrice>,
    catch_up: Vec<CatchUp>,
    /// The endpoints that answered that they are gone: they get no event until one is sent again.
    disabled_endpoints: Vec<DeadDeliveries>,
}

/// A price of a plan that is higher than the one that runs saw last.
#[derive(Serialize)]
struct RaisedPrice {
    plan: String,
    name: String,
    backups: Backups,
    /// Both prices of an hour, as decimal text.
    before: String,
    now: String,
    /// The instances of the plan.
    instances: i64,
    #[serde(skip)]
    raise: i128,
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
    let uuid = if db.get_database_backend() == DbBackend::Sqlite { "" } else { "::uuid" };
    let sql = format!(
        "SELECT h.*, o.name FROM (
            SELECT organization_id AS id, CAST(organization_id AS text) AS organization, count(*) AS instances,
                   CAST(coalesce(sum(hours_due), 0) AS bigint) AS hours, CAST(sum(amount_due) AS bigint) AS amount,
                   min(currency) AS currency, min(opened_at) AS since
              FROM billing_holds
             WHERE closed_at IS NULL AND reason = $1 AND ($2{uuid} IS NULL OR organization_id = $2{uuid})
             GROUP BY organization_id ORDER BY min(opened_at), organization_id LIMIT {SHOWN}) AS h
         LEFT JOIN organizations o ON o.id = h.id ORDER BY h.since, h.organization"
    );
    let values = [Reason::CatchUpLimit.as_str().into(), organization.map(str::to_owned).into()];
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
    let raised = if spike.is_some() { raised(visit).await? } else { Vec::new() };
    let (announced, excesses) = spike.map_or((None, Vec::new()), |spike| (Some(spike.id), spike.excesses));
    let disabled = visit.status.prepaid.dead_deliveries.iter().filter(|dead| dead.gone).cloned();
    Ok(Approvals { announced, excesses, raised, catch_up, disabled_endpoints: disabled.collect() })
}

/// Reads which prices rose, and of how many instances.
async fn raised(visit: &Visit) -> Result<Vec<RaisedPrice>, Problem> {
    let settings = visit.console.shared.expected().billing;
    let changes =
        Biller::new(visit.db().clone(), visit.console.reading.panel, settings).price_changes().await;
    let changes = changes.map_err(|error| Problem::database("read the prices", &error))?;
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT CAST(p.id AS text) AS plan, p.name, CAST(coalesce(sum(n.instances), 0) AS bigint) AS instances
                 FROM vps_plans p
                 LEFT JOIN (SELECT plan_id, count(*) AS instances FROM vps_instances GROUP BY plan_id) AS n
                   ON n.plan_id = CAST(p.id AS text) OR n.plan_id = p.provider_plan_id
                GROUP BY p.id, p.name";
    let plan = |row: &QueryResult| {
        let instances: i64 = row.try_get("", "instances")?;
        Ok((columns::lossy(row, "plan"), (columns::lossy(row, "name"), instances)))
    };
    let plans = visit.rows("count the instances of the plans", sql, [], plan).await?;
    let plans: HashMap<String, (String, i64)> = plans.into_iter().collect();
    let raised = |PriceChange { plan, backups, before, now }: PriceChange| {
        let (name, instances) = plans.get(&plan).cloned().unwrap_or_default();
        let price = |rate: Rate| rate.per_hour(6);
        let raise = i128::from(now.0 - before.0) * i128::from(instances);
        RaisedPrice { plan, name, backups, before: price(before), now: price(now), instances, raise }
    };
    let mut raised: Vec<_> = changes.into_iter().map(raised).filter(|price| price.raise > 0).collect();
    raised.sort_by_key(|price| std::cmp::Reverse(price.raise));
    raised.truncate(SHOWN as usize);
    Ok(raised)
}

impl View for Approvals {
    fn title(&self) -> String {
        "Approvals".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.catch_up.iter().map(|waiting| {
            let amount = waiting.amount.as_deref().unwrap_or("unknown");
            [
                organization(visit, &waiting.organization, &waiting.name),
                text(grouped(waiting.instances.unsigned_abs())),
                text(grouped(waiting.hours.unsigned_abs())),
                text(format!("{amount} {}", waiting.currency.as_deref().unwrap_or_default())),
                since(&visit.status, waiting.since),
                Self::approve_catch_up(visit, waiting),
            ]
        });
        let disabled = self.disabled_endpoints.iter().map(|dead| {
            let letters = link(visit, "events?status=dead", "Dead letters");
            [text(&dead.endpoint), text(grouped(dead.deliveries)), letters]
        });
        html! {
            h2 { "Runs that would charge far more than usual" }
            @if self.excesses.is_empty() { p.empty { "No run waits for an approval." } }
            @for excess in &self.excesses { (self.spike(visit, excess)) }
            @if !self.raised.is_empty() {
                h3 { "Prices that rose since the last run" }
                (table(["plan", "backups", "#before", "#now", "#instances"], self.raised.iter().map(RaisedPrice::row), ""))
            }
            h2 { "Instances beyond the catch-up limit" }
            (table(["organization", "#instances", "#hours", "#amount", "since", "approve"], rows,
                "No instance waits for an approval."))
            @if !self.disabled_endpoints.is_empty() {
                h2 { "Endpoints that receive nothing more" }
                p.hint { "They answered that they are gone (410). Send a refused event again to enable its endpoint." }
                (table(["endpoint", "#dead letters", "events"], disabled, ""))
            }
        }
    }
}

impl RaisedPrice {
    fn row(&self) -> [Markup; 5] {
        [
            text(if self.name.is_empty() { &self.plan } else { &self.name }),
            text(self.backups.as_str()),
            text(&self.before),
            text(&self.now),
            text(grouped(self.instances.unsigned_abs())),
        ]
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
                        visible: &[(Field::AMOUNT, "")],
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
