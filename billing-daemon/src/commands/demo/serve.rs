//! `demo --serve`: the demo's fleet with a history of its jobs, a daemon that runs them, and its console.

use std::{collections::BTreeSet, fs, net::TcpListener, path::Path, time::Duration};

use chrono::{DateTime, Timelike as _, Utc};
use serde_json::json;

use super::{DemoArgs, DemoDatabase, history, prepare};
use crate::{
    commands::{console::new_token, session::Session},
    console::Right,
    exit::{Exit, Failure},
    host::identity::Identity,
    output::{json as say_json, line as say},
    runtime::{self, reload::ConfigFile},
    telemetry::mask::Concealed,
};

/// How often the start of the server is checked.
const POLL: Duration = Duration::from_millis(50);

/// The configuration of the demo's daemon: what a new installation runs, and a console for one person.
fn config(port: u16, last_run: DateTime<Utc>) -> String {
    // Billing keeps the minute of its history.
    let minute = last_run.minute();
    let job = |name: &str, every: &str, more: &str| {
        let offset =
            if name == "billing" && minute > 0 { format!(", offset = \"{minute}m\"") } else { String::new() };
        format!(
            "[[job]]\nname = \"{name}\"\nkind = \"{name}\"\nschedule = {{ every = \"{every}\"{offset} }}\n{more}\n"
        )
    };
    [
        format!("[http]\nlisten = \"127.0.0.1:{port}\"\n\n[http.console]\naccess = \"operate\"\ntokens-file = \"console-tokens\"\n\n"),
        job("billing", "1h", ""),
        job("heartbeat", "1m", "scope = \"node\"\nrun-at-start = true"),
        job("prepaid", "1m", "run-at-start = true"),
        job("audit", "1d", "run-at-start = true"),
        job("prune-history", "1d", ""),
    ]
    .concat()
}

/// Serves the console of the demo until a signal arrives.
pub(super) async fn serve(
    target: &DemoDatabase,
    session: &Session<'_>,
    options: &DemoArgs,
) -> Result<(), Failure> {
    let (opened, database) = prepare(target, session).await?;
    let last_run = history::write(&opened, &database, options).await?;
    opened.db.close().await.map_err(|error| Failure::database("close the database", &error))?;
    let folder = target.folder.as_deref().unwrap_or(Path::new("."));
    let io = |error: std::io::Error| {
        Failure::new(Exit::Internal, format!("cannot prepare the demo's daemon: {error}"))
    };
    // Another process could take the port before the daemon listens, which then reports it.
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(io)?.port();
    let rights = BTreeSet::from([Right::View, Right::Operate, Right::Approve, Right::AuditLog]);
    let (token, line) = new_token("ada", rights).map_err(|error| Failure::new(Exit::Internal, error))?;
    let tokens = folder.join("console-tokens");
    write_secret(&tokens, &line).map_err(io)?;
    let file = folder.join("jobs.toml");
    fs::write(
        &file,
        config(port, last_run).replace("\"console-tokens\"", &format!("{:?}", tokens.display().to_string())),
    )
    .map_err(io)?;
    let file = ConfigFile::open(&file, session.environment.clone(), session.plugins).map_err(io)?;
    let config = file.config().map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, problems.join("; "))
    })?;
    let identity = Identity::from_process(config.billing_interval);
    let url = format!("http://127.0.0.1:{port}");
    let announce = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
        if options.json {
            say_json(&json!({ "url": url, "token": token }));
        } else {
            say(format!("The console of the demo: {url}/console/"));
            say(format!("Sign in with the token  {token}"));
            say("It runs until you press Ctrl+C, and then removes its database.");
        }
        std::future::pending::<()>().await;
    };
    let running = runtime::run(config, Some(file), database, session.plugins, identity, Concealed::default());
    tokio::select! {
        ended = Box::pin(running) => ended,
        () = announce => Ok(()),
    }
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, "")?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    fs::write(path, format!("{text}\n"))
}
