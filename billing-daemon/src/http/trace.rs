//! A span for each request.

use axum::{
    body::Body,
    extract::MatchedPath,
    http::{Method, Request},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument as _, debug_span, field::Empty};

use crate::telemetry::otel;

/// Handles a request within a span, which continues the trace of the client.
pub(super) async fn answer(request: Request<Body>, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let span = debug_span!(
        "request",
        http.request.method = method(request.method()),
        http.route = route,
        http.response.status_code = Empty,
        error = Empty,
    );
    otel::continue_trace(&span, request.headers());
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("error", status.as_str());
    }
    response
}

/// Returns a known method, or a placeholder: a client may send any word.
fn method(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    known.into_iter().find(|known| method.as_str() == *known).unwrap_or("_OTHER")
}
