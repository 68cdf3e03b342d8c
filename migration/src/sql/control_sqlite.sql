-- As on PostgreSQL, with instants in microseconds since 1970 in UTC.
CREATE INDEX IF NOT EXISTS billing_job_runs_by_request ON billing_job_runs (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS billing_job_runs_by_time ON billing_job_runs (started_at DESC);

-- Whose machines are held, for a batch of organizations.
CREATE INDEX IF NOT EXISTS billing_holds_open_by_organization ON billing_holds (organization_id) WHERE closed_at IS NULL;

-- When a job was paused, by whom and why; open while it is. One that is over is history, and counts until the cursor of the
-- job is behind it.
CREATE TABLE IF NOT EXISTS billing_job_pauses (
    id TEXT PRIMARY KEY NOT NULL,
    job TEXT NOT NULL,
    paused_at INTEGER NOT NULL,
    paused_by TEXT NOT NULL,
    reason TEXT,
    resumed_at INTEGER,
    resumed_by TEXT
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS billing_job_pauses_one_open ON billing_job_pauses (job) WHERE resumed_at IS NULL;
CREATE INDEX IF NOT EXISTS billing_job_pauses_by_job ON billing_job_pauses (job, resumed_at);

-- What was asked for and not answered yet. The row goes with the run that answers it. `fence` is the claim that a wish to
-- cancel means.
CREATE TABLE IF NOT EXISTS billing_job_requests (
    id TEXT PRIMARY KEY NOT NULL,
    job TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('trigger', 'replay', 'reset', 'cancel')),
    scheduled_at INTEGER,
    fence INTEGER,
    requested_at INTEGER NOT NULL,
    requested_by TEXT NOT NULL,
    reason TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS billing_job_requests_by_job ON billing_job_requests (job);

-- Everything that people ever changed or asked of a job: append-only. Ids have no gaps, and each row holds the hash of the row
-- before it (see the record module of billing-jobs), so that a row that was changed or taken out is found.
CREATE TABLE IF NOT EXISTS billing_job_audit (
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

CREATE TRIGGER IF NOT EXISTS billing_job_audit_no_update BEFORE UPDATE ON billing_job_audit
BEGIN SELECT RAISE(ABORT, 'billing_job_audit is append-only: an UPDATE is refused'); END;
CREATE TRIGGER IF NOT EXISTS billing_job_audit_no_delete BEFORE DELETE ON billing_job_audit
BEGIN SELECT RAISE(ABORT, 'billing_job_audit is append-only: a DELETE is refused'); END;
