//! Configuration files that would block their reader, or fill its memory.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use billing_test_support::{Db, HangingMount, Running, eventually, process::Signal};
use rustix::fs::{CWD, Mode, mkfifoat};

use super::{TICK, daemon};

/// Puts something at a path that is not a configuration file.
type Obstacle = fn(&Path);

const NOT_REGULAR: &str = "it is a pipe, a device or a socket, not a regular file";
/// What is there, and how the error describes it.
const OBSTACLES: [(Obstacle, &str); 3] =
    [(pipe, NOT_REGULAR), (endless, NOT_REGULAR), (large, "it is larger than 1 MiB")];
const HANGS: &str = "its file system does not respond";

/// Without a writer, its reader waits.
fn pipe(path: &Path) {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).expect("our own folder");
}

fn endless(path: &Path) {
    symlink("/dev/zero", path).expect("our own folder");
}

fn large(path: &Path) {
    fs::write(path, "#".repeat(2 << 20)).expect("our own folder");
}

#[tokio::test]
async fn start_rejects_irregular_files() {
    let db = Db::sqlite().await;
    for (obstacle, error) in OBSTACLES {
        for (file, expected) in [
            ("jobs.toml", format!("error: cannot read jobs.toml: {error}")),
            (".env", format!(".env: cannot be read: {error}")),
            ("url", format!("url: cannot be read: {error}")),
        ] {
            let program = daemon(&db, &[TICK]);
            let program = if file == "url" {
                program.env("DATABASE_URL", "").env("DATABASE_URL_FILE", "url")
            } else {
                program
            };
            let path = program.folder().join(file);
            let _ = fs::remove_file(&path);
            obstacle(&path);
            let ended = program.run("run").await.expect_code(78);
            assert!(ended.err.contains(&expected), "{expected} is not in: {}", ended.text());
        }
    }
}

#[tokio::test]
async fn reload_rejects_irregular_files() {
    let db = Db::sqlite().await;
    for (obstacle, error) in OBSTACLES {
        let program = daemon(&db, &[TICK]);
        let running = program.start("run");
        running.wait_for_line(" runs ").await;
        let [next, jobs] = ["next", "jobs.toml"].map(|name| program.folder().join(name));
        obstacle(&next);
        fs::rename(&next, &jobs).expect("our own folder");
        running.wait_for_line(&format!("jobs.toml: cannot be read: {error}")).await;
        running.wait_for_line("jobs.toml has 1 problem; everything stays as it was").await;
        until_ticked_again(&running).await;
        fs::write(&next, TICK.replace("\"1s\"", "\"2s\"")).expect("our own folder");
        fs::rename(&next, &jobs).expect("our own folder");
        running.wait_for_line("jobs.toml is in force").await;
        let ended = running.terminated().await.expect_code(0);
        let times = ended.text().matches("everything stays as it was").count();
        assert_eq!(times, 1, "it is reported once: {}", ended.text());
    }
}

#[tokio::test]
async fn start_reports_hanging_file_system() {
    let Some(mount) = HangingMount::new() else { return };
    let db = Db::sqlite().await;
    for (option, code) in [("--config", 75), ("--env-file", 78)] {
        let program = daemon(&db, &[TICK]);
        let run = format!("run {option} {}", mount.file("input").display());
        let ended = program.run(&run).await.expect_code(code);
        assert!(ended.text().contains(HANGS), "{option}: {}", ended.text());

        let running = program.start(&run);
        until_it_reads(&running).await;
        let ended = running.terminated().await;
        assert_eq!((ended.code, ended.text().as_str()), (None, ""), "the signal ended it while it waited");
    }
}

#[tokio::test]
async fn hanging_reload_delays_nothing() {
    let Some(mount) = HangingMount::new() else { return };
    let db = Db::sqlite().await;
    for is_reported in [true, false] {
        let program = daemon(&db, &[TICK]);
        let link = program.folder().join("link.toml");
        symlink("jobs.toml", &link).expect("our own folder");
        let running = program.start("run --config link.toml");
        running.wait_for_line(" runs ").await;
        let next = program.folder().join("next");
        symlink(mount.file("jobs.toml"), &next).expect("our own folder");
        fs::rename(&next, &link).expect("our own folder");
        if is_reported {
            running.wait_for_line(&format!("link.toml cannot be inspected: {HANGS}")).await;
            running.signal(Signal::HUP);
            running.wait_for_line(&format!("link.toml: cannot be read: {HANGS}")).await;
            running.wait_for_line("link.toml has 1 problem; everything stays as it was").await;
            until_ticked_again(&running).await;
        } else {
            until_it_reads(&running).await;
        }
        running.terminated().await.expect_code(0);
    }
}

async fn until_ticked_again(running: &Running) {
    let before = running.lines_with("tick of ").len();
    running.wait_for_lines("tick of ", before + 3).await;
}

/// Waits until a thread of the program reads a file.
async fn until_it_reads(running: &Running) {
    let threads = PathBuf::from(format!("/proc/{}/task", running.pid()));
    let reads = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim_end() == "file")
    };
    eventually("it reads a file", async || {
        let mut threads = fs::read_dir(&threads).ok()?.flatten();
        threads.any(|thread| reads(&thread)).then_some(())
    })
    .await;
}
