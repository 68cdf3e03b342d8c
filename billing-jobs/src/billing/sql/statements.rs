//! The statements of a billing run: one of each kind, in the words of either database.

/// How far ahead of the clock a ledger row may be, so that it is newer than the rows before it although the clock was set back. Rows
/// that are further ahead come from a clock that was plainly wrong, and are not followed.
pub(crate) const LEDGER_HOURS_AHEAD: i64 = 24;

/// The most deleted instances that one run records; the next run continues.
pub(crate) const DELETED_PER_RUN: usize = 100_000;

/// SQL of a run. Each statement's comment names its parameters. One that takes rows takes an array for each column of them on
/// PostgreSQL, and on SQLite rows of placeholders, of which it has one in braces: see `rows`.
#[derive(Debug)]
pub(crate) struct Statements {
    /// `() -> now` in microseconds.
    pub(crate) now: String,
    /// `() -> id, provider_plan_id, provider_id, base, markup, backup, upcharge`, prices as text, on SQLite as the integers that they are.
    pub(crate) plans: String,
    /// `() -> plan, backups, seen_at, rate, backup_rate` by place: what earlier runs saw, of each plan the oldest first.
    pub(crate) seen_rates: String,
    /// `(seen rates)`.
    pub(crate) insert_seen_rates: String,
    /// `(as_of, after, limit) -> first, last`: the organizations after `after` that have about `limit` instances due or
    /// held.
    pub(crate) next_organizations: String,
    /// `()`: how statements over part of a fleet are planned. None on SQLite.
    pub(crate) plan_settings: Option<String>,
    /// `(fence, job)`: what else holds for the transaction. Without a number of its own, for it is rolled back anyway, it borrows
    /// the one in force and keeps that in force. None on SQLite.
    pub(crate) settings: Option<String>,
    /// The same, with a column `guarded`: whether the triggers that keep the panel from charging are in place. They stay so until the
    /// transaction ends. None on SQLite.
    pub(crate) guarded_settings: Option<String>,
    /// `(job, fence) -> 1` if that number is still the newest.
    pub(crate) check_fence: String,
    /// `(first, last) -> id, organization, balance, currency, opened` by place.
    pub(crate) read_wallets: String,
    /// The same, locked in the order of their ids.
    pub(crate) lock_wallets: String,
    /// `(organizations) -> 1` if any of them has a wallet, locked or not; none on SQLite, which hides nothing.
    pub(crate) any_wallet: Option<String>,
    /// `(as_of, first, last) -> ...`, as `read::instance` reads it: what may be due, oldest first within an organization.
    pub(crate) read_due: String,
    /// The same for the instances of a JSON array of ids only: `(as_of, first, last, ids)`.
    pub(crate) read_due_of: String,
    /// `(as_of) -> ...`, as `read::instance` reads it: what may be due and belongs to no organization.
    pub(crate) read_unowned: String,
    /// `(run, fence, as_of, instances, charges, held, hours, currencies, ledger rows) -> id, ledger_until`: the batch, and the
    /// `created_at` of the last of its ledger rows. Every row is newer than those of all batches before it, by a microsecond each.
    pub(crate) insert_batch: String,
    /// `(ids of wallets)`, a JSON array: what they hold before their first charge.
    pub(crate) insert_openings: String,
    /// `(charges)`: the wallets' ledger.
    pub(crate) insert_ledger: String,
    /// `(charges)`: the ledger of hours.
    pub(crate) insert_charges: String,
    /// `(charges)`: the panel's cycles.
    pub(crate) insert_cycles: String,
    /// `(meters)`.
    pub(crate) insert_meters: String,
    /// `(meters)`: moves each from the watermark that was read.
    pub(crate) update_meters: String,
    /// `(anchors)`: moves `last_billed_at` from the value that was read.
    pub(crate) update_anchors: String,
    /// `(repairs)`: cycles that our charges lack.
    pub(crate) repair_cycles: String,
    /// `(holds)`: opens holds or refreshes open ones.
    pub(crate) upsert_holds: String,
    /// `(as_of, ids of instances)`, the ids as a JSON array.
    pub(crate) close_holds: String,
    /// `(as_of, reason, ids of instances)`: the same for hours that are never charged, and why.
    pub(crate) close_uncharged: String,
    /// `(as_of) -> ...`, as `deleted::read` reads it: meters of instances that the panel deleted since they were last seen, and
    /// that had an hour or more to be charged.
    pub(crate) deleted_meters: String,
    /// `(as_of, ids of instances)`: notes that their deletion is recorded.
    pub(crate) mark_deleted: String,
    /// `(holds)`: inserts holds that are closed as `instance_deleted`.
    pub(crate) insert_deleted_holds: String,
    /// `(wallets)`: moves each from the balance that was read.
    pub(crate) update_wallets: String,
    /// `(run) -> charged, charges, held, hours, currencies`, the last as JSON.
    pub(crate) run_totals: String,
    /// `() -> guarded`, for a run without batches. None on SQLite.
    pub(crate) is_guarded: Option<String>,
    /// `(job, fence, seconds)`: billing worked just now, and after how long without that the panel may bill.
    pub(crate) record_success: String,
}
