//! Connections to the server that suits a caller, of several servers that a URL of PostgreSQL names.
//!
//! sqlx connects to one server. A [`Connector`] tries all of them, in their order, and verifies what each server permits. The server
//! that was used last is tried first.

use std::{
    fmt,
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use sea_orm::sqlx::{
    self, ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    connection_check::{ConnectionCheck, discard_open_connections},
    error_class::{ServerError, is_transient, text},
    server_list::{ServerList, SessionTarget},
};

/// The default time limit for connecting to the only server.
const SINGLE_SERVER_TIMEOUT: Duration = Duration::from_secs(10);
/// The default time limit for connecting to one of several servers.
const SEVERAL_SERVERS_TIMEOUT: Duration = Duration::from_secs(3);
/// The time after which the next server is tried as well, if a server has not answered.
const HEAD_START: Duration = Duration::from_millis(500);
/// The wait between two searches for a server.
const SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// The time limit for closing a connection that is not used.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a caller does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every connection must permit writes, whatever the URL permits.
    Write,
    /// Only what the URL requires. Without a requirement, a server that permits writes is preferred, because a standby may lag behind.
    Read,
}

/// What a server permits.
#[derive(Clone, Copy, Debug)]
struct ServerState {
    read_only: bool,
    standby: bool,
}

/// How well a server suits the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suitability {
    Suitable,
    /// It is used if no other server is suitable.
    Acceptable,
    /// It is not used, for this reason.
    Unsuitable(&'static str),
}

fn suitability(access: Access, target: Option<SessionTarget>, state: ServerState) -> Suitability {
    use SessionTarget as Target;
    let writable = match state {
        ServerState { standby: true, .. } => Suitability::Unsuitable("is a standby"),
        ServerState { read_only: true, .. } => {
            Suitability::Unsuitable("is read-only (default_transaction_read_only)")
        }
        _ => Suitability::Suitable,
    };
    let required = |condition, reason| {
        if condition { Suitability::Suitable } else { Suitability::Unsuitable(reason) }
    };
    let preferred = |condition| if condition { Suitability::Suitable } else { Suitability::Acceptable };
    match (access, target) {
        (Access::Write, _) | (_, Some(Target::ReadWrite)) => writable,
        (_, None) => preferred(writable == Suitability::Suitable),
        (_, Some(Target::Any)) => Suitability::Suitable,
        (_, Some(Target::ReadOnly)) => required(state.read_only, "accepts writes"),
        (_, Some(Target::Primary)) => required(!state.standby, "is a standby"),
        (_, Some(Target::Standby)) => required(state.standby, "is not a standby"),
        (_, Some(Target::PreferStandby)) => preferred(state.standby),
    }
}

/// Opens connections to the servers of one URL.
pub(crate) struct Connector {
    servers: Vec<PgConnectOptions>,
    access: Access,
    target: Option<SessionTarget>,
    /// The time limit for one server.
    timeout: Duration,
    /// The statements that prepare a session, and at last report the state of the server.
    prepare: String,
    /// The server that was used last.
    current: AtomicUsize,
}

impl Connector {
    /// Returns a connector for these servers. `schema` replaces the `search_path` of the session; `adapt` completes the options of each
    /// server.
    pub(crate) fn new(
        list: &ServerList,
        access: Access,
        schema: Option<&str>,
        adapt: impl Fn(PgConnectOptions) -> PgConnectOptions,
    ) -> Self {
        let servers: Vec<_> = list.options().into_iter().map(adapt).collect();
        let default = if servers.len() > 1 { SEVERAL_SERVERS_TIMEOUT } else { SINGLE_SERVER_TIMEOUT };
        Self {
            servers,
            access,
            target: list.target,
            timeout: list.connect_timeout.unwrap_or(default),
            prepare: prepare(schema),
            current: AtomicUsize::new(0),
        }
    }

    /// Returns whether every connection must permit writes.
    pub(crate) fn writes(&self) -> bool {
        self.access == Access::Write
    }

    /// Returns the options of the server that was used last, if the URL names several.
    pub(crate) fn current_of_several(&self) -> Option<PgConnectOptions> {
        let several = self.servers.len() > 1;
        self.servers.get(self.current.load(Ordering::Relaxed)).filter(|_| several).cloned()
    }

    /// Returns a pool whose connections are suitable, and are checked before and after each use.
    pub(crate) fn pool(self, options: PgPoolOptions) -> PgPool {
        let check = ConnectionCheck { writes: self.writes() };
        let server = self.servers.get(self.current.load(Ordering::Relaxed)).cloned().unwrap_or_default();
        let connector = Arc::new(self);
        options
            .after_connect(move |connection, _| {
                let connector = Arc::clone(&connector);
                Box::pin(async move { connector.admit(connection).await })
            })
            .test_before_acquire(false)
            .before_acquire(move |connection, metadata| Box::pin(check.before_use(connection, metadata.age)))
            .after_release(move |connection, metadata| Box::pin(check.after_use(connection, metadata.age)))
            .connect_lazy_with(server)
    }

