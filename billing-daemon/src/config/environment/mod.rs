//! The settings of the original daemon: variables of the process, or of an `.env` file beside it. The address of the database,
//! which has a password in it, may also come from a file of its own or from the credentials that systemd hands over. And those of
//! OpenTelemetry, by the names that it gave them.

mod dotenv;

use std::{
    ffi::OsString,
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::config::{Diagnostic, Place, log::LogFilter, secret_file};
use billing_store::DatabaseUrl;

const DATABASE_URL: &str = "DATABASE_URL";
/// Names a file that has nothing but the URL in it.
const DATABASE_URL_FILE: &str = "DATABASE_URL_FILE";
/// The folder that systemd's `LoadCredential=` fills.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// The credential.
const CREDENTIAL: &str = "database-url";
const BILLING_INTERVAL_MINUTES: &str = "BILLING_INTERVAL_MINUTES";
const LOG_LEVEL: &str = "LOG_LEVEL";
const NAMES: [&str; 3] = [DATABASE_URL, BILLING_INTERVAL_MINUTES, LOG_LEVEL];

/// Where traces go, or else all that OpenTelemetry sends.
const COLLECTORS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const OTEL_SDK_DISABLED: &str = "OTEL_SDK_DISABLED";
const OTEL_TRACES_EXPORTER: &str = "OTEL_TRACES_EXPORTER";
/// What else is said about traces, as OpenTelemetry names it; keys to a collector are among the headers.
const OF_TRACES: [&str; 25] = [
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
    COLLECTORS[0],
    COLLECTORS[1],
    OTEL_SDK_DISABLED,
    OTEL_TRACES_EXPORTER,
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// What the environment says, as text; it is read when it is asked for, so that a command is not stopped by a variable
/// that it does not use.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    settings: Vec<Setting>,
    /// Files with a secret in them, as far as any was read.
    secret_files: Vec<PathBuf>,
    /// What could not be read, and is not needed.
    warnings: Vec<Diagnostic>,
}

#[derive(Clone)]
struct Setting {
    name: &'static str,
    value: String,
    place: Place,
}

/// `BILLING_INTERVAL_MINUTES`, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillingInterval {
    /// How long.
    pub period: Duration,
    /// Where it was said.
    pub place: Place,
}

impl Environment {
    /// The variables of this process, and those of `.env` in its working directory or of `env_file`.
    ///
    /// # Errors
    /// Everything that cannot be read, line by line.
    pub fn of_process(env_file: Option<&Path>) -> Result<Self, Vec<Diagnostic>> {
        Self::load(|name| std::env::var_os(name), Path::new(""), env_file)
    }

