//! The daemon as a service of the system: what installing, starting and removing it writes and runs, decided before anything is
//! done. `--dry-run` shows the same plan that is carried out otherwise.

mod launchd;
mod systemd;
mod windows;

use crate::host::SERVICE_NAME;
use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

/// The configuration that a new installation begins with.
const JOBS: &str = include_str!("../../shipped/jobs.toml");
// The files in `shipped/` are symbolic links. A checkout without them contains the path of the target instead of its text.
const _: () = assert!(JOBS.len() > 200, "set `core.symlinks` of git to true and check out again");

/// Who starts and stops services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    Systemd,
    Launchd,
    Windows,
}

impl System {
    /// That of the system that the program was made for.
    pub(crate) fn current() -> Option<Self> {
        match std::env::consts::OS {
            "linux" => Some(Self::Systemd),
            "macos" => Some(Self::Launchd),
            "windows" => Some(Self::Windows),
            _ => None,
        }
    }

    /// Where the program would be on a machine that is not this one.
    pub(crate) fn usual_program(self) -> PathBuf {
        PathBuf::from(match self {
            Self::Systemd => "/usr/bin/billing-daemon",
            Self::Launchd => "/usr/local/bin/billing-daemon",
            Self::Windows => r"C:\Program Files\billing-daemon\billing-daemon.exe",
        })
    }
}

/// What is wanted of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Install,
    Uninstall,
    Start,
    Stop,
    Status,
}

/// What is known of the machine, and of who asks.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) system: System,
    /// The program that the service shall run.
    pub(crate) program: PathBuf,
    /// For this user alone, and not for the machine.
    pub(crate) user: Option<User>,
    /// Whether who asks may change the machine.
    pub(crate) is_privileged: bool,
    /// Whether the service manager runs here at all.
    pub(crate) is_running: bool,
    /// The unit that a package brought along.
    pub(crate) packaged: Option<PathBuf>,
    /// The unit under the name of the original daemon, if there is one.
    pub(crate) original: Option<OriginalUnit>,
}

/// `containerstacks-billing.service`: the original's, or ours under that name.
#[derive(Clone, Debug)]
pub(crate) struct OriginalUnit {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) is_enabled: bool,
}

/// One user's place on the machine.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) home: PathBuf,
    /// Where this user's configuration is, as `XDG_CONFIG_HOME` has it.
    pub(crate) config: PathBuf,
    pub(crate) uid: u32,
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Why it cannot be done here, each with what to do about it.
    pub(crate) obstacles: Vec<String>,
    /// What is left to the person.
    pub(crate) next: Vec<String>,
}

impl Plan {
    fn of<const N: usize>(steps: [Step; N]) -> Self {
        Self { steps: steps.into(), ..Self::default() }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A folder that must be there; a private one is its owner's alone.
    Folder { path: PathBuf, private: bool },
    /// A file of ours.
    Write { path: PathBuf, text: String },
    /// A file that is the operator's from then on: what is there already stays.
    Begin { path: PathBuf, text: &'static str, private: bool },
    /// A file that must not be there.
    Remove { path: PathBuf },
    /// A program to run.
    Run { command: Vec<String>, may_fail: bool },
}

impl Step {
    fn folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder { path: path.into(), private: false }
    }

    fn private_folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder { path: path.into(), private: true }
    }

    fn write(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self::Write { path: path.into(), text: text.into() }
    }

    /// The operator's jobs.
    fn jobs(path: impl Into<PathBuf>) -> Self {
        Self::Begin { path: path.into(), text: JOBS, private: false }
    }

    /// The operator's file for the database's address.
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

    /// The same, where a failure only says that there was nothing to do.
    fn try_run<const N: usize>(command: [&str; N]) -> Self {
        Self::Run { command: command.map(str::to_owned).to_vec(), may_fail: true }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, private } => {
                let whose = if *private { ", for its owner alone" } else { "" };
                write!(f, "make the folder {}{whose}", path.display())
            }
            Self::Write { path, .. } => write!(f, "write {}", path.display()),
            Self::Begin { path, text: "", .. } => {
                write!(f, "write {}, empty and for its owner alone, unless it is there", path.display())
            }
            Self::Begin { path, text, .. } => {
                let lines = text.lines().count();
                write!(f, "write {}, the {lines} lines that ship, unless it is there", path.display())
            }
            Self::Remove { path } => write!(f, "remove {}", path.display()),
            Self::Run { command, .. } => {
                let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
                write!(f, "run {}", words.join(" "))
            }
        }
    }
}

/// A word of a command line as a person would type it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || r"-_./:=@,\*".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{word}'") }
}

/// What `action` takes on this machine.
pub(crate) fn plan(action: Action, machine: &Machine) -> Plan {
    let mut plan = match machine.system {
        System::Systemd => systemd::plan(action, machine),
        System::Launchd => launchd::plan(action, machine),
        System::Windows => windows::plan(action, machine),
    };
    if machine.user.is_none() && !machine.is_privileged && action != Action::Status {
        plan.obstacles.insert(
            0,
            match machine.system {
                System::Windows => "this changes the machine: run it again as Administrator".to_owned(),
                System::Systemd | System::Launchd => {
                    "this changes the machine: run it again with sudo, or with --user \
                                                      for a service of yours alone"
                        .to_owned()
                }
            },
        );
    }
    plan
}

/// Where one reads what the service did.
pub(crate) fn log(machine: &Machine) -> String {
    match (machine.system, &machine.user) {
        (System::Systemd, None) => format!("journalctl --unit {SERVICE_NAME}"),
        (System::Systemd, Some(_)) => format!("journalctl --user --unit {SERVICE_NAME}"),
        (System::Launchd, user) => launchd::log(user.as_ref()).display().to_string(),
        (System::Windows, _) => windows::LOG.to_owned(),
    }
}

/// What is left to do between installing and starting.
fn to_do(secret: &Path, jobs: &Path, user: bool) -> Vec<String> {
    let flag = if user { " --user" } else { "" };
    vec![
        format!(
            "write the database's address into {}: postgres://... or sqlite://...?mode=rwc",
            secret.display()
        ),
        format!("see what {} says, and `billing-daemon migrate up`", jobs.display()),
        format!("`billing-daemon service start{flag}`"),
    ]
}

#[cfg(test)]
mod tests;
