//! The URL of a database, whose password must not be printed.

use std::{fmt, net::IpAddr, ops::Range, path::PathBuf, str::FromStr};

use billing_scheduler::MASK;
use percent_encoding::percent_decode_str;
use sea_orm::{
    DbBackend,
    sqlx::postgres::{PgConnectOptions, PgSslMode},
};
use url::Url;

use crate::server_list::{ServerList, SessionTarget, authority};

/// The URL of a database. `Debug` and `Display` print `***` instead of the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    text: String,
    backend: DbBackend,
    /// Empty for SQLite.
    servers: ServerList,
}

/// Why a text is not a valid database URL. No message contains the text, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// There is no `scheme:`.
    #[error("the database URL has no scheme: begin it with postgres:// or sqlite://")]
    NoScheme,
    /// The scheme is not that of a supported database.
    #[error("the database URL begins with `{0}:`, which is not supported: use postgres:// or sqlite://")]
    Scheme(String),
    /// The URL contains white space or a control character.
    #[error(
        "the database URL has a blank or a control character: write it as % and its two digits, a blank as %20"
    )]
    Blank,
    /// The user name or the password contains a character with a meaning in URLs.
    #[error(
        "the database URL has `@` or `#` where it cannot be: in a user name or password write @ as %40, # as %23, / as %2F, ? as %3F and : as %3A"
    )]
    Unescaped,
    /// A list of hosts has an empty entry.
    #[error("a host is missing in the database URL: write postgres://user@a:5432,b:5432/database")]
    EmptyHost,
    /// The numbers of hosts and ports do not match.
    #[error(
        "the database URL names {hosts} hosts and {ports} ports: name one port for all hosts, or one for each"
    )]
    Ports {
        /// The number of hosts.
        hosts: usize,
        /// The number of ports.
        ports: usize,
    },
    /// An unknown kind of server.
    #[error(
        "invalid target_session_attrs in the database URL: use any, read-write, read-only, primary, standby or prefer-standby"
    )]
    Target,
    /// The time limit is not a number.
    #[error("invalid connect_timeout in the database URL: use a whole number of seconds")]
    ConnectTimeout,
    /// sqlx rejects an option.
    #[error("the database URL has an invalid option: {0}")]
    Option(String),
    /// The URL of an SQLite database has no file name.
    #[error("the database URL names no file: write sqlite://billing.db, or sqlite::memory:")]
    NoFile,
    /// The URL has another syntax error.
    #[error(
        "the database URL is malformed ({0}): write postgres://user:password@host:5432/database, with / in a password as %2F, or sqlite://file"
    )]
    Malformed(url::ParseError),
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use DatabaseUrlError as Error;
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').ok_or(Error::NoScheme)?;
        // The text before the first colon is printed only if it looks like a scheme, because it may be a secret.
        let named = scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let backend = match scheme.to_ascii_lowercase().as_str() {
            "postgres" | "postgresql" => DbBackend::Postgres,
            "sqlite" => DbBackend::Sqlite,
            _ if named && rest.starts_with("//") => return Err(Error::Scheme(scheme.to_owned())),
            _ => return Err(Error::NoScheme),
        };
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Error::Blank);
        }
        let servers = match (backend, rest.strip_prefix("//")) {
            (DbBackend::Sqlite, name) => {
                // SeaORM panics on a URL that this parser rejects.
                Url::parse(text).map_err(Error::Malformed)?;
                if matches!(name.unwrap_or(rest).chars().next(), None | Some('?')) {
                    return Err(Error::NoFile);
                }
                ServerList::default()
            }
            (_, None) => return Err(Error::NoScheme),
            (_, Some(rest)) => {
                let servers = ServerList::parse(text)?;
                if rest.contains('#') || rest[authority_end(rest)..].contains('@') {
                    return Err(Error::Unescaped);
                }
                servers
            }
        };
        Ok(Self { text: text.to_owned(), backend, servers })
    }
}

