-- The statements of billing for SQLite: the same as for PostgreSQL, over integers. `{(...)}` is one of many rows.
--
-- A transaction that writes has read the newest state, or SQLite rejects its first write: what was read cannot change before it
-- is written. The watermark and the balance are compared all the same.

-- Fragments: `{name}` is replaced with the text of the section `name`.

-- name: may_be_due
-- Whether a run must read the instance `i`: its anchor is an hour old, missing or not plausible. ?1 is the time of the run.
-- SQLite takes more texts for times than are instants (`now`, a number of days), so those are read as well.
(coalesce(i.last_billed_at, i.created_at) GLOB '[0-9][0-9][0-9][0-9]-*' AND unixepoch(coalesce(i.last_billed_at,
    i.created_at)) > ?1 / 1000000 - 3600
AND unixepoch(coalesce(i.last_billed_at, i.created_at)) <= ?1 / 1000000 + 300
AND (i.created_at IS NULL OR i.created_at GLOB '[0-9][0-9][0-9][0-9]-*'
    AND unixepoch(i.created_at) <= ?1 / 1000000 + 300)) IS NOT TRUE

-- name: present_instances
SELECT i.id, i.organization_id, i.label, i.plan_id, i.backup_frequency, i.last_billed_at, i.created_at,
      0 AS gone, m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at, h.reason,
      coalesce(h.organization_id <> i.organization_id AND h.organization_id <> '00000000-0000-0000-0000-000000000000', 0),
          NULL, NULL,
      i.provider_id, (unixepoch(i.created_at) * 1000000
+ CASE WHEN substr(i.created_at, 20, 1) = '.'
       THEN CAST(round(CAST('0' || substr(i.created_at, 20, 7) AS REAL) * 1000000) AS INTEGER) ELSE 0 END) AS age
 FROM vps_instances i
 LEFT JOIN billing_meters m ON m.instance_id = i.id
 LEFT JOIN billing_holds h ON h.instance_id = i.id AND h.closed_at IS NULL

-- name: only_instances
-- Only some of the instances of `i`.
AND i.id IN (SELECT value FROM json_each(?4))

-- name: join_currency
LEFT JOIN (SELECT organization_id, max(currency) AS currency FROM wallets GROUP BY organization_id) AS c
       ON c.organization_id = due.organization_id

-- name: now_micros
CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)

-- name: now_text
strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')

-- Statements.

-- name: now
SELECT {now_micros} AS now

-- name: plans
SELECT id, provider_plan_id, provider_id, base_price AS base, markup_price AS markup, backup_price_hourly AS backup,
       backup_upcharge_hourly AS upcharge
  FROM vps_plans

-- name: seen_rates
SELECT plan_id, backups, seen_at, rate, backup_rate FROM billing_seen_rates
 ORDER BY plan_id, backups, seen_at

-- name: insert_seen_rates
INSERT INTO billing_seen_rates (plan_id, backups, seen_at, rate, backup_rate)
VALUES {(?, ?, ?, ?, ?)} ON CONFLICT DO NOTHING

-- name: next_organizations
SELECT CAST(min(organization) AS BLOB) AS first, CAST(max(organization) AS BLOB) AS last FROM (
       SELECT organization FROM (
           SELECT * FROM (SELECT organization_id AS organization FROM vps_instances
             WHERE organization_id > CAST(?2 AS TEXT) AND (coalesce(last_billed_at,
                 created_at) GLOB '[0-9][0-9][0-9][0-9]-*' AND unixepoch(coalesce(last_billed_at,
                 created_at)) > ?1 / 1000000 - 3600
AND unixepoch(coalesce(last_billed_at, created_at)) <= ?1 / 1000000 + 300
AND (created_at IS NULL OR created_at GLOB '[0-9][0-9][0-9][0-9]-*'
    AND unixepoch(created_at) <= ?1 / 1000000 + 300)) IS NOT TRUE
             ORDER BY organization_id LIMIT ?3)
           UNION ALL
           SELECT * FROM (SELECT organization_id FROM billing_holds
             WHERE closed_at IS NULL AND organization_id > CAST(?2 AS TEXT)
             ORDER BY organization_id LIMIT ?3))
       ORDER BY organization LIMIT ?3)

-- name: check_fence
SELECT f.halt IS NOT NULL AS halted,
       (?3 IS NULL OR EXISTS (
           SELECT 1 FROM billing_batches b WHERE b.id = ?3 AND b.run_id = ?4 AND b.created_at = ?5)) AS intact
FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
WHERE f.job = ?1 AND f.fencing_token = ?2 AND s.fencing_token = ?2

-- name: read_wallets
SELECT w.id, w.organization_id, w.balance, w.currency,
      EXISTS (SELECT 1 FROM billing_wallet_openings b WHERE b.wallet_id = w.id)
 FROM wallets w
