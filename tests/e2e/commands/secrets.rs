//! The password of the database is in no output of any command, whatever happens.

use std::{fs, os::unix::fs::PermissionsExt};

use billing_test_support::{Db, Login, Postgres, eventually, on_every_engine, process::Signal};
use sea_orm::ConnectOptions;

use super::{
    doctor::unpacked,
    http::{address, get},
};
use crate::daemon::{BILLING, HEARTBEAT, TICK, daemon, fetch, job, program, rows, seed};

const JOBS: [&str; 3] = [BILLING, HEARTBEAT, TICK];
/// With characters that a URL must escape.
const PASSWORD: &str = r#"c4n4ry"/h1dd3n"#;
const WRITTEN: &str = "c4n4ry%22%2Fh1dd3n";

/// Fails the test if any part of the password is in a text.
#[track_caller]
fn check_silent(what: &str, text: &str) {
    for part in ["c4n4ry", "h1dd3n"] {
        assert!(!text.contains(part), "{what} contains the password:\n{text}");
    }
}

/// A role that needs the password: the server of the tests trusts every other role.
async fn guarded(db: &Db) {
    db.execute(&format!("CREATE ROLE keeper LOGIN PASSWORD '{PASSWORD}' IN ROLE billing_run")).await;
    let file = Postgres::server().folder().join("data/pg_hba.conf");
    let rules = fs::read_to_string(&file).expect("the server's rules are read");
    let rule = "host all keeper 127.0.0.1/32 scram-sha-256\n";
    fs::write(&file, [rule, &rules].concat()).expect("the server's rules are written");
    db.execute("SELECT pg_reload_conf()").await;
    let open = db.url_for(Login::Billing).replace("billing_run@", "keeper@");
    eventually("the rule is in force", async || {
        let mut options = ConnectOptions::new(&open);
        options.max_connections(1).sqlx_logging(false);
        sea_orm::Database::connect(options).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn commands_never_print_password() {
    let db = Db::g1_role().await;
    seed(&db, 2).await;
    guarded(&db).await;
    let url = db.url_for(Login::Billing).replace("billing_run@", &format!("keeper:{WRITTEN}@"));
    let right = program().env("DATABASE_URL", &url).env("LOG_LEVEL", "trace,sqlx=trace,sea_orm=trace");
    let right = right.file("jobs.toml", &JOBS.concat());
    for format in ["text", "json"] {
        let running = right.start(&format!("run --log-format {format}"));
        running.wait_for_line("job `tick` done").await;
        let ended = running.terminated().await.expect_code(0);
        check_silent("run", &ended.text());
        for command in ["bill", "bill --json", "bill --dry-run", "audit --json", "check", "migrate status"] {
            let ended = right.run(&format!("{command} --log-format {format}")).await.expect_code(0);
            check_silent(command, &ended.text());
        }
        // The role may not migrate.
        let ended = right.run(&format!("migrate down --yes --log-format {format}")).await.expect_code(77);
        check_silent("migrate down", &ended.text());
    }

    let closed = url.replace(&format!(":{}/", Postgres::server().port()), ":1/");
    let elsewhere = format!("{url}_not");
    let wrong = url.replace(WRITTEN, &format!("{WRITTEN}-not"));
    let option =
        db.url_for(Login::Billing).replace("billing_run@", "keeper@") + "?password=" + WRITTEN + "-not";
    for (what, url) in
        [("no server", &closed), ("no database", &elsewhere), ("wrong", &wrong), ("wrong option", &option)]
    {
        let program = program().env("DATABASE_URL", url).env("LOG_LEVEL", "trace,sqlx=trace,sea_orm=trace");
        let program = program.file("jobs.toml", &JOBS.concat());
        for command in ["migrate status", "migrate up"] {
            let ended = program.run(command).await;
            assert_ne!(ended.code, Some(0), "{what}");
            assert!(ended.text().contains("cannot open postgres://keeper"), "{what}: {}", ended.text());
            check_silent(what, &ended.text());
        }
        for command in ["run", "bill", "audit"] {
            let running = program.start(command);
            running.wait_for_line("cannot open postgres://keeper").await;
            // It may have ended already.
            let _ = running.try_signal(Signal::TERM);
            check_silent(what, &running.ended().await.text());
        }
        let ended = program.run("check").await.expect_code(0);
        check_silent(what, &ended.text());
    }
}

#[tokio::test]
async fn panics_and_process_list_hide_password() {
    let db = Db::g1_role().await;
    let url = db.url_for(Login::Billing).replace("billing_run@", &format!("billing_run:{WRITTEN}@"));
    let leaks = job("leaks", "test.leaks-secret", "1s", "run-at-start = true");
    let jobs = [&leaks, HEARTBEAT].concat();
    for backtrace in ["0", "1"] {
        let program =
            program().env("DATABASE_URL", &url).env("RUST_BACKTRACE", backtrace).file("jobs.toml", &jobs);
        let running = program.start("run");
        running.wait_for_line("panicked at").await;
        running.wait_for_line("the job panicked: cannot continue with postgres://billing_run:***@").await;
        check_silent("a panic", &running.terminated().await.expect_code(0).text());
    }
    let program = program().file("url", &url).file("jobs.toml", &[HEARTBEAT, TICK].concat());
    let file = program.folder().join("url");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our own file");
    let running = program.env("DATABASE_URL_FILE", &file.display().to_string()).start("run");
    running.wait_for_line("job `tick` done").await;
    for list in ["cmdline", "environ", "comm"] {
        let shown = fs::read(format!("/proc/{}/{list}", running.pid())).expect("a process of ours");
        check_silent(list, &String::from_utf8_lossy(&shown));
    }
    check_silent("run", &running.terminated().await.expect_code(0).text());
}

/// A program and a server that show all that they are given: as it is, encoded, and on several lines.
const LEAKING: &str = r#"
[http]
listen = "127.0.0.1:0"

[[job]]
name = "program"
kind = "command"
schedule = { every = "365d" }
run-at-start = true
retry = { max-attempts = 1 }
ping = { url = "http://127.0.0.1:1/c4n4ry-of-a-ping" }
[job.params]
argv = ["sh", "-c", """
  for value in "$INLINE" "$VARIABLE" "$FILE"; do
    echo "$value"; echo "$value" >&2; echo "$value" | base64; printf 'user:%s' "$value" | base64
  done
  echo c4n4ry%20of%20the%20environment%2F
  echo "denied: $VARIABLE" >&2; exit 3"""]
environment.INLINE = "c4n4ry/inline"
environment.VARIABLE = { env = "HANDED_OVER" }
environment.FILE = { file = "handed-over" }

[[job]]
name = "server"
kind = "http"
schedule = { every = "365d" }
run-at-start = true
retry = { max-attempts = 1 }
[job.params]
url = "http://c4n4ry-user:h1dd3n-password@SERVER/c4n4ry/path?key=h1dd3n-query"
method = "POST"
headers = { Authorization = "Bearer c4n4ry-bearer", X-File = { env = "HANDED_OVER" } }
body = { file = "body" }

[[job]]
name = "leaks"
kind = "test.leaks-secret"
schedule = { every = "365d" }
run-at-start = true
retry = { max-attempts = 1 }
"#;

/// Responds to each request with the request itself and status 400.
async fn echoing_server() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it has one").to_string();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // The last bytes of the only body that a test sends.
            while !request.ends_with(b"}\n") {
                let mut chunk = [0; 4096];
                match stream.read(&mut chunk).await {
                    Ok(read @ 1..) => request.extend_from_slice(&chunk[..read]),
                    _ => break,
                }
            }
            let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n", request.len());
            // A client that has ended reads no response.
            let _ = stream.write_all(&[head.into_bytes(), request].concat()).await;
        }
    });
    address
}

