-- The statements of billing for PostgreSQL. `statements.rs` describes each. `{x_rows}` are the rows of the parameters, as `d`.

-- Fragments: `{name}` is replaced with the text of the section `name`.

-- name: by_index
-- A batch is a small part of the fleet, and each of its statements finds its rows by an index. Without these settings a
-- planner with old statistics reads a whole table in every batch; no statement is worth compiling either.
set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)

-- name: of_whole_tables
-- For statements that join whole tables. A nested loop that a planner with old statistics chooses for a few rows never ends for a
-- fleet.
set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true)

-- name: may_be_due
-- Whether a run must read the instance `i`: its anchor is an hour old, missing or not plausible. $1 is the time of the run.
(coalesce(i.last_billed_at, i.created_at) > (timestamptz 'epoch' + ($1 - 3600000000) * interval '1 microsecond')
 AND coalesce(i.last_billed_at, i.created_at) <= (timestamptz 'epoch' + ($1 + 300000000) * interval '1 microsecond')
 AND coalesce(i.created_at, i.last_billed_at) <= (timestamptz 'epoch' + ($1 + 300000000) * interval '1 microsecond')) IS NOT TRUE

-- name: may_be_due_anywhere
-- The same for a table without an alias.
(coalesce(last_billed_at, created_at) > (timestamptz 'epoch' + ($1 - 3600000000) * interval '1 microsecond')
 AND coalesce(last_billed_at, created_at) <= (timestamptz 'epoch' + ($1 + 300000000) * interval '1 microsecond')
 AND coalesce(created_at, last_billed_at) <= (timestamptz 'epoch' + ($1 + 300000000) * interval '1 microsecond')) IS NOT TRUE

-- name: present_instances
SELECT i.id, i.organization_id, i.label, i.plan_id, {i_backups}, i.last_billed_at, i.created_at, false,
     m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at, h.reason,
     coalesce(h.organization_id <> i.organization_id AND h.organization_id <> '00000000-0000-0000-0000-000000000000', false),
     NULL::timestamptz, NULL::uuid, {i_provider}, i.created_at AS age
FROM vps_instances i
LEFT JOIN billing_meters m ON m.instance_id = i.id
LEFT JOIN billing_holds h ON h.instance_id = i.id AND h.closed_at IS NULL

-- name: only_instances
-- Only some of the instances of `i`.
AND i.id IN (SELECT value::uuid FROM jsonb_array_elements_text($4::jsonb))

-- name: join_currency
LEFT JOIN (SELECT organization_id, max(currency) AS currency FROM wallets GROUP BY organization_id) AS c
       ON c.organization_id = due.organization_id

-- Statements.

-- name: now
SELECT CASE WHEN now() > '-infinity' AND now() < '290000-01-01Z'
            THEN (extract(epoch FROM now()) * 1000000)::bigint END AS now

-- name: plans
SELECT id::text AS id, provider_plan_id, {provider} AS provider_id, base_price::text AS base, markup_price::text AS markup,
       {plan_backup} AS backup, {plan_upcharge} AS upcharge
  FROM vps_plans

-- name: seen_rates
SELECT plan_id, backups,
       CASE WHEN seen_at > '-infinity' AND seen_at < '290000-01-01Z'
            THEN (extract(epoch FROM seen_at) * 1000000)::bigint END, rate, backup_rate
  FROM billing_seen_rates ORDER BY plan_id, backups, seen_at

-- name: insert_seen_rates
INSERT INTO billing_seen_rates (plan_id, backups, seen_at, rate, backup_rate)
SELECT d.plan, d.backups, (timestamptz 'epoch' + d.seen_at * interval '1 microsecond'), d.rate, d.backup_rate
  FROM {seen_rate_rows}
ON CONFLICT DO NOTHING

-- name: next_organizations
SELECT (array_agg(organization ORDER BY organization))[1]::text AS first,
       (array_agg(organization ORDER BY organization DESC))[1]::text AS last
  FROM (SELECT organization FROM (
            (SELECT organization_id AS organization FROM vps_instances
              WHERE organization_id > $2::uuid AND {may_be_due_anywhere}
              ORDER BY organization_id LIMIT $3)
            UNION ALL
            (SELECT organization_id FROM billing_holds
              WHERE closed_at IS NULL AND organization_id > $2::uuid
              ORDER BY organization_id LIMIT $3)) AS due
         ORDER BY organization LIMIT $3) AS batch

