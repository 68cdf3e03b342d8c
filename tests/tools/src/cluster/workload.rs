//! The panel of a cluster: it creates instances and tops up wallets. The creations also show when writes work, and what billing charges.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use billing_test_support::Db;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use sea_orm::{
    ConnectionTrait as _, DbBackend, Statement,
    sqlx::{self, ConnectOptions as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use super::share::{Way, Write};
use crate::faults::{
    fleet::{HOUR, real_now},
    journal::{Action, Entry, Journal},
};

/// Twenty instances a second: one of each client that reaches the primary, through HAProxy and directly.
const CREATE_EVERY: Duration = Duration::from_millis(100);
const TOP_UP_EVERY: Duration = Duration::from_millis(200);
/// How long a write may take before it counts as failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// A payment also waits for the locks of a batch.
const TOP_UP_TIMEOUT: Duration = Duration::from_secs(10);
const NEWEST: &str = "SELECT coalesce(max(id), 0)::bigint AS newest FROM billing_batches";

/// What the panel did.
pub(super) struct Workload {
    begun: Instant,
    journal: Journal,
    organizations: Vec<Uuid>,
    attempts: Mutex<Vec<Attempt>>,
    writes: Mutex<Vec<Write>>,
}

/// An action whose transaction may have been committed: its mark in the database shows that.
struct Attempt {
    mark: Uuid,
    is_confirmed: bool,
    entry: Entry,
}

/// What the panel did in the end.
pub(super) struct Done {
    pub(super) journal: Journal,
    pub(super) top_ups: u64,
    /// Confirmed transactions that the cluster lost.
    pub(super) lost: u64,
}

impl Workload {
    /// For these plans and wallets.
    pub(super) fn new(journal: Journal) -> Self {
        let organizations = journal.wallets.keys().copied().collect();
        Self {
            begun: Instant::now(),
            journal,
            organizations,
            attempts: Mutex::default(),
            writes: Mutex::default(),
        }
    }

    /// The time since its start.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The writes that succeeded since this time.
    pub(super) fn writes_since(&self, time: Duration) -> Vec<Write> {
        let writes = lock(&self.writes);
        let first = writes.partition_point(|write| write.at < time);
        writes[first..].to_vec()
    }

    /// Creates instances under this address, each of which has hours due, until it is stopped.
    pub(super) async fn create(
        &self,
        address: PgConnectOptions,
        way: Way,
        seed: u64,
        stop: &watch::Receiver<bool>,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut client = Client { address, connection: None };
        let mut ticks = interval(CREATE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            ticks.tick().await;
            let action = self.creation(&mut rng);
            if self.perform(&mut client, action, WRITE_TIMEOUT).await
                && let Some(newest) = client.number(NEWEST).await
            {
                // Locked before the time is read: the list is in the order of time.
                let mut writes = lock(&self.writes);
                writes.push(Write { at: self.now(), way, newest });
            }
        }
    }

    /// Tops up wallets until it is stopped.
    pub(super) async fn top_up(&self, address: PgConnectOptions, seed: u64, stop: &watch::Receiver<bool>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut client = Client { address, connection: None };
        let mut ticks = interval(TOP_UP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            ticks.tick().await;
            let amount = rng.random_range(500..20_000);
            let action = Action::top_up(DbBackend::Postgres, self.organization(&mut rng), amount);
            self.perform(&mut client, action, TOP_UP_TIMEOUT).await;
        }
    }

    fn creation(&self, rng: &mut StdRng) -> Action {
        let organization = self.organization(rng);
        let plan = rng.random_range(0..self.journal.plans.len());
        let created = real_now() - rng.random_range(HOUR..24 * HOUR);
        self.journal.creation(organization, plan, created, rng.random_bool(0.5))
    }

    fn organization(&self, rng: &mut StdRng) -> Uuid {
        *self.organizations.choose(rng).expect("there are organizations")
    }

    /// Performs the action in one transaction; returns whether its commit was confirmed.
    async fn perform(&self, client: &mut Client, action: Action, limit: Duration) -> bool {
        let mark = Uuid::new_v4();
        let statements = action.statements.join(";\n");
        let sql = format!("INSERT INTO campaign_marks VALUES ('{mark}');\n{statements}");
        let is_confirmed = client.execute(&sql, limit).await;
        lock(&self.attempts).push(Attempt { mark, is_confirmed, entry: action.entry });
        is_confirmed
    }

    /// The journal of what the database contains in the end.
    pub(super) async fn end(self, db: &Db) -> Done {
        let query = Statement::from_string(DbBackend::Postgres, "SELECT id FROM campaign_marks");
        let rows = db.admin().query_all_raw(query).await.expect("the marks are read");
        let marks: std::collections::BTreeSet<Uuid> = rows
            .iter()
            .map(|row| {
                row.try_get::<String>("", "id").expect("an id is text").parse().expect("a mark is a UUID")
            })
            .collect();
        let mut done = Done { journal: self.journal, top_ups: 0, lost: 0 };
        for attempt in self.attempts.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if marks.contains(&attempt.mark) {
                done.top_ups += u64::from(matches!(attempt.entry, Entry::Paid(..)));
                done.journal.note(attempt.entry);
            } else {
                done.lost += u64::from(attempt.is_confirmed);
            }
        }
        done
    }
}

/// A client with one connection, which is dropped when anything fails.
struct Client {
    address: PgConnectOptions,
    connection: Option<PgConnection>,
}

impl Client {
    /// Executes the statements in one transaction; returns whether they were committed in time.
    async fn execute(&mut self, sql: &str, limit: Duration) -> bool {
        let execution = async {
            let connection = self.connected().await?;
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.map(|_| ())
        };
        let is_done = matches!(timeout(limit, execution).await, Ok(Ok(())));
        if !is_done {
            self.connection = None;
        }
        is_done
    }

    /// The number that the query returns, in time.
    async fn number(&mut self, sql: &'static str) -> Option<i64> {
        let fetch = async {
            let connection = self.connected().await?;
            connection.fetch_one(sqlx::raw_sql(sql)).await?.try_get::<i64, _>(0)
        };
        let number = timeout(WRITE_TIMEOUT, fetch).await.ok().and_then(Result::ok);
        if number.is_none() {
            self.connection = None;
        }
        number
    }

    async fn connected(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            empty => Ok(empty.insert(self.address.connect().await?)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
