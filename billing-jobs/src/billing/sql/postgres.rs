//! A billing run's statements for PostgreSQL.

use super::{
    rows,
    rows::postgres_rows as d,
    statements::{DELETED_PER_RUN, LEDGER_HOURS_AHEAD, Statements},
};
use crate::{billing::id::Id, panel::Panel, panel_guard};

/// A batch is a small part of the fleet, and each of its statements finds its rows by an index. Without this a planner whose
/// statistics are old reads a whole table in every batch; nor is any of them worth compiling.
const BY_INDEX: &str =
    "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
     set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)";

/// Microseconds since 1970 of a `timestamptz`; NULL for NULL, for the infinities and for what is too late to be counted.
pub(in crate::billing) fn micros(column: &str) -> String {
    format!(
        "CASE WHEN {column} > '-infinity' AND {column} < '290000-01-01Z'
              THEN (extract(epoch FROM {column}) * 1000000)::bigint END"
    )
}

/// A `timestamptz` from microseconds since 1970.
pub(in crate::billing) fn instant(micros: &str) -> String {
    format!("(timestamptz 'epoch' + {micros} * interval '1 microsecond')")
}

/// Ten-thousandths of a `numeric`; NULL for NULL, NaN and what is too large to count.
pub(in crate::billing) fn ten_thousandths(column: &str) -> String {
    format!("CASE WHEN abs({column}) < 100000000000000 THEN ({column} * 10000)::bigint END")
}

/// Whether an amount of the panel's ledger is one: what is not is left out of its sums, and reported by the audit.
pub(crate) fn is_amount(column: &str) -> String {
    format!("(abs({column}) < 100000000 AND {column} = round({column}::numeric, 4))")
}

/// What the panel, which reckons in milliseconds, makes of a `timestamptz`.
pub(crate) fn milliseconds(column: &str) -> String {
    format!("date_trunc('milliseconds', {column})")
}

/// What holds for a transaction besides its limits.
fn settings() -> String {
    format!(
        "SELECT set_config('app.current_user_is_admin', 'true', true), {BY_INDEX},
                set_config('billing.fencing_token', coalesce($1::text, (
                    SELECT fencing_token::text FROM scheduler_fencing WHERE job = $2 FOR SHARE), ''), true)"
    )
}

/// Whether a run has to look at the instance `i`, whose anchor is an hour old, missing or not plausible. `$1` is its time.
fn may_be_due(i: &str) -> String {
    let (billed, created) = (format!("{i}last_billed_at"), format!("{i}created_at"));
    let (hour_ago, soon) = (instant("($1 - 3600000000)"), instant("($1 + 300000000)"));
    format!(
        "(coalesce({billed}, {created}) > {hour_ago} AND coalesce({billed}, {created}) <= {soon}
          AND coalesce({created}, {billed}) <= {soon}) IS NOT TRUE"
    )
}

/// The provider that a row names, as text.
pub(in crate::billing) fn provider(panel: Panel, of: &str) -> String {
    if panel.providers { format!("{of}provider_id::text") } else { "NULL::text".to_owned() }
}

fn backup_frequency(panel: Panel, of: &str) -> String {
    if panel.backups { format!("{of}.backup_frequency") } else { "NULL::text".to_owned() }
}

/// The instances of some owners that may be due.
fn read_present(panel: Panel, owners: &str) -> String {
    format!(
        "SELECT i.id, i.organization_id, i.label, i.plan_id, {backup_frequency}, i.last_billed_at, i.created_at, false,
                m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at, h.reason,
                coalesce(h.organization_id <> i.organization_id AND h.organization_id <> '{unowned}', false),
                NULL::timestamptz, NULL::uuid, {provider}, i.created_at AS age
           FROM vps_instances i
           LEFT JOIN billing_meters m ON m.instance_id = i.id
           LEFT JOIN billing_holds h ON h.instance_id = i.id AND h.closed_at IS NULL
          WHERE {owners} AND ({may_be_due} OR h.id IS NOT NULL)",
        backup_frequency = backup_frequency(panel, "i"),
        provider = provider(panel, "i."),
        may_be_due = may_be_due("i."),
        unowned = Id::NONE,
    )
}

