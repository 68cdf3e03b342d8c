//! The statements of the prepaid policy for both databases.

#[cfg(feature = "testing")]
mod faulty;
mod macros;

use sea_orm::DbBackend;

use crate::{
    billing::{Sections, micros},
    money::U_PER_TEN_THOUSANDTH,
    panel::Panel,
};

/// The text of each statement. A field's comment names its parameters and columns.
#[derive(Debug)]
pub(super) struct Statements {
    /// `(now or NULL, job, gap, window, accepted, reconciled) -> now, last_run, works_since, waits, is_due, is_restored`, times in
    /// microseconds: the runs of billing within the window, the end of the last gap between two good ones, whether billing waits for an
    /// operator, whether a delivery is due, and whether the audit log has no later action `reconciled` than `accepted`.
    pub(super) context: String,
    /// `(now, after, limit) -> ...`, as `read::organization` reads it: the next watched organizations.
    pub(super) watched: String,
    /// The same for all organizations.
    pub(super) all: String,
    /// `(now, organizations)`, a JSON array: the same for these.
    pub(super) listed: String,
    /// `(now, after, limit, hours) -> organization`: the next organizations that are not watched and may have a shorter runway than that,
    /// or a fact that SQL does not decide.
    pub(super) low: String,
    /// `()`: how a statement over whole tables is planned. None on SQLite.
    pub(super) whole_table_settings: Option<String>,
    /// `()`: what holds for a transaction that writes. None on SQLite.
    pub(super) settings: Option<String>,
    /// `(job, fencing token)`: a row if that token is still the newest.
    pub(super) check_fence: String,
    /// `(organizations)`: locks their wallets. None on SQLite.
    pub(super) lock_wallets: Option<String>,
    /// `(rows)`, a JSON array of objects.
    pub(super) write_standings: String,
    /// `(rows)`, a JSON array of objects. A notice that exists and was not only recorded is left out.
    pub(super) insert_notices: String,
    /// `(rows)`, a JSON array of objects.
    pub(super) insert_events: String,
    /// `(rows)`, a JSON array of objects.
    pub(super) insert_deliveries: String,
    /// `(rows)`, a JSON array of objects: other numbers of the newest orders.
    pub(super) renumber: String,
    /// `(organizations)`: their orders are not sent any more.
    pub(super) supersede: String,
    /// `(organizations, limit, after) -> organization, id, provider_instance_id, label`: at most that many of each, after this one.
    pub(super) instances: String,
    /// `(now or NULL, endpoint, limit, microseconds, only orders) -> event, organization, attempts, body, order_number`.
    pub(super) claim_deliveries: String,
    /// `(organization)`. None on SQLite.
    pub(super) lock_standing: Option<String>,
    /// `(now or NULL, event, endpoint, attempts, status, delay, code, error)`.
    pub(super) settle_delivery: String,
    /// `(now or NULL, event, endpoint, attempts, delay, reason)`: gives a claim back.
    pub(super) postpone_delivery: String,
    /// `(now or NULL, event, organization)`: its notice is delivered, if every needed endpoint has accepted it.
    pub(super) confirm_notice: String,
    /// `(now or NULL, event, organization)`: its order is acknowledged, if every needed endpoint has accepted it.
    pub(super) acknowledge: String,
    /// `(after, limit) -> organization`: the next organizations that have a standing.
    pub(super) standings: String,
    /// `(type, type) -> body`: the events of these types, which concern no organization, the newest last.
    pub(super) problems: String,
    /// `(after, limit, desired or "") -> organization, state, desired, order_number, acked_order, since`.
    pub(super) wanted: String,
    /// `(organization)`: the same for this one.
    pub(super) wanted_of: String,
    /// `(organization) -> contact, email, name`: the contact of its policy, and its owner.
    pub(super) recipient: String,
}

