//! A database that lost committed batches is detected, and no daemon bills until an operator accepts that.

use std::{
    fs,
    path::{Path, PathBuf},
};

use billing_test_support::{
    Db, Login, Program, Running, connect, eventually, on_every_engine, on_variants, postgres_command,
};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tempfile::TempDir;

use crate::daemon::{STATE, daemon, fetch, seed};

const BILLING: &str = "[[job]]\nname = \"billing\"\nkind = \"billing\"\nschedule = { every = \"1h\" }\n";
/// Bills what a test seeds meanwhile.
const EVERY_SECOND: &str = r#"
[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1s" }
params = { batch-instances = 1, connections = 1, spike-factor = "0" }
"#;
const NEWEST_RUN: &str = "SELECT run_id FROM billing_batches ORDER BY id DESC LIMIT 1";
const HALTED: &str = "billing is halted: ";

/// A database that is backed up once, and restored in place.
struct Restorable<'a> {
    db: &'a Db,
    folder: TempDir,
}

impl<'a> Restorable<'a> {
    fn new(db: &'a Db) -> Self {
        Self { db, folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn backup_file(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    /// The file of the SQLite database.
    fn file(&self) -> PathBuf {
        let path = self.db.url.strip_prefix("sqlite://").and_then(|path| path.strip_suffix("?mode=rwc"));
        PathBuf::from(path.expect("the harness lets the file be created"))
    }

    async fn back_up(&self) {
        let backup = self.backup_file();
        if self.db.backend() == DbBackend::Sqlite {
            // Removed by the restore before.
            self.execute(&format!("VACUUM INTO '{}'", backup.display())).await;
            return;
        }
        let mut dump = postgres_command("pg_dump");
        dump.args(["--format=custom", "--dbname", &self.db.url_for(Login::Admin)]).arg("--file").arg(backup);
        assert!(dump.status().expect("pg_dump runs").success());
    }

    /// Puts the backup in the place of the database, on PostgreSQL under the connections of running daemons.
    fn restore(&self) {
        if self.db.backend() == DbBackend::Sqlite {
            for next_to_it in ["-wal", "-shm"] {
                // The last process that closes the database removes them.
                let _ = fs::remove_file(format!("{}{next_to_it}", self.file().display()));
            }
            fs::rename(self.backup_file(), self.file()).expect("both are in folders of ours");
            return;
        }
        let mut restore = postgres_command("pg_restore");
        restore.args([
            "--clean",
            "--if-exists",
            "--single-transaction",
            "--dbname",
            &self.db.url_for(Login::Admin),
        ]);
        let restored = restore.arg(self.backup_file()).output().expect("pg_restore runs");
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    }

    /// The one value of a query, read through a new connection: those of before may have another file open.
    async fn fetch(&self, sql: &str) -> String {
        let connection = connect(&self.db.url_for(Login::Admin)).await;
        let sql = format!("SELECT coalesce(CAST(({sql}) AS text), '-')");
        let row = connection.query_one_raw(Statement::from_string(self.db.backend(), &sql)).await;
        let row = row.unwrap_or_else(|error| panic!("{error}, in:\n{sql}")).expect("one row");
        connection.close().await.expect("it answers");
        row.try_get_by_index(0).expect("text")
    }

    async fn execute(&self, sql: &str) {
        let connection = connect(&self.db.url_for(Login::Admin)).await;
        connection.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"));
        connection.close().await.expect("it answers");
    }

    async fn charges(&self) -> String {
        self.fetch("SELECT count(*) || ' of ' || count(DISTINCT instance_id) FROM billing_charges").await
    }

    async fn until_charged(&self, instances: usize) {
        let expected = format!("{instances} of {instances}");
        eventually("all are charged", async || (self.charges().await == expected).then_some(())).await;
    }

    async fn runs(&self, condition: &str) -> u64 {
        let count = format!("SELECT count(*) FROM scheduler_runs WHERE job = 'billing' AND {condition}");
        self.fetch(&count).await.parse().expect("a number")
    }

    /// Waits for further runs, each of which fails.
    async fn until_runs_fail(&self) {
        let before = self.runs("error LIKE 'billing is halted%'").await;
        eventually("runs fail", async || {
            (self.runs("error LIKE 'billing is halted%'").await > before + 2).then_some(())
        })
        .await;
    }

    fn program(&self) -> Program {
        daemon(self.db, &[STATE, EVERY_SECOND])
    }

    /// A daemon that has noted the newest batch, and is stopped.
    async fn noting(&self) -> Program {
        let program = self.program();
        let running = program.start("run");
        let newest = self.fetch(NEWEST_RUN).await;
        eventually("it notes the newest batch", async || {
            (noted(program.folder()).as_deref() == Some(&newest)).then_some(())
        })
        .await;
        running.terminated().await.expect_code(0);
        program
    }

    /// A database with five instances, of which three are charged after the backup; returns the daemon that did it, stopped.
    async fn billed_after_backup(&self) -> Program {
        let program = self.program();
        let running = program.start("run");
        seed(self.db, 2).await;
        self.until_charged(2).await;
        running.terminated().await.expect_code(0);
        seed(self.db, 3).await;
        self.back_up().await;
        let running = program.start("run");
        self.until_charged(5).await;
        running.terminated().await.expect_code(0);
        program
    }

    /// Every hour is charged once, relative to the restored database.
    async fn check_all_charged_once(&self) {
        self.until_charged(5).await;
        let balances = "SELECT min(CAST(balance AS text)) || ' ' || max(CAST(balance AS text)) FROM wallets";
        let balance = if self.db.backend() == DbBackend::Sqlite { "999700" } else { "99.9700" };
        assert_eq!(self.fetch(balances).await, format!("{balance} {balance}"));
        self.program().run("audit").await.expect_code(0);
    }
}

/// The run of the noted batch in a state folder. The number alone is used again after a restore.
fn noted(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("last-commit.json")).ok()?;
    let notes: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let note = notes.as_object()?.values().next()?;
    note["batch"]["run"].as_str().map(str::to_owned)
}

async fn until_halted(daemons: &[&Running]) {
    for daemon in daemons {
        daemon.wait_for_line(HALTED).await;
    }
}

/// Each daemon has noted the newest batch, also the one that did not bill. A daemon without a note does not bill either.
async fn restored_database_halts_every_daemon(db: &Db) {
    let site = Restorable::new(db);
    let biller = site.billed_after_backup().await;
    let standby = site.noting().await;
    site.restore();

    let running = [standby.start("run"), biller.start("run")];
    until_halted(&[&running[0], &running[1]]).await;
    let without_note = site.program().start("run");
    until_halted(&[&without_note]).await;
    site.until_runs_fail().await;
    assert_eq!(site.charges().await, "2 of 2");
    // The lease may be that of a daemon.
    let refused = eventually("the command gets the lease", async || {
        let ended = biller.run("bill").await;
        (ended.code != Some(75)).then_some(ended)
    });
    let refused = refused.await.expect_code(78);
    assert!(refused.text().contains(HALTED), "{}", refused.text());
    biller.run("jobs resume billing").await;
    biller.run("bill --dry-run").await.expect_code(0);
    let status = biller.run("status").await.expect_code(1);
    assert!(status.text().contains("billing-daemon accept-restore"), "{}", status.text());
    assert!(status.out[0].contains("halted"), "{}", status.text());
    assert_eq!(site.charges().await, "2 of 2");

    // From any host, with or without a state folder.
    let accepted = daemon(db, &[EVERY_SECOND]).run("accept-restore").await.expect_code(0);
    assert!(accepted.out[0].starts_with("accepted: batch 5 of "), "{}", accepted.text());
    assert!(
        accepted.out[0].contains(" is missing; the database ends with batch 2 of "),
        "{}",
        accepted.text()
    );
    site.check_all_charged_once().await;
    for running in running.into_iter().chain([without_note]) {
        running.terminated().await.expect_code(0);
    }
    biller.run("status").await;
    assert_eq!(site.fetch("SELECT count(halt) FROM scheduler_fencing").await, "0");
}

/// A daemon that was stopped meanwhile returns with a note from before the restore.
async fn accepted_restore_is_not_found_again(db: &Db) {
    let site = Restorable::new(db);
    let biller = site.billed_after_backup().await;
    let absent = site.noting().await;
    site.restore();
    let running = biller.start("run");
    until_halted(&[&running]).await;
    biller.run("accept-restore").await.expect_code(0);
    site.check_all_charged_once().await;
    running.terminated().await.expect_code(0);

    let running = absent.start("run");
    let newest = site.fetch(NEWEST_RUN).await;
    eventually("it takes a new note", async || {
        (noted(absent.folder()).as_deref() == Some(&newest)).then_some(())
    })
    .await;
    running.terminated().await.expect_code(0);
    assert_eq!(site.fetch("SELECT count(halt) FROM scheduler_fencing").await, "0");
    assert_eq!(site.runs("status = 'dead'").await, site.runs("error LIKE 'billing is halted%'").await);

    // The new note counts: the next loss is found.
    db_lacks_newest_batch(&site).await;
    let running = absent.start("run");
    until_halted(&[&running]).await;
    running.terminated().await.expect_code(0);
}

/// As after a fail-over to a standby that lacks the last commit.
async fn db_lacks_newest_batch(site: &Restorable<'_>) {
    site.execute("DELETE FROM billing_batches WHERE id = (SELECT max(id) FROM billing_batches)").await;
}

/// A daemon that did not bill has noted a commit that is lost, and the number of the lost batch is used again.
async fn lost_commit_with_reused_number_is_found(db: &Db) {
    let site = Restorable::new(db);
    let biller = site.billed_after_backup().await;
    let standby = site.noting().await;
    site.restore();
    // A daemon without a note bills the lost hours under the same numbers before the others start.
    let stranger = site.program().start("run");
    site.until_charged(5).await;
    stranger.terminated().await.expect_code(0);
    assert_eq!(site.fetch("SELECT max(id) FROM billing_batches").await, "5");

    let running = standby.start("run");
    until_halted(&[&running]).await;
    running.terminated().await.expect_code(0);
    biller.run("accept-restore").await.expect_code(0);
    biller.run("bill").await.expect_code(0);
    site.check_all_charged_once().await;
}

on_every_engine!(
    restored_database_halts_every_daemon,
    accepted_restore_is_not_found_again,
    lost_commit_with_reused_number_is_found,
    missing_batch_ends_run_in_progress,
);

/// A daemon has checked before the database lost its batch, and would bill after that.
async fn missing_batch_ends_run_in_progress(db: &Db) {
    seed(db, 3).await;
    let daemon = daemon(db, &[STATE, EVERY_SECOND]).env("BILLING_LINGER_MS", "700").start("run");
    let batches = "SELECT count(*) FROM billing_batches";
    eventually("the first batch is posted", async || (fetch(db, batches).await == "1").then_some(())).await;
    // The next transaction has not begun: the daemon waits before it.
    db.execute("DELETE FROM billing_batches").await;
    until_halted(&[&daemon]).await;
    daemon.terminated().await.expect_code(0);
    assert_eq!(fetch(db, "SELECT count(*) FROM billing_charges").await, "1");
}

/// Under the connections of two daemons that are running.
async fn restore_under_running_daemons_halts_them(db: &Db) {
    let site = Restorable::new(db);
    let biller = site.billed_after_backup().await;
    let before = site.runs("status = 'done'").await;
    let running = [biller.start("run"), site.program().start("run")];
    for daemon in &running {
        daemon.wait_for_line("runs billing as").await;
    }
    // One of the two may win every claim.
    eventually("billing runs", async || (site.runs("status = 'done'").await > before).then_some(())).await;
    site.restore();
    site.until_runs_fail().await;
    site.until_runs_fail().await;
    assert_eq!(site.charges().await, "2 of 2");
    biller.run("accept-restore").await.expect_code(0);
    site.check_all_charged_once().await;
    for running in running {
        running.terminated().await.expect_code(0);
    }
}

/// A sequence continues 32 numbers later after a crash of the server, and other rows follow.
async fn sequence_jump_is_not_a_restore(db: &Db) {
    let program = daemon(db, &[STATE, EVERY_SECOND]);
    seed(db, 2).await;
    program.run("bill").await.expect_code(0);
    db.execute("SELECT setval(pg_get_serial_sequence('billing_batches', 'id'), 323)").await;
    program.run("bill").await.expect_code(0);
    seed(db, 1).await;
    program.run("bill").await.expect_code(0);
    program.run("bill").await.expect_code(0);
    assert_eq!(fetch(db, "SELECT max(id) FROM billing_batches").await, "324");
    assert_eq!(fetch(db, "SELECT count(halt) FROM scheduler_fencing").await, "0");
}

on_variants!(restore_under_running_daemons_halts_them: postgres, g3_role);
on_variants!(sequence_jump_is_not_a_restore: postgres);

/// A file that is replaced, or removed and created again, while a daemon has it open.
#[tokio::test]
async fn replaced_sqlite_file_ends_daemon() {
    for is_removed in [false, true] {
        let db = Db::sqlite().await;
        let site = Restorable::new(&db);
        let program = site.billed_after_backup().await;
        let running = program.start("run");
        running.wait_for_line("job `billing` done").await;
        if is_removed {
            fs::remove_file(site.file()).expect("it exists");
        } else {
            site.restore();
        }
        let ended = running.ended().await.expect_code(75);
        assert!(ended.text().contains("is no longer the file that this process opened"), "{}", ended.text());
        if !is_removed {
            let running = program.start("run");
            until_halted(&[&running]).await;
            assert_eq!(site.charges().await, "2 of 2");
            program.run("accept-restore").await.expect_code(0);
            site.check_all_charged_once().await;
            running.terminated().await.expect_code(0);
        }
    }
}

#[tokio::test]
async fn copy_under_another_url_is_found() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &[STATE, BILLING]);
    let backup = program.folder().join("backup.db");
    let charges = "SELECT count(*) FROM billing_charges";

