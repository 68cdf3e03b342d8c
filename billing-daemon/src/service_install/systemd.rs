//! Linux: the units that ship.

use std::path::{Path, PathBuf};

use super::{Action, Machine, OriginalUnit, Plan, Step, System, User, to_do};

const UNIT: &str = include_str!("../../shipped/billing-daemon.service");
const TEMPLATE: &str = include_str!("../../shipped/billing-daemon@.service");
const USER_UNIT: &str = include_str!("../../shipped/user.service");
const SYSUSERS: &str = include_str!("../../shipped/sysusers.conf");
const TMPFILES: &str = include_str!("../../shipped/tmpfiles.conf");

const SERVICE: &str = "billing-daemon.service";
const INSTANCES: &str = "billing-daemon@*.service";
/// Disabled by this name, every instance is.
const TEMPLATE_SERVICE: &str = "billing-daemon@.service";
const UNIT_AT: &str = "/etc/systemd/system/billing-daemon.service";
const TEMPLATE_AT: &str = "/etc/systemd/system/billing-daemon@.service";
const SYSUSERS_AT: &str = "/etc/sysusers.d/billing-daemon.conf";
const TMPFILES_AT: &str = "/etc/tmpfiles.d/billing-daemon.conf";
const JOBS_AT: &str = "/etc/billing-daemon/jobs.toml";
const SECRET_AT: &str = "/etc/billing-daemon/database-url";
/// What the unit's service cannot see: `ProtectHome` and `PrivateTmp`.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

pub(super) fn plan(action: Action, machine: &Machine) -> Plan {
    let mut plan = match (&machine.user, &machine.packaged) {
        (Some(user), _) => of_user(action, machine, user),
        (None, Some(unit)) => of_package(action, unit),
        (None, None) => of_machine(action, machine),
    };
    if machine.user.is_none()
        && let Some(unit) = &machine.original
    {
        plan.obstacles.extend(conflict(action, unit, &machine.program));
    }
    if !machine.is_running {
        plan.obstacles.push(
            "systemd does not run here: let the supervisor that does run `billing-daemon run`".to_owned(),
        );
    }
    plan
}

/// Why the service must not be enabled or started next to `unit`.
fn conflict(action: Action, unit: &OriginalUnit, program: &Path) -> Option<String> {
    let path = unit.path.display();
    match action {
        Action::Install | Action::Start if !is_ours(&unit.text, program) => Some(format!(
            "{path} runs another biller, and two must not be enabled together: `systemctl disable --now \
             containerstacks-billing`, then `mv {path} {path}.old` and `systemctl daemon-reload`, and run this again"
        )),
        Action::Install if unit.is_enabled => Some(
            "containerstacks-billing is enabled and runs this daemon already: keep it, or `systemctl disable --now \
             containerstacks-billing` and run this again"
                .to_owned(),
        ),
        _ => None,
    }
}

/// Whether the unit runs this daemon.
fn is_ours(unit: &str, program: &Path) -> bool {
    let command = unit.lines().filter_map(|line| line.trim().strip_prefix("ExecStart=")).next_back();
    let command = command.unwrap_or_default().trim_start_matches(['-', '@', ':', '+', '!', ' ']);
    let word = match command.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => command.split_whitespace().next(),
    };
    word.map(Path::new).is_some_and(|word| word == program || word.ends_with(crate::host::SERVICE_NAME))
}

fn of_machine(action: Action, machine: &Machine) -> Plan {
    match action {
        Action::Install => installed(machine),
        Action::Uninstall => {
            let mut steps = switched_off().to_vec();
            steps.extend([UNIT_AT, TEMPLATE_AT, SYSUSERS_AT, TMPFILES_AT].map(Step::remove));
            steps.push(Step::run(["systemctl", "daemon-reload"]));
            Plan { steps, ..Plan::default() }
        }
        _ => Plan::of([control(action)]),
    }
}

