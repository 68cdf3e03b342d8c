//! The configuration file while the daemon runs: detects that it has changed, and rereads it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use billing_kinds::input_file::{self, metadata, read_text};
use billing_scheduler::{Clock, SystemClock};
use billing_store::{DatabaseUrl, audit_log::fingerprint};
use tracing::warn;

use crate::{
    config::{
        BUILT_IN, Config, DaemonSettings, Diagnostic, Location, environment::Environment, http::HttpSettings,
    },
    plugins::{Plugins, kinds_for_validation},
};

/// The settings of the process, as opposed to those of jobs.
type ProcessSettings<'a> = (&'a DaemonSettings, Option<&'a HttpSettings>);

/// The source of the configuration, so that it can be reread.
///
/// The file is polled once a second. That costs one system call in a thread, and works where notifications do not: network file systems, bind
/// mounts of containers, editors and configuration managers that replace the file.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// `None` while the built-in defaults are in force.
    path: Option<PathBuf>,
    /// Where a file may appear that replaces the built-in defaults, the preferred one first.
    usual: Vec<PathBuf>,
    environment: Environment,
    plugins: Plugins,
    /// The text that was read last, valid or not.
    text: String,
    stamp: Option<FileStamp>,
    /// The file was different at the last poll, and another process may still be writing it.
    is_changing: bool,
    /// Why the file cannot be inspected, which was logged.
    loss: Option<String>,
    /// Why the changed file cannot be read, which was logged.
    unreadable: Option<String>,
}

/// A configuration that was read from the file of a running daemon.
#[derive(Debug)]
pub struct Reading {
    /// The name of the file for messages.
    pub name: String,
    /// The fingerprint of the text.
    pub fingerprint: String,
    /// The id of the user that owns the file.
    pub owner: Option<u32>,
    /// The configuration and the current secrets of its jobs, or every mistake.
    pub config: Result<(Config, Vec<String>), Vec<Diagnostic>>,
}

/// What identifies the version of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: Option<SystemTime>,
    size: u64,
    /// The inode: another file may have the same size and time.
    inode: u64,
}

impl FileStamp {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = metadata(path)?;
        Ok(Self { modified: metadata.modified().ok(), size: metadata.len(), inode: inode(&metadata) })
    }
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

impl ConfigFile {
    /// Opens the file at `path`; the variables of `environment` win over its text.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path, environment: Environment, plugins: &Plugins) -> io::Result<Self> {
        let stamp = FileStamp::at(path)?;
        let text = read_text(path)?;
        Ok(Self {
            path: Some(path.to_owned()),
            stamp: Some(stamp),
            ..Self::from_text(text, environment, plugins)
        })
    }

    /// Returns the built-in defaults, which apply until one of the `usual` files exists.
    #[must_use]
    pub fn built_in(usual: Vec<PathBuf>, environment: Environment, plugins: &Plugins) -> Self {
        Self { usual, ..Self::from_text(BUILT_IN.to_owned(), environment, plugins) }
    }

    fn from_text(text: String, environment: Environment, plugins: &Plugins) -> Self {
        Self {
            path: None,
            usual: Vec::new(),
            environment,
            plugins: plugins.clone(),
            text,
            stamp: None,
            is_changing: false,
            loss: None,
            unreadable: None,
        }
    }

    /// Returns its name for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string())
    }

    /// Returns the path of the file; `None` for the built-in defaults.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns the id of the user that owns the file.
    #[cfg(unix)]
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        let metadata = metadata(self.path.as_ref()?).ok()?;
        Some(std::os::unix::fs::MetadataExt::uid(&metadata))
    }

    /// Returns `None`: this platform has no user ids.
    #[cfg(not(unix))]
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        None
    }

    /// Returns the text that was read last.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses the text that was read last.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn config(&self) -> Result<Config, Vec<Diagnostic>> {
        let registry = kinds_for_validation(&self.plugins);
        Config::load(&self.text, &self.name(), &self.environment, &registry, SystemClock.now())
    }

    /// Whether the file has a different text that is complete: it did not change since the last call, about a second ago. Returns
    /// true once if it cannot be read.
    pub fn has_changed(&mut self) -> bool {
        self.adopt_usual();
        let Some(path) = &self.path else { return false };
        let stamp = match FileStamp::at(path) {
            Ok(stamp) => {
                self.loss = None;
                Some(stamp)
            }
            Err(error) => {
                self.report_loss(&error);
                None
            }
        };
        if stamp != self.stamp {
            self.stamp = stamp;
            self.is_changing = true;
            return false;
        }
        if !std::mem::take(&mut self.is_changing) {
            return false;
        }
        if stamp.is_none() {
            return false;
        }
        match self.path.as_deref().map(read_text) {
            Some(Err(error)) => {
                // A file that cannot be read now may become readable with the same stamp.
                self.is_changing = true;
                let error = error.to_string();
                self.unreadable.replace(error.clone()) != Some(error)
            }
            Some(Ok(text)) => {
                self.unreadable = None;
                text != self.text
            }
            None => false,
        }
    }

    /// Rereads and parses the file, and reads the secrets of its jobs.
    pub fn reread(&mut self) -> Reading {
        let config = self.reread_config().map(|config| {
            let secrets = config.secrets(&kinds_for_validation(&self.plugins));
            (config, secrets)
        });
        Reading { name: self.name(), fingerprint: fingerprint(&self.text), owner: self.owner(), config }
    }

    fn reread_config(&mut self) -> Result<Config, Vec<Diagnostic>> {
        self.adopt_usual();
        if let Some(path) = &self.path {
            let read = FileStamp::at(path).and_then(|stamp| Ok((stamp, read_text(path)?)));
            let (stamp, text) = read.map_err(|error| {
                vec![Diagnostic::new(Location::file(&self.name()), format!("cannot be read: {error}"))]
            })?;
            (self.stamp, self.text) = (Some(stamp), text);
        }
        self.config()
    }

    /// Replaces the built-in defaults by the first of the usual files that exists.
    fn adopt_usual(&mut self) {
        if self.path.is_none() {
            self.path = self.usual.iter().find(|path| input_file::exists(path)).cloned();
        }
    }

    /// Logs once that the file does not exist any more, or cannot be inspected. Its jobs keep running: an editor or a deployment may
    /// be replacing it, and the built-in defaults are other jobs.
    fn report_loss(&mut self, error: &io::Error) {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "does not exist any more".to_owned(),
            _ => format!("cannot be inspected: {error}"),
        };
        if self.loss.as_ref() != Some(&reason) {
            let name = self.name();
            warn!("{name} {reason}: its jobs keep running until the daemon is restarted");
            self.loss = Some(reason);
        }
    }
}

