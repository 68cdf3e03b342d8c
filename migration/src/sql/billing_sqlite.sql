-- The tables of billing, as on PostgreSQL: money in ten-thousandths, `rate` and `carry` in 1/730 of a millionth, instants in
-- microseconds since 1970 in UTC. No foreign key refers to the panel's tables, so that the history of a deleted instance stays.

-- One row per committed batch of a billing run. The totals of a run are the sums of its batches, separately for each
-- currency: `currencies` is an object such as {"USD": {"charges": 3, "hours": 9, "amount": 900}}. `ledger_until` is the
-- `created_at` of the batch's newest row in payment_transactions: the rows of a later batch are newer, whatever the clock does.
CREATE TABLE IF NOT EXISTS billing_batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    fencing_token INTEGER NOT NULL,
    as_of INTEGER NOT NULL,
    instances INTEGER NOT NULL CHECK (instances >= 0),
    charges INTEGER NOT NULL CHECK (charges >= 0),
    held INTEGER NOT NULL CHECK (held >= 0),
    hours INTEGER NOT NULL CHECK (hours >= 0),
    currencies TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)),
    ledger_until INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS billing_batches_by_run ON billing_batches (run_id);
CREATE INDEX IF NOT EXISTS billing_batches_by_ledger ON billing_batches (ledger_until);
CREATE INDEX IF NOT EXISTS billing_batches_by_as_of ON billing_batches (as_of);

