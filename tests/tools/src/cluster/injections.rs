//! The faults of a cluster, drawn from a shuffled deck so that each occurs sooner or later. One is over before the next begins.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use billing_test_support::Db;
use clap::ValueEnum;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use rustix::process::Signal;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio::time::{sleep, timeout};

use super::{
    operator::Operator,
    relay::Network,
    servers::Servers,
    share::{Effect, effect, is_steady},
    workload::Workload,
};
use crate::faults::daemons::Daemons;

/// How long PostgreSQL of the leader is suspended.
const STOPPED: Duration = Duration::from_secs(45);
/// How long etcd is suspended.
const ETCD_FROZEN: Duration = Duration::from_secs(32);
/// How long the leader has no connection to etcd: longer than its time to live.
const CUT_OFF: Duration = Duration::from_secs(30);
/// How long a killed node is away: until another one is the leader.
const AWAY: Duration = Duration::from_secs(25);
/// How long billing charges without an interruption before a fault is over.
const STEADY: Duration = Duration::from_secs(4);
/// The longest time from a fault to the end of its effects.
const OVER: Duration = Duration::from_mins(3);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How many commits of the panel, and how many batches, a dying leader has that no standby has.
const LOST_WRITES: usize = 50;
const LOST_BATCHES: i64 = 3;

/// A fault that can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// `kill -9` of the leader's Patroni and PostgreSQL
    KillLeader,
    /// `kill -9` of a leader whose last commits no standby has: only with `--asynchronous`
    LoseCommits,
    /// `patronictl switchover`
    Switchover,
    /// `patronictl failover` to the synchronous standby
    Failover,
    /// SIGSTOP of the leader's PostgreSQL for 45 s
    StopLeader,
    /// The leader has no connection to etcd for 30 s
    CutOffLeader,
    /// SIGSTOP of etcd for 32 s
    FreezeEtcd,
    /// `kill -9` of the leader's postmaster, which Patroni starts again
    KillPostmaster,
    /// SIGTERM and a new start of all daemons at once
    RestartDaemons,
    /// SIGTERM and a new start of the daemon that bills
    RestartHolder,
    /// All open connections of the daemons freeze while none of them has a transaction
    FreezeIdle,
    /// All open connections of the daemons freeze when one of them sends a batch
    FreezeInBatch,
}

/// A fault that was injected, and its effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Episode {
    pub(super) fault: Fault,
    pub(super) effect: Effect,
}

/// Injects faults into a cluster.
pub(super) struct Injector<'a> {
    pub(super) servers: &'a Servers,
    pub(super) daemons: &'a Daemons,
    /// Between the daemons and the database.
    pub(super) network: &'a Arc<Network>,
    pub(super) workload: &'a Workload,
    pub(super) db: &'a Db,
    pub(super) operator: &'a Operator,
    /// Whether each episode is printed when it is over.
    pub(super) verbose: bool,
}

