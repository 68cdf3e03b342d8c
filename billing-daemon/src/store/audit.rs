//! The record of what people asked of jobs: append-only, each row with the hash of the row before it.

use billing_scheduler::{Request, What};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Statement, Value};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::dialect::Dialect;

/// One row of the chain, as its hash sees it.
struct Link<'a> {
    id: i64,
    at: i64,
    actor: &'a str,
    action: &'a str,
    job: &'a str,
    reason: Option<&'a str>,
    details: &'a str,
    previous: &'a str,
}

impl Link<'_> {
    /// SHA-256 over the JSON array of the row's columns, in hexadecimal digits.
    fn hash(&self) -> String {
        let Self { id, at, actor, action, job, reason, details, previous } = self;
        let text = json!([id, at, actor, action, job, reason, details, previous]).to_string();
        let mut digits = String::new();
        for byte in Sha256::digest(text) {
            digits.extend([format!("{byte:02x}")]);
        }
        digits
    }
}

/// Appends `request`. Of two transactions at once, the later one violates the key and has to begin again.
pub(super) async fn append(txn: &DatabaseTransaction, request: &Request) -> Result<(), DbErr> {
    let backend = txn.get_database_backend();
    let dialect = Dialect::of(backend);
    let newest = format!(
        "SELECT {} AS at, coalesce((SELECT max(id) FROM billing_job_audit), 0) AS id,
                coalesce((SELECT hash FROM billing_job_audit ORDER BY id DESC LIMIT 1), '') AS hash",
        dialect.micros(dialect.now())
    );
    let row = txn.query_one_raw(Statement::from_string(backend, newest)).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the end of the audit".to_owned()))?;
    let (at, id, previous): (i64, i64, String) =
        (row.try_get("", "at")?, row.try_get("", "id")?, row.try_get("", "hash")?);
    let mut details = json!({ "request": request.id });
    if let What::Replay { scheduled_at } = request.what {
        details["scheduled_at"] = json!(scheduled_at);
    }
    let details = details.to_string();
    let link = Link {
        id: id + 1,
        at,
        actor: &request.by,
        action: request.what.as_str(),
        job: &request.job,
        reason: request.reason.as_deref(),
        details: &details,
        previous: &previous,
    };
    let insert = format!(
        "INSERT INTO billing_job_audit (id, at, actor, action, job, reason, details, previous_hash, hash)
         VALUES ($1, {}, $3, $4, $5, $6, $7, $8, $9)",
        dialect.at("$2")
    );
    let values: [Value; 9] = [
        link.id.into(),
        link.at.into(),
        link.actor.into(),
        link.action.into(),
        link.job.into(),
        link.reason.into(),
        link.details.into(),
        link.previous.into(),
        link.hash().into(),
    ];
    txn.execute_raw(Statement::from_sql_and_values(backend, insert, values)).await?;
    Ok(())
}

/// The id of the first row that is not what it was when it was written, or whose predecessor is gone; `None` if the chain is
/// whole.
///
/// # Errors
/// The database does not answer.
pub async fn first_broken_link(db: &DatabaseConnection) -> Result<Option<i64>, DbErr> {
    let backend = db.get_database_backend();
    let all = format!(
        "SELECT id, {} AS at, actor, action, job, reason, details, previous_hash, hash
           FROM billing_job_audit ORDER BY id",
        Dialect::of(backend).micros("at")
    );
    let mut previous = String::new();
    for (row, expected) in
        billing_jobs::query_all(db, Statement::from_string(backend, all)).await?.iter().zip(1..)
    {
        let text = |column| row.try_get::<String>("", column);
        let (actor, action, job, details) = (text("actor")?, text("action")?, text("job")?, text("details")?);
        let reason: Option<String> = row.try_get("", "reason")?;
        let link = Link {
            id: row.try_get("", "id")?,
            at: row.try_get("", "at")?,
            actor: &actor,
            action: &action,
            job: &job,
            reason: reason.as_deref(),
            details: &details,
            previous: &previous,
        };
        let hash = text("hash")?;
        if link.id != expected || text("previous_hash")? != previous || link.hash() != hash {
            return Ok(Some(link.id));
        }
        previous = hash;
    }
    Ok(None)
}
