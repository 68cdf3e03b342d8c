//! The `[http]` table: whether and where HTTP is served.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{report::Section, tables::HttpTable};

/// The address of the HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At this loopback address.
    Tcp(SocketAddr),
    /// At this Unix socket.
    Unix(PathBuf),
}

/// The `[http]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address on which the server listens.
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
                Err(format!(
                    "invalid socket `{text}`: use an absolute path, such as `unix:/run/billing-daemon/http.sock`"
                ))
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("invalid address `{text}`: use `127.0.0.1:9464` or `unix:/path/of/a.sock`")
        })?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!(
                "`{text}` is reachable from other hosts, which are not authenticated here: use 127.0.0.1 or [::1], and a \
                 proxy with TLS and authentication"
            ))
        }
    }
}

/// Reads `[http]`, if the file has it.
pub(super) fn read(root: &Section<'_, '_>) -> Option<HttpSettings> {
    let section = root.table::<HttpTable>("http", "a table")?;
    let allowed_hosts = section.strings("allowed-hosts").unwrap_or_default();
    let allowed_uids = section.numbers("allowed-uids").unwrap_or_default();
    let text = section.string("listen")?;
    let listen = section.parsed("listen", &text, str::parse)?;
    Some(HttpSettings { listen: listen.into_inner(), allowed_hosts, allowed_uids })
}
