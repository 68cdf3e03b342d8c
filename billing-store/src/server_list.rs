//! The servers that a URL of PostgreSQL names, in every spelling of libpq, and which of them a connection may use.

use std::{ops::Range, str::FromStr, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sea_orm::sqlx::{self, postgres::PgConnectOptions};
use url::Url;

use crate::database_url::{DatabaseUrlError as Error, authority_end};

/// The port of a server whose port is not named.
const DEFAULT_PORT: u16 = 5432;

/// Which servers a connection may use: `target_session_attrs` of libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionTarget {
    /// The first server that answers.
    Any,
    /// A server whose transactions may write.
    ReadWrite,
    /// A server whose transactions may only read.
    ReadOnly,
    /// A server that is not a standby.
    Primary,
    /// A server that follows another one.
    Standby,
    /// A standby, or else any server.
    PreferStandby,
}

impl SessionTarget {
    const NAMES: [(&str, Self); 6] = [
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];

    /// Returns the name in a URL, such as `read-write`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, target)| *target == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for SessionTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        named.map(|(_, target)| target).ok_or(Error::Target)
    }
}

/// What a URL of PostgreSQL names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerList {
    /// The URL of each server, as sqlx reads it. They contain the password.
    urls: Vec<String>,
    pub(crate) target: Option<SessionTarget>,
    /// The time limit for connecting to one server.
    pub(crate) connect_timeout: Option<Duration>,
}

impl ServerList {
    /// Reads a URL with the scheme `postgres` or `postgresql`.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").ok_or(Error::NoScheme)?;
        let (authority, tail) = rest.split_at(authority_end(rest));
        let (user, named) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let mut list = Self::default();
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for part in named.split(',').filter(|_| !named.is_empty()) {
            let (host, port) = split_port(part);
            hosts.push(host.to_owned());
            ports.push(port.to_owned());
        }
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            let values = || value.split(',').map(str::to_owned);
            match &*percent_decode_str(key).decode_utf8_lossy() {
                "host" | "hostaddr" => hosts = values().map(|host| encoded_host(&host)).collect(),
                "port" => ports = values().collect(),
                "target_session_attrs" => list.target = Some(value.parse()?),
                "connect_timeout" => list.connect_timeout = connect_timeout(&value)?,
                _ => kept.push(pair),
            }
        }
        let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        if hosts.is_empty() && ports.is_empty() {
            list.urls = vec![format!("{scheme}://{user}{path}{query}")];
        } else {
            let hosts = if hosts.is_empty() { vec!["localhost".to_owned()] } else { hosts };
            let url = |(host, port)| format!("{scheme}://{user}{host}:{port}{path}{query}");
            list.urls = with_ports(hosts, &ports)?.into_iter().map(url).collect();
        }
        for url in &list.urls {
            Url::parse(url).map_err(Error::Malformed)?;
            options(url).map_err(|error| Error::Option(error.to_string()))?;
        }
        Ok(list)
    }

    /// Returns the options of each server, which were verified when the URL was read.
    pub(crate) fn options(&self) -> Vec<PgConnectOptions> {
        self.urls.iter().filter_map(|url| options(url).ok()).collect()
    }
}

fn options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?;
    // sqlx would resolve the brackets of an IPv6 address as a part of the name.
    let address = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Ok(match address.map(str::to_owned) {
        Some(address) => options.host(&address),
        None => options,
    })
}

/// Splits `host`, `host:port`, `[IPv6]` or `[IPv6]:port`. Without a port, its text is empty.
fn split_port(part: &str) -> (&str, &str) {
    let address_end = part.find(']').map_or(0, |at| at + 1);
    match part[address_end..].find(':') {
        Some(colon) => (&part[..address_end + colon], &part[address_end + colon + 1..]),
        None => (part, ""),
    }
}

/// Returns a host of the query as it is written before the path.
fn encoded_host(host: &str) -> String {
    match host {
        path if path.starts_with('/') => utf8_percent_encode(path, NON_ALPHANUMERIC).to_string(),
        address if address.contains(':') && !address.starts_with('[') => format!("[{address}]"),
        name => name.to_owned(),
    }
}

/// Returns each host with its port: one port is that of all hosts, and an empty one is the default.
fn with_ports(hosts: Vec<String>, ports: &[String]) -> Result<Vec<(String, u16)>, Error> {
    if hosts.iter().any(String::is_empty) {
        return Err(Error::EmptyHost);
    }
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(Error::Ports { hosts: hosts.len(), ports: ports.len() });
    }
    let port = |index: usize| match ports.get(index).or(ports.first()).map_or("", String::as_str) {
        "" => Ok(DEFAULT_PORT),
        port => port.parse().map_err(|_| Error::Malformed(url::ParseError::InvalidPort)),
    };
    hosts.into_iter().enumerate().map(|(index, host)| Ok((host, port(index)?))).collect()
}

