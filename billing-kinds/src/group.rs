//! The process group of a program. A guard process in the group ends the group if this process is killed.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::oneshot;

const SHELL: &str = "/bin/sh";

/// The guard's script: reports that it is ready, and kills its own process group when its input is closed. Only this process holds
/// the other end of that pipe, so the input is closed at the latest when this process ends, for any reason. The guard ignores the
/// signals that request a program to stop, because it must outlive a stop that ends in a kill.
const GUARD: &str = "trap '' HUP INT QUIT TERM USR1 USR2 ALRM PIPE; echo; read -r _; kill -s KILL 0";

/// The id of a process group; `None` as soon as the system may reuse it.
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

    /// Kills the rest of the group and reaps its guard, whose process id is that of the group.
    fn end(&self, mut guard: Child) {
        self.signal(Signal::KILL);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // The guard is a child of this process, and was killed.
        let _ = guard.wait();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.group.signal(Signal::KILL);
    }
}

/// Runs `program` in a separate process group and returns when the group has ended. Blocks its thread. Without a receiver of
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
    // Without a receiver, the value comes back and is dropped, which kills the group.
    let _ = started.send(Started { group: group.clone(), stdout, stderr });
    let status = child.wait();
    group.end(guard);
    status.map_err(GroupError::Wait)
}

/// Starts the guard as the first process of a new group, and returns when it is ready.
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
        // It may have ended already.
        let _ = guard.kill();
        guard.wait()?;
        return Err(error);
    }
    Ok(guard)
}