impl DatabaseUrl {
    /// Returns the URL with its password, for connecting only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns whether the database is PostgreSQL or SQLite.
    #[must_use]
    pub fn backend(&self) -> DbBackend {
        self.backend
    }

    /// Returns which servers of PostgreSQL a connection may use, if the URL restricts that (`target_session_attrs`).
    #[must_use]
    pub fn session_target(&self) -> Option<SessionTarget> {
        self.servers.target
    }

    pub(crate) fn servers(&self) -> &ServerList {
        &self.servers
    }

    /// Returns the URL with `mode=rwc`, so that SQLite creates a missing file. An explicit `mode` is kept.
    #[must_use]
    pub fn creating(&self) -> Self {
        let (file, query) =
            self.text.split_once('?').map_or((self.text.as_str(), None), |(a, b)| (a, Some(b)));
        let stated = query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("mode=")));
        if self.backend != DbBackend::Sqlite || stated || file.ends_with(":memory:") {
            return self.clone();
        }
        let separator = if query.is_some() { '&' } else { '?' };
        Self { text: format!("{}{separator}mode=rwc", self.text), ..self.clone() }
    }

    /// Returns the URL without `mode=rwc`, for commands that must not create a file.
    #[must_use]
    pub fn existing(&self) -> Self {
        let Some((file, query)) = self.text.split_once('?').filter(|_| self.backend == DbBackend::Sqlite)
        else {
            return self.clone();
        };
        let kept: Vec<_> = query.split('&').filter(|pair| *pair != "mode=rwc").collect();
        let separator = if kept.is_empty() { "" } else { "?" };
        Self { text: format!("{file}{separator}{}", kept.join("&")), ..self.clone() }
    }

    /// Returns the first host of the database that is remote and whose certificate is not verified.
    #[must_use]
    pub fn unverified_host(&self) -> Option<String> {
        self.servers.options().iter().find_map(unverified_host)
    }

    /// Returns the file of an SQLite database; `None` for PostgreSQL and for a database in memory.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        let name = self
            .text
            .split('?')
            .next()?
            .strip_prefix("sqlite:")
            .filter(|_| self.backend == DbBackend::Sqlite)?;
        let name = name.strip_prefix("//").unwrap_or(name);
        (name != ":memory:").then(|| PathBuf::from(percent_decode_str(name).decode_utf8_lossy().into_owned()))
    }

    /// Returns the file with the private key of the client certificate, if the URL has one.
    #[must_use]
    pub fn key_file(&self) -> Option<PathBuf> {
        let (_, query) = self.text.split_once('?').filter(|_| self.backend != DbBackend::Sqlite)?;
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        let key = pairs.find(|(key, _)| matches!(&**key, "sslkey" | "ssl-key"));
        key.map(|(_, file)| PathBuf::from(&*file))
    }

    /// Returns `text` with `***` instead of the password of this URL, percent-encoded or decoded. Errors of the database layer may
    /// contain it.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.secrets().iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
    }

    /// Returns every form in which the password may be printed, the longest first.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let mut secrets = Vec::new();
        for range in secret_ranges(&self.text) {
            let written = &self.text[range];
            for secret in [written.to_owned(), decoded(written), decoded(&written.replace('+', " "))] {
                // The form in a quoted string, in JSON or in Rust's `{:?}`.
                let quoted = format!("{secret:?}");
                secrets.push(quoted[1..quoted.len() - 1].to_owned());
                secrets.push(secret);
            }
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        secrets
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = 0;
        for secret in secret_ranges(&self.text) {
            f.write_str(&self.text[shown..secret.start])?;
            f.write_str(MASK)?;
            shown = secret.end;
        }
        f.write_str(&self.text[shown..])
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Returns the host of a server if it is remote and its certificate is not verified.
fn unverified_host(options: &PgConnectOptions) -> Option<String> {
    let host = options.get_host();
    let is_here = options.get_socket().is_some()
        || host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
    (!is_here && !is_verified).then(|| host.to_owned())
}

/// Returns the ranges of the passwords in a URL: that of the user, and those in the query.
fn secret_ranges(url: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    if let Some(Range { start, end }) = authority(url)
        && let Some(at) = url[start..end].rfind('@')
        && let Some(colon) = url[start..start + at].find(':')
    {
        ranges.push(start + colon + 1..start + at);
    }
    let mut start = url.find('?').map_or(url.len(), |at| at + 1);
    for pair in url[start..].split('&') {
        if let Some((key, value)) = pair.split_once('=') {
            let key = percent_decode_str(key).decode_utf8_lossy().to_ascii_lowercase();
            if key.contains("pass") {
                ranges.push(start + pair.len() - value.len()..start + pair.len());
            }
        }
        start += pair.len() + 1;
    }
    ranges
}

/// Returns the end of user, password, host and port in the text after `//`.
pub(crate) fn authority_end(rest: &str) -> usize {
    rest.find(['/', '?', '#']).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> DatabaseUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn password_is_never_printed() {
        for (text, shown) in [
            ("postgres://ada:s3cret@db:5432/panel", "postgres://ada:***@db:5432/panel"),
            ("postgresql://ada:s3%40cret@db/panel", "postgresql://ada:***@db/panel"),
            ("postgres://ada:s3@cret@db/panel", "postgres://ada:***@db/panel"),
            ("postgres://ada:s3:cret@[::1]/panel", "postgres://ada:***@[::1]/panel"),
            ("postgres://ada@db/panel", "postgres://ada@db/panel"),
            ("postgres://ada:s3cret@a:1,b:2/panel", "postgres://ada:***@a:1,b:2/panel"),
            (
                "postgres:///panel?host=/run/postgresql&password=s3cret&user=ada",
                "postgres:///panel?host=/run/postgresql&password=***&user=ada",
            ),
            ("postgres://db/panel?sslp%61ssword=s3cret", "postgres://db/panel?sslp%61ssword=***"),
            ("sqlite:///var/lib/billing.db?mode=rwc", "sqlite:///var/lib/billing.db?mode=rwc"),
            ("sqlite::memory:", "sqlite::memory:"),
        ] {
            assert_eq!(url(text).to_string(), shown);
            assert_eq!(format!("{:?}", url(text)), format!("DatabaseUrl({shown})"));
            assert_eq!(url(text).expose(), text);
        }
    }

    #[test]
    fn password_is_redacted_in_every_form() {
        let scrub = |url_text: &str, text: &str| url(url_text).redact(text);
        let encoded = "postgres://ada:a%22b%2Fc@db/panel";
        assert_eq!(
            scrub(encoded, "cannot open postgres://ada:a%22b%2Fc@db"),
            "cannot open postgres://ada:***@db"
        );
        assert_eq!(scrub(encoded, r#"password a"b/c is wrong"#), "password *** is wrong");
        assert_eq!(scrub(encoded, r#"Options { password: "a\"b/c" }"#), r#"Options { password: "***" }"#);
        assert_eq!(scrub("postgres://db/panel?password=a+b", "wrong: a b, a+b"), "wrong: ***, ***");
        assert_eq!(scrub("postgres://ada:@db/panel", "nothing to hide"), "nothing to hide");
    }

    #[test]
    fn invalid_url_is_rejected_without_repeating_it() {
        for (text, reason) in [
            ("", "the database URL has no scheme: begin it with postgres:// or sqlite://"),
            ("s3cret", "the database URL has no scheme: begin it with postgres:// or sqlite://"),
            ("db:5432/s3cret", "the database URL has no scheme: begin it with postgres:// or sqlite://"),
            ("postgres:s3cret", "the database URL has no scheme: begin it with postgres:// or sqlite://"),
            (
                "mysql://ada:s3cret@db/panel",
                "the database URL begins with `mysql:`, which is not supported: use postgres:// or sqlite://",
            ),
            (
                "postgres://ada:s3 cret@db/panel",
                "the database URL has a blank or a control character: write it as % and its two digits, a blank as %20",
            ),
            (
                "postgres://a,,b/panel",
                "a host is missing in the database URL: write postgres://user@a:5432,b:5432/database",
            ),
            ("sqlite://", "the database URL names no file: write sqlite://billing.db, or sqlite::memory:"),
            (
                "sqlite:?mode=rwc",
                "the database URL names no file: write sqlite://billing.db, or sqlite::memory:",
            ),
            (
                "postgres://ada:s3/cret@db/panel",
                "the database URL is malformed (invalid port number): write postgres://user:password@host:5432/database, with / in a password as %2F, or sqlite://file",
            ),
        ] {
            assert_eq!(text.parse::<DatabaseUrl>().expect_err(text).to_string(), reason, "{text}");
        }
        for text in
            ["postgres://ada:12#s3cret@db", "postgres://ada:12/s3cret@db", "postgres://ada:12?s3cret@db"]
        {
            assert_eq!(text.parse::<DatabaseUrl>(), Err(DatabaseUrlError::Unescaped), "{text}");
        }
    }

    #[test]
    fn remote_database_needs_verified_tls() {
        for (text, host) in [
            ("postgres://ada@db/panel", Some("db")),
            ("postgres://ada@db/panel?sslmode=require", Some("db")),
            ("postgres://ada@db/panel?sslmode=verify-ca", Some("db")),
            ("postgres://ada@db/panel?sslmode=verify-full", None),
            ("postgres://ada@db/panel?ssl-mode=verify-full&sslrootcert=/ca.pem", None),
            ("postgres://ada@10.0.0.7/panel", Some("10.0.0.7")),
            ("postgres://ada@[2001:db8::1]/panel", Some("2001:db8::1")),
            ("postgres://ada@localhost/panel", None),
            ("postgres://ada@LOCALHOST/panel", None),
            ("postgres://ada@localhost.example.com/panel", Some("localhost.example.com")),
            ("postgres://ada@127.0.0.1:6432/panel", None),
            ("postgres://ada@127.9.9.9/panel", None),
            ("postgres://ada@[::1]/panel", None),
            ("postgres:///panel?host=/run/postgresql", None),
            ("postgres:///panel?host=db", Some("db")),
            ("postgres://localhost/panel?host=db", Some("db")),
            ("postgres://%2Frun%2Fpostgresql/panel", None),
            ("postgres://ada@localhost,127.0.0.1:5433/panel", None),
            ("postgres://ada@localhost,db/panel", Some("db")),
            ("postgres://ada@a,b/panel?sslmode=verify-full", None),
            ("postgres:///panel?host=/run/postgresql,db", Some("db")),
            ("sqlite://billing.db", None),
        ] {
            assert_eq!(url(text).unverified_host().as_deref(), host, "{text}");
        }
    }

    #[test]
    fn file_is_created_only_on_request() {
        for (text, existing) in [
            ("sqlite:///a.db?mode=rwc", "sqlite:///a.db"),
            ("sqlite://a.db?cache=shared&mode=rwc", "sqlite://a.db?cache=shared"),
            ("sqlite://a.db?mode=ro", "sqlite://a.db?mode=ro"),
            ("sqlite://a.db", "sqlite://a.db"),
            ("postgres://h/db?mode=rwc", "postgres://h/db?mode=rwc"),
        ] {
            assert_eq!(url(text).existing().expose(), existing);
        }
        for (text, creating) in [
            ("sqlite://billing.db", "sqlite://billing.db?mode=rwc"),
            ("sqlite:billing.db?cache=private", "sqlite:billing.db?cache=private&mode=rwc"),
            ("sqlite://billing.db?mode=ro", "sqlite://billing.db?mode=ro"),
            ("sqlite::memory:", "sqlite::memory:"),
            ("postgres://db/panel", "postgres://db/panel"),
        ] {
            assert_eq!(url(text).creating().expose(), creating);
        }
        assert_eq!(url("sqlite://billing.db").backend(), DbBackend::Sqlite);
        assert_eq!(url("postgresql://db/panel").backend(), DbBackend::Postgres);
    }
}