/// Reads seconds. Zero is no limit in libpq, and the default here: every wait has a limit.
fn connect_timeout(seconds: &str) -> Result<Option<Duration>, Error> {
    let seconds: u64 = seconds.parse().map_err(|_| Error::ConnectTimeout)?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

/// Returns the range of the user, the password, the hosts and the ports in a URL.
pub(crate) fn authority(url: &str) -> Option<Range<usize>> {
    let start = url.find("://")? + 3;
    Some(start..start + authority_end(&url[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(url: &str) -> Vec<String> {
        let list = ServerList::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        let name = |options: PgConnectOptions| match options.get_socket() {
            Some(folder) => format!("{} {}", folder.display(), options.get_port()),
            None => format!("{} {}", options.get_host(), options.get_port()),
        };
        list.options().into_iter().map(name).collect()
    }

    #[test]
    fn hosts_are_read_in_every_spelling() {
        for (url, expected) in [
            ("postgres://u@a:1,b:2/db", &["a 1", "b 2"][..]),
            ("postgresql://u:p@a,b:2,c:/db", &["a 5432", "b 2", "c 5432"]),
            ("postgres://u@a/db", &["a 5432"]),
            ("postgres://u@a:1/db?port=7", &["a 7"]),
            ("postgres://u@a,b/db?port=7", &["a 7", "b 7"]),
            ("postgres://u@x/db?host=a,b&port=1,2", &["a 1", "b 2"]),
            ("postgres://u@x:7/db?host=a,b", &["a 7", "b 7"]),
            ("postgres:///db?host=a,b,c&port=1,,3&user=u", &["a 1", "b 5432", "c 3"]),
            ("postgres:///db?host=a%2Cb&port=1%2C2", &["a 1", "b 2"]),
            ("postgres:///db?port=7", &["localhost 7"]),
            ("postgres://u@[::1]:1,[2001:db8::1]/db", &["::1 1", "2001:db8::1 5432"]),
            ("postgres:///db?host=::1,[::2]&port=1,2", &["::1 1", "::2 2"]),
            ("postgres:///db?hostaddr=10.0.0.1,10.0.0.2", &["10.0.0.1 5432", "10.0.0.2 5432"]),
            ("postgres:///db?host=/run/a,/run/b b&port=1,2", &["/run/a 1", "/run/b b 2"]),
            ("postgres://u@%2Frun%2Fa,%2Frun%2Fb:2/db", &["/run/a 5432", "/run/b 2"]),
            ("postgres://u@%2Frun%2Fa,b:2/db?sslmode=disable", &["/run/a 5432", "b 2"]),
        ] {
            assert_eq!(servers(url), expected, "{url}");
        }
    }

    #[test]
    fn other_parts_apply_to_each_server() {
        let url = "postgres://ada:s%40cret@a:1,b/panel?sslmode=disable&target_session_attrs=primary\
                   &connect_timeout=4&application_name=x";
        let list = ServerList::parse(url).expect("valid");
        assert_eq!(
            (list.target, list.connect_timeout),
            (Some(SessionTarget::Primary), Some(Duration::from_secs(4)))
        );
        assert_eq!(
            list.urls,
            [
                "postgres://ada:s%40cret@a:1/panel?sslmode=disable&application_name=x",
                "postgres://ada:s%40cret@b:5432/panel?sslmode=disable&application_name=x",
            ]
        );
        for options in list.options() {
            assert_eq!((options.get_username(), options.get_database()), ("ada", Some("panel")));
        }
    }

    #[test]
    fn invalid_server_list_is_rejected() {
        for (url, expected) in [
            ("postgres://a,b/db?port=1,2,3", "2 hosts and 3 ports"),
            ("postgres:///db?host=a&port=1,2", "1 hosts and 2 ports"),
            ("postgres://a,,b/db", "a host is missing"),
            ("postgres://a:b,c/db", "invalid port number"),
            ("postgres://a,b:70000/db", "invalid port number"),
            ("postgres://a,b/db?target_session_attrs=master", "any, read-write, read-only, primary, standby"),
            ("postgres://a,b/db?connect_timeout=soon", "connect_timeout"),
            ("postgres://a,b/db?sslmode=perhaps", "ssl_mode"),
        ] {
            let error = ServerList::parse(url).expect_err(url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
        for (name, target) in SessionTarget::NAMES {
            let list = ServerList::parse(&format!("postgres://a,b/db?target_session_attrs={name}"));
            assert_eq!(list.expect("valid").target, Some(target));
            assert_eq!(target.as_str(), name);
        }
    }
}