/// Returns the settings of the process whose new values apply after a restart.
pub(crate) fn needs_restart(before: ProcessSettings<'_>, after: ProcessSettings<'_>) -> Vec<String> {
    // The pattern names every field, so that a new setting cannot be forgotten here.
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
            [
                ("listen", None),
                ("token", None),
                ("allowed-hosts", none()),
                ("allowed-uids", none()),
                ("console", None),
            ]
        }
        Some(HttpSettings { listen, token, allowed_hosts, allowed_uids, console }) => [
            ("listen", Some(listen.to_string())),
            ("token", token.as_ref().map(|token| format!("{token:?}"))),
            ("allowed-hosts", Some(format!("{allowed_hosts:?}"))),
            ("allowed-uids", Some(format!("{allowed_uids:?}"))),
            ("console", console.as_ref().map(|console| format!("{console:?}"))),
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

    use billing_kinds::Secret;

    use super::*;
    use crate::config::PanelBilling;

    #[test]
    fn settings_that_need_restart_are_listed() {
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
            token: None,
            allowed_hosts: Vec::new(),
            allowed_uids: Vec::new(),
            console: None,
        };
        let elsewhere = HttpSettings { listen: "unix:/a".parse().expect("a socket"), ..http.clone() };
        let named = HttpSettings { allowed_hosts: vec!["a".to_owned()], ..http.clone() };
        let token = Some(Secret::Env("TOKEN".to_owned()));
        let with_token = HttpSettings { token, ..http.clone() };
        let shared = HttpSettings { allowed_uids: vec![33], ..http.clone() };
        assert_eq!(needs_restart((&before, Some(&http)), (&before, Some(&http))), [""; 0]);
        let all = [
            "`database-url` of [daemon]",
            "`log-level` of [daemon]",
            "`lease-ttl` of [daemon]",
            "`state-dir` of [daemon]",
            "`panel-billing` of [daemon]",
            "`allow-unverified-database` of [daemon]",
        ];
        assert_eq!(needs_restart((&before, None), (&other, None)), all);
        for (before_http, after_http, expected) in [
            (None, Some(&http), ["`listen` of [http]"].as_slice()),
            (Some(&http), None, &["`listen` of [http]"]),
            (Some(&http), Some(&elsewhere), &["`listen` of [http]"]),
            (Some(&http), Some(&with_token), &["`token` of [http]"]),
            (Some(&http), Some(&named), &["`allowed-hosts` of [http]"]),
            (Some(&http), Some(&shared), &["`allowed-uids` of [http]"]),
            (None, Some(&named), &["`listen` of [http]", "`allowed-hosts` of [http]"]),
        ] {
            assert_eq!(needs_restart((&before, before_http), (&before, after_http)), expected);
        }
    }

    #[test]
    fn changed_file_is_reread_once_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.toml");
        fs::write(&path, "one").expect("written");
        let environment = Environment::from_process(None).expect("an environment");
        let mut source = ConfigFile::open(&path, environment, &Plugins::none()).expect("it is there");
        assert!(!source.has_changed() && !source.has_changed());
        fs::write(&path, "another").expect("written");
        assert!(!source.has_changed(), "another process may still be writing it");
        assert!(source.has_changed());
        assert!(source.reread().config.is_err(), "`another` is not a configuration");
        assert!(!source.has_changed() && !source.has_changed(), "a mistake is reported once");
        let other = folder.path().join("other");
        fs::write(&other, "a third").expect("written");
        fs::rename(&other, &path).expect("put in its place");
        assert!(!source.has_changed());
        assert!(source.has_changed());
        fs::remove_file(&path).expect("removed");
        assert!(!source.has_changed() && !source.has_changed(), "a missing file is not a change");
        fs::write(&path, "a third").expect("written");
        source.reread().config.expect_err("not a configuration");
        fs::write(&path, "a third").expect("written");
        assert!(!source.has_changed() && !source.has_changed(), "the same text is no change");
    }

    /// A restored permission or network file system does not change the stamp of a file. As root, a test can only make a file
    /// unreadable by a text that is not UTF-8.
    #[test]
    fn unreadable_file_is_retried_with_same_stamp() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.toml");
        fs::write(&path, "one").expect("written");
        let environment = Environment::from_process(None).expect("an environment");
        let mut source = ConfigFile::open(&path, environment, &Plugins::none()).expect("it is there");
        fs::write(&path, b"\xff\xff\xff\xff").expect("written");
        let stamp = FileStamp::at(&path).expect("it is there");
        assert!(!source.has_changed(), "another process may still be writing it");
        assert!(source.has_changed(), "it cannot be read, which is reported");
        assert!(!source.has_changed() && !source.has_changed(), "once");
        fs::write(&path, "four").expect("written");
        let file = fs::File::options().write(true).open(&path).expect("it is there");
        file.set_modified(stamp.modified.expect("a time")).expect("our own file");
        assert_eq!(FileStamp::at(&path).expect("it is there"), stamp, "the stamp is the same");
        assert!(source.has_changed());
        source.reread().config.expect_err("`four` is not a configuration");
        assert!(!source.has_changed() && !source.has_changed(), "the same text is not reread");
    }

    #[test]
    fn built_in_source_follows_appearing_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let usual = ["jobs.toml", "installed.toml"].map(|name| folder.path().join(name));
        let environment = || Environment::load(|_| None, folder.path(), None).expect("an empty environment");
        let source = || ConfigFile::built_in(usual.to_vec(), environment(), &Plugins::none());
        let mut followed = source();
        assert_eq!((followed.name(), followed.path()), ("built-in defaults".to_owned(), None));
        assert_eq!(followed.reread().config.expect("valid").0.jobs.len(), 4);
        assert!(!followed.has_changed() && !followed.has_changed(), "there is no file");

        let one =
            "[[job]]\nname = \"prune-history\"\nkind = \"prune-history\"\nschedule = { every = \"1h\" }\n";
        fs::write(&usual[1], one).expect("written");
        assert!(!followed.has_changed(), "another process may still be writing it");
        assert!(followed.has_changed());
        assert_eq!(followed.reread().config.expect("valid").0.jobs.len(), 1);
        assert_eq!(followed.path(), Some(&*usual[1]));
        // A preferred file that appears later is for the next start, and one that vanishes leaves its jobs in force.
        fs::write(&usual[0], BUILT_IN).expect("written");
        fs::remove_file(&usual[1]).expect("removed");
        assert!(!followed.has_changed() && !followed.has_changed() && followed.loss.is_some());
        let problem = followed.reread().config.expect_err("it is gone")[0].to_string();
        assert!(problem.contains("installed.toml: cannot be read: "), "{problem}");
        // A request to read again does not wait until the file has settled.
        let mut requested = source();
        assert_eq!(requested.reread().config.expect("valid").0.jobs.len(), 4);
        assert_eq!(requested.path(), Some(&*usual[0]));
    }
}