    /// Connects to the first server that is suitable, and prepares the session.
    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        if let (Access::Write, Some(target @ (SessionTarget::ReadOnly | SessionTarget::Standby))) =
            (self.access, self.target)
        {
            let message =
                format!("target_session_attrs={} excludes servers that accept writes", target.as_str());
            return Err(sqlx::Error::Configuration(message.into()));
        }
        let current = self.current.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        order.sort_by_key(|index| *index != current);
        let mut order = order.into_iter();
        let mut attempts = FuturesUnordered::new();
        attempts.extend(order.next().map(|index| self.attempt(index)));
        let mut acceptable: Option<(usize, PgConnection)> = None;
        let mut refusals = Vec::new();
        loop {
            let (index, outcome) = tokio::select! {
                biased;
                Some(outcome) = attempts.next() => outcome,
                () = tokio::time::sleep(HEAD_START), if order.len() > 0 => {
                    attempts.extend(order.next().map(|index| self.attempt(index)));
                    continue;
                }
                else => break,
            };
            match outcome {
                Ok((connection, state)) => match suitability(self.access, self.target, state) {
                    Suitability::Suitable => return Ok(self.using(index, connection)),
                    Suitability::Acceptable
                        if acceptable.as_ref().is_none_or(|(first, _)| index < *first) =>
                    {
                        acceptable = Some((index, connection));
                    }
                    Suitability::Acceptable => close(connection).await,
                    Suitability::Unsuitable(reason) => {
                        refusals.push(Refusal::Unsuitable(index, reason));
                        close(connection).await;
                    }
                },
                Err(error) => refusals.push(Refusal::Failed(index, error)),
            }
            attempts.extend(order.next().map(|index| self.attempt(index)));
        }
        match acceptable {
            Some((index, connection)) => Ok(self.using(index, connection)),
            None => Err(self.refused(refusals)),
        }
    }

    /// Prepares a connection of a pool. If its server is not suitable, another server replaces it as soon as one is; the caller limits
    /// the time.
    pub(crate) async fn admit(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let state = self.prepare(connection).await?;
        // With a single server, the first statement that writes reports the reason, and the pool discards the connection.
        if self.servers.len() == 1
            || !matches!(suitability(self.access, self.target, state), Suitability::Unsuitable(_))
        {
            return Ok(());
        }
        loop {
            if let Ok(suitable) = self.connect().await {
                *connection = suitable;
                return Ok(());
            }
            tokio::time::sleep(SEARCH_INTERVAL).await;
        }
    }

    /// Remembers the server. Connections to the one before, which may have been demoted, are not used again.
    fn using(&self, index: usize, connection: PgConnection) -> PgConnection {
        if self.current.swap(index, Ordering::Relaxed) != index {
            discard_open_connections();
        }
        connection
    }

    async fn attempt(&self, index: usize) -> (usize, Result<(PgConnection, ServerState), sqlx::Error>) {
        let connect = async {
            let mut connection = self.servers[index].connect().await?;
            let state = self.prepare(&mut connection).await?;
            Ok((connection, state))
        };
        let outcome = tokio::time::timeout(self.timeout, connect).await.unwrap_or_else(|_| {
            let message = format!("the server did not answer within {} s", self.timeout.as_secs());
            Err(io::Error::new(ErrorKind::TimedOut, message).into())
        });
        (index, outcome.map_err(explained))
    }

    async fn prepare(&self, connection: &mut PgConnection) -> Result<ServerState, sqlx::Error> {
        let sql = sqlx::AssertSqlSafe(self.prepare.clone());
        let rows = sqlx::raw_sql(sql).fetch_all(connection).await?;
        let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
        Ok(ServerState { read_only: row.try_get("read_only")?, standby: row.try_get("standby")? })
    }

    /// Returns one error for all servers. An error that an operator must correct, such as a wrong password, is the cause.
    fn refused(&self, mut refusals: Vec<Refusal>) -> sqlx::Error {
        if refusals.len() == 1 {
            return match refusals.remove(0) {
                Refusal::Failed(_, error) => error,
                Refusal::Unsuitable(index, reason) => {
                    ServerError::read_only(format!("{} {reason}", self.name(index))).into()
                }
            };
        }
        refusals.sort_by_key(Refusal::index);
        let reasons: Vec<String> = refusals
            .iter()
            .map(|refusal| match refusal {
                Refusal::Failed(index, error) => format!("{}: {}", self.name(*index), text(error)),
                Refusal::Unsuitable(index, reason) => format!("{} {reason}", self.name(*index)),
            })
            .collect();
        let message = format!("no server of the database URL is suitable: {}", reasons.join("; "));
        let permanent = refusals.into_iter().find_map(|refusal| match refusal {
            Refusal::Failed(_, error) if !is_transient(&error) => Some(error),
            _ => None,
        });
        match permanent {
            Some(sqlx::Error::Database(error)) => {
                ServerError::new(message, error.code().unwrap_or_default()).into()
            }
            Some(other) => other,
            None => io::Error::other(message).into(),
        }
    }

    fn name(&self, index: usize) -> String {
        let options = &self.servers[index];
        match options.get_socket() {
            Some(folder) => format!("{}:{}", folder.display(), options.get_port()),
            None if options.get_host().contains(':') => {
                format!("[{}]:{}", options.get_host(), options.get_port())
            }
            None => format!("{}:{}", options.get_host(), options.get_port()),
        }
    }
}

