//! The program that `sea-orm-cli migrate` runs: applies the migrations to the database in `DATABASE_URL`.

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::process::ExitCode;

use billing_store::{Database, DatabaseUrl, Pool};
use clap::{Parser, Subcommand};
use migration::{MigrationError, SchemaError};
use sea_orm_migration::sea_orm::{DatabaseConnection, DbErr, RuntimeErr, SqlxError};
use tracing_subscriber::EnvFilter;

const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const INTERNAL: u8 = 70;
const CONFIG: u8 = 78;

/// Create or remove the tables of billing-daemon
#[derive(Parser)]
#[command(name = "migration", version)]
struct Cli {
    /// The database, as `postgres://user:password@host/name` or `sqlite://path`
    #[arg(short = 'u', long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    database_url: Option<String>,
    /// The schema of the panel's tables if it is not in the role's search path (PostgreSQL)
    #[arg(short = 's', long, env = "DATABASE_SCHEMA", global = true)]
    database_schema: Option<String>,
    /// Log each statement
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Apply pending migrations (the default)
    Up {
        /// Number of migrations [default: all]
        #[arg(short, long)]
        num: Option<u32>,
    },
    /// Revert the last migrations and delete the tables that `up` created, with every charge
    Down {
        /// Number of migrations
        #[arg(short, long, default_value_t = 1)]
        num: u32,
    },
    /// Print which migrations are applied
    Status,
    #[command(hide = true)]
    Fresh,
    #[command(hide = true)]
    Refresh,
    #[command(hide = true)]
    Reset,
}

struct Failure {
    code: u8,
    message: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render().to_string();
            // No stream is left for an error of this output.
            let _ = if redact(&text) == text { error.print() } else { write!(stderr(), "{}", redact(&text)) };
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let filter = EnvFilter::new(if cli.verbose { "debug" } else { "warn" });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    match run(cli).await {
        Ok(report) => {
            // A reader that closes the pipe ends the output, not the command.
            let _ = writeln!(stdout(), "{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let _ = writeln!(stderr(), "error: {}", redact(&failure.message));
            ExitCode::from(failure.code)
        }
    }
}

async fn run(cli: Cli) -> Result<String, Failure> {
    let command = cli.command.unwrap_or(Command::Up { num: None });
    if let Some(reason) = refusal(&command) {
        return Err(Failure { code: USAGE, message: reason });
    }
    let Some(url) = cli.database_url.filter(|url| !url.is_empty()) else {
        let message = "no database: set DATABASE_URL or pass --database-url".to_owned();
        return Err(Failure { code: CONFIG, message });
    };
    let url: DatabaseUrl =
        url.parse().map_err(|error| Failure { code: CONFIG, message: format!("{error}") })?;
    let url = if matches!(command, Command::Up { .. }) { url.creating() } else { url.existing() };
    let db = connect(url, cli.database_schema, cli.verbose).await?;
    let report = match command {
        Command::Up { num } => names("applied", &migration::up(&db, num).await?),
        Command::Down { num } => names("reverted", &migration::down(&db, Some(num)).await?),
        _ => table(&migration::status(&db).await?),
    };
    Ok(report)
}

fn refusal(command: &Command) -> Option<String> {
    let name = match command {
        Command::Up { .. } | Command::Down { .. } | Command::Status => return None,
        Command::Fresh => "fresh",
        Command::Refresh => "refresh",
        Command::Reset => "reset",
    };
    Some(migration::refusal(name))
}

async fn connect(
    url: DatabaseUrl,
    schema: Option<String>,
    verbose: bool,
) -> Result<DatabaseConnection, Failure> {
    let database = Database::new(url)
        .with_application_name("migration")
        .with_schema(schema.filter(|schema| !schema.is_empty()))
        .with_statement_log(verbose);
    database
        .connect(Pool::Single)
        .await
        .map_err(|error| Failure { code: code(&error.source), message: error.to_string() })
}

fn code(error: &DbErr) -> u8 {
    match error {
        DbErr::Conn(RuntimeErr::Internal(_)) => CONFIG,
        DbErr::Conn(RuntimeErr::SqlxError(error)) if matches!(**error, SqlxError::Configuration(_)) => CONFIG,
        DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => UNAVAILABLE,
        _ => INTERNAL,
    }
}

impl From<MigrationError> for Failure {
    fn from(error: MigrationError) -> Self {
        let message = error.to_string();
        Self { code: code(&error.into()), message }
    }
}

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Self {
        MigrationError::from(error).into()
    }
}

fn names(done: &str, names: &[String]) -> String {
    if names.is_empty() {
        return "nothing to do".to_owned();
    }
    names.iter().map(|name| format!("{done} {name}")).collect::<Vec<_>>().join("\n")
}

fn table(rows: &[(String, bool)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |name: &str, state: &str| format!("{name:width$}  {state}");
    std::iter::once(line("migration", "state"))
        .chain(rows.iter().map(|(name, applied)| line(name, if *applied { "applied" } else { "pending" })))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Hides the password of a URL in a text. A malformed URL may have any character in its password, so everything between the
/// user's name and the last `@` is hidden.
fn redact(text: &str) -> String {
    let text = match text.split_once("password=") {
        Some((before, after)) => {
            let end = after.find(['&', '\'', '"', ' ']).unwrap_or(after.len());
            format!("{before}password=***{}", &after[end..])
        }
        None => text.to_owned(),
    };
    let hidden = text.split_once("://").and_then(|(scheme, rest)| {
        let (secret, host) = rest.rsplit_once('@')?;
        let (user, _) = secret.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    });
    hidden.unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn passwords_are_redacted() {
        for (text, shown) in [
            ("postgres://u:secret@h/db", "postgres://u:***@h/db"),
            ("cannot use 'postgres://u:s'e/c@r?et@h/db' here", "cannot use 'postgres://u:***@h/db' here"),
            ("postgres://u@h/db?password=secret&x=1", "postgres://u@h/db?password=***&x=1"),
            ("postgres://h/db", "postgres://h/db"),
            ("no url", "no url"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