-- name: plan_settings
SELECT {by_index}

-- name: whole_table_settings
SELECT {of_whole_tables}

-- name: settings
SELECT set_config('app.current_user_is_admin', 'true', true), {by_index},
   set_config('billing.fencing_token', coalesce($1::text, (
       SELECT fencing_token::text FROM scheduler_fencing WHERE job = $2 FOR SHARE), ''), true)

-- name: guarded_settings
-- To drop or disable a trigger needs a lock that conflicts with that of an INSERT, also of one without rows. A statement
-- acquires its locks before its snapshot, so what it reads of the catalog stays true until the transaction ends.
WITH locked AS (INSERT INTO payment_transactions (description) SELECT NULL WHERE false)
{settings}, {guard_is_effective} AS guarded

-- name: handover_settings
-- Without a fencing token, since a handover debits nothing.
SELECT set_config('app.current_user_is_admin', 'true', true), set_config('billing.fencing_token', '0', true), {of_whole_tables}

-- name: check_fence
-- The halt is read from the locked row, so it is never older than the lock.
SELECT f.halt IS NOT NULL AS halted,
       ($3::bigint IS NULL OR EXISTS (
           SELECT FROM billing_batches b
            WHERE b.id = $3 AND b.run_id = $4::uuid AND (extract(epoch FROM b.created_at) * 1000000)::bigint = $5)) AS intact
FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
WHERE f.job = $1 AND f.fencing_token = $2 AND s.fencing_token = $2 FOR SHARE OF f

-- name: read_wallets
SELECT w.id, w.organization_id, w.balance::text, w.currency,
      EXISTS (SELECT FROM billing_wallet_openings b WHERE b.wallet_id = w.id)
 FROM wallets w
WHERE w.organization_id BETWEEN $1::uuid AND $2::uuid
ORDER BY w.id

-- name: lock_wallets
{read_wallets} FOR NO KEY UPDATE OF w

-- name: any_wallet
SELECT 1 AS any_wallet FROM wallets
 WHERE organization_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb)) LIMIT 1

-- name: read_due
{present_instances}
 WHERE i.organization_id BETWEEN $2::uuid AND $3::uuid {only} AND ({may_be_due} OR h.id IS NOT NULL)
UNION ALL
SELECT i.instance_id, i.organization_id, i.label, '', NULL, NULL, NULL, true, m.billed_through, m.carry, m.rate,
       m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at, i.reason, false, NULL, NULL, NULL,
       i.opened_at
  FROM billing_holds i
  LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
 WHERE i.closed_at IS NULL AND i.organization_id BETWEEN $2::uuid AND $3::uuid {only_of_hold}
   AND NOT EXISTS (SELECT FROM vps_instances v WHERE v.id = i.instance_id)
UNION ALL
SELECT v.id, i.organization_id, v.label, v.plan_id, {v_backups}, v.last_billed_at, v.created_at, false,
       m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at, i.reason,
       false, i.seen_at, v.organization_id, {v_provider}, v.created_at
  FROM billing_holds i
  JOIN vps_instances v ON v.id = i.instance_id AND v.organization_id <> i.organization_id
  LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
 WHERE i.closed_at IS NULL AND i.organization_id BETWEEN $2::uuid AND $3::uuid {only_of_hold}
   AND i.organization_id <> '00000000-0000-0000-0000-000000000000'
 ORDER BY 2, age, 1

-- name: read_unowned
{present_instances}
WHERE i.organization_id IS NULL AND ({may_be_due} OR h.id IS NOT NULL)

-- name: insert_batch
-- A ledger row is at most 24 hours ahead of the clock, so that it is newer than the rows before it although the clock was
-- set back. Rows that are further ahead come from a wrong clock, and are not followed.
INSERT INTO billing_batches (run_id, fencing_token, as_of, instances, charges, held, hours, currencies, ledger_until)
VALUES ($1::uuid, $2, (timestamptz 'epoch' + $3 * interval '1 microsecond'),
        $4::bigint::int, $5::bigint::int, $6::bigint::int, $7, $8::jsonb,
        greatest(statement_timestamp(),
                 (SELECT max(ledger_until) FROM billing_batches
                   WHERE ledger_until < statement_timestamp() + interval '24 hours'))
        + $9 * interval '1 microsecond')
