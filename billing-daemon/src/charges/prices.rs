//! The versions of a plan's price, and which of them a charge has.

use billing_entities::billing_seen_rates as seen;
use billing_jobs::{money::Rate, price::Backups};
use billing_store::Transaction;
use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use super::views::{ChargeView, PriceView};

/// How many versions are shown, the newest.
const SHOWN: u64 = 50;

/// Reads the prices of a plan that runs saw, the newest first. Those with other backups than the charged hours had are left out,
/// as far as the cycle of the charge has them.
pub(super) async fn seen_prices(
    txn: &Transaction,
    plan: &str,
    charge: Option<&ChargeView>,
) -> Result<Vec<PriceView>, DbErr> {
    let mut query = seen::Entity::find().filter(seen::Column::PlanId.eq(plan));
    let cycle = charge.and_then(|charge| charge.cycle.as_ref());
    let backups = cycle.and_then(|cycle| cycle.metadata["backup_frequency"].as_str());
    if let Some(backups) = backups {
        query = query.filter(seen::Column::Backups.eq(Backups::of(Some(backups)).as_str()));
    }
    let newest = query.order_by_desc(seen::Column::SeenAt).order_by_asc(seen::Column::Backups).limit(SHOWN);
    let versions = newest.all(txn).await?;
    let applied = charge.and_then(|charge| applied(&versions, charge.period_end, charge.rate));
    let view = |(place, version): (usize, seen::Model)| PriceView {
        seen_at: version.seen_at.0,
        backups: version.backups,
        hourly_price: Rate(version.rate).per_hour(6),
        rate: version.rate,
        applied: applied == Some(place),
    };
    Ok(versions.into_iter().enumerate().map(view).collect())
}

/// The place of the version, of these from the newest to the oldest, that applied to an hour which was charged at `rate`: the last one
/// that was seen before the hour ended, or else the first one. None if that is another rate: the instance had another plan then.
fn applied(versions: &[seen::Model], hour_end: DateTime<Utc>, rate: i64) -> Option<usize> {
    let applies = |version: &seen::Model| {
        let mut same = versions.iter().filter(|other| other.backups == version.backups);
        let in_force = same.clone().find(|other| other.seen_at.0 < hour_end).or_else(|| same.next_back());
        in_force == Some(version) && version.rate == rate
    };
    versions.iter().position(applies)
}

#[cfg(test)]
mod tests {
    use billing_entities::Instant;
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn last_price_before_hour_end_applies() {
        let at = |hour| DateTime::UNIX_EPOCH + TimeDelta::hours(hour);
        let version = |hour, backups: &str, rate| seen::Model {
            plan_id: "plan".to_owned(),
            backups: backups.to_owned(),
            seen_at: Instant(at(hour)),
            rate,
            backup_rate: 0,
        };
        let versions = [
            version(9, "none", 30),
            version(5, "daily", 25),
            version(5, "none", 20),
            version(2, "daily", 15),
            version(2, "none", 10),
        ];
        for (hour_end, rate, expected) in [
            (1, 10, Some(4)),
            (2, 10, Some(4)),
            (5, 10, Some(4)),
            (6, 20, Some(2)),
            (6, 25, Some(1)),
            (6, 10, None),
            (9, 20, Some(2)),
            (10, 30, Some(0)),
            (10, 31, None),
        ] {
            assert_eq!(applied(&versions, at(hour_end), rate), expected, "{hour_end} h at {rate}");
        }
    }
}
