-- The statements of the prepaid policy. `mod.rs` describes each. `{name}` is replaced with the text of the section `name`, here or in the
-- file of the database, and a name with `!` and arguments with what `macros.rs` writes for the database. Instants are parameters and
-- results in microseconds since 1970.

-- name: spending
-- What each instance `v` with the meter `m` costs and owes. $1 is the present. `rate` is NULL where the rates of the unpaid hours must be
-- decided in Rust. No product is larger than 64 bits.
v.id AS instance, v.plan_id AS "plan", {v_provider} AS provider, {v_backups} AS backups,
       CASE WHEN m.rate_changes IS NULL AND m.rate >= 0 THEN {least}(m.rate, 100000000000000) END AS rate,
       {hours} AS hours, {anchor} AS anchor, m.carry, m.rate AS first_rate, m.rate_changes

-- name: sums
organization, sum(rate) AS burn, sum((carry + rate * hours) / {unit_u}) FILTER (WHERE hours > 0) * {unit} AS owed

-- name: watched
SELECT organization_id AS organization FROM billing_standings
 WHERE watched AND organization_id > id!($2) ORDER BY organization_id LIMIT $3

-- name: all
SELECT id AS organization FROM organizations WHERE id > id!($2) ORDER BY id LIMIT $3

-- name: listed
SELECT id AS organization FROM (ids!($2)) AS ids

-- name: context
WITH clock AS (SELECT coalesce($1, {now}) AS now),
     good AS (SELECT micros!(finished_at) AS at FROM scheduler_runs
               WHERE job = $2 AND status = 'done' AND started_at > instant!((SELECT now FROM clock) - $4)),
     gaps AS (SELECT at, lag(at) OVER (ORDER BY at) AS earlier FROM good)
SELECT (SELECT now FROM clock) AS now, (SELECT max(at) FROM good) AS last_run,
       (SELECT max(at) FROM gaps WHERE earlier IS NULL OR at - earlier > $3) AS works_since,
       EXISTS (SELECT 1 FROM scheduler_fencing WHERE job = $2 AND halt IS NOT NULL)
       OR coalesce((SELECT r.details ->> 'spike' FROM scheduler_runs r
                     WHERE r.job = $2 AND r.status IN ('done', 'dead', 'retrying')
                     ORDER BY r.started_at DESC, r.id DESC LIMIT 1), '') <> '' AS waits,
       EXISTS (SELECT 1 FROM billing_deliveries
                WHERE status = 'pending' AND next_at <= instant!((SELECT now FROM clock))) AS is_due,
       coalesce((SELECT max(id) FROM scheduler_audit_log WHERE action = $5), 0)
       > coalesce((SELECT max(id) FROM scheduler_audit_log WHERE action = $6), 0) AS is_restored

-- name: facts
WITH selected AS MATERIALIZED ({selected}),
     spent AS MATERIALIZED (
         SELECT {sums},
                list!("plan", provider, backups, {known_anchor}, first_rate, carry, rate_changes)
                FILTER (WHERE rate IS NULL AND instance IS NOT NULL) AS details
           FROM (SELECT selected.organization, {spending}
                  FROM selected LEFT JOIN vps_instances v ON v.organization_id = selected.organization
                 LEFT JOIN billing_meters m ON m.instance_id = v.id) AS i
          GROUP BY organization),
     owned AS MATERIALIZED (
         SELECT organization_id, text!(list!({balance}, currency)) AS wallets
           FROM wallets WHERE organization_id IN (SELECT organization FROM selected) GROUP BY organization_id)
