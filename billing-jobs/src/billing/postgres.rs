//! A billing run's statements for PostgreSQL.

use super::statements::Statements;
use crate::panel::Panel;

/// Microseconds since 1970 of a `timestamptz`; NULL for NULL and for the infinities.
pub(super) fn micros(column: &str) -> String {
    format!("CASE WHEN isfinite({column}) THEN (extract(epoch FROM {column}) * 1000000)::bigint END")
}

/// A `timestamptz` from microseconds since 1970.
fn instant(micros: &str) -> String {
    format!("(timestamptz 'epoch' + {micros} * interval '1 microsecond')")
}

/// Ten-thousandths of a `numeric`; NULL for NULL, NaN and what is too large to count.
fn ten_thousandths(column: &str) -> String {
    format!("CASE WHEN abs({column}) < 100000000000000 THEN ({column} * 10000)::bigint END")
}

/// What the panel, which reckons in milliseconds, makes of a `timestamptz`.
pub(crate) fn milliseconds(column: &str) -> String {
    format!("date_trunc('milliseconds', {column})")
}

fn rows(columns: &str) -> String {
    format!("jsonb_to_recordset($1::jsonb) AS d({columns})")
}

fn read_due(panel: Panel, only: &str) -> String {
    let backup_frequency = if panel.backups { "i.backup_frequency" } else { "NULL::text" };
    format!(
        "SELECT i.id::text AS id, i.organization_id::text AS organization, i.label, i.plan_id AS plan,
                {backup_frequency} AS backup_frequency, {billed} AS last_billed_at, {created} AS created_at,
                coalesce(NOT isfinite(coalesce(i.last_billed_at, i.created_at)), false) AS invalid_time,
                false AS gone, {through} AS billed_through, m.carry, m.rate, m.rate_changes::text AS rate_changes,
                {seen} AS seen_at, {debited} AS panel_debited_at, h.id IS NOT NULL AS held,
                i.organization_id AS o, i.created_at AS age, i.id AS i
           FROM vps_instances i
           LEFT JOIN billing_meters m ON m.instance_id = i.id
           LEFT JOIN billing_holds h ON h.instance_id = i.id AND h.closed_at IS NULL
          WHERE i.organization_id BETWEEN $2::uuid AND $3::uuid {only}
            AND (coalesce(i.last_billed_at, i.created_at) <= {hour_ago} OR h.id IS NOT NULL
                 OR coalesce(i.last_billed_at, i.created_at) IS NULL)
         UNION ALL
         SELECT i.instance_id::text, i.organization_id::text, i.label, '', NULL, NULL, NULL, false, true, {through}, m.carry,
                m.rate, m.rate_changes::text, {seen}, {debited}, true, i.organization_id, i.opened_at, i.instance_id
           FROM billing_holds i
           LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
          WHERE i.closed_at IS NULL AND i.organization_id BETWEEN $2::uuid AND $3::uuid {gone_only}
            AND NOT EXISTS (SELECT FROM vps_instances v WHERE v.id = i.instance_id)
          ORDER BY o, age, i",
        billed = micros("i.last_billed_at"),
        created = micros("i.created_at"),
        through = micros("m.billed_through"),
        seen = micros("m.seen_at"),
        debited = micros("m.panel_debited_at"),
        hour_ago = instant("($1 - 3600000000)"),
        gone_only = only.replace("i.id", "i.instance_id"),
    )
}

