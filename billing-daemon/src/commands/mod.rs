//! One file a command; here is what they share.

mod accept_restore;
mod adopt;
mod approvals;
mod args;
mod audit;
mod bill;
mod bill_report;
mod charges;
mod check;
pub(crate) mod cli;
mod completions;
mod demo;
mod doctor;
pub(crate) mod guard;
mod handover;
mod holds;
mod jobs;
mod man;
mod migrate;
mod release;
mod run;
mod runs;
mod schema;
mod service;
mod status;
mod version;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use billing_jobs::panel::Panel;
use tracing::Level;

use crate::{
    commands::cli::{Cli, Command, Common},
    config::{Config, DaemonSettings, Diagnostic, environment::Environment, log::LogFilter, secret_file},
    exit::{Exit, Failure},
    output,
    plugins::Plugins,
    runtime::reload::{ConfigFile, is_alive},
    telemetry::{self, LogOutput, concealed::Concealed, otel::Traces},
};
use billing_store::{Database, DatabaseUrl, DatabaseUrlError};

/// Where the configuration of an installed daemon is.
const INSTALLED_CONFIG: &str = "/etc/billing-daemon/jobs.toml";
/// Where the database's address of an installed daemon is.
const INSTALLED_SECRET: &str = "/etc/billing-daemon/database-url";
/// And the one beside which somebody works.
const LOCAL_CONFIG: &str = "jobs.toml";

/// Does what the command line says.
pub(crate) async fn execute(cli: Cli, plugins: &Plugins) -> Result<(), Failure> {
    let common = &cli.common;
    match cli.command {
        Command::Run(options) => run::execute(common, plugins, &options).await,
        Command::Service { action } => service::execute(action),
        Command::Doctor(options) => doctor::execute(common, plugins, &options).await,
        Command::Charges { action } => charges::execute(common, plugins, action).await,
        Command::Status(format) => status::execute(common, plugins, format).await,
        Command::Jobs { action } => jobs::execute(common, plugins, &action).await,
        Command::Runs { action } => runs::execute(common, plugins, &action).await,
        Command::Demo(demo) => demo::execute(common, &demo).await,
        Command::Check { print_defaults } => check::execute(common, plugins, print_defaults),
        Command::Schema => {
            schema::execute(plugins);
            Ok(())
        }
        Command::Completions { shell } => {
            completions::execute(shell);
            Ok(())
        }
        Command::Version(format) => {
            version::execute(format);
            Ok(())
        }
        Command::Man { dir } => man::execute(dir.as_deref()),
        Command::Migrate { action } => migrate::execute(common, plugins, action).await,
        Command::Bill(bill) => bill::execute(common, plugins, &bill).await,
        Command::Holds { action } => holds::execute(common, plugins, &action).await,
        Command::Adopt(options) => adopt::execute(common, plugins, &options).await,
        Command::Release(format) => release::execute(common, plugins, format).await,
        Command::Guard { action } => guard::execute(common, plugins, action).await,
        Command::AcceptRestore => accept_restore::execute(common, plugins).await,
        Command::Audit(format) => audit::execute(common, plugins, format).await,
    }
}

/// Prints an answer that is a file's content, as it is.
fn print(content: &[u8]) {
    let _ = io::stdout().lock().write_all(content);
}

/// Prints a line for the person at the terminal; a daemon's is in its log as well.
pub(crate) fn complain(line: &str) {
    output::error_lines(line);
    telemetry::note(Level::ERROR, line);
}

/// The same for what hinders nothing.
fn warn_of(line: &str) {
    output::error_lines(&format!("warning: {line}"));
    telemetry::note(Level::WARN, line);
}

fn environment(common: &Common) -> Result<Environment, Failure> {
    let environment =
        Environment::of_process(common.env_file.as_deref()).map_err(|problems| refused(&problems))?;
    for warning in environment.warnings() {
        warn_of(&warning.to_string());
    }
    refuse_exposed(common, environment.exposed())?;
    Ok(environment)
}

