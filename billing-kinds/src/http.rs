//! The job kind `http`: makes a request, for example to a webhook.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _},
    path::PathBuf,
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, duration, serde_json::json};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use ureq::{
    http::{self, Uri},
    tls::{RootCerts, TlsConfig},
};

use crate::{
    Secret, SecretError, UrlError,
    checked::{self, url},
    concealed, pem,
};

/// The number of bytes of a response that are kept for the error message.
const KEPT: usize = 16 * 1024;
/// The number of characters of a response that an error contains.
const SHOWN: usize = 200;
/// The header by which a receiver recognizes a repetition (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The parameters of kind `http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HttpParams {
    /// The URL, with http:// or https://.
    #[serde(deserialize_with = "checked::secret_url")]
    pub url: Secret,
    /// The method of the request.
    #[serde(default)]
    pub method: Method,
    /// The headers of the request. They replace default headers of the same name.
    #[serde(default, deserialize_with = "checked::headers")]
    #[schemars(extend("propertyNames" = { "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$" }))]
    pub headers: BTreeMap<String, Secret>,
    /// The body of the request.
    #[serde(default)]
    pub body: Option<Secret>,
    /// The statuses of a success; any 2xx by default.
    #[serde(default, deserialize_with = "statuses")]
    #[schemars(inner(range(min = 100, max = 599)))]
    pub expect_status: Vec<u16>,
    /// The limit for the whole request, from name resolution to the last byte of the response; 30s by default, at most the timeout
    /// of the job.
    #[serde(default, deserialize_with = "some_duration")]
    #[schemars(with = "Option<String>", regex(pattern = duration::PATTERN))]
    pub timeout: Option<Duration>,
    /// A PEM file of certificate authorities, which replace the public ones.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// An HTTP method.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "HTTP documents them")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

/// The job of kind `http`.
#[derive(Debug)]
pub struct Http {
    params: HttpParams,
}

/// One request, with its secrets. `Debug` does not print them.
pub struct Request {
    /// The URL, with http:// or https://.
    pub url: String,
    /// The method of the request.
    pub method: Method,
    /// The names and values of the headers.
    pub headers: Vec<(String, String)>,
    /// The body, if the request has one.
    pub body: Option<String>,
    /// The limit for the whole request, from name resolution to the last byte of the response.
    pub timeout: Duration,
    /// A PEM file of certificate authorities, which replace the public ones.
    pub ca_file: Option<PathBuf>,
    /// The maximum length of [`Response::beginning`] in bytes.
    pub kept: usize,
}

/// The response of a server.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// The header `Retry-After`.
    pub retry_after: Option<String>,
    /// The beginning of the body.
    pub beginning: Vec<u8>,
    /// The number of bytes of the body that arrived.
    pub bytes: u64,
    /// Why the body did not arrive completely; `None` if it did.
    pub incomplete: Option<HttpError>,
}

/// Why a request failed. The message contains the scheme and host of the URL, but no other part.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL is not valid.
    #[error("{0}")]
    Url(#[from] UrlError),
    /// A header is not valid.
    #[error("cannot build the request to {server}: a header or the URL is not valid")]
    Request {
        /// The scheme and host of the URL.
        server: String,
    },
    /// The certificate authorities cannot be read.
    #[error("cannot read `ca-file` {}: {reason}", path.display())]
    Authorities {
        /// The path of `ca-file`.
        path: PathBuf,
        /// The error of the file system or of the parser.
        reason: String,
    },
    /// The server cannot be reached, or did not respond.
    #[error("no response from {server}: {reason}")]
    NoResponse {
        /// The scheme and host of the URL.
        server: String,
        /// The network error.
        reason: String,
    },
    /// The response is incomplete.
    #[error("the response of {server} is incomplete after {bytes} bytes: {reason}")]
    Incomplete {
        /// The scheme and host of the URL.
        server: String,
        /// The number of bytes of the body that arrived.
        bytes: u64,
        /// The network error.
        reason: String,
    },
}

fn statuses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let statuses = Vec::<u16>::deserialize(deserializer)?;
    match statuses.iter().find(|status| !(100..600).contains(*status)) {
        Some(status) => Err(de::Error::custom(format!("invalid status {status}: use 100 to 599"))),
        None => Ok(statuses),
    }
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::deserialize(deserializer).map(Some)
}

impl HttpParams {
    /// The default of `timeout`.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// Returns the current values of all parameters that come from the environment or a file, to be masked in every output.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let read = |source: &Secret| (!source.is_text()).then(|| source.read().ok()).flatten();
        let mut secrets: Vec<_> = read(&self.url).iter().flat_map(|url| concealed::of_url(url)).collect();
        for (name, source) in &self.headers {
            secrets.extend(read(source).iter().flat_map(|value| concealed::of_entry(name, source, value)));
        }
        if let Some(source) = &self.body {
            secrets.extend(read(source).iter().flat_map(|body| concealed::of_body(source, body)));
        }
        secrets
    }
}

impl Http {
    /// Returns a job that makes the request of `params`.
    #[must_use]
    pub fn new(params: HttpParams) -> Self {
        Self { params }
    }

