//! Approvals of hours beyond the catch-up limit. An approval is an entry of the audit log, so that every run of every daemon finds
//! it, with who gave it and why.
//!
//! An approval is for the past: it covers the hours that had ended when it was given. Hours that end later count against the limit
//! again. It ends after [`APPROVED_FOR`], and is used up earlier once its hours are charged.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::id::Id;
use crate::{
    BILLING_JOB,
    period::{Micros, whole_hours},
};
use billing_store::{
    SQLITE_NOW,
    audit_log::{self, AuditEvent},
    begin, columns, query_all, statement,
};

/// How long an approval is in force.
pub const APPROVED_FOR: TimeDelta = TimeDelta::hours(24);

const APPROVE: &str = "approve a catch-up";

/// What an approval covers. Ids are as the database has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scope {
    /// Whether it covers every instance.
    pub all: bool,
    /// The instances of these organizations.
    pub organizations: Vec<String>,
    /// The covered instances, besides those of the organizations.
    pub instances: Vec<String>,
    /// An instance with more hours due than these is not covered.
    pub max_hours: Option<i64>,
}

/// An approval as a run applies it.
#[derive(Clone, Debug)]
struct Approval {
    all: bool,
    organizations: HashSet<Id>,
    instances: HashSet<Id>,
    max_hours: Option<i64>,
    /// Hours that ended by then are approved.
    through: Micros,
}

/// The approvals that a run applies.
#[derive(Clone, Debug, Default)]
pub(super) struct Approvals(Vec<Approval>);

impl Approval {
    fn new(scope: &Scope, through: Micros) -> Self {
        let ids = |texts: &[String]| texts.iter().map(|text| Id::from(text.as_str())).collect();
        Self {
            all: scope.all,
            organizations: ids(&scope.organizations),
            instances: ids(&scope.instances),
            max_hours: scope.max_hours,
            through,
        }
    }

    fn covers(&self, instance: &Id, organization: &Id, start: Micros) -> bool {
        let named =
            self.all || self.instances.contains(instance) || self.organizations.contains(organization);
        named && self.max_hours.is_none_or(|most| whole_hours(start, self.through) <= most)
    }
}

impl Approvals {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an approval that is not in the database: a dry run tries it.
    pub(super) fn add(&mut self, scope: &Scope, through: Micros) {
        self.0.push(Approval::new(scope, through));
    }

    /// Returns the instant up to which the due hours of `instance` are approved, if any are; they begin at `start`.
    pub(super) fn approved_through(&self, instance: &Id, organization: &Id, start: Micros) -> Option<Micros> {
        let covering = self.0.iter().filter(|approval| approval.covers(instance, organization, start));
        covering.map(|approval| approval.through).max()
    }
}