WHERE w.organization_id BETWEEN CAST(?1 AS TEXT) AND CAST(?2 AS TEXT)
ORDER BY w.id

-- name: lock_wallets
{read_wallets}

-- name: read_due
{present_instances}
 WHERE i.organization_id BETWEEN CAST(?2 AS TEXT) AND CAST(?3 AS TEXT) {only} AND ({may_be_due} OR h.id IS NOT NULL)
UNION ALL
SELECT i.instance_id, i.organization_id, i.label, '', NULL, NULL, NULL, 1, m.billed_through, m.carry, m.rate,
       m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at, i.reason, 0, NULL, NULL, NULL, i.opened_at
  FROM billing_holds i
  LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
 WHERE i.closed_at IS NULL AND i.organization_id BETWEEN CAST(?2 AS TEXT) AND CAST(?3 AS TEXT) {only_of_hold}
   AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = i.instance_id)
UNION ALL
SELECT v.id, i.organization_id, v.label, v.plan_id, v.backup_frequency, v.last_billed_at, v.created_at, 0,
       m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at, i.reason,
       0, i.seen_at, v.organization_id, v.provider_id, (unixepoch(v.created_at) * 1000000
 + CASE WHEN substr(v.created_at, 20, 1) = '.'
        THEN CAST(round(CAST('0' || substr(v.created_at, 20, 7) AS REAL) * 1000000) AS INTEGER) ELSE 0 END)
  FROM billing_holds i
  JOIN vps_instances v ON v.id = i.instance_id AND v.organization_id <> i.organization_id
  LEFT JOIN billing_meters m ON m.instance_id = i.instance_id
 WHERE i.closed_at IS NULL AND i.organization_id BETWEEN CAST(?2 AS TEXT) AND CAST(?3 AS TEXT) {only_of_hold}
   AND i.organization_id <> '00000000-0000-0000-0000-000000000000'
 ORDER BY 2, age, 1

-- name: read_unowned
{present_instances}
WHERE i.organization_id IS NULL AND ({may_be_due} OR h.id IS NOT NULL)

-- name: insert_batch
-- A ledger row is at most 24 hours ahead of the clock, so that it is newer than the rows before it although the clock was
-- set back. Rows that are further ahead come from a wrong clock, and are not followed.
INSERT INTO billing_batches (run_id, fencing_token, as_of, instances, charges, held, hours, currencies, ledger_until)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
        max({now_micros},
            coalesce((SELECT max(ledger_until) FROM billing_batches
                       WHERE ledger_until < {now_micros} + 24 * 3600000000), 0)) + ?9)
RETURNING id, ledger_until, created_at

-- name: insert_openings
INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
SELECT w.id, w.organization_id, w.balance,
       coalesce((SELECT sum(t.amount) FROM payment_transactions t
                  WHERE t.organization_id = w.organization_id AND t.status = 'completed'
                    AND (t.amount BETWEEN -999999999999 AND 999999999999)), 0)
  FROM wallets w WHERE w.id IN (SELECT value FROM json_each(?1))

-- name: insert_all_openings
-- The same, in one pass over the whole wallet ledger.
INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
SELECT w.id, w.organization_id, w.balance, coalesce(t.ledger, 0)
  FROM wallets w
  LEFT JOIN (SELECT organization_id, sum(amount) AS ledger FROM payment_transactions
              WHERE status = 'completed' AND (amount BETWEEN -999999999999 AND 999999999999)
              GROUP BY organization_id) AS t ON t.organization_id = w.organization_id
 WHERE w.id IN (SELECT value FROM json_each(?1))

-- name: insert_ledger
INSERT INTO payment_transactions (id, organization_id, amount, currency, description, metadata,
                                  created_at, payment_method, payment_provider, status)
VALUES {(?, ?, -?, ?, ?, ?, ?, 'wallet_debit', 'internal', 'completed')}

-- name: insert_charges
INSERT INTO billing_charges (batch_id, instance_id, organization_id, period_start, hours, rate,
                             amount, carry, payment_transaction_id, currency)
VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)} ON CONFLICT DO NOTHING

-- name: insert_cycles
INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start,
                                billing_period_end, hourly_rate, total_amount, status,
                                payment_transaction_id, metadata)
VALUES {(?, ?, ?, ?, ?, (? + 36500) / 73000, ?, 'billed', ?, ?)}

-- name: insert_meters
INSERT INTO billing_meters (organization_id, billed_through, carry, rate, backup_rate, rate_changes,
                            seen_at, instance_id, opened_at)
SELECT d.*, d.column7 FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?)}) AS d WHERE true ON CONFLICT DO NOTHING

-- name: update_meters
UPDATE billing_meters
   SET organization_id = d.column1, billed_through = d.column2, carry = d.column3, rate = d.column4,
       backup_rate = d.column5, rate_changes = d.column6, seen_at = d.column7
  FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?)}) AS d
 WHERE billing_meters.instance_id = d.column8 AND billing_meters.billed_through = d.column9

