//! How the jobs talk to the database: raw statements, rows that are missing, and what an error means.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, RuntimeErr,
    SqliteTransactionMode, SqlxSqliteConnector, Statement, TransactionOptions, TransactionTrait, Value,
    sqlx::{self, ConnectOptions as _, PgConnection, PgExecutor},
};
use tokio::sync::Mutex;

/// What to do about an error of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Somebody was in the way: the same again, soon.
    Conflict,
    /// The connection, or the answer, is lost: again on another one.
    Lost,
    /// The rows were refused: others may be accepted.
    Rows,
    /// Nothing will work until somebody mends it.
    Broken,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Conflict, Self::Lost, Self::Rows, Self::Broken];

    /// The word under which it is counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Lost => "lost",
            Self::Rows => "rows",
            Self::Broken => "broken",
        }
    }
}

/// Tells what `error` means. The one place that does.
#[must_use]
pub fn fault(error: &DbErr) -> Fault {
    let source = match error {
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => source,
        DbErr::ConnectionAcquire(_) => return Fault::Lost,
        _ => return Fault::Broken,
    };
    match &**source {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            match error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
                Some(_) => sqlite_fault(&code),
                None => postgres_fault(&code),
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Fault::Lost,
        _ => Fault::Broken,
    }
}

fn postgres_fault(sqlstate: &str) -> Fault {
    match sqlstate {
        // Serialization failure, deadlock, lock timeout, statement timeout.
        "40001" | "40P01" | "55P03" | "57014" => Fault::Conflict,
        // Connection errors, administrator's shutdown, starting up, too many clients, read-only (a standby).
        "57P01" | "57P02" | "57P03" | "53300" | "25006" | "25P03" => Fault::Lost,
        // A protocol violation is a pooler's way to refuse us, and stays.
        code if code.starts_with("08") && code != "08P01" => Fault::Lost,
        // Data exceptions, constraints, and what a trigger raises.
        code if ["22", "23", "44", "P0"].iter().any(|class| code.starts_with(class)) => Fault::Rows,
        _ => Fault::Broken,
    }
}

fn sqlite_fault(code: &str) -> Fault {
    // The low byte is the primary code.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        // Busy, locked.
        5 | 6 => Fault::Conflict,
        // Too big, constraint, mismatch, range.
        18 | 19 | 20 | 25 => Fault::Rows,
        _ => Fault::Broken,
    }
}

/// The SQLSTATE of PostgreSQL, or the extended result code of SQLite.
#[must_use]
pub fn code(error: &DbErr) -> Option<String> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(source))
        | DbErr::Exec(RuntimeErr::SqlxError(source))
        | DbErr::Query(RuntimeErr::SqlxError(source)) => {
            source.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned))
        }
        _ => None,
    }
}

/// What the database said, and what to do about it where that is not plain from its words.
#[must_use]
pub fn explained(error: &DbErr) -> String {
    match code(error).as_deref().and_then(advice) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// The page that has the GRANTs of each login, for messages about a missing right.
pub const GRANTS_PAGE: &str = "docs/operations.md, section \"Roles\"";

fn advice(code: &str) -> Option<String> {
    let of_sqlite = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
    let advice = match (of_sqlite, code) {
        (Some(8), _) => {
            Some("let this user write the file and its folder, or take `mode=ro` out of DATABASE_URL")
        }
        (Some(10), _) => {
            Some("look for a full or failing disk under the file; billing goes on by itself once it works")
        }
        (Some(11 | 26), _) => Some(
            "the file is damaged: stop the daemon, restore a backup, then say `billing-daemon accept-restore`",
        ),
        (Some(13), _) => Some("free space on its disk; billing goes on by itself"),
        (Some(14), _) => Some("if the file is missing, create it with `billing-daemon migrate up`"),
        (_, "53100") => Some("free space on the database server's disk; billing goes on by itself"),
        (_, "25006") => Some(
            "this server takes no writes: name the primary in DATABASE_URL, or look for default_transaction_read_only",
        ),
        (_, "42501") => return Some(format!("grant this login what {GRANTS_PAGE} lists for it")),
        (_, "42P01") => Some(
            "if the table is one of ours, run `billing-daemon migrate up`; if it exists, name its schema in the search_path of \
             this login",
        ),
        (_, "3F000") => Some(
            "the search_path of this login names no schema that it may use: ALTER ROLE ... SET search_path = public",
        ),
        _ => None,
    };
    advice.map(str::to_owned)
}

/// Now on SQLite, in microseconds since 1970.
pub const SQLITE_NOW: &str = "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)";

/// A statement with its parameters.
pub(crate) fn statement(
    db: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// What each transaction on PostgreSQL begins with. Behind a pooler in transaction mode every transaction may have another
/// server, and one that served somebody else may still have statements prepared under the names that sqlx uses; they are
/// forgotten first. For the same reason there is no statement outside a transaction.
/// A process that is paused inside a transaction keeps its successor waiting until the server ends it for being idle.
macro_rules! limits {
    ($statement:literal, $idle:literal) => {
        concat!(
            "DEALLOCATE ALL; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '",
            $statement,
            "'; SET LOCAL idle_in_transaction_session_timeout = '",
            $idle,
            "'"
        )
    };
}

/// Begins a transaction that may write: on SQLite it takes the one place for a writer at once, and waits for it.
pub async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Immediate, limits!("60s", "10s")).await
}

