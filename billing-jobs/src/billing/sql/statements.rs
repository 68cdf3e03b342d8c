//! The statements of billing, one of each kind in both dialects, and the sections of the files that contain them.

use std::collections::BTreeMap;

use sea_orm::DbBackend;

use super::rows::{self, postgres_rows};
use crate::{panel::Panel, panel_guard};

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
    /// `(seen rates)`: rates that no earlier run saw.
    pub(crate) insert_seen_rates: String,
    /// `(as_of, after, limit) -> first, last`: the organizations after `after` that have about `limit` instances due or
    /// held.
    pub(crate) next_organizations: String,
    /// `()`: how statements over part of a fleet are planned. None on SQLite.
    pub(crate) plan_settings: Option<String>,
    /// `()`: how statements over whole tables are planned. None on SQLite.
    pub(crate) whole_table_settings: Option<String>,
    /// `(fence, job)`: what else holds for the transaction. A dry run has no token, so
    /// it uses the one in force and keeps that in force. None on SQLite.
    pub(crate) settings: Option<String>,
    /// The same, with a column `guarded`: whether the triggers that keep the panel from charging are in place. They stay so until the
    /// transaction ends. None on SQLite.
    pub(crate) guarded_settings: Option<String>,
    /// `()`: what holds for the transaction of a handover. None on SQLite.
    pub(crate) handover_settings: Option<String>,
    /// `(job, fence, batch, run, time of the batch) -> halted, intact` if that number is still the newest: whether billing is halted, and
    /// whether the noted batch, if there is one, exists.
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
    /// `(run, fence, as_of, instances, charges, held, hours, currencies, ledger rows) -> id, ledger_until, created_at`: the
    /// batch, and the `created_at` of the last of its ledger rows and of the batch. Every row is newer than those of all batches before it, by a microsecond each.
    pub(crate) insert_batch: String,
    /// `(ids of wallets)`, a JSON array: what they hold before their first charge.
    pub(crate) insert_openings: String,
    /// The same for many wallets.
    pub(crate) insert_all_openings: String,
    /// `(charges)`: the wallets' ledger.
    pub(crate) insert_ledger: String,
    /// `(charges)`: the ledger of hours.
    pub(crate) insert_charges: String,
    /// `(charges)`: the panel's cycles.
    pub(crate) insert_cycles: String,
    /// `(meters)`: meters that begin.
    pub(crate) insert_meters: String,
    /// `(meters)`: moves each from the watermark that was read.
    pub(crate) update_meters: String,
    /// `(anchors)`: moves `last_billed_at` from the value that was read.
    pub(crate) update_anchors: String,
    /// `(repairs)`: cycles that our charges lack.
    pub(crate) repair_cycles: String,
    /// The same for many of them: a JSON array of `[instance, since, until]`. None on PostgreSQL, which plans the other one for many
    /// rows.
    pub(crate) repair_all_cycles: Option<String>,
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
    /// `(as_of, most hours) -> currency, plan, provider, backups, rate, changes, gone, broke, machines, hours, longest, balance`: what
    /// is due, grouped by price, where every wallet has one currency.
    pub(crate) due_amounts: String,
    /// The same with the currency of each wallet.
    pub(crate) due_amounts_by_currency: String,
}

impl Statements {
    /// The statements for the schema of `panel`.
    pub(in crate::billing) fn of(panel: Panel) -> Self {
        let sqlite = panel.backend == DbBackend::Sqlite;
        let sections = if sqlite {
            Sections::parse(include_str!("sqlite.sql"), Vec::new())
        } else {
            Sections::parse(include_str!("postgres.sql"), postgres_fragments(panel))
        };
        let only = sections.required("only_instances");
        let read_due = sections.required("read_due");
        let due = |only: &str| {
            read_due.replace("{only}", only).replace("{only_of_hold}", &only.replace("i.id", "i.instance_id"))
        };
        let due_amounts = sections.required("due_amounts");
        let amounts = |currency: &str, join: &str| {
            due_amounts.replace("{currency}", currency).replace("{currency_join}", join)
        };
        let statements = Self {
            now: sections.required("now"),
            plans: sections.required("plans"),
            seen_rates: sections.required("seen_rates"),
            insert_seen_rates: sections.required("insert_seen_rates"),
            next_organizations: sections.required("next_organizations"),
            plan_settings: sections.optional("plan_settings"),
            whole_table_settings: sections.optional("whole_table_settings"),
            settings: sections.optional("settings"),
            guarded_settings: sections.optional("guarded_settings"),
            handover_settings: sections.optional("handover_settings"),
            check_fence: sections.required("check_fence"),
            read_wallets: sections.required("read_wallets"),
            lock_wallets: sections.required("lock_wallets"),
            any_wallet: sections.optional("any_wallet"),
            read_due: due(""),
            read_due_of: due(&only),
            read_unowned: sections.required("read_unowned"),
            insert_batch: sections.required("insert_batch"),
            insert_openings: sections.required("insert_openings"),
            insert_all_openings: sections.required("insert_all_openings"),
            insert_ledger: sections.required("insert_ledger"),
            insert_charges: sections.required("insert_charges"),
            insert_cycles: sections.required("insert_cycles"),
            insert_meters: sections.required("insert_meters"),
            update_meters: sections.required("update_meters"),
            update_anchors: sections.required("update_anchors"),
            repair_cycles: sections.required("repair_cycles"),
            repair_all_cycles: sections.optional("repair_all_cycles"),
            upsert_holds: sections.required("upsert_holds"),
            close_holds: sections.required("close_holds"),
            close_uncharged: sections.required("close_uncharged"),
            deleted_meters: sections.required("deleted_meters"),
            mark_deleted: sections.required("mark_deleted"),
            insert_deleted_holds: sections.required("insert_deleted_holds"),
            update_wallets: sections.required("update_wallets"),
            run_totals: sections.required("run_totals"),
            is_guarded: sections.optional("is_guarded"),
            record_success: sections.required("record_success"),
            due_amounts: amounts(if sqlite { "NULL" } else { "NULL::text" }, ""),
            due_amounts_by_currency: amounts("c.currency", &sections.required("join_currency")),
        };
        #[cfg(feature = "testing")]
        let statements = statements.mutated();
        statements
    }
}

