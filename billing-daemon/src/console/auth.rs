//! Who sends a request, and what this person may do. Pure: the caller reads the file with the tokens and the clock.

use std::{collections::BTreeSet, fmt};

use axum::http::{HeaderMap, HeaderName, header};
use billing_store::audit_log::fingerprint;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Serialize, Serializer};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::{
    config::console::{ConsoleSettings, OtherPersons},
    http::PeerIdentity,
};

/// How long a sign-in lasts.
const SESSION_SECONDS: i64 = 12 * 3_600;
/// The header with which the proxy proves that it is the proxy.
const PROXY_SECRET: HeaderName = HeaderName::from_static("x-billing-proxy-secret");
/// A longer name is not a person's.
const MAX_NAME_BYTES: usize = 255;

/// What a person may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// See every page, and of the audit log the newest row.
    View,
    /// Pause, resume, trigger, replay and cancel.
    Operate,
    /// Approve a spike or a catch-up.
    Approve,
    /// See who changed what, and why.
    AuditLog,
}

impl Right {
    const ALL: [Self; 4] = [Self::View, Self::Operate, Self::Approve, Self::AuditLog];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Approve => "approve",
            Self::AuditLog => "audit-log",
        }
    }

    /// Parses rights with commas between them.
    pub(crate) fn parse_list(text: &str) -> Result<BTreeSet<Self>, String> {
        let parse = |word: &str| {
            let right = Self::ALL.into_iter().find(|right| right.as_str() == word.trim());
            right.ok_or_else(|| format!("unknown right `{word}`: use view, operate, approve or audit-log"))
        };
        text.split(',').map(parse).collect()
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Right {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A person who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Principal {
    pub(super) name: String,
    pub(super) rights: BTreeSet<Right>,
    /// Whether the person can sign out here.
    pub(super) by_cookie: bool,
}

/// Why it is unknown who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuthError {
    /// There is a credential, and it is wrong.
    Wrong,
    /// The name in the header of the proxy is not one name.
    InvalidName,
}

/// A line of the file with the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenLine {
    name: String,
    rights: BTreeSet<Right>,
    /// The SHA-256 of the token, in hexadecimal digits.
    hash: String,
}

impl TokenLine {
    /// A line for a new token.
    pub(crate) fn new(name: &str, rights: BTreeSet<Right>, token: &str) -> Result<Self, String> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_@".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_allowed) {
            return Err(format!("invalid name `{name}`: use up to 64 letters, digits, `-`, `_` and `@`"));
        }
        Ok(Self { name: name.to_owned(), rights, hash: fingerprint(token) })
    }

    /// Parses the file. Empty lines and those that begin with `#` are skipped.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        let parse = |(number, line): (usize, &str)| {
            Self::parse(line).map_err(|error| format!("line {}: {error}", number + 1))
        };
        lines.map(parse).collect()
    }

    fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, rights, hash] = words[..] else {
            return Err("it must have a name, rights and a SHA-256".to_owned());
        };
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash {
            return Err("the last word is not a SHA-256 in 64 hexadecimal digits".to_owned());
        }
        let line = Self::new(name, Right::parse_list(rights)?, "")?;
        Ok(Self { hash: hash.to_ascii_lowercase(), ..line })
    }

    fn principal(&self, by_cookie: bool) -> Principal {
        Principal { name: self.name.clone(), rights: self.rights.clone(), by_cookie }
    }

    /// The proof that this token was used to sign in at `issued`. It has the hash of the token, so that another token ends it.
    fn mac(&self, key: &SessionKey, issued: i64) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("a key of any length");
        mac.update(format!("{}.{issued}.{}", self.name, self.hash).as_bytes());
        hex(&mac.finalize().into_bytes())
    }
}

/// The line as the file has it.
impl fmt::Display for TokenLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rights: Vec<_> = self.rights.iter().map(|right| right.as_str()).collect();
        write!(f, "{} {} {}", self.name, rights.join(","), self.hash)
    }
}

/// Returns the hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for byte in bytes {
        digits.extend([format!("{byte:02x}")]);
    }
    digits
}

fn is_equal(one: &str, other: &str) -> bool {
    bool::from(one.as_bytes().ct_eq(other.as_bytes()))
}

/// Returns the line of `token`.
pub(super) fn line_of<'a>(tokens: &'a [TokenLine], token: &str) -> Option<&'a TokenLine> {
    let hash = fingerprint(token);
    tokens.iter().find(|line| is_equal(&line.hash, &hash))
}

