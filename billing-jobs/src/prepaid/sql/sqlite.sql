-- The statements of the prepaid policy for SQLite: the same as for PostgreSQL, over integers. A transaction that writes is the only
-- writer from its beginning, so it locks no wallet.

-- Fragments: `{name}` is replaced with the text of the section `name`, or with what `sql/mod.rs` gives for it.

-- name: anchor
-- Where the first unpaid hour of the instance `v` with the meter `m` begins. Missing times do not count.
max(coalesce(m.billed_through, 0), coalesce({last_billed_at}, 0),
    CASE WHEN m.instance_id IS NULL THEN coalesce({created_at}, 0) ELSE 0 END)

-- name: spending
-- What each instance `v` with the meter `m` costs and owes. ?1 is the present. `rate` is NULL where the rates of the unpaid hours must be decided in Rust. No
-- product is larger than 64 bits.
v.id AS instance, v.plan_id AS "plan", v.provider_id AS provider, v.backup_frequency AS backups,
       CASE WHEN m.rate_changes IS NULL THEN min(m.rate, 100000000000000) END AS rate,
       CASE WHEN {anchor} > 0 THEN min(max((?1 - {anchor}) / 3600000000, 0), 50000) ELSE 0 END AS hours,
       {anchor} AS anchor, m.carry, m.rate AS first_rate, m.rate_changes

-- name: sums
organization, sum(rate) AS burn, sum((carry + rate * hours) / {unit_u}) FILTER (WHERE hours > 0) * {unit} AS owed

-- name: watched
SELECT organization_id AS organization FROM billing_standings
 WHERE watched = 1 AND organization_id > ?2 ORDER BY organization_id LIMIT ?3

-- name: all
SELECT id AS organization FROM organizations WHERE id > ?2 ORDER BY id LIMIT ?3

-- name: listed
SELECT value AS organization FROM json_each(?2)

-- Statements.

-- name: context
WITH clock AS (SELECT coalesce(?1, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)) AS now),
     good AS (SELECT finished_at AS at FROM scheduler_runs
               WHERE job = ?2 AND status = 'done' AND started_at > (SELECT now FROM clock) - ?4),
     gaps AS (SELECT at, lag(at) OVER (ORDER BY at) AS earlier FROM good)
SELECT (SELECT now FROM clock) AS now, (SELECT max(at) FROM good) AS last_run,
       (SELECT max(at) FROM gaps WHERE earlier IS NULL OR at - earlier > ?3) AS works_since,
       EXISTS (SELECT 1 FROM scheduler_fencing WHERE job = ?2 AND halt IS NOT NULL)
       OR coalesce((SELECT r.details ->> '$.spike' FROM scheduler_runs r
                     WHERE r.job = ?2 AND r.status IN ('done', 'dead', 'retrying')
                     ORDER BY r.started_at DESC, r.id DESC LIMIT 1), '') <> '' AS waits,
       EXISTS (SELECT 1 FROM billing_deliveries WHERE status = 'pending' AND next_at <= (SELECT now FROM clock)) AS is_due,
       coalesce((SELECT max(id) FROM scheduler_audit_log WHERE action = ?5), 0)
       > coalesce((SELECT max(id) FROM scheduler_audit_log WHERE action = ?6), 0) AS is_restored

-- name: facts
WITH selected AS MATERIALIZED ({selected}),
     spent AS MATERIALIZED (
         SELECT {sums},
                nullif(json_group_array(json_array("plan", provider, backups, anchor, first_rate, carry, rate_changes))
                FILTER (WHERE rate IS NULL AND instance IS NOT NULL), '[]') AS details
           FROM (SELECT selected.organization, {spending}
                  FROM selected LEFT JOIN vps_instances v ON v.organization_id = selected.organization
                 LEFT JOIN billing_meters m ON m.instance_id = v.id) AS i
          GROUP BY organization),
     owned AS MATERIALIZED (
         SELECT organization_id, json_group_array(json_array(balance, currency)) AS wallets
           FROM wallets WHERE organization_id IN (SELECT organization FROM selected) GROUP BY organization_id)
