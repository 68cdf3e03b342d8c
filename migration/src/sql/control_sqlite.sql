-- As on PostgreSQL, with instants in microseconds since 1970 in UTC.
CREATE INDEX IF NOT EXISTS scheduler_runs_by_request ON scheduler_runs (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS scheduler_runs_by_time ON scheduler_runs (started_at DESC);

-- Whose machines are held, for a batch of organizations.
CREATE INDEX IF NOT EXISTS billing_holds_open_by_organization ON billing_holds (organization_id) WHERE closed_at IS NULL;

-- When a job was paused, by whom and why; open while it is. One that is over is history, and counts until the cursor of the
-- job is behind it.
CREATE TABLE IF NOT EXISTS scheduler_pauses (
    id TEXT PRIMARY KEY NOT NULL,
    job TEXT NOT NULL,
    paused_at INTEGER NOT NULL,
    paused_by TEXT NOT NULL,
    reason TEXT,
    resumed_at INTEGER,
    resumed_by TEXT
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS scheduler_pauses_one_open ON scheduler_pauses (job) WHERE resumed_at IS NULL;
CREATE INDEX IF NOT EXISTS scheduler_pauses_by_job ON scheduler_pauses (job, resumed_at);

-- What was asked for and not answered yet. The row goes with the run that answers it. `fencing_token` is the claim that a wish to
-- cancel means.
CREATE TABLE IF NOT EXISTS scheduler_requests (
    id TEXT PRIMARY KEY NOT NULL,
    job TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('run_now', 'replay', 'reset', 'cancel')),
    scheduled_at INTEGER,
    fencing_token INTEGER,
    requested_at INTEGER NOT NULL,
    requested_by TEXT NOT NULL,
    reason TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS scheduler_requests_by_job ON scheduler_requests (job);

-- Everything that people ever changed or asked of a job: append-only. Ids have no gaps, and each row holds the hash of the row
-- before it (see the record module of billing-jobs), so that a row that was changed or taken out is found.
CREATE TABLE IF NOT EXISTS scheduler_audit_log (
    id INTEGER PRIMARY KEY NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    job TEXT NOT NULL,
    reason TEXT,
    details TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;

CREATE TRIGGER IF NOT EXISTS scheduler_audit_log_no_update BEFORE UPDATE ON scheduler_audit_log
BEGIN SELECT RAISE(ABORT, 'scheduler_audit_log is append-only: an UPDATE is refused'); END;
CREATE TRIGGER IF NOT EXISTS scheduler_audit_log_no_delete BEFORE DELETE ON scheduler_audit_log
BEGIN SELECT RAISE(ABORT, 'scheduler_audit_log is append-only: a DELETE is refused'); END;
