//! The console over HTTP: who may see what, what a page shows, and what an action leaves in the database.

mod access;
mod actions;
mod client;
mod figures;
mod hostile;
mod limits;
mod pages;
mod plans;

use std::{fs, os::unix::fs::PermissionsExt as _};

use billing_test_support::{Db, Login, Program, Running, eventually};
use client::Client;
use serde_json::Value;

use crate::{
    commands::http::address,
    daemon::{BILLING, HEARTBEAT, daemon},
};

/// The persons of the tests, with their rights.
const PERSONS: [(&str, &str); 3] =
    [("vera", "view"), ("olga", "view,operate,audit-log"), ("anna", "view,approve,audit-log")];
const TOKENS: &str = "console-tokens";
const SESSION_KEY: &str = "key of the sessions";
const PROXY_SECRET: &str = "secret-of-the-proxy";

/// A running daemon with a console, and the token of each of [`PERSONS`].
struct Site {
    program: Program,
    /// Ends with the test.
    running: Running,
    address: String,
    tokens: Vec<(&'static str, String)>,
}

/// The section of jobs.toml with the console, and with further keys.
fn section(access: &str, more: &str) -> String {
    format!(
        "[http]\nlisten = '127.0.0.1:0'\n[http.console]\naccess = '{access}'\ntokens-file = '{TOKENS}'\n{more}\n\
         [http.console.proxy]\nuser-header = 'X-Remote-User'\nsecret = {{ env = 'PROXY_SECRET' }}\noperators = ['Olga Ö.']\n\
         others = 'view'\n"
    )
}

impl Site {
    /// Starts a daemon that bills once and serves the console.
    async fn start(db: &Db, access: &str) -> Self {
        Self::with(db, access, "").await
    }

    /// Starts a daemon whose section has further keys.
    async fn with(db: &Db, access: &str, keys: &str) -> Self {
        Self::of_sections(db, &[&section(access, keys), BILLING, HEARTBEAT]).await
    }

    /// Starts a daemon with these sections of jobs.toml.
    async fn of_sections(db: &Db, sections: &[&str]) -> Self {
        let program = daemon(db, sections)
            .env("PROXY_SECRET", PROXY_SECRET)
            .env("SESSION_KEY", SESSION_KEY)
            .env("ADJUST_URL", &db.url_for(Login::Owner));
        let (mut lines, mut tokens) = (String::new(), Vec::new());
        for (name, rights) in PERSONS {
            let made = program.run(&format!("console token --name {name} --rights {rights} --json")).await;
            let made: Value = serde_json::from_str(&made.expect_code(0).out.concat()).expect("an object");
            lines.extend([made["line"].as_str().expect("a line"), "\n"]);
            tokens.push((name, made["token"].as_str().expect("a token").to_owned()));
        }
        let program = program.file(TOKENS, &lines);
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(program.folder().join(TOKENS), mode).expect("our own file");
        let running = program.start("run");
        let address = address(&running).await;
        Self { program, running, address, tokens }
    }

    fn client(&self) -> Client<'_> {
        Client::new(&self.address)
    }

    /// A client with the token of this person.
    fn of(&self, name: &str) -> Client<'_> {
        let (_, token) = self.tokens.iter().find(|(known, _)| *known == name).expect("a person");
        self.client().with("Authorization", &format!("Bearer {token}"))
    }

    fn token(&self, name: &str) -> &str {
        self.tokens.iter().find(|(known, _)| *known == name).map(|(_, token)| token).expect("a person")
    }

    /// Waits until the billing run is in the history, which it is a little later than in the log.
    async fn billed(&self) {
        eventually("the billing run is recorded", async || {
            let runs = self.client().get("/api/runs?job=billing").await;
            (runs.status == 200 && runs.json()[0]["status"] == "done").then_some(())
        })
        .await;
    }
}
