//! macOS: a property list of launchd, for the host or for one user.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{HostFacts, InstallPlan, InstallStep, ServiceAction, User, to_do};
use crate::host::SERVICE_NAME;

/// The user of the host's service: macOS has it for services without privileges.
const SERVICE_USER: &str = "daemon";

/// The paths of an installation.
struct Paths {
    /// launchctl's name for the manager of these services.
    domain: String,
    list: PathBuf,
    configuration: PathBuf,
    state: PathBuf,
    log: PathBuf,
    is_user: bool,
}

impl Paths {
    fn of(user: Option<&User>) -> Self {
        match user {
            Some(User { home, uid, .. }) => Self {
                domain: format!("gui/{uid}"),
                list: home.join("Library/LaunchAgents").join(format!("{SERVICE_NAME}.plist")),
                configuration: home.join("Library/Application Support").join(SERVICE_NAME),
                state: home.join("Library/Application Support").join(SERVICE_NAME),
                log: home.join("Library/Logs").join(format!("{SERVICE_NAME}.log")),
                is_user: true,
            },
            None => Self {
                domain: "system".to_owned(),
                list: PathBuf::from("/Library/LaunchDaemons").join(format!("{SERVICE_NAME}.plist")),
                configuration: PathBuf::from("/usr/local/etc").join(SERVICE_NAME),
                state: PathBuf::from("/usr/local/var/lib").join(SERVICE_NAME),
                log: PathBuf::from("/usr/local/var/lib")
                    .join(SERVICE_NAME)
                    .join(format!("{SERVICE_NAME}.log")),
                is_user: false,
            },
        }
    }
}

pub(super) fn plan(action: ServiceAction, host: &HostFacts) -> InstallPlan {
    let paths = Paths::of(host.user.as_ref());
    let Paths { domain, list, .. } = &paths;
    let service = format!("{domain}/{SERVICE_NAME}");
    let list_name = list.display().to_string();
    match action {
        ServiceAction::Install => installed(&host.program, &paths, &service),
        ServiceAction::Uninstall => InstallPlan::of([
            InstallStep::try_run(["launchctl", "bootout", &service]),
            InstallStep::remove(list),
        ]),
        ServiceAction::Start => InstallPlan::of([
            InstallStep::run(["launchctl", "enable", &service]),
            InstallStep::run(["launchctl", "bootstrap", domain, &list_name]),
        ]),
        ServiceAction::Stop => InstallPlan::of([InstallStep::run(["launchctl", "bootout", &service])]),
        ServiceAction::Status => InstallPlan::of([InstallStep::run(["launchctl", "print", &service])]),
    }
}

pub(super) fn log(user: Option<&User>) -> PathBuf {
    Paths::of(user).log
}

fn installed(program: &Path, paths: &Paths, service: &str) -> InstallPlan {
    let jobs = paths.configuration.join("jobs.toml");
    let secret = paths.configuration.join("database-url");
    // A user has one folder for configuration and state.
    let mut steps = if paths.is_user { Vec::new() } else { vec![InstallStep::folder(&paths.configuration)] };
    steps.extend([
        InstallStep::private_folder(&paths.state),
        InstallStep::jobs(&jobs),
        InstallStep::secret(&secret),
        InstallStep::write(&paths.list, list(program, paths, &jobs, &secret)),
    ]);
    if !paths.is_user {
        let (state, secret) = (paths.state.display().to_string(), secret.display().to_string());
        steps.push(InstallStep::run(["chown", SERVICE_USER, &state, &secret]));
    }
    // launchd starts every list in the folder at the next boot, unless it is disabled; `start` enables it.
    steps.push(InstallStep::run(["launchctl", "disable", service]));
    InstallPlan { steps, obstacles: Vec::new(), next: to_do(&secret, &jobs, paths.is_user) }
}

fn list(program: &Path, paths: &Paths, jobs: &Path, secret: &Path) -> String {
    let text = |path: &Path| format!("<string>{}</string>", escaped(&path.display().to_string()));
    let mut list = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n\
         <dict>\n",
    );
    let mut key = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(list, "    <key>{name}</key>\n    {value}");
    };
    key("Label", &format!("<string>{SERVICE_NAME}</string>"));
    let arguments = ["<string>run</string>".to_owned(), "<string>--config</string>".to_owned(), text(jobs)];
    key("ProgramArguments", &format!("<array>{}{}</array>", text(program), arguments.concat()));
    let variables = [("DATABASE_URL_FILE", secret), ("STATE_DIRECTORY", &paths.state)];
    let variables = variables.map(|(name, path)| format!("<key>{name}</key>{}", text(path))).concat();
    key("EnvironmentVariables", &format!("<dict>{variables}</dict>"));
    if !paths.is_user {
        key("UserName", &format!("<string>{SERVICE_USER}</string>"));
    }
    key("WorkingDirectory", &text(&paths.state));
    key("RunAtLoad", "<true/>");
    // Restarts the daemon unless it was stopped.
    key("KeepAlive", "<dict><key>SuccessfulExit</key><false/></dict>");
    key("ThrottleInterval", "<integer>10</integer>");
    // Seconds: `drain-timeout` of jobs.toml, and the time for the end after it.
    key("ExitTimeOut", "<integer>120</integer>");
    // 077 in octal: only the daemon can read what it writes.
    key("Umask", "<integer>63</integer>");
    key("StandardOutPath", &text(&paths.log));
    key("StandardErrorPath", &text(&paths.log));
    list.push_str("</dict>\n</plist>\n");
    list
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