/// What signs the cookies. The tokens file does not have it: its reader could make a cookie.
pub(super) struct SessionKey(Vec<u8>);

impl SessionKey {
    pub(super) fn random() -> Self {
        Self(rand::random::<[u8; 32]>().into())
    }
}

impl From<String> for SessionKey {
    fn from(key: String) -> Self {
        Self(key.into_bytes())
    }
}

/// How persons prove who they are.
pub(super) struct Authentication {
    key: SessionKey,
    settings: ConsoleSettings,
    proxy_secret: Option<String>,
    cookie: Cookie,
    /// The name of this host, for users of a Unix socket.
    host: String,
}

/// The name and the attributes of the cookie.
struct Cookie {
    name: &'static str,
    attributes: String,
}

impl Cookie {
    /// The prefix of the name forbids pages of other hosts to set the cookie; a browser accepts it only with these attributes.
    fn of(settings: &ConsoleSettings) -> Self {
        let public = settings.public_url.as_ref().filter(|url| url.scheme() == "https");
        let (name, scope) = match public.map(|url| url.path().trim_end_matches('/')) {
            None => ("billing-console", "Path=/".to_owned()),
            Some("") => ("__Host-billing-console", "Path=/; Secure".to_owned()),
            Some(path) => ("__Secure-billing-console", format!("Path={path}; Secure")),
        };
        Self { name, attributes: format!("{scope}; HttpOnly; SameSite=Strict") }
    }
}

impl Authentication {
    pub(super) fn new(
        settings: ConsoleSettings,
        proxy_secret: Option<String>,
        key: SessionKey,
        host: String,
    ) -> Self {
        Self { key, cookie: Cookie::of(&settings), settings, proxy_secret, host }
    }

    /// Whether browsers send the cookie over TLS alone.
    pub(super) fn is_secure(&self) -> bool {
        self.cookie.name != "billing-console"
    }

    /// Returns who sent a request at `now`, in seconds since 1970; `None` without any credential.
    pub(super) fn identify(
        &self,
        headers: &HeaderMap,
        peer: PeerIdentity,
        tokens: &[TokenLine],
        now: i64,
    ) -> Result<Option<Principal>, AuthError> {
        if headers.contains_key(header::AUTHORIZATION) {
            let token = bearer(headers).ok_or(AuthError::Wrong)?;
            let line = line_of(tokens, token).ok_or(AuthError::Wrong)?;
            return Ok(Some(line.principal(false)));
        }
        if let Some(person) = self.by_proxy(headers)? {
            return Ok(Some(person));
        }
        if let Some(value) = self.cookie_value(headers) {
            // An old cookie is not an attack: the person signs in again.
            return Ok(self.session(tokens, value, now).map(|line| line.principal(true)));
        }
        Ok(self.by_socket(peer))
    }

