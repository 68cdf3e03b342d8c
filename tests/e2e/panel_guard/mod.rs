//! The panel guard inside the database, with the panel's own biller unmodified on the other side of it.

mod command;
mod concurrency;
mod hand_back;
mod handover;
mod labels;
mod may_bill;
mod migrations;
mod missing;
mod overwritten_balance;
mod safeguards;
mod start;
mod takeover;

use std::{sync::Arc, time::Duration};

use billing_jobs::{
    BILLING_JOB,
    billing::{BillReport, Biller, BillingError, BillingOptions, BillingSettings, Mode},
    panel::Panel,
    panel_guard,
};
use billing_scheduler::{Claim, FencingToken, Lease, Store, SystemClock};
use billing_store::{Database, Pool, SeaOrmStore};
use billing_test_support::{Db, Fleet, Instance, Login, Plan, panel_biller::PanelBiller};
use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use uuid::Uuid;

use crate::daemon::{fetch, now};

/// One daemon's view of a database.
pub(crate) struct Daemon {
    db: DatabaseConnection,
    store: SeaOrmStore,
    panel: Panel,
    settings: BillingSettings,
    needs_guard: bool,
}

impl Daemon {
    pub(crate) async fn of(db: &Db) -> Self {
        let database = Database::new(db.url.parse().expect("the harness has a valid URL"))
            .with_application_name("billing-daemon");
        let connection = Box::pin(database.connect(Pool::Shared)).await.expect("the daemon connects");
        let panel = Panel::detect(&connection).await.expect("the catalog is readable");
        let holder = Uuid::new_v4().to_string();
        let clock = Arc::new(SystemClock);
        let store = SeaOrmStore::new(connection.clone(), database, holder, Duration::from_mins(1), clock);
        Self { db: connection, store, panel, settings: BillingSettings::default(), needs_guard: false }
    }

    async fn with(db: &Db, settings: BillingSettings) -> Self {
        Self { settings, ..Self::of(db).await }
    }

    async fn relying_on_guard(db: &Db) -> Self {
        Self { needs_guard: true, ..Self::of(db).await }
    }

    /// A run from claim to release. Returns the hours that it charged.
    pub(crate) async fn bill(&self) -> Result<u64, BillingError> {
        let lease = self.claim().await;
        let bill = self.bill_under(lease.fencing_token).await;
        if bill.is_ok() {
            self.biller().record_success(lease.fencing_token).await.expect("the fencing row is writable");
        }
        self.store.release(&lease).await.expect("released");
        Ok(bill?.totals.hours)
    }

    /// A run under an earlier claim.
    async fn bill_under(&self, fencing_token: FencingToken) -> Result<BillReport, BillingError> {
        self.run(Mode::Commit(fencing_token)).await
    }

    async fn run(&self, mode: Mode) -> Result<BillReport, BillingError> {
        let run = BillingOptions {
            id: Uuid::now_v7(),
            mode,
            as_of: None,
            approved: None,
            lists_beyond_limit: false,
            stop: &|| None,
            progress: &|_| {},
            first_prices: &|_| {},
        };
        self.biller().bill(&run).await
    }

    async fn claim(&self) -> Lease {
        // The panel may raise the fencing token above a claim that is half made.
        for _ in 0..100 {
            match self.store.acquire(BILLING_JOB, chrono::DateTime::UNIX_EPOCH).await {
                Ok(Claim::Held(lease)) => return lease,
                Ok(Claim::Busy { .. }) => {}
                Err(error) => panic!("billing cannot be claimed: {error}"),
            }
        }
        panic!("billing is not free");
    }

    async fn let_go(&self, lease: &Lease) {
        self.store.release(lease).await.expect("released");
    }

    fn biller(&self) -> Biller {
        Biller::new(self.db.clone(), self.panel, self.settings).relying_on_guard(self.needs_guard)
    }
}

/// Installs the panel guard as the owner of the panel's tables.
pub(crate) async fn install_guard(db: &Db) {
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    panel_guard::install(&owner, "ada").await.expect("the owner may");
}

/// A process of the panel that logs in with this URL.
pub(crate) async fn panel(db: &Db, url: &str) -> PanelBiller {
    PanelBiller::new(billing_test_support::connect(url).await, db.panel)
}

/// Sets the age of the last success of our billing.
pub(crate) async fn silent_for(db: &Db, minutes: u32) {
    let sql = "UPDATE scheduler_fencing SET last_success_at = now() - interval '1 minute' *";
    db.execute(&format!("{sql} {minutes}")).await;
}

/// Organizations with instances at a cent an hour, each with `hours` due. They were not created at a
/// full millisecond.
pub(crate) async fn seed(db: &Db, organizations: usize, instances: usize, hours: i64) -> Vec<Uuid> {
    let fleet = Fleet::new(db);
    let plan = fleet.plan(Plan::monthly("7.30")).await;
    let created = now(db).await - TimeDelta::minutes(60 * hours + 30) + TimeDelta::microseconds(123_456);
    let mut ids = Vec::new();
    for _ in 0..organizations {
        let org = fleet.wallet("100.00").await;
        for _ in 0..instances {
            ids.push(fleet.instance(Instance::new(org, plan, created).backups("none")).await);
        }
    }
    ids
}

/// What all wallets hold together, in cents.
async fn cents(db: &Db) -> i64 {
    number(db, "SELECT sum(balance * 100)::bigint FROM wallets").await
}

async fn number(db: &Db, sql: &str) -> i64 {
    fetch(db, sql).await.parse().unwrap_or_else(|error| panic!("{error}: {sql}"))
}

/// Every invariant of the ledger holds, as the daemon sees it.
async fn assert_sound(db: &Db) {
    let audit = billing_jobs::audit::audit(&db.connect().await).await.expect("the audit runs");
    assert_eq!(audit.violations, []);
}

/// An hourly debit as one statement, with the role of this connection. Returns the error if it is rejected.
async fn debit(db: &impl ConnectionTrait, org: Uuid, amount: &str, description: &str) -> Result<(), String> {
    let sql = "INSERT INTO payment_transactions
             (organization_id, amount, payment_method, payment_provider, status, description)
         VALUES ($1, $2::text::numeric, 'wallet_debit', 'internal', 'completed', $3)";
    let values = [org.into(), amount.into(), description.into()];
    let inserted =
        db.execute_raw(Statement::from_sql_and_values(db.get_database_backend(), sql, values)).await;
    inserted.map(drop).map_err(|error| error.to_string())
}
