//! Linux: the units of this repository.

use std::path::{Path, PathBuf};

use super::{HostFacts, InstallPlan, InstallStep, OriginalUnit, ServiceAction, System, User, to_do};

const UNIT: &str = include_str!("../../shipped/billing-daemon.service");
const TEMPLATE: &str = include_str!("../../shipped/billing-daemon@.service");
const USER_UNIT: &str = include_str!("../../shipped/user.service");
const SYSUSERS: &str = include_str!("../../shipped/sysusers.conf");
const TMPFILES: &str = include_str!("../../shipped/tmpfiles.conf");

const SERVICE: &str = "billing-daemon.service";
const INSTANCES: &str = "billing-daemon@*.service";
/// Disabling this name disables every instance.
const TEMPLATE_SERVICE: &str = "billing-daemon@.service";
const UNIT_AT: &str = "/etc/systemd/system/billing-daemon.service";
const TEMPLATE_AT: &str = "/etc/systemd/system/billing-daemon@.service";
const SYSUSERS_AT: &str = "/etc/sysusers.d/billing-daemon.conf";
const TMPFILES_AT: &str = "/etc/tmpfiles.d/billing-daemon.conf";
const JOBS_AT: &str = "/etc/billing-daemon/jobs.toml";
const SECRET_AT: &str = "/etc/billing-daemon/database-url";
/// The folders that `ProtectHome` and `PrivateTmp` hide from the service.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

pub(super) fn plan(action: ServiceAction, host: &HostFacts) -> InstallPlan {
    let mut plan = match (&host.user, &host.packaged) {
        (Some(user), _) => of_user(action, host, user),
        (None, Some(unit)) => of_package(action, unit),
        (None, None) => of_host(action, host),
    };
    if host.user.is_none()
        && let Some(unit) = &host.original
    {
        plan.obstacles.extend(conflict(action, unit, &host.program));
    }
    if !host.is_running {
        plan.obstacles.push(
            "systemd does not run here: run `billing-daemon run` under the supervisor of this host"
                .to_owned(),
        );
    }
    plan
}

