//! The environment variables, which keep the names of the panel's original daemon: those of the process, or of an `.env` file in its
//! folder. The URL of the database, which may contain a password, may also be in a separate file or in a credential of systemd.

mod dotenv;

use std::{
    ffi::OsString,
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use billing_kinds::input_file::read_text;
use billing_store::DatabaseUrl;

use crate::config::{Diagnostic, Location, log::LogFilter, secret_file};

const DATABASE_URL: &str = "DATABASE_URL";
/// The path of a file that contains only the URL.
const DATABASE_URL_FILE: &str = "DATABASE_URL_FILE";
/// The folder that systemd's `LoadCredential=` fills.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// The name of the systemd credential that contains the database URL.
const CREDENTIAL: &str = "database-url";
const BILLING_INTERVAL_MINUTES: &str = "BILLING_INTERVAL_MINUTES";
const LOG_LEVEL: &str = "LOG_LEVEL";
const NAMES: [&str; 3] = [DATABASE_URL, BILLING_INTERVAL_MINUTES, LOG_LEVEL];

/// The variables as text. Each is parsed when it is needed, so that an invalid variable does not affect commands that do not use it.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    settings: Vec<Setting>,
    /// The files with a secret that were read.
    secret_files: Vec<PathBuf>,
    /// Files that could not be read and are not needed.
    warnings: Vec<Diagnostic>,
}

#[derive(Clone)]
struct Setting {
    name: &'static str,
    value: String,
    location: Location,
}

/// `BILLING_INTERVAL_MINUTES` and its location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillingInterval {
    /// The time between two runs of billing.
    pub period: Duration,
    /// The location of the variable.
    pub location: Location,
}

impl Environment {
    /// Reads the variables of this process, and those of `.env` in its working directory or of `env_file`.
    ///
    /// # Errors
    /// Every invalid variable and line.
    pub fn from_process(env_file: Option<&Path>) -> Result<Self, Vec<Diagnostic>> {
        Self::load(|name| std::env::var_os(name), Path::new(""), env_file)
    }

