//! The faults, drawn from a shuffled deck so that each occurs sooner or later.

use std::{
    str::FromStr as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use rustix::process::Signal;
use sea_orm::{
    ConnectionTrait, Statement,
    sqlx::{ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions},
};
use tokio::{sync::watch, time::sleep};

use crate::Engine;

use super::{
    daemons::{Daemons, signal},
    report::{Report, Seconds},
    server::{ROLE_CONNECTIONS, Server},
};

/// Longer than a lease of the campaign's daemons, and than their lock timeout if it is doubled.
const LONGER_THAN_A_LEASE: std::ops::Range<u64> = 3_200..6_000;
/// The time limit of a take-over.
const TAKE_OVER: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A fault that can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the daemon that holds the lease of billing.
    KillTheHolder,
    /// `kill -9` of any daemon.
    KillAny,
    /// A daemon is suspended for longer than its lease.
    Pause,
    /// A daemon receives SIGTERM.
    Terminate,
    /// Another client holds every wallet, or all of SQLite, for longer than any lock timeout.
    Lock,
    /// The server ends half of the daemons' connections.
    EndConnections,
    /// Statements are cancelled, as by their timeout.
    Cancel,
    /// The server stops at once and starts again.
    RestartServer,
    /// Every connection is closed.
    Cut,
    /// COMMITs are executed, and their responses are lost.
    LoseCommits,
    /// The daemons' role has no connection left.
    FillThePool,
    /// All daemons are suspended until the panel has billed for a while.
    Silence,
}

impl Fault {
    /// All faults of this kind of database.
    #[must_use]
    pub fn all(engine: Engine) -> Vec<Self> {
        let mut all = vec![Self::KillTheHolder, Self::KillAny, Self::Pause, Self::Terminate, Self::Lock];
        if engine == Engine::Postgres {
            all.extend([
                Self::EndConnections,
                Self::Cancel,
                Self::RestartServer,
                Self::Cut,
                Self::LoseCommits,
                Self::FillThePool,
                Self::Silence,
            ]);
        }
        all
    }

    /// Whether it affects every client of the server.
    pub(super) fn needs_own_server(self) -> bool {
        matches!(self, Self::RestartServer | Self::FillThePool)
    }
}

/// Injects faults into one campaign.
pub(crate) struct Injector<'a> {
    server: &'a Server,
    daemons: &'a Daemons,
    counts: Mutex<Report>,
    failovers: Mutex<Vec<Duration>>,
    /// Moves whenever something begins or ends that alone delays a take-over.
    disturbances: AtomicU64,
}

impl<'a> Injector<'a> {
    pub(crate) fn new(server: &'a Server, daemons: &'a Daemons) -> Self {
        Self {
            server,
            daemons,
            counts: Mutex::default(),
            failovers: Mutex::default(),
            disturbances: AtomicU64::new(0),
        }
    }

    /// Injects one after the other until it is stopped; a fault that has begun is finished.
    pub(crate) async fn inject(&self, faults: &[Fault], seed: u64, stop: &watch::Receiver<bool>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut deck = Vec::new();
        while !*stop.borrow() {
            let wait = rng.random_range(100..900);
            sleep(Duration::from_millis(wait)).await;
            if deck.is_empty() {
                deck.extend_from_slice(faults);
                deck.shuffle(&mut rng);
            }
            if let Some(fault) = deck.pop() {
                self.happen(fault, &mut rng).await;
            }
        }
    }

    /// The counts of injected faults.
    pub(crate) fn counts(&self) -> Report {
        let mut counts = self.counts.lock().expect("no holder of the lock panics").clone();
        counts.failover_seconds =
            Seconds::of(self.failovers.lock().expect("no holder of the lock panics").clone());
        if let Some((_, proxy)) = &self.server.postgres {
            counts.cuts = proxy.cuts();
            counts.lost_commits = proxy.lost_commits();
        }
        counts
    }

