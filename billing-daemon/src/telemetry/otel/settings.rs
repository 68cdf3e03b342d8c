//! The `OTEL_*` variables that the crates of OpenTelemetry do not read, or do not check. They read all others themselves:
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>.

use std::{path::Path, time::Duration};

use billing_kinds::pem;
use opentelemetry::KeyValue;
use percent_encoding::percent_decode_str;
use ureq::tls::{Certificate, ClientCert};
use url::Url;

const SERVICE_NAME: &str = "billing-daemon";
/// Shorter values are words, and masking them would make the log unreadable.
const MIN_SECRET_LENGTH: usize = 8;

#[derive(Debug)]
pub(super) struct OtelSettings {
    /// The collector's URL with its path.
    pub(super) endpoint: Url,
    /// The values of headers, which may be keys.
    pub(super) secrets: Vec<String>,
    /// How long a response may take.
    pub(super) timeout: Duration,
    /// The authorities to trust instead of the public ones.
    pub(super) authorities: Option<Vec<Certificate<'static>>>,
    /// The certificate of this process.
    pub(super) identity: Option<ClientCert>,
    /// What OpenTelemetry calls the resource: `service.name` and more.
    pub(super) resource: Vec<KeyValue>,
}

impl OtelSettings {
    /// Reads the variables that `lookup` knows; `None` without a collector.
    ///
    /// # Errors
    /// A value is invalid. The message names its variable and contains no secret.
    pub(super) fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let Some((name, url)) = super::collector(&lookup) else { return Ok(None) };
        if lookup("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter != "otlp") {
            return Err("OTEL_TRACES_EXPORTER: use `otlp` or `none`".to_owned());
        }
        let endpoint =
            endpoint(&url, name.contains("_TRACES_")).map_err(|error| format!("{name}: {error}"))?;
        // A variable for traces wins over the one for all signals.
        let otlp = |setting: &str| {
            ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].iter().find_map(|prefix| {
                let name = format!("{prefix}{setting}");
                lookup(&name).map(|value| (name, value))
            })
        };
        let certificates = |setting| read_file(otlp(setting), pem::certificates);
        let chain = certificates("CLIENT_CERTIFICATE")?;
        let key = read_file(otlp("CLIENT_KEY"), pem::private_key)?;
        let identity = match (chain, key) {
            (Some(chain), Some(key)) => Some(ClientCert::new_with_certs(&chain, key)),
            (None, None) => None,
            _ => {
                let names = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY";
                return Err(format!("{names} must both be set"));
            }
        };
        let timeout = otlp("TIMEOUT").and_then(|(_, millis)| millis.parse().ok()).unwrap_or(10_000);
        Ok(Some(Self {
            endpoint,
            secrets: otlp("HEADERS").map(|(_, headers)| secrets(&headers)).unwrap_or_default(),
            timeout: Duration::from_millis(timeout),
            authorities: certificates("CERTIFICATE")?,
            identity,
            resource: resource(&lookup),
        }))
    }

    /// Returns the collector's URL for messages, without its query, which may be a key.
    pub(super) fn destination(&self) -> String {
        let mut url = self.endpoint.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.into()
    }
}

fn endpoint(text: &str, has_path: bool) -> Result<Url, &'static str> {
    // The messages do not repeat the text, which may contain a login.
    let mut url: Url = text.parse().map_err(|_| "invalid URL: use one such as http://127.0.0.1:4318")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("the URL must begin with http:// or https://, as in http://127.0.0.1:4318");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL must not contain a login: use OTEL_EXPORTER_OTLP_HEADERS, as in `authorization=Basic%20...`",
        );
    }
    if !has_path {
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    }
    Ok(url)
}

/// Returns the pairs of `name=value,name=value`, whose values are percent-encoded. Invalid ones are left out, as the exporter does.
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split(',').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_owned(), value.into_owned()))
    })
}

