//! The `[http]` table: whether and where questions are answered.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::report::Section;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On this loopback address.
    Tcp(SocketAddr),
    /// On this socket.
    Unix(PathBuf),
}

/// The `[http]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where to listen.
    pub listen: Listen,
    /// Host names that requests may use, in addition to those of loopback.
    pub allowed_hosts: Vec<String>,
    /// Ids of users that may connect to a Unix socket, in addition to root and the user of the daemon.
    pub allowed_uids: Vec<u32>,
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
                Err(format!("`{text}` names no socket: write `unix:/run/billing-daemon/http.sock`"))
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is no address: write `127.0.0.1:9464` or `unix:/path/of/a.sock`")
        })?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!(
                "`{text}` can be reached from other machines, and nothing here asks who they are: listen on 127.0.0.1 or \
                 [::1], and let a proxy with TLS and logins lead there"
            ))
        }
    }
}

pub(super) const KEYS: [&str; 3] = ["listen", "allowed-hosts", "allowed-uids"];

/// What `[http]` says, if it is there.
pub(super) fn read(root: &Section<'_, '_>) -> Option<HttpSettings> {
    let section = root.table("http", "a table", &KEYS)?;
    section.require(&["listen"]);
    let allowed_hosts = section.strings("allowed-hosts").unwrap_or_default();
    let allowed_uids = section.numbers("allowed-uids").unwrap_or_default();
    let text = section.string("listen")?;
    let listen = section.parsed("listen", &text, str::parse)?;
    Some(HttpSettings { listen: listen.into_inner(), allowed_hosts, allowed_uids })
}
