//! macOS: a property list, of the machine or of one user.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Action, Machine, Plan, Step, User, to_do};
use crate::host::SERVICE_NAME;

/// Who the machine's service runs as: macOS has this user for services without rights.
const SERVICE_USER: &str = "daemon";

/// Where everything is, and who it belongs to.
struct Places {
    /// What launchctl calls the manager of these services.
    domain: String,
    list: PathBuf,
    configuration: PathBuf,
    state: PathBuf,
    log: PathBuf,
    is_user: bool,
}

impl Places {
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

pub(super) fn plan(action: Action, machine: &Machine) -> Plan {
    let places = Places::of(machine.user.as_ref());
    let Places { domain, list, .. } = &places;
    let service = format!("{domain}/{SERVICE_NAME}");
    let list_name = list.display().to_string();
    match action {
        Action::Install => installed(&machine.program, &places, &service),
        Action::Uninstall => {
            Plan::of([Step::try_run(["launchctl", "bootout", &service]), Step::remove(list)])
        }
        Action::Start => Plan::of([
            Step::run(["launchctl", "enable", &service]),
            Step::run(["launchctl", "bootstrap", domain, &list_name]),
        ]),
        Action::Stop => Plan::of([Step::run(["launchctl", "bootout", &service])]),
        Action::Status => Plan::of([Step::run(["launchctl", "print", &service])]),
    }
}

pub(super) fn log(user: Option<&User>) -> PathBuf {
    Places::of(user).log
}

fn installed(program: &Path, places: &Places, service: &str) -> Plan {
    let jobs = places.configuration.join("jobs.toml");
    let secret = places.configuration.join("database-url");
    // A user has one folder for both.
    let mut steps = if places.is_user { Vec::new() } else { vec![Step::folder(&places.configuration)] };
    steps.extend([
        Step::private_folder(&places.state),
        Step::jobs(&jobs),
        Step::secret(&secret),
        Step::write(&places.list, list(program, places, &jobs, &secret)),
    ]);
    if !places.is_user {
        let (state, secret) = (places.state.display().to_string(), secret.display().to_string());
        steps.push(Step::run(["chown", SERVICE_USER, &state, &secret]));
    }
    // Whatever is in the folder is started at the next boot, unless it is disabled; `start` enables it.
    steps.push(Step::run(["launchctl", "disable", service]));
    Plan { steps, obstacles: Vec::new(), next: to_do(&secret, &jobs, places.is_user) }
}

fn list(program: &Path, places: &Places, jobs: &Path, secret: &Path) -> String {
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
    let variables = [("DATABASE_URL_FILE", secret), ("STATE_DIRECTORY", &places.state)];
    let variables = variables.map(|(name, path)| format!("<key>{name}</key>{}", text(path))).concat();
    key("EnvironmentVariables", &format!("<dict>{variables}</dict>"));
    if !places.is_user {
        key("UserName", &format!("<string>{SERVICE_USER}</string>"));
    }
    key("WorkingDirectory", &text(&places.state));
    key("RunAtLoad", "<true/>");
    // Started again unless it ended because somebody stopped it.
    key("KeepAlive", "<dict><key>SuccessfulExit</key><false/></dict>");
    key("ThrottleInterval", "<integer>10</integer>");
    // Seconds: `drain-timeout` in jobs.toml, and what the end takes after it.
    key("ExitTimeOut", "<integer>120</integer>");
    // 077 in octal: what the daemon writes is its own alone.
    key("Umask", "<integer>63</integer>");
    key("StandardOutPath", &text(&places.log));
    key("StandardErrorPath", &text(&places.log));
    list.push_str("</dict>\n</plist>\n");
    list
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
