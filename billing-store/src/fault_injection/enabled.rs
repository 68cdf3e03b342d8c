//! The switches of a fault campaign, read from the environment of a program that called [`enable`].
//!
//! | variable | effect |
//! |---|---|
//! | `BILLING_MUTATION` | the safeguards to remove, separated by commas |
//! | `BILLING_LOCK_TIMEOUT_MS` | the lock timeout of a transaction |

use std::{
    collections::BTreeSet,
    env,
    str::FromStr,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// The safeguards of the store that can be removed, with the effect.
const MUTATIONS: [(&str, &str); 3] = [
    ("claim-unexpired", "a lease is claimed although another process holds it"),
    ("token-not-raised", "a claim does not invalidate older ones"),
    ("record-unfenced", "a run is recorded although another process holds the job"),
];

/// The removable safeguards of other crates, set by [`enable`].
static OTHERS: OnceLock<&'static [(&'static str, &'static str)]> = OnceLock::new();
static MUTATED: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let names = variable("BILLING_MUTATION").unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| {
            assert!(is_known(name), "BILLING_MUTATION: no mutation is called `{name}`");
            name.to_owned()
        })
        .collect()
});
/// How many calls of the database are made before the process aborts; 0: it does not.
static CALLS_LEFT: AtomicU64 = AtomicU64::new(0);
static LOCK_TIMEOUT_MS: LazyLock<Option<u64>> = LazyLock::new(|| number("BILLING_LOCK_TIMEOUT_MS"));

/// Enables the switches: the first call of a test program. `others` are the removable safeguards of other crates.
pub fn enable(others: &'static [(&'static str, &'static str)]) {
    // A second call changes nothing.
    let _ = OTHERS.set(others);
    // A misspelt name ends the process here; in a run, the panic would only fail that run.
    LazyLock::force(&MUTATED);
}

fn is_known(name: &str) -> bool {
    let others = OTHERS.get().copied().unwrap_or_default();
    MUTATIONS.iter().chain(others).any(|(known, _)| *known == name)
}

/// Returns the value of an environment variable if the switches are enabled.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    OTHERS.get().and_then(|_| env::var(name).ok())
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = variable(name)?;
    let Ok(number) = text.parse() else { panic!("{name}: `{text}` is not a number") };
    Some(number)
}

/// Returns whether the safeguard `name` is removed.
///
/// # Panics
/// If the environment contains the name of a safeguard that does not exist.
pub fn mutated(name: &str) -> bool {
    debug_assert!(OTHERS.get().is_none() || is_known(name), "no mutation is called `{name}`");
    MUTATED.contains(name)
}

/// Removes `guard` from `sql` if the safeguard `name` is removed.
///
/// # Panics
/// If `sql` does not contain `guard`: a mutation without an effect proves nothing.
pub fn without(name: &str, sql: &mut String, guard: &str) {
    instead(name, sql, guard, "");
}

/// Replaces `guard` in `sql` by `other` if the safeguard `name` is removed.
///
/// # Panics
/// If `sql` does not contain `guard`.
pub fn instead(name: &str, sql: &mut String, guard: &str, other: &str) {
    if mutated(name) {
        assert!(sql.contains(guard), "{name}: `{guard}` is not in `{sql}`");
        *sql = sql.replace(guard, other);
    }
}

/// Aborts the process before this call of the database, counted from 1 and from now.
pub fn abort_before_call(number: u64) {
    CALLS_LEFT.store(number, Ordering::SeqCst);
}

/// Counts a call of the database that is about to be made.
pub(crate) fn before_call() {
    let left = CALLS_LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if left == Ok(1) {
        std::process::abort();
    }
}

/// Returns the lock timeout of a transaction in milliseconds if it differs from the default.
#[must_use]
pub fn lock_timeout_ms() -> Option<u64> {
    *LOCK_TIMEOUT_MS
}
