//! Statements without a safeguard: the fault campaign shows that each is needed.

use crate::{
    billing::sql::{Statements, micros},
    fault_injection::{clock, instead, lock_timeout_ms, without},
};
use sea_orm::DbBackend;

impl Statements {
    /// These statements with the campaign's clock and without the safeguards that it leaves out.
    pub(in crate::billing) fn mutated(mut self) -> Self {
        if let Some(clock) = clock() {
            clock.clone_into(&mut self.now);
        }
        if let Some(ms) = lock_timeout_ms() {
            for settings in [&mut self.settings, &mut self.guarded_settings].into_iter().flatten() {
                let limited = format!("SELECT set_config('lock_timeout', '{ms}ms', true), set_config(");
                *settings = settings.replacen("SELECT set_config(", &limited, 1);
            }
        }
        let sqlite = self.settings.is_none();
        let number = if sqlite { "?" } else { "$" };
        let tokens = format!("AND f.fencing_token = {number}2 AND s.fencing_token = {number}2");
        instead("no-fencing-check", &mut self.check_fence, &tokens, &format!("AND {number}2 > 0"));
        let anchor = "coalesce(i.last_billed_at, i.created_at)";
        let anchor = if sqlite { micros(DbBackend::Sqlite, anchor) } else { anchor.to_owned() };
        let anchor = format!("CASE WHEN m.billed_through IS NOT NULL THEN {anchor} END, m.carry");
        for read in [&mut self.read_due, &mut self.read_due_of, &mut self.read_unowned] {
            // The first one: it belongs to the instances that exist.
            if let Some((before, after)) = read.split_once("m.billed_through, m.carry") {
                let mutated = format!("{before}{anchor}{after}");
                let original = read.clone();
                instead("anchor-only", read, &original, &mutated);
            }
        }
        let watermark = if sqlite {
            // Parameters without a number are counted, so each stays.
            let balance = "AND wallets.balance = d.column3";
            without("no-balance-compare", &mut self.update_wallets, balance);
            "AND billing_meters.billed_through = d.column9"
        } else {
            without("no-wallet-lock", &mut self.lock_wallets, "FOR NO KEY UPDATE OF w");
            without("no-balance-compare", &mut self.update_wallets, "AND w.balance = d.before * 0.0001");
            "AND m.billed_through = (timestamptz 'epoch' + d.billed_through_before * interval '1 microsecond')"
        };
        for mutation in ["no-watermark-compare", "anchor-only"] {
            without(mutation, &mut self.update_meters, watermark);
        }
        self
    }
}