/// The details of an approval's entry.
#[derive(Debug, Serialize, Deserialize)]
struct Details {
    #[serde(flatten)]
    scope: Scope,
    through: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

/// Records that `by` approves `scope`; returns when the approval ends.
///
/// # Errors
/// The database fails.
pub async fn approve_catch_up(
    db: &DatabaseConnection,
    scope: &Scope,
    by: &str,
    reason: Option<&str>,
) -> Result<DateTime<Utc>, DbErr> {
    let recorded = approve_catch_up_once(db, scope, by, reason, Uuid::now_v7()).await?;
    recorded.ok_or(DbErr::RecordNotInserted)
}

/// As [`approve_catch_up`]; none if an approval with the same `request` was recorded before.
///
/// # Errors
/// The database fails.
pub async fn approve_catch_up_once(
    db: &DatabaseConnection,
    scope: &Scope,
    by: &str,
    reason: Option<&str>,
    request: Uuid,
) -> Result<Option<DateTime<Utc>>, DbErr> {
    let txn = begin(db).await?;
    let now = match db.get_database_backend() {
        DbBackend::Sqlite => SQLITE_NOW,
        _ => "(extract(epoch FROM now()) * 1000000)::bigint",
    };
    let row = txn.query_one_raw(statement(&txn, &format!("SELECT {now} AS now"), [])).await?;
    let now: Micros = row.ok_or_else(|| DbErr::RecordNotFound("now".to_owned()))?.try_get("", "now")?;
    let through = DateTime::from_timestamp_micros(now).unwrap_or_default();
    let expires_at = through + APPROVED_FOR;
    let details = Details { scope: scope.clone(), through, expires_at };
    let event = AuditEvent::new(by, APPROVE, BILLING_JOB, json!(details));
    let entry = AuditEvent { reason: reason.map(str::to_owned), ..event };
    let is_new = audit_log::append_once(&txn, &entry, request).await?;
    txn.commit().await?;
    Ok(is_new.then_some(expires_at))
}

/// Reads the approvals that are in force by the database's clock, for a run over the hours that ended by `as_of`.
pub(super) async fn in_force(db: &DatabaseConnection, as_of: Micros) -> Result<Approvals, DbErr> {
    let not_older = match db.get_database_backend() {
        DbBackend::Sqlite => format!("at > {SQLITE_NOW} - {}", APPROVED_FOR.num_seconds() * 1_000_000),
        _ => format!("at > now() - interval '{} seconds'", APPROVED_FOR.num_seconds()),
    };
    let sql = format!(
        "SELECT details FROM scheduler_audit_log WHERE action = $1 AND job = $2 AND {not_older} ORDER BY id"
    );
    let rows = query_all(db, statement(db, &sql, [APPROVE.into(), BILLING_JOB.into()])).await?;
    let mut approvals = Approvals::default();
    for row in &rows {
        // What cannot be read approves nothing.
        let Ok(details) = serde_json::from_str::<Details>(&columns::lossy(row, "details")) else { continue };
        approvals.add(&details.scope, details.through.timestamp_micros().min(as_of));
    }
    Ok(approvals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::period::HOUR;

    #[test]
    fn approval_covers_named_instances_until_given() {
        let id = |text: &str| Id::from(text);
        let names = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let all = Scope { all: true, ..Scope::default() };
        let instance = Scope { instances: names(&["a", "b"]), ..Scope::default() };
        let organization = Scope { organizations: names(&["acme"]), ..Scope::default() };
        let at_most = |scope: &Scope, hours| Scope { max_hours: Some(hours), ..scope.clone() };
        for (scope, of, start, covered) in [
            (&all, ("x", "other"), 0, true),
            (&instance, ("a", "other"), 0, true),
            (&instance, ("x", "acme"), 0, false),
            (&organization, ("x", "acme"), 0, true),
            (&organization, ("acme", "other"), 0, false),
            (&at_most(&all, 100), ("x", "other"), 0, true),
            (&at_most(&all, 99), ("x", "other"), 0, false),
            (&at_most(&all, 99), ("x", "other"), 1, true),
            (&at_most(&instance, 99), ("x", "other"), 1, false),
            (&Scope::default(), ("x", "other"), 0, false),
        ] {
            let mut approvals = Approvals::default();
            approvals.add(scope, 100 * HOUR);
            let through = approvals.approved_through(&id(of.0), &id(of.1), start);
            assert_eq!(through, covered.then_some(100 * HOUR), "{scope:?} of {of:?} from {start}");
        }
    }

    #[test]
    fn latest_of_several_approvals_decides() {
        let mut approvals = Approvals::default();
        let all = Scope { all: true, ..Scope::default() };
        assert!(approvals.is_empty());
        approvals.add(&all, 20 * HOUR);
        approvals.add(&Scope { max_hours: Some(5), ..all.clone() }, 30 * HOUR);
        assert_eq!(approvals.approved_through(&Id::from("x"), &Id::from("o"), 0), Some(20 * HOUR));
        approvals.add(&all, 25 * HOUR);
        assert_eq!(approvals.approved_through(&Id::from("x"), &Id::from("o"), 0), Some(25 * HOUR));
    }
}
