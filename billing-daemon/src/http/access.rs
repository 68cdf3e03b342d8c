//! Access rules: which peer, which host name, which token, which method, and how many requests per second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, State},
    http::{HeaderMap, Method, Request, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use percent_encoding::percent_decode_str;

use super::{peer::PeerIdentity, token::Token};
use crate::config::http::{HttpSettings, Listen};

/// The number of requests of one peer that may come at once, and the number per second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 100.0;

/// The path that needs no token, for probes: it only shows that the process is alive.
pub(super) const PUBLIC_PATH: &str = "/healthz";

/// The rules of one listener.
pub(crate) struct AccessPolicy {
    /// The accepted values of the `Host` header. `None` where no web page of a browser can get an answer: on a Unix socket, and where a
    /// token is needed.
    hosts: Option<Vec<String>>,
    token: Option<Token>,
    /// The users that a Unix socket accepts: root, the user of this process, and those that the configuration names.
    uids: Vec<u32>,
    /// The path below which requests may change something.
    writable: Option<String>,
    rate_limits: Mutex<HashMap<PeerIdentity, RateLimit>>,
}

impl AccessPolicy {
    pub(crate) fn new(settings: &HttpSettings, token: Option<Token>, writable: Option<String>) -> Self {
        let own = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let hosts =
            own.into_iter().chain(settings.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()));
        Self {
            hosts: (token.is_none() && matches!(settings.listen, Listen::Tcp(_))).then(|| hosts.collect()),
            token,
            uids: [0, crate::host::platform::uid()].iter().chain(&settings.allowed_uids).copied().collect(),
            writable,
            rate_limits: Mutex::default(),
        }
    }

    fn is_writable(&self, path: &str) -> bool {
        let below = self.writable.as_ref().and_then(|writable| path.strip_prefix(writable));
        below.is_some_and(|rest| rest.starts_with('/'))
    }

    /// Returns the response to a request that is rejected.
    fn rejection(
        &self,
        peer: PeerIdentity,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        now: Instant,
    ) -> Option<(StatusCode, &'static str)> {
        if !self.is_within_rate(peer, now) {
            return Some((StatusCode::TOO_MANY_REQUESTS, "too many requests\n"));
        }
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
        if let Some(token) = &self.token
            && uri.path() != PUBLIC_PATH
            && !token.is_in(headers)
        {
            return Some((StatusCode::UNAUTHORIZED, "missing or wrong token\n"));
        }
        let is_read = method == Method::GET || method == Method::HEAD;
        let is_permitted_write = method == Method::POST && self.is_writable(uri.path());
        if !is_read && !is_permitted_write {
            return Some((StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"));
        }
        has_control_character(uri)
            .then_some((StatusCode::BAD_REQUEST, "the path or the query contains a control character\n"))
    }

    fn is_within_rate(&self, peer: PeerIdentity, now: Instant) -> bool {
        let mut limits = self.rate_limits.lock().unwrap_or_else(PoisonError::into_inner);
        if !limits.contains_key(&peer) {
            // A peer whose limit is whole again is like a new one, so only those of the last seconds are kept.
            limits.retain(|_, limit| !limit.is_whole(now));
        }
        limits.entry(peer).or_insert(RateLimit { left: BURST, at: now }).take(now)
    }
}

/// Whether the decoded path or query has a control character. No name has one, and PostgreSQL rejects a text with NUL.
fn has_control_character(uri: &Uri) -> bool {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    percent_decode_str(target).decode_utf8_lossy().contains(char::is_control)
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

    fn is_whole(&self, now: Instant) -> bool {
        self.left + now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND >= BURST
    }
}

pub(super) async fn check(
    State(policy): State<Arc<AccessPolicy>>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    if let Some(rejection) = policy.rejection(peer, method, uri, headers, Instant::now()) {
        let needs_token = rejection.0 == StatusCode::UNAUTHORIZED;
        let challenge = needs_token.then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
        return (challenge, rejection).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use billing_kinds::Secret;

    use super::*;

    fn policy(listen: &str) -> AccessPolicy {
        policy_with(listen, Vec::new())
    }

    fn policy_with(listen: &str, allowed_uids: Vec<u32>) -> AccessPolicy {
        let listen = listen.parse().expect("an address");
        let settings = HttpSettings {
            listen,
            token: None,
            allowed_hosts: vec!["Billing.internal".to_owned()],
            allowed_uids,
            console: None,
        };
        AccessPolicy::new(&settings, None, Some("/console".to_owned()))
    }

    /// A peer on this host.
    fn local(last: u8) -> PeerIdentity {
        PeerIdentity::Host([127, 0, 0, last].into())
    }

    fn uri(text: &str) -> Uri {
        text.parse().expect("a path")
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
            let rejection = policy.rejection(local(1), &Method::GET, &uri("/"), &named(host), now);
            assert_eq!(rejection.is_none(), accepted, "{host}");
        }
        let mut twice = named("localhost");
        twice.append(header::HOST, "evil.example".parse().expect("a header"));
        assert!(policy.rejection(local(1), &Method::GET, &uri("/"), &twice, now).is_some());
        assert!(policy.rejection(local(1), &Method::GET, &uri("/"), &HeaderMap::new(), now).is_some());
        for (method, path, accepted) in [
            (Method::POST, "/", false),
            (Method::POST, "/api/jobs", false),
            (Method::POST, "/console", false),
            (Method::POST, "/consoles/jobs", false),
            (Method::POST, "/console/jobs/a/pause", true),
            (Method::PUT, "/console/jobs/a/pause", false),
            (Method::DELETE, "/console/", false),
        ] {
            let rejection = policy.rejection(local(1), &method, &uri(path), &named("localhost"), now);
            let expected = (!accepted).then_some(StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(rejection.map(|(status, _)| status), expected, "{method} {path}");
        }
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
            let (peer, headers) = (PeerIdentity::User(uid), HeaderMap::new());
            let rejection = policy.rejection(peer, &Method::GET, &uri("/"), &headers, Instant::now());
            assert_eq!(rejection.is_none(), accepted, "{uid:?} of {allowed:?}");
        }
    }

    #[test]
    fn token_is_needed_except_for_probe() {
        let listen = "0.0.0.0:9464".parse().expect("an address");
        let (allowed_hosts, allowed_uids) = (Vec::new(), Vec::new());
        let settings = HttpSettings { listen, token: None, allowed_hosts, allowed_uids, console: None };
        let token = Token::read(&Secret::Text("0123456789abcdef".to_owned())).expect("a token");
        let policy = AccessPolicy::new(&settings, Some(token), None);
        for (path, given, accepted) in [
            ("/metrics", Some("Bearer 0123456789abcdef"), true),
            ("/metrics", Some("Bearer 0123456789abcdeF"), false),
            ("/metrics", None, false),
            ("/readyz", None, false),
            ("/unknown", None, false),
            ("/healthz/", None, false),
            ("//healthz", None, false),
            ("/healthz", None, true),
            ("/healthz?verbose", None, true),
        ] {
            let mut headers = named("10.0.0.1:9464");
            headers.extend(given.map(|given| (header::AUTHORIZATION, given.parse().expect("a header"))));
            let rejection = policy.rejection(local(1), &Method::GET, &uri(path), &headers, Instant::now());
            let status = rejection.map(|(status, _)| status);
            assert_eq!(status, (!accepted).then_some(StatusCode::UNAUTHORIZED), "{path} with {given:?}");
        }
    }

    #[test]
    fn control_characters_in_target_are_rejected() {
        let (policy, now) = (policy("127.0.0.1:9464"), Instant::now());
        for (target, accepted) in [
            ("/api/runs?job=a%00", false),
            ("/api/runs?job=%0a", false),
            ("/api/runs?%7f=a", false),
            ("/api/runs?job=%c2%85", false),
            ("/api/%1bruns", false),
            ("/api/runs?job=a%20b+%C3%BC%ff", true),
            ("/api/runs?job=a%2500", true),
        ] {
            let rejection = policy.rejection(local(1), &Method::GET, &uri(target), &named("localhost"), now);
            let status = rejection.map(|(status, _)| status);
            assert_eq!(status, (!accepted).then_some(StatusCode::BAD_REQUEST), "{target}");
        }
    }

    #[test]
    fn excess_requests_of_peer_are_rejected() {
        let (policy, now) = (policy("127.0.0.1:9464"), Instant::now());
        let rejected = |peer, now| {
            let rejection = policy.rejection(peer, &Method::GET, &uri("/"), &named("localhost"), now);
            rejection.map(|(status, _)| status)
        };
        for number in 0..1_000 {
            let expected = (number >= 200).then_some(StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(rejected(local(1), now), expected, "request {number}");
        }
        assert_eq!(rejected(local(2), now), None, "it has a separate limit");
        assert_eq!(rejected(local(1), now + Duration::from_secs(1)), None);
        assert_eq!(rejected(local(3), now + Duration::from_secs(9)), None);
        assert_eq!(policy.rate_limits.lock().expect("no test panicked").len(), 1, "idle peers are forgotten");
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
