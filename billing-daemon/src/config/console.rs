//! The `[http.console]` table: whether operators may use the console, and how they prove who they are.

use std::path::PathBuf;

use billing_kinds::Secret;
use url::Url;

use super::{
    http::Listen,
    report::Section,
    tables::{ConsoleTable, ProxyTable},
};

/// The most that a person may do on this listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleAccess {
    /// There is no console.
    #[default]
    Off,
    /// The pages are shown, and every action is refused.
    Read,
    /// Actions are performed for persons with the right to them.
    Operate,
}

/// What a proxy may report about a person who is neither an operator nor an approver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherPersons {
    /// They may read.
    View,
    /// They may do nothing.
    #[default]
    None,
}

/// The `[http.console]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSettings {
    /// The most that a person may do.
    pub access: ConsoleAccess,
    /// Where the pages are: `/console`, or another path without a slash at its end.
    pub path: String,
    /// Where browsers reach the console, if that is through a proxy.
    pub public_url: Option<Url>,
    /// The file with the hashes of the tokens.
    pub tokens_file: Option<PathBuf>,
    /// What signs the cookies; a random key of the process if it is unset.
    pub session_key: Option<Secret>,
    /// The URL with the login that may write what applies to one customer.
    pub adjust_database_url: Option<Secret>,
    /// A proxy that signs people in.
    pub proxy: Option<ProxySettings>,
}

/// The `[http.console.proxy]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// The header with the person's name.
    pub user_header: String,
    /// What the proxy sends to prove that it is the proxy.
    pub secret: Secret,
    /// Who may view, operate and read the audit log.
    pub operators: Vec<String>,
    /// Who may view, approve and read the audit log.
    pub approvers: Vec<String>,
    /// What everyone else may do.
    pub others: OtherPersons,
}

/// Where the pages are unless `path` is set.
pub(super) const PATH: &str = "/console";

/// Reads `[http.console]`; `None` if there is no console.
pub(super) fn read(http: &Section<'_, '_>, listen: Option<&Listen>) -> Option<ConsoleSettings> {
    let section = http.table::<ConsoleTable>("console", "a table")?;
    let access = section.choice("access").map(serde_spanned::Spanned::into_inner).unwrap_or_default();
    let settings = ConsoleSettings {
        access,
        path: path(&section).unwrap_or_else(|| PATH.to_owned()),
        public_url: public_url(&section),
        tokens_file: section.string("tokens-file").map(|path| PathBuf::from(path.into_inner())),
        session_key: super::http::secret_elsewhere(&section, "session-key"),
        adjust_database_url: super::http::secret_elsewhere(&section, "adjust-database-url"),
        proxy: proxy(&section),
    };
    if access == ConsoleAccess::Off {
        return None;
    }
    let report = section.report();
    if !cfg!(feature = "console") {
        report.error(section.span(), "this program was built without the feature `console`");
    }
    if matches!(listen, Some(Listen::Tcp(address)) if !address.ip().is_loopback()) {
        let help = "listen on 127.0.0.1 or a Unix socket, behind a proxy that speaks TLS".to_owned();
        report.error_with_help(section.span(), "the console must not listen for other hosts", Some(help));
    }
    if http.value("token").is_some() {
        let help =
            "remove `token` of [http]: the console signs people in, and other paths need none on loopback";
        let message = "the console cannot be combined with `token`, which no browser can send";
        report.error_with_help(section.span(), message, Some(help.to_owned()));
    }
    let needs_sign_in = !matches!(listen, Some(Listen::Unix(_)));
    if needs_sign_in && section.value("tokens-file").is_none() && section.value("proxy").is_none() {
        let help = "set `tokens-file`, or [http.console.proxy]".to_owned();
        report.error_with_help(section.span(), "no one can sign in to the console", Some(help));
    }
    Some(settings)
}

