//! A billing run's statements for SQLite: the same as PostgreSQL's, over integers. What stands in braces is one of many rows.
//!
//! A transaction that writes has read the newest there was, or SQLite refuses its first write: what was read cannot change before
//! it is written. The compare-and-set of the watermark and of the balance stays all the same.

use super::statements::{DELETED_PER_RUN, LEDGER_HOURS_AHEAD, Statements};
use crate::billing::id::Id;
use billing_store::SQLITE_NOW;

/// Microseconds since 1970 of the panel's text; NULL for NULL and for what is no time. `unixepoch(.., 'subsec')` keeps
/// milliseconds only, so the fraction is read from the text.
pub(crate) fn micros(column: &str) -> String {
    format!(
        "(unixepoch({column}) * 1000000
          + CASE WHEN substr({column}, 20, 1) = '.'
                 THEN CAST(round(CAST('0' || substr({column}, 20, 7) AS REAL) * 1000000) AS INTEGER) ELSE 0 END)"
    )
}

/// Whether an amount of the panel's ledger is one: what is not is left out of its sums, which could not be counted with it.
pub(crate) fn is_amount(column: &str) -> String {
    format!("({column} BETWEEN -999999999999 AND 999999999999)")
}

/// The panel's text for an instant in microseconds since 1970.
fn instant(micros: &str) -> String {
    format!(
        "(strftime('%Y-%m-%dT%H:%M:%S', {micros} / 1000000, 'unixepoch')
          || printf('.%06d+00:00', {micros} % 1000000))"
    )
}

const NOW_TEXT: &str = "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')";

/// A transaction that writes is alone, so that nothing needs a lock of its own.
const READ_WALLETS: &str = "SELECT w.id, w.organization_id, w.balance, w.currency,
            EXISTS (SELECT 1 FROM billing_wallet_openings b WHERE b.wallet_id = w.id)
       FROM wallets w
      WHERE w.organization_id BETWEEN CAST(?1 AS TEXT) AND CAST(?2 AS TEXT)
      ORDER BY w.id";

/// Whether a run has to look at the instance `i`, whose anchor is an hour old, missing or not plausible. `?1` is its time.
/// SQLite takes more texts for times than are instants (`now`, a number of days), so that those are looked at as well.
fn may_be_due(i: &str) -> String {
    let (billed, created) = (format!("{i}last_billed_at"), format!("{i}created_at"));
    let anchor = format!("coalesce({billed}, {created})");
    let soon = "?1 / 1000000 + 300";
    format!(
        "({anchor} GLOB '[0-9][0-9][0-9][0-9]-*' AND unixepoch({anchor}) > ?1 / 1000000 - 3600
          AND unixepoch({anchor}) <= {soon}
          AND ({created} IS NULL OR {created} GLOB '[0-9][0-9][0-9][0-9]-*' AND unixepoch({created}) <= {soon})) IS NOT TRUE"
    )
}

/// The instances of some owners that may be due.
fn read_present(owners: &str) -> String {
    format!(
        "SELECT i.id, i.organization_id, i.label, i.plan_id, i.backup_frequency, i.last_billed_at, i.created_at,
                0 AS gone, m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at, h.reason,
                coalesce(h.organization_id <> i.organization_id AND h.organization_id <> '{unowned}', 0), NULL, NULL,
                i.provider_id, {created} AS age
           FROM vps_instances i
           LEFT JOIN billing_meters m ON m.instance_id = i.id
           LEFT JOIN billing_holds h ON h.instance_id = i.id AND h.closed_at IS NULL
          WHERE {owners} AND ({may_be_due} OR h.id IS NOT NULL)",
        may_be_due = may_be_due("i."),
        created = micros("i.created_at"),
        unowned = Id::NONE,
    )
}

