//! A short campaign of the prepaid policy, and the proof that it detects missing safeguards.

use std::time::Duration;

use billing_tools::{
    Engine,
    faults::Fault,
    prepaid::{self, Options, Report},
};

/// The number of campaigns within which a removed safeguard must be missed.
const CAMPAIGNS: u64 = 4;

fn options(engine: Engine, seconds: u64) -> Options {
    let program = env!("CARGO_BIN_EXE_e2e-tools").into();
    let mut options = Options::new(engine, Duration::from_secs(seconds), 1, program);
    (options.hours_per_second, options.least, options.has_outages) = (4, 1, false);
    options.faults = vec![Fault::KillAny];
    options
}

async fn check_clean(engine: Engine) {
    let report = Box::pin(prepaid::run(&options(engine, 2))).await;
    assert!(report.is_clean(), "{report}");
    assert!(report.kills > 0 && report.notices > 0, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepaid_campaign_on_sqlite_finds_nothing() {
    check_clean(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepaid_campaign_on_postgres_finds_nothing() {
    check_clean(Engine::Postgres).await;
}

/// Safeguards that are removed together, and the count that they raise. Where there are several, one alone is not missed: another layer
/// holds.
struct Mutation {
    guards: &'static str,
    sabotage: &'static [&'static str],
    has_outages: bool,
    has_failing_receivers: bool,
    has_slow_receivers: bool,
    seconds: u64,
    found: fn(&Report) -> u64,
}

impl Mutation {
    const fn new(guards: &'static str, found: fn(&Report) -> u64) -> Self {
        Self {
            guards,
            sabotage: &[],
            has_outages: false,
            has_failing_receivers: false,
            has_slow_receivers: false,
            seconds: 5,
            found,
        }
    }

    /// Searches in several campaigns: a random one may miss it.
    async fn check(self) {
        let mut reports = Vec::new();
        for seed in 1..=CAMPAIGNS {
            let mut options = options(Engine::Postgres, self.seconds).mutated(self.guards);
            options.seed = seed;
            options.environment.push(("BILLING_LINGER_MS".to_owned(), "100".to_owned()));
            options.faults = Vec::new();
            options.has_outages = self.has_outages;
            options.has_slow_receivers = self.has_slow_receivers;
            options.has_failing_receivers = self.has_failing_receivers;
            options.sabotage = self.sabotage.iter().map(|sql| (*sql).to_owned()).collect();
            let report = Box::pin(prepaid::run(&options)).await;
            if (self.found)(&report) > 0 {
                return;
            }
            reports.push(report.to_string());
        }
        panic!("nothing was found without `{}`:\n{}", self.guards, reports.join("\n"));
    }
}

macro_rules! mutations {
    ($($name:ident: $mutation:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "takes up to two minutes; a nightly step runs it"]
        async fn $name() {
            $mutation.check().await;
        }
    )+};
}

const NO_KEY: &[&str] = &["ALTER TABLE billing_notices DROP CONSTRAINT billing_notices_pkey"];

mutations! {
    // Checks of several daemons at once: the lock of the wallet, the count of rows and the key of the notice each hold alone. Payments
    // in progress prove the lock, in `billing/prepaid_enforced.rs`: here it is missed too rarely.
    missing_count_check_repeats_notices:
        Mutation::new(
            "claim-unexpired,prepaid-no-fencing-check,prepaid-no-wallet-lock,prepaid-no-count-check",
            |report| report.twice,
        );
    missing_notice_key_repeats_notices:
        Mutation {
            sabotage: NO_KEY,
            ..Mutation::new(
                "claim-unexpired,prepaid-no-fencing-check,prepaid-no-wallet-lock,prepaid-no-notice-key",
                |report| report.twice,
            )
        };
    missing_recheck_suspends_paid_customers:
        Mutation {
            has_outages: true,
            has_failing_receivers: true,
            seconds: 40,
            ..Mutation::new("prepaid-no-recheck", |report| report.stopped_by_outage)
        };
    // Deliveries of several daemons at once: the claim of a delivery holds alone.
    unclaimed_deliveries_are_repeated:
        Mutation {
            has_slow_receivers: true,
            ..Mutation::new("claim-unexpired,prepaid-no-claim", |report| report.repeated)
        };
}