fn installed(machine: &Machine) -> Plan {
    let mut plan = Plan {
        steps: vec![
            Step::write(UNIT_AT, running(UNIT, &machine.program)),
            Step::write(TEMPLATE_AT, running(TEMPLATE, &machine.program)),
            Step::write(SYSUSERS_AT, SYSUSERS),
            Step::write(TMPFILES_AT, TMPFILES),
            Step::run(["systemd-sysusers", SYSUSERS_AT]),
            Step::run(["systemd-tmpfiles", "--create", TMPFILES_AT]),
            Step::jobs(JOBS_AT),
            Step::run(["systemctl", "daemon-reload"]),
            Step::run(["systemctl", "enable", SERVICE]),
        ],
        obstacles: Vec::new(),
        next: to_do(Path::new(SECRET_AT), Path::new(JOBS_AT), false),
    };
    if HIDDEN.iter().any(|folder| machine.program.starts_with(folder)) {
        let program = machine.program.display();
        plan.obstacles.push(format!(
            "the service would not see {program}: `install -m 755 {program} /usr/local/bin/billing-daemon`, and run that"
        ));
    }
    plan
}

/// None of the daemons of this machine runs, or will.
fn switched_off() -> [Step; 3] {
    [
        Step::try_run(["systemctl", "disable", "--now", SERVICE]),
        Step::try_run(["systemctl", "stop", INSTANCES]),
        Step::try_run(["systemctl", "disable", TEMPLATE_SERVICE]),
    ]
}

/// The package owns the units: they are only switched on.
fn of_package(action: Action, unit: &Path) -> Plan {
    let unit = unit.display();
    match action {
        Action::Install => Plan {
            steps: vec![Step::run(["systemctl", "enable", SERVICE])],
            obstacles: Vec::new(),
            next: to_do(Path::new(SECRET_AT), Path::new(JOBS_AT), false),
        },
        Action::Uninstall => Plan {
            steps: switched_off().to_vec(),
            next: vec![format!("{unit} is the package's: `apt-get remove billing-daemon` removes it")],
            ..Plan::default()
        },
        _ => Plan::of([control(action)]),
    }
}

fn of_user(action: Action, machine: &Machine, user: &User) -> Plan {
    let unit: PathBuf = user.config.join("systemd/user").join(SERVICE);
    let folder = user.config.join(crate::host::SERVICE_NAME);
    let (jobs, secret) = (folder.join("jobs.toml"), folder.join("database-url"));
    match action {
        Action::Install => {
            let mut next = to_do(&secret, &jobs, true);
            next.push("`loginctl enable-linger`, so that it runs when you are not logged in".to_owned());
            Plan {
                steps: vec![
                    Step::write(unit, running(USER_UNIT, &machine.program)),
                    Step::private_folder(folder),
                    Step::secret(secret),
                    Step::jobs(jobs),
                    Step::run(["systemctl", "--user", "daemon-reload"]),
                    Step::run(["systemctl", "--user", "enable", SERVICE]),
                ],
                obstacles: Vec::new(),
                next,
            }
        }
        Action::Uninstall => Plan::of([
            Step::try_run(["systemctl", "--user", "disable", "--now", SERVICE]),
            Step::remove(unit),
            Step::run(["systemctl", "--user", "daemon-reload"]),
        ]),
        Action::Start => Plan::of([Step::run(["systemctl", "--user", "start", SERVICE])]),
        Action::Stop => Plan::of([Step::run(["systemctl", "--user", "stop", SERVICE])]),
        Action::Status => Plan::of([Step::run(["systemctl", "--user", "--no-pager", "status", SERVICE])]),
    }
}

fn control(action: Action) -> Step {
    match action {
        Action::Start => Step::run(["systemctl", "start", SERVICE]),
        Action::Stop => Step::run(["systemctl", "stop", SERVICE]),
        _ => Step::run(["systemctl", "--no-pager", "status", SERVICE]),
    }
}

/// The unit, for a program that is somewhere else than where a package has it.
fn running(unit: &str, program: &Path) -> String {
    let usual = format!("ExecStart={}", System::Systemd.usual_program().display());
    unit.replace(&usual, &format!("ExecStart={}", word(program)))
}

/// A path as a word of a command in a unit: `%` begins a specifier there, and blanks end the word.
fn word(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    let is_plain = |c: char| c.is_alphanumeric() || "-_./+%".contains(c);
    if text.chars().all(is_plain) {
        text
    } else {
        format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('$', "$$"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_unusual_name_is_still_one_word() {
        for (path, expected) in [
            ("/usr/bin/billing-daemon", "/usr/bin/billing-daemon"),
            ("/opt/50%/billing", "/opt/50%%/billing"),
            ("/opt/my panel/b\"d", r#""/opt/my panel/b\"d""#),
        ] {
            assert_eq!(word(Path::new(path)), expected);
        }
    }
}
