//! Replaces traces in a program that was built without the feature `otel`.

use axum::http::HeaderMap;
use tracing::{Span, warn};

use crate::{
    host::identity::Identity,
    telemetry::{Listener, mask::Concealed},
};

/// The interface of the exporter, which sends nothing here.
pub(crate) struct Traces;

impl Traces {
    /// Returns no traces.
    pub(crate) fn new(_: &Identity, _: &Concealed) -> Self {
        Self
    }

    /// Returns no layer.
    #[expect(clippy::unused_self, reason = "with the feature it uses the exporter")]
    pub(crate) fn layer(&self) -> Option<Listener> {
        None
    }

    /// Warns if a collector is configured.
    #[expect(clippy::unused_self, reason = "with the feature it uses the exporter")]
    pub(crate) fn log_destination(&self) {
        if let Err(warning) = describe_destination() {
            warn!("{warning}");
        }
    }

    /// Has nothing to send.
    #[expect(clippy::unused_async, reason = "with the feature it waits for the collector")]
    pub(crate) async fn finish(self) {}
}

/// Returns an error if a collector is configured.
pub(crate) fn describe_destination() -> Result<Option<String>, String> {
    super::not_built_in(super::variable).map_or(Ok(None), Err)
}

/// Returns no id: no trace is sent.
pub(crate) fn trace_id() -> Option<String> {
    None
}

/// Leaves the span alone: there is no trace to continue.
pub(crate) fn continue_trace(_: &Span, _: &HeaderMap) {}
