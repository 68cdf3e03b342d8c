-- The statements of the prepaid policy for PostgreSQL. `sql/mod.rs` describes each.

-- Fragments: `{name}` is replaced with the text of the section `name`, or with what `sql/mod.rs` gives for it.

-- name: anchor
-- Where the first unpaid hour of the instance `v` with the meter `m` begins. Missing times do not count.
greatest(m.billed_through, v.last_billed_at, CASE WHEN m.instance_id IS NULL THEN v.created_at END)

-- name: spending
-- What each instance `v` with the meter `m` costs and owes. $1 is the present. `rate` is NULL where the rates of the unpaid hours must be decided in Rust. No
-- product is larger than 64 bits, and as a floating-point number an infinite instant is one that is too far away.
v.id AS instance, v.plan_id AS plan, {v_provider} AS provider, {v_backups} AS backups,
       CASE WHEN m.rate_changes IS NULL AND m.rate >= 0 THEN least(m.rate, 100000000000000) END AS rate,
       least(greatest(floor(($1::float8 / 1000000 - date_part('epoch', {anchor})) / 3600), 0), 50000)::bigint AS hours,
       {anchor} AS anchor, m.carry, m.rate AS first_rate, m.rate_changes

-- name: sums
organization, sum(rate) AS burn, sum((carry + rate * hours) / {unit_u}) FILTER (WHERE hours > 0) * {unit} AS owed

-- name: watched
SELECT organization_id AS organization FROM billing_standings
 WHERE watched AND organization_id > $2::uuid ORDER BY organization_id LIMIT $3

-- name: all
SELECT id AS organization FROM organizations WHERE id > $2::uuid ORDER BY id LIMIT $3

-- name: listed
SELECT value::uuid AS organization FROM jsonb_array_elements_text($2::jsonb)

-- Statements.

-- name: context
WITH clock AS (SELECT coalesce($1::bigint, (extract(epoch FROM now()) * 1000000)::bigint) AS now),
     good AS (SELECT (extract(epoch FROM finished_at) * 1000000)::bigint AS at FROM scheduler_runs
               WHERE job = $2 AND status = 'done'
                 AND started_at > timestamptz 'epoch' + ((SELECT now FROM clock) - $4) * interval '1 microsecond'),
     gaps AS (SELECT at, lag(at) OVER (ORDER BY at) AS earlier FROM good)
SELECT (SELECT now FROM clock) AS now, (SELECT max(at) FROM good) AS last_run,
       (SELECT max(at) FROM gaps WHERE earlier IS NULL OR at - earlier > $3) AS works_since,
       EXISTS (SELECT FROM scheduler_fencing WHERE job = $2 AND halt IS NOT NULL)
       OR coalesce((SELECT r.details ->> 'spike' FROM scheduler_runs r
                     WHERE r.job = $2 AND r.status IN ('done', 'dead', 'retrying')
                     ORDER BY r.started_at DESC, r.id DESC LIMIT 1), '') <> '' AS waits,
       EXISTS (SELECT FROM billing_deliveries
                WHERE status = 'pending' AND next_at <= timestamptz 'epoch' + (SELECT now FROM clock) * interval '1 microsecond') AS is_due,
       coalesce((SELECT max(id) FROM scheduler_audit_log WHERE action = $5), 0)
       > coalesce((SELECT max(id) FROM scheduler_audit_log WHERE action = $6), 0) AS is_restored

-- name: facts
WITH selected AS MATERIALIZED ({selected}),
     spent AS MATERIALIZED (
         SELECT {sums},
                jsonb_agg(jsonb_build_array(plan, provider, backups, CASE WHEN anchor > '-infinity' AND anchor < '290000-01-01Z'
                          THEN (extract(epoch FROM anchor) * 1000000)::bigint END, first_rate, carry, rate_changes))
                FILTER (WHERE rate IS NULL AND instance IS NOT NULL) AS details
           FROM (SELECT selected.organization, {spending}
                  FROM selected LEFT JOIN vps_instances v ON v.organization_id = selected.organization
                 LEFT JOIN billing_meters m ON m.instance_id = v.id) AS i
          GROUP BY organization),
     owned AS MATERIALIZED (
         SELECT organization_id, jsonb_agg(jsonb_build_array(
                    CASE WHEN abs(balance) < 100000000000000 THEN (balance * 10000)::bigint END, currency))::text AS wallets
           FROM wallets WHERE organization_id IN (SELECT organization FROM selected) GROUP BY organization_id)
