//! A process that checks the prepaid policy once, makes the deliveries that are due, and may be killed before any call of the database.

use std::{env, process::ExitCode, str::FromStr, sync::Arc, time::Duration};

use billing_jobs::{
    PREPAID_KIND, PrepaidParams,
    panel::Panel,
    prepaid::{Claim, Endpoint, Mode, Prepaid, Which},
};
use billing_scheduler::{Claim as LeaseClaim, Store as _, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore, fault_injection};
use chrono::DateTime;
use tokio::runtime::Runtime;

/// Reads from the environment: `DATABASE_URL`, `ENDPOINTS` (JSON), `AS_OF` (microseconds), `STEP` (`evaluate` or `deliver`), and
/// `ABORT_BEFORE_CALL` (a number; 0: it is not killed).
pub(super) fn daemon() -> ExitCode {
    Runtime::new().expect("a runtime starts").block_on(Box::pin(check()));
    ExitCode::SUCCESS
}

async fn check() {
    let database = Database::new(variable("DATABASE_URL"));
    let pool = Box::pin(database.connect(Pool::Shared)).await.expect("a connection");
    let panel = Panel::detect(&pool).await.expect("a panel");
    let ttl = Duration::from_secs(10);
    let store = SeaOrmStore::new(pool.clone(), database, "killed", ttl, Arc::new(SystemClock));
    let LeaseClaim::Held(lease) = store.acquire(PREPAID_KIND, DateTime::UNIX_EPOCH).await.expect("a claim")
    else {
        panic!("no other process has the job")
    };
    store.release(&lease).await.expect("it was held");
    let claim = Claim { job: PREPAID_KIND, fencing_token: lease.fencing_token };
    let params = PrepaidParams { mode: Mode::Enforce, ..PrepaidParams::default() };
    let endpoints: Vec<Endpoint> = serde_json::from_str(&variable::<String>("ENDPOINTS")).expect("endpoints");
    let prepaid =
        Prepaid::new(pool, panel, &params, Duration::from_hours(1)).with_endpoints(endpoints.into());
    let as_of = Some(variable("AS_OF"));
    fault_injection::abort_before_call(variable("ABORT_BEFORE_CALL"));
    if variable::<String>("STEP") == "evaluate" {
        prepaid.evaluate(claim, as_of, &|| false).await.expect("the check finishes");
    } else {
        prepaid.deliver(Which::All, as_of, &|| false).await.expect("the deliveries are made");
    }
}

fn variable<T: FromStr>(name: &str) -> T {
    let value = env::var(name).ok().and_then(|text| text.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is missing or not valid"))
}
