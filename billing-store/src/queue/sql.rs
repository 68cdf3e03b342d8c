//! The texts of the queue's statements. The jobs of a call are one parameter, a JSON array.

use super::listener::CHANNEL;
use crate::dialect::Dialect;

/// The columns of a claimed job, as [`claim`] returns them.
fn claimed(dialect: Dialect, table: &str) -> String {
    format!(
        "{id} AS id, {table}kind, {payload} AS payload, {at} AS scheduled_at, {failed} AS failed_attempts, {table}fencing_token",
        id = dialect.cast(&format!("{table}id"), "text"),
        payload = dialect.cast(&format!("{table}payload"), "text"),
        at = dialect.micros(&format!("{table}scheduled_at")),
        failed = dialect.cast(&format!("{table}failed_attempts"), "bigint"),
    )
}

/// Returns the objects of the JSON array `$1` as rows named `r`.
fn rows(dialect: Dialect, columns: &[(&str, &str)]) -> String {
    if dialect.is_sqlite() {
        let columns: Vec<_> =
            columns.iter().map(|(name, _)| format!("value ->> '$.{name}' AS {name}")).collect();
        return format!("(SELECT {} FROM json_each($1)) AS r", columns.join(", "));
    }
    let columns: Vec<_> = columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
    format!("json_to_recordset($1::json) AS r({})", columns.join(", "))
}

/// Returns the insertion of jobs, which returns the ids of those that were added.
pub(super) fn enqueue(dialect: Dialect) -> String {
    let rows = rows(
        dialect,
        &[
            ("id", "uuid"),
            ("kind", "text"),
            ("payload", "text"),
            ("at", "bigint"),
            ("after", "bigint"),
            ("priority", "int"),
            ("unique_key", "text"),
        ],
    );
    let (due, second) = if dialect.is_sqlite() {
        // The clock has milliseconds. A wait begins with the next one, so that no job starts early.
        let due = format!("coalesce(r.at, {} + r.after + (r.after > 0) * 1000)", dialect.now());
        (due, "due / 1000000 * 1000000")
    } else {
        // A wait begins now, which may be long after the transaction of the application has begun.
        let wait = "clock_timestamp() + r.after * interval '1 microsecond'";
        (format!("coalesce({}, {wait})", dialect.at("r.at")), "date_trunc('second', due)")
    };
    let insert = format!(
        "INSERT INTO scheduler_queue (id, kind, payload, scheduled_at, not_before, priority, unique_key)
         SELECT id, kind, {payload}, {second}, due, priority, unique_key FROM (SELECT r.*, {due} AS due FROM {rows}) AS d WHERE true
             ON CONFLICT DO NOTHING RETURNING {id} AS id",
        payload = dialect.cast("payload", "jsonb"),
        id = dialect.cast("id", "text"),
    );
    if dialect.is_sqlite() {
        return insert;
    }
    // The commit sends one notification if one of the jobs is due.
    format!(
        "WITH added AS ({insert}, not_before)
         SELECT id, (SELECT pg_notify('{CHANNEL}', '')::text FROM added WHERE not_before <= clock_timestamp() LIMIT 1) FROM added"
    )
}

/// Returns the claim of due jobs by the process `$2` for `$3` milliseconds. On PostgreSQL `$1` has the kinds with the number of jobs to
/// claim of each; on SQLite `$1` is one kind, and `$4` the number.
pub(super) fn claim(dialect: Dialect) -> String {
    let (now, columns) = (dialect.now(), claimed(dialect, "q."));
    let due = |kind: &str, limit: &str| {
        format!(
            "SELECT d.id FROM scheduler_queue d
              WHERE d.kind = {kind} AND d.finished_at IS NULL AND d.not_before <= {now}
                AND (d.expires_at IS NULL OR d.expires_at <= {now})
              ORDER BY d.priority DESC, d.not_before, d.id LIMIT {limit}"
        )
    };
    // A row that still has the end of a claim lost it without a result.
    let hold = format!(
        "fencing_token = q.fencing_token + 1, holder = $2, expires_at = {},
             failed_attempts = q.failed_attempts + CASE WHEN q.expires_at IS NULL THEN 0 ELSE 1 END",
        dialect.in_ms("$3")
    );
    if dialect.is_sqlite() {
        let columns = claimed(dialect, "");
        let due = due("$1", "$4");
        return format!("UPDATE scheduler_queue AS q SET {hold} WHERE q.id IN ({due}) RETURNING {columns}");
    }
    // Another process claims jobs at the same time: each skips the rows that the other has locked.
    format!(
        "WITH due AS MATERIALIZED (SELECT d.id FROM {rows} CROSS JOIN LATERAL ({due} FOR UPDATE SKIP LOCKED) d)
         UPDATE scheduler_queue q SET {hold} WHERE {claimed} RETURNING {columns}",
        claimed = found("due"),
        rows = rows(dialect, &[("kind", "text"), ("free", "bigint")]),
        due = due("r.kind", "r.free"),
    )
}

