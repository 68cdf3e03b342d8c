//! Runs a program: no shell, an environment of its own, and an end for the whole process group.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Outcome, duration, serde_json::json};
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{ChildStderr, ChildStdout},
    task::{JoinSet, spawn_blocking},
};

use crate::Secret;

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A run that is to stop is given up by the scheduler after half a minute.
const LONGEST_GRACE: Duration = Duration::from_secs(25);
/// How long a stream may stay open after its program has ended: only what left the process group can hold it.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// "Try again later", as sendmail and systemd understand it.
const EX_TEMPFAIL: i32 = 75;
const MOST_OUTPUT: usize = 1024 * 1024;
/// How many characters of its last line an error shows.
const SHOWN: usize = 300;

/// The parameters of kind `command`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CommandParams {
    /// The program and its arguments.
    #[serde(deserialize_with = "argv")]
    #[schemars(length(min = 1))]
    pub argv: Vec<String>,
    /// Where it runs; the daemon's own working directory if none is named.
    #[serde(default)]
    pub working_directory: Option<PathBuf>,
    /// All that the program finds in its environment besides `PATH` and what tells it about the run.
    #[serde(default)]
    pub environment: BTreeMap<String, Secret>,
    /// How long after SIGTERM it is killed; at most 25s.
    #[serde(default = "ten_seconds", serialize_with = "duration::serialize", deserialize_with = "grace")]
    #[schemars(with = "String", regex(pattern = duration::PATTERN))]
    pub stop_grace: Duration,
    /// How many bytes are kept of the end of each stream.
    #[serde(default = "kept", deserialize_with = "max_output")]
    #[schemars(range(max = MOST_OUTPUT))]
    pub max_output: usize,
    /// If any are named, only runs that end with these codes are tried again.
    #[serde(default)]
    pub retry_exit_codes: Option<BTreeSet<i32>>,
    /// Runs that end with these codes are never tried again.
    #[serde(default)]
    pub fatal_exit_codes: BTreeSet<i32>,
}

/// The job of kind `command`.
#[derive(Debug)]
pub struct Command {
    params: CommandParams,
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn kept() -> usize {
    16 * 1024
}

fn argv<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let argv = Vec::<String>::deserialize(deserializer)?;
    if argv.first().is_none_or(String::is_empty) {
        return Err(de::Error::custom("name a program, for example [\"/usr/bin/true\"]"));
    }
    if argv.iter().any(|word| word.contains('\0')) {
        return Err(de::Error::custom("no argument can contain a NUL"));
    }
    Ok(argv)
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let grace = duration::deserialize(deserializer)?;
    if grace > LONGEST_GRACE {
        return Err(de::Error::custom("must be at most 25s, or the run is given up before"));
    }
    Ok(grace)
}

fn max_output<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let bytes = usize::deserialize(deserializer)?;
    if bytes > MOST_OUTPUT {
        return Err(de::Error::custom("must be at most 1048576 bytes: each run keeps them for ever"));
    }
    Ok(bytes)
}

impl Command {
    /// Runs what `params` say.
    #[must_use]
    pub fn new(params: CommandParams) -> Self {
        Self { params }
    }

    fn start(&self, ctx: &JobContext) -> Result<Child, JobError> {
        let params = &self.params;
        let (program, arguments) = params.argv.split_first().expect("the parameters name a program");
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("JOB_NAME", &ctx.occurrence.job)
            .env("JOB_SCHEDULED_AT", ctx.occurrence.scheduled_at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
            .env("JOB_ATTEMPT", ctx.attempt.to_string())
            .env("JOB_RUN_ID", ctx.run_id.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for (name, value) in &params.environment {
            command.env(name, value.read().map_err(JobError::retry)?);
        }
        if let Some(folder) = &params.working_directory {
            command.current_dir(folder);
        }
        command.spawn().map_err(|error| {
            let message = format!("cannot start `{program}`: {error}");
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
                    JobError::fatal(message)
                }
                _ => JobError::retry(message),
            }
        })
    }

