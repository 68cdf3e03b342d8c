//! Statements without one of their guards: what the fault campaign proves the guards with.

use super::enabled::{clock, instead, lock_timeout_ms, without};
use crate::billing::sql::Statements;

impl Statements {
    /// With the campaign's clock, and without the guards that it leaves out.
    pub(crate) fn tested(mut self) -> Self {
        if let Some(clock) = clock() {
            clock.clone_into(&mut self.now);
        }
        if let Some(ms) = lock_timeout_ms() {
            for settings in [&mut self.settings, &mut self.guarded_settings].into_iter().flatten() {
                let limited = format!("SELECT set_config('lock_timeout', '{ms}ms', true), set_config(");
                *settings = settings.replacen("SELECT set_config(", &limited, 1);
            }
        }
        // PostgreSQL numbers its parameters with a dollar sign, SQLite with a question mark.
        let number = if self.settings.is_some() { "$" } else { "?" };
        let fences = format!("AND f.fencing_token = {number}2 AND s.fencing_token = {number}2");
        instead("no-fencing-check", &mut self.check_fence, &fences, &format!("AND {number}2 > 0"));
        if self.settings.is_some() {
            without("no-wallet-lock", &mut self.lock_wallets, "FOR NO KEY UPDATE OF w");
            let unchanged = "AND m.billed_through = (timestamptz 'epoch' + d.billed_through_before * interval '1 microsecond')";
            without("no-watermark-compare", &mut self.update_meters, unchanged);
            without("no-balance-compare", &mut self.update_wallets, "AND w.balance = d.before * 0.0001");
        } else {
            // The parameter stays, for they are counted.
            instead(
                "no-watermark-compare",
                &mut self.update_meters,
                "AND billed_through = ?",
                "AND ? IS NOT NULL",
            );
            instead("no-balance-compare", &mut self.update_wallets, "AND balance = ?", "AND ? IS NOT NULL");
        }
        self
    }
}