RETURNING id, CASE WHEN ledger_until > '-infinity' AND ledger_until < '290000-01-01Z'
                   THEN (extract(epoch FROM ledger_until) * 1000000)::bigint END AS ledger_until,
          (extract(epoch FROM created_at) * 1000000)::bigint AS created_at

-- name: insert_openings
INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
SELECT w.id, w.organization_id, CASE WHEN abs(w.balance) < 100000000000000 THEN (w.balance * 10000)::bigint END,
       coalesce((SELECT sum(t.amount * 10000)::bigint FROM payment_transactions t
                  WHERE t.organization_id = w.organization_id AND t.status = 'completed'
                    AND (abs(t.amount) < 100000000 AND t.amount = round(t.amount::numeric, 4))), 0)
  FROM wallets w
 WHERE w.id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))

-- name: insert_all_openings
-- The same, in one pass over the whole wallet ledger.
INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
SELECT w.id, w.organization_id, CASE WHEN abs(w.balance) < 100000000000000 THEN (w.balance * 10000)::bigint END,
       coalesce(t.ledger, 0)
  FROM wallets w
  LEFT JOIN (SELECT organization_id, sum(amount * 10000)::bigint AS ledger FROM payment_transactions
              WHERE status = 'completed' AND (abs(amount) < 100000000 AND amount = round(amount::numeric, 4))
              GROUP BY organization_id) AS t ON t.organization_id = w.organization_id
 WHERE w.id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))

-- name: insert_ledger
INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method,
                                  payment_provider, status, description, metadata, created_at)
SELECT d.ledger, d.organization, d.amount * -0.0001, d.currency, 'wallet_debit', 'internal',
       'completed', d.description, d.metadata::jsonb, (timestamptz 'epoch' + d.created_at * interval '1 microsecond')
  FROM {ledger_rows}

-- name: insert_charges
INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount,
                             carry, payment_transaction_id, currency)
SELECT (timestamptz 'epoch' + d.start * interval '1 microsecond'), d.instance, d.organization, d.batch, d.hours, d.rate,
    d.amount, d.carry, d.ledger, d.currency
  FROM {charge_rows}
ON CONFLICT DO NOTHING

-- name: insert_cycles
INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start,
                                billing_period_end, hourly_rate, total_amount, status,
                                payment_transaction_id, metadata)
SELECT d.cycle, d.instance, d.organization, (timestamptz 'epoch' + d.start * interval '1 microsecond'),
    (timestamptz 'epoch' + (d.start + d.hours * 3600000000) * interval '1 microsecond'), (d.rate + 36500) / 73000 * 0.0001,
       d.amount * 0.0001, 'billed', d.ledger, d.metadata::jsonb
  FROM {cycle_rows}

-- name: insert_meters
INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, rate, backup_rate,
                            rate_changes, seen_at, opened_at)
SELECT d.instance, d.organization, (timestamptz 'epoch' + d.billed_through * interval '1 microsecond'), d.carry, d.rate,
    d.backup_rate, d.rate_changes::jsonb, (timestamptz 'epoch' + d.seen_at * interval '1 microsecond'),
       (timestamptz 'epoch' + d.seen_at * interval '1 microsecond')
  FROM {new_meter_rows}
ON CONFLICT DO NOTHING

-- name: update_meters
UPDATE billing_meters m
   SET organization_id = d.organization,
       billed_through = (timestamptz 'epoch' + d.billed_through * interval '1 microsecond'), carry = d.carry, rate = d.rate,
       backup_rate = d.backup_rate, rate_changes = d.rate_changes::jsonb,
           seen_at = (timestamptz 'epoch' + d.seen_at * interval '1 microsecond')
  FROM {meter_rows}
 WHERE m.instance_id = d.instance
     AND m.billed_through = (timestamptz 'epoch' + d.billed_through_before * interval '1 microsecond')