    fn request(&self, ctx: &JobContext) -> Result<Request, SecretError> {
        let params = &self.params;
        let url = params.url.read()?;
        let mut secrets = concealed::of_url(&url);
        let mut headers = Vec::new();
        for (name, source) in &params.headers {
            let value = source.read()?;
            secrets.extend(concealed::of_entry(name, source, &value));
            headers.push((name.clone(), value));
        }
        let is_own_key = |name: &String| name.eq_ignore_ascii_case(IDEMPOTENCY_KEY);
        if !matches!(params.method, Method::Get | Method::Head) && !params.headers.keys().any(is_own_key) {
            headers.push((IDEMPOTENCY_KEY.to_owned(), format!("\"{}\"", ctx.idempotency_key())));
        }
        let mut body = None;
        if let Some(source) = &params.body {
            let text = source.read()?;
            secrets.extend(concealed::of_body(source, &text));
            body = Some(text);
        }
        ctx.conceal(secrets);
        Ok(Request {
            url,
            method: params.method,
            headers,
            body,
            timeout: params.timeout.unwrap_or(HttpParams::TIMEOUT),
            ca_file: params.ca_file.clone(),
            kept: KEPT + ctx.mask().reach(),
        })
    }

    fn expects(&self, status: u16) -> bool {
        let expected = &self.params.expect_status;
        if expected.is_empty() { (200..300).contains(&status) } else { expected.contains(&status) }
    }
}

#[async_trait]
impl Job for Http {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let request = self.request(ctx).map_err(JobError::retry)?;
        let server = server(&request.url);
        // A separate thread, which continues if the run must stop: the timeout of the request ends it.
        let response = tokio::task::spawn_blocking(move || request.send());
        let response = tokio::select! {
            biased;
            _ = ctx.stopped() => return Ok(Outcome::Interrupted { items: 0 }),
            response = response => response.map_err(JobError::retry)?,
        };
        let Response { status, beginning, bytes, incomplete, .. } =
            response.map_err(|error| match error {
                HttpError::Url(_) | HttpError::Request { .. } => JobError::fatal(error),
                HttpError::Authorities { .. }
                | HttpError::NoResponse { .. }
                | HttpError::Incomplete { .. } => JobError::retry(error),
            })?;
        ctx.report(json!({ "status": status, "bytes": bytes }));
        if self.expects(status) {
            return match incomplete {
                None => Ok(Outcome::Done { items: 1, details: ctx.reported() }),
                Some(error) => Err(JobError::retry(error)),
            };
        }
        let end = beginning.len().min(KEPT);
        let shown = ctx.mask().apply_within(&beginning, 0..end);
        let shown = String::from_utf8_lossy(&shown);
        let shown: String = shown.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
        let message = format!("{server} returned status {status}: {shown}");
        Err(match status {
            408 | 425 | 429 | 500..=599 => JobError::retry(message),
            _ => JobError::fatal(message),
        })
    }
}

impl Request {
    /// Sends the request and reads the whole response, of which it keeps the beginning. Blocks its thread for at most its timeout.
    pub fn send(self) -> Result<Response, HttpError> {
        let server = server(&self.url);
        let mut builder = http::Request::builder().method(self.method.as_str()).uri(url(&self.url)?);
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        let malformed = |_| HttpError::Request { server: server.clone() };
        let mut tls = TlsConfig::builder();
        if let Some(path) = &self.ca_file {
            let unreadable =
                |error: io::Error| HttpError::Authorities { path: path.clone(), reason: error.to_string() };
            tls = tls.root_certs(RootCerts::new_with_certs(&pem::certificates(path).map_err(unreadable)?));
        }
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(self.timeout))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .proxy(None)
            .user_agent(concat!("billing-daemon/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build()
            .into();
        let sent = match self.body {
            Some(body) => agent.run(builder.body(body).map_err(malformed)?),
            None => agent.run(builder.body(()).map_err(malformed)?),
        };
        let no_response =
            |error: ureq::Error| HttpError::NoResponse { server: server.clone(), reason: reason(&error) };
        let mut response = sent.map_err(no_response)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = retry_after.map(str::to_owned);
        let (mut beginning, mut bytes, mut chunk) = (Vec::new(), 0, vec![0; 8 * 1024]);
        let mut body = response.body_mut().as_reader();
        let incomplete = loop {
            match body.read(&mut chunk) {
                Ok(0) => break None,
                Ok(read) => {
                    let kept = read.min(self.kept.saturating_sub(beginning.len()));
                    beginning.extend_from_slice(&chunk[..kept]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(HttpError::Incomplete { server, bytes, reason: error.to_string() }),
            }
        };
        Ok(Response { status, retry_after, beginning, bytes, incomplete })
    }
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/***", self.method.as_str(), server(&self.url))
    }
}

/// Returns the part of a URL that is not secret: the scheme, the host and the port.
fn server(url: &str) -> String {
    let uri = url.parse::<Uri>().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?)));
    parts.map_or_else(
        || "the server".to_owned(),
        |(scheme, authority)| match authority.port_u16() {
            Some(port) => format!("{scheme}://{}:{port}", authority.host()),
            None => format!("{scheme}://{}", authority.host()),
        },
    )
}

/// Returns the text of an error, without the URL.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the URL is not valid".to_owned(),
        error => error.to_string(),
    }
}
