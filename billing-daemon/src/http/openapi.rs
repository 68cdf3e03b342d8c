//! The interface, described for programs.

use utoipa::OpenApi;

use super::handlers;

#[derive(OpenApi)]
#[openapi(
    info(title = "billing-daemon", description = "How billing stands. Nothing can be changed here."),
    paths(
        handlers::healthz,
        handlers::readyz,
        handlers::metrics,
        handlers::status,
        handlers::jobs,
        handlers::runs,
        handlers::panel_health,
        handlers::openapi,
    )
)]
struct Document;

/// The `OpenAPI` document of this version.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