SELECT p.organization::text AS organization, (SELECT o.name FROM organizations o WHERE o.id = p.organization) AS name,
       t.state, (extract(epoch FROM t.since) * 1000000)::bigint AS since, t.watched, t.episode,
       t.level, t.runway_hours, (extract(epoch FROM t.exhausted_at) * 1000000)::bigint AS exhausted_at, t.epoch, t.desired,
       w.wallets,
       y.mode AS policy_mode, y.credit_limit, (extract(epoch FROM y.never_suspend_until) * 1000000)::bigint AS never_suspend_until,
       least(coalesce(p.burn, 0), 9e18)::bigint AS burn, least(coalesce(p.owed, 0), 4e18)::bigint AS owed, p.details::text AS details,
       (SELECT coalesce(sum(least(h.amount_due, 1000000000000000)), 0)::bigint FROM billing_holds h
         WHERE h.closed_at IS NULL AND h.organization_id = p.organization
           AND NOT EXISTS (SELECT FROM vps_instances v WHERE v.id = h.instance_id AND v.organization_id = h.organization_id))
       AS owed_before,
       EXISTS (SELECT FROM billing_holds h
                WHERE h.closed_at IS NULL AND h.organization_id = p.organization AND h.reason = 'catch_up_limit') AS waits,
       (SELECT jsonb_agg(jsonb_build_array(n.level, (extract(epoch FROM n.created_at) * 1000000)::bigint, n.passed,
                   n.event_id IS NOT NULL, (extract(epoch FROM n.delivered_at) * 1000000)::bigint))::text
          FROM billing_notices n WHERE n.organization_id = p.organization AND n.episode = coalesce(t.episode, 0)) AS notices
  FROM spent p
  LEFT JOIN billing_standings t ON t.organization_id = p.organization
  LEFT JOIN owned w ON w.organization_id = p.organization
  LEFT JOIN billing_policies y ON y.organization_id = p.organization
 ORDER BY p.organization

-- name: low
SELECT p.organization::text AS organization
  FROM (SELECT {sums}, count(*) FILTER (WHERE rate IS NULL) AS details
          FROM (SELECT v.organization_id AS organization, {spending} FROM vps_instances v LEFT JOIN billing_meters m ON m.instance_id = v.id
                 WHERE v.organization_id > $2::uuid) AS i
         GROUP BY organization) AS p
  LEFT JOIN (SELECT organization_id, count(*) AS wallets, max(currency) AS currency,
                    max(CASE WHEN abs(balance) < 100000000000000 THEN (balance * 10000)::bigint END) AS balance
               FROM wallets GROUP BY organization_id) AS w ON w.organization_id = p.organization
  LEFT JOIN billing_standings t ON t.organization_id = p.organization
 WHERE t.watched IS NOT TRUE
   AND (p.details > 0 OR w.wallets IS DISTINCT FROM 1 OR w.balance IS NULL OR w.currency ~ '^[A-Z]{3}$' IS NOT TRUE
        OR (w.balance - coalesce(p.owed, 0)) * {ten_thousandth_u} < p.burn * $4)
 ORDER BY p.organization LIMIT $3

-- name: whole_table_settings
SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true), set_config('work_mem', '64MB', true)

-- name: settings
-- Row-level security hides a wallet from a lock without the first setting. The others are those of a batch of billing.
SELECT set_config('app.current_user_is_admin', 'true', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)

-- name: check_fence
SELECT 1 AS held FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
 WHERE f.job = $1 AND f.fencing_token = $2 AND s.fencing_token = $2 FOR SHARE OF f

-- name: lock_wallets
SELECT w.id FROM wallets w
 WHERE w.organization_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))
 ORDER BY w.id FOR NO KEY UPDATE OF w

