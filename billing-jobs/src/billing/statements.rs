//! The statements of a billing run: one of each kind, in the words of either database.

use sea_orm::DbBackend;

use super::{postgres, sqlite};
use crate::panel::Panel;

/// How far ahead of the clock a ledger row may be, so that it is newer than the rows before it although the clock was set back. Rows
/// that are further ahead come from a clock that was plainly wrong, and are not followed.
pub(super) const LEDGER_HOURS_AHEAD: i64 = 24;

/// SQL of a run. Each statement's comment names its parameters. One that takes rows takes an array for each column of them on
/// PostgreSQL, and on SQLite rows of placeholders, of which it has one in braces: see `rows`.
#[derive(Debug)]
pub(super) struct Statements {
    /// `() -> now` in microseconds.
    pub(super) now: String,
    /// `() -> id, provider_plan_id, provider_id, base, markup, backup, upcharge`, prices as text, on SQLite as the integers that they are.
    pub(super) plans: String,
    /// `() -> plan, backups, seen_at, rate, backup_rate` by place: what earlier runs saw, of each plan the oldest first.
    pub(super) seen_rates: String,
    /// `(seen rates)`.
    pub(super) insert_seen_rates: String,
    /// `(as_of, after, limit) -> first, last`: the organizations after `after` that have about `limit` instances due or
    /// held.
    pub(super) next_organizations: String,
    /// `()`: how statements over part of a fleet are planned. None on SQLite.
    pub(super) plan_settings: Option<String>,
    /// `(fence, job)`: what else holds for the transaction. Without a number of its own, for it is rolled back anyway, it borrows
    /// the one in force and keeps that in force. None on SQLite.
    pub(super) settings: Option<String>,
    /// The same, with a column `guarded`: whether the triggers that keep the panel from charging are in place. They stay so until the
    /// transaction ends. None on SQLite.
    pub(super) guarded_settings: Option<String>,
    /// `(job, fence) -> 1` if that number is still the newest.
    pub(super) check_fence: String,
    /// `(first, last) -> id, organization, balance, currency, opened` by place.
    pub(super) read_wallets: String,
    /// The same, locked in the order of their ids.
    pub(super) lock_wallets: String,
    /// `(organizations) -> 1` if any of them has a wallet, locked or not; none on SQLite, which hides nothing.
    pub(super) any_wallet: Option<String>,
    /// `(as_of, first, last) -> ...`, as `read::instance` reads it: what may be due, oldest first within an organization.
    pub(super) read_due: String,
    /// The same for the instances of a JSON array of ids only: `(as_of, first, last, ids)`.
    pub(super) read_due_of: String,
    /// `(as_of) -> ...`, as `read::instance` reads it: what may be due and belongs to no organization.
    pub(super) read_unowned: String,
    /// `(run, fence, as_of, instances, charges, held, hours, currencies, ledger rows) -> id, ledger_until`: the batch, and the
    /// `created_at` of the last of its ledger rows. Every row is newer than those of all batches before it, by a microsecond each.
    pub(super) insert_batch: String,
    /// `(ids of wallets)`, a JSON array: what they hold before their first charge.
    pub(super) insert_openings: String,
    /// `(charges)`: the wallets' ledger.
    pub(super) insert_ledger: String,
    /// `(charges)`: the ledger of hours.
    pub(super) insert_charges: String,
    /// `(charges)`: the panel's cycles.
    pub(super) insert_cycles: String,
    /// `(meters)`.
    pub(super) insert_meters: String,
    /// `(meters)`: moves each from the watermark that was read.
    pub(super) update_meters: String,
    /// `(anchors)`: moves `last_billed_at` from the value that was read.
    pub(super) update_anchors: String,
    /// `(repairs)`: cycles that our charges lack.
    pub(super) repair_cycles: String,
    /// `(holds)`: opens holds or refreshes open ones.
    pub(super) upsert_holds: String,
    /// `(as_of, ids of instances)`, the ids as a JSON array.
    pub(super) close_holds: String,
    /// `(as_of, reason, ids of instances)`: the same for hours that are never charged, and why.
    pub(super) close_uncharged: String,
    /// `(as_of) -> ...`, as `deleted::read` reads it: meters of instances that the panel deleted since they were last seen, and
    /// that had an hour or more to be charged.
    pub(super) deleted_meters: String,
    /// `(as_of, ids of instances)`: notes that their deletion is recorded.
    pub(super) mark_deleted: String,
    /// `(holds)`: inserts holds that are closed as `instance_deleted`.
    pub(super) insert_deleted_holds: String,
    /// `(wallets)`: moves each from the balance that was read.
    pub(super) update_wallets: String,
    /// `(run) -> charged, charges, held, hours, currencies`, the last as JSON.
    pub(super) run_totals: String,
    /// `() -> guarded`, for a run without batches. None on SQLite.
    pub(super) is_guarded: Option<String>,
    /// `(job, fence, seconds)`: billing worked just now, and after how long without that the panel may bill.
    pub(super) mark_worked: String,
}

impl Statements {
    pub(super) fn of(panel: Panel) -> Self {
        let statements = match panel.backend {
            DbBackend::Sqlite => sqlite::statements(),
            _ => postgres::statements(panel),
        };
        #[cfg(feature = "testing")]
        let statements = statements.tested();
        statements
    }
}