/// What the columns of `panel` and the lists of rows contribute to the statements for PostgreSQL.
fn postgres_fragments(panel: Panel) -> Vec<(&'static str, String)> {
    let column = |exists: bool, column: &str| if exists { column } else { "NULL::text" }.to_owned();
    let (backups, providers) = (panel.backups, panel.providers);
    vec![
        ("backups", column(backups, "backup_frequency")),
        ("i_backups", column(backups, "i.backup_frequency")),
        ("v_backups", column(backups, "v.backup_frequency")),
        ("plan_backup", column(backups, "backup_price_hourly::text")),
        ("plan_upcharge", column(backups, "backup_upcharge_hourly::text")),
        ("provider", column(providers, "provider_id::text")),
        ("i_provider", column(providers, "i.provider_id::text")),
        ("v_provider", column(providers, "v.provider_id::text")),
        ("guard_is_effective", panel_guard::is_effective_sql()),
        ("seen_rate_rows", postgres_rows(rows::SEEN_RATES)),
        ("ledger_rows", postgres_rows(rows::LEDGER)),
        ("charge_rows", postgres_rows(rows::CHARGES)),
        ("cycle_rows", postgres_rows(rows::CYCLES)),
        ("new_meter_rows", postgres_rows(rows::NEW_METERS)),
        ("meter_rows", postgres_rows(rows::METERS)),
        ("anchor_rows", postgres_rows(rows::ANCHORS)),
        ("repair_rows", postgres_rows(rows::REPAIRS)),
        ("hold_rows", postgres_rows(rows::HOLDS)),
        ("wallet_rows", postgres_rows(rows::WALLETS)),
    ]
}

/// The sections of a file, by name. A line `-- name: x` begins section `x`, other comments are dropped, and `{x}` is replaced with the
/// text of `x` in every section.
pub(crate) struct Sections(BTreeMap<String, String>);

impl Sections {
    pub(crate) fn parse(file: &str, fragments: Vec<(&'static str, String)>) -> Self {
        let mut sections: BTreeMap<String, String> =
            fragments.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        for section in file.split("-- name: ").skip(1) {
            let (name, text) = section.split_once('\n').expect("a section has lines");
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
            let text = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
            sections.insert(name.to_owned(), text);
        }
        Self(sections)
    }

    pub(crate) fn optional(&self, name: &str) -> Option<String> {
        let mut text = self.0.get(name)?.clone();
        let mut before = String::new();
        while text != before {
            before.clone_from(&text);
            for (name, fragment) in &self.0 {
                let open = format!("{{{name}}}");
                if text.contains(&open) {
                    text = text.replace(&open, fragment);
                }
            }
        }
        Some(text)
    }

    pub(crate) fn required(&self, name: &str) -> String {
        self.optional(name).unwrap_or_else(|| panic!("no statement is called `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};

    use super::*;
    use crate::billing::sql::rows::sqlite_rows;

    /// What may be scanned: the few plans, and what a statement received or has found already.
    const SMALL: [&str; 8] =
        ["vps_plans", "billing_seen_rates", "json_each", "c ", "d", "CONSTANT", "-ROW", "(subquery"];

    /// Whether a step of a query plan scans a table that grows with the fleet or its history.
    fn reads_whole(step: &str) -> bool {
        let Some(read) = step.strip_prefix("SCAN ") else { return step.contains("AUTOMATIC") };
        // The number of rows of a VALUES comes first.
        let what = read.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        !SMALL.iter().any(|small| what.starts_with(small))
    }

    #[tokio::test]
    async fn sqlite_statements_scan_no_growing_table() {
        let db = Database::connect("sqlite::memory:").await.expect("a database in memory");
        migration::up(&db, None).await.expect("an empty database can be migrated");
        let s = Statements::of(Panel::OURS_ON_SQLITE);
        // Without `read_unowned`: in this schema every instance has an organization, so SQLite reads nothing.
        let of_a_run = [
            s.now,
            s.plans,
            s.seen_rates,
            s.insert_seen_rates,
            s.next_organizations,
            s.check_fence,
            s.lock_wallets,
            s.read_due,
            s.read_due_of,
            s.insert_batch,
            s.insert_openings,
            s.insert_ledger,
            s.insert_charges,
            s.insert_cycles,
            s.insert_meters,
            s.update_meters,
            s.update_anchors,
            s.upsert_holds,
            s.close_holds,
            s.close_uncharged,
            s.mark_deleted,
            s.insert_deleted_holds,
            s.update_wallets,
            s.run_totals,
            s.record_success,
        ];
        for sql in of_a_run {
            let sql = if sql.contains('{') { sqlite_rows(&sql, 64) } else { sql };
            let explain = Statement::from_string(DbBackend::Sqlite, format!("EXPLAIN QUERY PLAN {sql}"));
            for row in db.query_all_raw(explain).await.expect("the statement is valid") {
                let step: String = row.try_get("", "detail").expect("a query plan");
                assert!(!reads_whole(&step), "{step}: {}", &sql[..sql.len().min(300)]);
            }
        }
    }
}