/// The ends of a range of organizations are bytes: SQLite takes any for text.
fn read_due(only: &str) -> String {
    format!(
        "{present}
         UNION ALL
         SELECT i.instance_id, i.organization_id, i.label, '', NULL, NULL, NULL, 1, m.billed_through, m.carry, m.rate,
                m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at, i.reason, 0, NULL, NULL, NULL, i.opened_at
           FROM billing_holds i
           LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
          WHERE i.closed_at IS NULL AND i.organization_id BETWEEN CAST(?2 AS TEXT) AND CAST(?3 AS TEXT) {of_hold}
            AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = i.instance_id)
         UNION ALL
         SELECT v.id, i.organization_id, v.label, v.plan_id, v.backup_frequency, v.last_billed_at, v.created_at, 0,
                m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at, i.reason,
                0, i.seen_at, v.organization_id, v.provider_id, {created_of_v}
           FROM billing_holds i
           JOIN vps_instances v ON v.id = i.instance_id AND v.organization_id <> i.organization_id
           LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
          WHERE i.closed_at IS NULL AND i.organization_id BETWEEN CAST(?2 AS TEXT) AND CAST(?3 AS TEXT) {of_hold}
            AND i.organization_id <> '{unowned}'
          ORDER BY 2, age, 1",
        present =
            read_present(&format!("i.organization_id BETWEEN CAST(?2 AS TEXT) AND CAST(?3 AS TEXT) {only}")),
        created_of_v = micros("v.created_at"),
        of_hold = only.replace("i.id", "i.instance_id"),
        unowned = Id::NONE,
    )
}