/// Begins a transaction that reads first and then writes. On SQLite it takes the one place for a writer with its first write, and
/// that is a conflict if anybody else is about to write or has written since its first read.
pub(crate) async fn begin_reading(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limits!("60s", "10s")).await
}

/// How long a transaction waits for the one before it on the same connection.
const ALONE_FOR: Duration = Duration::from_mins(2);

/// From how many pages on SQLite's log is written back into the file. Batches in a row change the same pages, so the more of them
/// the log takes, the less is written in all; but whoever else commits meanwhile may have to write all of it back.
pub const SQLITE_LOG_PAGES: u32 = 16_384;

/// The same database for one task that writes much, until it is closed. On SQLite that is a connection of its own: what each
/// connection keeps of the file counts no more once another one has written. Its commits leave the log alone: see [`write_back`].
pub(crate) fn alone(db: &DatabaseConnection) -> DatabaseConnection {
    if db.get_database_backend() != DbBackend::Sqlite {
        return db.clone();
    }
    let options = db.get_sqlite_connection_pool().connect_options();
    // A statement over several rows notes what pages were before; in a file that is as much to write again. Elsewhere it stays a
    // file's, or to sort a whole fleet would take memory for all of it.
    let options = (*options).clone().pragma("temp_store", "MEMORY").pragma("wal_autocheckpoint", "0");
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).acquire_timeout(ALONE_FOR);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.connect_lazy_with(options))
}

/// Writes SQLite's log back into the file if it is as long as `pages`: between two transactions of a connection that is
/// [`alone`], when others may write. SQLite would do it by itself at the end of a commit, whose time is then no measure of how
/// long others were kept waiting. Never a reason to fail: what could not be written back stays in the log.
pub(crate) async fn write_back(db: &DatabaseConnection, pages: u32) -> Result<(), DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(());
    }
    let log = db.query_one_raw(statement(db, "PRAGMA wal_checkpoint(NOOP)", [])).await?;
    let length: i64 = log.map_or(Ok(0), |log| log.try_get("", "log"))?;
    if length >= i64::from(pages) {
        db.query_one_raw(statement(db, "PRAGMA wal_checkpoint(PASSIVE)", [])).await?;
    }
    Ok(())
}

/// Begins a transaction that only reads, and may take its time.
pub async fn begin_read(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_under(db, SqliteTransactionMode::Deferred, limits!("10min", "60s")).await
}

/// In a task of its own, which goes on if its caller is dropped: a BEGIN whose answer nobody waited for would stay open on a
/// connection that the next one gets. (What is dropped later is rolled back by its transaction.)
async fn begin_under(
    db: &DatabaseConnection,
    sqlite_transaction_mode: SqliteTransactionMode,
    limits: &'static str,
) -> Result<DatabaseTransaction, DbErr> {
    let db = db.clone();
    let begin = tokio::spawn(async move {
        let sqlite = db.get_database_backend() == DbBackend::Sqlite;
        let sqlite_transaction_mode = sqlite.then_some(sqlite_transaction_mode);
        let txn = db
            .begin_with_options(TransactionOptions { sqlite_transaction_mode, ..Default::default() })
            .await?;
        if !sqlite {
            txn.execute_unprepared(limits).await?;
        }
        Ok(txn)
    });
    begin.await.unwrap_or_else(|error| Err(DbErr::Custom(format!("a transaction did not begin: {error}"))))
}