SELECT p.organization AS organization, (SELECT o.name FROM organizations o WHERE o.id = p.organization) AS name,
       t.state, t.since, t.watched, t.episode, t.level, t.runway_hours, t.exhausted_at, t.epoch, t.desired,
       w.wallets,
       y.mode AS policy_mode, y.credit_limit, y.never_suspend_until,
       coalesce(p.burn, 0) AS burn, coalesce(p.owed, 0) AS owed, p.details AS details,
       (SELECT coalesce(sum(min(h.amount_due, 1000000000000000)), 0) FROM billing_holds h
         WHERE h.closed_at IS NULL AND h.organization_id = p.organization
           AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = h.instance_id AND v.organization_id = h.organization_id))
       AS owed_before,
       EXISTS (SELECT 1 FROM billing_holds h
                WHERE h.closed_at IS NULL AND h.organization_id = p.organization AND h.reason = 'catch_up_limit') AS waits,
       (SELECT json_group_array(json_array(n.level, n.created_at, json(iif(n.passed, 'true', 'false')),
                   json(iif(n.event_id IS NULL, 'false', 'true')), n.delivered_at))
          FROM billing_notices n WHERE n.organization_id = p.organization AND n.episode = coalesce(t.episode, 0)) AS notices
  FROM spent p
  LEFT JOIN billing_standings t ON t.organization_id = p.organization
  LEFT JOIN owned w ON w.organization_id = p.organization
  LEFT JOIN billing_policies y ON y.organization_id = p.organization
 ORDER BY p.organization

-- name: low
SELECT p.organization AS organization
  FROM (SELECT {sums}, count(*) FILTER (WHERE rate IS NULL) AS details
          FROM (SELECT v.organization_id AS organization, {spending} FROM vps_instances v LEFT JOIN billing_meters m ON m.instance_id = v.id
                 WHERE v.organization_id > ?2) AS i
         GROUP BY organization) AS p
  LEFT JOIN (SELECT organization_id, count(*) AS wallets, max(currency) AS currency, max(balance) AS balance
               FROM wallets GROUP BY organization_id) AS w ON w.organization_id = p.organization
  LEFT JOIN billing_standings t ON t.organization_id = p.organization
 WHERE coalesce(t.watched, 0) = 0
   AND (p.details > 0 OR w.wallets IS NOT 1 OR w.balance IS NULL OR coalesce(w.currency GLOB '[A-Z][A-Z][A-Z]', 0) = 0
        OR (w.balance - coalesce(p.owed, 0)) * 1.0 * {ten_thousandth_u} < p.burn * 1.0 * ?4)
 ORDER BY p.organization LIMIT ?3

-- name: check_fence
SELECT 1 AS held FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
 WHERE f.job = ?1 AND f.fencing_token = ?2 AND s.fencing_token = ?2

-- name: write_standings
INSERT INTO billing_standings (organization_id, state, since, watched, episode, level, burn, owed, runway_hours, exhausted_at, epoch,
                               desired, evaluated_at)
SELECT value ->> 'organization', value ->> 'state', value ->> 'since', value ->> 'watched', value ->> 'episode', value ->> 'level',
       value ->> 'burn', value ->> 'owed', value ->> 'runway_hours', value ->> 'exhausted_at', value ->> 'epoch', value ->> 'desired',
       value ->> 'evaluated_at'
  FROM json_each(?1) WHERE true
ON CONFLICT (organization_id) DO UPDATE
   SET state = excluded.state, since = excluded.since, watched = excluded.watched, episode = excluded.episode, level = excluded.level,
       burn = excluded.burn, owed = excluded.owed, runway_hours = excluded.runway_hours, exhausted_at = excluded.exhausted_at,
       epoch = excluded.epoch, desired = excluded.desired, evaluated_at = excluded.evaluated_at

-- name: insert_notices
-- A notice that was only recorded is replaced when it is sent. Any other one stays, and then a row is missing in the result.
INSERT INTO billing_notices (organization_id, episode, level, event_id, passed, created_at)
SELECT value ->> 'organization', value ->> 'episode', value ->> 'level', value ->> 'event_id', value ->> 'passed',
       value ->> 'created_at'
  FROM json_each(?1) WHERE true
ON CONFLICT (organization_id, episode, level) DO UPDATE
   SET event_id = excluded.event_id, passed = excluded.passed, created_at = excluded.created_at
 WHERE billing_notices.event_id IS NULL AND NOT billing_notices.passed AND (excluded.event_id IS NOT NULL OR excluded.passed)

-- name: insert_events
INSERT INTO billing_events (id, type, organization_id, epoch, body, created_at)
SELECT value ->> 'id', value ->> 'type', value ->> 'organization', value ->> 'epoch', value ->> 'body', value ->> 'created_at'
  FROM json_each(?1)

-- name: insert_deliveries
INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, next_at)
SELECT value ->> 'event_id', value ->> 'endpoint', value ->> 'organization', value ->> 'needed', value ->> 'next_at' FROM json_each(?1)

-- name: supersede
UPDATE billing_deliveries SET status = 'superseded', claimed_until = NULL
 WHERE status = 'pending' AND event_id IN (
       SELECT e.id FROM billing_events e WHERE e.epoch IS NOT NULL AND e.organization_id IN (SELECT value FROM json_each(?1)))