fn read_due(panel: Panel, only: &str) -> String {
    format!(
        "{present}
         UNION ALL
         SELECT i.instance_id, i.organization_id, i.label, '', NULL, NULL, NULL, true, m.billed_through, m.carry, m.rate,
                m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at, i.reason, false, NULL, NULL, NULL,
                i.opened_at
           FROM billing_holds i
           LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
          WHERE i.closed_at IS NULL AND i.organization_id BETWEEN $2::uuid AND $3::uuid {of_hold}
            AND NOT EXISTS (SELECT FROM vps_instances v WHERE v.id = i.instance_id)
         UNION ALL
         SELECT v.id, i.organization_id, v.label, v.plan_id, {backup_frequency}, v.last_billed_at, v.created_at, false,
                m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at, i.reason,
                false, i.seen_at, v.organization_id, {provider}, v.created_at
           FROM billing_holds i
           JOIN vps_instances v ON v.id = i.instance_id AND v.organization_id <> i.organization_id
           LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
          WHERE i.closed_at IS NULL AND i.organization_id BETWEEN $2::uuid AND $3::uuid {of_hold}
            AND i.organization_id <> '{unowned}'
          ORDER BY 2, age, 1",
        present = read_present(panel, &format!("i.organization_id BETWEEN $2::uuid AND $3::uuid {only}")),
        backup_frequency = backup_frequency(panel, "v"),
        provider = provider(panel, "v."),
        of_hold = only.replace("i.id", "i.instance_id"),
        unowned = Id::NONE,
    )
}