    async fn happen(&self, fault: Fault, rng: &mut StdRng) {
        // On SQLite every process waits for the writer.
        let disturbs = match fault {
            Fault::RestartServer | Fault::FillThePool | Fault::Silence => true,
            Fault::Pause | Fault::Lock => self.server.postgres.is_none(),
            _ => false,
        };
        self.disturbances.fetch_add(u64::from(disturbs), Ordering::Relaxed);
        match fault {
            Fault::KillTheHolder => self.kill_the_holder().await,
            Fault::KillAny => {
                if let Some(pid) = self.any(rng).await
                    && self.daemons.kill(pid).await
                {
                    self.count(|counts| counts.kills += 1);
                }
            }
            Fault::Pause => self.pause(rng).await,
            Fault::Terminate => {
                if let Some(pid) = self.holder_or_any(rng).await
                    && self.daemons.terminate(pid).await
                {
                    self.count(|counts| counts.terminations += 1);
                }
            }
            Fault::Lock => self.hold_locks(rng).await,
            Fault::EndConnections => {
                let sql = "SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity
                            WHERE datname = current_database() AND application_name = 'billing-daemon' AND random() < 0.5";
                let ended = self.fetch(sql).await;
                self.count(|counts| counts.terminated += ended);
            }
            Fault::Cancel => {
                // Idle connections have nothing to be cancelled: poll often.
                for _ in 0..50 {
                    let sql = "SELECT count(pg_cancel_backend(pid)) AS n FROM pg_stat_activity
                                WHERE datname = current_database() AND application_name = 'billing-daemon' AND state = 'active'";
                    let cancelled = self.fetch(sql).await;
                    self.count(|counts| counts.timeouts += cancelled);
                    sleep(POLL_INTERVAL).await;
                }
            }
            Fault::RestartServer => {
                if let Some((postgres, _)) = &self.server.postgres {
                    let postgres = *postgres;
                    // The emulated panel knows no lost connections.
                    let _calm = self.server.calm.lock().await;
                    let restarted = tokio::task::spawn_blocking(move || postgres.restart()).await;
                    restarted.expect("a restart does not panic").expect("the server comes back");
                    self.count(|counts| counts.restarts += 1);
                }
            }
            Fault::Cut => {
                if let Some((_, proxy)) = &self.server.postgres {
                    proxy.cut();
                }
            }
            Fault::LoseCommits => {
                if let Some((_, proxy)) = &self.server.postgres {
                    // Failures that no batch met yet do not add up: five in a row end a run.
                    proxy.relent();
                    if rng.random_bool(0.3) {
                        proxy.lose_commits(rng.random_range(1..4));
                    } else {
                        proxy.lose_batches(rng.random_range(1..3));
                    }
                }
            }
            Fault::FillThePool => self.fill_the_pool(rng).await,
            Fault::Silence => self.silence(rng).await,
        }
        self.disturbances.fetch_add(u64::from(disturbs), Ordering::Relaxed);
    }