async fn passed_values_are_never_printed(db: &Db) {
    let jobs = LEAKING.replace("SERVER", &echoing_server().await);
    let url = match db.backend() {
        sea_orm::DbBackend::Sqlite => db.url.clone(),
        _ => db.url.replacen('@', &format!(":{WRITTEN}@"), 1),
    };
    for format in ["text", "json"] {
        let program = daemon(db, &[&jobs, BILLING, HEARTBEAT])
            .env("DATABASE_URL", &url)
            .env("LOG_LEVEL", "debug")
            .env("HANDED_OVER", "c4n4ry of the environment/")
            .file("handed-over", "c4n4ry of a file\nwith h1dd3n lines\n")
            .file("body", "{\"key\": \"h1dd3n-body\"}\n\n");
        let running = program.start(&format!("run --log-format {format}"));
        let address = address_of(&running, format).await;
        let ended = "SELECT count(*) FROM scheduler_runs WHERE job IN ('program', 'server', 'leaks') AND status = 'dead'";
        eventually("all have failed", async || (fetch(db, ended).await == "3").then_some(())).await;
        for path in ["/api/runs", "/api/jobs", "/api/status", "/metrics", "/readyz"] {
            check_silent(path, &get(&address, path).await.body);
        }
        for command in [
            "runs list --json",
            "jobs list --json",
            "jobs show program",
            "jobs show server",
            "status",
            "check",
        ] {
            check_silent(command, &program.run(command).await.text());
        }
        let bundled = program.run("doctor --bundle support.tar.gz").await;
        check_silent("doctor", &bundled.text());
        for (name, text) in unpacked(&program, &program.folder().join("support.tar.gz")) {
            check_silent(&name, &text);
        }
        let shown = running.terminated().await.expect_code(0).text();
        check_silent("run", &shown);
        assert!(shown.contains("denied: ***"), "what is no secret is shown: {shown}");
        assert!(shown.contains("returned status 400: POST ***"), "{shown}");
        let stored =
            rows(db, "coalesce(error, '') || coalesce(CAST(details AS text), '') FROM scheduler_runs").await;
        assert!(stored.iter().any(|row| row.contains("denied: ***")), "{stored:?}");
        check_silent("the history", &stored.concat());
        check_silent("the jobs", &rows(db, "coalesce(last_error, '') FROM scheduler_jobs").await.concat());
        db.execute("DELETE FROM scheduler_runs; DELETE FROM scheduler_jobs").await;
    }
}

