//! The kind `command`, with real processes.
#![cfg(unix)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use billing_scheduler::{
    FencingToken, Job, JobContext, JobError, Occurrence, Outcome, Registry, Severity, StopHandle, StopReason,
    SystemClock,
    chrono::{DateTime, Utc},
    serde_json::{Value, json},
};
use rustix::process::{Pid, test_kill_process};

fn job(params: Value) -> Arc<dyn Job> {
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    registry.build("command", params).expect("the parameters fit")
}

/// A job that lets `sh` read `script`.
fn shell(script: &str) -> Arc<dyn Job> {
    job(json!({ "argv": ["sh", "-c", script] }))
}

fn context() -> JobContext {
    let scheduled_at: DateTime<Utc> = "2026-01-05T14:00:00Z".parse().expect("an instant");
    let occurrence = Occurrence { job: "backup".to_owned(), scheduled_at };
    JobContext::new(occurrence, 2, FencingToken(1), Arc::new(SystemClock), StopHandle::new())
}

async fn run(job: &Arc<dyn Job>) -> (Result<Outcome, JobError>, Value) {
    let ctx = context();
    let result = job.run(&ctx).await;
    (result, ctx.reported())
}

/// Waits for a file with a process id in it.
async fn pid_in(path: &Path) -> Pid {
    for _ in 0..3_000 {
        if let Some(pid) = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) {
            return Pid::from_raw(pid).expect("a process id is not 0");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited for {}", path.display());
}

/// Whether a process exists, also as a zombie.
fn exists(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

/// Waits until a process that is not a child of this one is dead, or a zombie of its new parent.
async fn gone(pid: Pid) {
    let dead = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    };
    for _ in 0..3_000 {
        if dead() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid:?} is still there");
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder is made");
    let path = folder.path().to_owned();
    (folder, path)
}

#[tokio::test]
async fn output_and_exit_code_are_in_details() {
    let (result, details) = run(&shell("echo out; printf 'e\\377r' >&2")).await;
    let expected =
        json!({ "exit_code": 0, "signal": null, "stdout": "out\n", "stderr": "e\u{fffd}r", "cut": false });
    assert_eq!(details, expected);
    assert_eq!(result.expect("it works"), Outcome::Done { items: 1, details: expected });
    let (result, details) = run(&shell("echo why >&2; exit 3")).await;
    assert_eq!(result.expect_err("it fails").to_string(), "`sh` exited with code 3: why");
    assert_eq!((&details["exit_code"], &details["stderr"]), (&json!(3), &json!("why\n")));
}

#[tokio::test]
async fn long_output_is_cut_without_blocking() {
    let params = json!({
        "argv": ["sh", "-c", "yes | head -c 1000000; echo end; yes 2>/dev/null | head -c 300000 >&2"],
        "max-output": 10,
    });
    let (result, details) = run(&job(params)).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((&details["stdout"], &details["cut"]), (&json!("y\ny\ny\nend\n"), &json!(true)));
    assert_eq!(details["stderr"].as_str().map(str::len), Some(10));
}

#[tokio::test]
async fn arguments_are_not_read_by_shell() {
    let (_, details) = run(&job(json!({ "argv": ["printf", "%s|", "$HOME; echo *", "a b"] }))).await;
    assert_eq!(details["stdout"], "$HOME; echo *|a b|");
}

#[tokio::test]
async fn environment_of_daemon_is_not_inherited() {
    let (_folder, path) = folder();
    let secret = path.join("token");
    fs::write(&secret, "s3cret\n").expect("a file is written");
    let environment = json!({
        "GREETING": "hello",
        "TOKEN": { "file": secret },
        "MANIFEST": { "env": "CARGO_PKG_NAME" },
    });
    let found = path.join("environ");
    let argv = json!(["cp", "/proc/self/environ", found]);
    let (result, _) =
        run(&job(json!({ "argv": argv, "environment": environment, "working-directory": "/" }))).await;
    result.expect("it copies");
    // Read from a file, because values are masked in the output.
    let found = fs::read_to_string(found).expect("it was copied");
    let mut names: Vec<_> = found.split_terminator('\0').collect();
    names.retain(|line| !line.starts_with("JOB_RUN_ID="));
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "GREETING=hello",
            "JOB_ATTEMPT=2",
            "JOB_NAME=backup",
            "JOB_REQUEST_ID=backup@1767621600",
            "JOB_SCHEDULED_AT=2026-01-05T14:00:00Z",
            "MANIFEST=billing-kinds",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TOKEN=s3cret",
        ]
    );
    let (_, details) = run(&job(json!({ "argv": ["pwd"], "working-directory": path }))).await;
    let printed = details["stdout"].as_str().expect("text").trim_end();
    assert_eq!(fs::canonicalize(printed).ok(), fs::canonicalize(&path).ok());
}