    /// Reads the variables that `lookup` knows; they win over those of `env_file`, which must exist, or else of the optional `.env` in
    /// `directory`. An empty variable counts as unset. Without `DATABASE_URL` in the process, the URL is in the file that
    /// `DATABASE_URL_FILE` names, or else in the credential `database-url` of systemd.
    ///
    /// # Errors
    /// Every invalid variable and line.
    pub fn load(
        lookup: impl Fn(&str) -> Option<OsString>,
        directory: &Path,
        env_file: Option<&Path>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut problems = Vec::new();
        let mut settings = Vec::new();
        for name in NAMES {
            let location = Location::environment();
            match lookup(name).map(OsString::into_string) {
                Some(Ok(value)) => settings.push(Setting { name, value, location }),
                Some(Err(_)) => problems.push(Diagnostic::new(location, format!("{name} is not UTF-8"))),
                None => {}
            }
        }
        let (mut secret_files, mut warnings) = (Vec::new(), Vec::new());
        match read_secret_file(&lookup) {
            Ok(Some((path, value))) => {
                let location = Location::file(&path.display().to_string());
                settings.push(Setting { name: DATABASE_URL, value, location });
                secret_files.push(path);
            }
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
        match read(directory, env_file) {
            Ok((file, text)) => {
                // The first setting of a name counts, and of a name that a file gives twice the last.
                for variable in dotenv::parse(&text, &file, &mut problems).into_iter().rev() {
                    if let Some(name) = NAMES.into_iter().find(|name| *name == variable.name) {
                        if name == DATABASE_URL && is_secret(&variable.value) {
                            secret_files.push(PathBuf::from(&file));
                        }
                        settings.push(Setting { name, value: variable.value, location: variable.location });
                    } else if variable.name.starts_with("OTEL_") {
                        // OpenTelemetry reads its variables from the process itself.
                        let message =
                            format!("{} has no effect in this file: set it for the process", variable.name);
                        warnings.push(Diagnostic::new(variable.location, message));
                    }
                }
            }
            // It belongs to another program in this folder.
            Err((kind, problem)) if env_file.is_none() && is_inaccessible(kind) => {
                let message = format!("{}; it counts as absent", problem.message);
                warnings.push(Diagnostic { message, ..problem });
            }
            Err((_, problem)) => problems.push(problem),
        }
        settings.retain(|setting| !setting.value.trim().is_empty());
        if problems.is_empty() { Ok(Self { settings, secret_files, warnings }) } else { Err(problems) }
    }

    /// Returns an error message for each file with a secret that other users may read.
    #[must_use]
    pub fn world_readable(&self) -> Vec<String> {
        self.secret_files.iter().filter_map(|file| secret_file::world_readable(file)).collect()
    }

    /// Returns the variables that are set, each with its location and without its value.
    #[must_use]
    pub fn recognised(&self) -> Vec<String> {
        NAMES
            .into_iter()
            .filter_map(|name| self.setting(name))
            .map(|setting| format!("{setting:?}"))
            .collect()
    }

    /// Returns the URL of `DATABASE_URL`, or of the file or credential that replaces it.
    pub fn database_url(&self) -> Result<Option<DatabaseUrl>, Diagnostic> {
        self.parsed(DATABASE_URL, |text| text.parse::<DatabaseUrl>().map_err(|error| error.to_string()))
    }

    /// Parses `LOG_LEVEL`. An unknown level means `info`, as in the original daemon: see [`Environment::warnings`].
    #[must_use]
    pub fn log_filter(&self) -> Option<LogFilter> {
        self.text(LOG_LEVEL).map(|text| text.parse().unwrap_or_default())
    }

    /// Returns a warning for each file that cannot be opened and is not needed, and for an unknown level.
    #[must_use]
    pub fn warnings(&self) -> Vec<Diagnostic> {
        let log_level = self.text(LOG_LEVEL).and_then(|text| text.parse::<LogFilter>().err());
        let warning = |error| self.problem(LOG_LEVEL, &format!("{error}; `info` is used"));
        self.warnings.iter().cloned().chain(log_level.map(warning)).collect()
    }

    /// Returns the billing interval that replaces the one of jobs.toml, if `BILLING_INTERVAL_MINUTES` is set.
    pub fn billing_interval(&self) -> Result<Option<BillingInterval>, Diagnostic> {
        const YEAR: u64 = 365 * 24 * 60;
        let period = self.parsed(BILLING_INTERVAL_MINUTES, |text| {
            let minutes = text.parse().ok().filter(|minutes| (1..=YEAR).contains(minutes));
            minutes.map(Duration::from_mins).ok_or_else(|| {
                format!("invalid number of minutes `{text}`: use a whole number from 1 to {YEAR}")
            })
        })?;
        let location = self.setting(BILLING_INTERVAL_MINUTES).map(|setting| setting.location.clone());
        Ok(period.zip(location).map(|(period, location)| BillingInterval { period, location }))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.setting(name).map(|setting| setting.value.trim())
    }

    fn problem(&self, name: &str, message: &str) -> Diagnostic {
        let location =
            self.setting(name).map_or_else(Location::environment, |setting| setting.location.clone());
        Diagnostic::new(location, format!("{name}: {message}"))
    }

    fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Diagnostic> {
        let Some(text) = self.text(name) else { return Ok(None) };
        parse(text).map(Some).map_err(|message| self.problem(name, &message))
    }

    fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }
}

impl fmt::Debug for Setting {
    /// Without the value: it may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name, self.location)
    }
}

fn is_secret(url: &str) -> bool {
    url.trim().parse::<DatabaseUrl>().is_ok_and(|url| !url.secrets().is_empty())
}

/// Returns the URL of the database and its file, if the process has it in a separate file.
fn read_secret_file(
    lookup: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(PathBuf, String)>, Diagnostic> {
    let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
    if set(DATABASE_URL).is_some() {
        return Ok(None);
    }
    let named = set(DATABASE_URL_FILE).map(PathBuf::from);
    let credential = || set(CREDENTIALS_DIRECTORY).map(|folder| PathBuf::from(folder).join(CREDENTIAL));
    let must_exist = named.is_some();
    let Some(path) = named.or_else(credential) else { return Ok(None) };
    match read_text(&path) {
        Ok(text) => Ok(Some((path, text.trim().to_owned()))),
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => Err(Diagnostic::new(
            Location::file(&path.display().to_string()),
            format!("cannot be read: {error}"),
        )),
    }
}

/// Whether this user cannot read the file at all, or it is a folder.
fn is_inaccessible(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PermissionDenied | ErrorKind::IsADirectory)
}

