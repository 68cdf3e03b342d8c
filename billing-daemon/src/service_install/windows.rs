//! Windows: a service with a separate account, created by the tools that every Windows has.

use super::{HostFacts, InstallPlan, InstallStep, ServiceAction, to_do};
use crate::host::SERVICE_NAME;

/// Windows creates this account together with the service; it has no password.
const ACCOUNT: &str = r"NT SERVICE\billing-daemon";
/// Administrators and the system, by number because the names depend on the language.
const ADMINISTRATORS: &str = "*S-1-5-32-544:F";
const SYSTEM: &str = "*S-1-5-18:F";
const FOLDER: &str = r"C:\ProgramData\billing-daemon";
const JOBS: &str = r"C:\ProgramData\billing-daemon\jobs.toml";
const SECRET: &str = r"C:\ProgramData\billing-daemon\database-url";
const STATE: &str = r"C:\ProgramData\billing-daemon\state";
const LOGS: &str = r"C:\ProgramData\billing-daemon\logs";
pub(super) const LOG: &str = r"C:\ProgramData\billing-daemon\logs\billing-daemon.log";
const KEY: &str = r"HKLM\SYSTEM\CurrentControlSet\Services\billing-daemon";

pub(super) fn plan(action: ServiceAction, host: &HostFacts) -> InstallPlan {
    let mut plan = match action {
        ServiceAction::Install => installed(host),
        ServiceAction::Uninstall => InstallPlan::of([
            InstallStep::try_run(["sc.exe", "stop", SERVICE_NAME]),
            InstallStep::run(["sc.exe", "delete", SERVICE_NAME]),
        ]),
        ServiceAction::Start => InstallPlan::of([InstallStep::run(["sc.exe", "start", SERVICE_NAME])]),
        ServiceAction::Stop => InstallPlan::of([InstallStep::run(["sc.exe", "stop", SERVICE_NAME])]),
        ServiceAction::Status => InstallPlan::of([InstallStep::run(["sc.exe", "query", SERVICE_NAME])]),
    };
    if host.user.is_some() {
        plan.obstacles
            .push("Windows has no user services: run it without --user, as Administrator".to_owned());
    }
    plan
}

fn installed(host: &HostFacts) -> InstallPlan {
    // A service has no standard streams.
    let command =
        format!("\"{}\" run --as-service --config \"{JOBS}\" --log-file \"{LOG}\"", host.program.display());
    let environment = format!(r"DATABASE_URL_FILE={SECRET}\0STATE_DIRECTORY={STATE}");
    let may_read = format!("{ACCOUNT}:R");
    let may_write = format!("{ACCOUNT}:(OI)(CI)M");
    InstallPlan {
        steps: vec![
            InstallStep::folder(FOLDER),
            InstallStep::folder(STATE),
            InstallStep::folder(LOGS),
            InstallStep::jobs(JOBS),
            InstallStep::secret(SECRET),
            InstallStep::run([
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
            InstallStep::run(["sc.exe", "description", SERVICE_NAME, "Hourly billing of virtual machines"]),
            // Milliseconds until each of the first three restarts; a run of five minutes forgets them.
            InstallStep::run([
                "sc.exe",
                "failure",
                SERVICE_NAME,
                "reset=",
                "300",
                "actions=",
                "restart/10000/restart/10000/restart/60000",
            ]),
            // A daemon that ends with an exit code has failed as well.
            InstallStep::run(["sc.exe", "failureflag", SERVICE_NAME, "1"]),
            InstallStep::run([
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
            InstallStep::run(["icacls.exe", STATE, "/grant", &may_write]),
            InstallStep::run(["icacls.exe", LOGS, "/grant", &may_write]),
            InstallStep::run([
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
