//! Who changed what, and why: the audit log, the newest entry first.

use std::time::{Duration, Instant};

use billing_entities::scheduler_audit_log as log;
use billing_store::audit_log::{ChainCheck, verify_until};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::prelude::*;

/// How many entries are shown at once.
const SHOWN: usize = 50;
/// A longer chain is verified by `doctor`.
const VERIFY_WITHIN: Duration = Duration::from_millis(50);

#[derive(Serialize)]
pub(in crate::console) struct AuditLog {
    entries: Vec<Entry>,
    /// The value of `before` for the next page.
    next: Option<i64>,
    /// The number of entries up to which the chain of hashes is intact; unset if that takes too long here.
    verified: Option<u64>,
    /// The first entry that was changed.
    broken: Option<i64>,
    /// Whether the person may see only the newest entry.
    only_newest: bool,
}

#[derive(Serialize)]
struct Entry {
    id: i64,
    at: DateTime<Utc>,
    by: String,
    action: String,
    job: String,
    reason: Option<String>,
    details: serde_json::Value,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<AuditLog, Problem> {
    let only_newest = !visit.may(Right::AuditLog);
    let before = visit.parsed("before")?.filter(|_| !only_newest);
    let limit = if only_newest { 1 } else { SHOWN + 1 };
    let mut entries = entries(visit, before, limit).await?;
    let next = keep(&mut entries, SHOWN).map(|last| last.id);
    let began = Instant::now();
    let chain = verify_until(visit.db(), || began.elapsed() > VERIFY_WITHIN).await;
    let chain = chain.map_err(|error| Problem::database("verify the audit log", &error))?;
    let ChainCheck { rows, broken } = chain.unwrap_or_default();
    Ok(AuditLog { entries, next, verified: chain.map(|_| rows), broken, only_newest })
}

async fn entries(visit: &Visit, before: Option<i64>, limit: usize) -> Result<Vec<Entry>, Problem> {
    let mut query = log::Entity::find().order_by_desc(log::Column::Id).limit(limit as u64);
    if let Some(before) = before {
        query = query.filter(log::Column::Id.lt(before));
    }
    let filters = [("actor", log::Column::Actor), ("action", log::Column::Action), ("job", log::Column::Job)];
    for (key, column) in filters {
        if let Some(value) = visit.query(key) {
            query = query.filter(column.eq(value));
        }
    }
    let entry = |row: log::Model| Entry {
        id: row.id,
        at: row.at.0,
        by: row.actor,
        action: row.action,
        job: row.job,
        reason: row.reason,
        details: serde_json::from_str(&row.details).unwrap_or_default(),
    };
    visit.models("read the audit log", query, entry).await
}

impl View for AuditLog {
    fn title(&self) -> String {
        "Audit log".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.entries.iter().map(|entry| {
            [
                text(entry.id.to_string()),
                time(entry.at),
                text(&entry.by),
                badge(Tone::Idle, &entry.action),
                text(&entry.job),
                text(entry.reason.as_deref().unwrap_or_default()),
                html! { code { (entry.details) } },
            ]
        });
        let headings = ["#id", "at", "who", "action", "~job", "reason", "details"];
        let field = |key: &str| visit.query(key).unwrap_or_default();
        html! {
            p { (self.chain()) }
            @if self.only_newest {
                p.hint { "You see the newest entry: the others need the right " code { "audit-log" } "." }
            } @else {
                form.filter method="get" action=(visit.link("audit-log")) {
                    @for (key, label) in [("actor", "Who "), ("action", "Action "), ("job", "Job ")] {
                        label { (label) input name=(key) value=(field(key)); }
                    }
                    button { "Filter" }
                }
            }
            (table(headings, rows, "No entry."))
            @if let Some(next) = self.next {
                @let older = pairs(&[("before", &*next.to_string()), ("actor", field("actor")), ("action", field("action")), ("job", field("job"))]);
                p { (link(visit, format!("audit-log?{older}"), "Older entries")) }
            }
        }
    }
}

impl AuditLog {
    fn chain(&self) -> Markup {
        match (self.verified, self.broken) {
            (_, Some(id)) => {
                badge(Tone::Bad, &format!("entry {id} was changed, or the entry before it was removed"))
            }
            (Some(rows), None) => badge(Tone::Good, &format!("chain of {} entries is intact", grouped(rows))),
            (None, None) => badge(Tone::Idle, "long chain: run `billing-daemon doctor` to verify it"),
        }
    }
}
