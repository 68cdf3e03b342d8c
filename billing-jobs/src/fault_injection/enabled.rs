//! What the environment may break, in a build with the feature `testing`.

use std::{str::FromStr, sync::LazyLock, time::Duration};

use billing_store::fault_injection::{self, variable};
pub(crate) use billing_store::fault_injection::{instead, without};
pub use billing_store::fault_injection::{lock_timeout_ms, mutated};

/// Each safeguard of billing that can be left out, with what it is.
const MUTATIONS: [(&str, &str); 18] = [
    ("no-fencing-check", "a billing transaction does not check whether its fencing token is the newest"),
    ("no-watermark-compare", "a meter moves although its watermark has changed"),
    ("no-balance-compare", "a balance is written although it has changed"),
    ("no-wallet-lock", "wallets are read without a lock"),
    ("stale-due-list", "what is due is read before the locks"),
    ("no-count-check", "a statement may change another number of rows than it should"),
    ("retry-without-rollback", "a batch that failed is attempted again in the same transaction"),
    ("totals-from-memory", "the totals of a run come from memory, not from its batches"),
    ("cycles-apart", "the panel's cycles are written in a separate transaction"),
    ("debit-apart", "wallets are debited in a separate transaction"),
    ("anchor-only", "hours begin at the panel's anchor, whatever our watermark is"),
    ("anchor-stays", "the panel's anchor is not moved"),
    (
        "prepaid-no-fencing-check",
        "a check of the prepaid policy ignores whether its fencing token is the newest",
    ),
    ("prepaid-no-wallet-lock", "the prepaid policy decides without a lock of the wallet"),
    (
        "prepaid-no-count-check",
        "a statement of the prepaid policy may write another number of rows than it should",
    ),
    ("prepaid-no-notice-key", "a notice is stored although the level was given in this episode"),
    ("prepaid-no-recheck", "an order is sent without another look at the wallet"),
    ("prepaid-no-claim", "a delivery is attempted by every process that finds it due"),
];

static CLOCK: LazyLock<Option<String>> = LazyLock::new(|| variable("BILLING_CLOCK"));
static LINGER: LazyLock<Option<Duration>> =
    LazyLock::new(|| number("BILLING_LINGER_MS").map(Duration::from_millis));
static CLOCK_RATE: LazyLock<Option<u32>> = LazyLock::new(|| number("BILLING_CLOCK_RATE"));
static BILLING_INTERVAL: LazyLock<Option<u64>> = LazyLock::new(|| number("BILLING_INTERVAL_SECONDS"));
static ABORT_AT: LazyLock<Option<u64>> = LazyLock::new(|| number("BILLING_ABORT_AT"));

/// Lets the environment break things from here on: the first call of a program that tests.
pub fn enable() {
    fault_injection::enable(&MUTATIONS);
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = variable(name)?;
    let Ok(number) = text.parse() else { panic!("{name}: `{text}` is not a number") };
    Some(number)
}

pub(crate) fn clock() -> Option<&'static str> {
    CLOCK.as_deref()
}

pub(crate) async fn linger() {
    if let Some(linger) = *LINGER {
        tokio::time::sleep(linger).await;
    }
}

/// The interval of billing by that clock.
pub(crate) fn billing_interval(configured: Duration) -> Duration {
    BILLING_INTERVAL.map_or(configured, Duration::from_secs)
}

/// How long that clock takes for what the host's clock counts as `duration`.
pub(crate) fn scaled(duration: Duration) -> Duration {
    duration.saturating_mul(CLOCK_RATE.unwrap_or(1))
}

/// The statement of a batch before which the process aborts, counted from 1.
pub(crate) fn abort_at() -> Option<u64> {
    *ABORT_AT
}
