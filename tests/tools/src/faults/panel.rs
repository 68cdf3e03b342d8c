//! The panel's own biller next to the daemons, behind the panel guard: rejected while they work, accepted when they are silent.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use super::server::Server;
use billing_test_support::{
    Login, Panel, connect,
    panel_biller::{Crash, Due, Outcome, PanelBiller},
};

/// The time of the panel from reading a balance to writing it back, during which daemons charge and customers pay.
const BETWEEN_READ_AND_WRITE: Duration = Duration::from_millis(100);
/// The part of the panel guard that writes begins here. What it writes has the fleet's time; what it decides by has the real one.
const WRITES_FROM: &str = "charge_start :=";
const REAL_TIME: &str = "clock_timestamp()";
const FLEETS_TIME: &str =
    "(SELECT timestamptz 'epoch' + c.now_micros * interval '1 microsecond' FROM public.campaign_clock c)";

/// The results of the panel's debits.
#[derive(Debug, Default)]
pub(super) struct Billed {
    pub(super) attempts: u64,
    pub(super) refused: u64,
    pub(super) charged: u64,
    /// Of the refused ones, those that would have written a balance back over a charge or a payment.
    pub(super) overwrites_refused: u64,
}

/// Installs the panel guard, with the fleet's clock for what it writes.
pub(super) async fn install_guard(server: &Server) {
    let owner = connect(&server.db.url_for(Login::Owner)).await;
    // The daemons' transactions want connections that remember no statements.
    billing_jobs::panel_guard::install(&owner, "the campaign")
        .await
        .expect("the owner may install the panel guard");
    owner.close().await.expect("a connection that answers can be closed");
    let sql = "SELECT pg_get_functiondef('billing_panel_guard'::regproc) AS definition";
    let definition: String = row(server.db.admin(), sql)
        .await
        .ok()
        .flatten()
        .and_then(|row| row.try_get("", "definition").ok())
        .expect("the panel guard is there");
    let (decides, writes) = definition.split_once(WRITES_FROM).expect("the panel guard writes");
    let definition = format!("{decides}{WRITES_FROM}{}", writes.replace(REAL_TIME, FLEETS_TIME));
    server.db.execute("GRANT SELECT ON campaign_clock TO panel_owner").await;
    server.db.execute(&definition).await;
}

/// Bills as the panel does, from lists that may be old, until it is stopped; returns the results.
pub(super) async fn bill(server: &Server, seed: u64, stop: &watch::Receiver<bool>) -> Billed {
    let mut rng = StdRng::seed_from_u64(seed);
    let connection = connect(&server.db.url_for(Login::Owner)).await;
    let biller = PanelBiller::new(connection, Panel::G3).pausing(BETWEEN_READ_AND_WRITE);
    let mut totals = Billed::default();
    while !*stop.borrow() {
        let wait = rng.random_range(50..500);
        sleep(Duration::from_millis(wait)).await;
        // A list is minutes old and not hours: the clock stops until it is processed.
        let _calm = server.calm.lock().await;
        let Ok(list) = due(server).await else { continue };
        let age = rng.random_range(0..60);
        sleep(Duration::from_millis(age)).await;
        for _ in 0..3 {
            if list.is_empty() || *stop.borrow() {
                break;
            }
            let due = &list[rng.random_range(0..list.len())];
            let crash = match rng.random_range(0..12) {
                0 => Crash::BeforeDebit,
                1 => Crash::AfterDebit,
                _ => Crash::Never,
            };
            if !is_alive(server, due.instance).await {
                continue;
            }
            server.panel_reads(Some(due.organization));
            let outcome = biller.bill(due, crash).await;
            server.panel_reads(None);
            match outcome {
                Outcome::Failed(reason) if reason == "insufficient_balance" => {}
                Outcome::Crashed if crash == Crash::BeforeDebit => {}
                Outcome::Billed | Outcome::Crashed => {
                    totals.attempts += 1;
                    totals.charged += 1;
                }
                Outcome::Failed(reason) => {
                    totals.attempts += 1;
                    totals.refused += 1;
                    totals.overwrites_refused += u64::from(reason.contains("when it was read, and"));
                }
            }
        }
    }
    totals
}

/// The hours due according to the panel, by the fleet's clock.
async fn due(server: &Server) -> Result<Vec<Due>, DbErr> {
    let sql = "SELECT CAST(i.id AS text) AS id, CAST(i.organization_id AS text) AS organization, i.label,
                      floor(extract(epoch FROM coalesce(i.last_billed_at, i.created_at)) * 1000)::bigint AS start_ms,
                      c.now_micros / 1000 AS now_ms, ((p.base_price + p.markup_price) / 730)::float8 AS rate
                 FROM vps_instances i JOIN vps_plans p ON p.id::text = i.plan_id CROSS JOIN campaign_clock c";
    let rows = server.db.admin().query_all_raw(Statement::from_string(server.db.backend(), sql)).await?;
    let mut list = Vec::new();
    for row in &rows {
        let (start_ms, now_ms): (i64, i64) = (row.try_get("", "start_ms")?, row.try_get("", "now_ms")?);
        let hours = (now_ms - start_ms) / 3_600_000;
        if hours >= 1 {
            list.push(Due {
                instance: id(&row.try_get::<String>("", "id")?),
                organization: id(&row.try_get::<String>("", "organization")?),
                label: row.try_get("", "label")?,
                hours,
                start_ms,
                rate: row.try_get("", "rate")?,
            });
        }
    }
    Ok(list)
}

fn id(text: &str) -> Uuid {
    text.parse().expect("an id is a UUID")
}

async fn is_alive(server: &Server, instance: Uuid) -> bool {
    let sql = format!("SELECT 1 AS there FROM vps_instances WHERE id = '{instance}'");
    matches!(row(server.db.admin(), &sql).await, Ok(Some(_)))
}

async fn row(db: &DatabaseConnection, sql: &str) -> Result<Option<sea_orm::QueryResult>, DbErr> {
    db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await
}