    /// The variables that `lookup` knows, and beneath them those of `env_file`, which must exist, or else of the `.env` in
    /// `directory`, which need not. An empty variable counts as unset. Where the process has no `DATABASE_URL`, the file that
    /// `DATABASE_URL_FILE` names stands in for it, or else the credential `database-url` of systemd.
    ///
    /// # Errors
    /// Everything that cannot be read, line by line.
    pub fn load(
        lookup: impl Fn(&str) -> Option<OsString>,
        directory: &Path,
        env_file: Option<&Path>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut problems = Vec::new();
        let mut settings = Vec::new();
        for name in names() {
            let place = Place::environment();
            match lookup(name).map(OsString::into_string) {
                Some(Ok(value)) => settings.push(Setting { name, value, place }),
                Some(Err(_)) => problems.push(Diagnostic::new(place, format!("{name} is not UTF-8"))),
                None => {}
            }
        }
        let (mut secret_files, mut warnings) = (Vec::new(), Vec::new());
        match of_its_own_file(&lookup) {
            Ok(Some((path, value))) => {
                let place = Place::file(&path.display().to_string());
                settings.push(Setting { name: DATABASE_URL, value, place });
                secret_files.push(path);
            }
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
        match read(directory, env_file) {
            Ok((file, text)) => {
                // The first setting of a name counts, and of a name that a file gives twice the last.
                for variable in dotenv::parse(&text, &file, &mut problems).into_iter().rev() {
                    if let Some(name) = names().find(|name| *name == variable.name) {
                        let is_secret = match name {
                            DATABASE_URL => holds_a_secret(&variable.value),
                            name => name.ends_with("_HEADERS"),
                        };
                        if is_secret {
                            secret_files.push(PathBuf::from(&file));
                        }
                        settings.push(Setting { name, value: variable.value, place: variable.place });
                    }
                }
            }
            // It belongs to another program in this folder.
            Err(problem) if env_file.is_none() && is_inaccessible(&directory.join(".env")) => {
                warnings.push(problem.hint(Some("so it counts as absent".to_owned())));
            }
            Err(problem) => problems.push(problem),
        }
        settings.retain(|setting| !setting.value.trim().is_empty());
        if problems.is_empty() { Ok(Self { settings, secret_files, warnings }) } else { Err(problems) }
    }

    /// Every file with a secret in it that was read and that others may read as well, in words.
    #[must_use]
    pub fn exposed(&self) -> Vec<String> {
        self.secret_files.iter().filter_map(|file| secret_file::exposed(file)).collect()
    }

    /// The names of what is set, each with where, without the values.
    #[must_use]
    pub fn known(&self) -> Vec<String> {
        NAMES
            .into_iter()
            .filter_map(|name| self.setting(name))
            .map(|setting| format!("{setting:?}"))
            .collect()
    }

    /// `DATABASE_URL`.
    pub fn database_url(&self) -> Result<Option<DatabaseUrl>, Diagnostic> {
        self.parsed(DATABASE_URL, |text| text.parse::<DatabaseUrl>().map_err(|error| error.to_string()))
    }

    /// `LOG_LEVEL`. What is not a level means `info`, as in the original: see [`Environment::warnings`].
    #[must_use]
    pub fn log_filter(&self) -> Option<LogFilter> {
        self.text(LOG_LEVEL).map(|text| text.parse().unwrap_or_default())
    }

    /// What has no effect: a file that cannot be opened and is not needed, and a value that is replaced.
    #[must_use]
    pub fn warnings(&self) -> Vec<Diagnostic> {
        let log_level = self.text(LOG_LEVEL).and_then(|text| text.parse::<LogFilter>().err());
        let warning = |error| self.problem(LOG_LEVEL, &format!("{error}; `info` is used"));
        self.warnings.iter().cloned().chain(log_level.map(warning)).collect()
    }

    /// `BILLING_INTERVAL_MINUTES`.
    pub fn billing_interval(&self) -> Result<Option<BillingInterval>, Diagnostic> {
        const YEAR: u64 = 365 * 24 * 60;
        let period = self.parsed(BILLING_INTERVAL_MINUTES, |text| {
            let minutes = text.parse().ok().filter(|minutes| (1..=YEAR).contains(minutes));
            minutes
                .map(Duration::from_mins)
                .ok_or_else(|| format!("`{text}` is no whole number of minutes from 1 to {YEAR}"))
        })?;
        let place = self.setting(BILLING_INTERVAL_MINUTES).map(|setting| setting.place.clone());
        Ok(period.zip(place).map(|(period, place)| BillingInterval { period, place }))
    }

    /// Where traces are to go, with the name of the variable that says so; nowhere if they are switched off.
    pub(crate) fn collector(&self) -> Option<(&'static str, &str)> {
        let is = |name, value| self.text(name).is_some_and(|text| text.eq_ignore_ascii_case(value));
        if is(OTEL_SDK_DISABLED, "true") || is(OTEL_TRACES_EXPORTER, "none") {
            return None;
        }
        COLLECTORS.into_iter().find_map(|name| Some((name, self.text(name)?)))
    }

    /// The variable that says this of traces, or else of all that OpenTelemetry sends.
    #[cfg(feature = "otel")]
    pub(crate) fn of_traces(&self, setting: &str) -> Option<&'static str> {
        let set = |prefix: &str| {
            let is_it = |name: &&str| name.strip_prefix(prefix) == Some(setting);
            OF_TRACES.into_iter().find(is_it).filter(|name| self.text(name).is_some())
        };
        set("OTEL_EXPORTER_OTLP_TRACES_").or_else(|| set("OTEL_EXPORTER_OTLP_"))
    }

    /// What a variable says.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.setting(name).map(|setting| setting.value.trim())
    }

    /// What is wrong with a variable.
    pub(crate) fn problem(&self, name: &str, message: &str) -> Diagnostic {
        let place = self.setting(name).map_or_else(Place::environment, |setting| setting.place.clone());
        Diagnostic::new(place, format!("{name}: {message}"))
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
        write!(f, "{} of {}", self.name, self.place)
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().chain(OF_TRACES)
}

fn holds_a_secret(url: &str) -> bool {
    url.trim().parse::<DatabaseUrl>().is_ok_and(|url| !url.secrets().is_empty())
}