/// Returns the join of each row `r` with its job `q` on PostgreSQL. Neither a lock nor an OFFSET is moved out of the subquery, so each job
/// is found by its id. Otherwise the planner, which expects few jobs to meet the conditions, compares each of them with each row.
fn each(conditions: &str, end: &str) -> String {
    format!("CROSS JOIN LATERAL (SELECT q.id FROM scheduler_queue q WHERE {conditions} {end}) q")
}

/// Returns the condition for a job `q` whose id is in the relation `ids`, for PostgreSQL. A planner that joins them reads the whole table,
/// in which finished jobs are kept.
fn found(ids: &str) -> String {
    format!("q.id = ANY (ARRAY(SELECT id FROM {ids}))")
}

/// Returns the condition for an unfinished job of a known id. PostgreSQL must not recognize the one of the index of due jobs: if the
/// statistics are older than the jobs, the planner expects it to be empty, and reads all of it for each job.
fn unfinished(dialect: Dialect, table: &str) -> String {
    match dialect {
        Dialect::Sqlite => format!("{table}finished_at IS NULL"),
        Dialect::Postgres => format!("num_nulls({table}finished_at) = 1"),
    }
}

/// Returns the renewal of claims of the process `$2` for `$3` milliseconds, which returns the ids of those that are held.
pub(super) fn renew_claims(dialect: Dialect) -> String {
    let rows = rows(dialect, &[("id", "uuid"), ("token", "bigint")]);
    let (now, end) = (dialect.now(), dialect.in_ms("$3"));
    let held = format!(
        "q.id = r.id AND q.fencing_token = r.token AND q.holder = $2 AND {unfinished} AND q.expires_at > {now}",
        unfinished = unfinished(dialect, "q."),
    );
    if dialect.is_sqlite() {
        return format!(
            "UPDATE scheduler_queue AS q SET expires_at = {end} FROM {rows} WHERE {held} RETURNING id"
        );
    }
    // A run that has finished its job in an open transaction has locked the row. No process can claim it, and a renewal that waited
    // for it would delay all others.
    format!(
        "WITH free AS MATERIALIZED (SELECT q.id FROM {rows} {free}),
              renewed AS (UPDATE scheduler_queue q SET expires_at = {end} WHERE {renewed})
         SELECT q.id::text AS id FROM {rows} {all}",
        free = each(&held, "FOR UPDATE SKIP LOCKED"),
        renewed = found("free"),
        all = each(&held, "OFFSET 0"),
    )
}

/// The statements that settle results.
pub(super) struct Settle {
    /// Changes the jobs; on PostgreSQL it records the runs as well, and returns the ids of the jobs that are settled.
    pub(super) update: String,
    /// Records the runs, and returns those ids.
    pub(super) record: Option<String>,
}

/// Returns the statements that settle the results in `$1` of runs in the process `$2`.
pub(super) fn settle(dialect: Dialect) -> Settle {
    let rows = rows(
        dialect,
        &[
            ("id", "uuid"),
            ("token", "bigint"),
            ("after", "bigint"),
            ("failed", "int"),
            ("run", "uuid"),
            ("kind", "text"),
            ("scheduled", "bigint"),
            ("status", "text"),
            ("attempt", "int"),
            ("started", "bigint"),
            ("finished", "bigint"),
            ("lateness", "bigint"),
            ("items", "bigint"),
            ("reason", "text"),
            ("error", "text"),
            ("details", "text"),
        ],
    );
    let now = dialect.now();
    let later = match dialect {
        Dialect::Sqlite => format!("{now} + r.after"),
        Dialect::Postgres => format!("{now} + r.after * interval '1 microsecond'"),
    };
    let change = format!(
        "UPDATE scheduler_queue AS q
            SET expires_at = NULL, failed_attempts = r.failed, not_before = coalesce({later}, q.not_before),
                finished_at = CASE WHEN r.after IS NULL THEN {now} END"
    );
    let held = &format!(
        "q.id = r.id AND q.fencing_token = r.token AND q.holder = $2 AND q.expires_at IS NOT NULL AND {}",
        unfinished(dialect, "q.")
    );
    // What this call has changed; what an earlier call changed whose answer was lost; and what the run finished in its transaction.
    let settled = "q.id = r.id AND q.fencing_token = r.token AND q.holder = $2 AND q.expires_at IS NULL";
    let columns = format!(
        "r.run, r.kind, {scheduled}, r.status, 'queue', r.attempt, r.token, $2, {started}, {finished}, r.lateness,
         r.items, r.reason, r.error, {details}, r.id",
        scheduled = dialect.at("r.scheduled"),
        started = dialect.at("r.started"),
        finished = dialect.at("r.finished"),
        details = dialect.cast("r.details", "jsonb"),
    );
    let insert = "INSERT INTO scheduler_runs (id, job, scheduled_at, status, cause, attempt, fencing_token, daemon_id, started_at,
                                              finished_at, lateness_ms, items, reason, error, details, request_id)";
    // A run that finished its job in its transaction could not know these figures there.
    let figures = "ON CONFLICT (id) DO UPDATE
        SET started_at = excluded.started_at, finished_at = excluded.finished_at, lateness_ms = excluded.lateness_ms,
            items = excluded.items, details = excluded.details";
    if dialect.is_sqlite() {
        let update = format!("{change} FROM {rows} WHERE {held}");
        let from = format!("FROM scheduler_queue q, {rows} WHERE {settled}");
        let record = format!("{insert} SELECT {columns} {from} {figures} RETURNING request_id AS id");
        return Settle { update, record: Some(record) };
    }
    let update = format!(
        "WITH r AS MATERIALIZED (SELECT * FROM {rows}),
              held AS MATERIALIZED (SELECT r.id, r.after, r.failed FROM r {held}),
              updated AS ({change} FROM held AS r WHERE q.id = r.id AND {found} RETURNING q.id, q.fencing_token AS token),
              settled AS (SELECT id, token FROM updated UNION ALL SELECT r.id, r.token FROM {others} AS r {settled}),
              recorded AS ({insert} SELECT {columns} FROM r JOIN settled s ON s.id = r.id AND s.token = r.token {figures})
         SELECT id::text AS id FROM settled",
        held = each(held, "FOR UPDATE"),
        found = found("held"),
        others = "(SELECT * FROM r WHERE NOT EXISTS (SELECT 1 FROM updated u WHERE u.id = r.id))",
        settled = each(settled, "OFFSET 0"),
    );
    Settle { update, record: None }
}