/// Returns the values of `headers`, and the token of one such as `Bearer token`.
fn secrets(headers: &str) -> Vec<String> {
    let parts = pairs(headers).flat_map(|(_, value)| {
        let token = value.split_once(' ').map(|(_, token)| token.to_owned());
        [Some(value), token]
    });
    parts.flatten().filter(|value| value.len() >= MIN_SECRET_LENGTH).collect()
}

/// Returns the attributes of the process; the SDK does not decode percents. Later ones replace earlier ones.
fn resource(lookup: impl Fn(&str) -> Option<String>) -> Vec<KeyValue> {
    let attributes = lookup("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let named = lookup("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
    let default = [("service.name".to_owned(), SERVICE_NAME.to_owned())];
    let all = default.into_iter().chain(pairs(&attributes)).chain(named);
    all.map(|(name, value)| KeyValue::new(name, value)).collect()
}

fn read_file<T, E: std::fmt::Display>(
    variable: Option<(String, String)>,
    read: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<Option<T>, String> {
    let Some((name, path)) = variable else { return Ok(None) };
    read(Path::new(&path)).map(Some).map_err(|error| format!("{name}: cannot read {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

    fn read(variables: &[(&str, &str)]) -> Result<Option<OtelSettings>, String> {
        OtelSettings::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn endpoint_follows_the_variables() {
        let default = Some("http://127.0.0.1:4318/v1/traces");
        for (variables, expected) in [
            (vec![], None),
            (vec![("OTEL_SERVICE_NAME", "a")], None),
            (vec![COLLECTOR], default),
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a/b/")], Some("https://a/b/v1/traces")),
            (vec![COLLECTOR, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1/c")], Some("http://b:1/c")),
            (vec![COLLECTOR, ("OTEL_SDK_DISABLED", "TRUE")], None),
            (vec![COLLECTOR, ("OTEL_SDK_DISABLED", "false")], default),
            (vec![COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")], None),
            (vec![COLLECTOR, ("OTEL_TRACES_EXPORTER", "otlp")], default),
        ] {
            let settings = read(&variables).expect("valid settings");
            let endpoint = settings.map(|settings| settings.endpoint.to_string());
            assert_eq!(endpoint.as_deref(), expected, "{variables:?}");
        }
    }

    #[test]
    fn invalid_value_is_reported_without_secret() {
        for (name, value, help) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318", "begin with http:// or https://"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "s3cret", "use one such as http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:s3cret@b", "use OTEL_EXPORTER_OTLP_HEADERS"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "use `otlp` or `none`"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem", "cannot read /nowhere.pem"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "Cargo.toml", "it has no certificate in PEM"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "Cargo.toml", "it has no private key in PEM"),
        ] {
            let problem = read(&[COLLECTOR, (name, value)]).expect_err(value);
            assert!(problem.starts_with(&format!("{name}: ")) && problem.contains(help), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }

    #[test]
    fn secrets_are_masked_and_not_shown() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://a/traces?key=s3cret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret-token,x-team=a,nonsense"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "700"),
        ]);
        let settings = settings.expect("valid settings").expect("a collector");
        assert_eq!(settings.destination(), "https://a/traces");
        assert_eq!(settings.secrets, ["Bearer s3cret-token", "s3cret-token"]);
        assert_eq!(settings.timeout, Duration::from_millis(700));
    }

    #[test]
    fn service_name_has_an_order() {
        let decoded = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=b%20c");
        for (variables, expected) in [
            (vec![], "billing-daemon"),
            (vec![("OTEL_SERVICE_NAME", "a")], "a"),
            (vec![decoded], "b c"),
            (vec![("OTEL_SERVICE_NAME", "a"), decoded], "a"),
        ] {
            let settings = read(&[vec![COLLECTOR], variables].concat()).expect("valid settings");
            let attributes = settings.expect("a collector").resource;
            let resource = opentelemetry_sdk::Resource::builder_empty().with_attributes(attributes).build();
            let name = resource.get(&"service.name".into());
            assert_eq!(name.map(|name| name.to_string()).as_deref(), Some(expected));
        }
    }
}
