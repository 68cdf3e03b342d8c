//! The proof that the campaign can find something: each guard that is left out of the daemons is missed.

use std::time::Duration;

use e2e::faults::{self, Engine, Fault, Options, Report};

use super::options;

/// In so many campaigns a guard that is left out is missed, or it is not needed.
const CAMPAIGNS: u64 = 4;

/// What the campaign counts that a daemon without a guard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Double,
    Lost,
    WalletsOff,
    /// A rule was broken, of which a finding says this.
    Rule(&'static str),
}

/// Guards that are left out together, and how that is found. Where several are, one alone is not missed: another layer holds.
struct Mutation {
    guards: &'static str,
    engine: Engine,
    faults: &'static [Fault],
    /// How long a batch waits between what it reads and what it writes.
    linger_ms: u32,
    seconds: u64,
    sabotage: &'static [&'static str],
    found: Found,
}

impl Mutation {
    const fn new(guards: &'static str, found: Found) -> Self {
        Self {
            guards,
            engine: Engine::Postgres,
            faults: &[],
            linger_ms: 30,
            seconds: 5,
            sabotage: &[],
            found,
        }
    }

    const fn on_sqlite(self) -> Self {
        Self { engine: Engine::Sqlite, ..self }
    }

    const fn faults(self, seconds: u64, faults: &'static [Fault]) -> Self {
        Self { faults, seconds, ..self }
    }

    const fn sabotage(self, sabotage: &'static [&'static str]) -> Self {
        Self { sabotage, ..self }
    }

    /// Looks for it in several campaigns: what is random may miss once.
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
        let mut options = options(self.engine, self.seconds)
            .faults(self.faults)
            .environment("BILLING_LINGER_MS", &self.linger_ms.to_string());
        if !self.guards.is_empty() {
            options = options.mutated(self.guards);
        }
        options.seed = seed;
        options.sabotage = self.sabotage.iter().map(|sql| (*sql).to_owned()).collect();
        options.keep_logs = false;
        options.pace_ms = 5..20;
        options.panel = false;
        options.patience = Duration::from_secs(12);
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

mutations! {
    // Layer 2, the fence. Alone it is not missed: who lost the lease stops by its own clock. So everybody claims at once.
    who_ignores_the_fence_commits_after_a_newer_holder:
        Mutation::new("claim-unexpired,no-fence-check", Found::Rule("was committed under the number"));
    who_ignores_the_fence_commits_after_a_newer_holder_on_sqlite:
        Mutation::new("claim-unexpired,no-fence-check", Found::Rule("was committed under the number")).on_sqlite();
    without_a_raised_fence_nobody_bills: Mutation::new("fence-not-raised", Found::Lost);
    a_run_recorded_without_a_lease_overlaps_another:
        Mutation::new("record-unfenced", Found::Rule("before an older holder's was recorded"))
            .faults(10, &[Fault::Pause]);

    // Layer 1, the ledger, without any holder: the key, the watermark, the anchor and the counts each hold alone.
    without_its_key_the_ledger_takes_an_hour_twice:
        Mutation::new("", Found::Rule("unique_key")).sabotage(&[NO_KEY]);
    a_stale_list_charges_twice:
        Mutation::new(
            "claim-unexpired,no-fence-check,stale-due-list,no-watermark-compare,no-count-check",
            Found::Double,
        )
        .sabotage(&[NO_KEY]);
    rows_that_nobody_counts_take_money_for_nothing:
        Mutation::new("claim-unexpired,no-fence-check,stale-due-list,no-count-check", Found::WalletsOff);
    hours_from_the_anchor_alone_begin_again: Mutation::new("anchor-only", Found::Double);
    an_anchor_that_stays_misleads_the_panel: Mutation::new("anchor-stays", Found::Rule("watermark"));

    // Money: the lock and the comparison of the balance each hold alone.
    a_balance_from_before_a_top_up_is_written_back:
        Mutation::new("no-wallet-lock,no-balance-compare", Found::WalletsOff);
    a_debit_of_its_own_is_lost_by_a_kill:
        Mutation::new("debit-apart", Found::WalletsOff).faults(6, &[Fault::KillAny, Fault::KillTheHolder]);
    a_debit_of_its_own_is_lost_by_a_kill_on_sqlite:
        Mutation::new("debit-apart", Found::WalletsOff).faults(6, &[Fault::KillAny, Fault::KillTheHolder]).on_sqlite();
    cycles_of_their_own_are_lost_by_a_kill:
        Mutation::new("cycles-apart", Found::Rule("billed cycles")).faults(6, &[Fault::KillTheHolder]);

    // One transaction, and what is known of it.
    a_retry_without_a_rollback_keeps_half_a_batch: Mutation::new("retry-without-rollback", Found::WalletsOff);
    totals_from_memory_miss_a_lost_answer:
        Mutation::new("totals-from-memory", Found::Rule("its batches")).faults(6, &[Fault::LoseCommits]);
}

/// Guards that are left out together, while a further layer holds: no hour is charged twice or lost, and no wallet is off.
struct Layer {
    guards: &'static str,
    /// Whether anybody may commit at any time, which the campaign notes and which does no harm.
    headless: bool,
}

impl Layer {
    async fn check(self) {
        let mut options = options(Engine::Postgres, 5)
            .faults(&[])
            .mutated(self.guards)
            .environment("BILLING_LINGER_MS", "30");
        options.pace_ms = 5..20;
        options.panel = false;
        let report = Box::pin(faults::run(&options)).await;
        let harmless = report.double == 0 && report.lost == 0 && report.wallets_off == 0;
        assert!(harmless && (self.headless || report.is_clean()), "{}:\n{report}", self.guards);
    }
}

mutations! {
    // The fence holds although everybody claims.
    claims_of_leases_that_somebody_holds_do_no_harm: Layer { guards: "claim-unexpired", headless: false };
    // The comparison of the balance holds without the lock, and the lock without the comparison.
    wallets_without_a_lock_do_no_harm: Layer { guards: "no-wallet-lock", headless: false };
    balances_that_are_not_compared_do_no_harm: Layer { guards: "no-balance-compare", headless: false };
    // The ledger holds with neither lease nor fence, on lists that are stale as well.
    daemons_without_any_holder_do_no_harm:
        Layer { guards: "claim-unexpired,no-fence-check", headless: true };
    stale_lists_without_any_holder_do_no_harm:
        Layer { guards: "claim-unexpired,no-fence-check,stale-due-list", headless: true };
}
