//! One request of a known person for one page.

use std::{collections::HashMap, sync::Arc};

use maud::Markup;
use sea_orm::DatabaseConnection;
use serde::Serialize;

use super::{
    Console,
    auth::{Principal, Right},
    problem::Problem,
};
use crate::{config::console::ConsoleAccess, status::Status};

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

    /// The variable part `name` of the path, which the route has.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// The value of `key` in the query; none if it is empty.
    pub(super) fn query(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of `key` in the query as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Problem> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Problem::BadRequest(format!("`{key}` must be a number, not `{text}`")))
        };
        self.query(key).map(parse).transpose()
    }

    /// A link to a page, relative to the page that is shown.
    pub(super) fn link(&self, path: impl std::fmt::Display) -> String {
        format!("{}{path}", self.root)
    }
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
