//! The `OpenAPI` document of the interface.

use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{handlers, standings};

/// The bearer token, which a daemon without `token` in jobs.toml does not need.
struct OptionalToken;

impl Modify for OptionalToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
        let needed = SecurityRequirement::new::<_, [String; 0], String>("token", []);
        document.security = Some(vec![SecurityRequirement::default(), needed]);
    }
}

#[derive(OpenApi)]
#[openapi(
    modifiers(&OptionalToken),
    info(title = "billing-daemon", description = "The status of billing, read-only."),
    paths(
        handlers::healthz,
        handlers::readyz,
        handlers::metrics,
        handlers::status,
        handlers::jobs,
        handlers::runs,
        standings::standings,
        standings::instances,
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
