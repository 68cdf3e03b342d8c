//! Calls a URL: a report, a webhook, a sign of life.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, serde_json::json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ureq::http::{Uri, uri::InvalidUri};

use crate::{Secret, SecretError};

/// How much of an answer is read.
const MAX_ANSWER: u64 = 16 * 1024;
/// How much of it an error shows.
const SHOWN: usize = 200;

/// The parameters of kind `http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HttpParams {
    /// Where the request goes.
    pub url: Secret,
    /// How it is made.
    #[serde(default)]
    pub method: Method,
    /// What it has for headers.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// What is sent with it.
    #[serde(default)]
    pub body: Option<String>,
    /// Which statuses count as done; any 2xx if none is named.
    #[serde(default)]
    #[schemars(inner(range(max = 65_535)))]
    pub expect_status: Vec<u16>,
    /// How long everything may take, from the look-up of the name to the last byte.
    #[serde(default = "half_a_minute", with = "billing_scheduler::duration")]
    #[schemars(with = "String", regex(pattern = billing_scheduler::duration::PATTERN))]
    pub timeout: Duration,
}

/// What is asked of a server.
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

/// One request, with every secret in it; shown without them.
pub struct Request {
    /// Where to.
    pub url: String,
    /// How.
    pub method: Method,
    /// With these.
    pub headers: Vec<(String, String)>,
    /// And this.
    pub body: Option<String>,
    /// For everything, from the name to the last byte.
    pub timeout: Duration,
}

/// Why a request got no answer. Says to which server, and nothing else of the URL.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL is none.
    #[error("the URL is malformed: {0}")]
    Url(#[from] InvalidUri),
    /// A header is none, or the URL is no http one.
    #[error("the request to {server} is malformed: a header or the URL is not valid")]
    Request {
        /// Its scheme and host.
        server: String,
    },
    /// The server could not be reached, or did not answer.
    #[error("no answer from {server}: {reason}")]
    NoAnswer {
        /// Its scheme and host.
        server: String,
        /// What went wrong.
        reason: String,
    },
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

impl Http {
    /// Makes requests as `params` say.
    #[must_use]
    pub fn new(params: HttpParams) -> Self {
        Self { params }
    }

    fn request(&self, ctx: &JobContext) -> Result<Request, SecretError> {
        let params = &self.params;
        let mut headers = Vec::new();
        for (name, value) in &params.headers {
            headers.push((name.clone(), value.read()?));
        }
        if !matches!(params.method, Method::Get | Method::Head) {
            let occurrence = &ctx.occurrence;
            let key = format!("\"{}@{}\"", occurrence.job, occurrence.scheduled_at.timestamp());
            headers.push(("Idempotency-Key".to_owned(), key));
        }
        Ok(Request {
            url: params.url.read()?,
            method: params.method,
            headers,
            body: params.body.clone(),
            timeout: params.timeout,
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
        // A thread of its own, left alone when the run is to stop: the request's timeout ends it.
        let answer = tokio::task::spawn_blocking(move || request.send());
        let (status, body) = tokio::select! {
            biased;
            _ = ctx.stopped() => return Ok(Outcome::Interrupted { items: 0 }),
            answer = answer => match answer.map_err(JobError::retry)? {
                Ok(answer) => answer,
                Err(error @ HttpError::NoAnswer { .. }) => return Err(JobError::retry(error)),
                Err(error) => return Err(JobError::fatal(error)),
            },
        };
        ctx.report(json!({ "status": status, "bytes": body.len() }));
        if self.expects(status) {
            return Ok(Outcome::Done { items: 1, details: ctx.reported() });
        }
        let shown: String = body.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
        let message = format!("{server} answered with status {status}: {shown}");
        Err(match status {
            408 | 425 | 429 | 500..=599 => JobError::retry(message),
            _ => JobError::fatal(message),
        })
    }
}

impl Request {
    /// Asks, waits, and gives the status and the beginning of the answer. Blocks its thread for at most its timeout.
    pub fn send(self) -> Result<(u16, String), HttpError> {
        let server = server(&self.url);
        let uri: Uri = self.url.parse()?;
        let mut builder = ureq::http::Request::builder().method(self.method.as_str()).uri(uri);
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        let malformed = |_| HttpError::Request { server: server.clone() };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(self.timeout))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .proxy(None)
            .user_agent(concat!("billing-daemon/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let sent = match self.body {
            Some(body) => agent.run(builder.body(body).map_err(malformed)?),
            None => agent.run(builder.body(()).map_err(malformed)?),
        };
        let no_answer =
            |error: ureq::Error| HttpError::NoAnswer { server: server.clone(), reason: reason(&error) };
        let mut answer = sent.map_err(no_answer)?;
        let mut bytes = Vec::new();
        // An answer that breaks off has told its status all the same.
        let _ = std::io::Read::read_to_end(
            &mut std::io::Read::take(answer.body_mut().as_reader(), MAX_ANSWER),
            &mut bytes,
        );
        Ok((answer.status().as_u16(), String::from_utf8_lossy(&bytes).into_owned()))
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

/// What of a URL is no secret.
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

/// What went wrong, without the URL.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the URL is not valid".to_owned(),
        error => error.to_string(),
    }
}
