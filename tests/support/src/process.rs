//! Programs under test: started with only what a test gives them, read line by line, ended by signals.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

/// The time limit of everything that a test waits for. Only a failure takes that long.
const TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// A program with a folder to work in and a separate environment.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    folder: Arc<TempDir>,
    environment: Vec<(String, String)>,
}

/// The output so far of each running program, and the thread, hence the test, that started it.
static RUNNING: Mutex<Vec<Output>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Output {
    test: thread::ThreadId,
    folder: Weak<TempDir>,
    lines: watch::Receiver<Vec<Line>>,
}

/// A program that was started. Killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: watch::Receiver<Vec<Line>>,
    /// Outlives the program that works in it.
    _folder: Arc<TempDir>,
}

/// The output of a program, and its exit code.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The lines of its standard output.
    pub out: Vec<String>,
    /// The lines of its standard error.
    pub err: Vec<String>,
}

#[derive(Clone, Debug)]
struct Line {
    stream: Stream,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

impl Program {
    /// The program at `path`, in an empty folder and an empty environment.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-e2e-").tempdir();
        let folder = folder.expect("a folder to work in is made");
        Self { path: path.into(), folder: Arc::new(folder), environment: Vec::new() }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes a file into its folder.
    #[must_use]
    pub fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.folder.path().join(name), text).expect("a file in a folder of ours is written");
        self
    }

    /// The folder it works in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it with these arguments, separated by blanks.
    #[must_use]
    pub fn start(&self, arguments: &str) -> Running {
        let mut child = self.command(arguments).spawn().expect("the program starts");
        let (sender, lines) = watch::channel(Vec::new());
        let out = child.stdout.take().expect("its output is a pipe");
        let err = child.stderr.take().expect("its errors are a pipe");
        tokio::spawn(listen(out, Stream::Out, sender.clone()));
        tokio::spawn(listen(err, Stream::Err, sender));
        let test = thread::current().id();
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|output| output.folder.strong_count() > 0);
        running.push(Output { test, folder: Arc::downgrade(&self.folder), lines: lines.clone() });
        drop(running);
        Running { child, lines, _folder: Arc::clone(&self.folder) }
    }

    /// Runs it with these arguments, separated by blanks, until it ends.
    pub async fn run(&self, arguments: &str) -> Ended {
        self.start(arguments).ended().await
    }

    /// Returns the command without starting it.
    #[must_use]
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(arguments.split_whitespace())
            .current_dir(self.folder())
            .env_clear()
            .env("TMPDIR", self.folder())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a program that was not waited for has an id")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(
            self.try_signal(signal),
            "the program should be there, but it printed:\n{}",
            self.transcript()
        );
    }

    /// Sends it a signal; returns false if it has ended.
    #[must_use]
    pub fn try_signal(&self, signal: Signal) -> bool {
        // A program that ended keeps its id until it is waited for, which only `ended` and `is_alive` do.
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Waits for a line that contains this text, on either stream, and returns the first.
    pub async fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_lines(text, 1).await
    }

    /// Waits for the `times`th line that contains this text, and returns it.
    pub async fn wait_for_lines(&self, text: &str, times: usize) -> String {
        let mut lines = self.lines.clone();
        let nth = |lines: &[Line]| {
            lines.iter().map(|line| &line.text).filter(|line| line.contains(text)).nth(times - 1).cloned()
        };
        let found = timeout(TIMEOUT, lines.wait_for(|lines| nth(lines).is_some())).await;
        if let Ok(Ok(lines)) = found {
            return nth(&lines).expect("it was there a moment ago");
        }
        panic!("waited for line {times} with `{text}` among these:\n{}", self.transcript());
    }

    /// The lines so far that contain this text.
    #[must_use]
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let lines = self.lines.borrow();
        lines.iter().map(|line| &line.text).filter(|line| line.contains(text)).cloned().collect()
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("the status of a child process is readable").is_none()
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let Ok(status) = timeout(TIMEOUT, self.child.wait()).await else {
            panic!("waited for the end of a program that printed:\n{}", self.transcript());
        };
        // The pipes end with the last process that holds them.
        while let Ok(changed) = timeout(TIMEOUT, self.lines.changed()).await {
            if changed.is_err() {
                break;
            }
        }
        let lines = self.lines.borrow();
        let of = |stream| {
            lines.iter().filter(move |line| line.stream == stream).map(|line| line.text.clone()).collect()
        };
        Ended {
            code: status.expect("a program of ours can be waited for").code(),
            out: of(Stream::Out),
            err: of(Stream::Err),
        }
    }

    /// Sends SIGTERM twice, so that its runs stop too, and waits for its end.
    pub async fn interrupted(self) -> Ended {
        self.signal(Signal::TERM);
        // Two signals at once are one.
        self.wait_for_line("nothing new starts").await;
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Sends SIGTERM and waits for its end.
    pub async fn terminated(self) -> Ended {
        self.signal(Signal::TERM);
        self.ended().await
    }

    fn transcript(&self) -> String {
        transcript(&self.lines)
    }
}

fn transcript(lines: &watch::Receiver<Vec<Line>>) -> String {
    lines.borrow().iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// The output of the programs of this test.
fn transcripts() -> String {
    let test = thread::current().id();
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let outputs = running.iter().filter(|output| output.test == test && output.folder.strong_count() > 0);
    let texts: Vec<String> = outputs.map(|output| transcript(&output.lines)).collect();
    texts.iter().fold(String::new(), |all, one| all + "\n--- a program of this test printed:\n" + one)
}

impl Ended {
    /// All lines of both streams, those of the standard output first.
    #[must_use]
    pub fn text(&self) -> String {
        [self.out.as_slice(), &self.err].concat().join("\n")
    }

    /// Fails the test unless it ended with this code.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        clippy::return_self_not_must_use,
        reason = "the exit code is often all that a test checks"
    )]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.text());
        self
    }
}

async fn listen(stream: impl AsyncRead + Unpin, which: Stream, sender: watch::Sender<Vec<Line>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(text)) = lines.next_line().await {
        sender.send_modify(|lines| lines.push(Line { stream: which, text }));
    }
}

/// Calls `look` repeatedly until it returns a value.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            sleep(POLL).await;
        }
    };
    timeout(TIMEOUT, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited {TIMEOUT:?} until {what}{}", transcripts()))
}