async fn address_of(daemon: &billing_test_support::Running, format: &str) -> String {
    if format == "text" {
        return address(daemon).await;
    }
    let line = daemon.wait_for_line("listening for HTTP on ").await;
    let event: serde_json::Value = serde_json::from_str(&line).expect("an object");
    let message = event["message"].as_str().expect("text");
    message.rsplit_once(' ').expect("an address ends the line").1.to_owned()
}

on_every_engine!(passed_values_are_never_printed);

#[tokio::test]
async fn log_file_hides_password() {
    let db = Db::g1_role().await;
    let url = db.url_for(Login::Billing).replace("billing_run@", &format!("billing_run:{WRITTEN}@"));
    let leaks = job("leaks", "test.leaks-secret", "1s", "run-at-start = true");
    let program = program().env("DATABASE_URL", &url).file("jobs.toml", &leaks);
    let running = program.start("run --log-file log");
    let file = program.folder().join("log");
    let masked = "the job panicked: cannot continue with postgres://billing_run:***@";
    let has_it = async || fs::read_to_string(&file).ok().filter(|log| log.contains(masked));
    eventually("the log has the panic", has_it).await;
    check_silent("a daemon", &running.terminated().await.expect_code(0).text());
    check_silent("the log", &fs::read_to_string(&file).expect("text"));
}

