//! Windows: a service with an account of its own, made by the tools that every Windows has.

use super::{Action, Machine, Plan, Step, to_do};
use crate::host::SERVICE_NAME;

/// Windows makes this account together with the service; it has no password.
const ACCOUNT: &str = r"NT SERVICE\billing-daemon";
/// By number, for their names differ by language: administrators, and the system itself.
const ADMINISTRATORS: &str = "*S-1-5-32-544:F";
const SYSTEM: &str = "*S-1-5-18:F";
const FOLDER: &str = r"C:\ProgramData\billing-daemon";
const JOBS: &str = r"C:\ProgramData\billing-daemon\jobs.toml";
const SECRET: &str = r"C:\ProgramData\billing-daemon\database-url";
const STATE: &str = r"C:\ProgramData\billing-daemon\state";
const LOGS: &str = r"C:\ProgramData\billing-daemon\logs";
pub(super) const LOG: &str = r"C:\ProgramData\billing-daemon\logs\billing-daemon.log";
const KEY: &str = r"HKLM\SYSTEM\CurrentControlSet\Services\billing-daemon";

pub(super) fn plan(action: Action, machine: &Machine) -> Plan {
    let mut plan = match action {
        Action::Install => installed(machine),
        Action::Uninstall => Plan::of([
            Step::try_run(["sc.exe", "stop", SERVICE_NAME]),
            Step::run(["sc.exe", "delete", SERVICE_NAME]),
        ]),
        Action::Start => Plan::of([Step::run(["sc.exe", "start", SERVICE_NAME])]),
        Action::Stop => Plan::of([Step::run(["sc.exe", "stop", SERVICE_NAME])]),
        Action::Status => Plan::of([Step::run(["sc.exe", "query", SERVICE_NAME])]),
    };
    if machine.user.is_some() {
        plan.obstacles.push(
            "Windows has no services of a single user: run it again without --user, as Administrator"
                .to_owned(),
        );
    }
    plan
}

fn installed(machine: &Machine) -> Plan {
    // A service has no standard streams.
    let command = format!(
        "\"{}\" run --as-service --config \"{JOBS}\" --log-file \"{LOG}\"",
        machine.program.display()
    );
    let environment = format!(r"DATABASE_URL_FILE={SECRET}\0STATE_DIRECTORY={STATE}");
    let may_read = format!("{ACCOUNT}:R");
    let may_write = format!("{ACCOUNT}:(OI)(CI)M");
    Plan {
        steps: vec![
            Step::folder(FOLDER),
            Step::folder(STATE),
            Step::folder(LOGS),
            Step::jobs(JOBS),
            Step::secret(SECRET),
            Step::run([
                "sc.exe",
                "create",
                SERVICE_NAME,
                "type=",
                "own",
                "start=",
                "delayed-auto",
                "obj=",
                ACCOUNT,
                "DisplayName=",
                SERVICE_NAME,
                "binPath=",
                &command,
            ]),
            Step::run(["sc.exe", "description", SERVICE_NAME, "Hourly billing of virtual machines"]),
            // Milliseconds until each of the first three restarts; a run of five minutes forgets them.
            Step::run([
                "sc.exe",
                "failure",
                SERVICE_NAME,
                "reset=",
                "300",
                "actions=",
                "restart/10000/restart/10000/restart/60000",
            ]),
            // A daemon that ends with an exit code has failed as well.
            Step::run(["sc.exe", "failureflag", SERVICE_NAME, "1"]),
            Step::run([
                "reg.exe",
                "add",
                KEY,
                "/v",
                "Environment",
                "/t",
                "REG_MULTI_SZ",
                "/d",
                &environment,
                "/f",
            ]),
            Step::run(["icacls.exe", STATE, "/grant", &may_write]),
            Step::run(["icacls.exe", LOGS, "/grant", &may_write]),
            Step::run([
                "icacls.exe",
                SECRET,
                "/inheritance:r",
                "/grant:r",
                ADMINISTRATORS,
                "/grant:r",
                SYSTEM,
                "/grant:r",
                &may_read,
            ]),
        ],
        obstacles: Vec::new(),
        next: to_do(SECRET.as_ref(), JOBS.as_ref(), false),
    }
}
