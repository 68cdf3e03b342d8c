//! The page of the HTTP interface, from its `OpenAPI` document.

use serde_json::{Map, Value};

use super::markdown;

const INTRODUCTION: &str = "\
# HTTP interface

The daemon serves these paths if jobs.toml has an `[http]` section. The interface is read-only: it accepts `GET` and `HEAD`. The [console](../operate/console.md) is an exception: its actions are `POST` requests, and it serves further paths below `/api`, which `/api/openapi.json` of its daemon lists. Without \
`token` in `[http]` it accepts only connections from this host. With it, every request except `/healthz` needs the header \
`Authorization: Bearer TOKEN`, or is answered with 401. `/api/openapi.json` is the OpenAPI document from which this page is generated.

## Limits

Clients cannot take what billing needs. A client is an address, an IPv6 network of 64 bits, or a user of a Unix socket.

| limit | value |
|---|---|
| requests of one client | 200 at once, and 100 per second after that; more are answered with 429 |
| open connections | 64, of which 32 of one client; more are closed |
| requests of one connection | 1 |
| time for the header of a request | 5 seconds |
| duration of a connection | 30 seconds |

A path or a query with a control character, such as `%00`, is answered with 400.

";

pub(crate) fn page() -> String {
    let document = serde_json::to_value(billing_daemon::http::document()).expect("the document is JSON");
    let mut page = INTRODUCTION.to_owned();
    page += "## Paths\n\n";
    for (path, methods) in object(&document["paths"]) {
        for (_, operation) in object(&methods) {
            page += &format!("### {path}\n\n{}", paragraphs(&operation));
            page += &parameters(&operation);
            page += &responses(&operation);
        }
    }
    page += "## Objects\n\n";
    for (name, schema) in object(&document["components"]["schemas"]) {
        page += &format!("### {name}\n\n{}{}", paragraphs(&schema), fields(&schema));
    }
    page
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn paragraphs(of: &Value) -> String {
    let mut paragraphs = String::new();
    for text in [&of["summary"], &of["description"]].into_iter().filter_map(Value::as_str) {
        paragraphs += &format!("{}\n\n", markdown::sentence(text));
    }
    paragraphs
}

fn parameters(operation: &Value) -> String {
    let rows: Vec<_> = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|parameter| {
            let name = parameter["name"].as_str().unwrap_or_default();
            let description = parameter["description"].as_str().unwrap_or_default();
            vec![markdown::code(name), kind(&parameter["schema"]), markdown::text(description)]
        })
        .collect();
    if rows.is_empty() { String::new() } else { markdown::table(&["parameter", "type", "meaning"], &rows) }
}

fn responses(operation: &Value) -> String {
    let rows: Vec<_> = object(&operation["responses"])
        .iter()
        .map(|(status, response)| {
            let body = object(&response["content"]);
            let body = body.iter().next().map(|(media, content)| match kind(&content["schema"]).as_str() {
                "string" => markdown::code(media),
                kind => kind.to_owned(),
            });
            let description = response["description"].as_str().unwrap_or_default();
            vec![status.clone(), body.unwrap_or_default(), markdown::text(description)]
        })
        .collect();
    markdown::table(&["status", "body", "meaning"], &rows)
}

fn fields(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> =
            values.iter().map(|value| markdown::code(value.as_str().unwrap_or_default())).collect();
        return format!("One of {}.\n\n", values.join(", "));
    }
    let rows: Vec<_> = object(&schema["properties"])
        .iter()
        .map(|(name, of)| {
            let description = of["description"].as_str().unwrap_or_default();
            vec![markdown::code(name), kind(of), markdown::text(description)]
        })
        .collect();
    if rows.is_empty() {
        format!("{}\n\n", kind(schema))
    } else {
        markdown::table(&["field", "type", "meaning"], &rows)
    }
}

/// The type of a value in a few words.
fn kind(of: &Value) -> String {
    if let Some(name) = of["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    if let Some(alternatives) = of["oneOf"].as_array().or(of["anyOf"].as_array()).or(of["allOf"].as_array()) {
        return alternatives.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    if let Some(types) = of["type"].as_array() {
        let types: Vec<_> = types.iter().filter_map(Value::as_str).collect();
        return types.iter().map(|name| named(name, of)).collect::<Vec<_>>().join(" or ");
    }
    of["type"].as_str().map_or_else(|| "any".to_owned(), |name| named(name, of))
}

fn named(name: &str, of: &Value) -> String {
    match (name, of["format"].as_str()) {
        ("array", _) => format!("list of {}", kind(&of["items"])),
        ("object", _) if !of["additionalProperties"].is_null() => {
            format!("object of {}", kind(&of["additionalProperties"]))
        }
        ("string", Some("date-time")) => "instant".to_owned(),
        ("string", Some(format)) => format.to_owned(),
        _ => name.to_owned(),
    }
}