#[expect(clippy::too_many_lines, reason = "a list of statements, of which each is read by itself")]
pub(super) fn statements(panel: Panel) -> Statements {
    let (backup, upcharge) = if panel.backups {
        ("backup_price_hourly::text", "backup_upcharge_hourly::text")
    } else {
        ("NULL::text", "NULL::text")
    };
    let only = "AND i.id IN (SELECT value::uuid FROM jsonb_array_elements_text($4::jsonb))";
    Statements {
        now: format!("SELECT {} AS now", micros("now()")),
        plans: format!(
            "SELECT id::text AS id, provider_plan_id, base_price::text AS base, markup_price::text AS markup,
                    {backup} AS backup, {upcharge} AS upcharge
               FROM vps_plans"
        ),
        next_organizations: format!(
            "SELECT (array_agg(organization ORDER BY organization))[1]::text AS first,
                    (array_agg(organization ORDER BY organization DESC))[1]::text AS last
               FROM (SELECT organization FROM (
                         (SELECT organization_id AS organization FROM vps_instances
                           WHERE organization_id > $2::uuid
                             AND (coalesce(last_billed_at, created_at) <= {hour_ago}
                                  OR coalesce(last_billed_at, created_at) IS NULL)
                           ORDER BY organization_id LIMIT $3)
                         UNION ALL
                         (SELECT organization_id FROM billing_holds
                           WHERE closed_at IS NULL AND organization_id > $2::uuid
                           ORDER BY organization_id LIMIT $3)) AS due
                      ORDER BY organization LIMIT $3) AS batch",
            hour_ago = instant("($1 - 3600000000)"),
        ),
        settings: Some(
            "SELECT set_config('app.current_user_is_admin', 'true', true),
                    set_config('random_page_cost', '1.1', true),
                    set_config('billing.fence', coalesce($1::text, (
                        SELECT fence::text FROM billing_fences WHERE job = $2 FOR SHARE), ''), true)"
                .to_owned(),
        ),
        check_fence: "SELECT 1 AS newest FROM billing_fences f JOIN billing_job_state s ON s.job = f.job
             WHERE f.job = $1 AND f.fence = $2 AND s.fence = $2 FOR SHARE OF f"
            .to_owned(),
        lock_wallets: format!(
            "SELECT w.id::text AS id, w.organization_id::text AS organization, {balance} AS balance,
                    coalesce(w.currency, 'USD') AS currency,
                    EXISTS (SELECT FROM billing_wallets b WHERE b.wallet_id = w.id) AS opened
               FROM wallets w
              WHERE w.organization_id BETWEEN $1::uuid AND $2::uuid
              ORDER BY w.id FOR NO KEY UPDATE OF w",
            balance = ten_thousandths("w.balance"),
        ),
        any_wallet: Some(
            "SELECT 1 AS any_wallet FROM wallets
              WHERE organization_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb)) LIMIT 1"
                .to_owned(),
        ),
        read_due: read_due(panel, ""),
        read_due_of: read_due(panel, only),
        insert_batch: format!(
            "INSERT INTO billing_batches (run_id, fence, as_of, instances, charges, held, hours, amount)
             VALUES ($1::uuid, $2, {as_of}, $4::bigint::int, $5::bigint::int, $6::bigint::int, $7, $8) RETURNING id",
            as_of = instant("$3"),
        ),
        insert_openings: format!(
            "INSERT INTO billing_wallets (wallet_id, organization_id, opening_balance, opening_ledger)
             SELECT w.id, w.organization_id, {balance},
                    coalesce((SELECT sum(t.amount * 10000)::bigint FROM payment_transactions t
                               WHERE t.organization_id = w.organization_id AND t.status = 'completed'), 0)
               FROM wallets w
              WHERE w.id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))",
            balance = ten_thousandths("w.balance"),
        ),
        insert_ledger: format!(
            "INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method,
                                               payment_provider, status, description, metadata)
             SELECT d.ledger, d.organization, d.amount * -0.0001, d.currency, 'wallet_debit', 'internal',
                    'completed', d.description, d.ledger_metadata::jsonb
               FROM {rows} WHERE d.ledger IS NOT NULL",
            rows = rows(
                "ledger uuid, organization uuid, amount bigint, currency text, description text, ledger_metadata text"
            ),
        ),
        insert_charges: format!(
            "INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount,
                                          carry, payment_transaction_id)
             SELECT {start}, d.instance, d.organization, $2, d.hours, d.rate, d.amount, d.carry, d.ledger
               FROM {rows}
             ON CONFLICT DO NOTHING",
            start = instant("d.start"),
            rows = rows(
                "instance uuid, organization uuid, start bigint, hours int, rate bigint, amount bigint, carry bigint,
                 ledger uuid"
            ),
        ),
        insert_cycles: format!(
            "INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start,
                                             billing_period_end, hourly_rate, total_amount, status,
                                             payment_transaction_id, metadata)
             SELECT d.cycle, d.instance, d.organization, {start}, {start} + d.hours * interval '1 hour', d.hourly_rate,
                    d.amount * 0.0001, 'billed', d.ledger, d.cycle_metadata::jsonb
               FROM {rows} WHERE d.cycle IS NOT NULL",
            start = instant("d.start"),
            rows = rows(
                "cycle uuid, instance uuid, organization uuid, start bigint, hours int, hourly_rate numeric,
                 amount bigint, ledger uuid, cycle_metadata text"
            ),
        ),
        insert_meters: format!(
            "INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, rate, rate_changes, seen_at)
             SELECT d.instance, d.organization, {through}, d.carry, d.rate, d.rate_changes::jsonb, {seen}
               FROM {rows}
             ON CONFLICT DO NOTHING",
            through = instant("d.billed_through"),
            seen = instant("d.seen_at"),
            rows = rows(METER),
        ),
        update_meters: format!(
            "UPDATE billing_meters m
                SET organization_id = d.organization, billed_through = {through}, carry = d.carry, rate = d.rate,
                    rate_changes = d.rate_changes::jsonb, seen_at = {seen}
               FROM {rows}
              WHERE m.instance_id = d.instance AND m.billed_through = {before}",
            through = instant("d.billed_through"),
            seen = instant("d.seen_at"),
            before = instant("d.billed_through_before"),
            rows = rows(METER),
        ),
        update_anchors: format!(
            "UPDATE vps_instances i SET last_billed_at = {after}, updated_at = now()
               FROM {rows}
              WHERE i.id = d.instance AND i.last_billed_at IS NOT DISTINCT FROM {before}",
            after = instant("d.after"),
            before = instant("d.before"),
            rows = rows("instance uuid, before bigint, after bigint"),
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
                                 WHERE y.vps_instance_id = c.instance_id AND y.status = 'billed'
                                   AND {cycle_start} = {charge_start})",
            cycle_start = milliseconds("y.billing_period_start"),
            charge_start = milliseconds("c.period_start"),
            since = instant("d.since"),
            until = instant("d.until"),
            rows = rows("instance uuid, since bigint, until bigint"),
        ),
        upsert_holds: format!(
            "INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                                        opened_at, seen_at)
             SELECT d.instance, d.organization, d.label, d.reason, d.detail, d.hours, d.amount, {as_of}, {as_of}
               FROM {rows}
             ON CONFLICT (instance_id) WHERE closed_at IS NULL DO UPDATE
                SET organization_id = excluded.organization_id, label = excluded.label, reason = excluded.reason,
                    detail = excluded.detail, hours_due = excluded.hours_due, amount_due = excluded.amount_due,
                    seen_at = excluded.seen_at",
            as_of = instant("$2"),
            rows = rows(
                "instance uuid, organization uuid, label text, reason text, detail text, hours bigint, amount bigint"
            ),
        ),
        close_holds: format!(
            "UPDATE billing_holds SET closed_at = {as_of}
              WHERE closed_at IS NULL
                AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))",
            as_of = instant("$2"),
        ),
        update_wallets: format!(
            "UPDATE wallets w SET balance = d.after * 0.0001, updated_at = now()
               FROM {rows}
              WHERE w.id = d.wallet AND w.balance = d.before * 0.0001",
            rows = rows("wallet uuid, before bigint, after bigint"),
        ),
        run_totals: "SELECT coalesce(sum(instances), 0)::bigint AS charged, coalesce(sum(charges), 0)::bigint AS charges,
                    coalesce(sum(held), 0)::bigint AS held, coalesce(sum(hours), 0)::bigint AS hours,
                    coalesce(sum(amount), 0)::bigint AS amount
               FROM billing_batches WHERE run_id = $1::uuid"
            .to_owned(),
        mark_worked: "UPDATE billing_fences SET worked_at = now() WHERE job = $1 AND fence = $2".to_owned(),
    }
}

const METER: &str =
    "instance uuid, organization uuid, billed_through_before bigint, billed_through bigint, carry bigint,
                     rate bigint, rate_changes text, seen_at bigint";
