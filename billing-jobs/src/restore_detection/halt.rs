//! The halt in the database: what a note is compared with, the decision, and the acceptance by an operator.
//!
//! An acceptance is an entry of the audit log. Its hash, which depends on every entry before it, identifies the history in which a
//! restore was accepted: a note from before the acceptance no longer counts, in every daemon, also in one that was stopped meanwhile.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, Statement, Value};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::note::{Batch, Note};
use crate::BILLING_JOB;
use billing_store::{
    SQLITE_NOW,
    audit_log::{self, AuditEvent},
    begin, statement,
};

/// The action of an acceptance in the audit log.
pub(crate) const ACCEPTED: &str = "accept a restore";

/// Why no daemon bills: a batch that was committed is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// When that was found, by the database's clock.
    pub found_at: DateTime<Utc>,
    /// The daemon, or the command, that had noted the batch.
    pub found_by: String,
    /// The missing batch.
    pub missing: Batch,
    /// The newest batch in the database at that time.
    pub newest: Option<Batch>,
}

impl Halt {
    /// Reads the column `scheduler_fencing.halt`.
    ///
    /// # Errors
    /// Another program wrote the text.
    pub fn of_json(text: &str) -> Result<Self, DbErr> {
        serde_json::from_str(text).map_err(|error| DbErr::Type(format!("scheduler_fencing.halt: {error}")))
    }

    pub(super) fn to_json(&self) -> String {
        json!(self).to_string()
    }
}

/// What is missing, as the part of a sentence.
impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { found_by, missing, newest, .. } = self;
        let seconds = |at: &DateTime<Utc>| at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        write!(
            f,
            "{found_by} had noted batch {} of {}, which is missing; ",
            missing.id,
            seconds(&missing.at)
        )?;
        match newest {
            Some(newest) => {
                write!(f, "the database ends with batch {} of {}", newest.id, seconds(&newest.at))
            }
            None => f.write_str("the database has no batch"),
        }
    }
}

/// What the database contains, compared with a note.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) now: DateTime<Utc>,
    pub(super) halt: Option<Halt>,
    /// The hash of the newest acceptance.
    pub(super) accepted: Option<String>,
    /// Whether the acceptance before the note is in the audit log, or there was none before it.
    follows_accepted: bool,
    /// Whether the noted batch exists.
    exists: bool,
    pub(super) newest: Option<Batch>,
    /// The run of the oldest batch.
    pub(super) first_run: Option<String>,
}

impl Facts {
    /// One statement, so that its parts are consistent.
    pub(super) fn query(backend: DbBackend, note: Option<&Note>) -> Statement {
        let (now, at) = match backend {
            DbBackend::Sqlite => (SQLITE_NOW, "created_at"),
            _ => (
                "(extract(epoch FROM now()) * 1000000)::bigint",
                "(extract(epoch FROM created_at) * 1000000)::bigint",
            ),
        };
        let sql = format!(
            "SELECT {now} AS now,
                    (SELECT halt FROM scheduler_fencing WHERE job = $1) AS halt,
                    (SELECT hash FROM scheduler_audit_log WHERE action = $2 ORDER BY id DESC LIMIT 1) AS accepted,
                    EXISTS (SELECT 1 FROM scheduler_audit_log WHERE action = $2 AND hash = $3) AS follows_accepted,
                    EXISTS (SELECT 1 FROM billing_batches
                             WHERE id = $4 AND CAST(run_id AS text) = $5 AND {at} = $6) AS noted,
                    (SELECT CAST(run_id AS text) FROM billing_batches ORDER BY id LIMIT 1) AS first_run,
                    newest.id, newest.run, newest.at
               FROM (SELECT 1 AS one) AS here
               LEFT JOIN (SELECT id, CAST(run_id AS text) AS run, {at} AS at FROM billing_batches ORDER BY id DESC LIMIT 1)
                      AS newest ON true"
        );
        let accepted = note.and_then(|note| note.accepted.clone());
        let batch = note.map(|note| &note.batch);
        let values: [Value; 6] = [
            BILLING_JOB.into(),
            ACCEPTED.into(),
            // A note from before the first acceptance has the hash of no entry.
            accepted.unwrap_or_default().into(),
            batch.map_or(0, |batch| batch.id).into(),
            batch.map_or("", |batch| batch.run.as_str()).into(),
            batch.map_or(0, |batch| batch.at.timestamp_micros()).into(),
        ];
        Statement::from_sql_and_values(backend, sql, values)
    }

    pub(super) fn of(row: Option<&QueryResult>) -> Result<Self, DbErr> {
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the newest batch".to_owned()))?;
        let halt: Option<String> = row.try_get("", "halt")?;
        Ok(Self {
            now: instant(row.try_get("", "now")?)?,
            halt: halt.as_deref().map(Halt::of_json).transpose()?,
            accepted: row.try_get("", "accepted")?,
            follows_accepted: row.try_get("", "follows_accepted")?,
            exists: row.try_get("", "noted")?,
            newest: match row.try_get::<Option<i64>>("", "id")? {
                None => None,
                Some(id) => {
                    Some(Batch { id, run: row.try_get("", "run")?, at: instant(row.try_get("", "at")?)? })
                }
            },
            first_run: row.try_get("", "first_run")?,
        })
    }

