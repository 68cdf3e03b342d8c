//! Each example is run as a reader would run it, and what it prints is checked; so is every block of the guide.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

const GUIDE: &str = include_str!("../../docs/writing-a-plugin.md");

/// The example as cargo built it, beside the folder of this test's own program.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("a program knows where it is");
    let target = test.parent().and_then(Path::parent).expect("it is in target/debug/deps");
    let path: PathBuf = target.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo test -p examples`", path.display());
    let mut command = Command::new(path);
    command.env_clear();
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder is made")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ended by SIGTERM when it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let asked = Command::new("kill").arg(&pid).status();
        assert!(asked.is_ok_and(|status| status.success()) || thread::panicking(), "it is there");
        let _ = self.0.wait();
    }
}

#[test]
fn embed_runs_a_job_each_second_without_a_database() {
    let output = example("embed").output().expect("it runs");
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let greetings = text.lines().filter(|line| line.starts_with("hello Ada, at 20")).count();
    assert!((2..=4).contains(&greetings), "{text}");
    assert_eq!(text.lines().last(), Some(format!("{greetings} runs in the history").as_str()));
}

/// The fenced block of the guide that follows this line, without its fences.
fn block(after: &str) -> &'static str {
    let rest = GUIDE.split_once(after).unwrap_or_else(|| panic!("the guide says `{after}`")).1;
    let fenced = rest.split_once("```").expect("a block begins").1;
    let (_, body) = fenced.split_once('\n').expect("with its language");
    body.split_once("```").expect("and ends").0
}

#[test]
fn the_guide_shows_the_example_as_it_is() {
    for (after, file) in [
        ("`src/lib.rs`:", include_str!("../plugin/src/lib.rs")),
        ("`tests/sweep.rs`:", include_str!("../plugin/tests/sweep.rs")),
        ("`src/main.rs`:", include_str!("../custom_daemon.rs")),
    ] {
        assert_eq!(block(after), file, "{after}");
    }
}

/// What the guide lets its reader write and run, in its order, with our build of the daemon that it leads to.
#[test]
fn the_guide_leads_to_a_job_that_runs() {
    let folder = folder();
    let old = folder.path().join("exports/old.csv");
    fs::create_dir(folder.path().join("exports")).expect("a folder is made");
    let file = fs::File::create(&old).expect("a file is made");
    let age = Duration::from_hours(24 * 400);
    file.set_modified(std::time::UNIX_EPOCH + age).expect("its time is set");
    fs::write(folder.path().join("jobs.toml"), block("`jobs.toml`:")).expect("it is written");
    let daemon = |arguments: &str| {
        let mut command = example("custom_daemon");
        command
            .args(arguments.split_whitespace())
            .current_dir(folder.path())
            .env("DATABASE_URL", "sqlite://sweeper.db");
        command
    };
    // Its own lines, with `sweeper` in the place of what cargo builds here.
    let commands = block("And run it:").lines().filter_map(|line| line.strip_prefix("cargo run -- "));
    let commands: Vec<_> = commands.collect();
    assert_eq!(commands, ["migrate up", "check", "run"]);
    for arguments in &commands[..2] {
        let output = daemon(arguments).output().expect("it runs");
        assert!(output.status.success(), "{arguments}: {}", text(&output));
    }
    let running = daemon("run").stdout(Stdio::null()).spawn().expect("it starts");
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
fn the_guide_shows_what_a_wrong_parameter_gives() {
    let folder = folder();
    let wrong = block("`jobs.toml`:").replace("older-than-days = 30", "older-then-days = 30");
    fs::write(folder.path().join("jobs.toml"), wrong).expect("it is written");
    let mut check = example("custom_daemon");
    check.arg("check").current_dir(folder.path()).env("DATABASE_URL", "sqlite://sweeper.db");
    let output = check.output().expect("it runs");
    assert_eq!(output.status.code(), Some(78));
    let shown = block("A mistake in it is told with its place:");
    assert!(text(&output).contains(shown.trim_end()), "{}\n{shown}", text(&output));
}
