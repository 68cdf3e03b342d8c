-- The tables of the scheduler. A claim of a job has a fencing token, which is greater than all earlier ones.

-- One row per job: who holds its lease, and what of its schedule is finished with.
CREATE TABLE IF NOT EXISTS scheduler_jobs (
    job text PRIMARY KEY,
    fencing_token bigint NOT NULL DEFAULT 0,
    holder text,
    claimed_by uuid,
    expires_at timestamptz,
    cursor_at timestamptz NOT NULL,
    retry_scheduled_at timestamptz,
    retry_not_before timestamptz,
    failed_attempts integer NOT NULL DEFAULT 0 CHECK (failed_attempts >= 0),
    last_error text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    schedule text,
    next_at timestamptz,
    late_at timestamptz,
    stuck_at timestamptz,
    replaced_schedules text
);

-- One row per job: the newest fencing token, under which alone work may be committed. A transaction of a job locks it FOR SHARE, so
-- renewal of the lease, which would wait behind that, happens in the other table. `last_success_at` is written by billing alone: once
-- billing has not succeeded for `hand_back_after_seconds` since then, heartbeats end and the panel may charge. While `halt` is set,
-- neither a daemon nor the panel charges: a committed batch is missing (JSON: which one, and who found that).
CREATE TABLE IF NOT EXISTS scheduler_fencing (
    job text PRIMARY KEY,
    fencing_token bigint NOT NULL DEFAULT 0,
    last_success_at timestamptz,
    hand_back_after_seconds bigint NOT NULL DEFAULT 4500 CHECK (hand_back_after_seconds > 0),
    halt text
);

-- Every scheduled time leaves a row. `node` is empty for a job that runs once for all daemons.
CREATE TABLE IF NOT EXISTS scheduler_runs (
    id uuid PRIMARY KEY,
    job text NOT NULL,
    node text NOT NULL DEFAULT '',
    scheduled_at timestamptz NOT NULL,
    status text NOT NULL
        CHECK (status IN ('done', 'retrying', 'dead', 'interrupted', 'skipped', 'missed', 'paused', 'rescheduled')),
    cause text NOT NULL DEFAULT 'schedule' CHECK (cause IN ('schedule', 'manual', 'replay', 'queue')),
    attempt integer NOT NULL DEFAULT 0,
    fencing_token bigint NOT NULL,
    daemon_id text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    lateness_ms bigint NOT NULL DEFAULT 0,
    items bigint NOT NULL DEFAULT 0,
    reason text,
    error text,
    details jsonb,
    scheduled_from timestamptz,
    scheduled_count bigint NOT NULL DEFAULT 1,
    request_id uuid
);
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
    id uuid PRIMARY KEY,
    job text NOT NULL,
    paused_at timestamptz NOT NULL,
    paused_by text NOT NULL,
    reason text,
    resumed_at timestamptz,
    resumed_by text
);
CREATE UNIQUE INDEX IF NOT EXISTS scheduler_pauses_one_open ON scheduler_pauses (job) WHERE resumed_at IS NULL;
CREATE INDEX IF NOT EXISTS scheduler_pauses_by_job ON scheduler_pauses (job, resumed_at);

-- Open control requests. The run that answers a request deletes its row. `fencing_token` is the claim that a request to cancel
-- refers to.
CREATE TABLE IF NOT EXISTS scheduler_requests (
    id uuid PRIMARY KEY,
    job text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run_now', 'replay', 'reset', 'cancel')),
    scheduled_at timestamptz,
    fencing_token bigint,
    requested_at timestamptz NOT NULL,
    requested_by text NOT NULL,
    reason text
);
CREATE INDEX IF NOT EXISTS scheduler_requests_by_job ON scheduler_requests (job);

-- One-off jobs with a payload. `fencing_token` is the number of the last claim, made by `holder`; the claim is in force until
-- `expires_at`. A finished job is kept for a while, so that its id cannot be added again. A claim changes no column of an index: half of
-- each page is left free for it, so that it adds no entry to an index.
CREATE TABLE IF NOT EXISTS scheduler_queue (
    id uuid PRIMARY KEY,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    scheduled_at timestamptz NOT NULL,
    not_before timestamptz NOT NULL,
    priority integer NOT NULL DEFAULT 0,
    unique_key text,
    failed_attempts integer NOT NULL DEFAULT 0 CHECK (failed_attempts >= 0),
    fencing_token bigint NOT NULL DEFAULT 0,
    holder text,
    expires_at timestamptz,
    finished_at timestamptz
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS scheduler_queue_due ON scheduler_queue (kind, priority DESC, not_before, id) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS scheduler_queue_unique_key ON scheduler_queue (kind, unique_key)
    WHERE finished_at IS NULL AND unique_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS scheduler_queue_finished ON scheduler_queue (finished_at) WHERE finished_at IS NOT NULL;

-- Every change and control request of an operator: append-only. Ids have no gaps, and each row holds the hash of the row
-- before it (see the module audit_log of billing-store), so that a row that was changed or taken out is found.
CREATE TABLE IF NOT EXISTS scheduler_audit_log (
    id bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    job text NOT NULL,
    reason text,
    details text NOT NULL,
    previous_hash text NOT NULL,
    hash text NOT NULL
);

CREATE OR REPLACE FUNCTION scheduler_audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'scheduler_audit_log is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
DROP TRIGGER IF EXISTS scheduler_audit_log_append_only ON scheduler_audit_log;
CREATE TRIGGER scheduler_audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON scheduler_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_audit_log_is_append_only();