    seed(&db, 2).await;
    program.run("bill").await.expect_code(0);
    db.execute(&format!("VACUUM INTO '{}'", backup.display())).await;
    seed(&db, 3).await;
    program.run("bill").await.expect_code(0);
    assert_eq!(fetch(&db, charges).await, "5");

    let restored = program.clone().env("DATABASE_URL", &format!("sqlite://{}", backup.display()));
    let refused = restored.run("bill").await.expect_code(78);
    assert!(refused.text().contains("had noted batch 2 of "), "{}", refused.text());
    assert!(refused.text().contains("billing-daemon accept-restore"), "{}", refused.text());
    restored.run("bill --dry-run").await.expect_code(0);
    restored.run("accept-restore").await.expect_code(0);
    restored.run("bill").await.expect_code(0);
    restored.run("audit").await.expect_code(0);
    // The note of the original is still its own.
    program.run("bill").await.expect_code(0);
}

#[tokio::test]
async fn unreadable_state_file_is_an_error() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &[STATE, BILLING]).file("last-commit.json", "{ torn");
    let refused = program.run("bill").await.expect_code(78);
    assert!(refused.text().contains("cannot read ./last-commit.json"), "{}", refused.text());
    assert_eq!(fetch(&db, "SELECT count(*) FROM billing_batches").await, "0");
}
