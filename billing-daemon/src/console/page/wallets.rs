//! The wallets that cover few hours, the most urgent first.

use billing_jobs::{
    currency::Currency,
    money::{Money, Rate},
    prepaid::Level,
};
use billing_store::columns;
use sea_orm::{DbBackend, DbErr, QueryResult, Value};

use super::prelude::*;
use crate::prepaid::level_in_words;

/// The hours that a listed wallet does not cover, unless the query has another number.
const BELOW: i64 = 72;
/// How many wallets are shown at once.
const SHOWN: usize = 50;
/// The runway of wallets of which it is unknown, which come first.
const UNKNOWN: i64 = -9_000_000_000;

#[derive(Serialize)]
pub(in crate::console) struct WalletsPage {
    below: i64,
    /// The organization that the query names.
    found: Option<String>,
    wallets: Vec<WatchedWallet>,
    /// The values of `runway` and `after` for the next page.
    next: Option<(i64, String)>,
}

/// A wallet that the prepaid policy watches, as its last check wrote it.
#[derive(Serialize)]
struct WatchedWallet {
    organization: String,
    name: String,
    balance: Option<String>,
    currency: Option<Currency>,
    owed: Option<String>,
    burn_per_hour: Option<String>,
    runway_hours: Option<i64>,
    state: String,
    episode: i64,
    /// The most urgent notice: hours of runway, 0 for an exhausted wallet, -1 for the final notice.
    level: Option<i32>,
    /// The number of the newest order.
    order: Option<i64>,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<WalletsPage, Problem> {
    let below = visit.parsed("below")?.unwrap_or(BELOW);
    let found = match visit.query("find") {
        Some(name) => Some(nearest::organization(visit, name).await?),
        None => None,
    };
    let (runway, after) =
        (visit.parsed("runway")?.unwrap_or(UNKNOWN), visit.query("after").unwrap_or_default());
    let mut wallets = read_watched(visit, below, runway, after).await?;
    let next = keep(&mut wallets, SHOWN);
    let next = next.map(|last| (last.runway_hours.unwrap_or(UNKNOWN), last.organization.clone()));
    Ok(WalletsPage { below, found, wallets, next })
}

async fn read_watched(
    visit: &Visit,
    below: i64,
    runway: i64,
    after: &str,
) -> Result<Vec<WatchedWallet>, Problem> {
    // The first wallet of an organization with several, which are held anyway.
    let sql = format!(
        "SELECT s.*, o.name,
                (SELECT CAST(w.balance AS text) FROM wallets w WHERE w.organization_id = s.id ORDER BY w.id LIMIT 1) AS balance,
                (SELECT w.currency FROM wallets w WHERE w.organization_id = s.id ORDER BY w.id LIMIT 1) AS currency
           FROM (SELECT * FROM (
                   SELECT organization_id AS id, CAST(organization_id AS text) AS organization, state, episode, level, burn, owed,
                          order_number, runway_hours, coalesce(runway_hours, {UNKNOWN}) AS runway
                     FROM billing_standings WHERE watched) AS watched
                  WHERE runway < $1 AND (runway > $2 OR runway = $2 AND organization > $3)
                  ORDER BY runway, organization LIMIT {}) AS s
           LEFT JOIN organizations o ON o.id = s.id
          ORDER BY s.runway, s.organization",
        SHOWN + 1
    );
    let values: [Value; 3] = [below.into(), runway.into(), after.into()];
    let is_integer = visit.db().get_database_backend() == DbBackend::Sqlite;
    visit.rows("read the wallets", &sql, values, |row| watched(row, is_integer)).await
}

fn watched(row: &QueryResult, is_integer: bool) -> Result<WatchedWallet, DbErr> {
    let balance = columns::optional_text(row, "balance", "wallets.balance").ok().flatten();
    // SQLite has ten-thousandths.
    let decimal = |text: String| {
        if is_integer { text.parse().ok().map(|amount| Money(amount).to_string()) } else { Some(text) }
    };
    let number: i64 = row.try_get("", "order_number")?;
    Ok(WatchedWallet {
        organization: row.try_get("", "organization")?,
        name: columns::lossy(row, "name"),
        balance: balance.and_then(decimal),
        currency: columns::lossy(row, "currency").parse().ok(),
        owed: row.try_get::<Option<i64>>("", "owed")?.map(|owed| Money(owed).to_string()),
        burn_per_hour: row.try_get::<Option<i64>>("", "burn")?.map(|burn| Rate(burn).per_hour(4)),
        runway_hours: row.try_get("", "runway_hours")?,
        state: row.try_get("", "state")?,
        episode: row.try_get("", "episode")?,
        level: row.try_get("", "level")?,
        order: Some(number).filter(|number| *number > 0),
    })
}

/// The state of a wallet as a badge.
pub(super) fn state_badge(state: &str) -> Markup {
    let tone = match state {
        "ok" => Tone::Good,
        "low" => Tone::Warning,
        "exhausted" | "suspended" => Tone::Bad,
        _ => Tone::Idle,
    };
    badge(tone, state)
}

/// The hours that a wallet covers.
pub(super) fn runway(hours: Option<i64>) -> Markup {
    text(match hours {
        None => "unknown".to_owned(),
        Some(hours) if hours < 0 => format!("owes {} h", hours.unsigned_abs()),
        Some(hours) => format!("{hours} h"),
    })
}

impl View for WalletsPage {
    fn title(&self) -> String {
        format!("Wallets below {} h", self.below)
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.wallets.iter().map(|wallet| {
            let currency = wallet.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
            let amount = |amount: &Option<String>| amount.clone().unwrap_or_else(|| "unknown".to_owned());
            [
                organization(visit, &wallet.organization, &wallet.name),
                state_badge(&wallet.state),
                runway(wallet.runway_hours),
                text(format!("{}{currency}", amount(&wallet.balance))),
                text(amount(&wallet.owed)),
                text(amount(&wallet.burn_per_hour)),
                text(wallet.level.map(|level| level_in_words(Level(level))).unwrap_or_default()),
                text(wallet.order.map(|order| order.to_string()).unwrap_or_default()),
            ]
        });
        let headings =
            ["organization", "state", "#runway", "#balance", "#owed", "#per hour", "last notice", "#order"];
        let empty = "No watched wallet covers fewer hours. A job of kind `prepaid` watches them.";
        html! {
            form.filter method="get" action=(visit.link("wallets")) {
                label { "Fewer hours than " input name="below" inputmode="numeric" value=(self.below); }
                label { "Organization (id, slug or name) " input name="find"; }
                button { "Show" }
            }
            @if let Some(found) = &self.found {
                p { "Found " (organization(visit, found, "")) }
            }
            (table(headings, rows, empty))
            @if let Some((runway, after)) = &self.next {
                p { (link(visit, format!("wallets?below={}&runway={runway}&after={after}", self.below), "Next wallets")) }
            }
        }
    }
}