/// The address of the database, if the process has it in a file of its own, and which file that is.
fn of_its_own_file(
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
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text.trim().to_owned()))),
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => {
            Err(Diagnostic::new(Place::file(&path.display().to_string()), format!("cannot be read: {error}")))
        }
    }
}

/// Whether the file cannot be opened, whatever is in it.
fn is_inaccessible(file: &Path) -> bool {
    let refused =
        |error: std::io::Error| matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::IsADirectory);
    file.is_dir() || fs::File::open(file).is_err_and(refused)
}

/// The name and the text of the file to read; no text if it need not exist and does not.
fn read(directory: &Path, env_file: Option<&Path>) -> Result<(String, String), Diagnostic> {
    let default = directory.join(".env");
    let path = env_file.unwrap_or(&default);
    let file = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => Ok((file, text)),
        Err(error) if error.kind() == ErrorKind::NotFound && env_file.is_none() => Ok((file, String::new())),
        Err(error) => Err(Diagnostic::new(Place::file(&file), format!("cannot be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The environment of `process` in a folder with this `.env`.
    fn load(process: &[(&str, &str)], file: Option<&str>) -> Result<Environment, Vec<Diagnostic>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some(text) = file {
            fs::write(folder.path().join(".env"), text).expect("a writable folder");
        }
        let lookup =
            |name: &str| process.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let mut environment = Environment::load(lookup, folder.path(), None);
        let places = match &mut environment {
            Ok(environment) => environment.settings.iter_mut().map(|setting| &mut setting.place).collect(),
            Err(problems) => problems.iter_mut().map(|problem| &mut problem.place).collect::<Vec<_>>(),
        };
        for place in places {
            place.source = place.source.rsplit('/').next().unwrap_or_default().to_owned();
        }
        environment
    }

    #[test]
    fn the_process_wins_over_the_file_and_empty_counts_as_unset() {
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
            let read = interval.map(|interval| (interval.period.as_secs() / 60, interval.place.to_string()));
            assert_eq!(
                read,
                expected.map(|(minutes, place)| (minutes, place.to_owned())),
                "{process:?} {file:?}"
            );
        }
    }

    #[test]
    fn a_bad_value_is_told_with_its_place_when_it_is_asked_for() {
        let file = "DATABASE_URL='mysql://ada:s3cret@db/panel'\nBILLING_INTERVAL_MINUTES=0\nLOG_LEVEL=loud";
        let environment = load(&[(LOG_LEVEL, "inof")], Some(file)).expect("readable");
        assert_eq!(
            environment.database_url().expect_err("unsupported").to_string(),
            ".env:1: DATABASE_URL: the database URL begins with `mysql:`, which is not supported: use postgres:// or sqlite://"
        );
        assert_eq!(
            environment.billing_interval().expect_err("zero").to_string(),
            ".env:2: BILLING_INTERVAL_MINUTES: `0` is no whole number of minutes from 1 to 525600"
        );
        assert_eq!(environment.log_filter(), Some(LogFilter::default()), "as in the original");
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
    fn the_address_of_the_database_may_come_from_a_file_of_its_own() {
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
            warning.contains(".env: cannot be read: ") && warning.ends_with(", so it counts as absent"),
            "{warning}"
        );
        assert!(Environment::load(lookup, folder.path(), Some(&file)).is_err(), "it was named");
        fs::remove_dir(&file).expect("our own folder");
        fs::write(&file, b"\xff").expect("a writable folder");
        assert!(Environment::load(lookup, folder.path(), None).is_err(), "it can be read, and is wrong");
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist_and_be_readable() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("other.env");
        let problems = Environment::load(|_| None, folder.path(), Some(&missing)).expect_err("missing");
        assert!(problems[0].to_string().contains("other.env: cannot be read: "), "{problems:?}");
        let problems = load(&[], Some("A=1\nDATABASE_URL")).expect_err("malformed");
        assert_eq!(problems[0].to_string(), ".env:2: expected NAME=value");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_is_told() {
        use std::os::unix::ffi::OsStringExt;
        let lookup = |name: &str| (name == DATABASE_URL).then(|| OsString::from_vec(vec![0xff]));
        let problems = Environment::load(lookup, Path::new(""), None).expect_err("not text");
        assert_eq!(problems[0].to_string(), "environment: DATABASE_URL is not UTF-8");
    }
}
