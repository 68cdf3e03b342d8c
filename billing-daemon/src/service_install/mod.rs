//! The daemon as a service of the system. A pure function plans what is written and run, so that `--dry-run` shows exactly what
//! happens otherwise, on any platform.

mod launchd;
mod systemd;
mod windows;

use crate::host::SERVICE_NAME;
use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

/// The initial configuration of a new installation.
const JOBS: &str = include_str!("../../shipped/jobs.toml");
// The files in `shipped/` are symbolic links. A checkout without them contains the path of the target instead of its text.
const _: () = assert!(JOBS.len() > 200, "set `core.symlinks` of git to true and check out again");

/// A platform's service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    Systemd,
    Launchd,
    Windows,
}

impl System {
    /// Returns the service manager of this platform.
    pub(crate) fn current() -> Option<Self> {
        match std::env::consts::OS {
            "linux" => Some(Self::Systemd),
            "macos" => Some(Self::Launchd),
            "windows" => Some(Self::Windows),
            _ => None,
        }
    }

    /// The usual path of the program, to simulate another host.
    pub(crate) fn usual_program(self) -> PathBuf {
        PathBuf::from(match self {
            Self::Systemd => "/usr/bin/billing-daemon",
            Self::Launchd => "/usr/local/bin/billing-daemon",
            Self::Windows => r"C:\Program Files\billing-daemon\billing-daemon.exe",
        })
    }
}

/// What to do with the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceAction {
    Install,
    Uninstall,
    Start,
    Stop,
    Status,
}

/// What the plan depends on: the host and the caller.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    pub(crate) system: System,
    /// The program that the service runs.
    pub(crate) program: PathBuf,
    /// The user of a user service; `None` for a service of the host.
    pub(crate) user: Option<User>,
    /// Whether the caller may change the host.
    pub(crate) is_privileged: bool,
    /// Whether the service manager runs on this host.
    pub(crate) is_running: bool,
    /// The unit that a package installed.
    pub(crate) packaged: Option<PathBuf>,
    /// The unit under the original daemon's name, if there is one.
    pub(crate) original: Option<OriginalUnit>,
}

/// `containerstacks-billing.service`: the original daemon's unit, or ours under that name.
#[derive(Clone, Debug)]
pub(crate) struct OriginalUnit {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) is_enabled: bool,
}

/// The user of a user service.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) home: PathBuf,
    /// The user's configuration folder, as in `XDG_CONFIG_HOME`.
    pub(crate) config: PathBuf,
    pub(crate) uid: u32,
}

/// What an action writes and runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct InstallPlan {
    pub(crate) steps: Vec<InstallStep>,
    /// Why the action is refused here, each with what to do about it.
    pub(crate) obstacles: Vec<String>,
    /// The next steps of the operator.
    pub(crate) next: Vec<String>,
}

impl InstallPlan {
    fn of<const N: usize>(steps: [InstallStep; N]) -> Self {
        Self { steps: steps.into(), ..Self::default() }
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InstallStep {
    /// Creates a folder; only its owner can read a private one.
    Folder { path: PathBuf, private: bool },
    /// Writes a file that belongs to the installation.
    Write { path: PathBuf, text: String },
    /// Writes a file that belongs to the operator, unless it exists.
    Begin { path: PathBuf, text: &'static str, private: bool },
    /// Removes a file.
    Remove { path: PathBuf },
    /// Runs a program.
    Run { command: Vec<String>, may_fail: bool },
}

impl InstallStep {
    fn folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder { path: path.into(), private: false }
    }

    fn private_folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder { path: path.into(), private: true }
    }

    fn write(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self::Write { path: path.into(), text: text.into() }
    }

    /// The operator's jobs.toml.
    fn jobs(path: impl Into<PathBuf>) -> Self {
        Self::Begin { path: path.into(), text: JOBS, private: false }
    }

    /// The operator's file for the database URL.
    fn secret(path: impl Into<PathBuf>) -> Self {
        Self::Begin { path: path.into(), text: "", private: true }
    }

    fn remove(path: impl Into<PathBuf>) -> Self {
        Self::Remove { path: path.into() }
    }

    /// A program, and its arguments.
    fn run<const N: usize>(command: [&str; N]) -> Self {
        Self::Run { command: command.map(str::to_owned).to_vec(), may_fail: false }
    }

    /// A program that fails if there is nothing to do.
    fn try_run<const N: usize>(command: [&str; N]) -> Self {
        Self::Run { command: command.map(str::to_owned).to_vec(), may_fail: true }
    }
}

impl fmt::Display for InstallStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, private } => {
                let mode = if *private { ", readable only by its owner" } else { "" };
                write!(f, "create the folder {}{mode}", path.display())
            }
            Self::Write { path, .. } => write!(f, "write {}", path.display()),
            Self::Begin { path, text: "", .. } => {
                write!(f, "write {}, empty and readable only by its owner, unless it exists", path.display())
            }
            Self::Begin { path, text, .. } => {
                let lines = text.lines().count();
                write!(f, "write {} ({lines} lines) unless it exists", path.display())
            }
            Self::Remove { path } => write!(f, "remove {}", path.display()),
            Self::Run { command, .. } => {
                let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
                write!(f, "run {}", words.join(" "))
            }
        }
    }
}

/// Quotes a word of a command line where a shell needs it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || r"-_./:=@,\*".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{word}'") }
}

/// Plans `action` on this host.
pub(crate) fn plan(action: ServiceAction, host: &HostFacts) -> InstallPlan {
    let mut plan = match host.system {
        System::Systemd => systemd::plan(action, host),
        System::Launchd => launchd::plan(action, host),
        System::Windows => windows::plan(action, host),
    };
    if host.user.is_none() && !host.is_privileged && action != ServiceAction::Status {
        plan.obstacles.insert(
            0,
            match host.system {
                System::Windows => "this changes the host: run it as Administrator".to_owned(),
                System::Systemd | System::Launchd => {
                    "this changes the host: run it with sudo, or with --user for a service of this user"
                        .to_owned()
                }
            },
        );
    }
    plan
}

/// Where the service's log is.
pub(crate) fn log(host: &HostFacts) -> String {
    match (host.system, &host.user) {
        (System::Systemd, None) => format!("journalctl --unit {SERVICE_NAME}"),
        (System::Systemd, Some(_)) => format!("journalctl --user --unit {SERVICE_NAME}"),
        (System::Launchd, user) => launchd::log(user.as_ref()).display().to_string(),
        (System::Windows, _) => windows::LOG.to_owned(),
    }
}

/// The next steps between the installation and the start.
fn to_do(secret: &Path, jobs: &Path, user: bool) -> Vec<String> {
    let flag = if user { " --user" } else { "" };
    vec![
        format!("write the database URL to {}: postgres://... or sqlite://...?mode=rwc", secret.display()),
        format!("check {}, and run `billing-daemon migrate up`", jobs.display()),
        format!("run `billing-daemon service start{flag}`"),
    ]
}

#[cfg(test)]
mod tests;
