//! Generates a fleet from a seed: plans from $2 to $160 a month, instances from minutes to weeks old, and every faulty row that a
//! panel's database may contain.

use billing_store::{Transaction, begin_command};
use chrono::{DateTime, TimeDelta, Utc};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use serde::Serialize;
use uuid::Uuid;

/// The number of organizations in one transaction.
const CHUNK: u32 = 1_000;
const INSTANCES_PER_ORGANIZATION: u32 = 5;

/// The plans of generated fleets: name, base price and markup in ten-thousandths a month, backup price in millionths an hour.
#[doc(hidden)]
pub const PLANS: [(&str, i64, i64, i64); 10] = [
    ("nano", 15_000, 5_000, 0),
    ("micro", 40_000, 10_000, 1_370),
    ("small", 80_000, 20_000, 2_740),
    ("standard", 150_000, 50_000, 4_110),
    ("medium", 240_000, 60_000, 5_479),
    ("large", 400_000, 100_000, 8_219),
    ("compute", 480_000, 130_000, 9_589),
    ("memory", 700_000, 200_000, 13_699),
    ("xlarge", 960_000, 240_000, 16_438),
    ("dedicated", 1_280_000, 320_000, 21_918),
];
const CITIES: [&str; 8] = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbour"];
const TRADES: [&str; 8] = ["bakery", "clinic", "forum", "garage", "hostel", "journal", "library", "studio"];
const ROLES: [&str; 6] = ["web", "db", "mail", "cache", "build", "vpn"];

/// Returns the number of organizations of a fleet.
pub(super) fn organizations(instances: u32) -> u32 {
    instances.div_ceil(INSTANCES_PER_ORGANIZATION)
}

#[derive(Serialize)]
struct Organization {
    user: Uuid,
    id: Uuid,
    wallet: Option<Uuid>,
    second_wallet: Option<Uuid>,
    name: String,
    slug: String,
    balance: i64,
}

#[derive(Serialize)]
struct Plan {
    id: Uuid,
    name: &'static str,
    provider: String,
    base: Option<i64>,
    markup: i64,
    backup: i64,
}

#[derive(Serialize)]
struct Instance {
    id: Uuid,
    organization: Uuid,
    plan: String,
    provider: String,
    label: String,
    status: &'static str,
    created: String,
    billed: Option<String>,
    backups: &'static str,
}

/// Generates `instances` instances that have hours due at `as_of`, with their organizations, wallets and plans.
pub(super) async fn seed(
    db: &DatabaseConnection,
    instances: u32,
    seed: u64,
    as_of: DateTime<Utc>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), DbErr> {
    let mut rng = StdRng::seed_from_u64(seed);
    let plans = plans(&mut rng);
    let txn = begin_command(db).await?;
    Insert { db: &txn }.rows(PLAN_ROWS, &plans).await?;
    txn.commit().await?;
    let count = organizations(instances);
    let mut made = 0;
    let mut first = 0;
    while first < count {
        let last = (first + CHUNK).min(count);
        let organizations: Vec<Organization> =
            (first..last).map(|index| organization(&mut rng, index, count)).collect();
        first = last;
        let mut fleet = Vec::new();
        for organization in &organizations {
            for _ in 0..INSTANCES_PER_ORGANIZATION.min(instances - made) {
                fleet.push(instance(&mut rng, made, organization, &plans, as_of));
                made += 1;
            }
        }
        let txn = begin_command(db).await?;
        let insert = Insert { db: &txn };
        for sql in [USER_ROWS, ORGANIZATION_ROWS, WALLET_ROWS, SECOND_WALLET_ROWS] {
            insert.rows(sql, &organizations).await?;
        }
        insert.rows(INSTANCE_ROWS, &fleet).await?;
        txn.commit().await?;
        progress(fleet.len() as u64);
    }
    Ok(())
}

