//! Who may ask, how often, and under which name.

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

/// How many questions may come at once, and how many a second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 100.0;

/// The rules of one listener.
pub(crate) struct AccessPolicy {
    /// None on a Unix socket, which no browser can be lured to.
    hosts: Option<Vec<String>>,
    /// Who may ask on a Unix socket: root, the user that we are, and whom the configuration names.
    uids: Vec<u32>,
    budget: Mutex<RateLimit>,
}

impl AccessPolicy {
    pub(crate) fn new(settings: &HttpSettings) -> Self {
        let own = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let hosts =
            own.into_iter().chain(settings.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()));
        Self {
            hosts: matches!(settings.listen, Listen::Tcp(_)).then(|| hosts.collect()),
            uids: [0, crate::host::platform::uid()].iter().chain(&settings.allowed_uids).copied().collect(),
            budget: Mutex::new(RateLimit { left: BURST, at: Instant::now() }),
        }
    }

    /// Why a question is not answered.
    fn refusal(
        &self,
        peer: PeerIdentity,
        method: &Method,
        headers: &HeaderMap,
        now: Instant,
    ) -> Option<(StatusCode, &'static str)> {
        if let PeerIdentity::User(uid) = peer
            && !uid.is_some_and(|uid| self.uids.contains(&uid))
        {
            let message = "this socket is for root, the user of the daemon, and those that `allowed-uids` in the [http] \
                           section of jobs.toml names\n";
            return Some((StatusCode::FORBIDDEN, message));
        }
        if let Some(hosts) = &self.hosts
            && !is_allowed(headers, hosts)
        {
            let message = "this name is not among `allowed-hosts` in the [http] section of jobs.toml\n";
            return Some((StatusCode::MISDIRECTED_REQUEST, message));
        }
        if method != Method::GET && method != Method::HEAD {
            return Some((StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here\n"));
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        (!budget.spend(now)).then_some((StatusCode::TOO_MANY_REQUESTS, "ask less often\n"))
    }
}

/// Whether the question names us as we may be named: a page elsewhere whose name was made to lead here does not.
fn is_allowed(headers: &HeaderMap, hosts: &[String]) -> bool {
    let mut named = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return false };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|host| hosts.contains(&host.host().to_ascii_lowercase()))
}

/// A bucket that fills by itself.
struct RateLimit {
    left: f64,
    at: Instant,
}

impl RateLimit {
    fn spend(&mut self, now: Instant) -> bool {
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
    State(guard): State<Arc<AccessPolicy>>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    request: Request<Body>,
    next: Next,
) -> Response {
    if let Some(refusal) = guard.refusal(peer, request.method(), request.headers(), Instant::now()) {
        return refusal.into_response();
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

    fn guard(listen: &str) -> AccessPolicy {
        guard_with(listen, Vec::new())
    }

    fn guard_with(listen: &str, allowed_uids: Vec<u32>) -> AccessPolicy {
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
    fn a_question_under_another_name_is_not_answered() {
        let (guard, now) = (guard("127.0.0.1:9464"), Instant::now());
        for (host, answered) in [
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
            let refusal = guard.refusal(PeerIdentity::Loopback, &Method::GET, &named(host), now);
            assert_eq!(refusal.is_none(), answered, "{host}");
        }
        let mut twice = named("localhost");
        twice.append(header::HOST, "evil.example".parse().expect("a header"));
        assert!(guard.refusal(PeerIdentity::Loopback, &Method::GET, &twice, now).is_some());
        assert!(guard.refusal(PeerIdentity::Loopback, &Method::GET, &HeaderMap::new(), now).is_some());
        let post = guard.refusal(PeerIdentity::Loopback, &Method::POST, &named("localhost"), now);
        assert_eq!(post.map(|(status, _)| status), Some(StatusCode::METHOD_NOT_ALLOWED));
    }

    #[test]
    fn a_socket_is_for_root_and_for_us_and_for_those_that_are_named() {
        let own = rustix::process::geteuid().as_raw();
        let (none, one) = (Vec::new(), vec![own + 4_711]);
        for (allowed, uid, answered) in [
            (&none, Some(0), true),
            (&none, Some(own), true),
            (&none, Some(own + 4_711), false),
            (&none, None, false),
            (&one, Some(0), true),
            (&one, Some(own + 4_711), true),
            (&one, Some(own + 4_712), false),
            (&one, None, false),
        ] {
            let guard = guard_with("unix:/run/http.sock", allowed.clone());
            let refusal =
                guard.refusal(PeerIdentity::User(uid), &Method::GET, &HeaderMap::new(), Instant::now());
            assert_eq!(refusal.is_none(), answered, "{uid:?} of {allowed:?}");
        }
    }

    #[test]
    fn whoever_asks_without_end_is_refused_until_he_waits() {
        let (guard, now) = (guard("127.0.0.1:9464"), Instant::now());
        let refused = |now| {
            let refusal = guard.refusal(PeerIdentity::Loopback, &Method::GET, &named("localhost"), now);
            refusal.map(|(status, _)| status)
        };
        for number in 0..1_000 {
            let expected = (number >= 200).then_some(StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(refused(now), expected, "question {number}");
        }
        assert_eq!(refused(now + Duration::from_secs(1)), None);
    }

    #[test]
    fn a_budget_is_spent_and_fills_again() {
        let start = Instant::now();
        let mut budget = RateLimit { left: BURST, at: start };
        let spent = (0..1_000).filter(|_| budget.spend(start)).count();
        assert_eq!(spent, 200);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..1_000).filter(|_| budget.spend(later)).count(), 50);
        assert_eq!(
            (0..1_000).filter(|_| budget.spend(start)).count(),
            0,
            "a clock that goes back gives nothing"
        );
    }
}