-- name: update_anchors
UPDATE vps_instances SET last_billed_at = d.column1, updated_at = {now_text} FROM (VALUES {(?, ?)}) AS d
 WHERE vps_instances.id = d.column2

-- name: cycle_start
(strftime('%Y-%m-%dT%H:%M:%S', c.period_start / 1000000, 'unixepoch')
|| printf('.%06d+00:00', c.period_start % 1000000))

-- name: repaired_cycle
-- The id is that of the debit, as in a run, unless an altered cycle has it.
SELECT CASE WHEN c.payment_transaction_id IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM vps_billing_cycles y WHERE y.id = c.payment_transaction_id)
            THEN c.payment_transaction_id
            ELSE lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-8'
                       || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))) END,
       c.instance_id, c.organization_id, {cycle_start}, (strftime('%Y-%m-%dT%H:%M:%S',
    (c.period_start + c.hours * 3600000000) / 1000000, 'unixepoch')
|| printf('.%06d+00:00', (c.period_start + c.hours * 3600000000) % 1000000)), (c.rate + 36500) / 73000, c.amount, 'billed',
       c.payment_transaction_id, json_object('hours_charged', c.hours, 'repaired', json('true'))

-- name: cycle_columns
id, vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount, status,
payment_transaction_id, metadata

-- name: repair_cycles
-- All cycles of the instances are read only if one has not the id of its debit.
WITH d AS MATERIALIZED (VALUES {(?, ?, ?)}),
     present AS MATERIALIZED (
         SELECT y.vps_instance_id AS instance, y.billing_period_start AS starts FROM vps_billing_cycles y
          WHERE y.status IN ('billed', 'refunded') AND y.vps_instance_id IN (SELECT column1 FROM d))
INSERT INTO vps_billing_cycles ({cycle_columns})
{repaired_cycle}
  FROM d
  CROSS JOIN billing_batches b ON b.as_of > d.column2
  CROSS JOIN billing_charges c ON c.batch_id = b.id AND c.instance_id = d.column1
         AND c.period_start >= d.column2 AND c.period_start < d.column3
 WHERE NOT EXISTS (SELECT 1 FROM vps_billing_cycles y
                    WHERE y.id = c.payment_transaction_id AND y.vps_instance_id = c.instance_id
                      AND y.status IN ('billed', 'refunded') AND y.billing_period_start = {cycle_start})
   AND NOT EXISTS (SELECT 1 FROM present p WHERE p.instance = c.instance_id AND p.starts = {cycle_start})

-- name: repair_all_cycles
-- The same for many instances, in one pass over the charges. Without the type TEXT of `instance` SQLite would not index the list.
WITH repairs AS MATERIALIZED (
         SELECT CAST(value ->> 0 AS TEXT) AS instance, value ->> 1 AS since, value ->> 2 AS until FROM json_each(?1)),
     present AS MATERIALIZED (
         SELECT DISTINCT vps_instance_id AS instance, billing_period_start AS starts
           FROM vps_billing_cycles WHERE status IN ('billed', 'refunded'))
INSERT INTO vps_billing_cycles ({cycle_columns})
{repaired_cycle}
  FROM billing_charges c
  CROSS JOIN repairs d ON d.instance = c.instance_id AND c.period_start >= d.since AND c.period_start < d.until
  LEFT JOIN present ON present.instance = c.instance_id AND present.starts = {cycle_start}
 WHERE present.instance IS NULL

-- name: upsert_holds
INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due, amount_due,
                           currency, opened_at, seen_at)
VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)}
ON CONFLICT (instance_id) WHERE closed_at IS NULL DO UPDATE
   SET organization_id = excluded.organization_id, label = excluded.label, reason = excluded.reason,
       detail = excluded.detail, hours_due = excluded.hours_due, amount_due = excluded.amount_due,
       currency = excluded.currency, seen_at = excluded.seen_at

-- name: close_holds
UPDATE billing_holds SET closed_at = ?1
 WHERE closed_at IS NULL AND instance_id IN (SELECT value FROM json_each(?2))

-- name: close_uncharged
UPDATE billing_holds SET closed_at = ?1, closed_reason = ?2
 WHERE closed_at IS NULL AND instance_id IN (SELECT value FROM json_each(?3))

-- name: deleted_meters
-- A run records at most so many deleted instances; the next run continues.
SELECT m.instance_id, m.organization_id,
       EXISTS (SELECT 1 FROM billing_holds h WHERE h.instance_id = m.instance_id AND h.closed_at IS NULL),
       m.billed_through, m.carry, m.rate, m.backup_rate, m.rate_changes, m.seen_at, m.panel_debited_at,
       (SELECT max(w.currency) FROM wallets w WHERE w.organization_id = m.organization_id)
  FROM billing_meters m
 WHERE m.billed_through <= ?1 - 3600000000 AND (m.deleted_at IS NULL OR m.deleted_at < m.seen_at)
   AND NOT EXISTS (SELECT 1 FROM vps_instances i WHERE i.id = m.instance_id)
 LIMIT 100000

