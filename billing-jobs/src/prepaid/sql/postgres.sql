-- What the statements of the prepaid policy contain on PostgreSQL alone.

-- name: now
(extract(epoch FROM now()) * 1000000)::bigint

-- name: present
coalesce(timestamptz 'epoch' + $1::bigint * interval '1 microsecond', now())

-- name: least
least

-- name: most
4e18

-- name: anchor
-- Where the first unpaid hour of the instance `v` with the meter `m` begins. Missing times do not count.
greatest(m.billed_through, v.last_billed_at, CASE WHEN m.instance_id IS NULL THEN v.created_at END)

-- name: hours
-- As a floating-point number an infinite instant is one that is too far away.
least(greatest(floor(($1::float8 / 1000000 - date_part('epoch', {anchor})) / 3600), 0), 50000)::bigint

-- name: known_anchor
CASE WHEN anchor > '-infinity' AND anchor < '290000-01-01Z' THEN (extract(epoch FROM anchor) * 1000000)::bigint END

-- name: balance
CASE WHEN abs(balance) < 100000000000000 THEN (balance * 10000)::bigint END

-- name: is_currency
w.currency ~ '^[A-Z]{3}$'

-- name: for_share
FOR SHARE OF f

-- name: skip_locked
FOR UPDATE OF d SKIP LOCKED

-- name: whole_table_settings
SELECT set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true), set_config('work_mem', '64MB', true)

-- name: settings
-- Row-level security hides a wallet from a lock without the first setting. The others are those of a batch of billing.
SELECT set_config('app.current_user_is_admin', 'true', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)

-- name: lock_wallets
SELECT w.id FROM wallets w WHERE w.organization_id IN (ids!($1)) ORDER BY w.id FOR NO KEY UPDATE OF w

-- name: lock_standing
SELECT 1 AS locked FROM billing_standings WHERE organization_id = id!($1) FOR NO KEY UPDATE