    /// The note of the newest batch, if there is a batch.
    pub(super) fn into_note(self) -> Option<Note> {
        Some(Note { batch: self.newest?, accepted: self.accepted, first_run: self.first_run? })
    }
}

fn instant(micros: i64) -> Result<DateTime<Utc>, DbErr> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| DbErr::Type(format!("{micros} is not a valid time")))
}

/// The result of the comparison of a note with a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The noted batch exists, or no batch is noted.
    Intact,
    /// It is missing, and an operator has accepted that.
    Accepted,
    /// It is missing.
    Missing,
}

/// Compares a note with a database. An acceptance covers each note that was taken before it: a database that contains the acceptance lost the
/// noted batch before it. A note that was taken after an acceptance which the database lacks is from a later history.
pub(super) fn judge(note: Option<&Note>, facts: &Facts) -> Verdict {
    let Some(note) = note else { return Verdict::Intact };
    if facts.exists {
        return Verdict::Intact;
    }
    let is_older = note.accepted != facts.accepted && (note.accepted.is_none() || facts.follows_accepted);
    if is_older { Verdict::Accepted } else { Verdict::Missing }
}

/// Locks the fencing row of billing until the end of `txn`: waits for the batches in progress and lets no other begin. The row is created
/// if no daemon has billed yet.
pub(super) async fn lock_fencing_row(txn: &impl ConnectionTrait) -> Result<(), DbErr> {
    let insert = "INSERT INTO scheduler_fencing (job) VALUES ($1) ON CONFLICT DO NOTHING";
    txn.execute_raw(statement(txn, insert, [BILLING_JOB.into()])).await?;
    if txn.get_database_backend() != DbBackend::Sqlite {
        let lock = "SELECT fencing_token FROM scheduler_fencing WHERE job = $1 FOR NO KEY UPDATE";
        txn.query_one_raw(statement(txn, lock, [BILLING_JOB.into()])).await?;
    }
    Ok(())
}

/// What an operator accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The halt that ended; `None` if no daemon had found a missing batch.
    pub halt: Option<Halt>,
    /// The newest batch, from which billing continues.
    pub newest: Option<Batch>,
}

/// Ends the halt of billing, and records in the audit log that `by` accepted the database as it is. Every daemon takes a new note.
///
/// # Errors
/// Nothing was changed.
pub async fn accept(db: &DatabaseConnection, by: &str) -> Result<Acceptance, DbErr> {
    let txn = begin(db).await?;
    lock_fencing_row(&txn).await?;
    let row = txn.query_one_raw(Facts::query(txn.get_database_backend(), None)).await?;
    let Facts { halt, newest, .. } = Facts::of(row.as_ref())?;
    let end = "UPDATE scheduler_fencing SET halt = NULL WHERE job = $1";
    txn.execute_raw(statement(&txn, end, [BILLING_JOB.into()])).await?;
    let details = json!({ "before": { "halt": halt }, "after": { "newest": newest } });
    audit_log::append(&txn, &AuditEvent::new(by, ACCEPTED, BILLING_JOB, details)).await?;
    txn.commit().await?;
    Ok(Acceptance { halt, newest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptance_covers_only_older_notes() {
        let batch = || Batch { id: 50, run: "r".to_owned(), at: DateTime::UNIX_EPOCH };
        let some = |hash: &str| (!hash.is_empty()).then(|| hash.to_owned());
        // The acceptance before the note, those in the database, and whether the noted batch exists.
        for (noted, accepted, exists, expected) in [
            ("", &[][..], true, Verdict::Intact),
            ("", &[], false, Verdict::Missing),
            ("", &["a"], false, Verdict::Accepted),
            ("a", &["a"], false, Verdict::Missing),
            ("a", &["a", "b"], false, Verdict::Accepted),
            ("b", &["a", "b"], false, Verdict::Missing),
            // The database was rewound to before an acceptance, with or without an earlier one.
            ("b", &["a"], false, Verdict::Missing),
            ("b", &[], false, Verdict::Missing),
            ("b", &["a"], true, Verdict::Intact),
        ] {
            let note = Note { batch: batch(), accepted: some(noted), first_run: "r".to_owned() };
            let facts = Facts {
                now: DateTime::UNIX_EPOCH,
                halt: None,
                accepted: accepted.last().map(|hash| (*hash).to_owned()),
                follows_accepted: accepted.contains(&noted),
                exists,
                newest: None,
                first_run: None,
            };
            assert_eq!(judge(Some(&note), &facts), expected, "{noted} {accepted:?} {exists}");
            assert_eq!(judge(None, &facts), Verdict::Intact);
        }
    }
}