#[expect(clippy::too_many_lines, reason = "a list of statements, of which each is read by itself")]
pub(in crate::billing) fn statements() -> Statements {
    Statements {
        now: format!("SELECT {SQLITE_NOW} AS now"),
        plans: "SELECT id, provider_plan_id, provider_id, base_price AS base, markup_price AS markup, backup_price_hourly AS backup,
                    backup_upcharge_hourly AS upcharge
               FROM vps_plans"
            .to_owned(),
        seen_rates: "SELECT plan_id, backups, seen_at, rate, backup_rate FROM billing_seen_rates
              ORDER BY plan_id, backups, seen_at"
            .to_owned(),
        insert_seen_rates: "INSERT INTO billing_seen_rates (plan_id, backups, seen_at, rate, backup_rate)
             VALUES {(?, ?, ?, ?, ?)} ON CONFLICT DO NOTHING"
            .to_owned(),
        next_organizations: format!(
            "SELECT CAST(min(organization) AS BLOB) AS first, CAST(max(organization) AS BLOB) AS last FROM (
                 SELECT organization FROM (
                     SELECT * FROM (SELECT organization_id AS organization FROM vps_instances
                       WHERE organization_id > CAST(?2 AS TEXT) AND {}
                       ORDER BY organization_id LIMIT ?3)
                     UNION ALL
                     SELECT * FROM (SELECT organization_id FROM billing_holds
                       WHERE closed_at IS NULL AND organization_id > CAST(?2 AS TEXT)
                       ORDER BY organization_id LIMIT ?3))
                 ORDER BY organization LIMIT ?3)",
            may_be_due("")
        ),
        plan_settings: None,
        settings: None,
        guarded_settings: None,
        check_fence: "SELECT 1 AS newest FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
             WHERE f.job = ?1 AND f.fencing_token = ?2 AND s.fencing_token = ?2"
            .to_owned(),
        read_wallets: READ_WALLETS.to_owned(),
        lock_wallets: READ_WALLETS.to_owned(),
        any_wallet: None,
        read_due: read_due(""),
        read_due_of: read_due("AND i.id IN (SELECT value FROM json_each(?4))"),
        read_unowned: read_present("i.organization_id IS NULL"),
        insert_batch: format!(
            "INSERT INTO billing_batches (run_id, fencing_token, as_of, instances, charges, held, hours, currencies, ledger_until)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
                     max({SQLITE_NOW},
                         coalesce((SELECT max(ledger_until) FROM billing_batches
                                    WHERE ledger_until < {SQLITE_NOW} + {LEDGER_HOURS_AHEAD} * 3600000000), 0)) + ?9)
             RETURNING id, ledger_until"
        ),
        insert_openings: format!(
            "INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
             SELECT w.id, w.organization_id, w.balance,
                    coalesce((SELECT sum(t.amount) FROM payment_transactions t
                               WHERE t.organization_id = w.organization_id AND t.status = 'completed'
                                 AND {is_amount}), 0)
               FROM wallets w WHERE w.id IN (SELECT value FROM json_each(?1))",
            is_amount = is_amount("t.amount"),
        ),
        insert_ledger: "INSERT INTO payment_transactions (id, organization_id, amount, currency, description, metadata,
                                               created_at, payment_method, payment_provider, status)
             VALUES {(?, ?, -?, ?, ?, ?, ?, 'wallet_debit', 'internal', 'completed')}"
            .to_owned(),
        insert_charges: "INSERT INTO billing_charges (batch_id, instance_id, organization_id, period_start, hours, rate,
                                          amount, carry, payment_transaction_id, currency)
             VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)} ON CONFLICT DO NOTHING"
            .to_owned(),
        insert_cycles: "INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start,
                                             billing_period_end, hourly_rate, total_amount, status,
                                             payment_transaction_id, metadata)
             VALUES {(?, ?, ?, ?, ?, (? + 36500) / 73000, ?, 'billed', ?, ?)}"
            .to_owned(),
        insert_meters: "INSERT INTO billing_meters (organization_id, billed_through, carry, rate, backup_rate, rate_changes,
                                         seen_at, instance_id, opened_at)
             SELECT d.*, d.column7 FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?)}) AS d WHERE true ON CONFLICT DO NOTHING"
            .to_owned(),
        update_meters: "UPDATE billing_meters
                SET organization_id = d.column1, billed_through = d.column2, carry = d.column3, rate = d.column4,
                    backup_rate = d.column5, rate_changes = d.column6, seen_at = d.column7
               FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?)}) AS d
              WHERE billing_meters.instance_id = d.column8 AND billing_meters.billed_through = d.column9"
            .to_owned(),
        update_anchors: format!(
            "UPDATE vps_instances SET last_billed_at = d.column1, updated_at = {NOW_TEXT} FROM (VALUES {{(?, ?)}}) AS d
              WHERE vps_instances.id = d.column2"
        ),
        repair_cycles: format!(
            "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,
                                             billing_period_end, hourly_rate, total_amount, status,
                                             payment_transaction_id, metadata)
             SELECT c.instance_id, c.organization_id, {start}, {end}, (c.rate + 36500) / 73000, c.amount, 'billed',
                    c.payment_transaction_id, json_object('hours_charged', c.hours, 'repaired', json('true'))
               FROM (VALUES {{(?, ?, ?)}}) AS d
               JOIN billing_charges c ON c.instance_id = d.column1
                    AND c.period_start >= d.column2 AND c.period_start < d.column3
              WHERE NOT EXISTS (SELECT 1 FROM vps_billing_cycles y
                                 WHERE y.vps_instance_id = c.instance_id AND y.status IN ('billed', 'refunded')
                                   AND y.billing_period_start = {start})",
            start = instant("c.period_start"),
            end = instant("(c.period_start + c.hours * 3600000000)"),
        ),
        upsert_holds: "INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                                        currency, opened_at, seen_at)
             VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)}
             ON CONFLICT (instance_id) WHERE closed_at IS NULL DO UPDATE
                SET organization_id = excluded.organization_id, label = excluded.label, reason = excluded.reason,
                    detail = excluded.detail, hours_due = excluded.hours_due, amount_due = excluded.amount_due,
                    currency = excluded.currency, seen_at = excluded.seen_at"
            .to_owned(),
        close_holds: "UPDATE billing_holds SET closed_at = ?1
              WHERE closed_at IS NULL AND instance_id IN (SELECT value FROM json_each(?2))"
            .to_owned(),
        close_uncharged: "UPDATE billing_holds SET closed_at = ?1, closed_reason = ?2
              WHERE closed_at IS NULL AND instance_id IN (SELECT value FROM json_each(?3))"
            .to_owned(),
        deleted_meters: format!(
            "SELECT m.instance_id, m.organization_id,
                    EXISTS (SELECT 1 FROM billing_holds h WHERE h.instance_id = m.instance_id AND h.closed_at IS NULL),
                    m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at,
                    (SELECT max(w.currency) FROM wallets w WHERE w.organization_id = m.organization_id)
               FROM billing_meters m
              WHERE m.billed_through <= ?1 - 3600000000 AND (m.deleted_at IS NULL OR m.deleted_at < m.seen_at)
                AND NOT EXISTS (SELECT 1 FROM vps_instances i WHERE i.id = m.instance_id)
              LIMIT {DELETED_PER_RUN}"
        ),
        mark_deleted: "UPDATE billing_meters SET deleted_at = ?1
              WHERE (deleted_at IS NULL OR deleted_at < seen_at)
                AND instance_id IN (SELECT value FROM json_each(?2))"
            .to_owned(),
        insert_deleted_holds: "INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due,
                                        amount_due, currency, opened_at, seen_at, closed_at, closed_reason)
             SELECT column1, column2, column3, column4, column5, column6, column7, column8, column9, column10, column10,
                    column4
               FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)})"
            .to_owned(),
        update_wallets: format!(
            "UPDATE wallets SET balance = d.column1, updated_at = {NOW_TEXT} FROM (VALUES {{(?, ?, ?)}}) AS d
              WHERE wallets.id = d.column2 AND wallets.balance = d.column3"
        ),
        run_totals: "SELECT coalesce(sum(instances), 0) AS charged, coalesce(sum(charges), 0) AS charges,
                    coalesce(sum(held), 0) AS held, coalesce(sum(hours), 0) AS hours,
                    (SELECT json_group_object(currency, json(sums)) FROM (
                         SELECT c.key AS currency, json_object(
                                    'charges', sum(c.value ->> '$.charges'), 'hours', sum(c.value ->> '$.hours'),
                                    'amount', sum(c.value ->> '$.amount')) AS sums
                           FROM billing_batches b, json_each(b.currencies) c
                          WHERE b.run_id = ?1 GROUP BY c.key)) AS currencies
               FROM billing_batches WHERE run_id = ?1"
            .to_owned(),
        is_guarded: None,
        record_success: format!(
            "UPDATE scheduler_fencing SET last_success_at = {SQLITE_NOW}, hand_back_after_seconds = ?3 WHERE job = ?1 AND fencing_token = ?2"
        ),
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};

    use super::*;
    use crate::billing::sql::rows::sqlite_rows;

    /// What may be read from end to end: the few plans, and what a statement was given itself or has found already.
    const SMALL: [&str; 8] =
        ["vps_plans", "billing_seen_rates", "json_each", "c ", "d", "CONSTANT", "-ROW", "(subquery"];

    /// A step of a plan that reads all of something that grows with the fleet or its history.
    fn reads_whole(step: &str) -> bool {
        let Some(read) = step.strip_prefix("SCAN ") else { return step.contains("AUTOMATIC") };
        // The rows of a VALUES are told with their number first.
        let what = read.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        !SMALL.iter().any(|small| what.starts_with(small))
    }

    #[tokio::test]
    async fn no_statement_reads_a_table_that_grows_from_end_to_end() {
        let db = Database::connect("sqlite::memory:").await.expect("a database in memory");
        migration::up(&db, None).await.expect("an empty database can be migrated");
        let s = statements();
        // Not `read_unowned`: here no instance can be without an organization, which SQLite knows and reads nothing.
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
                let step: String = row.try_get("", "detail").expect("a plan in words");
                // A cycle that waits for a ledger row would be looked for, but only while one does, and none ever does.
                if sql.starts_with("INSERT INTO payment_transactions") && step == "SCAN vps_billing_cycles" {
                    continue;
                }
                assert!(!reads_whole(&step), "{step}: {}", &sql[..sql.len().min(300)]);
            }
        }
    }
}