/// The rows of a statement that only reads, in a transaction of its own.
pub async fn query_all(db: &DatabaseConnection, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(at_once(db.get_postgres_connection_pool(), READING_ALONE, &statement).await?.rows);
    }
    let txn = begin_read(db).await?;
    let rows = txn.query_all_raw(statement).await?;
    txn.commit().await?;
    Ok(rows)
}

/// The first row of a statement that only reads, in a transaction of its own.
pub async fn query_one(db: &DatabaseConnection, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
    Ok(query_all(db, statement).await?.into_iter().next())
}

/// How many rows a statement changed, in a transaction of its own.
pub async fn execute(db: &DatabaseConnection, statement: Statement) -> Result<u64, DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(at_once(db.get_postgres_connection_pool(), WRITING_ALONE, &statement).await?.affected);
    }
    let txn = begin(db).await?;
    let result = txn.execute_raw(statement).await?;
    txn.commit().await?;
    Ok(result.rows_affected())
}

/// The limits of a statement that is alone in its transaction.
const WRITING_ALONE: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '60s'; ";
const READING_ALONE: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '10min'; ";

/// What PostgreSQL answered.
#[derive(Default)]
struct Answer {
    rows: Vec<QueryResult>,
    affected: u64,
}

/// A statement with its limits as one message of the simple protocol, which is one transaction and one round trip, and prepares
/// nothing that a pooler would have to know.
async fn at_once(
    connection: impl PgExecutor<'_>,
    limits: &str,
    statement: &Statement,
) -> Result<Answer, DbErr> {
    // The parameters are written into the text, quoted.
    let text = sqlx::AssertSqlSafe(format!("{limits}{statement}"));
    let mut answers = sqlx::raw_sql(text).fetch_many(connection);
    let mut answer = Answer::default();
    while let Some(part) = answers.try_next().await.map_err(failed)? {
        match part {
            sqlx::Either::Left(done) => answer.affected += done.rows_affected(),
            sqlx::Either::Right(row) => answer.rows.push(row.into()),
        }
    }
    Ok(answer)
}

fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// How long a statement waits for the one before it on a line. Most take a millisecond.
const LINE_TIMEOUT: Duration = Duration::from_millis(20);

/// By these a server says that it ends a connection, and that nothing of the statement is in force: it was told to, or it is about to
/// begin anew.
const ENDED: [&str; 2] = ["57P01", "57P02"];

/// A connection beside the pool for short statements that are sent again and again. On PostgreSQL each costs one round trip: a pool
/// asks its connections whether they live, before each use and after it.
#[derive(Debug)]
pub struct Line {
    db: DatabaseConnection,
    /// Empty while it is used, so that a statement which nobody waits for any more takes it along.
    own: Mutex<Option<PgConnection>>,
}

impl Line {
    /// To the database of this pool; it opens with the first statement.
    #[must_use]
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db, own: Mutex::default() }
    }

    /// As [`query_all`], also for a statement that changes rows and returns them.
    pub async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        if self.db.get_database_backend() != DbBackend::Sqlite {
            return Ok(self.send(WRITING_ALONE, &statement).await?.rows);
        }
        query_all(&self.db, statement).await
    }

    /// As [`execute`].
    pub async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        if self.db.get_database_backend() != DbBackend::Sqlite {
            return Ok(self.send(WRITING_ALONE, &statement).await?.affected);
        }
        execute(&self.db, statement).await
    }

    /// The one number that a query without parameters answers with, at the least cost there is.
    pub async fn peek(&self, sql: &'static str) -> Result<Option<i64>, DbErr> {
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let row = match self.db.get_database_backend() {
            DbBackend::Sqlite => self.db.query_one_raw(statement).await?,
            _ => self.send("", &statement).await?.rows.into_iter().next(),
        };
        row.map(|row| row.try_get_by_index(0)).transpose()
    }

    /// Over the pool if somebody else uses the line for long: his statement may wait for a lock.
    async fn send(&self, limits: &str, statement: &Statement) -> Result<Answer, DbErr> {
        let pool = self.db.get_postgres_connection_pool();
        let Ok(mut own) = tokio::time::timeout(LINE_TIMEOUT, self.own.lock()).await else {
            return at_once(pool, limits, statement).await;
        };
        let mut connection = match own.take() {
            Some(connection) => connection,
            None => open(pool).await.map_err(failed)?,
        };
        match at_once(&mut connection, limits, statement).await {
            // The server ended the connection while it was idle, or took back what was under way: it may be there again.
            Err(error) if code(&error).is_some_and(|code| ENDED.contains(&code.as_str())) => {
                drop(own);
                at_once(pool, limits, statement).await
            }
            Err(error) if fault(&error) == Fault::Lost => Err(error),
            answer => {
                *own = Some(connection);
                answer
            }
        }
    }
}

