//! The configuration while the daemon runs: noticed when its file changes, read again, and put into force or refused.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use billing_scheduler::{Clock, SystemClock};

use tracing::warn;

use crate::{
    config::{
        BUILT_IN, Config, DaemonSettings, Diagnostic, Place, environment::Environment, http::HttpSettings,
    },
    plugins::{Plugins, kinds_for_validation},
};
use billing_store::DatabaseUrl;

/// What concerns the process rather than a job.
type OfProcess<'a> = (&'a DaemonSettings, Option<&'a HttpSettings>);

/// Where the configuration came from, so that it can be read again.
///
/// The file is looked at once a second. That costs one call of the system, and works where notifications do not reach: network
/// file systems, bind mounts of containers, editors and configuration managers that put another file in its place.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// `None` while the built-in defaults are in force.
    path: Option<PathBuf>,
    /// Where a file may appear that replaces the built-in defaults, the preferred one first.
    usual: Vec<PathBuf>,
    environment: Environment,
    plugins: Plugins,
    /// The text that was read last, whether it was good or not.
    text: String,
    look: Option<FileStamp>,
    /// The file looked different at the last look, and may still be being written.
    unsettled: bool,
    /// The file does not exist any more, and a log line says so.
    is_gone: bool,
}

/// What a look at a file tells without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: Option<SystemTime>,
    size: u64,
    /// Another number is another file, even of the same size and written at the same moment.
    file: u64,
}

impl FileStamp {
    fn at(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok(), size: metadata.len(), file: number(&metadata) })
    }
}

#[cfg(unix)]
fn number(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn number(_: &fs::Metadata) -> u64 {
    0
}

impl ConfigFile {
    /// The file at `path`, whose text is read beneath `environment`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path, environment: Environment, plugins: &Plugins) -> io::Result<Self> {
        let look = FileStamp::at(path);
        let text = fs::read_to_string(path)?;
        Ok(Self { path: Some(path.to_owned()), look, ..Self::of_text(text, environment, plugins) })
    }

    /// The built-in defaults, until one of the `usual` files exists.
    #[must_use]
    pub fn built_in(usual: Vec<PathBuf>, environment: Environment, plugins: &Plugins) -> Self {
        Self { usual, ..Self::of_text(BUILT_IN.to_owned(), environment, plugins) }
    }

    fn of_text(text: String, environment: Environment, plugins: &Plugins) -> Self {
        Self {
            path: None,
            usual: Vec::new(),
            environment,
            plugins: plugins.clone(),
            text,
            look: None,
            unsettled: false,
            is_gone: false,
        }
    }

    /// Its name, as messages have it.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string())
    }

    /// The file; `None` for the built-in defaults.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whose it is.
    #[cfg(unix)]
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        let metadata = fs::metadata(self.path.as_ref()?).ok()?;
        Some(std::os::unix::fs::MetadataExt::uid(&metadata))
    }

    /// Files belong to nobody in particular here.
    #[cfg(not(unix))]
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        None
    }

    /// Its text, as it was read last.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn config(&self) -> Result<Config, Vec<Diagnostic>> {
        let registry = kinds_for_validation(&self.plugins);
        Config::load(&self.text, &self.name(), &self.environment, &registry, SystemClock.now())
    }

    /// Whether the file has another text than before, and nobody is writing it any more. Call it about once a second.
    pub fn has_changed(&mut self) -> bool {
        self.adopt_usual();
        let Some(path) = &self.path else { return false };
        let look = FileStamp::at(path);
        self.report_loss(look.is_none());
        if look != self.look {
            self.look = look;
            self.unsettled = true;
            return false;
        }
        if !std::mem::take(&mut self.unsettled) {
            return false;
        }
        let text = self.path.as_ref().map_or_else(|| Ok(String::new()), fs::read_to_string);
        // A file that cannot be read now may be there again without looking different.
        self.unsettled = text.is_err();
        text.is_ok_and(|text| text != self.text)
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// Everything that is wrong with it; it may be that it cannot be read.
    pub fn read_again(&mut self) -> Result<Config, Vec<Diagnostic>> {
        self.adopt_usual();
        if let Some(path) = &self.path {
            self.look = FileStamp::at(path);
            self.text = fs::read_to_string(path).map_err(|error| {
                vec![Diagnostic::new(Place::file(&self.name()), format!("cannot be read: {error}"))]
            })?;
        }
        self.config()
    }

    /// Follows the first of the usual files that exists, if none did before.
    fn adopt_usual(&mut self) {
        if self.path.is_none() {
            self.path = self.usual.iter().find(|path| is_alive(path)).cloned();
        }
    }

    /// Logs once that the file does not exist any more. Its jobs keep running: an editor or a deployment may be replacing it,
    /// and the built-in defaults are other jobs.
    fn report_loss(&mut self, is_gone: bool) {
        if is_gone && !self.is_gone {
            let name = self.name();
            warn!(
                "{name} does not exist any more: what it said stays in force until the daemon is restarted"
            );
        }
        self.is_gone = is_gone;
    }
}

