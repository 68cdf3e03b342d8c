//! What stands in for traces in a program that was built without.

use axum::http::HeaderMap;
use tracing::Span;

use super::Listener;
use crate::{environment::Environment, identity::Identity};

/// Nothing to send.
pub(crate) struct Traces {
    warnings: Vec<String>,
}

impl Traces {
    /// Looks whether somebody expects traces.
    pub(crate) fn of(environment: &Environment, _: &Identity, _: &[String]) -> Self {
        Self { warnings: super::not_built_in(environment).into_iter().collect() }
    }

    /// Nothing that the log must not say.
    #[expect(clippy::unused_self, reason = "with the feature it says what it was made with")]
    pub(crate) fn secrets(&self) -> Vec<String> {
        Vec::new()
    }

    /// Nobody hears of spans beside the log.
    #[expect(clippy::unused_self, reason = "with the feature it gives what it was made with")]
    pub(crate) fn listener(&self) -> Option<Listener> {
        None
    }

    /// What somebody should know who expects traces.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Nothing is left to send.
    #[expect(clippy::unused_async, reason = "with the feature it takes a moment")]
    pub(crate) async fn finish(self) {}
}

/// Nobody goes on with a trace.
pub(crate) fn go_on_with(_: &Span, _: &HeaderMap) {}