-- name: instances
SELECT organization_id AS organization, id, provider_instance_id, label
  FROM (SELECT v.*, row_number() OVER (PARTITION BY v.organization_id ORDER BY v.id) AS position FROM vps_instances v
         WHERE v.organization_id IN (SELECT value FROM json_each(?1))) AS v
 WHERE position <= ?2 ORDER BY v.organization_id, v.id

-- name: present
coalesce(?1, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER))

-- name: claim_deliveries
UPDATE billing_deliveries AS d SET claimed_until = {present} + ?4, attempts = attempts + 1
 WHERE endpoint = ?2 AND event_id IN (
    SELECT d.event_id FROM billing_deliveries d
     WHERE d.status = 'pending' AND d.endpoint = ?2 AND d.next_at <= {present}
       AND (d.claimed_until IS NULL OR d.claimed_until <= {present})
       AND (NOT ?5 OR EXISTS (SELECT 1 FROM billing_events e WHERE e.id = d.event_id AND e.epoch IS NOT NULL))
       AND NOT EXISTS (SELECT 1 FROM billing_deliveries g WHERE g.endpoint = ?2 AND g.status = 'dead' AND g.last_code = 410)
       AND NOT EXISTS (SELECT 1 FROM billing_deliveries o
                        WHERE o.endpoint = ?2 AND o.organization_id = d.organization_id AND o.claimed_until > {present})
     ORDER BY d.next_at, d.event_id LIMIT ?3)
RETURNING event_id AS event, organization_id AS organization, attempts,
          (SELECT e.type FROM billing_events e WHERE e.id = event_id) AS type,
          (SELECT e.body FROM billing_events e WHERE e.id = event_id) AS body,
          (SELECT e.epoch FROM billing_events e WHERE e.id = event_id) AS epoch

-- name: settle_delivery
UPDATE billing_deliveries
   SET status = ?5, next_at = CASE WHEN ?5 = 'pending' THEN {present} + ?6 ELSE next_at END,
       claimed_until = NULL, last_code = ?7, last_error = ?8, sent_at = CASE WHEN ?5 = 'sent' THEN {present} END
 WHERE event_id = ?2 AND endpoint = ?3 AND attempts = ?4 AND status = 'pending'

-- name: postpone_delivery
UPDATE billing_deliveries
   SET next_at = {present} + ?5, claimed_until = NULL, attempts = attempts - 1, last_error = ?6
 WHERE event_id = ?2 AND endpoint = ?3 AND attempts = ?4 AND status = 'pending'

-- name: is_accepted
EXISTS (SELECT 1 FROM billing_deliveries WHERE event_id = ?2 AND needed AND status = 'sent')
   AND NOT EXISTS (SELECT 1 FROM billing_deliveries WHERE event_id = ?2 AND needed AND status <> 'sent')

-- name: confirm_notice
UPDATE billing_notices SET delivered_at = {present}
 WHERE organization_id = ?3 AND event_id = ?2 AND delivered_at IS NULL AND {is_accepted}

-- name: acknowledge
UPDATE billing_standings SET acked_epoch = epoch, acked_at = {present}
 WHERE organization_id = ?3 AND epoch = (SELECT epoch FROM billing_events WHERE id = ?2) AND {is_accepted}

-- name: standings
SELECT organization_id AS organization FROM billing_standings WHERE organization_id > ?1 ORDER BY billing_standings.organization_id LIMIT ?2

-- name: wanted_columns
SELECT organization_id AS organization, state, desired, epoch, acked_epoch, since FROM billing_standings

-- name: wanted
{wanted_columns}
 WHERE organization_id > ?1 AND (?3 = '' OR desired = ?3) ORDER BY billing_standings.organization_id LIMIT ?2

-- name: wanted_of
SELECT ?1 AS organization, coalesce(t.state, 'ok') AS state, coalesce(t.desired, 'running') AS desired, t.epoch, t.acked_epoch,
       t.since
  FROM (SELECT 1 AS one) AS c LEFT JOIN billing_standings t ON t.organization_id = ?1
 WHERE t.organization_id IS NOT NULL OR EXISTS (SELECT 1 FROM organizations o WHERE o.id = ?1)

-- name: problems
SELECT body FROM billing_events WHERE organization_id IS NULL AND type IN (?1, ?2) ORDER BY created_at, id

-- name: recipient
SELECT coalesce((SELECT contact FROM billing_policies WHERE organization_id = ?1),
                (SELECT u.email FROM organizations o JOIN users u ON u.id = o.owner_id WHERE o.id = ?1)) AS email