-- name: write_standings
INSERT INTO billing_standings (organization_id, state, since, watched, episode, level, burn, owed, runway_hours, exhausted_at, epoch,
                               desired, evaluated_at)
SELECT d.organization, d.state, timestamptz 'epoch' + d.since * interval '1 microsecond', d.watched, d.episode, d.level, d.burn,
       d.owed, d.runway_hours, timestamptz 'epoch' + d.exhausted_at * interval '1 microsecond', d.epoch, d.desired,
       timestamptz 'epoch' + d.evaluated_at * interval '1 microsecond'
  FROM jsonb_to_recordset($1::jsonb) AS d (organization uuid, state text, since bigint, watched boolean, episode bigint, level integer,
       burn bigint, owed bigint, runway_hours bigint, exhausted_at bigint, epoch bigint, desired text, evaluated_at bigint)
ON CONFLICT (organization_id) DO UPDATE
   SET state = excluded.state, since = excluded.since, watched = excluded.watched, episode = excluded.episode, level = excluded.level,
       burn = excluded.burn, owed = excluded.owed, runway_hours = excluded.runway_hours, exhausted_at = excluded.exhausted_at,
       epoch = excluded.epoch, desired = excluded.desired, evaluated_at = excluded.evaluated_at

-- name: insert_notices
-- A notice that was only recorded is replaced when it is sent. Any other one stays, and then a row is missing in the result.
INSERT INTO billing_notices (organization_id, episode, level, event_id, passed, created_at)
SELECT d.organization, d.episode, d.level, d.event_id, d.passed, timestamptz 'epoch' + d.created_at * interval '1 microsecond'
  FROM jsonb_to_recordset($1::jsonb)
       AS d (organization uuid, episode bigint, level integer, event_id uuid, passed boolean, created_at bigint)
ON CONFLICT (organization_id, episode, level) DO UPDATE
   SET event_id = excluded.event_id, passed = excluded.passed, created_at = excluded.created_at
 WHERE billing_notices.event_id IS NULL AND NOT billing_notices.passed AND (excluded.event_id IS NOT NULL OR excluded.passed)

-- name: insert_events
INSERT INTO billing_events (id, type, organization_id, epoch, body, created_at)
SELECT d.id, d.type, d.organization, d.epoch, d.body, timestamptz 'epoch' + d.created_at * interval '1 microsecond'
  FROM jsonb_to_recordset($1::jsonb) AS d (id uuid, type text, organization uuid, epoch bigint, body text, created_at bigint)

-- name: insert_deliveries
INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, next_at)
SELECT d.event_id, d.endpoint, d.organization, d.needed, timestamptz 'epoch' + d.next_at * interval '1 microsecond'
  FROM jsonb_to_recordset($1::jsonb) AS d (event_id uuid, endpoint text, organization uuid, needed boolean, next_at bigint)

-- name: supersede
UPDATE billing_deliveries SET status = 'superseded', claimed_until = NULL
 WHERE status = 'pending' AND event_id IN (
       SELECT e.id FROM billing_events e
        WHERE e.epoch IS NOT NULL AND e.organization_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb)))

-- name: instances
SELECT organization_id::text AS organization, id::text AS id, provider_instance_id, label
  FROM (SELECT v.*, row_number() OVER (PARTITION BY v.organization_id ORDER BY v.id) AS position FROM vps_instances v
         WHERE v.organization_id IN (SELECT value::uuid FROM jsonb_array_elements_text($1::jsonb))) AS v
 WHERE position <= $2 ORDER BY v.organization_id, v.id

-- name: present
coalesce(timestamptz 'epoch' + $1::bigint * interval '1 microsecond', now())

-- name: claim_deliveries
WITH due AS (
    SELECT d.event_id FROM billing_deliveries d
     WHERE d.status = 'pending' AND d.endpoint = $2 AND d.next_at <= {present}
       AND (d.claimed_until IS NULL OR d.claimed_until <= {present})
       AND (NOT $5 OR EXISTS (SELECT FROM billing_events e WHERE e.id = d.event_id AND e.epoch IS NOT NULL))
       AND NOT EXISTS (SELECT FROM billing_deliveries g WHERE g.endpoint = $2 AND g.status = 'dead' AND g.last_code = 410)
       AND NOT EXISTS (SELECT FROM billing_deliveries o
                        WHERE o.endpoint = $2 AND o.organization_id = d.organization_id AND o.claimed_until > {present})
     ORDER BY d.next_at, d.event_id LIMIT $3 FOR UPDATE OF d SKIP LOCKED)
