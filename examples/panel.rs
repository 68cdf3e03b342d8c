//! A panel with its own billing, which pauses while a daemon is alive and resumes when the daemon is dead.
//!
//! ```sh
//! cargo run -p examples --example panel                                   # the panel, on panel.db
//! curl localhost:3000                                                     # {"billing":"by the panel, 2 hours so far"}
//! DATABASE_URL=sqlite://panel.db cargo run -p billing-daemon -- run       # a daemon next to it, in another terminal
//! curl localhost:3000                                                     # {"billing":"paused: a daemon bills, 2 hours so far"}
//! ```
//!
//! `TAKEOVER_SECONDS` is how long after the last heartbeat the panel bills again. The default is 90 minutes.

#[path = "panel/biller.rs"]
mod biller;

use std::{
    env,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use billing_entities::{Id, Money, organizations, users, vps_instances, vps_plans, wallets};
use billing_jobs::PANEL_TAKEOVER_AFTER;
use billing_scheduler::{
    Clock, SystemClock,
    serde_json::{Value, json},
};
use chrono::TimeDelta;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, Database, DatabaseConnection, DbErr, EntityTrait, PaginatorTrait,
    prelude::Uuid,
};
use tokio::{net::TcpListener, time::interval};

use biller::Pass;

/// The state that the page shows.
#[derive(Default)]
struct Billing {
    paused: bool,
    hours: i64,
}

type Shared = Arc<Mutex<Billing>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite://panel.db?mode=rwc".to_owned());
    let takeover_after = match env::var("TAKEOVER_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse()?),
        Err(_) => PANEL_TAKEOVER_AFTER,
    };
    let db = Database::connect(url).await?;
    migration::up(&db, None).await?;
    seed(&db).await?;

    let shared = Shared::default();
    let billing = tokio::spawn(bill_continuously(db, takeover_after, Arc::clone(&shared)));
    let app = Router::new().route("/", get(page)).with_state(shared);
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("the panel is at http://127.0.0.1:3000");
    tokio::select! {
        served = axum::serve(listener, app) => served?,
        failed = billing => failed??,
    }
    Ok(())
}

async fn page(State(billing): State<Shared>) -> Json<Value> {
    let billing = billing.lock().unwrap_or_else(PoisonError::into_inner);
    let whose = if billing.paused { "paused: a daemon bills" } else { "by the panel" };
    Json(json!({ "billing": format!("{whose}, {} hours so far", billing.hours) }))
}

/// Makes a pass each second. Each pass checks whether a daemon bills, because a daemon may start or stop at any time.
async fn bill_continuously(
    db: DatabaseConnection,
    takeover_after: Duration,
    shared: Shared,
) -> Result<(), DbErr> {
    let mut second = interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        let pass = biller::pass(&db, takeover_after, SystemClock.now()).await?;
        let mut billing = shared.lock().unwrap_or_else(PoisonError::into_inner);
        billing.paused = pass == Pass::Paused;
        if let Pass::Billed(hours) = pass {
            billing.hours += hours;
        }
    }
}

/// Adds a customer with one instance that was created two and a half hours ago.
async fn seed(db: &DatabaseConnection) -> Result<(), DbErr> {
    if vps_instances::Entity::find().count(db).await? > 0 {
        return Ok(());
    }
    let [user, organization, wallet, plan, instance] = [(); 5].map(|()| Id(Uuid::new_v4()));
    let created_at = Set(Some(SystemClock.now() - TimeDelta::minutes(150)));
    let ada = users::ActiveModel {
        id: Set(user),
        email: Set("ada@example.com".to_owned()),
        name: Set("Ada".to_owned()),
        ..Default::default()
    };
    ada.insert(db).await?;
    let engines = organizations::ActiveModel {
        id: Set(organization),
        name: Set("Engines".to_owned()),
        slug: Set("engines".to_owned()),
        owner_id: Set(user),
        ..Default::default()
    };
    engines.insert(db).await?;
    let wallet = wallets::ActiveModel {
        id: Set(wallet),
        organization_id: Set(organization),
        balance: Set(Some(Money(100_0000))),
        ..Default::default()
    };
    wallet.insert(db).await?;
    let small = vps_plans::ActiveModel {
        id: Set(plan),
        name: Set("Small".to_owned()),
        provider_plan_id: Set("small".to_owned()),
        base_price: Set(Some(Money(5_0000))),
        markup_price: Set(Some(Money(0))),
        ..Default::default()
    };
    small.insert(db).await?;
    let web = vps_instances::ActiveModel {
        id: Set(instance),
        organization_id: Set(organization),
        plan_id: Set(plan.to_string()),
        provider_instance_id: Set("1".to_owned()),
        label: Set("web".to_owned()),
        created_at,
        ..Default::default()
    };
    web.insert(db).await?;
    Ok(())
}
