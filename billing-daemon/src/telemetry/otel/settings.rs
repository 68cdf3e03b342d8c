//! What the environment says about traces, by the names that OpenTelemetry gave: <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>.

use std::{path::Path, str::FromStr, time::Duration};

use billing_kinds::pem;
use opentelemetry::KeyValue;
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;
use ureq::{
    http::{HeaderName, HeaderValue},
    tls::{Certificate, ClientCert, PrivateKey},
};
use url::Url;

use crate::config::{Diagnostic, environment::Environment};

const SERVICE_NAME: &str = "billing-daemon";
/// Shorter ones are words, and hiding them would only garble the log.
const SHORTEST_SECRET: usize = 8;

/// Where traces go, and which.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The collector, with its path.
    pub(super) endpoint: Url,
    pub(super) headers: Vec<(String, String)>,
    /// How long an answer may take.
    pub(super) timeout: Duration,
    /// Who is believed to be the collector; the authorities that everybody knows if nobody is named.
    pub(super) authorities: Option<Vec<Certificate<'static>>>,
    /// Who we are to it.
    pub(super) identity: Option<ClientCert>,
    pub(super) sampler: Sampler,
    /// Whose spans they are: `service.name` is among them.
    pub(super) resource: Vec<KeyValue>,
    /// How long spans wait for others to be sent with.
    pub(super) delay: Duration,
    /// How many wait at most; those beyond are lost.
    pub(super) queue: usize,
    /// How many are sent at once.
    pub(super) batch: usize,
}

impl Settings {
    /// What `environment` says; nothing if it names no collector.
    pub(super) fn of(environment: &Environment) -> Result<Option<Self>, Vec<Diagnostic>> {
        let Some((name, collector)) = environment.collector() else { return Ok(None) };
        let mut read = Reader { environment, problems: Vec::new() };
        read.both("PROTOCOL", |text| match text {
            "http/protobuf" => Ok(()),
            _ => Err(
                "only `http/protobuf` is spoken here: write that, and let the endpoint be the collector's port for HTTP, \
                 which is mostly 4318"
                    .to_owned(),
            ),
        });
        read.both("COMPRESSION", |text| match text {
            "none" => Ok(()),
            _ => Err("nothing is compressed here: write `none`, or leave it out".to_owned()),
        });
        read.one("OTEL_TRACES_EXPORTER", |text| match text {
            "otlp" => Ok(()),
            _ => Err("traces are sent by `otlp` or by `none`".to_owned()),
        });
        let endpoint = read.judge(name, endpoint(collector, name.ends_with("_TRACES_ENDPOINT")));
        let headers = read.both("HEADERS", headers).unwrap_or_default();
        let timeout = read.both("TIMEOUT", number);
        let authorities = read.both("CERTIFICATE", certificates);
        let identity = read.client_certificate();
        let sampler = read.sampler();
        let mut resource = read.one("OTEL_RESOURCE_ATTRIBUTES", attributes).unwrap_or_default();
        let service = environment.text("OTEL_SERVICE_NAME");
        let is_named = resource.iter().any(|attribute| attribute.key.as_str() == "service.name");
        if let Some(service) = service.or((!is_named).then_some(SERVICE_NAME)) {
            resource.retain(|attribute| attribute.key.as_str() != "service.name");
            resource.push(KeyValue::new("service.name", service.to_owned()));
        }
        let delay = read.one("OTEL_BSP_SCHEDULE_DELAY", number);
        let queue = read.one("OTEL_BSP_MAX_QUEUE_SIZE", number);
        let batch = read.one("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", number);
        match endpoint {
            Some(endpoint) if read.problems.is_empty() => Ok(Some(Self {
                endpoint,
                headers,
                timeout: Duration::from_millis(timeout.unwrap_or(10_000)),
                authorities,
                identity,
                sampler,
                resource,
                delay: Duration::from_millis(delay.unwrap_or(5_000)),
                queue: queue.unwrap_or(2_048),
                batch: batch.unwrap_or(512),
            })),
            _ => Err(read.problems),
        }
    }

    /// Where traces go, as it is said: what is asked there may be a key.
    pub(super) fn collector(&self) -> String {
        let mut url = self.endpoint.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.into()
    }

    /// What must not be said: the values of headers, which may be keys.
    pub(super) fn secrets(&self) -> Vec<String> {
        let values = self.headers.iter().map(|(_, value)| value.as_str());
        let parts = values.flat_map(|value| [Some(value), value.split_once(' ').map(|(_, token)| token)]);
        let secrets = parts.flatten().filter(|value| value.len() >= SHORTEST_SECRET);
        secrets.map(str::to_owned).collect()
    }
}