impl Statements {
    /// The statements for the schema of `panel`.
    pub(super) fn of(panel: Panel) -> Self {
        let sqlite = panel.backend == DbBackend::Sqlite;
        let of_database = if sqlite { include_str!("sqlite.sql") } else { include_str!("postgres.sql") };
        let text = [include_str!("statements.sql"), of_database].concat();
        #[cfg(feature = "testing")]
        let text = faulty::mutated(&text, sqlite);
        let sections = Sections::parse(&macros::expanded(&text, sqlite), fragments(panel, sqlite));
        let facts = sections.required("facts");
        let of = |selected: &str| facts.replace("{selected}", &sections.required(selected));
        Self {
            context: sections.required("context"),
            watched: of("watched"),
            all: of("all"),
            listed: of("listed"),
            low: sections.required("low"),
            whole_table_settings: sections.optional("whole_table_settings"),
            settings: sections.optional("settings"),
            check_fence: sections.required("check_fence"),
            lock_wallets: sections.optional("lock_wallets"),
            write_standings: sections.required("write_standings"),
            insert_notices: sections.required("insert_notices"),
            insert_events: sections.required("insert_events"),
            insert_deliveries: sections.required("insert_deliveries"),
            renumber: sections.required("renumber"),
            supersede: sections.required("supersede"),
            instances: sections.required("instances"),
            claim_deliveries: sections.required("claim_deliveries"),
            lock_standing: sections.optional("lock_standing"),
            settle_delivery: sections.required("settle_delivery"),
            postpone_delivery: sections.required("postpone_delivery"),
            confirm_notice: sections.required("confirm_notice"),
            acknowledge: sections.required("acknowledge"),
            standings: sections.required("standings"),
            problems: sections.required("problems"),
            wanted: sections.required("wanted"),
            wanted_of: sections.required("wanted_of"),
            recipient: sections.required("recipient"),
        }
    }
}

/// What the schema of `panel` contributes.
fn fragments(panel: Panel, sqlite: bool) -> Vec<(&'static str, String)> {
    let text = if sqlite { "" } else { "::text" };
    let column = |exists: bool, column: &str| format!("{}{text}", if exists { column } else { "NULL" });
    vec![
        ("v_provider", column(panel.providers, "v.provider_id")),
        ("v_backups", column(panel.backups, "v.backup_frequency")),
        ("last_billed_at", micros(panel.backend, "v.last_billed_at")),
        ("created_at", micros(panel.backend, "v.created_at")),
        ("unit_u", panel.unit.u().to_string()),
        ("unit", panel.unit.ten_thousandths().to_string()),
        ("ten_thousandth_u", U_PER_TEN_THOUSANDTH.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, Database, Statement};

    use super::*;

    /// What may be scanned: the organizations of a page, what was found of them, and the parameters.
    const SMALL: [&str; 11] =
        ["selected", "p", "owned", "json_each", "good", "gaps", "clock", "c", "v", "due", "CONSTANT"];

    #[tokio::test]
    async fn sqlite_statements_scan_no_growing_table() {
        let db = Database::connect("sqlite::memory:").await.expect("a database in memory");
        migration::up(&db, None).await.expect("an empty database can be migrated");
        let s = Statements::of(Panel::OURS_ON_SQLITE);
        // Without `low`, which reads the whole fleet once, and `problems`, which reads an index of the events for operators alone.
        for sql in [
            s.context,
            s.watched,
            s.all,
            s.listed,
            s.check_fence,
            s.write_standings,
            s.insert_notices,
            s.insert_events,
            s.insert_deliveries,
            s.renumber,
            s.supersede,
            s.instances,
            s.claim_deliveries,
            s.settle_delivery,
            s.postpone_delivery,
            s.confirm_notice,
            s.acknowledge,
            s.standings,
            s.wanted,
            s.wanted_of,
            s.recipient,
        ] {
            let explain = Statement::from_string(DbBackend::Sqlite, format!("EXPLAIN QUERY PLAN {sql}"));
            for row in db.query_all_raw(explain).await.expect("the statement is valid") {
                let step: String = row.try_get("", "detail").expect("a query plan");
                let scanned = step.strip_prefix("SCAN ").and_then(|what| what.split(' ').next());
                let is_small = |what: &str| SMALL.contains(&what) || what.starts_with("(subquery");
                assert!(scanned.is_none_or(is_small), "{step}: {sql}");
            }
        }
    }
}
