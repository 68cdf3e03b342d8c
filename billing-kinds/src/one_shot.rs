//! Runs a program once with a text on its standard input, in a separate process group.

use std::{
    io::{self, Write as _},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    io::AsyncReadExt as _, process::ChildStderr, sync::oneshot, task::spawn_blocking, time::timeout,
};

use crate::{
    command::PATH,
    group::{self, GroupError, Started},
};

/// The time between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the error output may stay open after the program has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// How many bytes of the error output are read.
const KEPT: u64 = 64 * 1024;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// The last line of its error output.
    pub last_error: String,
}

/// Runs a program with `input` on its standard input and nothing in its environment but `PATH` and `environment`. After `limit` its
/// process group is ended, and that is an error.
///
/// # Errors
/// The program cannot be started, or did not end in time.
pub async fn run_with_input(
    argv: &[String],
    environment: impl IntoIterator<Item = (String, String)>,
    input: String,
    limit: Duration,
) -> io::Result<Finished> {
    let (name, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (reader, mut writer) = io::pipe()?;
    let mut program = Command::new(name);
    program.args(arguments).env_clear().env("PATH", PATH).envs(environment);
    program.stdin(reader).stdout(Stdio::null()).stderr(Stdio::piped());
    // A program that does not read leaves the pipe full; the end of the program closes it, and the thread ends.
    let writing = spawn_blocking(move || writer.write_all(input.as_bytes()));
    let (started, starts) = oneshot::channel();
    let mut ended = spawn_blocking(move || group::run(program, started));
    let Ok(started) = starts.await else {
        return ended
            .await
            .map_err(io::Error::other)?
            .map_err(failed)
            .and_then(|_| Err(io::ErrorKind::Other.into()));
    };
    // Its group is killed when this is dropped.
    let mut started: Started = started;
    let stderr = started.stderr.take().map(ChildStderr::from_std).transpose()?;
    let reading = tokio::spawn(async move {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            // What was read before an error is shown.
            let _ = stderr.take(KEPT).read_to_end(&mut text).await;
        }
        text
    });
    let Ok(status) = timeout(limit, &mut ended).await else {
        started.group.signal(Signal::TERM);
        if timeout(STOP_GRACE, &mut ended).await.is_err() {
            started.group.signal(Signal::KILL);
            let _ = ended.await;
        }
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("`{name}` did not end within {limit:?}"),
        ));
    };
    let status = status.map_err(io::Error::other)?.map_err(failed)?;
    // The program may end before it has read everything.
    let _ = writing.await;
    let text = timeout(LAST_OUTPUT, reading).await.ok().and_then(Result::ok).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last_error = text.trim().lines().next_back().unwrap_or_default().to_owned();
    Ok(Finished { status, last_error })
}

fn failed(error: GroupError) -> io::Error {
    match error {
        GroupError::Guard(error) | GroupError::Program(error) | GroupError::Wait(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str, input: String, limit: Duration) -> io::Result<Finished> {
        let argv = ["sh", "-c", script].map(str::to_owned);
        run_with_input(&argv, [("ORDER".to_owned(), "7".to_owned())], input, limit).await
    }

    #[tokio::test]
    async fn program_reads_its_whole_input() {
        let minute = Duration::from_mins(1);
        // Longer than a pipe is deep.
        let input = "a".repeat(200_000);
        let finished = run("test $(wc -c) = 200000 && echo $ORDER >&2", input.clone(), minute).await;
        let finished = finished.expect("it ran");
        assert!(finished.status.success() && finished.last_error == "7", "{finished:?}");
        let unread = run("exit 75", input, minute).await.expect("it ran");
        assert_eq!(unread.status.code(), Some(75));
    }

    #[tokio::test]
    async fn slow_program_is_ended() {
        let error = run("sleep 600", String::new(), Duration::from_millis(50)).await.expect_err("too slow");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let missing = ["/no/such/program".to_owned()];
        let error = run_with_input(&missing, [], String::new(), Duration::from_secs(1)).await;
        assert_eq!(error.expect_err("missing").kind(), io::ErrorKind::NotFound);
    }
}