-- name: update_anchors
UPDATE vps_instances i SET last_billed_at = (timestamptz 'epoch' + d.after * interval '1 microsecond'), updated_at = now()
  FROM {anchor_rows}
 WHERE i.id = d.instance AND i.last_billed_at IS NOT DISTINCT FROM (timestamptz 'epoch' + d.before * interval '1 microsecond')

-- name: repair_cycles
INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,
                                billing_period_end, hourly_rate, total_amount, status,
                                payment_transaction_id, metadata)
SELECT c.instance_id, c.organization_id, c.period_start, c.period_start + c.hours * interval '1 hour',
       round(c.rate / 730000000.0, 4), c.amount * 0.0001, 'billed', c.payment_transaction_id,
       jsonb_build_object('hours_charged', c.hours, 'repaired', true)
  FROM {repair_rows}
  JOIN billing_charges c ON c.instance_id = d.instance
       AND c.period_start >= (timestamptz 'epoch' + d.since * interval '1 microsecond')
           AND c.period_start < (timestamptz 'epoch' + d.until * interval '1 microsecond')
 WHERE NOT EXISTS (SELECT FROM vps_billing_cycles y
                    WHERE y.vps_instance_id = c.instance_id AND y.status IN ('billed', 'refunded')
                      AND date_trunc('milliseconds', y.billing_period_start) = date_trunc('milliseconds', c.period_start))

-- name: upsert_holds
INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                           currency, opened_at, seen_at)
SELECT d.instance, d.organization, d.label, d.reason, d.detail, d.hours, d.amount, d.currency,
    (timestamptz 'epoch' + d.opened_at * interval '1 microsecond'),
    (timestamptz 'epoch' + d.seen_at * interval '1 microsecond')
  FROM {hold_rows}
ON CONFLICT (instance_id) WHERE closed_at IS NULL DO UPDATE
   SET organization_id = excluded.organization_id, label = excluded.label, reason = excluded.reason,
       detail = excluded.detail, hours_due = excluded.hours_due, amount_due = excluded.amount_due,
       currency = excluded.currency, seen_at = excluded.seen_at

-- name: close_holds
UPDATE billing_holds SET closed_at = (timestamptz 'epoch' + $1 * interval '1 microsecond')
 WHERE closed_at IS NULL
   AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($2::jsonb))

-- name: close_uncharged
UPDATE billing_holds SET closed_at = (timestamptz 'epoch' + $1 * interval '1 microsecond'), closed_reason = $2
 WHERE closed_at IS NULL
   AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($3::jsonb))

-- name: deleted_meters
-- A run records at most so many deleted instances; the next run continues.
SELECT m.instance_id, m.organization_id,
       EXISTS (SELECT FROM billing_holds h WHERE h.instance_id = m.instance_id AND h.closed_at IS NULL),
       m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes::text, m.seen_at, m.panel_debited_at,
       (SELECT max(w.currency) FROM wallets w WHERE w.organization_id = m.organization_id)
  FROM billing_meters m
 WHERE m.billed_through <= (timestamptz 'epoch' + ($1 - 3600000000) * interval '1 microsecond')
     AND (m.deleted_at IS NULL OR m.deleted_at < m.seen_at)
   AND NOT EXISTS (SELECT FROM vps_instances i WHERE i.id = m.instance_id)
 LIMIT 100000

-- name: mark_deleted
UPDATE billing_meters SET deleted_at = (timestamptz 'epoch' + $1 * interval '1 microsecond')
 WHERE (deleted_at IS NULL OR deleted_at < seen_at)
   AND instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text($2::jsonb))

-- name: insert_deleted_holds
INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                           currency, opened_at, seen_at, closed_at, closed_reason)
SELECT d.instance, d.organization, d.label, d.reason, d.detail, d.hours, d.amount, d.currency,
    (timestamptz 'epoch' + d.opened_at * interval '1 microsecond'),
       (timestamptz 'epoch' + d.seen_at * interval '1 microsecond'),
           (timestamptz 'epoch' + d.seen_at * interval '1 microsecond'), d.reason
  FROM {hold_rows}

-- name: update_wallets
UPDATE wallets w SET balance = d.after * 0.0001, updated_at = now()
  FROM {wallet_rows}
 WHERE w.id = d.wallet AND w.balance = d.before * 0.0001

