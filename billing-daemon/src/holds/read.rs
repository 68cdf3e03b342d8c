//! Reads open holds page by page, so that a fleet that is held whole needs no more memory than a page.

use billing_entities::Instant;
use billing_jobs::money::Money;
use billing_store::{columns, query_fleet};
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbBackend, DbErr, QueryResult, Statement, Value};
use serde::Serialize;

use super::advice;

/// How many holds are read at a time.
const PAGE: usize = 1_000;

/// Which holds are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only those for this reason.
    pub(crate) reason: Option<String>,
    /// Only those of this organization, by its id.
    pub(crate) organization: Option<String>,
}

/// An instance that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HeldInstance {
    /// The position among the holds for the same reason.
    #[serde(skip)]
    pub(crate) id: i64,
    /// The reason of the hold.
    pub(crate) reason: String,
    /// When the hold was opened.
    pub(crate) since: DateTime<Utc>,
    /// The instance's id.
    pub(crate) instance: String,
    /// The label that the panel shows for the instance.
    pub(crate) label: String,
    /// Whether the panel deleted it.
    pub(crate) deleted: bool,
    /// The organization that owes the hours.
    pub(crate) organization: String,
    /// Its name; unset if it was deleted.
    pub(crate) organization_name: Option<String>,
    /// The due hours; unset if they are unknown.
    pub(crate) hours: Option<i64>,
    /// Their price as decimal text; unset if it is unknown.
    pub(crate) amount: Option<String>,
    /// The currency of that; unset if the organization has no wallet with one.
    pub(crate) currency: Option<String>,
    /// What exactly is wrong.
    pub(crate) detail: Option<String>,
    /// What to do about it.
    pub(crate) advice: &'static str,
    /// The operator who accepted the hold, if one did and that is in force.
    pub(crate) accepted_by: Option<String>,
    /// Until when it is accepted; without limit if unset.
    pub(crate) accepted_until: Option<DateTime<Utc>>,
    /// The operator's reason.
    pub(crate) accepted_note: Option<String>,
}

/// The condition for an acceptance in force of the hold `h`.
pub(crate) fn is_accepted(backend: DbBackend) -> String {
    let now = match backend {
        DbBackend::Sqlite => billing_store::SQLITE_NOW,
        _ => "now()",
    };
    format!("h.accepted_for = h.reason AND (h.accepted_until IS NULL OR h.accepted_until > {now})")
}

/// The open holds in the order of their reasons, and of their age within one.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    db: &'a DatabaseConnection,
    filter: Filter,
    /// The reasons that are left, the next one last.
    reasons: Vec<String>,
    after: i64,
}

impl<'a> Pages<'a> {
    /// Finds the reasons for which instances are held.
    pub(crate) async fn of(db: &'a DatabaseConnection, filter: Filter) -> Result<Self, DbErr> {
        let sql = "SELECT DISTINCT reason FROM billing_holds WHERE closed_at IS NULL ORDER BY reason DESC";
        let rows = query_fleet(db, Statement::from_string(db.get_database_backend(), sql)).await?;
        let reasons = rows.iter().map(|row| row.try_get("", "reason")).collect::<Result<Vec<String>, _>>()?;
        let is_wanted = |reason: &String| filter.reason.as_ref().is_none_or(|wanted| wanted == reason);
        let reasons = reasons.into_iter().filter(is_wanted).collect();
        Ok(Self { db, filter, reasons, after: 0 })
    }

    /// Reads the next holds, all for one reason; none after the last.
    pub(crate) async fn next(&mut self) -> Result<Vec<HeldInstance>, DbErr> {
        while let Some(reason) = self.reasons.last() {
            let page = page(self.db, reason, self.after, self.filter.organization.as_deref(), PAGE).await?;
            match page.last() {
                Some(last) if page.len() == PAGE => self.after = last.id,
                _ => {
                    self.reasons.pop();
                    self.after = 0;
                }
            }
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Ok(Vec::new())
    }
}

/// Reads the `limit` oldest holds for `reason` after that with the id `after`, of one organization or of all.
pub(crate) async fn page(
    db: &DatabaseConnection,
    reason: &str,
    after: i64,
    organization: Option<&str>,
    limit: usize,
) -> Result<Vec<HeldInstance>, DbErr> {
    let values: [Value; 3] = [reason.into(), after.into(), organization.map(str::to_owned).into()];
    let backend = db.get_database_backend();
    let statement = Statement::from_sql_and_values(backend, page_sql(backend, limit), values);
    query_fleet(db, statement).await?.iter().map(read).collect()
}

/// `(reason, after, organization) -> ...`, as [`read`] reads it.
fn page_sql(backend: DbBackend, limit: usize) -> String {
    let uuid = if backend == DbBackend::Sqlite { "" } else { "::uuid" };
    format!(
        "SELECT h.id, h.reason, h.opened_at, CAST(h.instance_id AS text) AS instance, h.label, h.hours_due, h.amount_due, h.currency,
                h.detail, CAST(h.organization_id AS text) AS organization, o.name AS organization_name,
                NOT EXISTS (SELECT 1 FROM vps_instances i WHERE i.id = h.instance_id) AS deleted,
                ({accepted}) AS accepted, h.accepted_by, h.accepted_until, h.accepted_note
           FROM (SELECT * FROM billing_holds
                  WHERE closed_at IS NULL AND reason = $1 AND id > $2
                    AND ($3{uuid} IS NULL OR organization_id = $3{uuid})
                  ORDER BY id LIMIT {limit}) AS h
           LEFT JOIN organizations o ON o.id = h.organization_id
          ORDER BY h.id",
        accepted = is_accepted(backend),
    )
}

fn read(row: &QueryResult) -> Result<HeldInstance, DbErr> {
    let Instant(since) = row.try_get("", "opened_at")?;
    let reason: String = row.try_get("", "reason")?;
    let amount: Option<i64> = row.try_get("", "amount_due")?;
    let hours: Option<i64> = row.try_get("", "hours_due")?;
    let accepted = row.try_get::<Option<bool>>("", "accepted")?.unwrap_or(false);
    let until: Option<Instant> = row.try_get("", "accepted_until")?;
    let of_acceptance =
        |column| Ok::<_, DbErr>(row.try_get::<Option<String>>("", column)?.filter(|_| accepted));
    Ok(HeldInstance {
        id: row.try_get("", "id")?,
        since,
        instance: row.try_get("", "instance")?,
        label: row.try_get("", "label")?,
        deleted: row.try_get("", "deleted")?,
        organization: row.try_get("", "organization")?,
        organization_name: Some(columns::lossy(row, "organization_name")).filter(|name| !name.is_empty()),
        // The hours since an invalid time are unknown.
        hours: hours.filter(|hours| *hours > 0 || reason != "invalid_time"),
        amount: amount.map(|amount| Money(amount).to_string()),
        currency: row.try_get("", "currency")?,
        detail: row.try_get("", "detail")?,
        advice: advice(&reason),
        accepted_by: of_acceptance("accepted_by")?,
        accepted_until: until.filter(|_| accepted).map(|Instant(at)| at),
        accepted_note: of_acceptance("accepted_note")?,
        reason,
    })
}
