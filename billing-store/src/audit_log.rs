//! The log of the changes of operators: append-only, each row with the hash of the row before it.
//!
//! Its table is `scheduler_audit_log`. The login of the jobs may append to it and read it, and no login may change it; the chain of
//! hashes reveals a change. It does not reveal that rows were removed at the end: compare the newest id with a copy outside of
//! the database.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    columns,
    transaction::{SQLITE_NOW, Transaction, begin, query_all, statement},
};

/// One change by an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEvent {
    /// The operator, as `user@host`.
    pub by: String,
    /// The action, such as `pause` or `guard install`.
    pub action: &'static str,
    /// The job's name; empty if the change concerns all jobs.
    pub job: String,
    /// The operator's reason.
    pub reason: Option<String>,
    /// Further facts: an object, with the values `before` and `after` if they are known.
    pub details: serde_json::Value,
}

impl AuditEvent {
    /// An event without a reason.
    #[must_use]
    pub fn new(by: &str, action: &'static str, job: &str, details: serde_json::Value) -> Self {
        Self { by: by.to_owned(), action, job: job.to_owned(), reason: None, details }
    }
}

/// The maximum number of attempts to append a row while other transactions append theirs.
const ATTEMPTS: u32 = 50;
/// The number of rows that are read at once while the chain is verified.
const PAGE: i64 = 1_000;

/// The hashed columns of one row.
struct HashedRow<'a> {
    id: i64,
    at: i64,
    actor: &'a str,
    action: &'a str,
    job: &'a str,
    reason: Option<&'a str>,
    details: &'a str,
    previous: &'a str,
}

impl HashedRow<'_> {
    /// Returns the SHA-256 of the JSON array of the columns.
    fn hash(&self) -> String {
        let Self { id, at, actor, action, job, reason, details, previous } = self;
        fingerprint(&json!([id, at, actor, action, job, reason, details, previous]).to_string())
    }
}

/// Returns the SHA-256 of `text` in hexadecimal digits: distinguishes texts that may contain secrets.
#[must_use]
pub fn fingerprint(text: &str) -> String {
    let mut digits = String::new();
    for byte in Sha256::digest(text) {
        digits.extend([format!("{byte:02x}")]);
    }
    digits
}

/// How many of the newest rows are searched for a request.
const SEARCHED: u32 = 10_000;

/// Whether one of the newest rows is of the request with this id.
pub async fn is_recorded(txn: &Transaction, request: Uuid) -> Result<bool, DbErr> {
    let sql = format!(
        "SELECT 1 AS found FROM (SELECT details FROM scheduler_audit_log ORDER BY id DESC LIMIT {SEARCHED}) newest
          WHERE details LIKE $1 LIMIT 1"
    );
    let like = format!("%\"request\":\"{request}\"%");
    Ok(txn.query_one_raw(statement(txn, &sql, [like.into()])).await?.is_some())
}

/// Appends `event` in the transaction that makes the change. Call it last: another transaction that appends waits for the end of
/// this one.
pub async fn append(txn: &Transaction, event: &AuditEvent) -> Result<(), DbErr> {
    append_unless(txn, event, None).await.map(|_| ())
}

/// Appends `event` with the id of its request, unless a row has it already: then it returns false, and the caller rolls back. Of two
/// transactions with the same request, the later one waits for the earlier one and finds its row.
pub async fn append_once(txn: &Transaction, event: &AuditEvent, request: Uuid) -> Result<bool, DbErr> {
    let mut event = event.clone();
    event.details["request"] = json!(request);
    append_unless(txn, &event, Some(request)).await
}