impl Injector<'_> {
    /// Injects these faults until the time is over; a fault that has begun is finished.
    pub(super) async fn inject(&self, faults: &[Fault], seed: u64, duration: Duration) -> Vec<Episode> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut deck = Vec::new();
        let mut episodes = Vec::new();
        self.until_over().await;
        let begun = Instant::now();
        while begun.elapsed() < duration {
            if deck.is_empty() {
                deck.extend_from_slice(faults);
                deck.shuffle(&mut rng);
            }
            let Some(fault) = deck.pop() else { break };
            let at = self.workload.now();
            let injected = self.happen(fault).await;
            self.until_over().await;
            self.network.restore();
            if !injected {
                continue;
            }
            let effect = effect(at, &self.workload.writes_since(at));
            if self.verbose {
                let (at, back, share) =
                    (at.as_secs_f64(), effect.writes_back.as_secs_f64(), effect.share.as_secs_f64());
                eprintln!("{at:6.1} s: {}: writes back {back:.1} s, share {share:.1} s", fault.name());
            }
            episodes.push(Episode { fault, effect });
        }
        episodes
    }

    /// Waits until the cluster is complete and billing has charged steadily from now on for a while, up to a limit.
    async fn until_over(&self) {
        let begun = Instant::now();
        while begun.elapsed() < OVER {
            sleep(POLL_INTERVAL).await;
            let now = self.workload.now();
            let since = now.saturating_sub(STEADY);
            if begun.elapsed() >= STEADY
                && is_steady(since, now, &self.workload.writes_since(since))
                && self.servers.is_complete().await
            {
                return;
            }
        }
    }

    /// Returns whether the fault was injected.
    async fn happen(&self, fault: Fault) -> bool {
        let Some(leader) = self.servers.leader().await else { return false };
        match fault {
            Fault::KillLeader => {
                leader.kill();
                sleep(AWAY).await;
                leader.start();
            }
            Fault::LoseCommits => {
                if self.servers.is_synchronous() {
                    return false;
                }
                leader.suspend_replication();
                let is_committed = timeout(OVER, self.commits()).await.is_ok();
                leader.kill();
                sleep(AWAY).await;
                leader.start();
                // The daemon that committed the lost batches compares its note with the database each minute.
                if is_committed && timeout(OVER, self.operator.accepts_restore()).await.is_err() {
                    self.operator.violate("no daemon halted a database that lost its batches".to_owned());
                }
                return is_committed;
            }
            Fault::Switchover => {
                return self.servers.patronictl(&["switchover", "--leader", leader.name(), "--force"]).await;
            }
            Fault::Failover => {
                let Some(standby) = self.servers.synchronous_standby().await else { return false };
                return self
                    .servers
                    .patronictl(&["failover", "--candidate", standby.name(), "--force"])
                    .await;
            }
            Fault::StopLeader => {
                leader.signal_postgres(Signal::STOP);
                sleep(STOPPED).await;
                leader.signal_postgres(Signal::CONT);
            }
            Fault::CutOffLeader => {
                leader.network.disconnect();
                sleep(CUT_OFF).await;
                leader.network.restore();
            }
            Fault::FreezeEtcd => {
                self.servers.signal_etcd(Signal::STOP);
                sleep(ETCD_FROZEN).await;
                self.servers.signal_etcd(Signal::CONT);
            }
            Fault::KillPostmaster => leader.kill_postmaster(),
            Fault::RestartDaemons => self.daemons.restart_all().await,
            Fault::RestartHolder => {
                let Some(holder) = self.holder().await else { return false };
                return self.daemons.terminate(holder).await;
            }
            Fault::FreezeIdle => {
                while self.transactions().await > 0 {
                    sleep(POLL_INTERVAL / 20).await;
                }
                self.network.freeze();
            }
            Fault::FreezeInBatch => return timeout(OVER, self.network.freeze_at_batch()).await.is_ok(),
        }
        true
    }

    /// Waits until the panel and billing have committed enough to lose.
    async fn commits(&self) {
        let since = self.workload.now();
        loop {
            sleep(POLL_INTERVAL).await;
            let writes = self.workload.writes_since(since);
            if let (Some(first), Some(last)) = (writes.first(), writes.last())
                && writes.len() >= LOST_WRITES
                && last.newest - first.newest >= LOST_BATCHES
            {
                return;
            }
        }
    }

    /// The process id of the daemon that bills, as soon as one does.
    async fn holder(&self) -> Option<u32> {
        let begun = Instant::now();
        while begun.elapsed() < OVER {
            let sql = "SELECT holder FROM scheduler_jobs WHERE job = 'billing' AND holder IS NOT NULL";
            let row = self.db.admin().query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
            if let Ok(Some(row)) = row {
                let holder: String = row.try_get("", "holder").ok()?;
                // A holder is called `{hostname}-{pid}-{random}`.
                return holder.rsplit('-').nth(1)?.parse().ok();
            }
            sleep(POLL_INTERVAL / 20).await;
        }
        None
    }

    /// The number of the daemons' transactions.
    async fn transactions(&self) -> i64 {
        let sql = "SELECT count(*) AS n FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'billing-daemon' AND state <> 'idle'";
        let row = self.db.admin().query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
        row.ok().flatten().and_then(|row| row.try_get("", "n").ok()).unwrap_or(1)
    }
}

impl Fault {
    /// The name as in the option `--faults`.
    pub(super) fn name(self) -> String {
        self.to_possible_value().expect("no fault is hidden").get_name().to_owned()
    }

    /// The longest share that is accepted: a frozen connection is detected by its deadline only.
    pub(super) fn target(self) -> Duration {
        match self {
            Self::FreezeIdle | Self::FreezeInBatch => Duration::from_secs(15),
            // Billing waits for the operator.
            Self::LoseCommits => Duration::MAX,
            _ => Duration::from_secs(2),
        }
    }
}