-- The charge ledger: append-only. The key begins with the batch, so that a batch writes consecutive pages; the charges of an
-- instance are found with one search for each batch. A key of instance and period would be changed at a
-- random position by each charge, so triggers replace it: no charge begins before the watermark of its instance, and a watermark
-- never moves back.
-- `currency` is that of `amount`, or XXX without a wallet. `by_panel` marks the charges of the panel's own biller behind the panel
-- guard: `amount` and `hours` are the panel's, and `rate` is computed from them.
CREATE TABLE IF NOT EXISTS billing_charges (
    period_start INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    batch_id INTEGER NOT NULL,
    hours INTEGER NOT NULL CHECK (hours > 0),
    rate INTEGER NOT NULL CHECK (rate >= 0),
    amount INTEGER NOT NULL CHECK (amount >= 0),
    carry INTEGER NOT NULL CHECK (carry >= 0),
    payment_transaction_id TEXT,
    currency TEXT NOT NULL CHECK (currency GLOB '[A-Z][A-Z][A-Z]'),
    by_panel INTEGER NOT NULL DEFAULT 0 CHECK (by_panel IN (0, 1)),
    PRIMARY KEY (batch_id, instance_id, period_start)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS billing_charges_once BEFORE INSERT ON billing_charges
WHEN EXISTS (SELECT 1 FROM billing_meters WHERE instance_id = NEW.instance_id AND billed_through > NEW.period_start)
BEGIN SELECT RAISE(ABORT, 'billing_charges: the meter shows that this hour of the instance was charged before'); END;

CREATE TRIGGER IF NOT EXISTS billing_charges_no_update BEFORE UPDATE ON billing_charges
BEGIN SELECT RAISE(ABORT, 'billing_charges is append-only: a charge is corrected by a refund, never by an UPDATE'); END;
CREATE TRIGGER IF NOT EXISTS billing_charges_no_delete BEFORE DELETE ON billing_charges
BEGIN SELECT RAISE(ABORT, 'billing_charges is append-only: a charge is corrected by a refund, never by a DELETE'); END;

-- What is carried from charge to charge of one instance. `backup_rate` is the part of `rate` that pays for backups.
-- `rate_changes` lists [seen at, rate, backup rate] (the first in microseconds since 1970) of prices seen while hours were still
-- unpaid: hours that ended before keep the older rate. `rate` is NULL until a run has priced the instance; `panel_debited_at` is
-- the last time at which the panel's own biller charged the instance.
-- `opened_at` is when the meter was created: from then on the watermark decides, and no longer `created_at` of the instance.
-- `deleted_at` is when a run recorded that the panel deleted the instance; an instance that was seen later was restored.
CREATE TABLE IF NOT EXISTS billing_meters (
    instance_id TEXT PRIMARY KEY NOT NULL,
    organization_id TEXT NOT NULL,
    billed_through INTEGER NOT NULL,
    carry INTEGER NOT NULL CHECK (carry >= 0),
    rate INTEGER CHECK (rate >= 0),
    backup_rate INTEGER CHECK (backup_rate BETWEEN 0 AND rate),
    rate_changes TEXT,
    seen_at INTEGER NOT NULL,
    opened_at INTEGER NOT NULL,
    panel_debited_at INTEGER,
    deleted_at INTEGER
) STRICT;

CREATE TRIGGER IF NOT EXISTS billing_meters_forward BEFORE UPDATE OF instance_id, billed_through ON billing_meters
WHEN NEW.billed_through < OLD.billed_through OR NEW.instance_id <> OLD.instance_id
BEGIN SELECT RAISE(ABORT, 'billing_meters: a watermark never moves back, because hours would be charged twice'); END;
CREATE TRIGGER IF NOT EXISTS billing_meters_no_delete BEFORE DELETE ON billing_meters
BEGIN SELECT RAISE(ABORT, 'billing_meters: without its meter an instance would pay the same hours again'); END;

-- The prices that runs saw, each with the time when it was first seen: append-only, a row for each change. `backup_rate` is the part
-- of `rate` that pays for backups. An instance without a meter pays for each hour what was seen when the hour ended.
CREATE TABLE IF NOT EXISTS billing_seen_rates (
    plan_id TEXT NOT NULL,
    backups TEXT NOT NULL CHECK (backups IN ('none', 'weekly', 'daily')),
    seen_at INTEGER NOT NULL,
    rate INTEGER NOT NULL CHECK (rate >= 0),
    backup_rate INTEGER NOT NULL CHECK (backup_rate BETWEEN 0 AND rate),
    PRIMARY KEY (plan_id, backups, seen_at)
) STRICT;

-- Why an instance that is due was not charged: one open row per instance, closed when it was charged or is no longer due.
-- `closed_reason` is set where a hold was closed without a charge. An operator may accept a hold: the acceptance counts until
-- `accepted_until` (unset: without limit), and only while `reason` is still `accepted_for`.
CREATE TABLE IF NOT EXISTS billing_holds (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    label TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT,
    hours_due INTEGER CHECK (hours_due >= 0),
    amount_due INTEGER CHECK (amount_due >= 0),
    currency TEXT,
    opened_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    closed_at INTEGER,
    closed_reason TEXT CHECK (closed_reason IN ('instance_deleted', 'instance_transferred', 'written_off')),
    accepted_for TEXT,
    accepted_until INTEGER,
    accepted_by TEXT,
    accepted_note TEXT,
    CHECK (closed_reason IS NULL OR closed_at IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS billing_holds_one_open ON billing_holds (instance_id) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS billing_holds_open_by_organization ON billing_holds (organization_id) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS billing_holds_open_by_reason ON billing_holds (reason, id) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS billing_holds_uncharged ON billing_holds (closed_at) WHERE closed_reason IS NOT NULL;
CREATE INDEX IF NOT EXISTS billing_holds_by_instance ON billing_holds (instance_id);

-- The balance of each wallet and the sum of its rows in the wallet ledger before the first charge. The audit compares with them.
CREATE TABLE IF NOT EXISTS billing_wallet_openings (
    wallet_id TEXT PRIMARY KEY NOT NULL,
    organization_id TEXT NOT NULL,
    opening_balance INTEGER NOT NULL,
    opening_ledger INTEGER NOT NULL,
    opened_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER))
) STRICT;

-- What the prepaid policy has decided of each organization whose wallet was ever low. `watched` marks those that each run of the job
-- checks; of all others every instance is paid for longer than any notice is due. The figures are those of `evaluated_at`.
CREATE TABLE IF NOT EXISTS billing_standings (
    organization_id TEXT PRIMARY KEY NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ok', 'low', 'exhausted', 'suspended', 'unknown')),
    since INTEGER NOT NULL,
    watched INTEGER NOT NULL CHECK (watched IN (0, 1)),
    episode INTEGER NOT NULL CHECK (episode >= 0),
    level INTEGER CHECK (level >= -1),
    burn INTEGER CHECK (burn >= 0),
    owed INTEGER CHECK (owed >= 0),
    runway_hours INTEGER,
    exhausted_at INTEGER,
    order_number INTEGER NOT NULL CHECK (order_number >= 0),
    desired TEXT NOT NULL CHECK (desired IN ('running', 'suspended')),
    acked_order INTEGER CHECK (acked_order <= order_number),
    acked_at INTEGER,
    evaluated_at INTEGER NOT NULL,
    CHECK ((state = 'exhausted') = (exhausted_at IS NOT NULL))
) STRICT;
CREATE INDEX IF NOT EXISTS billing_standings_by_state ON billing_standings (state);
CREATE INDEX IF NOT EXISTS billing_standings_watched ON billing_standings (organization_id) WHERE watched;

-- The notices of the prepaid policy: each level at most once in an episode.
CREATE TABLE IF NOT EXISTS billing_notices (
    organization_id TEXT NOT NULL,
    episode INTEGER NOT NULL CHECK (episode >= 0),
    level INTEGER NOT NULL CHECK (level >= -1),
    event_id TEXT,
    passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
    created_at INTEGER NOT NULL,
    delivered_at INTEGER,
    PRIMARY KEY (organization_id, episode, level),
    CHECK (event_id IS NOT NULL OR delivered_at IS NULL)
) STRICT, WITHOUT ROWID;

-- What the prepaid policy sends: `body` is what is signed. An event is never changed, and stays as long as one of its deliveries, of
-- which it has as many as `endpoints`.
CREATE TABLE IF NOT EXISTS billing_events (
    id TEXT PRIMARY KEY NOT NULL,
    type TEXT NOT NULL,
    organization_id TEXT,
    order_number INTEGER,
    endpoints INTEGER NOT NULL DEFAULT 0 CHECK (endpoints >= 0),
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS billing_events_by_age ON billing_events (created_at);
CREATE INDEX IF NOT EXISTS billing_events_of_operators ON billing_events (created_at, id) WHERE organization_id IS NULL;
CREATE INDEX IF NOT EXISTS billing_events_by_organization ON billing_events (organization_id, id);
CREATE UNIQUE INDEX IF NOT EXISTS billing_events_one_order ON billing_events (organization_id, order_number)
    WHERE order_number IS NOT NULL;
CREATE TRIGGER IF NOT EXISTS billing_events_no_update BEFORE UPDATE ON billing_events
BEGIN SELECT RAISE(ABORT, 'billing_events is append-only: a receiver may have an event already'); END;

-- The deliveries of events, one for each endpoint that receives the type of the event. `attempts` identifies a claim, which ends at
-- `claimed_until`. Of an endpoint that answered 410, no delivery is attempted until an operator repeats the one that it refused.
CREATE TABLE IF NOT EXISTS billing_deliveries (
    event_id TEXT NOT NULL REFERENCES billing_events (id),
    endpoint TEXT NOT NULL,
    organization_id TEXT,
    needed INTEGER NOT NULL CHECK (needed IN (0, 1)),
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'sent', 'dead', 'superseded', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_at INTEGER NOT NULL,
    claimed_until INTEGER,
    last_code INTEGER,
    last_error TEXT,
    sent_at INTEGER,
    PRIMARY KEY (event_id, endpoint),
    CHECK ((status = 'sent') = (sent_at IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS billing_deliveries_due ON billing_deliveries (next_at) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS billing_deliveries_claimed ON billing_deliveries (endpoint, organization_id) WHERE claimed_until IS NOT NULL;
CREATE INDEX IF NOT EXISTS billing_deliveries_ended ON billing_deliveries (status, event_id) WHERE status IN ('superseded', 'cancelled');
CREATE INDEX IF NOT EXISTS billing_deliveries_dead ON billing_deliveries (endpoint) WHERE status = 'dead';

-- What applies to one organization alone. Only an operator writes it.
CREATE TABLE IF NOT EXISTS billing_policies (
    organization_id TEXT PRIMARY KEY NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('prepaid', 'postpaid', 'exempt')),
    credit_limit INTEGER NOT NULL CHECK (credit_limit >= 0),
    never_suspend_until INTEGER,
    contact TEXT,
    changed_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;

-- The newest acceptance of a restore is read by each check of the prepaid policy.
CREATE INDEX IF NOT EXISTS billing_audit_log_by_action ON scheduler_audit_log (action, id);
