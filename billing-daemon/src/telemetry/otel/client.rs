//! The HTTP client of the exporter, which blocks the one thread that sends: ureq is a dependency already.

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

use super::settings::OtelSettings;

/// How much of a response is read.
const MAX_RESPONSE_BYTES: u64 = 64 << 10;

/// Blocks its thread while it waits, for at most its timeout.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    /// Why the last request failed: the error of the exporter contains at most the status.
    error: Arc<Mutex<Option<String>>>,
}

impl Client {
    pub(super) fn new(settings: &OtelSettings) -> Self {
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
        Self { agent, error: Arc::default() }
    }

    /// Returns why the last request failed, if it did.
    pub(super) fn last_error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let (head, body) = self.agent.run(Request::from_parts(head, &body[..]))?.into_parts();
        let mut bytes = Vec::new();
        // The status is known, even if the body is incomplete.
        let _ = body.into_reader().take(MAX_RESPONSE_BYTES).read_to_end(&mut bytes);
        Ok(Response::from_parts(head, bytes.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.send(request);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = match &response {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector responded {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        response.map_err(Into::into)
    }
}
