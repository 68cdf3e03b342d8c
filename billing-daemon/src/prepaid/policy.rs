//! What applies to one organization alone: a mode, a credit limit, a time before which it is not suspended, an address.

use billing_jobs::{PREPAID_KIND, money::Money, prepaid::PolicyMode};
use billing_store::{audit_log::AuditEvent, begin_command, query_one, statement};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, Value};
use serde::Serialize;
use serde_json::json;

use super::{Author, micros, now, time};

/// What is set for one organization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Policy {
    pub(crate) organization: String,
    pub(crate) mode: String,
    pub(crate) credit_limit: String,
    pub(crate) never_suspend_until: Option<DateTime<Utc>>,
    pub(crate) contact: Option<String>,
    pub(crate) changed_by: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) changed_at: Option<DateTime<Utc>>,
}

/// What to change; the rest stays.
#[expect(clippy::option_option, reason = "a value that stays differs from one that is removed")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PolicyEdit<'a> {
    pub(crate) mode: Option<PolicyMode>,
    pub(crate) credit_limit: Option<&'a str>,
    /// `Some(None)` removes the time.
    pub(crate) never_suspend_until: Option<Option<DateTime<Utc>>>,
    /// `Some(None)` removes the address.
    pub(crate) contact: Option<Option<&'a str>>,
    /// When the policy was changed last, as its editor saw it; unset if any policy may be changed.
    pub(crate) changed_at: Option<Option<DateTime<Utc>>>,
}

impl PolicyEdit<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        Self { changed_at: None, ..self.clone() } == Self::default()
    }

    fn apply(&self, policy: &mut Policy) {
        if let Some(mode) = self.mode {
            mode.as_str().clone_into(&mut policy.mode);
        }
        if let Some(limit) = self.credit_limit {
            limit.clone_into(&mut policy.credit_limit);
        }
        if let Some(until) = self.never_suspend_until {
            policy.never_suspend_until = until;
        }
        if let Some(contact) = self.contact {
            policy.contact = contact.map(str::to_owned);
        }
    }
}

/// Why a policy was not set.
#[derive(Debug)]
pub(crate) enum PolicyError {
    Invalid(String),
    /// Another policy was set meanwhile.
    Conflict,
    Database(DbErr),
}

impl From<DbErr> for PolicyError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// Changes what applies to an organization, given by its id; returns false if the same form was sent before.
pub(crate) async fn set_policy(
    db: &DatabaseConnection,
    organization: &str,
    edit: PolicyEdit<'_>,
    author: Author<'_>,
) -> Result<bool, PolicyError> {
    let before = read_policy(db, organization).await?;
    if edit.changed_at.is_some_and(|shown| shown != before.changed_at) {
        return Err(PolicyError::Conflict);
    }
    let mut after = before.clone();
    edit.apply(&mut after);
    let limit = after.credit_limit.parse().ok().filter(|limit: &Money| limit.0 >= 0);
    let limit = limit.ok_or_else(|| {
        let limit = &after.credit_limit;
        PolicyError::Invalid(format!("`{limit}` is not an amount of money of zero or more, such as 25.00"))
    })?;
    if let Some(contact) = after.contact.as_ref().filter(|contact| !contact.contains('@')) {
        return Err(PolicyError::Invalid(format!("`{contact}` is not a mail address")));
    }
    store(db, &before, &after, limit, author).await
}

async fn store(
    db: &DatabaseConnection,
    before: &Policy,
    after: &Policy,
    limit: Money,
    author: Author<'_>,
) -> Result<bool, PolicyError> {
    let (id, until) = match db.get_database_backend() {
        DbBackend::Sqlite => ("$1", "$4"),
        _ => ("$1::uuid", "timestamptz 'epoch' + $4::bigint * interval '1 microsecond'"),
    };
    let sql = format!(
        "INSERT INTO billing_policies (organization_id, mode, credit_limit, never_suspend_until, contact, changed_by, reason, changed_at)
         VALUES ({id}, $2, $3, {until}, $5, $6, $7, {})
         ON CONFLICT (organization_id) DO UPDATE
            SET mode = excluded.mode, credit_limit = excluded.credit_limit, never_suspend_until = excluded.never_suspend_until,
                contact = excluded.contact, changed_by = excluded.changed_by, reason = excluded.reason, changed_at = excluded.changed_at
          WHERE {} = $8",
        now(db),
        micros(db, "billing_policies.changed_at")
    );
    let values: [Value; 8] = [
        after.organization.as_str().into(),
        after.mode.as_str().into(),
        limit.0.into(),
        after.never_suspend_until.map(|until| until.timestamp_micros()).into(),
        after.contact.clone().into(),
        author.name.into(),
        author.reason.unwrap_or_default().into(),
        before.changed_at.map(|at| at.timestamp_micros()).into(),
    ];
    let details = json!({ "organization": after.organization, "before": before, "after": after });
    let txn = begin_command(db).await?;
    if txn.execute_raw(statement(&txn, &sql, values)).await?.rows_affected() == 0 {
        txn.rollback().await?;
        return Err(PolicyError::Conflict);
    }
    if !author.record(&txn, AuditEvent::new(author.name, "set policy", PREPAID_KIND, details)).await? {
        txn.rollback().await?;
        return Ok(false);
    }
    txn.commit().await?;
    Ok(true)
}

/// Reads what is set for an organization, given by its id.
pub(crate) async fn read_policy(db: &DatabaseConnection, organization: &str) -> Result<Policy, DbErr> {
    let sql = format!(
        "SELECT mode, credit_limit, {} AS until, contact, changed_by, reason, {} AS changed_at
           FROM billing_policies WHERE CAST(organization_id AS text) = $1",
        micros(db, "never_suspend_until"),
        micros(db, "changed_at")
    );
    let row = query_one(db, statement(db, &sql, [organization.into()])).await?;
    row.map_or_else(|| Ok(none(organization)), |row| view(organization, &row))
}

/// What applies to an organization without a row.
fn none(organization: &str) -> Policy {
    Policy {
        organization: organization.to_owned(),
        mode: PolicyMode::default().as_str().to_owned(),
        credit_limit: Money(0).to_string(),
        never_suspend_until: None,
        contact: None,
        changed_by: None,
        reason: None,
        changed_at: None,
    }
}

fn view(organization: &str, row: &QueryResult) -> Result<Policy, DbErr> {
    Ok(Policy {
        organization: organization.to_owned(),
        mode: row.try_get("", "mode")?,
        credit_limit: Money(row.try_get("", "credit_limit")?).to_string(),
        never_suspend_until: row.try_get::<Option<i64>>("", "until")?.map(time),
        contact: row.try_get("", "contact")?,
        changed_by: row.try_get("", "changed_by")?,
        reason: row.try_get("", "reason")?,
        changed_at: Some(time(row.try_get("", "changed_at")?)),
    })
}