#[tokio::test]
async fn world_readable_secret_file_is_rejected() {
    let db = Db::g1_role().await;
    let url = db.url_for(Login::Billing).replace("billing_run@", &format!("billing_run:{WRITTEN}@"));
    let in_config = format!("[daemon]\ndatabase-url = \"{url}\"\n{BILLING}{HEARTBEAT}");
    let jobs = [BILLING, HEARTBEAT].concat();
    let cases = [
        ("url", program().file("url", &url).file("jobs.toml", &jobs)),
        ("database-url", program().file("database-url", &url).file("jobs.toml", &jobs)),
        (".env", program().file(".env", &format!("DATABASE_URL={url}\n")).file("jobs.toml", &jobs)),
        ("jobs.toml", program().file("jobs.toml", &in_config)),
    ];
    for (name, program) in cases {
        let file = program.folder().join(name);
        let folder = program.folder().display().to_string();
        let program = match name {
            "url" => program.env("DATABASE_URL_FILE", &file.display().to_string()),
            "database-url" => program.env("CREDENTIALS_DIRECTORY", &folder),
            _ => program,
        };
        let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("our own file");
        for command in ["check", "status", "audit"] {
            mode(0o644);
            let ended = program.run(command).await.expect_code(78);
            let message = format!("{name} contains a secret and has mode 0644");
            assert!(ended.text().contains(&message), "{command}: {}", ended.text());
            check_silent(name, &ended.text());
            let ended = program.run(&format!("{command} --allow-readable-secrets")).await;
            assert_ne!(ended.code, Some(78), "{command}: {}", ended.text());
            mode(0o640);
            let ended = program.run(command).await;
            assert_ne!(ended.code, Some(78), "{command}: {}", ended.text());
            check_silent(name, &ended.text());
        }
    }
}

#[tokio::test]
async fn diagnostics_hide_password() {
    for text in [
        "database-url = \"postgres://me:c4n4ry-h1dd3n@db:port/panel\"",
        "database-url = \"postgres://me:c4n4ry/h1dd3n@db/panel\"",
        "database-url = \"postgres://me:c4n4ry#h1dd3n@db/panel\"",
        "database-url = \"mysql://me:c4n4ry-h1dd3n@db/panel\"",
        "database-url = \"postgres://me:c4n4ry-h1dd3n@db/panel",
        "database-url = postgres://me:c4n4ry-h1dd3n@db/panel",
        "database-url = [\"postgres://me:c4n4ry-h1dd3n@db/panel\"]",
        "databaseurl = \"postgres://me:c4n4ry-h1dd3n@db/panel\"",
        "log-level = \"loud\"\ndatabase-url = \"postgres://me:c4n4ry-h1dd3n@db/panel\"",
    ] {
        let program = program().file("jobs.toml", &format!("[daemon]\n{text}\n{BILLING}"));
        for command in ["check", "run", "bill", "audit", "migrate status"] {
            let ended = program.run(command).await.expect_code(78);
            check_silent(command, &ended.text());
        }
    }
    for url in
        ["postgres://me:c4n4ry-h1dd3n@db:port/panel", "c4n4ry-h1dd3n", "postgres://me:c4n4ry h1dd3n@db/panel"]
    {
        let as_variable = program().env("DATABASE_URL", url).file("jobs.toml", BILLING);
        let as_file = program().file(".env", &format!("DATABASE_URL={url}\n")).file("jobs.toml", BILLING);
        let malformed = program().file(".env", &format!("DATABASE_URL '{url}\n")).file("jobs.toml", BILLING);
        for program in [as_variable, as_file, malformed] {
            for command in ["check", "audit"] {
                let ended = program.run(command).await.expect_code(78);
                check_silent(command, &ended.text());
            }
        }
    }
    let url = "postgres://me:c4n4ry-h1dd3n@db:port/panel";
    let ended = program().run(&format!("demo --database-url {url}")).await.expect_code(78);
    check_silent("demo", &ended.text());
}

/// An error in a command line is reported without what may be a password.
#[tokio::test]
async fn unexpected_argument_is_not_repeated() {
    let url = "postgres://me:s3cret@db/panel";
    for arguments in [
        format!("bill {url}"),
        url.to_owned(),
        format!("migrate {url}"),
        format!("demo --instances {url}"),
        format!("demo --instances={url}"),
        "bill host=db password=s3cret".to_owned(),
    ] {
        let refused = program().run(&arguments).await.expect_code(64);
        assert!(!refused.text().contains("s3cret"), "{}", refused.text());
        assert!(refused.text().contains("error: "), "{}", refused.text());
    }
}
