-- What the statements of the prepaid policy contain on SQLite alone. A transaction that writes is the only writer from its beginning, so it
-- locks nothing.

-- name: now
CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)

-- name: present
coalesce($1, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER))

-- name: least
min

-- name: most
4000000000000000000

-- name: anchor
-- Where the first unpaid hour of the instance `v` with the meter `m` begins. Missing times do not count.
max(coalesce(m.billed_through, 0), coalesce({last_billed_at}, 0),
    CASE WHEN m.instance_id IS NULL THEN coalesce({created_at}, 0) ELSE 0 END)

-- name: hours
CASE WHEN {anchor} > 0 THEN min(max(($1 - {anchor}) / 3600000000, 0), 50000) ELSE 0 END

-- name: known_anchor
anchor

-- name: balance
balance

-- name: is_currency
w.currency GLOB '[A-Z][A-Z][A-Z]'

-- name: for_share

-- name: skip_locked
