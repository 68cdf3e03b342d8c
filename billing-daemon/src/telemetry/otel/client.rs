//! How a request gets to the collector: with the client that is here anyway, on the one thread that sends.

use std::{
    io::Read as _,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig},
};

use super::settings::Settings;

/// How much of an answer is read.
const MAX_ANSWER: u64 = 64 << 10;

/// Blocks its thread while it waits, for at most its timeout.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    /// Why the last request failed: what sends it tells the status at best.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut tls = TlsConfig::builder().client_cert(settings.identity.clone());
        if let Some(authorities) = &settings.authorities {
            tls = tls.root_certs(RootCerts::new_with_certs(authorities));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(settings.timeout))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .proxy(None)
            .tls_config(tls.build())
            .build()
            .into();
        Self { agent, trouble: Arc::default() }
    }

    /// Why the last request failed, if it did.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let answer = self.agent.run(Request::from_parts(head, &body[..]))?;
        let (head, body) = answer.into_parts();
        let mut bytes = Vec::new();
        // An answer that breaks off has told its status all the same.
        let _ = body.into_reader().take(MAX_ANSWER).read_to_end(&mut bytes);
        Ok(Response::from_parts(head, bytes.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.send(request);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        answer.map_err(Into::into)
    }
}