async fn append_unless(txn: &Transaction, event: &AuditEvent, request: Option<Uuid>) -> Result<bool, DbErr> {
    // The types of the operands are explicit: in a function with the owner's rights, an operator of another role must not replace a
    // built-in one that does not match exactly.
    let (now, at) = match txn.get_database_backend() {
        DbBackend::Sqlite => (SQLITE_NOW, "$2"),
        _ => (
            "(extract(epoch FROM now()) * 1000000::numeric)::bigint",
            "timestamptz 'epoch' + $2::float8 * interval '1 microsecond'",
        ),
    };
    let newest = format!(
        "SELECT {now} AS at, coalesce((SELECT max(id) FROM scheduler_audit_log), 0) AS id,
                coalesce((SELECT hash FROM scheduler_audit_log ORDER BY id DESC LIMIT 1), '') AS hash"
    );
    let insert = format!(
        "INSERT INTO scheduler_audit_log (id, at, actor, action, job, reason, details, previous_hash, hash)
         VALUES ($1, {at}, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING"
    );
    let details = event.details.to_string();
    for _ in 0..ATTEMPTS {
        if let Some(request) = request
            && is_recorded(txn, request).await?
        {
            return Ok(false);
        }
        let row = txn.query_one_raw(statement(txn, &newest, [])).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the end of the audit log".to_owned()))?;
        let (id, previous): (i64, String) = (row.try_get("", "id")?, row.try_get("", "hash")?);
        let hashed = HashedRow {
            id: id + 1,
            at: row.try_get("", "at")?,
            actor: &event.by,
            action: event.action,
            job: &event.job,
            reason: event.reason.as_deref(),
            details: &details,
            previous: &previous,
        };
        let values: [Value; 9] = [
            hashed.id.into(),
            hashed.at.into(),
            hashed.actor.into(),
            hashed.action.into(),
            hashed.job.into(),
            hashed.reason.into(),
            hashed.details.into(),
            hashed.previous.into(),
            hashed.hash().into(),
        ];
        // Of two concurrent transactions, the later one waits for the earlier one and then finds that its id exists.
        if txn.execute_raw(statement(txn, &insert, values)).await?.rows_affected() == 1 {
            return Ok(true);
        }
    }
    Err(DbErr::RecordNotInserted)
}

/// Appends `event` for a change outside of the database.
pub async fn append_in_own_transaction(db: &DatabaseConnection, event: &AuditEvent) -> Result<(), DbErr> {
    let txn = begin(db).await?;
    append(&txn, event).await?;
    txn.commit().await
}

/// The result of a check of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainCheck {
    /// The number of rows up to the first broken one, or of all rows.
    pub rows: u64,
    /// The id of the first row that was changed, or whose predecessor is missing.
    pub broken: Option<i64>,
}

/// Verifies the chain from its beginning.
#[expect(clippy::missing_panics_doc, reason = "it never stops early")]
pub async fn verify(db: &DatabaseConnection) -> Result<ChainCheck, DbErr> {
    let chain = verify_until(db, || false).await?;
    Ok(chain.expect("it never stops early"))
}

/// Like [`verify`], but returns `None` as soon as `stop` returns `true`; it is called about every thousand rows.
pub async fn verify_until(
    db: &DatabaseConnection,
    stop: impl Fn() -> bool + Send + Sync,
) -> Result<Option<ChainCheck>, DbErr> {
    let at = match db.get_database_backend() {
        DbBackend::Sqlite => "at",
        _ => "(extract(epoch FROM at) * 1000000::numeric)::bigint",
    };
    let page = format!(
        "SELECT id, {at} AS at, actor, action, job, reason, details, previous_hash, hash
           FROM scheduler_audit_log WHERE id > $1 ORDER BY id LIMIT $2"
    );
    let mut chain = ChainCheck::default();
    let (mut last, mut previous) = (0, String::new());
    loop {
        if stop() {
            return Ok(None);
        }
        let rows = query_all(db, statement(db, &page, [last.into(), PAGE.into()])).await?;
        for row in &rows {
            chain.rows += 1;
            let (id, hash) = verify_row(row, &previous)?;
            if id != last + 1 || hash.is_none() {
                chain.broken = Some(id);
                return Ok(Some(chain));
            }
            (last, previous) = (id, hash.unwrap_or_default());
        }
        if rows.is_empty() {
            return Ok(Some(chain));
        }
    }
}

/// Returns the id of a row, and its hash if the row is unchanged and follows the hash `previous`.
fn verify_row(row: &QueryResult, previous: &str) -> Result<(i64, Option<String>), DbErr> {
    // A text that cannot be read was changed: its hash differs.
    let text = |column| columns::lossy(row, column);
    let (actor, action, job, details) = (text("actor"), text("action"), text("job"), text("details"));
    let reason = columns::optional_text(row, "reason", "reason").unwrap_or_default();
    let hashed = HashedRow {
        id: row.try_get("", "id")?,
        at: row.try_get("", "at")?,
        actor: &actor,
        action: &action,
        job: &job,
        reason: reason.as_deref(),
        details: &details,
        previous,
    };
    let hash = text("hash");
    let is_unchanged = text("previous_hash") == previous && hashed.hash() == hash;
    Ok((hashed.id, is_unchanged.then_some(hash)))
}
