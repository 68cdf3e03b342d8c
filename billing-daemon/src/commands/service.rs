//! `service`: the daemon as a service of the system.

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
    service_install::{Action, Machine, OriginalUnit, Plan, Step, System, User, log, plan},
};

/// Where packages put the unit.
const PACKAGED: [&str; 2] =
    ["/usr/lib/systemd/system/billing-daemon.service", "/lib/systemd/system/billing-daemon.service"];

/// The name of the original daemon's unit, and where systemd looks for it: the first counts.
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
    /// Install the service, so that the system starts the daemon at each boot; does not start it now
    #[command(after_help = "Example:\n  sudo billing-daemon service install")]
    Install(ServiceScope),
    /// Stop the service and remove what `install` wrote; configuration and data stay
    #[command(after_help = "Example:\n  sudo billing-daemon service uninstall")]
    Uninstall(ServiceScope),
    /// Start the service
    #[command(after_help = "Example:\n  billing-daemon service start --user")]
    Start(ServiceScope),
    /// Stop the service; runs in progress are completed first
    #[command(after_help = "Example:\n  sudo billing-daemon service stop")]
    Stop(ServiceScope),
    /// Show what the service manager reports; exit 1 unless the service runs
    #[command(after_help = "Example:\n  billing-daemon service status")]
    Status(ServiceScope),
}

/// Whose service on which platform, and whether anything is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(crate) struct ServiceScope {
    /// Use a service of this user, which needs no root
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
    let (action, place) = match service {
        ServiceCommand::Install(place) => (Action::Install, place),
        ServiceCommand::Uninstall(place) => (Action::Uninstall, place),
        ServiceCommand::Start(place) => (Action::Start, place),
        ServiceCommand::Stop(place) => (Action::Stop, place),
        ServiceCommand::Status(place) => (Action::Status, place),
    };
    let here = System::current();
    let system = place.system.or(here).ok_or_else(|| {
        let os = std::env::consts::OS;
        let message = format!("no service manager of {os} is known: let yours run `billing-daemon run`");
        Failure::new(Exit::Configuration, message)
    })?;
    let machine = machine(system, here == Some(system), place.user)?;
    let plan = plan(action, &machine);
    if place.dry_run {
        show(&plan);
        tell_next(&plan);
        tell_log(action, &machine);
        return Ok(());
    }
    if let Some(obstacle) = plan.obstacles.first() {
        let exit = if machine.user.is_none() && !machine.is_privileged {
            Exit::Permission
        } else {
            Exit::Configuration
        };
        return Err(Failure::new(exit, obstacle));
    }
    let done = plan.steps.iter().try_for_each(|step| {
        if action != Action::Status {
            say(step);
        }
        carry_out(step, action)
    });
    if done.is_ok() {
        tell_next(&plan);
    }
    // All the more if it does not run.
    tell_log(action, &machine);
    done
}

fn machine(system: System, is_here: bool, of_user: bool) -> Result<Machine, Failure> {
    let internal = |error: io::Error| {
        Failure::new(Exit::Internal, format!("cannot tell where this program is: {error}"))
    };
    let program = if is_here { std::env::current_exe().map_err(internal)? } else { system.usual_program() };
    let packaged = || PACKAGED.iter().map(PathBuf::from).find(|unit| unit.exists());
    Ok(Machine {
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
        // One that cannot be read is not known to be ours.
        text: fs::read_to_string(&path).unwrap_or_default(),
        is_enabled: fs::symlink_metadata(wanted).is_ok(),
        path,
    })
}

fn user() -> Result<User, Failure> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = folder("HOME").ok_or_else(|| {
        Failure::new(Exit::Configuration, "HOME is not set: say whose service it is, as in `HOME=/home/ada`")
    })?;
    let config = folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    Ok(User { home, config, uid: uid() })
}

/// Where nobody can tell, the tools that are run refuse by themselves.
fn is_privileged() -> bool {
    uid() == 0
}

fn show(plan: &Plan) {
    for step in &plan.steps {
        match step {
            Step::Write { text, .. } => {
                say(format!("{step}:"));
                for line in text.lines() {
                    say(format!("    {line}").trim_end());
                }
            }
            other => say(other),
        }
    }
    for obstacle in &plan.obstacles {
        complain(&format!("this would be refused: {obstacle}"));
    }
}

fn tell_next(plan: &Plan) {
    if !plan.next.is_empty() {
        complain("then:");
    }
    for next in &plan.next {
        complain(&format!("  {next}"));
    }
}

fn tell_log(action: Action, machine: &Machine) {
    match action {
        Action::Install | Action::Start | Action::Status => {
            complain(&format!("its log: {}", log(machine)));
        }
        Action::Uninstall | Action::Stop => {}
    }
}

fn carry_out(step: &Step, action: Action) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Internal,
        };
        Failure::new(exit, format!("could not {step}: {error}"))
    };
    match step {
        Step::Folder { path, private } => make_folder(path, *private).map_err(failed),
        Step::Write { path, text } => path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(path, text))
            .map_err(failed),
        Step::Begin { path, text, private } => begin(path, text, *private).map_err(failed),
        Step::Remove { path } => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
        Step::Run { command, may_fail } => {
            let (program, arguments) = command.split_first().expect("a command names its program");
            let status = Command::new(program).args(arguments).status().map_err(failed)?;
            match (status.success() || *may_fail, action) {
                (true, _) => Ok(()),
                // It said so itself.
                (false, Action::Status) => Err(Failure::silent(Exit::Negative)),
                (false, _) => {
                    Err(Failure::new(Exit::Internal, format!("could not {step}: {status}; see above why")))
                }
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

/// Writes a file unless there is one; a private one is nobody else's from its first moment on.
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