/// Returns the statements that finish the job `$1` within the transaction of its run, under the fencing token `$2`: the first
/// changes one row, or none if the claim is lost, and the second records the run `$3` of attempt `$4` at the instant `$5`.
pub(super) fn finish(dialect: Dialect) -> [String; 2] {
    let id = dialect.cast("$1", "uuid");
    let at = dialect.at("$5");
    [
        format!(
            "UPDATE scheduler_queue SET finished_at = {}, expires_at = NULL
              WHERE id = {id} AND fencing_token = $2 AND {} AND expires_at IS NOT NULL",
            dialect.now(),
            unfinished(dialect, ""),
        ),
        format!(
            "INSERT INTO scheduler_runs (id, job, scheduled_at, status, cause, attempt, fencing_token, daemon_id, started_at,
                                         finished_at, request_id)
             SELECT {run}, kind, scheduled_at, 'done', 'queue', {attempt}, $2, holder, {at}, {at}, id
               FROM scheduler_queue WHERE id = {id}",
            run = dialect.cast("$3", "uuid"),
            attempt = dialect.cast("$4", "int"),
        ),
    ]
}

/// Returns the removal of up to `$2` jobs that were finished more than `$1` milliseconds ago.
pub(super) fn prune(dialect: Dialect) -> String {
    let skip = if dialect.is_sqlite() { "" } else { "FOR UPDATE SKIP LOCKED" };
    let before = match dialect {
        Dialect::Sqlite => format!("{} - $1 * 1000", dialect.now()),
        Dialect::Postgres => "now() - $1 * interval '1 millisecond'".to_owned(),
    };
    format!(
        "DELETE FROM scheduler_queue WHERE id IN (
             SELECT id FROM scheduler_queue WHERE finished_at < {before} ORDER BY finished_at LIMIT $2 {skip})"
    )
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, Statement};

    use super::*;

    /// Returns the steps of a statement's plan.
    async fn plan(db: &DatabaseConnection, sql: &str) -> Vec<String> {
        let sql = (1..=4).fold(sql.to_owned(), |sql, number| sql.replace(&format!("${number}"), "'1'"));
        let explain = Statement::from_string(db.get_database_backend(), format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = db.query_all_raw(explain).await.expect("the statement is valid");
        rows.iter().map(|row| row.try_get("", "detail").expect("a text")).collect()
    }

    #[tokio::test]
    async fn sqlite_finds_jobs_by_index() {
        let options = ConnectOptions::new("sqlite::memory:").max_connections(1).to_owned();
        let db = Database::connect(options).await.expect("a database in memory");
        crate::migrate(&db).await.expect("the tables are created");
        let sqlite = Dialect::Sqlite;
        let Settle { update, record } = settle(sqlite);
        let [finish, finish_run] = finish(sqlite);
        let found_by_id =
            [renew_claims(sqlite), update, record.expect("a second statement"), finish, finish_run];
        let indexed = found_by_id.map(|sql| (sql, "(id=?)"));
        let due = (claim(sqlite), "scheduler_queue_due (kind=?)");
        let finished = (prune(sqlite), "scheduler_queue_finished (finished_at<?)");
        for (sql, index) in indexed.into_iter().chain([due, finished]) {
            let steps = plan(&db, &sql).await;
            let scans = |step: &String| {
                ["SCAN q", "SCAN d", "SCAN scheduler_queue"].iter().any(|scan| step.starts_with(scan))
            };
            assert!(steps.iter().any(|step| step.contains(index)), "{steps:#?} of {sql}");
            assert!(!steps.iter().any(scans), "{steps:#?} of {sql}");
        }
    }
}