fn id(rng: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

fn plans(rng: &mut StdRng) -> Vec<Plan> {
    let mut plans: Vec<Plan> = PLANS
        .iter()
        .map(|(name, base, markup, backup)| Plan {
            id: id(rng),
            name,
            provider: format!("g6-{name}"),
            base: Some(*base),
            markup: *markup,
            backup: *backup,
        })
        .collect();
    plans.push(Plan {
        id: id(rng),
        name: "unpriced",
        provider: "g6-unpriced".to_owned(),
        base: None,
        markup: 0,
        backup: 0,
    });
    plans
}

fn organization(rng: &mut StdRng, index: u32, count: u32) -> Organization {
    let city = CITIES[rng.random_range(0..CITIES.len())];
    let trade = TRADES[rng.random_range(0..TRADES.len())];
    // A balance of $2 to $200. A few have nothing, one in a hundred has no wallet, one in two hundred has two.
    let wealth = rng.random_range(20_000..2_000_000);
    let rank = index % 200;
    let poor = rank % 40 == 1 || (count < 40 && index == 1);
    Organization {
        user: id(rng),
        id: id(rng),
        wallet: (rank % 100 != 2).then(|| id(rng)),
        second_wallet: (rank == 3).then(|| id(rng)),
        name: format!("{city} {trade}"),
        slug: format!("{city}-{trade}-{index}"),
        balance: if poor { 0 } else { wealth },
    }
}

fn instance(
    rng: &mut StdRng,
    index: u32,
    organization: &Organization,
    plans: &[Plan],
    as_of: DateTime<Utc>,
) -> Instance {
    let rank = index % 200;
    let priced = rng.random_range(0..PLANS.len());
    let plan = if rank == 21 { &plans[PLANS.len()] } else { &plans[priced] };
    let minutes = |minutes: i64| TimeDelta::minutes(minutes);
    let age = minutes(rng.random_range(20..21 * 24 * 60));
    let created = as_of - age;
    // Most were billed within the last hours, new ones never, and a few last days ago.
    let billed = match rank {
        22 | 23 => Some(created.max(as_of - minutes(rng.random_range(80 * 60..160 * 60)))),
        _ if age < TimeDelta::hours(40) => None,
        _ => Some(as_of - minutes(rng.random_range(5..6 * 60))),
    };
    let text = |at: DateTime<Utc>| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, false);
    let role = ROLES[rng.random_range(0..ROLES.len())];
    Instance {
        id: id(rng),
        organization: organization.id,
        // The panel refers to a plan by its id or by the provider's name.
        plan: match rank {
            24 => "g6-discontinued".to_owned(),
            _ if index.is_multiple_of(3) => plan.provider.clone(),
            _ => plan.id.to_string(),
        },
        provider: format!("{}", 10_000_000 + index),
        label: format!("{role}-{index:05}"),
        status: ["running", "running", "running", "offline", "stopped"][rng.random_range(0..5)],
        created: text(created),
        billed: billed.map(text),
        backups: ["none", "weekly", "daily"][rng.random_range(0..3)],
    }
}

/// One statement per table; the expressions in braces differ between the databases.
const PLAN_ROWS: &str =
    "INSERT INTO vps_plans (id, name, provider_plan_id, base_price, markup_price, backup_price_hourly)
    SELECT {id}, {text:name}, {text:provider}, {money:base}, {money:markup}, {micro:backup} FROM {rows}";
const USER_ROWS: &str = "INSERT INTO users (id, email, name)
    SELECT {uuid:user}, {text:slug} || '@example.com', {text:name} FROM {rows}";
const ORGANIZATION_ROWS: &str = "INSERT INTO organizations (id, name, slug, owner_id)
    SELECT {id}, {text:name}, {text:slug}, {uuid:user} FROM {rows}";
const WALLET_ROWS: &str = "INSERT INTO wallets (id, organization_id, balance)
    SELECT {uuid:wallet}, {id}, {money:balance} FROM {rows} WHERE {uuid:wallet} IS NOT NULL";
const SECOND_WALLET_ROWS: &str = "INSERT INTO wallets (id, organization_id, balance)
    SELECT {uuid:second_wallet}, {id}, {money:balance} FROM {rows} WHERE {uuid:second_wallet} IS NOT NULL";
const INSTANCE_ROWS: &str = "INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status,
                                                      backup_frequency, created_at, last_billed_at)
    SELECT {id}, {uuid:organization}, {text:plan}, {text:provider}, {text:label}, {text:status}, {text:backups},
           {time:created}, {time:billed} FROM {rows}";

struct Insert<'a> {
    db: &'a Transaction,
}

impl Insert<'_> {
    async fn rows<T: Serialize>(&self, template: &str, rows: &[T]) -> Result<(), DbErr> {
        let backend = self.db.get_database_backend();
        let rows = serde_json::to_string(rows).expect("rows of text and integers are always JSON");
        let sql = spelled(backend, template);
        self.db.execute_raw(Statement::from_sql_and_values(backend, sql, [rows.into()])).await?;
        Ok(())
    }
}

fn spelled(backend: DbBackend, template: &str) -> String {
    let mut sql = String::new();
    let mut rest = template;
    while let Some((before, word)) = rest.split_once('{') {
        let (word, after) = word.split_once('}').expect("the templates above are well-formed");
        let (kind, field) = word.split_once(':').unwrap_or((word, word));
        let expression = match (kind, backend) {
            ("rows", DbBackend::Sqlite) => "json_each($1) AS d".to_owned(),
            ("rows", _) => "jsonb_array_elements($1::jsonb) AS d".to_owned(),
            (_, DbBackend::Sqlite) => format!("d.value ->> '$.{field}'"),
            ("id" | "uuid", _) => format!("(d.value ->> '{field}')::uuid"),
            ("money", _) => format!("(d.value ->> '{field}')::bigint * 0.0001"),
            ("micro", _) => format!("(d.value ->> '{field}')::bigint * 0.000001"),
            ("time", _) => format!("(d.value ->> '{field}')::timestamptz"),
            _ => format!("d.value ->> '{field}'"),
        };
        sql.push_str(before);
        sql.push_str(&expression);
        rest = after;
    }
    sql + rest
}
