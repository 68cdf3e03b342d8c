//! The start of a command: environment, configuration, database, log. Each is read at most once, and only if the command needs it.

use std::{
    cell::OnceCell,
    io,
    path::{Path, PathBuf},
};

use billing_kinds::input_file::{self, read_text};
use billing_store::{Database, DatabaseUrl, DatabaseUrlError};

use super::{complain, warn_of};
use crate::{
    commands::cli::Common,
    config::{Config, DaemonSettings, Diagnostic, environment::Environment, secret_file::world_readable},
    exit::{Exit, Failure},
    panel_database::{self, PanelDatabase},
    plugins::Plugins,
    runtime::reload::ConfigFile,
    telemetry::{self, mask::Concealed},
};

/// The configuration in the working directory.
const LOCAL_CONFIG: &str = "jobs.toml";
/// The configuration of an installed daemon.
const INSTALLED_CONFIG: &str = "/etc/billing-daemon/jobs.toml";
/// The file with the database URL of an installed daemon.
const INSTALLED_SECRET: &str = "/etc/billing-daemon/database-url";

/// What a command logs if the environment does not say. The command itself prints how a run ends.
const QUIET: &str = "warn,billing_scheduler=off";

/// What a command works with, each part opened when it is needed.
pub(super) struct Session<'a> {
    common: &'a Common,
    pub(super) plugins: &'a Plugins,
    pub(super) environment: Environment,
    loaded: OnceCell<Loaded>,
}

/// A valid configuration and the file that contains it.
pub(super) struct Loaded {
    pub(super) file: ConfigFile,
    pub(super) config: Config,
}

impl Loaded {
    /// Why the built-in defaults apply, and which jobs they are; `None` for a configuration file.
    pub(super) fn built_in_notice(&self) -> Option<String> {
        if self.file.path().is_some() {
            return None;
        }
        let jobs: Vec<&str> = self.config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
        Some(format!(
            "no ./{LOCAL_CONFIG} and no {INSTALLED_CONFIG}: using the built-in defaults ({}); `billing-daemon check \
             --print-defaults` prints them",
            jobs.join(", ")
        ))
    }
}

impl<'a> Session<'a> {
    /// Reads the environment, and refuses secrets in it that other users can read.
    pub(super) fn new(common: &'a Common, plugins: &'a Plugins) -> Result<Self, Failure> {
        let environment = Environment::from_process(common.env_file.as_deref());
        let environment = environment.map_err(|problems| config_failure(&problems))?;
        for warning in environment.warnings() {
            warn_of(&warning.to_string());
        }
        let session = Self::with_environment(common, plugins, environment);
        session.refuse_exposed(session.environment.world_readable())?;
        Ok(session)
    }

    /// A session for a command that judges the environment itself.
    pub(super) fn with_environment(
        common: &'a Common,
        plugins: &'a Plugins,
        environment: Environment,
    ) -> Self {
        Self { common, plugins, environment, loaded: OnceCell::new() }
    }