/// Reads a path such as `/console`, of letters, digits, `-` and `_`.
fn path(section: &Section<'_, '_>) -> Option<String> {
    let text = section.string("path")?;
    let parse = |text: &str| {
        let is_plain = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let parts = text.strip_prefix('/').filter(|parts| parts.split('/').all(is_plain));
        if parts.is_some_and(|parts| !["api", "metrics", "healthz", "readyz"].contains(&parts)) {
            return Ok(text.to_owned());
        }
        Err(format!("invalid path `{text}`: use a path such as `{PATH}`"))
    };
    section.parsed("path", &text, parse).map(serde_spanned::Spanned::into_inner)
}

fn public_url(section: &Section<'_, '_>) -> Option<Url> {
    let text = section.string("public-url")?;
    let parse = |text: &str| {
        let url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        let is_plain = |url: &Url| {
            url.has_host() && url.username().is_empty() && url.query().is_none() && url.fragment().is_none()
        };
        url.filter(is_plain).ok_or_else(|| {
            format!("invalid URL `{text}`: use a URL such as `https://ops.example.com/billing`")
        })
    };
    section.parsed("public-url", &text, parse).map(serde_spanned::Spanned::into_inner)
}

fn proxy(section: &Section<'_, '_>) -> Option<ProxySettings> {
    let proxy = section.table::<ProxyTable>("proxy", "a table")?;
    let header = proxy.string("user-header").and_then(|text| {
        let parse = |text: &str| match axum::http::HeaderName::try_from(text) {
            Ok(name) => Ok(name.as_str().to_owned()),
            Err(_) => Err(format!("invalid header name `{text}`")),
        };
        proxy.parsed("user-header", &text, parse)
    });
    let secret = super::http::secret_elsewhere(&proxy, "secret");
    let names = |key| proxy.strings(key).unwrap_or_default();
    let (operators, approvers) = (names("operators"), names("approvers"));
    let others = proxy.choice("others").map(serde_spanned::Spanned::into_inner).unwrap_or_default();
    Some(ProxySettings { user_header: header?.into_inner(), secret: secret?, operators, approvers, others })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{HOURLY, check, job};

    #[test]
    fn mistakes_in_console_are_reported() {
        let sign_in = "jobs.toml:9:1: no one can sign in to the console\nhelp: set `tokens-file`, or [http.console.proxy]";
        let open = "jobs.toml:9:1: the console must not listen for other hosts\nhelp: listen on 127.0.0.1 or a Unix socket, behind \
                    a proxy that speaks TLS";
        let local = "127.0.0.1:9464";
        for (listen, console, expected) in [
            (local, "access = 'off'", vec![]),
            (local, "access = 'operate'", vec![sign_in]),
            (local, "access = 'read'\ntokens-file = 'tokens'", vec![]),
            ("unix:/run/http.sock", "access = 'operate'", vec![]),
            ("0.0.0.0:9464", "access = 'read'\ntokens-file = 'tokens'", vec![open]),
            (
                local,
                "access = 'read'\ntokens-file = 'tokens'\npath = '/api'",
                vec!["jobs.toml:12:8: `path`: invalid path `/api`: use a path such as `/console`"],
            ),
            (
                local,
                "access = 'read'\ntokens-file = 'tokens'\npublic-url = 'ops.example.com'",
                vec![
                    "jobs.toml:12:14: `public-url`: invalid URL `ops.example.com`: use a URL such as `https://ops.example.com/billing`",
                ],
            ),
            (
                local,
                "access = 'read'\nproxy = { user-header = 'a b', secret = 'x' }",
                vec![
                    "jobs.toml:11:25: `user-header`: invalid header name `a b`",
                    "jobs.toml:11:41: `secret` must be { env = \"NAME\" } or { file = \"/path\" }, not the secret itself",
                ],
            ),
        ] {
            let token = if listen.starts_with("0.") { "token = { file = '/t' }\n" } else { "\n" };
            let http = format!("\n[http]\nlisten = '{listen}'\n{token}[http.console]\n{console}\n");
            let mut expected = expected;
            let combined = "jobs.toml:9:1: the console cannot be combined with `token`, which no browser can send\nhelp: remove \
                            `token` of [http]: the console signs people in, and other paths need none on loopback";
            if listen.starts_with("0.") {
                expected.insert(0, combined);
                expected.sort_unstable();
            }
            check(&format!("{}{http}", job(HOURLY)), &expected);
        }
    }
}
