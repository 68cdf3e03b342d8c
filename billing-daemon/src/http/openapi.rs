//! The `OpenAPI` document of the interface.

use utoipa::OpenApi;

use super::handlers;

#[derive(OpenApi)]
#[openapi(
    info(title = "billing-daemon", description = "The status of billing, read-only."),
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