#[tokio::test]
async fn secrets_are_masked_in_captured_output() {
    let (_folder, path) = folder();
    let file = path.join("key");
    fs::write(&file, "first-line-of-it\nsecond-line-of-it\n").expect("a file is written");
    let environment = json!({
        "TOKEN": "s3cret/t0ken",
        "LOGIN": "https://me:h1dd3n@host/",
        "KEY": { "file": file },
        "DEBUG": "true",
        "SHORT": "abc",
        "LANG": "C.UTF-8",
    });
    for (script, max, out) in [
        ("echo \"$TOKEN\"", 100, "***\n"),
        ("echo $DEBUG $SHORT $LANG", 100, "true abc C.UTF-8\n"),
        ("echo \"$LOGIN\"; echo h1dd3n", 100, "***\n***\n"),
        ("echo \"$KEY\" | sed 's/^/| /'", 100, "| ***\n| ***\n"),
        ("echo s3cret%2Ft0ken 's3cret\\/t0ken'", 100, "*** ***\n"),
        ("printf 'me:%s' \"$TOKEN\" | base64", 100, "bWU***\n"),
        // In two writes, with a cut through it, and with one right before and after it.
        ("printf s3cret; sleep 0.05; printf /t0ken", 100, "***"),
        ("printf 'before s3cret/t0ken'", 5, "***"),
        ("printf 'before s3cret/t0ken after'", 8, "*** after"),
        ("printf 'before s3cret/t0ken'", 12, "***"),
        ("yes s3cret/t0ken | head -n 100000", 3, "***\n"),
    ] {
        let params = json!({ "argv": ["sh", "-c", script], "environment": environment, "max-output": max });
        let (result, details) = run(&job(params)).await;
        assert!(result.is_ok(), "{script}: {result:?}");
        assert_eq!(details["stdout"], out, "{script} with {max} bytes");
    }
    let params = json!({ "argv": ["sh", "-c", "echo \"no access with $TOKEN\" >&2; exit 1"], "environment": environment });
    let error = run(&job(params)).await.0.expect_err("it fails");
    assert_eq!(error.to_string(), "`sh` exited with code 1: no access with ***");
}

#[tokio::test]
async fn exit_code_decides_retry() {
    let none = json!({});
    let retry = json!({ "retry-exit-codes": [4] });
    let fatal = json!({ "fatal-exit-codes": [4, 75] });
    for (codes, script, again) in [
        (&none, "exit 75", true),
        (&none, "exit 4", true),
        (&none, "kill -9 $$", true),
        (&retry, "exit 4", true),
        (&retry, "exit 75", true),
        (&retry, "exit 5", false),
        (&retry, "kill -9 $$", true),
        (&fatal, "exit 4", false),
        (&fatal, "exit 75", false),
        (&fatal, "exit 5", true),
    ] {
        let mut params = codes.clone();
        params["argv"] = json!(["sh", "-c", script]);
        let error = run(&job(params)).await.0.expect_err("it fails");
        assert_eq!(matches!(error, JobError::Retry(_)), again, "{codes} {script}: {error}");
    }
    let (result, _) = run(&job(json!({ "argv": ["/no/such/program"] }))).await;
    let error = result.expect_err("it cannot start");
    assert!(matches!(error, JobError::Fatal(_)), "{error}");
    assert!(error.to_string().starts_with("cannot start `/no/such/program`: "), "{error}");
}

#[tokio::test]
async fn stopped_command_may_end_gracefully() {
    let (_folder, path) = folder();
    let (ready, ended) = (path.join("ready"), path.join("ended"));
    let script = format!(
        "trap 'echo 1 > {ended}; exit 1' TERM; echo $$ > {ready}; while :; do sleep 0.01; done",
        ended = ended.display(),
        ready = ready.display(),
    );
    let (job, ctx) = (shell(&script), context());
    let stop = async {
        let pid = pid_in(&ready).await;
        ctx.stop_handle().stop(StopReason::Drain);
        pid
    };
    let (result, pid) = tokio::join!(job.run(&ctx), stop);
    assert_eq!(result.expect("no failure"), Outcome::Interrupted { items: 0 });
    assert!(ended.exists(), "the program handled SIGTERM");
    assert!(!exists(pid), "no zombie is left");
}

#[tokio::test]
async fn command_ignoring_sigterm_is_killed_with_children() {
    let (_folder, path) = folder();
    let (leader, child) = (path.join("leader"), path.join("child"));
    let script = format!(
        "trap '' TERM; (trap '' TERM; sleep 600 & echo $! > {child}; wait) & echo $$ > {leader}; while :; do sleep 0.01; done",
        child = child.display(),
        leader = leader.display(),
    );
    let job = job(json!({ "argv": ["sh", "-c", script], "stop-grace": "100ms" }));
    let ctx = context();
    let stop = async {
        let pids = (pid_in(&leader).await, pid_in(&child).await);
        ctx.stop_handle().stop(StopReason::Timeout);
        pids
    };
    let (result, (leader, child)) = tokio::join!(job.run(&ctx), stop);
    assert_eq!(result.expect("no failure"), Outcome::Interrupted { items: 0 });
    assert_eq!(ctx.reported()["signal"], 9);
    assert!(!exists(leader), "no zombie is left");
    gone(child).await;
}

