//! One request of a known person for one page.

use std::{collections::HashMap, sync::Arc};

use billing_scheduler::RunFilter;
use billing_store::{StatementLimit, begin_read, query_fleet, read_runs, statement};
use chrono::{DateTime, Datelike as _, Utc};
use maud::Markup;
use sea_orm::{DatabaseConnection, DbErr, EntityTrait, QueryResult, Select, Value};
use serde::Serialize;

use super::{
    Console,
    auth::{Principal, Right},
    problem::Problem,
};
use crate::{
    config::console::ConsoleAccess,
    status::{RunView, Status},
};

/// A request of a person.
pub(super) struct Visit {
    pub(super) console: Arc<Console>,
    pub(super) person: Principal,
    /// The variable parts of the path.
    pub(super) params: HashMap<String, String>,
    pub(super) query: HashMap<String, String>,
    /// The relative URL of the first page, with a slash at its end.
    pub(super) root: String,
    /// The first part of the path below that of the console.
    pub(super) section: String,
    /// The status, at most a few seconds old.
    pub(super) status: Arc<Status>,
}

impl Visit {
    /// Whether the person may do what needs `right`, on this listener.
    pub(super) fn may(&self, right: Right) -> bool {
        self.console.admits(right) && self.person.rights.contains(&right)
    }

    pub(super) fn db(&self) -> &DatabaseConnection {
        &self.console.reading.db
    }

    /// Reads the rows of a statement, each as `view` returns it. `doing` is a verb phrase for the message of an error.
    pub(super) async fn rows<T>(
        &self,
        doing: &str,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
        view: impl Fn(&QueryResult) -> Result<T, DbErr> + Send,
    ) -> Result<Vec<T>, Problem> {
        let rows = query_fleet(self.db(), statement(self.db(), sql, values)).await;
        let views = rows.and_then(|rows| rows.iter().map(view).collect());
        views.map_err(|error| Problem::database(doing, &error))
    }

    /// Reads rows of a table, each as `view` returns it.
    pub(super) async fn models<E: EntityTrait, T>(
        &self,
        doing: &str,
        query: Select<E>,
        view: impl Fn(E::Model) -> T + Send,
    ) -> Result<Vec<T>, Problem>
    where
        E::Model: Send,
    {
        let read = async {
            let txn = begin_read(self.db(), StatementLimit::Call).await?;
            let rows = query.all(&txn).await?;
            txn.commit().await?;
            Ok(rows)
        };
        let rows: Result<Vec<E::Model>, DbErr> = read.await;
        Ok(rows.map_err(|error| Problem::database(doing, &error))?.into_iter().map(view).collect())
    }

    /// Reads runs, the newest first.
    pub(super) async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, Problem> {
        let runs = read_runs(self.db(), filter).await;
        let runs = runs.map_err(|error| Problem::database("read the history", &error))?;
        Ok(runs.into_iter().map(RunView::from).collect())
    }

    /// The variable part `name` of the path, which the route has.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// The value of `key` in the query; none if it is empty.
    pub(super) fn query(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of `key` in the query, parsed.
    pub(super) fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Problem> {
        let parse =
            |text: &str| text.parse().map_err(|_| Problem::BadRequest(format!("`{key}` cannot be `{text}`")));
        self.query(key).map(parse).transpose()
    }

    /// A link to a page, relative to the page that is shown.
    pub(super) fn link(&self, path: impl std::fmt::Display) -> String {
        format!("{}{path}", self.root)
    }
}

/// Parses a time that both databases can store.
pub(super) fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    text.parse().ok().filter(|at: &DateTime<Utc>| (1..=9_999).contains(&at.year()))
}

/// The query of a link with these pairs.
pub(super) fn pairs(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

impl Console {
    /// Whether this listener permits what needs `right` to anyone.
    pub(super) fn admits(&self, right: Right) -> bool {
        matches!(right, Right::View | Right::AuditLog) || self.settings.access == ConsoleAccess::Operate
    }
}

/// What a page shows. Its JSON has the same data.
pub(super) trait View: Serialize {
    /// The text of the first heading, and of the title of the window.
    fn title(&self) -> String;

    /// The page below the heading.
    fn body(&self, visit: &Visit) -> Markup;
}

/// A [`View`] of any type.
pub(super) trait Page: Send {
    fn title(&self) -> String;
    fn body(&self, visit: &Visit) -> Markup;
    fn json(&self) -> serde_json::Result<String>;
}

impl<V: View + Send> Page for V {
    fn title(&self) -> String {
        View::title(self)
    }

    fn body(&self, visit: &Visit) -> Markup {
        View::body(self, visit)
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}
