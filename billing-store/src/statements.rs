//! The texts of the store's statements. Each safeguard of a lease is a condition here.

use sea_orm::DbBackend;

use crate::dialect::Dialect;

/// The statements in the dialect of one database.
pub(crate) struct Sql {
    pub(crate) insert_state: String,
    pub(crate) insert_fencing: String,
    pub(crate) claim: String,
    pub(crate) claim_unchanged: String,
    pub(crate) holder: String,
    pub(crate) raise: String,
    pub(crate) renew: String,
    pub(crate) record: String,
    pub(crate) close: Option<String>,
    pub(crate) append: String,
    pub(crate) release: String,
    pub(crate) finish: String,
}

/// The number of values in the row of a run.
pub(crate) const RUN_VALUES: usize = 19;

impl Sql {
    pub(crate) fn of(backend: DbBackend) -> Self {
        let dialect = Dialect::of(backend);
        let now = dialect.now();
        let at = |parameter: &str| dialect.at(parameter);
        let micros = |column: &str| dialect.micros(column);
        let in_ms = |parameter: &str| dialect.in_ms(parameter);
        Self {
            insert_state: format!(
                "INSERT INTO scheduler_jobs (job, cursor_at) VALUES ($1, {}) ON CONFLICT DO NOTHING",
                at("$2")
            ),
            insert_fencing: "INSERT INTO scheduler_fencing (job) VALUES ($1) ON CONFLICT DO NOTHING".to_owned(),
            claim: claim(dialect, &format!("(holder IS NULL OR expires_at <= {now})")),
            claim_unchanged: claim(dialect, &format!("fencing_token = $5 AND {} = $6", micros("expires_at"))),
            holder: format!(
                "SELECT CASE WHEN expires_at > {now} THEN holder END AS holder, {} AS claimed_by, fencing_token,
                        coalesce({}, 0) AS expires_at
                   FROM scheduler_jobs WHERE job = $1",
                dialect.cast("claimed_by", "text"),
                micros("expires_at")
            ),
            raise: "UPDATE scheduler_fencing SET fencing_token = $2 WHERE job = $1 AND fencing_token < $2".to_owned(),
            renew: format!(
                "UPDATE scheduler_jobs SET expires_at = {}, updated_at = {now}
                  WHERE job = $1 AND fencing_token = $2 AND holder = $3 AND expires_at > {now}",
                in_ms("$4")
            ),
            record: record(dialect, false),
            finish: record(dialect, true),
            close: dialect.is_sqlite().then(|| {
                let closed = closed(dialect, "$2", "$3");
                format!("DELETE FROM scheduler_requests AS q WHERE q.job = $1 AND ({closed})")
            }),
            append: append(dialect),
            release: format!(
                "UPDATE scheduler_jobs SET {} WHERE job = $1 AND fencing_token = $2 AND holder = $3",
                released(dialect, &["$4", "$5", "$6", "$7", "$8"].map(str::to_owned))
            ),
        }
    }
}

/// Returns the claim of the lease row under this condition.
fn claim(dialect: Dialect, condition: &str) -> String {
    let claim = format!(
        "UPDATE scheduler_jobs
            SET fencing_token = 1 + CASE WHEN fencing_token > f.newest THEN fencing_token ELSE f.newest END, holder = $2,
                claimed_by = {id}, expires_at = {expires}, updated_at = {now}
           FROM (SELECT job AS fenced, fencing_token AS newest FROM scheduler_fencing) AS f
          WHERE f.fenced = job AND job = $1 AND {condition}
      RETURNING fencing_token, {state}, {pauses} AS pauses, {requests} AS requests",
        id = dialect.cast("$4", "uuid"),
        expires = dialect.in_ms("$3"),
        now = dialect.now(),
        state = dialect.state_columns(""),
        pauses = dialect
            .pauses("p.job = scheduler_jobs.job AND (p.resumed_at IS NULL OR p.resumed_at > cursor_at OR p.resumed_at > retry_scheduled_at)"),
        requests = dialect.requests("q.job = scheduler_jobs.job AND q.kind <> 'cancel'"),
    );
    if dialect.is_sqlite() {
        return claim;
    }
    // If no work runs under an older token, the same statement raises the fencing token. Otherwise a separate transaction does, and
    // the claim is visible to other processes while it waits.
    format!(
        "WITH claimed AS ({claim}),
              free AS (SELECT f.job, c.fencing_token FROM claimed c JOIN scheduler_fencing f ON f.job = $1
                          FOR NO KEY UPDATE OF f SKIP LOCKED),
              raised AS (UPDATE scheduler_fencing f SET fencing_token = free.fencing_token FROM free
                          WHERE f.job = free.job AND f.fencing_token < free.fencing_token RETURNING f.job)
         SELECT claimed.*, EXISTS (SELECT 1 FROM raised) AS raised FROM claimed"
    )
}