/// Refuses secrets that others may read, unless the person at the command line says otherwise.
fn refuse_exposed(common: &Common, exposed: Vec<String>) -> Result<(), Failure> {
    match exposed.into_iter().next() {
        Some(exposed) if !common.allow_readable_secrets => Err(Failure::new(Exit::Configuration, exposed)),
        _ => Ok(()),
    }
}

/// The database at `url`, if there is a way to it that nobody else can listen to or stand in for.
fn reach(common: &Common, url: &DatabaseUrl, daemon: &DaemonSettings) -> Result<Database, Failure> {
    refuse_exposed(
        common,
        url.key_file().and_then(|file| secret_file::exposed(&file)).into_iter().collect(),
    )?;
    match url.unverified_host() {
        Some(host) if !daemon.allow_unverified_database => {
            let message = format!(
                "the database is on {host}, and nothing proves that whoever answers there is it: add \
                 `?sslmode=verify-full&sslrootcert=/path/of/ca.pem` to its URL, or say `allow-unverified-database = true` in \
                 the [daemon] section of jobs.toml if the network between is yours alone"
            );
            Err(Failure::new(Exit::Configuration, message))
        }
        // `migrate up` alone creates a file.
        _ => Ok(Database::new(url.existing()).with_application_name("billing-daemon")),
    }
}

/// Prints every problem on a line of its own.
fn refused(problems: &[Diagnostic]) -> Failure {
    for problem in problems {
        complain(&problem.to_string());
    }
    let plural = if problems.len() == 1 { "problem" } else { "problems" };
    Failure::new(Exit::Configuration, format!("{} {plural}: nothing was started", problems.len()))
}

/// The file to read: the one that was named, or the first of the usual ones that exists. `None`: the built-in defaults.
fn config_file(common: &Common) -> Option<PathBuf> {
    common.config.clone().or_else(|| usual_files().into_iter().find(|path| is_alive(path)))
}

fn usual_files() -> Vec<PathBuf> {
    [LOCAL_CONFIG, INSTALLED_CONFIG].iter().map(PathBuf::from).collect()
}

/// The configuration that `source` finds.
fn config(common: &Common, plugins: &Plugins, environment: &Environment) -> Result<Config, Failure> {
    config_of(common, &source(common, plugins, environment)?)
}

/// The configuration file, which must be readable, or else the built-in defaults.
fn source(common: &Common, plugins: &Plugins, environment: &Environment) -> Result<ConfigFile, Failure> {
    let Some(path) = config_file(common) else {
        return Ok(ConfigFile::built_in(usual_files(), environment.clone(), plugins));
    };
    ConfigFile::open(&path, environment.clone(), plugins).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Configuration,
        };
        Failure::new(exit, format!("cannot read {}: {error}", path.display()))
    })
}

/// Why the built-in defaults are in force, and what they are.
fn built_in_notice(config: &Config) -> String {
    let jobs: Vec<&str> = config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
    format!(
        "no ./{LOCAL_CONFIG} and no {INSTALLED_CONFIG}: using the built-in defaults ({}); `billing-daemon check \
         --print-defaults` prints them",
        jobs.join(", ")
    )
}

/// What `source` says.
fn config_of(common: &Common, source: &ConfigFile) -> Result<Config, Failure> {
    let config = source.config().map_err(|problems| refused(&problems))?;
    if config
        .daemon
        .database_url
        .as_ref()
        .is_some_and(|url| url.secrets().iter().any(|secret| source.text().contains(secret)))
    {
        refuse_exposed(common, source.path().and_then(secret_file::exposed).into_iter().collect())?;
    }
    for warning in &config.warnings {
        warn_of(&warning.to_string());
    }
    Ok(config)
}