UPDATE billing_deliveries d SET claimed_until = {present} + $4 * interval '1 microsecond', attempts = d.attempts + 1
  FROM due WHERE d.event_id = due.event_id AND d.endpoint = $2
RETURNING d.event_id::text AS event, d.organization_id::text AS organization, d.attempts,
          (SELECT e.type FROM billing_events e WHERE e.id = d.event_id) AS type,
          (SELECT e.body FROM billing_events e WHERE e.id = d.event_id) AS body,
          (SELECT e.epoch FROM billing_events e WHERE e.id = d.event_id) AS epoch

-- name: lock_standing
SELECT 1 AS locked FROM billing_standings WHERE organization_id = $1::uuid FOR NO KEY UPDATE

-- name: settle_delivery
UPDATE billing_deliveries
   SET status = $5, next_at = CASE WHEN $5 = 'pending' THEN {present} + $6 * interval '1 microsecond' ELSE next_at END,
       claimed_until = NULL, last_code = $7, last_error = $8, sent_at = CASE WHEN $5 = 'sent' THEN {present} END
 WHERE event_id = $2::uuid AND endpoint = $3 AND attempts = $4 AND status = 'pending'

-- name: postpone_delivery
UPDATE billing_deliveries
   SET next_at = {present} + $5 * interval '1 microsecond', claimed_until = NULL, attempts = attempts - 1, last_error = $6
 WHERE event_id = $2::uuid AND endpoint = $3 AND attempts = $4 AND status = 'pending'

-- name: is_accepted
EXISTS (SELECT FROM billing_deliveries WHERE event_id = $2::uuid AND needed AND status = 'sent')
   AND NOT EXISTS (SELECT FROM billing_deliveries WHERE event_id = $2::uuid AND needed AND status <> 'sent')

-- name: confirm_notice
UPDATE billing_notices SET delivered_at = {present}
 WHERE organization_id = $3::uuid AND event_id = $2::uuid AND delivered_at IS NULL AND {is_accepted}

-- name: acknowledge
UPDATE billing_standings SET acked_epoch = epoch, acked_at = {present}
 WHERE organization_id = $3::uuid AND epoch = (SELECT epoch FROM billing_events WHERE id = $2::uuid) AND {is_accepted}

-- name: standings
SELECT organization_id::text AS organization FROM billing_standings WHERE organization_id > $1::uuid ORDER BY billing_standings.organization_id LIMIT $2

-- name: wanted_columns
SELECT organization_id::text AS organization, state, desired, epoch, acked_epoch, (extract(epoch FROM since) * 1000000)::bigint AS since FROM billing_standings

-- name: wanted
{wanted_columns}
 WHERE organization_id > $1::uuid AND ($3::text = '' OR desired = $3::text) ORDER BY billing_standings.organization_id LIMIT $2

-- name: wanted_of
SELECT $1::text AS organization, coalesce(t.state, 'ok') AS state, coalesce(t.desired, 'running') AS desired, t.epoch, t.acked_epoch,
       (extract(epoch FROM t.since) * 1000000)::bigint AS since
  FROM (SELECT 1 AS one) AS c LEFT JOIN billing_standings t ON t.organization_id = $1::uuid
 WHERE t.organization_id IS NOT NULL OR EXISTS (SELECT 1 FROM organizations o WHERE o.id = $1::uuid)

-- name: problems
SELECT body FROM billing_events WHERE organization_id IS NULL AND type IN ($1, $2) ORDER BY created_at, id

-- name: recipient
SELECT coalesce((SELECT contact FROM billing_policies WHERE organization_id = $1::uuid),
                (SELECT u.email FROM organizations o JOIN users u ON u.id = o.owner_id WHERE o.id = $1::uuid))::text AS email
