//! The job kind `command`: runs a program without a shell, with a separate environment and in a separate process group.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{Job, JobContext, JobError, Mask, Outcome, duration, serde_json::json};
use rustix::process::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{ChildStderr, ChildStdout},
    sync::oneshot,
    task::{JoinSet, spawn_blocking},
};

use crate::{
    Secret, checked, concealed,
    group::{self, GroupError},
};

/// The search path for programs.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The scheduler abandons a run that does not stop within 30 seconds.
const LONGEST_GRACE: Duration = Duration::from_secs(25);
/// How long a stream may stay open after its program has ended: only a process that left the group can hold it.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// "Temporary failure" in sysexits.h.
const EX_TEMPFAIL: i32 = 75;
const MOST_OUTPUT: usize = 1024 * 1024;
/// The number of characters of the last line that an error contains.
const SHOWN: usize = 300;

/// The parameters of kind `command`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CommandParams {
    /// The program and its arguments.
    #[serde(deserialize_with = "argv")]
    #[schemars(length(min = 1))]
    pub argv: Vec<String>,
    /// The working directory of the program; that of the daemon by default.
    #[serde(default, deserialize_with = "folder")]
    pub working_directory: Option<PathBuf>,
    /// The environment of the program, in addition to `PATH` and the variables that describe the run.
    #[serde(default, deserialize_with = "checked::environment")]
    #[schemars(extend("propertyNames" = { "pattern": "^[^=]+$" }))]
    pub environment: BTreeMap<String, Secret>,
    /// The time between SIGTERM and SIGKILL; at most 25s.
    #[serde(default = "ten_seconds", serialize_with = "duration::serialize", deserialize_with = "grace")]
    #[schemars(with = "String", regex(pattern = duration::PATTERN))]
    pub stop_grace: Duration,
    /// The number of bytes that are kept of the end of each stream.
    #[serde(default = "kept", deserialize_with = "max_output")]
    #[schemars(range(max = MOST_OUTPUT))]
    pub max_output: usize,
    /// If set, only runs that end with these exit codes are retried.
    #[serde(default)]
    pub retry_exit_codes: Option<BTreeSet<i32>>,
    /// Runs that end with these exit codes are never retried.
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
        return Err(de::Error::custom("the program is missing: write for example [\"/usr/bin/true\"]"));
    }
    if argv.iter().any(|word| word.contains('\0')) {
        return Err(de::Error::custom("an argument must not contain NUL"));
    }
    Ok(argv)
}

fn folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let folder = PathBuf::deserialize(deserializer)?;
    if folder.as_os_str().is_empty() || folder.to_string_lossy().contains('\0') {
        return Err(de::Error::custom("invalid folder: write for example \"/var/backups\""));
    }
    Ok(Some(folder))
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let grace = duration::deserialize(deserializer)?;
    if grace > LONGEST_GRACE {
        return Err(de::Error::custom(
            "must be at most 25s, because the scheduler abandons the run after 30s",
        ));
    }
    Ok(grace)
}

fn max_output<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let bytes = usize::deserialize(deserializer)?;
    if bytes > MOST_OUTPUT {
        return Err(de::Error::custom("must be at most 1048576 bytes, because the run history keeps them"));
    }
    Ok(bytes)
}

impl CommandParams {
    /// Returns the current values of all parameters that come from the environment or a file, to be masked in every output.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let values =
            self.environment.iter().filter(|(_, source)| !source.is_text()).filter_map(|(name, source)| {
                let value = source.read().ok()?;
                Some(concealed::of_entry(name, source, &value))
            });
        values.flatten().collect()
    }

    /// Returns the search path for the program; `None` if it comes from the environment or a file.
    pub(crate) fn path(&self) -> Option<&str> {
        match self.environment.get("PATH") {
            None => Some(PATH),
            Some(Secret::Text(path)) => Some(path),
            Some(Secret::Env(_) | Secret::File(_) | Secret::Credential(_)) => None,
        }
    }
}

