//! Events by HTTP, signed as <https://www.standardwebhooks.com> describes.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use billing_kinds::{Method, Request, Secret};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;
use url::{Host, Url};

use super::answer::{Answer, Verdict};

/// The limit for one request, from name resolution to the last byte of the response.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How much of a response is read for the operator.
const KEPT: usize = 4 * 1024;
/// How many characters of it are stored.
const SHOWN: usize = 200;
const PREFIX: &str = "whsec_";
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A receiver of webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WebhookTarget {
    pub(super) url: Secret,
    pub(super) secrets: Vec<Secret>,
    pub(super) ca_file: Option<PathBuf>,
}

/// The body of status 409: who holds the instances in which other state, and why.
#[derive(Deserialize)]
struct Hold {
    state: String,
    by: Option<String>,
    reason: Option<String>,
}

impl WebhookTarget {
    /// Sends an event at `now`, in seconds since 1970. Blocks its thread for at most [`TIMEOUT`].
    pub(super) fn send(&self, id: &str, body: &str, now: i64) -> Answer {
        let request = match self.request(id, body, now) {
            Ok(request) => request,
            // The operator may correct a file or a variable while the daemon runs.
            Err(problem) => return Answer::none(problem),
        };
        let response = match request.send() {
            Ok(response) => response,
            Err(error) => return Answer::none(error.to_string()),
        };
        let text = String::from_utf8_lossy(&response.beginning);
        let shown: String = text.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
        let code = i32::from(response.status);
        let verdict = match response.status {
            200 | 204 => Verdict::Done,
            202 => Verdict::Begun,
            410 => Verdict::Refused,
            409 => match serde_json::from_slice::<Hold>(&response.beginning) {
                Ok(Hold { state, by, reason }) => {
                    let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
                    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                    return Answer::new(
                        Verdict::Held,
                        Some(code),
                        format!("held in state {state}{by}{reason}"),
                    );
                }
                Err(_) => Verdict::Failed,
            },
            _ => Verdict::Failed,
        };
        let retry_after = response.retry_after.as_deref().and_then(|seconds| seconds.trim().parse().ok());
        Answer {
            retry_after: retry_after.map(Duration::from_secs),
            ..Answer::new(verdict, Some(code), Some(shown).filter(|shown| !shown.is_empty()))
        }
    }

    fn request(&self, id: &str, body: &str, now: i64) -> Result<Request, String> {
        let url = self.url.read().map_err(|error| error.to_string())?;
        check_transport(&url)?;
        let mut signatures = Vec::new();
        for secret in &self.secrets {
            signatures.push(signature(&secret.read().map_err(|error| error.to_string())?, id, now, body)?);
        }
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", now.to_string()),
            ("webhook-signature", signatures.join(" ")),
        ];
        Ok(Request {
            url,
            method: Method::Post,
            headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            body: Some(body.to_owned()),
            timeout: TIMEOUT,
            ca_file: self.ca_file.clone(),
            kept: KEPT,
        })
    }
}

/// The signature of an event, for the header of this name.
fn signature(secret: &str, id: &str, timestamp: i64, body: &str) -> Result<String, String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key(secret)?).map_err(|error| error.to_string())?;
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    Ok(format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())))
}

/// The key of a secret. No message contains the secret.
pub(super) fn key(secret: &str) -> Result<Vec<u8>, String> {
    let encoded = secret.trim().strip_prefix(PREFIX).ok_or("a secret must begin with `whsec_`")?;
    let key = BASE64.decode(encoded).map_err(|_| "a secret is not base64 after `whsec_`")?;
    if KEY_BYTES.contains(&key.len()) {
        return Ok(key);
    }
    Err(format!("a secret must have 24 to 64 bytes, not {}", key.len()))
}

/// Refuses a URL over which others could read the events.
pub(super) fn check_transport(url: &str) -> Result<(), String> {
    let url = Url::parse(url).map_err(|error| format!("invalid URL: {error}"))?;
    if url.scheme() == "https" || is_loopback(&url) {
        return Ok(());
    }
    Err("the URL must begin with https://, unless the receiver is on this host".to_owned())
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        // The host of a URL whose scheme is not one of the web is a name, even if it is an address.
        Some(Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.
    #[test]
    fn signature_is_that_of_the_specification() {
        let signed = signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            "{\"test\": 2432232314}",
        );
        assert_eq!(signed.as_deref(), Ok("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn only_loopback_is_sent_in_plain_text() {
        for (url, is_allowed) in [
            ("https://panel.example/hooks", true),
            ("http://127.0.0.1:8080/", true),
            ("http://[::1]/", true),
            ("http://localhost/", true),
            ("http://panel.example/hooks", false),
            ("http://127.0.0.1.example/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(check_transport(url).is_ok(), is_allowed, "{url}");
        }
    }
}