/// Why the service must not be enabled or started next to `unit`.
fn conflict(action: ServiceAction, unit: &OriginalUnit, program: &Path) -> Option<String> {
    let path = unit.path.display();
    match action {
        ServiceAction::Install | ServiceAction::Start if !is_ours(&unit.text, program) => Some(format!(
            "{path} runs another biller, and two must not be enabled together: run `systemctl disable --now \
             containerstacks-billing`, `mv {path} {path}.old` and `systemctl daemon-reload`, then this again"
        )),
        ServiceAction::Install if unit.is_enabled => Some(
            "containerstacks-billing is enabled and runs this daemon already: keep it, or run `systemctl disable --now \
             containerstacks-billing` and this again"
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

fn of_host(action: ServiceAction, host: &HostFacts) -> InstallPlan {
    match action {
        ServiceAction::Install => installed(host),
        ServiceAction::Uninstall => {
            let mut steps = disable_all().to_vec();
            steps.extend([UNIT_AT, TEMPLATE_AT, SYSUSERS_AT, TMPFILES_AT].map(InstallStep::remove));
            steps.push(InstallStep::run(["systemctl", "daemon-reload"]));
            InstallPlan { steps, ..InstallPlan::default() }
        }
        _ => InstallPlan::of([control(action)]),
    }
}

fn installed(host: &HostFacts) -> InstallPlan {
    let mut plan = InstallPlan {
        steps: vec![
            InstallStep::write(UNIT_AT, with_program(UNIT, &host.program)),
            InstallStep::write(TEMPLATE_AT, with_program(TEMPLATE, &host.program)),
            InstallStep::write(SYSUSERS_AT, SYSUSERS),
            InstallStep::write(TMPFILES_AT, TMPFILES),
            InstallStep::run(["systemd-sysusers", SYSUSERS_AT]),
            InstallStep::run(["systemd-tmpfiles", "--create", TMPFILES_AT]),
            InstallStep::jobs(JOBS_AT),
            InstallStep::run(["systemctl", "daemon-reload"]),
            InstallStep::run(["systemctl", "enable", SERVICE]),
        ],
        obstacles: Vec::new(),
        next: to_do(Path::new(SECRET_AT), Path::new(JOBS_AT), false),
    };
    if HIDDEN.iter().any(|folder| host.program.starts_with(folder)) {
        let program = host.program.display();
        plan.obstacles.push(format!(
            "the service cannot access {program}: run `install -m 755 {program} /usr/local/bin/billing-daemon`, then that program"
        ));
    }
    plan
}

/// Stops and disables every daemon of this host.
fn disable_all() -> [InstallStep; 3] {
    [
        InstallStep::try_run(["systemctl", "disable", "--now", SERVICE]),
        InstallStep::try_run(["systemctl", "stop", INSTANCES]),
        InstallStep::try_run(["systemctl", "disable", TEMPLATE_SERVICE]),
    ]
}

/// The package owns the units, so they are only enabled and disabled.
fn of_package(action: ServiceAction, unit: &Path) -> InstallPlan {
    let unit = unit.display();
    match action {
        ServiceAction::Install => InstallPlan {
            steps: vec![InstallStep::run(["systemctl", "enable", SERVICE])],
            obstacles: Vec::new(),
            next: to_do(Path::new(SECRET_AT), Path::new(JOBS_AT), false),
        },
        ServiceAction::Uninstall => InstallPlan {
            steps: disable_all().to_vec(),
            next: vec![format!("{unit} belongs to the package: `apt-get remove billing-daemon` removes it")],
            ..InstallPlan::default()
        },
        _ => InstallPlan::of([control(action)]),
    }
}

fn of_user(action: ServiceAction, host: &HostFacts, user: &User) -> InstallPlan {
    let unit: PathBuf = user.config.join("systemd/user").join(SERVICE);
    let folder = user.config.join(crate::host::SERVICE_NAME);
    let (jobs, secret) = (folder.join("jobs.toml"), folder.join("database-url"));
    match action {
        ServiceAction::Install => {
            let mut next = to_do(&secret, &jobs, true);
            next.push("run `loginctl enable-linger`, so that the service runs without a login".to_owned());
            InstallPlan {
                steps: vec![
                    InstallStep::write(unit, with_program(USER_UNIT, &host.program)),
                    InstallStep::private_folder(folder),
                    InstallStep::secret(secret),
                    InstallStep::jobs(jobs),
                    InstallStep::run(["systemctl", "--user", "daemon-reload"]),
                    InstallStep::run(["systemctl", "--user", "enable", SERVICE]),
                ],
                obstacles: Vec::new(),
                next,
            }
        }
        ServiceAction::Uninstall => InstallPlan::of([
            InstallStep::try_run(["systemctl", "--user", "disable", "--now", SERVICE]),
            InstallStep::remove(unit),
            InstallStep::run(["systemctl", "--user", "daemon-reload"]),
        ]),
        ServiceAction::Start => {
            InstallPlan::of([InstallStep::run(["systemctl", "--user", "start", SERVICE])])
        }
        ServiceAction::Stop => InstallPlan::of([InstallStep::run(["systemctl", "--user", "stop", SERVICE])]),
        ServiceAction::Status => {
            InstallPlan::of([InstallStep::run(["systemctl", "--user", "--no-pager", "status", SERVICE])])
        }
    }
}

fn control(action: ServiceAction) -> InstallStep {
    match action {
        ServiceAction::Start => InstallStep::run(["systemctl", "start", SERVICE]),
        ServiceAction::Stop => InstallStep::run(["systemctl", "stop", SERVICE]),
        _ => InstallStep::run(["systemctl", "--no-pager", "status", SERVICE]),
    }
}

/// The unit for a program at another path than the package's.
fn with_program(unit: &str, program: &Path) -> String {
    let usual = format!("ExecStart={}", System::Systemd.usual_program().display());
    unit.replace(&usual, &format!("ExecStart={}", word(program)))
}

/// Quotes a path for a command in a unit, where `%` begins a specifier and a blank ends a word.
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
    fn unusual_program_path_is_one_word() {
        for (path, expected) in [
            ("/usr/bin/billing-daemon", "/usr/bin/billing-daemon"),
            ("/opt/50%/billing", "/opt/50%%/billing"),
            ("/opt/my panel/b\"d", r#""/opt/my panel/b\"d""#),
        ] {
            assert_eq!(word(Path::new(path)), expected);
        }
    }
}
