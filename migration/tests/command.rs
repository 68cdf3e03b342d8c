//! The binary, as `sea-orm-cli migrate` and a person run it.

use std::process::{Command, Output};

use tempfile::TempDir;

fn migration(args: &[&str], url: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migration"));
    command.args(args).env_remove("DATABASE_URL").env_remove("DATABASE_SCHEMA");
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    command.output().expect("the binary was built for this test")
}

/// What a command ends with and says, on whichever of the two streams.
#[track_caller]
fn check(args: &[&str], url: Option<&str>, code: i32, said: &str) {
    let output = migration(args, url);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("it says text");
    assert_eq!((output.status.code(), text.as_str()), (Some(code), said), "{args:?}");
}

#[test]
fn a_database_goes_up_and_down() {
    let dir = TempDir::new().expect("the system has a folder for temporary files");
    let url = format!("sqlite://{}", dir.path().join("new.db").display());
    let url = Some(url.as_str());
    let first = "m20261122_000001_panel_tables";
    let second = "m20261122_000002_scheduler_tables";
    let third = "m20261122_000003_billing_tables";

    check(&["up", "-n", "1"], url, 0, &format!("applied {first}\n"));
    let table = format!(
        "migration                          state\n{first}      applied\n{second}  pending\n{third}    pending\n"
    );
    check(&["status"], url, 0, &table);
    check(&[], url, 0, &format!("applied {second}\napplied {third}\n"));
    check(&["up"], url, 0, "nothing to do\n");
    check(&["down", "-n", "1"], url, 0, &format!("undone {third}\n"));
    check(&["down", "--num", "9"], url, 0, &format!("undone {second}\nundone {first}\n"));
    check(&["down"], url, 0, "nothing to do\n");
}

#[test]
fn reading_commands_create_no_file() {
    let dir = TempDir::new().expect("the system has a folder for temporary files");
    let file = dir.path().join("new.db");
    let url = format!("sqlite://{}?mode=rwc", file.display());
    for command in ["status", "down"] {
        assert_eq!(migration(&[command], Some(&url)).status.code(), Some(69), "{command}");
        assert!(!file.exists(), "{command}");
    }
    assert_eq!(migration(&["up"], Some(&url)).status.code(), Some(0));
    assert!(migration(&["status"], Some(&url)).status.success());
}

#[test]
fn without_a_database_it_says_what_to_set() {
    let said = "error: no database: set DATABASE_URL, or give one with --database-url\n";
    check(&["up"], None, 78, said);
    check(&["status"], Some(""), 78, said);
}

#[test]
fn what_would_drop_the_panels_tables_is_refused() {
    let url = Some("sqlite::memory:");
    for name in ["fresh", "refresh", "reset"] {
        let said = format!(
            "error: `{name}` is refused, because this database also holds the panel's tables: undo what is ours \
             with `down`\n"
        );
        check(&[name], url, 64, &said);
    }
    let said = "error: migrations are written by hand: add a file beside those in migration/src\n";
    check(&["init"], url, 64, said);
    check(&["generate", "more"], url, 64, said);
}

#[test]
fn a_bad_call_or_database_has_its_own_exit_code_and_keeps_the_password() {
    for (args, url, code) in [
        (["sideways"], "sqlite::memory:", 64),
        (["up"], "oracle://me:s3cret@localhost/panel", 78),
        (["up"], "postgres://me:s3cret@localhost:port/panel", 78),
        (["up"], "postgres://me:s3cret@no-such-host.invalid/panel", 69),
        (["status"], "sqlite:///no/such/folder/billing.db", 69),
    ] {
        let output = migration(&args, Some(url));
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("it says text");
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}