    /// What an end means.
    fn outcome(
        &self,
        status: ExitStatus,
        stopped: bool,
        stderr: &str,
        ctx: &JobContext,
    ) -> Result<Outcome, JobError> {
        if status.success() {
            return Ok(Outcome::Done { items: 1, details: ctx.reported() });
        }
        if stopped {
            return Ok(Outcome::Interrupted { items: 0 });
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let last: String =
            stderr.trim().lines().next_back().unwrap_or_default().chars().take(SHOWN).collect();
        let colon = if last.is_empty() { "" } else { ": " };
        let message = format!("`{}` {how}{colon}{last}", self.params.argv[0]);
        let code = status.code();
        let listed = |codes: &BTreeSet<i32>| code.is_some_and(|code| codes.contains(&code));
        let again = match &self.params.retry_exit_codes {
            _ if listed(&self.params.fatal_exit_codes) => false,
            Some(codes) => listed(codes) || code == Some(EX_TEMPFAIL) || code.is_none(),
            None => true,
        };
        Err(if again { JobError::retry(message) } else { JobError::fatal(message) })
    }
}

#[async_trait]
impl Job for Command {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let mut child = self.start(ctx)?;
        let group = Group::of(&child);
        let (stdout, stderr) = (Tail::new(self.params.max_output), Tail::new(self.params.max_output));
        let mut readers = JoinSet::new();
        // Both are pipes: the program was started so.
        if let Some(pipe) = child.stdout.take() {
            readers.spawn(stdout.clone().follow(ChildStdout::from_std(pipe).map_err(JobError::retry)?));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.spawn(stderr.clone().follow(ChildStderr::from_std(pipe).map_err(JobError::retry)?));
        }
        let leader = Arc::clone(&group.0);
        let mut ended = spawn_blocking(move || reap(&leader, child));
        let mut stopped = false;
        let status = tokio::select! {
            status = &mut ended => status,
            _ = ctx.stopped() => {
                stopped = true;
                group.signal(Signal::TERM);
                tokio::select! {
                    status = &mut ended => status,
                    () = ctx.clock().sleep(self.params.stop_grace) => {
                        group.signal(Signal::KILL);
                        ended.await
                    }
                }
            }
        };
        let status = status.map_err(JobError::retry)?.map_err(JobError::retry)?;
        let _ =
            tokio::time::timeout(LAST_OUTPUT, async { while readers.join_next().await.is_some() {} }).await;
        let (out, err) = (stdout.text(), stderr.text());
        ctx.report(json!({
            "exit_code": status.code(),
            "signal": status.signal(),
            "stdout": out,
            "stderr": err,
            "cut": stdout.is_cut() || stderr.is_cut(),
        }));
        self.outcome(status, stopped, &err, ctx)
    }
}

/// The number of a program's process group; `None` once its leader was waited for: it may be somebody else's then.
type Leader = Arc<Mutex<Option<Pid>>>;

/// A program and whatever it started. Killed when the run is dropped.
struct Group(Leader);

impl Group {
    fn of(child: &Child) -> Self {
        Self(Arc::new(Mutex::new(i32::try_from(child.id()).ok().and_then(Pid::from_raw))))
    }

    fn signal(&self, signal: Signal) {
        signal_group(&self.0, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn signal_group(leader: &Leader, signal: Signal) {
    if let Some(pid) = *leader.lock().unwrap_or_else(PoisonError::into_inner) {
        // A group that is gone needs no signal.
        let _ = kill_process_group(pid, signal);
    }
}

/// Waits for the leader, ends what it left behind, and lets go of the group's number.
fn reap(leader: &Leader, mut child: Child) -> io::Result<ExitStatus> {
    let pid = *leader.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pid) = pid {
        // The leader stays a zombie, and its number the group's, until the rest is dealt with.
        let waiting = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), waiting).is_err_and(|error| error == Errno::INTR) {}
    }
    signal_group(leader, Signal::KILL);
    let mut leader = leader.lock().unwrap_or_else(PoisonError::into_inner);
    *leader = None;
    child.wait()
}

/// The end of a stream.
#[derive(Clone)]
struct Tail {
    max: usize,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn new(max: usize) -> Self {
        Self { max, seen: Arc::default() }
    }

    async fn follow(self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8 * 1024];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.bytes.extend_from_slice(&chunk[..read]);
            if let Some(surplus) = seen.bytes.len().checked_sub(self.max).filter(|surplus| *surplus > 0) {
                seen.bytes.drain(..surplus);
                seen.cut = true;
            }
        }
    }

    fn text(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&seen.bytes).into_owned()
    }

    fn is_cut(&self) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).cut
    }
}
