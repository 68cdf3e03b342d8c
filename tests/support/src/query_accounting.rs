//! The purpose of a daemon's round trips to PostgreSQL, recognized by their beginning.

use std::collections::BTreeMap;

/// A text that occurs only in round trips for one purpose, and that purpose. The first match counts.
const CAUSES: [(&str, &str); 14] = [
    ("max(id), 0) AS revision FROM scheduler_audit_log", CONTROL_POLL),
    ("WHERE s.late_at <", LATE),
    ("WITH claimed AS", CLAIM),
    ("WITH updated AS", LAST_RECORD),
    ("INSERT INTO scheduler_runs", NODE_RECORD),
    ("SET holder = NULL", "release"),
    ("SET expires_at = now() +", RENEWAL),
    ("billing_daemon_status", WORK),
    ("AS age_ms", WORK),
    ("WITH clock AS", WORK),
    ("WITH selected AS", WORK),
    ("connect", CONNECTION),
    ("client_encoding", CONNECTION),
    ("SHOW transaction_read_only", POOL),
];

/// The query for control requests: every two seconds, or every second while a job runs.
pub const CONTROL_POLL: &str = "control poll";
/// The query for late jobs: at every tenth of these polls.
pub const LATE: &str = "late jobs";
/// The claim of a job's lease.
pub const CLAIM: &str = "claim";
/// The extension of a lease that is held.
pub const RENEWAL: &str = "renewal";
/// A new connection of the pool.
pub const CONNECTION: &str = "connection";
/// The row of a run that moves its job's cursor, and mostly gives the lease back.
pub const LAST_RECORD: &str = "record";
/// The row of a run that each node records.
pub const NODE_RECORD: &str = "record of a node";
/// Reads and writes of a heartbeat, a clean-up or a check of wallets.
pub const WORK: &str = "work";
/// A pool's check whether a connection is alive and may write.
pub const POOL: &str = "pool";

/// The number of round trips by purpose. One of unknown purpose is listed under its text.
#[must_use]
pub fn by_cause(trips: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for trip in trips {
        *counts.entry(cause(trip)).or_default() += 1;
    }
    counts
}

fn cause(trip: &str) -> String {
    if trip == "S" {
        return POOL.to_owned();
    }
    let known = CAUSES.iter().find(|(text, _)| trip.contains(text));
    known.map_or_else(|| trip.to_owned(), |(_, cause)| (*cause).to_owned())
}