impl Command {
    /// Returns a job that runs the program of `params`.
    #[must_use]
    pub fn new(params: CommandParams) -> Self {
        Self { params }
    }

    /// Returns the program with its environment, and adds the secrets to the mask of `ctx`.
    fn program(&self, ctx: &JobContext) -> Result<std::process::Command, JobError> {
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
            .env("JOB_REQUEST_ID", ctx.idempotency_key())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut secrets = Vec::new();
        for (name, source) in &params.environment {
            let value = source.read().map_err(JobError::retry)?;
            secrets.extend(concealed::of_entry(name, source, &value));
            command.env(name, value);
        }
        ctx.conceal(secrets);
        if let Some(folder) = &params.working_directory {
            command.current_dir(folder);
        }
        Ok(command)
    }

    fn failure(&self, error: GroupError) -> JobError {
        let (message, error) = match error {
            GroupError::Guard(error) => {
                ("cannot start the guard that ends the program if the daemon is killed".to_owned(), error)
            }
            GroupError::Program(error) => (format!("cannot start `{}`", self.params.argv[0]), error),
            GroupError::Wait(error) => (format!("cannot wait for `{}`", self.params.argv[0]), error),
        };
        let message = format!("{message}: {error}");
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
                JobError::fatal(message)
            }
            _ => JobError::retry(message),
        }
    }

    /// Returns the outcome of an exit status.
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
        let program = self.program(ctx)?;
        let mask = ctx.mask();
        let (started, starts) = oneshot::channel();
        let mut ended = spawn_blocking(move || group::run(program, started));
        let Ok(mut started) = starts.await else {
            let never = ended.await.map_err(JobError::retry)?;
            return Err(never.map_or_else(
                |error| self.failure(error),
                |_| JobError::retry("the program was not started"),
            ));
        };
        let (stdout, stderr) =
            (Tail::new(self.params.max_output, &mask), Tail::new(self.params.max_output, &mask));
        let mut readers = JoinSet::new();
        // Both are pipes, as `program` configures.
        if let Some(pipe) = started.stdout.take() {
            readers.spawn(stdout.clone().follow(ChildStdout::from_std(pipe).map_err(JobError::retry)?));
        }
        if let Some(pipe) = started.stderr.take() {
            readers.spawn(stderr.clone().follow(ChildStderr::from_std(pipe).map_err(JobError::retry)?));
        }
        let mut stopped = false;
        let status = tokio::select! {
            status = &mut ended => status,
            _ = ctx.stopped() => {
                stopped = true;
                started.group.signal(Signal::TERM);
                tokio::select! {
                    status = &mut ended => status,
                    () = ctx.clock().sleep(self.params.stop_grace) => {
                        started.group.signal(Signal::KILL);
                        ended.await
                    }
                }
            }
        };
        let status = status.map_err(JobError::retry)?.map_err(|error| self.failure(error))?;
        let _ =
            tokio::time::timeout(LAST_OUTPUT, async { while readers.join_next().await.is_some() {} }).await;
        let (out, err) = (stdout.text(&mask), stderr.text(&mask));
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

/// The end of a stream.
#[derive(Clone)]
struct Tail {
    /// The number of bytes to return.
    max: usize,
    /// The number of bytes that are kept before these, to recognize a secret that the cut divides.
    reach: usize,
    output: Arc<Mutex<Output>>,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    total: usize,
}

impl Tail {
    fn new(max: usize, mask: &Mask) -> Self {
        Self { max, reach: mask.reach(), output: Arc::default() }
    }

    async fn follow(self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8 * 1024];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            output.total += read;
            output.bytes.extend_from_slice(&chunk[..read]);
            let surplus = output.bytes.len().saturating_sub(self.max + self.reach);
            output.bytes.drain(..surplus);
        }
    }

    fn text(&self, mask: &Mask) -> String {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let end = output.bytes.len();
        let shown = mask.apply_within(&output.bytes, end.saturating_sub(self.max)..end);
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn is_cut(&self) -> bool {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).total > self.max
    }
}
