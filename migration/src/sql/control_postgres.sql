-- Where an answer to a request is looked for, and the newest rows of all jobs.
CREATE INDEX IF NOT EXISTS scheduler_runs_by_request ON scheduler_runs (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS scheduler_runs_by_time ON scheduler_runs (started_at DESC);

-- Whose machines are held, for a batch of organizations.
CREATE INDEX IF NOT EXISTS billing_holds_open_by_organization ON billing_holds (organization_id) WHERE closed_at IS NULL;

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

-- What was asked for and not answered yet. The row goes with the run that answers it. `fencing_token` is the claim that a wish to
-- cancel means.
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

-- Everything that people ever changed or asked of a job: append-only. Ids have no gaps, and each row holds the hash of the row
-- before it (see the record module of billing-jobs), so that a row that was changed or taken out is found.
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