SELECT text!(p.organization) AS organization, (SELECT o.name FROM organizations o WHERE o.id = p.organization) AS name,
       t.state, micros!(t.since) AS since, t.watched, t.episode, t.level, t.runway_hours, micros!(t.exhausted_at) AS exhausted_at,
       t.order_number, t.desired, w.wallets, y.mode AS policy_mode, y.credit_limit,
       micros!(y.never_suspend_until) AS never_suspend_until,
       number!({least}(coalesce(p.burn, 0), {most})) AS burn, number!({least}(coalesce(p.owed, 0), {most})) AS owed,
       nullif(text!(p.details), '[]') AS details,
       (SELECT number!(coalesce(sum({least}(h.amount_due, 1000000000000000)), 0)) FROM billing_holds h
         WHERE h.closed_at IS NULL AND h.organization_id = p.organization
           AND NOT EXISTS (SELECT 1 FROM vps_instances v WHERE v.id = h.instance_id AND v.organization_id = h.organization_id))
       AS owed_before,
       EXISTS (SELECT 1 FROM billing_holds h
                WHERE h.closed_at IS NULL AND h.organization_id = p.organization AND h.reason = 'catch_up_limit') AS waits,
       (SELECT text!(list!(n.level, micros!(n.created_at), flag!(n.passed), flag!(n.event_id IS NOT NULL), micros!(n.delivered_at)))
          FROM billing_notices n WHERE n.organization_id = p.organization AND n.episode = coalesce(t.episode, 0)) AS notices
  FROM spent p
  LEFT JOIN billing_standings t ON t.organization_id = p.organization
  LEFT JOIN owned w ON w.organization_id = p.organization
  LEFT JOIN billing_policies y ON y.organization_id = p.organization
 ORDER BY p.organization

-- name: low
SELECT text!(p.organization) AS organization
  FROM (SELECT {sums}, count(*) FILTER (WHERE rate IS NULL) AS details
          FROM (SELECT v.organization_id AS organization, {spending} FROM vps_instances v LEFT JOIN billing_meters m ON m.instance_id = v.id
                 WHERE v.organization_id > id!($2)) AS i
         GROUP BY organization) AS p
  LEFT JOIN (SELECT organization_id, count(*) AS wallets, max(currency) AS currency, max({balance}) AS balance
               FROM wallets GROUP BY organization_id) AS w ON w.organization_id = p.organization
  LEFT JOIN billing_standings t ON t.organization_id = p.organization
 WHERE t.watched IS NOT TRUE
   AND (p.details > 0 OR w.wallets IS DISTINCT FROM 1 OR w.balance IS NULL OR ({is_currency}) IS NOT TRUE
        OR (w.balance - coalesce(p.owed, 0)) * 1.0 * {ten_thousandth_u} < p.burn * 1.0 * $4)
 ORDER BY p.organization LIMIT $3

-- name: check_fence
SELECT 1 AS held FROM scheduler_fencing f JOIN scheduler_jobs s ON s.job = f.job
 WHERE f.job = $1 AND f.fencing_token = $2 AND s.fencing_token = $2 {for_share}

-- name: write_standings
INSERT INTO billing_standings
rows!(organization_id id, state text, since instant, watched flag, episode number, level small, burn number, owed number,
      runway_hours number, exhausted_at instant, order_number number, desired text, evaluated_at instant)
ON CONFLICT (organization_id) DO UPDATE
   SET state = excluded.state, since = excluded.since, watched = excluded.watched, episode = excluded.episode, level = excluded.level,
       burn = excluded.burn, owed = excluded.owed, runway_hours = excluded.runway_hours, exhausted_at = excluded.exhausted_at,
       order_number = excluded.order_number, desired = excluded.desired, evaluated_at = excluded.evaluated_at

-- name: insert_notices
-- A notice that was only recorded is replaced when it is sent. Any other one stays, and then a row is missing in the result.
INSERT INTO billing_notices
rows!(organization_id id, episode number, level small, event_id id, passed flag, created_at instant)
ON CONFLICT (organization_id, episode, level) DO UPDATE
   SET event_id = excluded.event_id, passed = excluded.passed, created_at = excluded.created_at
 WHERE billing_notices.event_id IS NULL AND NOT billing_notices.passed AND (excluded.event_id IS NOT NULL OR excluded.passed)

-- name: insert_events
INSERT INTO billing_events
rows!(id id, type text, organization_id id, order_number number, endpoints small, body text, created_at instant)

-- name: insert_deliveries
INSERT INTO billing_deliveries
rows!(event_id id, endpoint text, organization_id id, needed flag, next_at instant)

-- name: supersede
UPDATE billing_deliveries SET status = 'superseded', claimed_until = NULL
 WHERE status = 'pending' AND event_id IN (
       SELECT e.id FROM billing_events e WHERE e.order_number IS NOT NULL AND e.organization_id IN (ids!($1)))

-- name: instances
SELECT text!(organization_id) AS organization, text!(id) AS id, provider_instance_id, label
  FROM (SELECT v.*, row_number() OVER (PARTITION BY v.organization_id ORDER BY v.id) AS position FROM vps_instances v
         WHERE v.organization_id IN (ids!($1)) AND v.id > id!($3)) AS v
 WHERE position <= $2 ORDER BY v.organization_id, v.id

