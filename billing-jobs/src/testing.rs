//! What the fault campaign may break on purpose. Without the feature `testing` nothing of it is compiled. A build of the whole
//! workspace compiles it into every program; there it does nothing, for only the programs of the tests call [`enable`].
//!
//! | variable | effect |
//! |---|---|
//! | `BILLING_CLOCK` | a query whose column `now` is the time up to which billing is due, in microseconds |
//! | `BILLING_MUTATION` | names of guards to leave out, separated by commas: see [`MUTATIONS`] |
//! | `BILLING_LINGER_MS` | how long a batch waits before it begins, and between what it reads and what it writes |
//! | `BILLING_LOCK_TIMEOUT_MS` | the lock timeout of a billing transaction; on SQLite, of any |
//! | `BILLING_ABORT_AT` | the process aborts before this statement of a batch, counted from 1; the commit is one |

use std::{
    collections::BTreeSet,
    env,
    process::abort,
    str::FromStr,
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Each guard that can be left out, with what it is.
pub const MUTATIONS: [(&str, &str); 15] = [
    ("no-fencing-check", "a billing transaction does not ask whether its claim is the newest"),
    ("no-watermark-compare", "a meter moves whatever its watermark is by now"),
    ("no-balance-compare", "a balance is written whatever it is by now"),
    ("no-wallet-lock", "wallets are read without a lock"),
    ("stale-due-list", "what is due is read before the locks"),
    ("no-count-check", "a statement may change another number of rows than it should"),
    ("retry-without-rollback", "a batch that failed is tried again in the same transaction"),
    ("totals-from-memory", "a run's totals are what it remembers, and not its batches"),
    ("cycles-apart", "the panel's cycles are written in a transaction of their own"),
    ("debit-apart", "wallets are debited in a transaction of their own"),
    ("anchor-only", "hours begin at the panel's anchor, whatever our watermark says"),
    ("anchor-stays", "the panel's anchor is not moved"),
    ("claim-unexpired", "a lease is claimed although somebody holds it"),
    ("token-not-raised", "a claim does not shut out the older ones"),
    ("record-unfenced", "a run is recorded whoever holds the job by now"),
];

static MUTATED: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    let names = var("BILLING_MUTATION").unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| match MUTATIONS.iter().find(|(known, _)| *known == name) {
            Some((known, _)) => *known,
            None => panic!("BILLING_MUTATION: no mutation is called `{name}`"),
        })
        .collect()
});
static CLOCK: LazyLock<Option<String>> = LazyLock::new(|| var("BILLING_CLOCK"));
static LINGER: LazyLock<Option<Duration>> =
    LazyLock::new(|| number("BILLING_LINGER_MS").map(Duration::from_millis));
static LOCK_TIMEOUT_MS: LazyLock<Option<u64>> = LazyLock::new(|| number("BILLING_LOCK_TIMEOUT_MS"));
static ABORT_AT: LazyLock<Option<u64>> = LazyLock::new(|| number("BILLING_ABORT_AT"));
/// Until the first batch begins, far from every number that a test can name.
static STATEMENTS: AtomicU64 = AtomicU64::new(u64::MAX / 2);

static ENABLED: AtomicBool = AtomicBool::new(false);

/// From here on the environment may break things: the first thing that a program of the tests does.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

fn var(name: &str) -> Option<String> {
    if ENABLED.load(Ordering::Relaxed) { env::var(name).ok() } else { None }
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = var(name)?;
    let Ok(number) = text.parse() else { panic!("{name}: `{text}` is no number") };
    Some(number)
}

/// Whether the guard called `name` is left out.
///
/// # Panics
/// If the environment names a guard that does not exist.
pub fn mutated(name: &str) -> bool {
    debug_assert!(MUTATIONS.iter().any(|(known, _)| *known == name), "no mutation is called `{name}`");
    MUTATED.contains(name)
}

/// `sql` without `guard`, if that is left out under `name`.
///
/// # Panics
/// If `sql` has no such guard: a mutation that changes nothing proves nothing.
pub fn without(name: &str, sql: &mut String, guard: &str) {
    instead(name, sql, guard, "");
}

/// `sql` with `other` in the place of `guard`, if that is left out under `name`.
///
/// # Panics
/// If `sql` has no such guard.
pub fn instead(name: &str, sql: &mut String, guard: &str, other: &str) {
    if mutated(name) {
        assert!(sql.contains(guard), "{name}: `{guard}` is not in `{sql}`");
        *sql = sql.replace(guard, other);
    }
}

pub(crate) fn clock() -> Option<&'static str> {
    CLOCK.as_deref()
}

/// The lock timeout of a billing transaction, if it is another one than usual.
#[must_use]
pub fn lock_timeout_ms() -> Option<u64> {
    *LOCK_TIMEOUT_MS
}

pub(crate) async fn linger() {
    if let Some(linger) = *LINGER {
        tokio::time::sleep(linger).await;
    }
}

/// A batch begins: its statements are counted from here.
pub(crate) fn batch_begins() {
    STATEMENTS.store(0, Ordering::Relaxed);
}

/// The next statement of a batch is about to be sent.
pub(crate) fn before_statement() {
    let number = STATEMENTS.fetch_add(1, Ordering::Relaxed) + 1;
    if *ABORT_AT == Some(number) {
        abort();
    }
}
