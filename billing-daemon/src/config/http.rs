//! The `[http]` table: whether and where HTTP is served.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use billing_kinds::Secret;
use serde_spanned::Spanned;

use super::{
    console::{self, ConsoleSettings},
    report::Section,
    tables::HttpTable,
};

/// The address of the HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An IP address with a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// The `[http]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address on which the server listens.
    pub listen: Listen,
    /// Where the token is that requests must have. Without one, only this host can connect.
    pub token: Option<Secret>,
    /// Host names that requests may use, in addition to those of loopback.
    pub allowed_hosts: Vec<String>,
    /// Ids of users that may connect to a Unix socket, in addition to root and the user of the daemon.
    pub allowed_uids: Vec<u32>,
    /// The console, if there is one.
    pub console: Option<ConsoleSettings>,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path.to_owned()))
            } else {
                Err(format!(
                    "invalid socket `{text}`: use an absolute path, such as `unix:/run/billing-daemon/http.sock`"
                ))
            };
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| format!("invalid address `{text}`: use `127.0.0.1:9464` or `unix:/path/of/a.sock`"))
    }
}

/// Reads `[http]`, if the file has it.
pub(super) fn read(root: &Section<'_, '_>) -> Option<HttpSettings> {
    let section = root.table::<HttpTable>("http", "a table")?;
    let allowed_hosts = section.strings("allowed-hosts").unwrap_or_default();
    let allowed_uids = section.numbers("allowed-uids").unwrap_or_default();
    let token = secret_elsewhere(&section, "token");
    let listen = section.string("listen").and_then(|text| section.parsed("listen", &text, str::parse));
    let console = console::read(&section, listen.as_ref().map(Spanned::get_ref));
    let listen = listen?;
    if let Listen::Tcp(address) = listen.get_ref()
        && !address.ip().is_loopback()
        && section.value("token").is_none()
    {
        let message = format!("`listen`: other hosts can reach `{address}`, and `token` is not set");
        let help = "set `token = { file = \"/etc/billing-daemon/http-token\" }` in [http], or use 127.0.0.1 or [::1]";
        section.report().error_with_help(&listen.span(), message, Some(help.to_owned()));
    }
    Some(HttpSettings { listen: listen.into_inner(), token, allowed_hosts, allowed_uids, console })
}

/// Reads where a secret is. The file itself must not contain it: other users may read jobs.toml.
pub(super) fn secret_elsewhere(section: &Section<'_, '_>, key: &str) -> Option<Secret> {
    let secret = section.secret(key)?;
    if let Secret::Text(_) = secret {
        let message =
            format!("`{key}` must be {{ env = \"NAME\" }} or {{ file = \"/path\" }}, not the {key} itself");
        section.report().error(&section.value(key)?.span(), message);
        return None;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{HOURLY, check, job},
        *,
    };

    #[test]
    fn listen_is_address_or_socket() {
        for (text, accepted) in [
            ("127.0.0.1:9464", true),
            ("[::1]:9464", true),
            ("0.0.0.0:9464", true),
            ("unix:/run/billing-daemon/http.sock", true),
            ("unix:http.sock", false),
            ("localhost:9464", false),
            ("9464", false),
        ] {
            assert_eq!(text.parse::<Listen>().is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn other_hosts_need_token() {
        let reachable = |address: &str| {
            format!(
                "jobs.toml:7:10: `listen`: other hosts can reach `{address}`, and `token` is not set\nhelp: set \
                 `token = {{ file = \"/etc/billing-daemon/http-token\" }}` in [http], or use 127.0.0.1 or [::1]"
            )
        };
        let text =
            "jobs.toml:8:9: `token` must be { env = \"NAME\" } or { file = \"/path\" }, not the token itself";
        let (file, env) = ("{ file = '/etc/token' }", "{ env = 'TOKEN' }");
        for (listen, token, expected) in [
            ("127.0.0.1:9464", None, None),
            ("[::1]:9464", None, None),
            ("unix:/run/http.sock", None, None),
            ("0.0.0.0:9464", None, Some(reachable("0.0.0.0:9464"))),
            ("10.0.0.1:9464", None, Some(reachable("10.0.0.1:9464"))),
            ("[::]:9464", None, Some(reachable("[::]:9464"))),
            ("0.0.0.0:9464", Some(file), None),
            ("[::]:9464", Some(env), None),
            ("127.0.0.1:9464", Some(env), None),
            ("0.0.0.0:9464", Some("'0123456789abcdef'"), Some(text.to_owned())),
        ] {
            let token = token.map(|token| format!("token = {token}\n")).unwrap_or_default();
            let http = format!("\n[http]\nlisten = \"{listen}\"\n{token}");
            let expected: Vec<_> = expected.iter().map(String::as_str).collect();
            check(&format!("{}{http}", job(HOURLY)), &expected);
        }
    }
}