/// Reads settings, and remembers what is wrong.
struct Reader<'a> {
    environment: &'a Environment,
    problems: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn judge<T>(&mut self, name: &'static str, value: Result<T, String>) -> Option<T> {
        value.map_err(|problem| self.problems.push(self.environment.problem(name, &problem))).ok()
    }

    fn one<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = parse(self.environment.text(name)?);
        self.judge(name, value)
    }

    /// A setting of traces, or else of all that is sent.
    fn both<T>(&mut self, setting: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let name = self.environment.of_traces(setting)?;
        self.one(name, parse)
    }

    fn client_certificate(&mut self) -> Option<ClientCert> {
        let chain = self.both("CLIENT_CERTIFICATE", certificates);
        let key = self.both("CLIENT_KEY", private_key);
        match (chain, key) {
            (Some(chain), Some(key)) => Some(ClientCert::new_with_certs(&chain, key)),
            (None, None) => None,
            _ => {
                // One of them that cannot be read is told already.
                if self.problems.is_empty() {
                    let missing = "it takes both OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY";
                    let set = ["CLIENT_CERTIFICATE", "CLIENT_KEY"];
                    let set = set.iter().find_map(|setting| self.environment.of_traces(setting));
                    self.problems.extend(set.map(|name| self.environment.problem(name, missing)));
                }
                None
            }
        }
    }

    fn sampler(&mut self) -> Sampler {
        let is_ratio = |text: &str| text.ends_with("traceidratio");
        let of_ratio = self.environment.text("OTEL_TRACES_SAMPLER").is_some_and(is_ratio);
        let ratio = self.one("OTEL_TRACES_SAMPLER_ARG", |text| match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            // It may be meant for another sampler, of another program.
            _ if !of_ratio => Ok(1.0),
            _ => Err(format!("`{text}` is no part of all traces: write a number from 0 to 1, such as 0.1")),
        });
        let ratio = Sampler::TraceIdRatioBased(ratio.unwrap_or(1.0));
        let if_parent = |otherwise| Sampler::ParentBased(Box::new(otherwise));
        let sampler = self.one("OTEL_TRACES_SAMPLER", |text| match text {
            "always_on" => Ok(Sampler::AlwaysOn),
            "always_off" => Ok(Sampler::AlwaysOff),
            "traceidratio" => Ok(ratio),
            "parentbased_always_on" => Ok(if_parent(Sampler::AlwaysOn)),
            "parentbased_always_off" => Ok(if_parent(Sampler::AlwaysOff)),
            "parentbased_traceidratio" => Ok(if_parent(ratio)),
            _ => Err(format!(
                "`{text}` is unknown here: write always_on, always_off, traceidratio, or one of these after parentbased_"
            )),
        });
        sampler.unwrap_or_else(|| if_parent(Sampler::AlwaysOn))
    }
}

fn endpoint(text: &str, has_path: bool) -> Result<Url, String> {
    // A login in it is not repeated.
    let url: Url = text.parse().map_err(|_| "this is no address: write one such as http://127.0.0.1:4318")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("an address here begins with http:// or https://, as in http://127.0.0.1:4318".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("no login belongs into the address: write it into OTEL_EXPORTER_OTLP_HEADERS, as in \
             `authorization=Basic%20...`"
            .to_owned());
    }
    if has_path {
        return Ok(url);
    }
    let mut url = url;
    url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    Ok(url)
}

/// `name=value,name=value` with percents in the values.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').filter(|(name, _)| !name.trim().is_empty())?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().to_owned(), value.into_owned()))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| "expected `name=value`, several of them with commas between".to_owned())
}

fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let headers = pairs(text)?;
    for (name, value) in &headers {
        if HeaderName::from_str(name).is_err() || HeaderValue::from_str(value).is_err() {
            return Err(format!(
                "`{name}` cannot be sent as a header: its name or its value has characters that none has"
            ));
        }
    }
    Ok(headers)
}

fn attributes(text: &str) -> Result<Vec<KeyValue>, String> {
    Ok(pairs(text)?.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect())
}

fn number<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    number.ok_or_else(|| format!("`{text}` is no whole number from 1 up"))
}

fn certificates(path: &str) -> Result<Vec<Certificate<'static>>, String> {
    pem::certificates(Path::new(path)).map_err(|error| format!("cannot read {path}: {error}"))
}