-- name: claim_deliveries
WITH due AS (
    SELECT d.event_id FROM billing_deliveries d
     WHERE d.status = 'pending' AND d.endpoint = $2 AND d.next_at <= {present}
       AND (d.claimed_until IS NULL OR d.claimed_until <= {present})
       AND (NOT $5 OR EXISTS (SELECT 1 FROM billing_events e WHERE e.id = d.event_id AND e.order_number IS NOT NULL))
       AND NOT EXISTS (SELECT 1 FROM billing_deliveries g WHERE g.endpoint = $2 AND g.status = 'dead' AND g.last_code = 410)
       AND NOT EXISTS (SELECT 1 FROM billing_deliveries o
                        WHERE o.endpoint = $2 AND o.organization_id = d.organization_id AND o.claimed_until > {present})
     ORDER BY d.next_at, d.event_id LIMIT $3 {skip_locked})
UPDATE billing_deliveries SET claimed_until = later!($4), attempts = attempts + 1
 WHERE endpoint = $2 AND event_id IN (SELECT due.event_id FROM due)
RETURNING text!(event_id) AS event, text!(organization_id) AS organization, attempts,
          (SELECT e.body FROM billing_events e WHERE e.id = event_id) AS body,
          (SELECT e.order_number FROM billing_events e WHERE e.id = event_id) AS order_number

-- name: settle_delivery
UPDATE billing_deliveries
   SET status = $5, next_at = CASE WHEN $5 = 'pending' THEN later!($6) ELSE next_at END,
       claimed_until = NULL, last_code = $7, last_error = $8, sent_at = CASE WHEN $5 = 'sent' THEN {present} END
 WHERE event_id = id!($2) AND endpoint = $3 AND attempts = $4 AND status = 'pending'

-- name: postpone_delivery
UPDATE billing_deliveries SET next_at = later!($5), claimed_until = NULL, attempts = attempts - 1, last_error = $6
 WHERE event_id = id!($2) AND endpoint = $3 AND attempts = $4 AND status = 'pending'

-- name: is_accepted
EXISTS (SELECT 1 FROM billing_deliveries WHERE event_id = id!($2) AND needed AND status = 'sent')
   AND NOT EXISTS (SELECT 1 FROM billing_deliveries WHERE event_id = id!($2) AND needed AND status <> 'sent')

-- name: confirm_notice
UPDATE billing_notices SET delivered_at = {present}
 WHERE organization_id = id!($3) AND event_id = id!($2) AND delivered_at IS NULL AND {is_accepted}

-- name: acknowledge
UPDATE billing_standings SET acked_order = order_number, acked_at = {present}
 WHERE organization_id = id!($3) AND order_number = (SELECT order_number FROM billing_events WHERE id = id!($2)) AND {is_accepted}

-- name: standings
SELECT text!(organization_id) AS organization FROM billing_standings
 WHERE organization_id > id!($1) ORDER BY billing_standings.organization_id LIMIT $2

-- name: renumber
UPDATE billing_standings SET order_number = d.order_number FROM (values!(organization_id id, order_number number)) AS d
 WHERE billing_standings.organization_id = d.organization_id

-- name: wanted
SELECT text!(organization_id) AS organization, state, desired, order_number, acked_order, micros!(since) AS since
  FROM billing_standings
 WHERE organization_id > id!($1) AND (text!($3) = '' OR desired = text!($3)) ORDER BY billing_standings.organization_id LIMIT $2

-- name: wanted_of
SELECT text!($1) AS organization, coalesce(t.state, 'ok') AS state, coalesce(t.desired, 'running') AS desired,
       t.order_number, t.acked_order, micros!(t.since) AS since
  FROM (SELECT 1 AS one) AS c LEFT JOIN billing_standings t ON t.organization_id = id!($1)
 WHERE t.organization_id IS NOT NULL OR EXISTS (SELECT 1 FROM organizations o WHERE o.id = id!($1))

-- name: problems
SELECT body FROM billing_events WHERE organization_id IS NULL AND type IN ($1, $2) ORDER BY created_at, id

-- name: recipient
SELECT y.contact, text!(u.email) AS email, text!(u.name) AS name
  FROM (SELECT 1 AS one) AS c
  LEFT JOIN billing_policies y ON y.organization_id = id!($1)
  LEFT JOIN organizations o ON o.id = id!($1)
  LEFT JOIN users u ON u.id = o.owner_id
