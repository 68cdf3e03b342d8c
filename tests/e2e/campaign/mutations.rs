//! The proof that the campaign detects faults: each safeguard that is removed from the daemons is missed.

use std::time::Duration;

use billing_tools::{
    Engine,
    faults::{self, Fault, Options, Report},
};

use super::options;
use crate::daemon::program;

/// The number of campaigns within which a removed safeguard must be missed.
const CAMPAIGNS: u64 = 4;
/// The least number of billing runs of a campaign, however slow the host is.
const RUNS: u64 = 5;
const KILLS: &[Fault] = &[Fault::KillAny, Fault::KillTheHolder];

/// The damage that a daemon without a safeguard causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Double,
    Lost,
    WalletsOff,
    /// A rule was broken; the finding contains this text.
    Rule(&'static str),
}

/// Safeguards that are removed together, and the finding. Where there are several, one alone is not missed: another layer holds.
struct Mutation {
    guards: &'static str,
    faults: &'static [Fault],
    /// How long a batch waits between what it reads and what it writes, and a writer without a transaction between two.
    linger_ms: u32,
    instances: usize,
    seconds: u64,
    runs: u64,
    sabotage: &'static [&'static str],
    found: Found,
}

impl Mutation {
    const fn new(guards: &'static str, found: Found) -> Self {
        Self {
            guards,
            faults: &[],
            linger_ms: 30,
            instances: 60,
            seconds: 4,
            runs: RUNS,
            sabotage: &[],
            found,
        }
    }

    /// Killed in the long pause after a commit.
    const fn killed(self) -> Self {
        Self { faults: KILLS, linger_ms: 150, ..self }
    }

    /// No run finishes.
    const fn endless(self) -> Self {
        Self { runs: 0, ..self }
    }

    const fn sabotage(self, sabotage: &'static [&'static str]) -> Self {
        Self { sabotage, ..self }
    }

    /// Searches in several campaigns: a random one may miss it.
    async fn check(self) {
        let mut reports = Vec::new();
        for seed in 1..=CAMPAIGNS {
            let report = Box::pin(faults::run(&self.options(seed))).await;
            if self.is_found(&report) {
                return;
            }
            reports.push(report.to_string());
        }
        let Self { found, guards, .. } = self;
        panic!("nothing of the kind {found:?} was found without `{guards}`:\n{}", reports.join("\n"));
    }

    fn options(&self, seed: u64) -> Options {
        let mut options = options(Engine::Postgres, self.seconds)
            .faults(self.faults)
            .environment("BILLING_LINGER_MS", &self.linger_ms.to_string());
        if !self.guards.is_empty() {
            options = options.mutated(self.guards);
        }
        options.seed = seed;
        options.runs = self.runs;
        options.instances = self.instances;
        options.sabotage = self.sabotage.iter().map(|sql| (*sql).to_owned()).collect();
        options.keep_logs = false;
        options.pace_ms = 5..20;
        options.panel = false;
        options.settle_timeout = Duration::from_secs(if self.runs == 0 { 6 } else { 12 });
        options
    }

    fn is_found(&self, report: &Report) -> bool {
        match self.found {
            Found::Double => report.double > 0,
            Found::Lost => report.lost > 0,
            Found::WalletsOff => report.wallets_off > 0,
            Found::Rule(text) => report.findings.iter().any(|finding| finding.contains(text)),
        }
    }
}

macro_rules! mutations {
    ($($name:ident: $mutation:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $mutation.check().await;
        }
    )+};
}

const NO_KEY: &str = "ALTER TABLE billing_charges DROP CONSTRAINT billing_charges_pkey";

/// In every other transaction, the first instance that is billed is not the one that was read, as if it had been deleted.
const ONE_IS_GONE: &[&str] = &[
    "CREATE FUNCTION one_is_gone() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
         IF coalesce(current_setting('test.one_is_gone', true), '') = '' THEN
             PERFORM set_config('test.one_is_gone', (random() < 0.5)::text, true);
             IF current_setting('test.one_is_gone')::boolean THEN RETURN NULL; END IF;
         END IF;
         RETURN NEW;
     END $$",
    "CREATE TRIGGER one_is_gone BEFORE UPDATE OF last_billed_at ON vps_instances
     FOR EACH ROW EXECUTE FUNCTION one_is_gone()",
];