/// Returns the name and the text of the file; an empty text if it is optional and missing.
fn read(directory: &Path, env_file: Option<&Path>) -> Result<(String, String), (ErrorKind, Diagnostic)> {
    let default = directory.join(".env");
    let path = env_file.unwrap_or(&default);
    let file = path.display().to_string();
    match read_text(path) {
        Ok(text) => Ok((file, text)),
        Err(error) if error.kind() == ErrorKind::NotFound && env_file.is_none() => Ok((file, String::new())),
        Err(error) => {
            let problem = Diagnostic::new(Location::file(&file), format!("cannot be read: {error}"));
            Err((error.kind(), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Loads the environment of `process` in a folder with this `.env`.
    fn load(process: &[(&str, &str)], file: Option<&str>) -> Result<Environment, Vec<Diagnostic>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some(text) = file {
            fs::write(folder.path().join(".env"), text).expect("a writable folder");
        }
        let lookup =
            |name: &str| process.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let mut environment = Environment::load(lookup, folder.path(), None);
        let locations = match &mut environment {
            Ok(environment) => environment.settings.iter_mut().map(|setting| &mut setting.location).collect(),
            Err(problems) => problems.iter_mut().map(|problem| &mut problem.location).collect::<Vec<_>>(),
        };
        for location in locations {
            location.source = location.source.rsplit('/').next().unwrap_or_default().to_owned();
        }
        environment
    }

    #[test]
    fn process_wins_over_file_unless_empty() {
        for (process, file, expected) in [
            (None, None, None),
            (None, Some("BILLING_INTERVAL_MINUTES=30"), Some((30, ".env:1"))),
            (Some("15"), Some("BILLING_INTERVAL_MINUTES=30"), Some((15, "environment"))),
            (Some(""), Some("\nBILLING_INTERVAL_MINUTES=30"), Some((30, ".env:2"))),
            (Some(" "), None, None),
            (None, Some("BILLING_INTERVAL_MINUTES="), None),
            (None, Some("BILLING_INTERVAL_MINUTES=30\nBILLING_INTERVAL_MINUTES=45"), Some((45, ".env:2"))),
        ] {
            let process: Vec<_> =
                process.map(|value| (BILLING_INTERVAL_MINUTES, value)).into_iter().collect();
            let interval = load(&process, file).expect("readable").billing_interval().expect("a number");
            let read =
                interval.map(|interval| (interval.period.as_secs() / 60, interval.location.to_string()));
            assert_eq!(
                read,
                expected.map(|(minutes, place)| (minutes, place.to_owned())),
                "{process:?} {file:?}"
            );
        }
    }

    #[test]
    fn otel_variable_in_file_warns() {
        let environment = load(&[], Some("OTEL_EXPORTER_OTLP_HEADERS=key=s3cret")).expect("readable");
        let warnings: Vec<_> = environment.warnings().into_iter().map(|warning| warning.message).collect();
        assert_eq!(
            warnings,
            ["OTEL_EXPORTER_OTLP_HEADERS has no effect in this file: set it for the process"]
        );
    }

    #[test]
    fn invalid_variable_is_reported_when_parsed() {
        let file = "DATABASE_URL='mysql://ada:s3cret@db/panel'\nBILLING_INTERVAL_MINUTES=0\nLOG_LEVEL=loud";
        let environment = load(&[(LOG_LEVEL, "inof")], Some(file)).expect("readable");
        assert_eq!(
            environment.database_url().expect_err("unsupported").to_string(),
            ".env:1: DATABASE_URL: the database URL begins with `mysql:`, which is not supported: use postgres:// or sqlite://"
        );
        assert_eq!(
            environment.billing_interval().expect_err("zero").to_string(),
            ".env:2: BILLING_INTERVAL_MINUTES: invalid number of minutes `0`: use a whole number from 1 to 525600"
        );
        assert_eq!(environment.log_filter(), Some(LogFilter::default()), "as in the original daemon");
        let warnings: Vec<_> = environment.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            ["environment: LOG_LEVEL: unknown log level `inof`, did you mean `info`?; `info` is used"]
        );
        for interval in ["-5", "1.5", "60m", "99999999999999999999"] {
            let environment = load(&[(BILLING_INTERVAL_MINUTES, interval)], None).expect("readable");
            assert!(environment.billing_interval().is_err(), "{interval}");
        }
        assert!(!format!("{environment:?}").contains("s3cret"));
    }

    #[test]
    fn database_url_may_be_in_separate_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let credentials = folder.path().display().to_string();
        fs::write(path("file"), "sqlite://from-file.db\n").expect("a writable folder");
        fs::write(path("database-url"), "sqlite://from-credential.db\n").expect("a writable folder");
        let (file, missing, in_dotenv) =
            (path("file"), path("missing"), "DATABASE_URL=sqlite://from-dotenv.db");
        for (process, expected) in [
            (vec![("DATABASE_URL", "sqlite://a.db"), ("DATABASE_URL_FILE", &file)], "sqlite://a.db"),
            (vec![("DATABASE_URL", ""), ("DATABASE_URL_FILE", &file)], "sqlite://from-file.db"),
            (
                vec![("CREDENTIALS_DIRECTORY", &credentials), ("DATABASE_URL_FILE", &file)],
                "sqlite://from-file.db",
            ),
            (vec![("CREDENTIALS_DIRECTORY", &credentials)], "sqlite://from-credential.db"),
            (vec![("CREDENTIALS_DIRECTORY", "/nowhere")], "sqlite://from-dotenv.db"),
            (vec![], "sqlite://from-dotenv.db"),
        ] {
            let read = load(&process, Some(in_dotenv)).expect("readable").database_url().expect("a URL");
            assert_eq!(read.expect("there is one").expose(), expected, "{process:?}");
        }
        let problems = load(&[("DATABASE_URL_FILE", &missing)], Some(in_dotenv)).expect_err("missing");
        assert!(problems[0].to_string().contains("missing: cannot be read: "), "{problems:?}");
    }

    /// A test as root can read every file, but no folder.
    #[test]
    fn unreadable_default_file_counts_as_absent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join(".env");
        fs::create_dir(&file).expect("a writable folder");
        let lookup = |name: &str| (name == DATABASE_URL).then(|| "sqlite://a.db".into());
        let environment = Environment::load(lookup, folder.path(), None).expect("the process has it all");
        let warnings = environment.warnings();
        let [warning] = &*warnings else { panic!("{warnings:?}") };
        let warning = warning.to_string();
        assert!(
            warning.contains(".env: cannot be read: ") && warning.ends_with("; it counts as absent"),
            "{warning}"
        );
        assert!(Environment::load(lookup, folder.path(), Some(&file)).is_err(), "it was named");
        fs::remove_dir(&file).expect("our own folder");
        fs::write(&file, b"\xff").expect("a writable folder");
        assert!(Environment::load(lookup, folder.path(), None).is_err(), "it can be read, and is wrong");
    }

    #[test]
    fn named_file_must_be_readable() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("other.env");
        let problems = Environment::load(|_| None, folder.path(), Some(&missing)).expect_err("missing");
        assert!(problems[0].to_string().contains("other.env: cannot be read: "), "{problems:?}");
        let problems = load(&[], Some("A=1\nDATABASE_URL")).expect_err("malformed");
        assert_eq!(problems[0].to_string(), ".env:2: expected NAME=value");
    }

    #[cfg(unix)]
    #[test]
    fn variable_must_be_utf8() {
        use std::os::unix::ffi::OsStringExt;
        let lookup = |name: &str| (name == DATABASE_URL).then(|| OsString::from_vec(vec![0xff]));
        let problems = Environment::load(lookup, Path::new(""), None).expect_err("not text");
        assert_eq!(problems[0].to_string(), "environment: DATABASE_URL is not UTF-8");
    }
}