/// Returns the insertion of the row of a run, with [`RUN_VALUES`] parameters.
fn append(dialect: Dialect) -> String {
    let (at, cast) = (|parameter| dialect.at(parameter), |parameter, kind| dialect.cast(parameter, kind));
    format!(
        "INSERT INTO scheduler_runs (id, job, node, scheduled_at, status, cause, attempt, fencing_token, daemon_id,
                                       started_at, finished_at, lateness_ms, items, reason, error, details,
                                       scheduled_from, scheduled_count, request_id)
         SELECT {id}, $2, $3, {scheduled}, $5, $6, {attempt}, $8, $9, {started}, {finished}, $12, $13, $14, $15,
                {details}, {from}, $18, {request}",
        id = cast("$1", "uuid"),
        scheduled = at("$4"),
        attempt = cast("$7", "int"),
        started = at("$10"),
        finished = at("$11"),
        details = cast("$16", "jsonb"),
        from = at("$17"),
        request = cast("$19", "uuid"),
    )
}

/// Returns the update of a job's state under the newest fencing token. On PostgreSQL the statement also closes requests and inserts the
/// run. The `last` record of a lease cycle releases the lease.
fn record(dialect: Dialect, last: bool) -> String {
    // On PostgreSQL these parameters follow those of the run's row.
    let numbered =
        |number: usize| format!("${}", if dialect.is_sqlite() { number } else { RUN_VALUES + number });
    let [job, fencing_token, holder, cursor, scheduled, not_before, failed, ran, error] =
        [1, 2, 3, 4, 5, 6, 7, 8, 9].map(numbered);
    let hint = [10, 11, 12, 13, 14].map(numbered);
    let update = format!(
        "UPDATE scheduler_jobs
            SET cursor_at = {cursor}, retry_scheduled_at = {scheduled}, retry_not_before = {not_before},
                failed_attempts = {failed}, last_error = CASE WHEN {ran} THEN {error} ELSE last_error END,
                updated_at = {now}{release}
          WHERE job = {job} AND fencing_token = {fencing_token} AND holder = {holder}
            AND EXISTS (SELECT 1 FROM scheduler_fencing f WHERE f.job = {job} AND f.fencing_token = {fencing_token})",
        cursor = dialect.at(&cursor),
        scheduled = dialect.at(&scheduled),
        not_before = dialect.at(&not_before),
        failed = dialect.cast(&failed, "int"),
        error = dialect.cast(&error, "text"),
        now = dialect.now(),
        release = if last { format!(", {}", released(dialect, &hint)) } else { String::new() },
    );
    if dialect.is_sqlite() {
        return update;
    }
    format!(
        "WITH updated AS ({update} RETURNING job),
              closed AS (DELETE FROM scheduler_requests q USING updated WHERE q.job = updated.job AND ({closed}))
         {append} FROM updated",
        closed = closed(dialect, &fencing_token, "$19"),
        append = append(dialect),
    )
}

/// Returns the condition for the request `q` that a run answers, and for every request to cancel it.
fn closed(dialect: Dialect, fencing_token: &str, request: &str) -> String {
    let request = dialect.cast(request, "uuid");
    format!("q.id = {request} OR q.kind = 'cancel' AND q.fencing_token BETWEEN 1 AND {fencing_token}")
}

/// Returns the assignments that release the lease and store the claim hint.
fn released(dialect: Dialect, [schedule, next, late, stuck, replaced]: &[String; 5]) -> String {
    format!(
        "holder = NULL, expires_at = NULL, schedule = {schedule}, next_at = {next}, late_at = {late}, stuck_at = {stuck},
         replaced_schedules = {replaced}",
        schedule = dialect.cast(schedule, "text"),
        next = dialect.at(next),
        late = dialect.at(late),
        stuck = dialect.at(stuck),
        replaced = dialect.cast(replaced, "text"),
    )
}

#[cfg(feature = "testing")]
impl Sql {
    /// Removes the safeguards that the fault campaign disables.
    pub(crate) fn tested(mut self) -> Self {
        use crate::fault_injection::{instead, without};
        instead(
            "claim-unexpired",
            &mut self.claim,
            "(holder IS NULL OR expires_at <=",
            "(true OR expires_at <=",
        );
        instead(
            "token-not-raised",
            &mut self.raise,
            "SET fencing_token = $2",
            "SET fencing_token = fencing_token",
        );
        let [job, fencing_token, holder] = if self.close.is_some() { [1, 2, 3] } else { [20, 21, 22] };
        if self.close.is_none() {
            instead(
                "token-not-raised",
                &mut self.claim,
                "SET fencing_token = free.fencing_token",
                "SET fencing_token = f.fencing_token",
            );
        }
        let newest = format!(
            "AND EXISTS (SELECT 1 FROM scheduler_fencing f WHERE f.job = ${job} AND f.fencing_token = ${fencing_token})"
        );
        for sql in [&mut self.record, &mut self.finish] {
            without("record-unfenced", sql, &newest);
            without(
                "record-unfenced",
                sql,
                &format!("AND fencing_token = ${fencing_token} AND holder = ${holder}"),
            );
        }
        self
    }
}
