//! The process group of a program. It ends with the run, and also if this process is killed: a guard in the group sees to that.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::oneshot;

/// Where every Unix has a shell.
const SHELL: &str = "/bin/sh";

/// Reports that it is ready, and kills its own process group once its input is closed. Only this process holds the other end of that
/// pipe, so the input is closed at the latest when this process ends, however it ends. The signals that ask a program to stop are
/// for the program: the guard must outlive a stop that ends in a kill.
const GUARD: &str = "trap '' HUP INT QUIT TERM USR1 USR2 ALRM PIPE; echo; read -r _; kill -s KILL 0";

/// The number of a process group; `None` once it is free for other processes.
#[derive(Clone)]
pub(crate) struct Group(Arc<Mutex<Option<Pid>>>);

/// A program that has started. The group is killed when this is dropped.
pub(crate) struct Started {
    pub(crate) group: Group,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

/// Why a program has no exit status.
pub(crate) enum GroupError {
    /// The guard cannot start.
    Guard(io::Error),
    /// The program cannot start.
    Program(io::Error),
    /// The program cannot be waited for.
    Wait(io::Error),
}

impl Group {
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // A group without processes needs no signal.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Kills what is left of the group and reaps its guard, whose number is that of the group.
    fn end(&self, mut guard: Child) {
        self.signal(Signal::KILL);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // It is a child of ours, and was killed.
        let _ = guard.wait();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.group.signal(Signal::KILL);
    }
}

/// Runs `program` in a group of its own and returns when nothing of the group is left. Blocks its thread. Without a receiver of
/// `started`, the group is killed at once.
pub(crate) fn run(mut program: Command, started: oneshot::Sender<Started>) -> Result<ExitStatus, GroupError> {
    let guard = start_guard().map_err(GroupError::Guard)?;
    let id = i32::try_from(guard.id()).unwrap_or_default();
    let group = Group(Arc::new(Mutex::new(Pid::from_raw(id))));
    let mut child = match program.process_group(id).spawn() {
        Ok(child) => child,
        Err(error) => {
            group.end(guard);
            return Err(GroupError::Program(error));
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // What comes back is dropped.
    let _ = started.send(Started { group: group.clone(), stdout, stderr });
    let status = child.wait();
    group.end(guard);
    status.map_err(GroupError::Wait)
}

/// Starts the guard as the first process of a new group, and returns when it guards.
fn start_guard() -> io::Result<Child> {
    let mut guard = Command::new(SHELL)
        .args(["-c", GUARD, "guard-of-a-job"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{SHELL}: {error}")))?;
    let ready = guard.stdout.take().map_or(Ok(()), |mut output| output.read_exact(&mut [0]));
    if let Err(error) = ready {
        // It may have ended, which is all that is wanted.
        let _ = guard.kill();
        guard.wait()?;
        return Err(error);
    }
    Ok(guard)
}
