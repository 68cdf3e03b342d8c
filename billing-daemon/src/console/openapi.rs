//! The JSON of the pages in the `OpenAPI` document of the listener.

use utoipa::openapi::{
    ContentBuilder, HttpMethod, ObjectBuilder, Paths, Required, ResponseBuilder,
    path::{OperationBuilder, ParameterBuilder, ParameterIn},
    schema::Type,
};

use super::routes::PAGES;

/// Returns the paths of the tables of routes.
pub(super) fn paths() -> Paths {
    let mut paths = Paths::new();
    for route in &PAGES {
        let Some(api) = route.api else { continue };
        let json = ContentBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::Object).build()))
            .build();
        let mut operation = OperationBuilder::new()
            .summary(Some(format!("The data of the page `{}` of the console.", route.path)))
            .response(
                "200",
                ResponseBuilder::new().description("").content("application/json", json.clone()),
            );
        for (status, description) in [
            ("400", "The query is invalid."),
            ("401", "The request names no person."),
            ("403", "The person does not have the right."),
            ("404", "The subject of the page does not exist."),
            ("503", "The database failed."),
        ] {
            let response = ResponseBuilder::new().description(description);
            let response =
                if status == "401" { response } else { response.content("application/json", json.clone()) };
            operation = operation.response(status, response);
        }
        let parameter = |name: &str, place, required| {
            let text = ObjectBuilder::new().schema_type(Type::String).build();
            ParameterBuilder::new()
                .name(name)
                .parameter_in(place)
                .required(required)
                .schema(Some(text))
                .build()
        };
        for name in variables(api) {
            operation = operation.parameter(parameter(name, ParameterIn::Path, Required::True));
        }
        for key in route.keys {
            operation = operation.parameter(parameter(key, ParameterIn::Query, Required::False));
        }
        paths.add_path_operation(format!("/api{api}"), vec![HttpMethod::Get], operation.build());
    }
    paths
}

/// The variable parts of a path.
fn variables(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}