async fn open(pool: &sqlx::PgPool) -> Result<PgConnection, sqlx::Error> {
    let options = pool.connect_options();
    let opened = async {
        let mut connection = options.connect().await?;
        accept_any_text(&mut connection).await?;
        Ok(connection)
    };
    let opened = tokio::time::timeout(pool.options().get_acquire_timeout(), opened);
    opened.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Prepares a new connection to PostgreSQL. A database whose encoding is `SQL_ASCII` holds bytes of any encoding, and refuses a
/// whole result for one text that is not UTF-8. It is told to send texts as they are; whoever reads one checks it.
pub async fn accept_any_text(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT set_config('client_encoding', 'SQL_ASCII', false)
                WHERE current_setting('server_encoding') = 'SQL_ASCII'";
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use sea_orm::Database;

    use super::*;

    /// How many pages SQLite's log has, and how many of them are in the file as well.
    async fn log(db: &DatabaseConnection) -> (i64, i64) {
        let log = db.query_one_raw(statement(db, "PRAGMA wal_checkpoint(NOOP)", [])).await;
        let log = log.expect("SQLite tells of its log").expect("in a row");
        let pages = |column| log.try_get("", column).expect("a number of pages");
        (pages("log"), pages("checkpointed"))
    }

    #[tokio::test]
    async fn a_log_is_written_back_between_two_transactions_and_only_once_it_is_long() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("log.db").display());
        let mut options = sea_orm::ConnectOptions::new(url);
        options.map_sqlx_sqlite_opts(|options| {
            let wal = sqlx::sqlite::SqliteJournalMode::Wal;
            options.journal_mode(wal).pragma("wal_autocheckpoint", "8")
        });
        let db = alone(&Database::connect(options).await.expect("a file is made"));
        let txn = begin(&db).await.expect("a transaction begins");
        txn.execute_unprepared("CREATE TABLE much (what); INSERT INTO much VALUES (zeroblob(100000))")
            .await
            .expect("much is written");
        txn.commit().await.expect("it is committed");
        let (length, written_back) = log(&db).await;
        assert!(length > 20 && written_back == 0, "the commit leaves {length} pages in the log");

        write_back(&db, 1_000).await.expect("a short log");
        assert_eq!(log(&db).await, (length, 0));
        write_back(&db, 20).await.expect("a long log");
        assert_eq!(log(&db).await, (length, length));
    }

    #[test]
    fn what_can_be_mended_is_explained() {
        // A code of PostgreSQL may be all digits.
        for (code, advised) in [
            ("13", Some("free space")),
            ("778", Some("failing disk")),
            ("1032", Some("write the file")),
            ("53100", Some("free space on the database server")),
            ("25006", Some("takes no writes")),
            ("42501", Some("docs/operations.md, section \"Roles\"")),
            ("23505", None),
            ("5", None),
        ] {
            let advice = advice(code);
            assert!(
                advised.is_none_or(|words| advice.as_ref().is_some_and(|advice| advice.contains(words)))
                    && advice.is_some() == advised.is_some(),
                "{code}: {advice:?}"
            );
        }
    }

    #[test]
    fn an_error_of_the_database_says_what_to_do() {
        let postgres = [
            ("40001", Fault::Conflict),
            ("55P03", Fault::Conflict),
            ("57P01", Fault::Lost),
            ("08006", Fault::Lost),
            ("25006", Fault::Lost),
            ("22003", Fault::Rows),
            ("23505", Fault::Rows),
            ("P0001", Fault::Rows),
            ("42501", Fault::Broken),
            ("53100", Fault::Broken),
        ];
        for (code, expected) in postgres {
            assert_eq!(postgres_fault(code), expected, "{code}");
        }
        for (code, expected) in
            [("5", Fault::Conflict), ("517", Fault::Conflict), ("2067", Fault::Rows), ("13", Fault::Broken)]
        {
            assert_eq!(sqlite_fault(code), expected, "{code}");
        }
    }
}