-- name: mark_deleted
UPDATE billing_meters SET deleted_at = ?1
 WHERE (deleted_at IS NULL OR deleted_at < seen_at)
   AND instance_id IN (SELECT value FROM json_each(?2))

-- name: insert_deleted_holds
INSERT INTO billing_holds (instance_id, organization_id, label, reason, detail, hours_due,
                           amount_due, currency, opened_at, seen_at, closed_at, closed_reason)
SELECT column1, column2, column3, column4, column5, column6, column7, column8, column9, column10, column10,
       column4
  FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)})

-- name: update_wallets
UPDATE wallets SET balance = d.column1, updated_at = {now_text} FROM (VALUES {(?, ?, ?)}) AS d
 WHERE wallets.id = d.column2 AND wallets.balance = d.column3

-- name: run_totals
SELECT coalesce(sum(instances), 0) AS charged, coalesce(sum(charges), 0) AS charges,
       coalesce(sum(held), 0) AS held, coalesce(sum(hours), 0) AS hours,
       (SELECT json_group_object(currency, json(sums)) FROM (
            SELECT c.key AS currency, json_object(
                       'charges', sum(c.value ->> '$.charges'), 'hours', sum(c.value ->> '$.hours'),
                       'amount', sum(c.value ->> '$.amount')) AS sums
              FROM billing_batches b, json_each(b.currencies) c
             WHERE b.run_id = ?1 GROUP BY c.key)) AS currencies
  FROM billing_batches WHERE run_id = ?1

-- name: record_success
UPDATE scheduler_fencing SET last_success_at = {now_micros}, hand_back_after_seconds = ?3 WHERE job = ?1
    AND fencing_token = ?2

-- name: due_amounts
-- The meter of an instance that is due for one hour is not read: it could only say that this hour is charged already, or
-- that it began at the price before, which is one to compare with. That saves most of the time. No sum is larger than 64 bits.
SELECT {currency} AS currency, plan, provider, backups, rate, changes, gone,
      coalesce(due.poor AND coalesce(w.balance, 0) < coalesce(rate / 73000, 1), 0) AS broke,
      count(*) AS machines, CAST(min(total(hours), 9e18) AS INTEGER) AS hours, max(hours) AS longest,
      CAST(min(total(w.balance) FILTER (WHERE due.poor), 9e18) AS INTEGER) AS balance
 FROM (SELECT i.organization_id, i.plan, i.provider, i.backups, m.rate, m.rate_changes AS changes, 0 AS gone, i.poor,
              CASE WHEN m.billed_through IS NOT NULL THEN min(i.hours, ($1 - m.billed_through) / 3600000000)
                   WHEN i.hours > 1 THEN min(i.hours, coalesce(i.age, i.hours))
                   ELSE i.hours END AS hours,
              CASE WHEN i.poor THEN ($1 - m.seen_at) / 3600000000 END AS unseen
         FROM (SELECT v.id, v.organization_id, v.plan_id AS plan, v.provider_id AS provider, v.backup_frequency AS backups,
             ($1 / 1000000 - unixepoch(coalesce(v.last_billed_at, v.created_at))) / 3600 AS hours,
             ($1 / 1000000 - unixepoch(v.created_at)) / 3600 AS age, h.id IS NOT NULL AS poor
                 FROM vps_instances v
                 LEFT JOIN billing_holds h
                        ON h.instance_id = v.id AND h.closed_at IS NULL AND h.reason = 'insufficient_balance'
                WHERE unixepoch(coalesce(v.last_billed_at, v.created_at)) <= $1 / 1000000 - 3600) AS i
         LEFT JOIN billing_meters m ON m.instance_id = CASE WHEN i.poor OR i.hours > 1 THEN i.id END
       UNION ALL
       SELECT h.organization_id, '', NULL, NULL, m.rate, m.rate_changes, 1, 1, (m.seen_at - m.billed_through) / 3600000000,
              CASE WHEN h.reason = 'insufficient_balance' THEN 0 END
         FROM billing_holds h JOIN billing_meters m ON m.instance_id = h.instance_id
        WHERE h.closed_at IS NULL AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = h.instance_id)) AS due
 LEFT JOIN (SELECT organization_id, max(balance) AS balance FROM wallets GROUP BY organization_id) AS w
        ON w.organization_id = due.organization_id
 {currency_join}
WHERE hours >= 1 AND min(hours, coalesce(unseen, hours)) <= $2
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
