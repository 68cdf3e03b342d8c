//! The operator of a cluster: accepts a database that lost committed batches, after it has verified that no daemon bills on it.

use std::{cell::RefCell, time::Duration};

use billing_test_support::Db;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::faults::daemons::Daemons;

/// How long every daemon must leave a halted database alone: several intervals of the billing job.
const OBSERVED: Duration = Duration::from_secs(4);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Accepts halted databases, counts them, and records the rules that daemons violated.
#[derive(Default)]
pub(super) struct Operator {
    accepted: watch::Sender<u64>,
    violations: RefCell<Vec<String>>,
}

/// The halt of a database, and its newest batch.
#[derive(PartialEq)]
struct State {
    halt: String,
    newest: i64,
}

impl Operator {
    /// Accepts each database that a daemon has halted, until it is stopped.
    pub(super) async fn work(&self, daemons: &Daemons, db: &Db, stop: &watch::Receiver<bool>) {
        while !*stop.borrow() {
            sleep(POLL_INTERVAL).await;
            let Some(halted) = state(db).await else { continue };
            sleep(OBSERVED).await;
            // A fail-over meanwhile shows another database.
            let Some(observed) = state(db).await else { continue };
            if observed.halt == halted.halt && observed.newest != halted.newest {
                self.violate(format!(
                    "a daemon billed on a halted database: batch {} follows {}",
                    observed.newest, halted.newest
                ));
            }
            if daemons.operate(&["accept-restore"]).await {
                self.accepted.send_modify(|times| *times += 1);
            }
        }
    }

    /// Waits until it has accepted another database.
    pub(super) async fn accepts_restore(&self) {
        // The sender is in `self`.
        let _ = self.accepted.subscribe().changed().await;
    }

    pub(super) fn violate(&self, rule: String) {
        self.violations.borrow_mut().push(rule);
    }

    /// How many databases it accepted, and the violated rules.
    pub(super) fn end(self) -> (u64, Vec<String>) {
        (*self.accepted.borrow(), self.violations.into_inner())
    }
}

/// `None` if the database is not halted, or does not answer.
async fn state(db: &Db) -> Option<State> {
    let sql = "SELECT CAST(halt AS text) AS halt, (SELECT coalesce(max(id), 0)::bigint FROM billing_batches) AS newest
                 FROM scheduler_fencing
                WHERE job = 'billing' AND halt IS NOT NULL";
    let query = db.admin().query_one_raw(Statement::from_string(DbBackend::Postgres, sql));
    let row = timeout(READ_TIMEOUT, query).await.ok()?.ok()??;
    Some(State { halt: row.try_get("", "halt").ok()?, newest: row.try_get("", "newest").ok()? })
}
