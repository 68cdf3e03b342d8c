//! The fleet of a benchmark: generated from fixed numbers, so that every database gets the same one.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use uuid::Uuid;

/// The number of instances per wallet.
const INSTANCES_PER_ORGANIZATION: u32 = 5;
/// 2026-01-01T00:00:00Z in milliseconds: until then, less up to an hour, every instance is billed.
const EPOCH_MS: i64 = 1_767_225_600_000;
const HOUR_MS: i64 = 3_600_000;

/// The plans of the demo.
pub(super) use billing_daemon::DEMO_PLANS as PLANS;
const ROLES: [&str; 6] = ["web", "db", "mail", "cache", "build", "vpn"];

/// The instant up to which the `hour`th run bills, in microseconds: an instance has exactly one more hour due each hour.
pub(super) fn as_of_micros(hour: u32) -> i64 {
    (EPOCH_MS + i64::from(hour) * HOUR_MS) * 1_000
}

/// An organization with its wallet and its instances.
pub(super) struct Organization {
    pub(super) user: Uuid,
    pub(super) id: Uuid,
    pub(super) wallet: Uuid,
    pub(super) slug: String,
    /// The wallet's money in ten-thousandths.
    pub(super) balance: i64,
    pub(super) instances: Vec<Instance>,
}

/// An instance that is billed up to less than an hour before the first run.
pub(super) struct Instance {
    pub(super) id: Uuid,
    pub(super) plan: String,
    pub(super) label: String,
    pub(super) status: &'static str,
    pub(super) backups: &'static str,
    pub(super) created_ms: i64,
    pub(super) billed_ms: i64,
}

/// The id of a plan.
pub(super) fn plan_id(index: usize) -> Uuid {
    Uuid::from_u128(0x7000_0000_0000_4000_8000_0000_0000_0000 + index as u128)
}

/// All organizations of a fleet of this many instances, in no particular order.
pub(super) fn organizations(instances: u32) -> impl Iterator<Item = Organization> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut made = 0;
    (0..instances.div_ceil(INSTANCES_PER_ORGANIZATION)).map(move |index| {
        let instances = (0..INSTANCES_PER_ORGANIZATION.min(instances - made)).map(|_| {
            made += 1;
            instance(&mut rng, made)
        });
        let instances = instances.collect();
        Organization {
            user: random_id(&mut rng),
            id: random_id(&mut rng),
            wallet: random_id(&mut rng),
            slug: format!("customer-{index}"),
            balance: rng.random_range(10_000..90_000) * 10_000,
            instances,
        }
    })
}

fn instance(rng: &mut StdRng, number: u32) -> Instance {
    let plan = rng.random_range(0..PLANS.len());
    let billed_ms = EPOCH_MS - rng.random_range(0..HOUR_MS);
    Instance {
        id: random_id(rng),
        // The panel refers to a plan by either of its names.
        plan: if number.is_multiple_of(3) {
            format!("g6-{}", PLANS[plan].0)
        } else {
            plan_id(plan).to_string()
        },
        label: format!("{}-{number:07}", ROLES[rng.random_range(0..ROLES.len())]),
        status: ["running", "running", "running", "offline", "stopped"][rng.random_range(0..5)],
        backups: ["none", "weekly", "daily"][rng.random_range(0..3)],
        created_ms: billed_ms - rng.random_range(1..2_000) * HOUR_MS,
        billed_ms,
    }
}

fn random_id(rng: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

/// The panel's text for an instant.
pub(super) fn text(milliseconds: i64) -> String {
    let instant = chrono::DateTime::from_timestamp_millis(milliseconds).expect("a time of this century");
    instant.to_rfc3339_opts(chrono::SecondsFormat::Micros, false)
}
