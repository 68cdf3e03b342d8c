-- The tables of the scheduler, as on PostgreSQL, with instants in microseconds since 1970 in UTC.

-- One row per job: who holds its lease, and what of its schedule is finished with.
CREATE TABLE IF NOT EXISTS scheduler_jobs (
    job TEXT PRIMARY KEY NOT NULL,
    fencing_token INTEGER NOT NULL DEFAULT 0,
    holder TEXT,
    claimed_by TEXT,
    expires_at INTEGER,
    cursor_at INTEGER NOT NULL,
    retry_scheduled_at INTEGER,
    retry_not_before INTEGER,
    failed_attempts INTEGER NOT NULL DEFAULT 0 CHECK (failed_attempts >= 0),
    last_error TEXT,
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)),
    schedule TEXT,
    next_at INTEGER,
    late_at INTEGER,
    stuck_at INTEGER,
    replaced_schedules TEXT
) STRICT;

-- One row per job: the newest fencing token, under which alone work may be committed. A transaction of a job locks it FOR SHARE, so
-- renewal of the lease, which would wait behind that, happens in the other table. `last_success_at` is written by billing alone: once
-- billing has not succeeded for `hand_back_after_seconds` since then, heartbeats end and the panel may charge. While `halt` is set,
-- neither a daemon nor the panel charges: a committed batch is missing (JSON: which one, and who found that).
CREATE TABLE IF NOT EXISTS scheduler_fencing (
    job TEXT PRIMARY KEY NOT NULL,
    fencing_token INTEGER NOT NULL DEFAULT 0,
    last_success_at INTEGER,
    hand_back_after_seconds INTEGER NOT NULL DEFAULT 4500 CHECK (hand_back_after_seconds > 0),
    halt TEXT
) STRICT;

-- Every scheduled time leaves a row. `node` is empty for a job that runs once for all daemons.
CREATE TABLE IF NOT EXISTS scheduler_runs (
    id TEXT PRIMARY KEY NOT NULL,
    job TEXT NOT NULL,
    node TEXT NOT NULL DEFAULT '',
    scheduled_at INTEGER NOT NULL,
    status TEXT NOT NULL
        CHECK (status IN ('done', 'retrying', 'dead', 'interrupted', 'skipped', 'missed', 'paused', 'rescheduled')),
    cause TEXT NOT NULL DEFAULT 'schedule' CHECK (cause IN ('schedule', 'manual', 'replay', 'queue')),
    attempt INTEGER NOT NULL DEFAULT 0,
    fencing_token INTEGER NOT NULL,
    daemon_id TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    lateness_ms INTEGER NOT NULL DEFAULT 0,
    items INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    error TEXT,
    details TEXT,
    scheduled_from INTEGER,
    scheduled_count INTEGER NOT NULL DEFAULT 1,
    request_id TEXT
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS scheduler_runs_finished_once
    ON scheduler_runs (job, node, scheduled_at)
    WHERE status IN ('done', 'dead') AND cause = 'schedule';
CREATE INDEX IF NOT EXISTS scheduler_runs_by_job ON scheduler_runs (job, started_at DESC);
-- The rows of one scheduled time: its own, and those of a range that has it. A queued job has no scheduled time.
CREATE INDEX IF NOT EXISTS scheduler_runs_by_scheduled_time ON scheduler_runs (job, scheduled_at) WHERE cause <> 'queue';
CREATE INDEX IF NOT EXISTS scheduler_runs_of_ranges ON scheduler_runs (job, scheduled_at) WHERE scheduled_from IS NOT NULL;
-- The answer to a request, and the newest rows of all jobs.
CREATE INDEX IF NOT EXISTS scheduler_runs_by_request ON scheduler_runs (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS scheduler_runs_by_time ON scheduler_runs (started_at DESC);

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

-- Open control requests. The run that answers a request deletes its row. `fencing_token` is the claim that a request to cancel
-- refers to.
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

-- One-off jobs with a payload. `fencing_token` is the number of the last claim, made by `holder`; the claim is in force until
-- `expires_at`. A finished job is kept for a while, so that its id cannot be added again.
CREATE TABLE IF NOT EXISTS scheduler_queue (
    id TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    scheduled_at INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    priority INTEGER NOT NULL DEFAULT 0,
    unique_key TEXT,
    failed_attempts INTEGER NOT NULL DEFAULT 0 CHECK (failed_attempts >= 0),
    fencing_token INTEGER NOT NULL DEFAULT 0,
    holder TEXT,
    expires_at INTEGER,
    finished_at INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS scheduler_queue_due ON scheduler_queue (kind, priority DESC, not_before, id) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS scheduler_queue_unique_key ON scheduler_queue (kind, unique_key)
    WHERE finished_at IS NULL AND unique_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS scheduler_queue_finished ON scheduler_queue (finished_at) WHERE finished_at IS NOT NULL;

-- Every change and control request of an operator: append-only. Ids have no gaps, and each row holds the hash of the row
-- before it (see the module audit_log of billing-store), so that a row that was changed or taken out is found.
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
