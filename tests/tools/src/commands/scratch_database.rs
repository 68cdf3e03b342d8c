//! Keeps one database open for experiments: `cargo run -p billing-tools -- scratch-database g3`.

use std::{
    io::{self, Read as _},
    process::ExitCode,
};

use billing_test_support::{Db, Login, Panel, Postgres};
use clap::{Args, ValueEnum};

/// Keep a database open until the end of the input
#[derive(Args)]
pub(super) struct ScratchDatabaseArgs {
    /// Generation of the panel in the database
    #[arg(value_enum)]
    panel: Generation,
}

#[derive(Clone, Copy, ValueEnum)]
enum Generation {
    /// No panel, only the tables of billing
    Postgres,
    G1,
    G2,
    G3,
}

pub(super) async fn run(args: &ScratchDatabaseArgs) -> ExitCode {
    let panel = match args.panel {
        Generation::Postgres => Panel::Empty,
        Generation::G1 => Panel::G1,
        Generation::G2 => Panel::G2,
        Generation::G3 => Panel::G3,
    };
    let db = Db::with_panel(panel, Login::Owner).await;
    let server = Postgres::server();
    println!("{}\n{}", server.folder().display(), server.port());
    for login in [Login::Admin, Login::Owner, Login::Billing] {
        println!("{}", db.url_for(login));
    }
    // The server ends with this process, also when the process is killed.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