-- name: run_totals
SELECT coalesce(sum(instances), 0)::bigint AS charged, coalesce(sum(charges), 0)::bigint AS charges,
       coalesce(sum(held), 0)::bigint AS held, coalesce(sum(hours), 0)::bigint AS hours,
       (SELECT jsonb_object_agg(currency, sums) FROM (
            SELECT c.key AS currency, jsonb_build_object(
                       'charges', sum((c.value ->> 'charges')::bigint),
                       'hours', sum((c.value ->> 'hours')::bigint),
                       'amount', sum((c.value ->> 'amount')::bigint)) AS sums
              FROM billing_batches b, jsonb_each(b.currencies) c
             WHERE b.run_id = $1::uuid GROUP BY c.key) AS of_each)::text AS currencies
  FROM billing_batches WHERE run_id = $1::uuid

-- name: is_guarded
SELECT {guard_is_effective} AS guarded

-- name: record_success
UPDATE scheduler_fencing SET last_success_at = now(), hand_back_after_seconds = $3
WHERE job = $1 AND fencing_token = $2

-- name: due_amounts
-- The meter of an instance that is due for one hour is not read: it could only say that this hour is charged already, or
-- that it began at the price before, which is one to compare with. That saves most of the time. No sum is larger than 64 bits.
-- As a floating-point number an infinite instant is one that is too long ago.
SELECT {currency} AS currency, plan, provider, backups, rate, changes, gone,
      coalesce(due.poor AND coalesce(w.balance, 0) < coalesce(rate / 73000, 1), false) AS broke,
      count(*) AS machines, least(coalesce(sum(hours), 0), 9e18)::bigint AS hours, least(max(hours), 9e18)::bigint AS longest,
      least(coalesce(sum(w.balance) FILTER (WHERE due.poor), 0), 9e18)::bigint AS balance
 FROM (SELECT i.organization_id, i.plan, i.provider, i.backups, m.rate, m.rate_changes::text AS changes, false AS gone, i.poor,
              CASE WHEN m.billed_through IS NOT NULL THEN least(i.hours, floor(($1::float8 / 1000000 - date_part('epoch',
                  m.billed_through)) / 3600))
                   WHEN i.hours > 1 THEN least(i.hours, coalesce(i.age, i.hours))
                   ELSE i.hours END AS hours,
              CASE WHEN i.poor THEN floor(($1::float8 / 1000000 - date_part('epoch', m.seen_at)) / 3600) END AS unseen
         FROM (SELECT v.id, v.organization_id, v.plan_id AS plan, {v_provider} AS provider, {v_backups} AS backups,
             floor(($1::float8 / 1000000 - date_part('epoch', coalesce(v.last_billed_at, v.created_at))) / 3600) AS hours,
             floor(($1::float8 / 1000000 - date_part('epoch', v.created_at)) / 3600) AS age, h.id IS NOT NULL AS poor
                 FROM vps_instances v
                 LEFT JOIN billing_holds h
                        ON h.instance_id = v.id AND h.closed_at IS NULL AND h.reason = 'insufficient_balance'
                WHERE coalesce(v.last_billed_at,
                     v.created_at) <= (SELECT (timestamptz 'epoch' + ($1 - 3600000000) * interval '1 microsecond'))) AS i
         LEFT JOIN billing_meters m ON m.instance_id = CASE WHEN i.poor OR i.hours > 1 THEN i.id END
       UNION ALL
       SELECT h.organization_id, '', NULL::text, NULL::text, m.rate, m.rate_changes::text, true, true,
              floor(date_part('epoch', m.seen_at - m.billed_through) / 3600),
              CASE WHEN h.reason = 'insufficient_balance' THEN 0 END
         FROM billing_holds h JOIN billing_meters m ON m.instance_id = h.instance_id
        WHERE h.closed_at IS NULL AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = h.instance_id)) AS due
 LEFT JOIN (SELECT organization_id,
                   max(CASE WHEN abs(balance) < 100000000000000 THEN (balance * 10000)::bigint END) AS balance
              FROM wallets GROUP BY organization_id) AS w ON w.organization_id = due.organization_id
 {currency_join}
WHERE hours >= 1 AND least(hours, coalesce(unseen, hours)) <= $2
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