#[tokio::test]
async fn background_processes_end_with_command() {
    let (_folder, path) = folder();
    let child = path.join("child");
    let job = shell(&format!("sleep 600 & echo $! > {}; echo done", child.display()));
    let (result, details) = run(&job).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(details["stdout"], "done\n");
    gone(pid_in(&child).await).await;
}

/// The scheduler drops a run when it abandons it, and when the daemon ends.
#[tokio::test]
async fn dropped_run_leaves_no_process() {
    let (_folder, path) = folder();
    let (leader, child) = (path.join("leader"), path.join("child"));
    let script = format!("sleep 600 & echo $! > {}; echo $$ > {}; wait", child.display(), leader.display());
    let job = shell(&script);
    let task = tokio::spawn(async move { job.run(&context()).await });
    let pids = (pid_in(&leader).await, pid_in(&child).await);
    task.abort();
    assert!(task.await.expect_err("it was aborted").is_cancelled());
    gone(pids.0).await;
    gone(pids.1).await;
}

#[test]
fn invalid_parameters_are_reported_with_path() {
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    for (params, expected) in [
        (json!({}), "parameters of kind `command`: missing field `argv`"),
        (
            json!({ "argv": [] }),
            "parameters of kind `command` at `argv`: the program is missing: write for example [\"/usr/bin/true\"]",
        ),
        (
            json!({ "argv": ["a"], "stop-grace": "1m" }),
            "parameters of kind `command` at `stop-grace`: must be at most 25s, because the scheduler abandons the run after 30s",
        ),
        (
            json!({ "argv": ["a"], "environment": { "A": 1 } }),
            "parameters of kind `command` at `environment.A`: invalid type: a number or a boolean, expected text, { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }",
        ),
        (
            json!({ "argv": ["a"], "environment": { "A=B": "s3cret" } }),
            "parameters of kind `command` at `environment.A=B`: `A=B` is not a valid variable name: it must not be empty or contain = or NUL",
        ),
        (
            json!({ "argv": ["a"], "environment": { "A": "s3cret\0" } }),
            "parameters of kind `command` at `environment.A`: the value of a variable must not contain NUL",
        ),
        (
            json!({ "argv": ["a"], "environment": { "A": { "env": "" } } }),
            "parameters of kind `command` at `environment.A`: `env` is not a valid variable name",
        ),
        (
            json!({ "argv": ["a"], "environment": "A=s3cret" }),
            "parameters of kind `command` at `environment`: invalid type: text, expected a table",
        ),
        (
            json!({ "argv": ["a"], "working-directory": "" }),
            "parameters of kind `command` at `working-directory`: invalid folder: write for example \"/var/backups\"",
        ),
        (
            json!({ "argv": ["a"], "max-output": 10_000_000 }),
            "parameters of kind `command` at `max-output`: must be at most 1048576 bytes, because the run history keeps them",
        ),
    ] {
        let error = registry.check("command", params).expect_err("refused").to_string();
        assert_eq!(error, expected);
    }
}

#[test]
fn missing_programs_and_files_have_remarks() {
    let (_folder, path) = folder();
    fs::write(path.join("text"), "").expect("a file is written");
    let mut registry = Registry::new();
    billing_kinds::register(&mut registry);
    let shown = path.display();
    for (params, expected) in [
        (json!({ "argv": ["sh"] }), None),
        (json!({ "argv": ["/bin/sh"] }), None),
        (
            json!({ "argv": ["no-such-program"] }),
            Some("argv.0: no program `no-such-program` in /usr/local/sbin:".to_owned()),
        ),
        (
            json!({ "argv": ["sh"], "environment": { "PATH": path } }),
            Some(format!("argv.0: no program `sh` in {shown}")),
        ),
        (json!({ "argv": ["x"], "environment": { "PATH": { "env": "X" } } }), None),
        (json!({ "argv": [path] }), Some(format!("argv.0: {shown} is not a program"))),
        (json!({ "argv": [path.join("text")] }), Some(format!("argv.0: {shown}/text is not a program"))),
        (
            json!({ "argv": ["./sh"], "working-directory": path }),
            Some(format!("argv.0: {shown}/./sh is not a program")),
        ),
        (
            json!({ "argv": ["./sh"], "working-directory": path.join("none") }),
            Some(format!("working-directory: {shown}/none is not a folder")),
        ),
        (
            json!({ "argv": ["sh"], "environment": { "A": { "file": path.join("none") } } }),
            Some(format!("environment.A: {shown}/none does not exist")),
        ),
    ] {
        let remarks = registry.remarks("command", params.clone(), Duration::from_secs(1));
        let found = remarks.first().map(|remark| format!("{}: {}", remark.path.join("."), remark.message));
        let is_expected = match (&found, &expected) {
            (Some(found), Some(expected)) => found.starts_with(expected),
            (found, expected) => found == expected,
        };
        assert!(is_expected && remarks.len() < 2, "{params}: {remarks:?}");
        assert!(remarks.iter().all(|remark| remark.severity == Severity::Warning), "{params}: {remarks:?}");
    }
}
