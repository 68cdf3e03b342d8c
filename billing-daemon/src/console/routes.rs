//! The table of the pages. A page without a row is not served, and a row without a right does not compile.

use std::pin::Pin;

use super::{
    auth::Right,
    page,
    problem::Problem,
    visit::{Page, Visit},
};

type Reading<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Page>, Problem>> + Send + 'a>>;

/// One row: where a page is, who may see it, and how it is read.
pub(super) struct PageRoute {
    /// The path below that of the console.
    pub(super) path: &'static str,
    /// The path of its JSON below `/api`; none if the interface for machines has the same data there.
    pub(super) api: Option<&'static str>,
    pub(super) right: Right,
    /// The keys that the query may have.
    pub(super) keys: &'static [&'static str],
    pub(super) read: for<'a> fn(&'a Visit) -> Reading<'a>,
}

macro_rules! page {
    ($path:literal, $api:expr, $right:expr, $keys:expr, $read:path) => {
        PageRoute {
            path: $path,
            api: $api,
            right: $right,
            keys: $keys,
            read: |visit| Box::pin(async move { Ok(Box::new($read(visit).await?) as Box<dyn Page>) }),
        }
    };
}

/// Every page, besides signing in.
pub(super) static PAGES: [PageRoute; 5] = [
    page!("/", Some("/overview"), Right::View, &[], page::overview::read),
    page!("/jobs", None, Right::View, &[], page::jobs::read),
    page!("/jobs/{name}", Some("/jobs/{name}"), Right::View, &["runs"], page::job::read),
    page!(
        "/jobs/{name}/timeline",
        Some("/jobs/{name}/timeline"),
        Right::View,
        &["runs"],
        page::timeline::read
    ),
    page!("/runs/{id}", Some("/runs/{id}"), Right::View, &[], page::run::read),
];
