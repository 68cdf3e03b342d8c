//! What stands in for traces in a program that was built without.

use axum::http::HeaderMap;
use tracing::{Span, warn};

use super::Listener;
use crate::{config::environment::Environment, host::identity::Identity, telemetry::concealed::Concealed};

/// Nothing to send.
pub(crate) struct Traces {
    outlook: Result<Option<String>, Vec<String>>,
}

impl Traces {
    /// Looks whether somebody expects traces.
    pub(crate) fn of(environment: &Environment, _: &Identity, _: &Concealed) -> Self {
        Self { outlook: outlook(environment) }
    }

    /// Nobody hears of spans beside the log.
    #[expect(clippy::unused_self, reason = "with the feature it gives what it was made with")]
    pub(crate) fn listener(&self) -> Option<Listener> {
        None
    }

    /// Says why nothing is sent, to whoever expects it.
    pub(crate) fn announce(&self) {
        for warning in self.outlook.as_ref().err().into_iter().flatten() {
            warn!("{warning}");
        }
    }

    /// Nothing is left to send.
    #[expect(clippy::unused_async, reason = "with the feature it takes a moment")]
    pub(crate) async fn finish(self) {}
}

/// Nowhere from here; that is wrong if somebody names a collector.
pub(crate) fn outlook(environment: &Environment) -> Result<Option<String>, Vec<String>> {
    super::not_built_in(environment).map_or(Ok(None), |warning| Err(vec![warning]))
}

/// Nobody goes on with a trace.
pub(crate) fn go_on_with(_: &Span, _: &HeaderMap) {}