    fn by_proxy(&self, headers: &HeaderMap) -> Result<Option<Principal>, AuthError> {
        let Some(proxy) = &self.settings.proxy else { return Ok(None) };
        let mut secrets = headers.get_all(PROXY_SECRET).iter();
        let Some(secret) = secrets.next() else { return Ok(None) };
        let expected = self.proxy_secret.as_deref().unwrap_or_default();
        let is_right = secrets.next().is_none()
            && secret.to_str().is_ok_and(|secret| !expected.is_empty() && is_equal(secret, expected));
        if !is_right {
            return Err(AuthError::Wrong);
        }
        let mut names = headers.get_all(&*proxy.user_header).iter();
        let (name, more) = (names.next(), names.next());
        if more.is_some() {
            return Err(AuthError::InvalidName);
        }
        let Some(name) = name else { return Ok(None) };
        let name = std::str::from_utf8(name.as_bytes()).map_err(|_| AuthError::InvalidName)?.trim();
        if name.is_empty() {
            return Ok(None);
        }
        if name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            return Err(AuthError::InvalidName);
        }
        let mut rights = BTreeSet::new();
        if proxy.operators.iter().any(|operator| operator == name) {
            rights.extend([Right::View, Right::Operate, Right::AuditLog]);
        }
        if proxy.approvers.iter().any(|approver| approver == name) {
            rights.extend([Right::View, Right::Approve, Right::AuditLog]);
        }
        if rights.is_empty() && proxy.others == OtherPersons::View {
            rights.insert(Right::View);
        }
        Ok(Some(Principal { name: name.to_owned(), rights, by_cookie: false }))
    }

    /// A process on this host that the access rules of the socket have admitted.
    fn by_socket(&self, peer: PeerIdentity) -> Option<Principal> {
        let PeerIdentity::User(Some(uid)) = peer else { return None };
        let may_all = uid == 0 || uid == crate::host::platform::uid();
        let rights = if may_all { Right::ALL.into() } else { BTreeSet::from([Right::View]) };
        Some(Principal { name: format!("uid {uid}@{}", self.host), rights, by_cookie: false })
    }

    fn cookie_value<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| name.trim() == self.cookie.name).map(|(_, value)| value.trim())
    }

    /// Returns the line whose token made the cookie `value`, if that is not too old.
    fn session<'a>(&self, tokens: &'a [TokenLine], value: &str, now: i64) -> Option<&'a TokenLine> {
        let (name, rest) = value.split_once('.')?;
        let (issued, mac) = rest.split_once('.')?;
        let issued: i64 = issued.parse().ok()?;
        // The clock of another daemon may be a little ahead.
        let is_fresh = (-300..SESSION_SECONDS).contains(&now.checked_sub(issued)?);
        let is_of = |line: &&TokenLine| line.name == name && is_equal(&line.mac(&self.key, issued), mac);
        tokens.iter().filter(|_| is_fresh).find(is_of)
    }

    /// The cookie of a sign-in with the token of `line` at `now`.
    pub(super) fn sign_in(&self, line: &TokenLine, now: i64) -> String {
        let Cookie { name, attributes } = &self.cookie;
        format!(
            "{name}={}.{now}.{}; {attributes}; Max-Age={SESSION_SECONDS}",
            line.name,
            line.mac(&self.key, now)
        )
    }

    /// The cookie that removes the sign-in.
    pub(super) fn sign_out(&self) -> String {
        let Cookie { name, attributes } = &self.cookie;
        format!("{name}=; {attributes}; Max-Age=0")
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(given), None) = (given.next(), given.next()) else { return None };
    let (scheme, token) = given.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use billing_kinds::Secret;

    use super::*;
    use crate::config::console::{ConsoleAccess, ProxySettings};

    const NOW: i64 = 1_800_000_000;
    const LOOPBACK: PeerIdentity = PeerIdentity::Host(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn settings(public_url: Option<&str>) -> ConsoleSettings {
        ConsoleSettings {
            access: ConsoleAccess::Operate,
            path: "/console".to_owned(),
            public_url: public_url.map(|url| url.parse().expect("a URL")),
            tokens_file: None,
            session_key: None,
            adjust_database_url: None,
            proxy: Some(ProxySettings {
                user_header: "x-remote-user".to_owned(),
                secret: Secret::Text(String::new()),
                operators: vec!["ada".to_owned(), "hal".to_owned()],
                approvers: vec!["grace".to_owned(), "hal".to_owned()],
                others: OtherPersons::None,
            }),
        }
    }

    fn authentication(public_url: Option<&str>) -> Authentication {
        let key = SessionKey::from("key of every daemon".to_owned());
        Authentication::new(settings(public_url), Some("proxy-secret".to_owned()), key, "north".to_owned())
    }

    fn tokens() -> Vec<TokenLine> {
        let line = |name, rights| TokenLine::new(name, Right::parse_list(rights).expect("rights"), name);
        [line("ada", "view,operate"), line("grace", "view,approve")].map(|line| line.expect("a line")).into()
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::try_from(*name).expect("a name");
            headers.append(name, axum::http::HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        headers
    }

    #[test]
    fn tokens_file_is_parsed_line_by_line() {
        let hash = fingerprint("x");
        let text = format!("# who\n\nada view,operate {hash}\n");
        let lines = TokenLine::parse_all(&text).expect("a file");
        assert_eq!(lines[0].to_string(), format!("ada view,operate {hash}"));
        for (line, expected) in [
            ("ada view", "line 1: it must have a name, rights and a SHA-256"),
            ("ada view 12", "line 1: the last word is not a SHA-256 in 64 hexadecimal digits"),
            (
                &format!("ada all {hash}"),
                "line 1: unknown right `all`: use view, operate, approve or audit-log",
            ),
            (
                &format!("a.b view {hash}"),
                "line 1: invalid name `a.b`: use up to 64 letters, digits, `-`, `_` and `@`",
            ),
        ] {
            assert_eq!(TokenLine::parse_all(line).expect_err(line), expected);
        }
    }

    #[test]
    fn credential_identifies_person() {
        let cookie = authentication(None).sign_in(&tokens()[0], NOW);
        let cookie = cookie.split(';').next().expect("a pair");
        let secret = ("x-billing-proxy-secret", "proxy-secret");
        let user = |name| ("x-remote-user", name);
        let (ada, grace) = (Ok(Some("ada: view operate")), Ok(Some("grace: view approve")));
        for (sent, expected) in [
            (vec![], Ok(None)),
            (vec![("authorization", "Bearer ada")], ada),
            (vec![("authorization", "bearer grace")], grace),
            (vec![("authorization", "Bearer eve")], Err(AuthError::Wrong)),
            (vec![("authorization", "Basic ada")], Err(AuthError::Wrong)),
            (vec![("authorization", "Bearer ada"), ("authorization", "Bearer ada")], Err(AuthError::Wrong)),
            // A wrong token is not replaced by a cookie.
            (vec![("authorization", "Bearer eve"), ("cookie", cookie)], Err(AuthError::Wrong)),
            (vec![("cookie", cookie)], ada),
            (vec![("cookie", "other=1; billing-console=ada.1800000000.00")], Ok(None)),
            (vec![("cookie", &cookie.replace("ada", "grace"))], Ok(None)),
            (vec![("cookie", &cookie.replace("1800000000", "1800000001"))], Ok(None)),
            (vec![secret, user("ada")], Ok(Some("ada: view operate audit-log"))),
            (vec![secret, user("hal")], Ok(Some("hal: view operate approve audit-log"))),
            (vec![secret, user("eve")], Ok(Some("eve: "))),
            (vec![secret, user("<b>\u{202e}")], Ok(Some("<b>\u{202e}: "))),
            (vec![secret], Ok(None)),
            (vec![user("ada")], Ok(None)),
            (vec![("x-billing-proxy-secret", "proxy-secreT"), user("ada")], Err(AuthError::Wrong)),
            (vec![("x-billing-proxy-secret", ""), user("ada")], Err(AuthError::Wrong)),
            (vec![secret, secret, user("ada")], Err(AuthError::Wrong)),
            (vec![secret, user("ada"), user("grace")], Err(AuthError::InvalidName)),
        ] {
            let found = authentication(None).identify(&headers(&sent), LOOPBACK, &tokens(), NOW);
            let shown = found.map(|person| {
                person.map(|Principal { name, rights, .. }| {
                    let rights: Vec<_> = rights.iter().map(|right| right.as_str()).collect();
                    format!("{name}: {}", rights.join(" "))
                })
            });
            assert_eq!(shown, expected.map(|shown| shown.map(str::to_owned)), "{sent:?}");
        }
    }

    #[test]
    fn session_ends_with_age_or_token() {
        let mut tokens = tokens();
        let authentication = authentication(None);
        let cookie = authentication.sign_in(&tokens[0], NOW);
        let value = cookie.split(['=', ';']).nth(1).expect("a value").to_owned();
        for (age, accepted) in
            [(0, true), (SESSION_SECONDS - 1, true), (SESSION_SECONDS, false), (-301, false)]
        {
            assert_eq!(authentication.session(&tokens, &value, NOW + age).is_some(), accepted, "{age}");
        }
        let other = Authentication::new(settings(None), None, SessionKey::random(), "north".to_owned());
        assert_eq!(other.session(&tokens, &value, NOW), None, "another daemon has another key");
        tokens[0].hash = fingerprint("another token of the same person");
        assert_eq!(authentication.session(&tokens, &value, NOW), None);
        for value in
            ["", ".", "..", "ada", "ada.", "ada.1", "ada.x.y", "ada.9223372036854775807.0", "ada.-1."]
        {
            assert_eq!(authentication.session(&tokens, value, NOW), None, "{value}");
        }
    }

    #[test]
    fn cookie_prefix_follows_public_url() {
        for (url, expected) in [
            (None, "billing-console=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"),
            (Some("http://ops"), "billing-console=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"),
            (
                Some("https://ops"),
                "__Host-billing-console=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0",
            ),
            (
                Some("https://ops/billing/"),
                "__Secure-billing-console=; Path=/billing; Secure; HttpOnly; SameSite=Strict; Max-Age=0",
            ),
        ] {
            assert_eq!(authentication(url).sign_out(), expected);
        }
    }

    #[test]
    fn socket_users_need_no_token() {
        let own = crate::host::platform::uid();
        for (uid, rights) in [(0, 4), (own, 4), (own + 4_711, 1)] {
            let peer = PeerIdentity::User(Some(uid));
            let person = authentication(None).identify(&HeaderMap::new(), peer, &[], NOW);
            let person = person.expect("no credential is wrong").expect("a person");
            assert_eq!((person.name, person.rights.len()), (format!("uid {uid}@north"), rights));
        }
    }
}