/// Without the options, which contain the password.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("access", &self.access).finish_non_exhaustive()
    }
}

/// Why a server was not used.
enum Refusal {
    Failed(usize, sqlx::Error),
    Unsuitable(usize, &'static str),
}

impl Refusal {
    fn index(&self) -> usize {
        match self {
            Self::Failed(index, _) | Self::Unsuitable(index, _) => *index,
        }
    }
}

/// Returns the statements that prepare a session: one message of the simple protocol.
///
/// - Parameters are quoted under the rules of `standard_conforming_strings`, which an old role or database may have switched off. A
///   pooler applies this setting to the server of each transaction.
/// - A database with encoding `SQL_ASCII` contains bytes of any encoding, and rejects a whole result because of one text that is not
///   UTF-8. With the same client encoding the server sends texts unchanged, and the reader checks them.
fn prepare(schema: Option<&str>) -> String {
    let search_path = schema.map(|schema| {
        let schemas: Vec<String> = schema
            .split(',')
            .map(|name| format!("\"{}\"", name.trim().trim_matches('"').replace('"', "\"\"")))
            .collect();
        format!("SET search_path = {};\n", schemas.join(", "))
    });
    format!(
        "SET standard_conforming_strings = on;
         SELECT set_config('client_encoding', 'SQL_ASCII', false)
          WHERE current_setting('server_encoding') = 'SQL_ASCII';
         {}SELECT current_setting('transaction_read_only') = 'on' AS read_only, pg_is_in_recovery() AS standby",
        search_path.unwrap_or_default()
    )
}

/// Replaces the error of a connection that the other end closed: a proxy without a primary closes it before the server answers.
fn explained(error: sqlx::Error) -> sqlx::Error {
    let kind = match &error {
        sqlx::Error::Io(error) => error.kind(),
        // sqlx takes the end of the connection for a byte of the answer to its request for TLS.
        sqlx::Error::Protocol(message) if message.contains("response from SSLRequest: 0x00") => {
            ErrorKind::UnexpectedEof
        }
        _ => return error,
    };
    match kind {
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe => {
            let message = "the server or proxy closed the connection: is there a primary behind it?";
            io::Error::new(kind, message).into()
        }
        _ => error,
    }
}

/// Closes a connection that is not used, so that its server does not log a lost connection.
async fn close(connection: PgConnection) {
    // It is closed in any case.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_suit_access_and_target() {
        use SessionTarget as Target;
        const PRIMARY: ServerState = ServerState { read_only: false, standby: false };
        const READ_ONLY: ServerState = ServerState { read_only: true, standby: false };
        const STANDBY: ServerState = ServerState { read_only: true, standby: true };
        // Whether a primary, a read-only primary and a standby are suitable (`+`), acceptable (`?`) or not (`-`).
        for (access, target, expected) in [
            (Access::Write, None, "+--"),
            (Access::Write, Some(Target::Any), "+--"),
            (Access::Write, Some(Target::PreferStandby), "+--"),
            (Access::Read, None, "+??"),
            (Access::Read, Some(Target::Any), "+++"),
            (Access::Read, Some(Target::ReadWrite), "+--"),
            (Access::Read, Some(Target::ReadOnly), "-++"),
            (Access::Read, Some(Target::Primary), "++-"),
            (Access::Read, Some(Target::Standby), "--+"),
            (Access::Read, Some(Target::PreferStandby), "??+"),
        ] {
            let suits = |state| match suitability(access, target, state) {
                Suitability::Suitable => '+',
                Suitability::Acceptable => '?',
                Suitability::Unsuitable(_) => '-',
            };
            let actual: String = [PRIMARY, READ_ONLY, STANDBY].map(suits).into_iter().collect();
            assert_eq!(actual, expected, "{access:?} {target:?}");
        }
    }

    #[tokio::test]
    async fn writing_rejects_target_without_writes() {
        for target in ["read-only", "standby"] {
            let url = format!("postgres://a,b/db?target_session_attrs={target}");
            let list = ServerList::parse(&url).expect("valid");
            let connector = Connector::new(&list, Access::Write, None, |options| options);
            let error = connector.connect().await.expect_err("no server is tried");
            assert!(matches!(error, sqlx::Error::Configuration(_)), "{error}");
        }
    }
}
