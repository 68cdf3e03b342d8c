//! One organization: what its wallet covers, what the prepaid policy has decided and ordered, what applies to it alone, and what spends
//! the money.

use billing_entities::{Id, Instant, billing_standings};
use billing_jobs::{
    money::Rate,
    prepaid::{Level, Prepaid},
};
use billing_store::columns;
use chrono::SecondsFormat;
use sea_orm::{DbBackend, DbErr, EntityTrait as _, QueryResult};
use uuid::Uuid;

use super::{events::delivery_badge, prelude::*, wallets::state_badge};
use crate::{
    charges::{RecentCharge, recent},
    format::instant,
    prepaid::{
        DeliveryFilter, DeliveryView, Policy, StandingView, level_in_words, read_deliveries, read_policy,
    },
};

/// How many instances are shown, the most expensive ones.
const INSTANCES: u32 = 50;
/// How many deliveries of orders are shown, the newest ones.
const ORDERS: u32 = 10;

#[derive(Serialize)]
pub(in crate::console) struct Wallet {
    #[serde(flatten)]
    standing: StandingView,
    /// The newest order that every needed endpoint has acknowledged.
    acknowledged: Option<Acknowledged>,
    /// The newest orders, each with the endpoints that receive it.
    orders: Vec<DeliveryView>,
    policy: Policy,
    /// The newest charges of the present instances.
    charges: Vec<RecentCharge>,
    instances: Vec<Spender>,
}

#[derive(Serialize)]
struct Acknowledged {
    order: i64,
    at: DateTime<Utc>,
}

/// An instance with its price.
#[derive(Serialize)]
struct Spender {
    id: String,
    label: String,
    status: String,
    /// None before its first charge.
    per_hour: Option<String>,
    /// The end of its last charge.
    billed_through: Option<DateTime<Utc>>,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Wallet, Problem> {
    let name = visit.param("organization");
    let id = nearest::organization(visit, name).await?;
    let expected = visit.console.shared.expected();
    let interval = expected.billing_interval.unwrap_or(crate::config::DEFAULT_BILLING_INTERVAL);
    let prepaid = Prepaid::new(visit.db().clone(), visit.console.reading.panel, &expected.prepaid, interval);
    let failed = |error: DbErr| Problem::database("read the wallet", &error);
    let found = prepaid.organization(&id).await.map_err(failed)?;
    let found = found.ok_or_else(|| Problem::not_found(format!("organization `{name}` was deleted")))?;
    let policy = read_policy(visit.db(), &id).await.map_err(failed)?;
    let orders =
        DeliveryFilter { organization: &id, only_orders: true, limit: ORDERS, ..DeliveryFilter::default() };
    Ok(Wallet {
        standing: StandingView::of(&prepaid, &found),
        acknowledged: acknowledged(visit, &id).await?,
        orders: read_deliveries(visit.db(), orders).await.map_err(failed)?,
        policy,
        charges: recent(visit.db(), &id).await.map_err(failed)?,
        instances: spenders(visit, &id).await?,
    })
}

async fn acknowledged(visit: &Visit, organization: &str) -> Result<Option<Acknowledged>, Problem> {
    let Ok(id) = organization.parse::<Uuid>() else { return Ok(None) };
    let standing = |row: billing_standings::Model| {
        row.acked_order.zip(row.acked_at).map(|(order, Instant(at))| Acknowledged { order, at })
    };
    let query = billing_standings::Entity::find_by_id(Id(id));
    Ok(visit.models("read the standing", query, standing).await?.pop().flatten())
}

async fn spenders(visit: &Visit, organization: &str) -> Result<Vec<Spender>, Problem> {
    let uuid = if visit.db().get_database_backend() == DbBackend::Sqlite { "" } else { "::uuid" };
    let sql = format!(
        "SELECT CAST(i.id AS text) AS id, i.label, i.status, m.rate, m.billed_through
           FROM vps_instances i LEFT JOIN billing_meters m ON m.instance_id = i.id
          WHERE i.organization_id = $1{uuid} ORDER BY coalesce(m.rate, 0) DESC, i.id LIMIT {INSTANCES}"
    );
    let spender = |row: &QueryResult| {
        Ok(Spender {
            id: columns::lossy(row, "id"),
            label: columns::lossy(row, "label"),
            status: columns::lossy(row, "status"),
            per_hour: row.try_get::<Option<i64>>("", "rate")?.map(|rate| Rate(rate).per_hour(4)),
            billed_through: row.try_get::<Option<Instant>>("", "billed_through")?.map(|Instant(at)| at),
        })
    };
    visit.rows("read the instances", &sql, [organization.into()], spender).await
}

impl View for Wallet {
    fn title(&self) -> String {
        let wallet = &self.standing.wallet;
        format!("Wallet of {}", if wallet.name.is_empty() { &wallet.organization } else { &wallet.name })
    }