    /// The named configuration file, or the first of the usual ones that exists, or the built-in defaults; not yet validated.
    pub(super) fn config_file(&self) -> Result<ConfigFile, Failure> {
        let usual = || [LOCAL_CONFIG, INSTALLED_CONFIG].map(PathBuf::from).to_vec();
        let path = self.common.config.clone();
        let Some(path) = path.or_else(|| usual().into_iter().find(|path| input_file::exists(path))) else {
            return Ok(ConfigFile::built_in(usual(), self.environment.clone(), self.plugins));
        };
        ConfigFile::open(&path, self.environment.clone(), self.plugins).map_err(|error| {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                // Its file system may respond later, so a service manager tries again.
                io::ErrorKind::TimedOut => Exit::TryAgain,
                _ => Exit::Configuration,
            };
            Failure::new(exit, format!("cannot read {}: {error}", path.display()))
        })
    }

    /// The configuration, which must be valid. Its warnings are printed once.
    pub(super) fn load(&self) -> Result<&Loaded, Failure> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let file = self.config_file()?;
        let config = file.config().map_err(|problems| config_failure(&problems))?;
        let secrets = config.daemon.database_url.iter().flat_map(DatabaseUrl::secrets);
        if secrets.into_iter().any(|secret| file.text().contains(&secret)) {
            self.refuse_exposed(file.path().and_then(world_readable))?;
        }
        self.refuse_exposed(config.token_file().and_then(world_readable))?;
        for warning in &config.warnings {
            warn_of(&warning.to_string());
        }
        Ok(self.loaded.get_or_init(|| Loaded { file, config }))
    }

    /// The configuration as [`Session::load`] returns it.
    pub(super) fn into_loaded(mut self) -> Result<Loaded, Failure> {
        self.load()?;
        Ok(self.loaded.take().expect("it was just loaded"))
    }

    /// The configuration if it is valid, for a command that a mistake in it must not prevent.
    pub(super) fn load_if_valid(&self) -> Option<&Loaded> {
        if self.loaded.get().is_none() {
            let file = self.config_file().ok()?;
            let config = file.config().ok()?;
            return Some(self.loaded.get_or_init(|| Loaded { file, config }));
        }
        self.loaded.get()
    }

    /// The configuration of a command that runs its jobs or reports on them: prints a notice if it is the built-in one.
    pub(super) fn announced_config(&self) -> Result<&Config, Failure> {
        let loaded = self.load()?;
        if let Some(notice) = loaded.built_in_notice() {
            complain(&notice);
        }
        Ok(&loaded.config)
    }

    /// The database of the environment or of the configuration, and starts the log.
    pub(super) fn database(&self) -> Result<Database, Failure> {
        let url = self.environment.database_url().map_err(|problem| config_failure(&[problem]))?;
        let default = DaemonSettings::default();
        // A safe URL in the environment needs no configuration, which may be invalid.
        let daemon = match &url {
            Some(url) if url.unverified_host().is_none() => &default,
            _ => &self.load()?.config.daemon,
        };
        let url = self.require_url(url.or_else(|| daemon.database_url.clone()))?;
        let database = self.verified_database(&url, daemon)?;
        self.start_log(Some(&database))?;
        Ok(database)
    }

    /// The opened database of a command that writes: retries while the database starts.
    pub(super) async fn panel(&self) -> Result<PanelDatabase, Failure> {
        panel_database::open(&self.database()?).await
    }

    /// The opened database of a command that reports the current state, without retries. The server may be a standby.
    pub(super) async fn panel_for_reading(&self) -> Result<PanelDatabase, Failure> {
        panel_database::open_without_retry(&self.database()?.reading()).await
    }

    /// The opened database of a command that an operator may repeat, without retries.
    pub(super) async fn panel_without_retry(&self) -> Result<PanelDatabase, Failure> {
        panel_database::open_without_retry(&self.database()?).await
    }

    /// Logs to the standard error: the standard output is for the command's data.
    pub(super) fn start_log(&self, database: Option<&Database>) -> Result<(), Failure> {
        let filter = self.environment.log_filter();
        let filter = filter.unwrap_or_else(|| QUIET.parse().expect("a valid filter"));
        let secrets = Concealed::new(database.map(|database| database.url().secrets()).unwrap_or_default());
        telemetry::init_command(self.common.log_format, &filter, &secrets)
            .map_err(|error| Failure::new(Exit::Internal, format!("cannot start the log: {error}")))
    }

    /// Refuses secrets that other users can read, unless the operator accepts them.
    fn refuse_exposed(&self, exposed: impl IntoIterator<Item = String>) -> Result<(), Failure> {
        match exposed.into_iter().next() {
            Some(exposed) if !self.common.allow_readable_secrets => {
                Err(Failure::new(Exit::Configuration, exposed))
            }
            _ => Ok(()),
        }
    }

    /// The database at `url`, if the connection to it cannot be read or redirected by others.
    pub(super) fn verified_database(
        &self,
        url: &DatabaseUrl,
        daemon: &DaemonSettings,
    ) -> Result<Database, Failure> {
        self.refuse_exposed(url.key_file().and_then(|file| world_readable(&file)))?;
        match url.unverified_host() {
            Some(host) if !daemon.allow_unverified_database => {
                let message = format!("cannot use the database on {host}: nothing verifies its identity");
                Err(Failure::new(Exit::Configuration, message)
                    .help("add `?sslmode=verify-full&sslrootcert=/path/of/ca.pem` to its URL")
                    .help("or, in a private network, set `allow-unverified-database = true` in [daemon] of jobs.toml"))
            }
            // Only `migrate up` and `demo` create a file.
            _ => Ok(Database::new(url.existing()).with_application_name("billing-daemon")),
        }
    }

    /// The URL, or else the one that an installation has in a file.
    pub(super) fn require_url(&self, url: Option<DatabaseUrl>) -> Result<DatabaseUrl, Failure> {
        if let Some(url) = url {
            return Ok(url);
        }
        let file = Path::new(INSTALLED_SECRET);
        let mut failure = Failure::new(Exit::Configuration, "DATABASE_URL is not set").help(
            "set it in the environment, in .env or, as `database-url`, in [daemon] of jobs.toml; for example \
             DATABASE_URL=sqlite://billing.db",
        );
        match installed_url(file) {
            Ok(Some(url)) => {
                self.refuse_exposed(world_readable(file))?;
                return Ok(url);
            }
            Ok(None) => {}
            Err(InstalledUrlError::Read(error)) => {
                failure = failure.help(format!("or get access to {INSTALLED_SECRET}: {error}"));
            }
            Err(InstalledUrlError::Invalid(error)) => {
                failure = Failure::new(Exit::Configuration, format!("{INSTALLED_SECRET}: {error}"));
            }
        }
        Err(failure)
    }
}

/// Prints every mistake on its own line, and returns their number as the failure.
fn config_failure(problems: &[Diagnostic]) -> Failure {
    for problem in problems {
        complain(&problem.to_string());
    }
    let plural = if problems.len() == 1 { "problem" } else { "problems" };
    Failure::new(Exit::Configuration, format!("{} {plural}: nothing was started", problems.len()))
}

#[derive(Debug)]
enum InstalledUrlError {
    Read(io::Error),
    Invalid(DatabaseUrlError),
}

/// The URL in `file`; `None` if the file is missing or, as after an installation, empty.
fn installed_url(file: &Path) -> Result<Option<DatabaseUrl>, InstalledUrlError> {
    let text = match read_text(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(InstalledUrlError::Read(error)),
    };
    match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(InstalledUrlError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn installed_url_is_read_unless_empty() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("database-url");
        assert!(matches!(installed_url(&file), Ok(None)), "no file, no URL");
        for (text, expected) in [("\n", None), ("sqlite://a.db\n", Some("sqlite://a.db"))] {
            fs::write(&file, text).expect("a writable folder");
            let url = installed_url(&file).expect("it can be read");
            assert_eq!(url.as_ref().map(DatabaseUrl::expose), expected);
        }
        fs::write(&file, "nonsense").expect("a writable folder");
        let invalid = installed_url(&file).expect_err("a word without a scheme");
        assert!(matches!(invalid, InstalledUrlError::Invalid(_)), "{invalid:?}");
        assert!(matches!(installed_url(folder.path()), Err(InstalledUrlError::Read(_))));
    }
}