#[expect(clippy::too_many_lines, reason = "a list of statements, of which each is read by itself")]
pub(in crate::billing) fn statements(panel: Panel) -> Statements {
    let (backup, upcharge) = if panel.backups {
        ("backup_price_hourly::text", "backup_upcharge_hourly::text")
    } else {
        ("NULL::text", "NULL::text")
    };
    let only = "AND i.id IN (SELECT value::uuid FROM jsonb_array_elements_text($4::jsonb))";
    let read_wallets = "SELECT w.id, w.organization_id, w.balance::text, w.currency,
                EXISTS (SELECT FROM billing_wallet_openings b WHERE b.wallet_id = w.id)
           FROM wallets w
          WHERE w.organization_id BETWEEN $1::uuid AND $2::uuid
          ORDER BY w.id";
    Statements {
        now: format!("SELECT {} AS now", micros("now()")),
        plans: format!(
            "SELECT id::text AS id, provider_plan_id, {provider} AS provider_id, base_price::text AS base, markup_price::text AS markup,
                    {backup} AS backup, {upcharge} AS upcharge
               FROM vps_plans",
            provider = provider(panel, ""),
        ),
        seen_rates: format!(
            "SELECT plan_id, backups, {}, rate, backup_rate FROM billing_seen_rates ORDER BY plan_id, backups, seen_at",
            micros("seen_at")
        ),
        insert_seen_rates: format!(
            "INSERT INTO billing_seen_rates (plan_id, backups, seen_at, rate, backup_rate)
             SELECT d.plan, d.backups, {seen}, d.rate, d.backup_rate
               FROM {rows}
             ON CONFLICT DO NOTHING",
            seen = instant("d.seen_at"),
            rows = d(rows::SEEN_RATES),
        ),
        next_organizations: format!(
            "SELECT (array_agg(organization ORDER BY organization))[1]::text AS first,
                    (array_agg(organization ORDER BY organization DESC))[1]::text AS last
               FROM (SELECT organization FROM (
                         (SELECT organization_id AS organization FROM vps_instances
                           WHERE organization_id > $2::uuid AND {may_be_due}
                           ORDER BY organization_id LIMIT $3)
                         UNION ALL
                         (SELECT organization_id FROM billing_holds
                           WHERE closed_at IS NULL AND organization_id > $2::uuid
                           ORDER BY organization_id LIMIT $3)) AS due
                      ORDER BY organization LIMIT $3) AS batch",
            may_be_due = may_be_due(""),
        ),
        plan_settings: Some(format!("SELECT {BY_INDEX}")),
        settings: Some(settings()),
        // Taking a trigger away, or disabling it, needs a lock that conflicts with that of an INSERT, also of one without rows. A
        // statement takes its locks before its snapshot, so what it reads of the catalog stays true until the transaction ends.
        guarded_settings: Some(format!(
            "WITH locked AS (INSERT INTO payment_transactions (description) SELECT NULL WHERE false)
             {}, {} AS guarded",
            settings(),
            panel_guard::is_effective_sql()
        )),
        check_fence: "SELECT 1 AS newest FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
             WHERE f.job = $1 AND f.fencing_token = $2 AND s.fencing_token = $2 FOR SHARE OF f"
            .to_owned(),
        lock_wallets: format!("{read_wallets} FOR NO KEY UPDATE OF w"),
        read_wallets: read_wallets.to_owned(),
        any_wallet: Some(
            "SELECT 1 AS any_wallet FROM wallets
              WHERE organization_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb)) LIMIT 1"
                .to_owned(),
        ),
        read_due: read_due(panel, ""),
        read_due_of: read_due(panel, only),
        read_unowned: read_present(panel, "i.organization_id IS NULL"),
        insert_batch: format!(
            "INSERT INTO billing_batches (run_id, fencing_token, as_of, instances, charges, held, hours, currencies, ledger_until)
             VALUES ($1::uuid, $2, {as_of}, $4::bigint::int, $5::bigint::int, $6::bigint::int, $7, $8::jsonb,
                     greatest(statement_timestamp(),
                              (SELECT max(ledger_until) FROM billing_batches
                                WHERE ledger_until < statement_timestamp() + interval '{LEDGER_HOURS_AHEAD} hours'))
                     + $9 * interval '1 microsecond')
             RETURNING id, {ledger_until} AS ledger_until",
            as_of = instant("$3"),
            ledger_until = micros("ledger_until"),
        ),
        insert_openings: format!(
            "INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
             SELECT w.id, w.organization_id, {balance},
                    coalesce((SELECT sum(t.amount * 10000)::bigint FROM payment_transactions t
                               WHERE t.organization_id = w.organization_id AND t.status = 'completed'
                                 AND {is_amount}), 0)
               FROM wallets w
              WHERE w.id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))",
            balance = ten_thousandths("w.balance"),
            is_amount = is_amount("t.amount"),
        ),
        insert_ledger: format!(
            "INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method,
                                               payment_provider, status, description, metadata, created_at)
             SELECT d.ledger, d.organization, d.amount * -0.0001, d.currency, 'wallet_debit', 'internal',
                    'completed', d.description, d.metadata::jsonb, {created_at}
               FROM {rows}",
            created_at = instant("d.created_at"),
            rows = d(rows::LEDGER),
        ),
        insert_charges: format!(
            "INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount,
                                          carry, payment_transaction_id, currency)
             SELECT {start}, d.instance, d.organization, d.batch, d.hours, d.rate, d.amount, d.carry, d.ledger, d.currency
               FROM {rows}
             ON CONFLICT DO NOTHING",
            start = instant("d.start"),
            rows = d(rows::CHARGES),
        ),
        insert_cycles: format!(
            "INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start,
                                             billing_period_end, hourly_rate, total_amount, status,
                                             payment_transaction_id, metadata)
             SELECT d.cycle, d.instance, d.organization, {start}, {end}, (d.rate + 36500) / 73000 * 0.0001,
                    d.amount * 0.0001, 'billed', d.ledger, d.metadata::jsonb
               FROM {rows}",
            start = instant("d.start"),
            end = instant("(d.start + d.hours * 3600000000)"),
            rows = d(rows::CYCLES),
        ),
        insert_meters: format!(
            "INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, rate, backup_rate,
                                         rate_changes, seen_at, opened_at)
             SELECT d.instance, d.organization, {through}, d.carry, d.rate, d.backup_rate, d.rate_changes::jsonb, {seen},
                    {seen}
               FROM {rows}
             ON CONFLICT DO NOTHING",
            through = instant("d.billed_through"),
            seen = instant("d.seen_at"),
            rows = d(rows::NEW_METERS),
        ),
        update_meters: format!(
            "UPDATE billing_meters m
                SET organization_id = d.organization, billed_through = {through}, carry = d.carry, rate = d.rate,
                    backup_rate = d.backup_rate, rate_changes = d.rate_changes::jsonb, seen_at = {seen}
               FROM {rows}
              WHERE m.instance_id = d.instance AND m.billed_through = {before}",
            through = instant("d.billed_through"),
            seen = instant("d.seen_at"),
            before = instant("d.billed_through_before"),
            rows = d(rows::METERS),
        ),
        update_anchors: format!(
            "UPDATE vps_instances i SET last_billed_at = {after}, updated_at = now()
               FROM {rows}
              WHERE i.id = d.instance AND i.last_billed_at IS NOT DISTINCT FROM {before}",
            after = instant("d.after"),
            before = instant("d.before"),
            rows = d(rows::ANCHORS),
        ),
        repair_cycles: format!(
            "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,
                                             billing_period_end, hourly_rate, total_amount, status,
                                             payment_transaction_id, metadata)
             SELECT c.instance_id, c.organization_id, c.period_start, c.period_start + c.hours * interval '1 hour',
                    round(c.rate / 730000000.0, 4), c.amount * 0.0001, 'billed', c.payment_transaction_id,
                    jsonb_build_object('hours_charged', c.hours, 'repaired', true)
               FROM {rows}
               JOIN billing_charges c ON c.instance_id = d.instance
                    AND c.period_start >= {since} AND c.period_start < {until}
              WHERE NOT EXISTS (SELECT FROM vps_billing_cycles y
                                 WHERE y.vps_instance_id = c.instance_id AND y.status IN ('billed', 'refunded')
                                   AND {cycle_start} = {charge_start})",
            cycle_start = milliseconds("y.billing_period_start"),
            charge_start = milliseconds("c.period_start"),
            since = instant("d.since"),
            until = instant("d.until"),
            rows = d(rows::REPAIRS),
        ),
        upsert_holds: format!(
            "INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                                        currency, opened_at, seen_at)
             SELECT d.instance, d.organization, d.label, d.reason, d.detail, d.hours, d.amount, d.currency, {opened}, {seen}
               FROM {rows}
             ON CONFLICT (instance_id) WHERE closed_at IS NULL DO UPDATE
                SET organization_id = excluded.organization_id, label = excluded.label, reason = excluded.reason,
                    detail = excluded.detail, hours_due = excluded.hours_due, amount_due = excluded.amount_due,
                    currency = excluded.currency, seen_at = excluded.seen_at",
            opened = instant("d.opened_at"),
            seen = instant("d.seen_at"),
            rows = d(rows::HOLDS),
        ),
        close_holds: format!(
            "UPDATE billing_holds SET closed_at = {as_of}
              WHERE closed_at IS NULL
                AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($2::jsonb))",
            as_of = instant("$1"),
        ),
        close_uncharged: format!(
            "UPDATE billing_holds SET closed_at = {as_of}, closed_reason = $2
              WHERE closed_at IS NULL
                AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($3::jsonb))",
            as_of = instant("$1"),
        ),
        deleted_meters: format!(
            "SELECT m.instance_id, m.organization_id,
                    EXISTS (SELECT FROM billing_holds h WHERE h.instance_id = m.instance_id AND h.closed_at IS NULL),
                    m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at,
                    (SELECT max(w.currency) FROM wallets w WHERE w.organization_id = m.organization_id)
               FROM billing_meters m
              WHERE m.billed_through <= {hour_ago} AND (m.deleted_at IS NULL OR m.deleted_at < m.seen_at)
                AND NOT EXISTS (SELECT FROM vps_instances i WHERE i.id = m.instance_id)
              LIMIT {DELETED_PER_RUN}",
            hour_ago = instant("($1 - 3600000000)"),
        ),
        mark_deleted: format!(
            "UPDATE billing_meters SET deleted_at = {as_of}
              WHERE (deleted_at IS NULL OR deleted_at < seen_at)
                AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($2::jsonb))",
            as_of = instant("$1"),
        ),
        insert_deleted_holds: format!(
            "INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                                        currency, opened_at, seen_at, closed_at, closed_reason)
             SELECT d.instance, d.organization, d.label, d.reason, d.detail, d.hours, d.amount, d.currency, {opened},
                    {seen}, {seen}, d.reason
               FROM {rows}",
            opened = instant("d.opened_at"),
            seen = instant("d.seen_at"),
            rows = d(rows::HOLDS),
        ),
        update_wallets: format!(
            "UPDATE wallets w SET balance = d.after * 0.0001, updated_at = now()
               FROM {rows}
              WHERE w.id = d.wallet AND w.balance = d.before * 0.0001",
            rows = d(rows::WALLETS),
        ),
        run_totals: "SELECT coalesce(sum(instances), 0)::bigint AS charged, coalesce(sum(charges), 0)::bigint AS charges,
                    coalesce(sum(held), 0)::bigint AS held, coalesce(sum(hours), 0)::bigint AS hours,
                    (SELECT jsonb_object_agg(currency, sums) FROM (
                         SELECT c.key AS currency, jsonb_build_object(
                                    'charges', sum((c.value ->> 'charges')::bigint),
                                    'hours', sum((c.value ->> 'hours')::bigint),
                                    'amount', sum((c.value ->> 'amount')::bigint)) AS sums
                           FROM billing_batches b, jsonb_each(b.currencies) c
                          WHERE b.run_id = $1::uuid GROUP BY c.key) AS of_each)::text AS currencies
               FROM billing_batches WHERE run_id = $1::uuid"
            .to_owned(),
        is_guarded: Some(format!("SELECT {} AS guarded", panel_guard::is_effective_sql())),
        record_success: "UPDATE scheduler_fencing SET last_success_at = now(), hand_back_after_seconds = $3
             WHERE job = $1 AND fencing_token = $2"
            .to_owned(),
    }
}