/// The database for commands that need no jobs: from the environment, or else from the configuration.
fn database(common: &Common, plugins: &Plugins, environment: &Environment) -> Result<Database, Failure> {
    let url = environment.database_url().map_err(|problem| refused(&[problem]))?;
    // A URL of the environment's that is safe needs no configuration, which may be broken.
    let daemon = match &url {
        Some(url) if url.unverified_host().is_none() => DaemonSettings::default(),
        _ => config(common, plugins, environment)?.daemon,
    };
    reach(common, &required(common, url.or_else(|| daemon.database_url.clone()))?, &daemon)
}

/// The database's address, or else the one that an installation has in a file of its own.
fn required(common: &Common, url: Option<DatabaseUrl>) -> Result<DatabaseUrl, Failure> {
    if let Some(url) = url {
        return Ok(url);
    }
    let file = Path::new(INSTALLED_SECRET);
    let mut unreadable = String::new();
    match installed_url(file) {
        Ok(Some(url)) => {
            refuse_exposed(common, secret_file::exposed(file).into_iter().collect())?;
            return Ok(url);
        }
        Ok(None) => {}
        Err(problem) if problem.starts_with("cannot be read") => {
            unreadable = format!(" ({INSTALLED_SECRET} {problem})");
        }
        Err(problem) => {
            return Err(Failure::new(Exit::Configuration, format!("{INSTALLED_SECRET}: {problem}")));
        }
    }
    let message = format!(
        "DATABASE_URL is not set: put it into the environment, into .env or, as `database-url`, into the [daemon] section of \
         jobs.toml; for example DATABASE_URL=sqlite://billing.db{unreadable}"
    );
    Err(Failure::new(Exit::Configuration, message))
}

/// The address in `file`; none if it is missing or empty, as it is after an installation.
pub(crate) fn installed_url(file: &Path) -> Result<Option<DatabaseUrl>, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|error: DatabaseUrlError| error.to_string()),
    }
}

/// Sends log lines where they belong: for a command that prints data, all to stderr.
fn log(
    common: &Common,
    output: LogOutput,
    filter: &LogFilter,
    database: Option<&Database>,
) -> Result<(), Failure> {
    let secrets = Concealed::new(database.map(|database| database.url().secrets()).unwrap_or_default());
    log_without(common, output, filter, &secrets, None)
}

/// The same without these secrets, and next to traces.
fn log_without(
    common: &Common,
    output: LogOutput,
    filter: &LogFilter,
    secrets: &Concealed,
    traces: Option<&Traces>,
) -> Result<(), Failure> {
    telemetry::init(common.log_format, output, filter, secrets, traces.and_then(Traces::listener))
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot log: {error}")))
}

/// The log level for a command that is not the daemon: the environment's, else warnings.
fn quiet_filter(environment: &Environment) -> LogFilter {
    environment.log_filter().unwrap_or_else(|| "warn".parse().expect("`warn` is a level"))
}

/// How many columns the reader has: the terminal's, or 80 where there is none.
fn width() -> usize {
    console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns))
}

/// Seconds with milliseconds, for people and for JSON.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// Which database, in words.
fn engine(panel: Panel) -> &'static str {
    match panel.backend {
        sea_orm::DbBackend::Sqlite => "SQLite",
        _ => "PostgreSQL",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_address_is_read_unless_empty() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("database-url");
        assert_eq!(installed_url(&file), Ok(None), "no file, no address");
        for (text, expected) in [("\n", None), ("sqlite://a.db\n", Some("sqlite://a.db"))] {
            fs::write(&file, text).expect("a writable folder");
            let url = installed_url(&file).expect("it can be read");
            assert_eq!(url.as_ref().map(DatabaseUrl::expose), expected);
        }
        fs::write(&file, "nonsense").expect("a writable folder");
        assert!(installed_url(&file).is_err_and(|problem| problem.contains("no scheme")));
        assert!(installed_url(folder.path()).is_err_and(|problem| problem.starts_with("cannot be read")));
    }
}
