//! `service`: installs, starts and stops the daemon as a service of the system.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, Subcommand};

use super::complain;
use crate::{
    exit::{Exit, Failure},
    host::platform::uid,
    output::line as say,
    service_install::{
        HostFacts, InstallPlan, InstallStep, OriginalUnit, ServiceAction, System, User, log, plan,
    },
};

/// Where packages install the unit.
const PACKAGED: [&str; 2] =
    ["/usr/lib/systemd/system/billing-daemon.service", "/lib/systemd/system/billing-daemon.service"];

/// The name of the original daemon's unit, and the folders of systemd in their order of precedence.
const ORIGINAL: &str = "containerstacks-billing.service";
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Install the service, which starts the daemon at each boot; does not start it now
    #[command(after_help = "Example:\n  sudo billing-daemon service install")]
    Install(ServiceScope),
    /// Stop the service and remove what `install` wrote; keep configuration and data
    #[command(after_help = "Example:\n  sudo billing-daemon service uninstall")]
    Uninstall(ServiceScope),
    /// Start the service
    #[command(after_help = "Example:\n  billing-daemon service start --user")]
    Start(ServiceScope),
    /// Stop the service after completing the runs in progress
    #[command(after_help = "Example:\n  sudo billing-daemon service stop")]
    Stop(ServiceScope),
    /// Show what the service manager reports; exit 1 unless the service runs
    #[command(after_help = "Example:\n  billing-daemon service status")]
    Status(ServiceScope),
}

/// Whose service on which platform, and whether anything is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(crate) struct ServiceScope {
    /// Use a service of the current user; needs no root rights
    #[arg(long)]
    user: bool,
    /// Print what would be written and run, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Simulate another platform
    #[arg(long, value_name = "SYSTEM", value_enum, requires = "dry_run", hide = true)]
    system: Option<System>,
}

pub(super) fn execute(service: ServiceCommand) -> Result<(), Failure> {
    let (action, scope) = match service {
        ServiceCommand::Install(scope) => (ServiceAction::Install, scope),
        ServiceCommand::Uninstall(scope) => (ServiceAction::Uninstall, scope),
        ServiceCommand::Start(scope) => (ServiceAction::Start, scope),
        ServiceCommand::Stop(scope) => (ServiceAction::Stop, scope),
        ServiceCommand::Status(scope) => (ServiceAction::Status, scope),
    };
    let here = System::current();
    let system = scope.system.or(here).ok_or_else(|| {
        let os = std::env::consts::OS;
        Failure::new(Exit::Configuration, format!("cannot manage services on {os}: unknown service manager"))
            .help("run `billing-daemon run` under the supervisor of this host")
    })?;
    let host = host_facts(system, here == Some(system), scope.user)?;
    let plan = plan(action, &host);
    if scope.dry_run {
        show(&plan);
        print_next(&plan);
        print_log(action, &host);
        return Ok(());
    }
    if let Some(obstacle) = plan.obstacles.first() {
        let exit =
            if host.user.is_none() && !host.is_privileged { Exit::Permission } else { Exit::Configuration };
        return Err(Failure::new(exit, obstacle));
    }
    let done = plan.steps.iter().try_for_each(|step| {
        if action != ServiceAction::Status {
            say(step);
        }
        carry_out(step, action)
    });
    if done.is_ok() {
        print_next(&plan);
    }
    // Also after a failure, which the log may explain.
    print_log(action, &host);
    done
}

fn host_facts(system: System, is_here: bool, of_user: bool) -> Result<HostFacts, Failure> {
    let internal = |error: io::Error| {
        Failure::new(Exit::Internal, format!("cannot determine the path of this program: {error}"))
    };
    let program = if is_here { std::env::current_exe().map_err(internal)? } else { system.usual_program() };
    let packaged = || PACKAGED.iter().map(PathBuf::from).find(|unit| unit.exists());
    Ok(HostFacts {
        system,
        program,
        user: of_user.then(user).transpose()?,
        is_privileged: is_privileged(),
        is_running: !is_here || system != System::Systemd || Path::new("/run/systemd/system").exists(),
        packaged: if is_here && system == System::Systemd { packaged() } else { None },
        original: if is_here && system == System::Systemd { original() } else { None },
    })
}

fn original() -> Option<OriginalUnit> {
    let path =
        UNIT_FOLDERS.iter().map(|folder| Path::new(folder).join(ORIGINAL)).find(|unit| unit.exists())?;
    let wanted = Path::new(UNIT_FOLDERS[0]).join("multi-user.target.wants").join(ORIGINAL);
    Some(OriginalUnit {
        // An unreadable unit counts as another biller's.
        text: fs::read_to_string(&path).unwrap_or_default(),
        is_enabled: fs::symlink_metadata(wanted).is_ok(),
        path,
    })
}

fn user() -> Result<User, Failure> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = folder("HOME").ok_or_else(|| {
        Failure::new(Exit::Configuration, "HOME is not set")
            .help("set it to the home folder of the service's user")
    })?;
    let config = folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    Ok(User { home, config, uid: uid() })
}

/// Where users have no numbers, the tools that are run check the privileges.
fn is_privileged() -> bool {
    uid() == 0
}

fn show(plan: &InstallPlan) {
    for step in &plan.steps {
        match step {
            InstallStep::Write { text, .. } => {
                say(format!("{step}:"));
                for line in text.lines() {
                    say(format!("    {line}").trim_end());
                }
            }
            other => say(other),
        }
    }
    for obstacle in &plan.obstacles {
        complain(&format!("error: this would be refused: {obstacle}"));
    }
}

fn print_next(plan: &InstallPlan) {
    if !plan.next.is_empty() {
        complain("next steps:");
    }
    for next in &plan.next {
        complain(&format!("  {next}"));
    }
}

fn print_log(action: ServiceAction, host: &HostFacts) {
    match action {
        ServiceAction::Install | ServiceAction::Start | ServiceAction::Status => {
            complain(&format!("log: {}", log(host)));
        }
        ServiceAction::Uninstall | ServiceAction::Stop => {}
    }
}

fn carry_out(step: &InstallStep, action: ServiceAction) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Internal,
        };
        Failure::new(exit, format!("cannot {step}: {error}"))
    };
    match step {
        InstallStep::Folder { path, private } => make_folder(path, *private).map_err(failed),
        InstallStep::Write { path, text } => path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(path, text))
            .map_err(failed),
        InstallStep::Begin { path, text, private } => begin(path, text, *private).map_err(failed),
        InstallStep::Remove { path } => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
        InstallStep::Run { command, may_fail } => {
            let (program, arguments) = command.split_first().expect("a command names its program");
            let status = Command::new(program).args(arguments).status().map_err(failed)?;
            match (status.success() || *may_fail, action) {
                (true, _) => Ok(()),
                // The tool has printed the status.
                (false, ServiceAction::Status) => Err(Failure::silent(Exit::Negative)),
                (false, _) => Err(Failure::new(Exit::Internal, format!("cannot {step}: {status}"))),
            }
        }
    }
}

fn make_folder(path: &Path, private: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, if private { 0o700 } else { 0o755 });
    #[cfg(not(unix))]
    let _ = private;
    builder.create(path)
}

/// Writes a file unless it exists. A private one is never readable by other users.
fn begin(path: &Path, text: &str, private: bool) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if private { 0o600 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = private;
    match options.open(path) {
        Ok(mut file) => io::Write::write_all(&mut file, text.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