/// Whether there is a file at `path`, readable or not. One that cannot be inspected counts: the operator expects it to
/// be used.
pub(crate) fn is_alive(path: &Path) -> bool {
    !fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The settings of the process whose new values wait for the next start.
pub(crate) fn waiting(before: OfProcess<'_>, after: OfProcess<'_>) -> Vec<String> {
    // Whoever adds a setting is told to add it here, unless it comes into force at once.
    let of_daemon = |DaemonSettings {
                         database_url,
                         log_filter,
                         drain_timeout: _,
                         lease_ttl,
                         state_dir,
                         panel_billing,
                         allow_unverified_database,
                     }: &DaemonSettings| {
        [
            ("database-url", format!("{:?}", database_url.as_ref().map(DatabaseUrl::expose))),
            ("log-level", format!("{log_filter:?}")),
            ("lease-ttl", format!("{lease_ttl:?}")),
            ("state-dir", format!("{state_dir:?}")),
            ("panel-billing", format!("{panel_billing:?}")),
            ("allow-unverified-database", format!("{allow_unverified_database:?}")),
        ]
    };
    let of_http = |http: Option<&HttpSettings>| match http {
        None => {
            let none = || Some("[]".to_owned());
            [("listen", None), ("allowed-hosts", none()), ("allowed-uids", none())]
        }
        Some(HttpSettings { listen, allowed_hosts, allowed_uids }) => [
            ("listen", Some(listen.to_string())),
            ("allowed-hosts", Some(format!("{allowed_hosts:?}"))),
            ("allowed-uids", Some(format!("{allowed_uids:?}"))),
        ],
    };
    let daemon = of_daemon(before.0).into_iter().zip(of_daemon(after.0));
    let daemon =
        daemon.filter(|(before, after)| before != after).map(|((key, _), _)| format!("`{key}` of [daemon]"));
    let http = of_http(before.1).into_iter().zip(of_http(after.1));
    let http =
        http.filter(|(before, after)| before != after).map(|((key, _), _)| format!("`{key}` of [http]"));
    daemon.chain(http).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::PanelBilling;

    #[test]
    fn what_waits_for_the_next_start_is_told() {
        let before = DaemonSettings::default();
        let other = DaemonSettings {
            database_url: Some("sqlite://other.db".parse().expect("a URL")),
            log_filter: "debug".parse().expect("a level"),
            drain_timeout: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(7),
            state_dir: Some("/elsewhere".into()),
            panel_billing: PanelBilling::Off,
            allow_unverified_database: true,
        };
        let http = HttpSettings {
            listen: "127.0.0.1:1".parse().expect("an address"),
            allowed_hosts: Vec::new(),
            allowed_uids: Vec::new(),
        };
        let elsewhere = HttpSettings { listen: "unix:/a".parse().expect("a socket"), ..http.clone() };
        let named = HttpSettings { allowed_hosts: vec!["a".to_owned()], ..http.clone() };
        let shared = HttpSettings { allowed_uids: vec![33], ..http.clone() };
        assert_eq!(waiting((&before, Some(&http)), (&before, Some(&http))), [""; 0]);
        let all = [
            "`database-url` of [daemon]",
            "`log-level` of [daemon]",
            "`lease-ttl` of [daemon]",
            "`state-dir` of [daemon]",
            "`panel-billing` of [daemon]",
            "`allow-unverified-database` of [daemon]",
        ];
        assert_eq!(waiting((&before, None), (&other, None)), all);
        for (before_http, after_http, expected) in [
            (None, Some(&http), ["`listen` of [http]"].as_slice()),
            (Some(&http), None, &["`listen` of [http]"]),
            (Some(&http), Some(&elsewhere), &["`listen` of [http]"]),
            (Some(&http), Some(&named), &["`allowed-hosts` of [http]"]),
            (Some(&http), Some(&shared), &["`allowed-uids` of [http]"]),
            (None, Some(&named), &["`listen` of [http]", "`allowed-hosts` of [http]"]),
        ] {
            assert_eq!(waiting((&before, before_http), (&before, after_http)), expected);
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_is_another_and_settled() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.toml");
        fs::write(&path, "one").expect("written");
        let environment = Environment::of_process(None).expect("an environment");
        let mut source = ConfigFile::open(&path, environment, &Plugins::none()).expect("it is there");
        assert!(!source.has_changed() && !source.has_changed());
        fs::write(&path, "another").expect("written");
        assert!(!source.has_changed(), "it may still be being written");
        assert!(source.has_changed());
        assert!(source.read_again().is_err(), "`another` is no configuration");
        assert!(!source.has_changed() && !source.has_changed(), "what is wrong is told once");
        let other = folder.path().join("other");
        fs::write(&other, "a third").expect("written");
        fs::rename(&other, &path).expect("put in its place");
        assert!(!source.has_changed());
        assert!(source.has_changed());
        fs::remove_file(&path).expect("removed");
        assert!(!source.has_changed() && !source.has_changed(), "nothing to read is no news");
        fs::write(&path, "a third").expect("written");
        source.read_again().expect_err("no configuration");
        fs::write(&path, "a third").expect("written");
        assert!(!source.has_changed() && !source.has_changed(), "the same text is no change");
    }

    /// A right that was given back, or a network file system that is there again, changes nothing that a look tells. A test as root
    /// can read everything but what is no text.
    #[test]
    fn a_file_that_could_not_be_read_is_read_once_it_can_be_though_it_looks_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.toml");
        fs::write(&path, "one").expect("written");
        let environment = Environment::of_process(None).expect("an environment");
        let mut source = ConfigFile::open(&path, environment, &Plugins::none()).expect("it is there");
        fs::write(&path, b"\xff\xff\xff\xff").expect("written");
        let look = FileStamp::at(&path).expect("it is there");
        assert!(!source.has_changed(), "it may still be being written");
        assert!(!source.has_changed() && !source.has_changed(), "it cannot be read");
        fs::write(&path, "four").expect("written");
        let file = fs::File::options().write(true).open(&path).expect("it is there");
        file.set_modified(look.modified.expect("a time")).expect("our own file");
        assert_eq!(FileStamp::at(&path), Some(look), "it looks the same");
        assert!(source.has_changed());
        source.read_again().expect_err("`four` is no configuration");
        assert!(!source.has_changed() && !source.has_changed(), "what was read is not read again");
    }

    #[test]
    fn built_in_source_follows_appearing_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let usual = ["jobs.toml", "installed.toml"].map(|name| folder.path().join(name));
        let environment = || Environment::load(|_| None, folder.path(), None).expect("an empty environment");
        let source = || ConfigFile::built_in(usual.to_vec(), environment(), &Plugins::none());
        let mut followed = source();
        assert_eq!((followed.name(), followed.path()), ("built-in defaults".to_owned(), None));
        assert_eq!(followed.read_again().expect("valid").jobs.len(), 4);
        assert!(!followed.has_changed() && !followed.has_changed(), "there is no file");

        let one =
            "[[job]]\nname = \"prune-history\"\nkind = \"prune-history\"\nschedule = { every = \"1h\" }\n";
        fs::write(&usual[1], one).expect("written");
        assert!(!followed.has_changed(), "it may still be being written");
        assert!(followed.has_changed());
        assert_eq!(followed.read_again().expect("valid").jobs.len(), 1);
        assert_eq!(followed.path(), Some(&*usual[1]));
        // A preferred file that appears later is for the next start, and one that vanishes leaves its jobs in force.
        fs::write(&usual[0], BUILT_IN).expect("written");
        fs::remove_file(&usual[1]).expect("removed");
        assert!(!followed.has_changed() && !followed.has_changed() && followed.is_gone);
        let problem = followed.read_again().expect_err("it is gone")[0].to_string();
        assert!(problem.contains("installed.toml: cannot be read: "), "{problem}");
        // A request to read again does not wait until the file has settled.
        let mut requested = source();
        assert_eq!(requested.read_again().expect("valid").jobs.len(), 4);
        assert_eq!(requested.path(), Some(&*usual[0]));
    }
}
