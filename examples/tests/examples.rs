//! Runs each example and checks its output, and compares the blocks of docs/write-a-job.md with the examples.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

const GUIDE: &str = include_str!("../../docs/write-a-job.md");

/// The example that cargo built, in the folder next to that of this test's program.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the path of this program");
    let target = test.parent().and_then(Path::parent).expect("the program is in target/debug/deps");
    let path: PathBuf = target.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo test -p examples`", path.display());
    let mut command = Command::new(path);
    command.env_clear();
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("creating a folder")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A daemon that gets SIGTERM when it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").arg(&pid).status();
        assert!(sent.is_ok_and(|status| status.success()) || thread::panicking(), "the daemon still runs");
        let _ = self.0.wait();
    }
}

/// The fenced block of the guide after this text, without its fences.
fn block(after: &str) -> &'static str {
    let rest = GUIDE.split_once(after).unwrap_or_else(|| panic!("the guide contains `{after}`")).1;
    let fenced = rest.split_once("```").expect("a block begins").1;
    let (_, body) = fenced.split_once('\n').expect("with its language");
    body.split_once("```").expect("and ends").0
}

#[test]
fn guide_contains_example_verbatim() {
    for (after, file) in [
        ("`src/lib.rs`:", include_str!("../plugin/src/lib.rs")),
        ("`tests/sweep.rs`:", include_str!("../plugin/tests/sweep.rs")),
        ("`src/main.rs`:", include_str!("../custom_daemon.rs")),
    ] {
        assert_eq!(block(after), file, "{after}");
    }
}

/// Executes the commands of the guide in their order, with the example in the place of the reader's program.
#[test]
fn guide_results_in_running_job() {
    let folder = folder();
    let old = folder.path().join("exports/old.csv");
    fs::create_dir(folder.path().join("exports")).expect("creating a folder");
    let file = fs::File::create(&old).expect("creating a file");
    let age = Duration::from_hours(24 * 400);
    file.set_modified(std::time::UNIX_EPOCH + age).expect("setting its time");
    fs::write(folder.path().join("jobs.toml"), block("`jobs.toml`:")).expect("writing jobs.toml");
    let daemon = |arguments: &str| {
        let mut command = example("custom_daemon");
        command
            .args(arguments.split_whitespace())
            .current_dir(folder.path())
            .env("DATABASE_URL", "sqlite://sweeper.db");
        command
    };
    let commands = block("Run it:").lines().filter_map(|line| line.strip_prefix("cargo run -- "));
    let commands: Vec<_> = commands.collect();
    assert_eq!(commands, ["migrate up", "check", "run"]);
    for arguments in &commands[..2] {
        let output = daemon(arguments).output().expect("the program starts");
        assert!(output.status.success(), "{arguments}: {}", text(&output));
    }
    let running = daemon("run").stdout(Stdio::null()).spawn().expect("the daemon starts");
    let _daemon = Daemon(running);
    for _ in 0..3_000 {
        if !old.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the old file is still there");
}

#[test]
fn guide_shows_error_of_wrong_parameter() {
    let folder = folder();
    let wrong = block("`jobs.toml`:").replace("older-than-days = 30", "older-then-days = 30");
    fs::write(folder.path().join("jobs.toml"), wrong).expect("writing jobs.toml");
    let mut check = example("custom_daemon");
    check.arg("check").current_dir(folder.path()).env("DATABASE_URL", "sqlite://sweeper.db");
    let output = check.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(78));
    let shown = block("`check` reports a mistake with its position:");
    assert!(text(&output).contains(shown.trim_end()), "{}\n{shown}", text(&output));
}