    fn body(&self, visit: &Visit) -> Markup {
        let StandingView { wallet, since, desired, suspension } = &self.standing;
        let notices = wallet
            .notices
            .iter()
            .map(|notice| [text(level_in_words(Level(notice.level))), time(notice.at), text(notice.outcome)]);
        let instances = self.instances.iter().map(|spender| {
            [
                link(visit, format!("charges/{}", spender.id), &spender.label),
                text(&spender.status),
                text(spender.per_hour.as_deref().unwrap_or("not charged yet")),
                spender.billed_through.map_or_else(|| text("-"), time),
            ]
        });
        html! {
            @if let Some(problem) = &wallet.problem { p.notice.bad { (problem) } }
            (self.money())
            h2 { "What the prepaid policy decided" }
            (facts(&[
                ("state", html! { (state_badge(wallet.state)) " since " (time(*since)) }),
                ("episode", text(wallet.episode.to_string())),
                ("newest order", text(wallet.order.map_or_else(|| "none".to_owned(), |order| format!("{order}: {desired}")))),
                ("suspension from", suspension.earliest.map_or_else(|| text("not foreseeable"), time)),
            ]))
            @if !suspension.unmet.is_empty() {
                p.hint { "A suspension lacks:" }
                ul { @for unmet in &suspension.unmet { li { (unmet.detail) } } }
            }
            h2 { "Notices of this episode" }
            (table(["notice", "at", "outcome"], notices, "No notice."))
            h2 { "Orders" }
            (self.orders(visit))
            h2 { "What applies to this organization alone" }
            (self.policy(visit))
            h2 { "Instances by price" }
            (table(["instance", "status", "#per hour", "charged through"], instances, "No instance."))
            h2 { "Last charges" }
            (self.charges(visit))
            p {
                (link(visit, format!("holds?organization={}", wallet.organization), "Holds")) " · "
                (link(visit, format!("events?organization={}", wallet.organization), "Events"))
            }
            p.hint { "Organization " code { (wallet.organization) } }
        }
    }
}

impl Wallet {
    fn money(&self) -> Markup {
        let wallet = &self.standing.wallet;
        let currency = wallet.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
        let amount = |amount: &Option<String>| {
            text(amount.as_ref().map_or_else(|| "unknown".to_owned(), |amount| format!("{amount}{currency}")))
        };
        facts(&[
            ("balance", amount(&wallet.balance)),
            ("per hour", amount(&wallet.burn_per_hour)),
            ("runway", text(wallet.runway_in_words())),
            ("owed", amount(&wallet.owed)),
            ("credit limit", amount(&wallet.credit_limit)),
        ])
    }

    fn orders(&self, visit: &Visit) -> Markup {
        let rows = self.orders.iter().map(|one| {
            [
                link(visit, format!("events/{}", one.event), one.order.unwrap_or_default()),
                text(&one.kind),
                time(one.at),
                text(one.endpoint.as_deref().unwrap_or_default()),
                delivery_badge(one),
                one.sent_at.map_or_else(|| text("not yet"), time),
                text(one.answer()),
            ]
        });
        let headings = ["#order", "~type", "at", "endpoint", "status", "acknowledged", "last answer"];
        html! {
            @if let Some(Acknowledged { order, at }) = &self.acknowledged {
                p { "Order " (order) " is acknowledged by every needed endpoint since " (time(*at)) "." }
            }
            (table(headings, rows, "No order."))
            @if !self.orders.is_empty() {
                p.hint { "An order is for every instance of the organization, and an endpoint acknowledges it as a whole." }
            }
        }
    }

    fn charges(&self, visit: &Visit) -> Markup {
        let rows = self.charges.iter().map(|charge| {
            let at = charge.period_start;
            let start = at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
            let page = format!("charges/{}?{}", charge.instance, pairs(&[("at", &start)]));
            [
                link(visit, page, time(at)),
                text(&charge.label),
                text(charge.hours.to_string()),
                text(format!("{} {}", charge.amount, charge.currency)),
            ]
        });
        table(["from", "instance", "#hours", "#amount"], rows, "No charge of the last day.")
    }

    /// The policy, and the form that changes it; without the login that may write it, the command.
    fn policy(&self, visit: &Visit) -> Markup {
        let policy = &self.policy;
        let until = policy.never_suspend_until.map(instant).unwrap_or_default();
        let contact = policy.contact.as_deref().unwrap_or_default();
        let or_none = |value: &str| text(if value.is_empty() { "not set" } else { value });
        // A policy that another person has set meanwhile is not replaced.
        let shown =
            policy.changed_at.map(|at| at.to_rfc3339_opts(SecondsFormat::Micros, true)).unwrap_or_default();
        let changed = policy.changed_by.as_ref().zip(policy.changed_at);
        html! {
            (facts(&[
                ("mode", text(&policy.mode)),
                ("not suspended before", or_none(&until)),
                ("contact", or_none(contact)),
                ("set by", changed.map_or_else(|| text("no one"), |(by, at)| html! { (by) ", " (time(at)) })),
                ("reason", or_none(policy.reason.as_deref().unwrap_or_default())),
            ]))
            @if !visit.may(Right::Approve) {
            } @else if !visit.console.can_adjust() {
                p.hint {
                    "This daemon's login may not write it. On the command line: "
                    code { "billing-daemon policy set " (policy.organization) " --mode " (policy.mode) " --reason ..." }
                }
            } @else {
                div.actions {
                    (form(visit, &Form {
                        path: &format!("wallets/{}/policy", policy.organization),
                        label: "Set the policy",
                        hidden: &[("changed_at", &shown)],
                        visible: &[
                            (Field::MODE, &policy.mode),
                            (Field::CREDIT_LIMIT, &policy.credit_limit),
                            (Field::NEVER_SUSPEND_UNTIL, &until),
                            (Field::CONTACT, contact),
                        ],
                        hint: "postpaid: neither notified nor suspended; exempt: notified and never suspended. \
                               The next check of the policy follows it.",
                    }))
                }
            }
        }
    }
}