fn private_key(path: &str) -> Result<PrivateKey<'static>, String> {
    pem::private_key(Path::new(path)).map_err(|error| format!("cannot read {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Option<Settings>, Vec<Diagnostic>> {
        let lookup =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let folder = tempfile::tempdir().expect("a folder");
        Settings::of(&Environment::load(lookup, folder.path(), None).expect("readable"))
    }

    const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

    #[test]
    fn traces_go_where_the_environment_says_and_nowhere_else() {
        for (variables, expected) in [
            (vec![], None),
            (vec![("OTEL_SERVICE_NAME", "a")], None),
            (vec![COLLECTOR], Some("http://127.0.0.1:4318/v1/traces")),
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a/b/")], Some("https://a/b/v1/traces")),
            (vec![COLLECTOR, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1/c")], Some("http://b:1/c")),
            (vec![COLLECTOR, ("OTEL_SDK_DISABLED", "true")], None),
            (vec![COLLECTOR, ("OTEL_SDK_DISABLED", "TRUE")], None),
            (vec![COLLECTOR, ("OTEL_SDK_DISABLED", "false")], Some("http://127.0.0.1:4318/v1/traces")),
            (vec![COLLECTOR, ("OTEL_TRACES_EXPORTER", "none")], None),
            (vec![COLLECTOR, ("OTEL_TRACES_EXPORTER", "otlp")], Some("http://127.0.0.1:4318/v1/traces")),
        ] {
            let settings = settings(&variables).expect("nothing is wrong");
            let endpoint = settings.map(|settings| settings.endpoint.to_string());
            assert_eq!(endpoint.as_deref(), expected, "{variables:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_with_what_to_write_and_without_a_secret() {
        for (name, value, advice) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318", "begins with http:// or https://"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "s3cret", "write one such as http://127.0.0.1:4318"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "http://a:s3cret@b",
                "write it into OTEL_EXPORTER_OTLP_HEADERS",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "write that, and let the endpoint be"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "only `http/protobuf`"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "write `none`, or leave it out"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "by `otlp` or by `none`"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret", "expected `name=value`"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=s3cret", "`a b` cannot be sent"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=s3cret%0A", "`a` cannot be sent"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "`10s` is no whole number from 1 up"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem", "cannot read /nowhere.pem"),
            (
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                "/dev/null",
                "cannot read /dev/null: it has no certificate in PEM",
            ),
            (
                "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                "/dev/null",
                "cannot read /dev/null: it has no private key in PEM",
            ),
            ("OTEL_TRACES_SAMPLER", "xray", "write always_on"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a", "expected `name=value`"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1", "no whole number"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "no whole number"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many", "no whole number"),
        ] {
            let problems = settings(&[COLLECTOR, (name, value)]).expect_err(value);
            let [problem] = &problems[..] else { panic!("{problems:?}") };
            let problem = problem.to_string();
            assert!(problem.starts_with(&format!("environment: {name}: ")), "{problem}");
            assert!(problem.contains(advice), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
        let ratio = [COLLECTOR, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert!(settings(&ratio).expect_err("too much")[0].to_string().contains("such as 0.1"));
        assert!(settings(&[COLLECTOR, ("OTEL_TRACES_SAMPLER_ARG", "endpoint=x")]).is_ok(), "nobody reads it");
    }

    #[test]
    fn what_is_said_is_what_is_used() {
        let settings = settings(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://a/traces?key=s3cret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret-token,x-team=a"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "700"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20bed,service.name=other"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ])
        .expect("nothing is wrong")
        .expect("there is a collector");
        assert_eq!(settings.headers[0].1, "Bearer s3cret-token");
        assert_eq!(settings.endpoint.as_str(), "https://a/traces?key=s3cret");
        assert_eq!(settings.collector(), "https://a/traces");
        assert_eq!(settings.secrets(), ["Bearer s3cret-token", "s3cret-token"]);
        assert_eq!(settings.timeout, Duration::from_millis(700));
        assert_eq!(settings.delay, Duration::from_millis(50));
        assert_eq!(
            settings.resource,
            [
                KeyValue::new("deployment.environment.name", "test bed"),
                KeyValue::new("service.name", "other")
            ]
        );
        assert_eq!(format!("{:?}", settings.sampler), "ParentBased(TraceIdRatioBased(0.25))");
    }

    #[test]
    fn the_service_has_a_name() {
        for (variables, expected) in [
            (vec![], "billing-daemon"),
            (vec![("OTEL_SERVICE_NAME", "a")], "a"),
            (vec![("OTEL_RESOURCE_ATTRIBUTES", "service.name=b")], "b"),
            (vec![("OTEL_SERVICE_NAME", "a"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=b")], "a"),
        ] {
            let variables = [vec![COLLECTOR], variables].concat();
            let settings = settings(&variables).expect("nothing is wrong").expect("there is a collector");
            assert_eq!(settings.resource, [KeyValue::new("service.name", expected)], "{variables:?}");
        }
    }
}
