//! Access rules: which peer, which host name, which method, and how many requests per second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, State},
    http::{HeaderMap, Method, Request, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::PeerIdentity;
use crate::config::http::{HttpSettings, Listen};

/// The number of requests that may come at once, and the number per second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 100.0;

/// The rules of one listener.
pub(crate) struct AccessPolicy {
    /// The accepted values of the `Host` header; `None` on a Unix socket, which a browser cannot reach.
    hosts: Option<Vec<String>>,
    /// The users that a Unix socket accepts: root, the user of this process, and those that the configuration names.
    uids: Vec<u32>,
    rate_limit: Mutex<RateLimit>,
}

impl AccessPolicy {
    pub(crate) fn new(settings: &HttpSettings) -> Self {
        let own = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let hosts =
            own.into_iter().chain(settings.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()));
        Self {
            hosts: matches!(settings.listen, Listen::Tcp(_)).then(|| hosts.collect()),
            uids: [0, crate::host::platform::uid()].iter().chain(&settings.allowed_uids).copied().collect(),
            rate_limit: Mutex::new(RateLimit { left: BURST, at: Instant::now() }),
        }
    }

    /// Returns the response to a request that is rejected.
    fn rejection(
        &self,
        peer: PeerIdentity,
        method: &Method,
        headers: &HeaderMap,
        now: Instant,
    ) -> Option<(StatusCode, &'static str)> {
        if let PeerIdentity::User(uid) = peer
            && !uid.is_some_and(|uid| self.uids.contains(&uid))
        {
            let message = "only root, the user of the daemon, and the users in `allowed-uids` in the [http] section of jobs.toml \
                           may use this socket\n";
            return Some((StatusCode::FORBIDDEN, message));
        }
        if let Some(hosts) = &self.hosts
            && !is_allowed(headers, hosts)
        {
            let message = "this host name is not in `allowed-hosts` in the [http] section of jobs.toml\n";
            return Some((StatusCode::MISDIRECTED_REQUEST, message));
        }
        if method != Method::GET && method != Method::HEAD {
            return Some((StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"));
        }
        let mut rate_limit = self.rate_limit.lock().unwrap_or_else(PoisonError::into_inner);
        (!rate_limit.take(now)).then_some((StatusCode::TOO_MANY_REQUESTS, "too many requests\n"))
    }
}

/// Whether the `Host` header has an allowed name. This rejects a web page whose name was rebound to this address.
fn is_allowed(headers: &HeaderMap, hosts: &[String]) -> bool {
    let mut named = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return false };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|host| hosts.contains(&host.host().to_ascii_lowercase()))
}

/// A token bucket.
struct RateLimit {
    left: f64,
    at: Instant,
}

impl RateLimit {
    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + since * PER_SECOND).min(BURST), now);
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

pub(super) async fn check(
    State(policy): State<Arc<AccessPolicy>>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    request: Request<Body>,
    next: Next,
) -> Response {
    if let Some(rejection) = policy.rejection(peer, request.method(), request.headers(), Instant::now()) {
        return rejection.into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn policy(listen: &str) -> AccessPolicy {
        policy_with(listen, Vec::new())
    }

    fn policy_with(listen: &str, allowed_uids: Vec<u32>) -> AccessPolicy {
        let listen = listen.parse().expect("an address");
        AccessPolicy::new(&HttpSettings {
            listen,
            allowed_hosts: vec!["Billing.internal".to_owned()],
            allowed_uids,
        })
    }

    fn named(host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a header"));
        headers
    }

    #[test]
    fn unknown_host_name_is_rejected() {
        let (policy, now) = (policy("127.0.0.1:9464"), Instant::now());
        for (host, accepted) in [
            ("127.0.0.1:9464", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("[::1]:9464", true),
            ("billing.internal:443", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("", false),
        ] {
            let rejection = policy.rejection(PeerIdentity::Loopback, &Method::GET, &named(host), now);
            assert_eq!(rejection.is_none(), accepted, "{host}");
        }
        let mut twice = named("localhost");
        twice.append(header::HOST, "evil.example".parse().expect("a header"));
        assert!(policy.rejection(PeerIdentity::Loopback, &Method::GET, &twice, now).is_some());
        assert!(policy.rejection(PeerIdentity::Loopback, &Method::GET, &HeaderMap::new(), now).is_some());
        let post = policy.rejection(PeerIdentity::Loopback, &Method::POST, &named("localhost"), now);
        assert_eq!(post.map(|(status, _)| status), Some(StatusCode::METHOD_NOT_ALLOWED));
    }

    #[test]
    fn socket_accepts_only_permitted_users() {
        let own = rustix::process::geteuid().as_raw();
        let (none, one) = (Vec::new(), vec![own + 4_711]);
        for (allowed, uid, accepted) in [
            (&none, Some(0), true),
            (&none, Some(own), true),
            (&none, Some(own + 4_711), false),
            (&none, None, false),
            (&one, Some(0), true),
            (&one, Some(own + 4_711), true),
            (&one, Some(own + 4_712), false),
            (&one, None, false),
        ] {
            let policy = policy_with("unix:/run/http.sock", allowed.clone());
            let rejection =
                policy.rejection(PeerIdentity::User(uid), &Method::GET, &HeaderMap::new(), Instant::now());
            assert_eq!(rejection.is_none(), accepted, "{uid:?} of {allowed:?}");
        }
    }

    #[test]
    fn excess_requests_are_rejected_until_later() {
        let (policy, now) = (policy("127.0.0.1:9464"), Instant::now());
        let rejected = |now| {
            let rejection = policy.rejection(PeerIdentity::Loopback, &Method::GET, &named("localhost"), now);
            rejection.map(|(status, _)| status)
        };
        for number in 0..1_000 {
            let expected = (number >= 200).then_some(StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(rejected(now), expected, "request {number}");
        }
        assert_eq!(rejected(now + Duration::from_secs(1)), None);
    }

    #[test]
    fn token_bucket_refills() {
        let start = Instant::now();
        let mut bucket = RateLimit { left: BURST, at: start };
        let taken = (0..1_000).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 200);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..1_000).filter(|_| bucket.take(later)).count(), 50);
        assert_eq!(
            (0..1_000).filter(|_| bucket.take(start)).count(),
            0,
            "a clock that goes back adds nothing"
        );
    }
}