mutations! {
    // Layer 2, the panel guard. Alone it is not missed: a daemon that lost the lease stops by its own clock. So all daemons claim at once.
    missing_fencing_check_permits_stale_commits:
        Mutation::new("claim-unexpired,no-fencing-check", Found::Rule("was committed under the number"));
    claims_without_new_token_stop_billing: Mutation::new("token-not-raised", Found::Lost).endless();

    // Layer 1, the ledger, without any holder: the key, the watermark, the anchor and the counts each hold alone.
    ledger_without_key_accepts_hour_twice:
        Mutation::new("", Found::Rule("unique_key")).sabotage(&[NO_KEY]);
    stale_due_list_charges_twice:
        Mutation::new(
            "claim-unexpired,no-fencing-check,stale-due-list,no-watermark-compare,no-count-check",
            Found::Double,
        )
        .sabotage(&[NO_KEY]);
    missing_row_count_check_loses_money:
        Mutation::new("claim-unexpired,no-fencing-check,stale-due-list,no-count-check", Found::WalletsOff);
    hours_from_anchor_alone_repeat: Mutation::new("anchor-only", Found::Double);
    unmoved_anchor_misleads_the_panel: Mutation::new("anchor-stays", Found::Rule("watermark"));

    // Money: the lock and the comparison of the balance each hold alone.
    unlocked_balance_overwrites_top_up:
        Mutation::new("no-wallet-lock,no-balance-compare", Found::WalletsOff);
    separate_debit_is_lost_by_kill: Mutation::new("debit-apart", Found::WalletsOff).killed();

    // One transaction, and nothing of it is left when it is tried again.
    retry_without_rollback_keeps_half_batch:
        Mutation::new("retry-without-rollback", Found::WalletsOff).sabotage(ONE_IS_GONE);
}

/// What the panel read of a balance it writes back, less its debit. The second trigger of the panel guard notes what it overwrites.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guard_without_balance_check_permits_overwrites() {
    for seed in 1..=CAMPAIGNS {
        let mut options = options(Engine::Postgres, 20);
        options.seed = seed;
        options.keep_logs = false;
        options.sabotage = vec!["DROP TRIGGER billing_panel_guard_balance ON wallets".to_owned()];
        if Box::pin(faults::run(&options)).await.wallets_off > 0 {
            return;
        }
    }
    panic!("no wallet was wrong although the panel's overwrites went unnoticed");
}

/// Safeguards that are removed together, while a further layer holds: no hour is charged twice or lost, and no wallet is off.
struct Layer {
    guards: &'static str,
    /// Whether any daemon may commit at any time, which the campaign reports and which is harmless.
    headless: bool,
}

impl Layer {
    async fn check(self) {
        let mut options = options(Engine::Postgres, 4)
            .faults(&[])
            .mutated(self.guards)
            .environment("BILLING_LINGER_MS", "30");
        options.runs = RUNS;
        options.pace_ms = 5..20;
        options.panel = false;
        let report = Box::pin(faults::run(&options)).await;
        // Without the lease, runs overlap until the campaign ends: what one of them has rolled back may still be due then.
        let lost = if self.headless { 0 } else { report.lost };
        let harmless = report.double == 0 && lost == 0 && report.wallets_off == 0;
        assert!(harmless && (self.headless || report.is_clean()), "{}:\n{report}", self.guards);
    }
}

mutations! {
    // The fencing check holds although every daemon claims.
    claims_of_held_leases_are_harmless: Layer { guards: "claim-unexpired", headless: false };
    // The comparison of the balance holds without the lock, and the lock without the comparison.
    unlocked_wallets_are_harmless: Layer { guards: "no-wallet-lock", headless: false };
    uncompared_balances_are_harmless: Layer { guards: "no-balance-compare", headless: false };
    // The ledger's key suffices without lease and fencing check, on stale lists as well.
    stale_lists_without_lease_are_harmless:
        Layer { guards: "claim-unexpired,no-fencing-check,stale-due-list", headless: true };
}

/// A misspelt name would leave every check in place, and its campaign would prove nothing.
#[tokio::test]
async fn unknown_mutation_name_is_rejected() {
    let ended = program().env("BILLING_MUTATION", "no-such-check").run("version").await.expect_code(101);
    assert!(ended.text().contains("no mutation is called `no-such-check`"), "{}", ended.text());
}
