//! The interface, described for programs.

use utoipa::OpenApi;

use super::answers;

#[derive(OpenApi)]
#[openapi(
    info(title = "billing-daemon", description = "How billing stands. Nothing can be changed here."),
    paths(
        answers::healthz,
        answers::readyz,
        answers::metrics,
        answers::status,
        answers::jobs,
        answers::runs,
        answers::panel_health,
        answers::openapi,
    )
)]
struct Document;

/// The `OpenAPI` document of this version.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