    async fn kill_the_holder(&self) {
        let disturbances = self.disturbances.load(Ordering::Relaxed);
        let Some((pid, token)) = self.holder_soon().await else { return };
        let killed = Instant::now();
        if !self.daemons.kill(pid).await {
            return;
        }
        self.count(|counts| counts.kills += 1);
        while killed.elapsed() < TAKE_OVER {
            let newest =
                self.fetch("SELECT fencing_token AS n FROM scheduler_jobs WHERE job = 'billing'").await;
            if newest > token {
                if disturbances == self.disturbances.load(Ordering::Relaxed) {
                    self.failovers.lock().expect("no holder of the lock panics").push(killed.elapsed());
                }
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn pause(&self, rng: &mut StdRng) {
        let Some(pid) = self.holder_or_any(rng).await else { return };
        signal(pid, Signal::STOP);
        sleep(Duration::from_millis(rng.random_range(LONGER_THAN_A_LEASE))).await;
        signal(pid, Signal::CONT);
        self.count(|counts| counts.pauses += 1);
    }

    async fn silence(&self, rng: &mut StdRng) {
        let pids = self.daemons.pids().await;
        for pid in &pids {
            signal(*pid, Signal::STOP);
        }
        sleep(Duration::from_millis(rng.random_range(6_000..9_000))).await;
        for pid in &pids {
            signal(*pid, Signal::CONT);
        }
        self.count(|counts| counts.pauses += pids.len() as u64);
    }

    /// Another client locks every wallet, or the whole database.
    async fn hold_locks(&self, rng: &mut StdRng) {
        let held = Duration::from_millis(rng.random_range(LONGER_THAN_A_LEASE));
        let Ok(transaction) = self.server.db.begin().await else { return };
        let lock = "UPDATE wallets SET currency = currency";
        if transaction.execute_unprepared(lock).await.is_ok() {
            sleep(held).await;
            self.count(|counts| counts.locks += 1);
        }
        // It changed nothing, so that its end does not matter.
        let _ = transaction.rollback().await;
    }

    /// Takes every connection that the daemons' role has left.
    async fn fill_the_pool(&self, rng: &mut StdRng) {
        let options = PgConnectOptions::from_str(&self.server.db.url).expect("a URL of ours");
        let mut taken: Vec<PgConnection> = Vec::new();
        let until = Instant::now() + Duration::from_millis(rng.random_range(800..2_500));
        let mut full = false;
        while Instant::now() < until {
            if taken.len() < ROLE_CONNECTIONS as usize
                && let Ok(connection) = options.connect().await
            {
                taken.push(connection);
            } else {
                full = true;
                sleep(POLL_INTERVAL).await;
            }
        }
        for connection in taken {
            // The server may have ended it.
            let _ = connection.close().await;
        }
        self.count(|counts| counts.full_pools += u64::from(full));
    }

    /// The holder of billing's lease, as soon as there is one, and its fencing token.
    async fn holder_soon(&self) -> Option<(u32, u64)> {
        let looking = Instant::now();
        while looking.elapsed() < Duration::from_secs(3) {
            if let Some(holder) = self.holder().await {
                return Some(holder);
            }
            sleep(POLL_INTERVAL / 2).await;
        }
        None
    }

    async fn holder(&self) -> Option<(u32, u64)> {
        let sql =
            "SELECT holder, fencing_token FROM scheduler_jobs WHERE job = 'billing' AND holder IS NOT NULL";
        let query = Statement::from_string(self.server.db.backend(), sql);
        let row = self.server.db.admin().query_one_raw(query).await.ok()??;
        let holder: String = row.try_get("", "holder").ok()?;
        let token: i64 = row.try_get("", "fencing_token").ok()?;
        // A holder is called `{hostname}-{pid}-{random}`.
        let pid = holder.rsplit('-').nth(1)?.parse().ok()?;
        Some((pid, token.unsigned_abs()))
    }

    async fn holder_or_any(&self, rng: &mut StdRng) -> Option<u32> {
        if rng.random_bool(0.7)
            && let Some((pid, _)) = self.holder_soon().await
        {
            return Some(pid);
        }
        self.any(rng).await
    }

    async fn any(&self, rng: &mut StdRng) -> Option<u32> {
        let pids = self.daemons.pids().await;
        (!pids.is_empty()).then(|| pids[rng.random_range(0..pids.len())])
    }

    /// The number that a query returns; 0 while the database does not respond.
    async fn fetch(&self, sql: &str) -> u64 {
        let query = Statement::from_string(self.server.db.backend(), sql);
        let row = self.server.db.admin().query_one_raw(query).await;
        let number = row.ok().flatten().and_then(|row| row.try_get::<i64>("", "n").ok());
        number.unwrap_or_default().unsigned_abs()
    }

    fn count(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.counts.lock().expect("no holder of the lock panics"));
    }
}
