//! The command line: one command a file, with its options.

mod bench_audit;
mod bench_billing;
mod bench_console;
mod bench_fleet;
mod bench_idle;
mod bench_lease_cycle;
mod bench_panel_guard;
mod bench_prepaid;
mod bench_queue;
mod bench_status;
mod bench_takeover;
mod campaign_args;
mod cluster;
mod faults;
mod prepaid;
mod prepaid_check;
mod queue_faults;
mod scratch_database;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use billing_test_support::{Db, Program};
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::{DAEMON, Engine};

/// Measure the daemon, inject faults into it, or create a database for experiments
#[derive(Parser)]
#[command(name = "billing-tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Faults(faults::FaultsArgs),
    Prepaid(prepaid::PrepaidArgs),
    QueueFaults(queue_faults::QueueFaultsArgs),
    Cluster(cluster::ClusterArgs),
    BenchBilling(bench_billing::BenchBillingArgs),
    BenchFleet(bench_fleet::BenchFleetArgs),
    BenchAudit(bench_audit::BenchAuditArgs),
    BenchConsole(bench_console::BenchConsoleArgs),
    BenchIdle(bench_idle::BenchIdleArgs),
    BenchPanelGuard(bench_panel_guard::BenchPanelGuardArgs),
    BenchPrepaid(bench_prepaid::BenchPrepaidArgs),
    BenchTakeover(bench_takeover::BenchTakeoverArgs),
    BenchQueue(bench_queue::BenchQueueArgs),
    BenchStatus(bench_status::BenchStatusArgs),
    BenchLeaseCycle(bench_lease_cycle::BenchLeaseCycleArgs),
    ScratchDatabase(scratch_database::ScratchDatabaseArgs),
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    if let Ok(command) = env::var(DAEMON) {
        return match command.as_str() {
            "faults" => faults::daemon(),
            "prepaid-check" => prepaid_check::daemon(),
            "queue-faults" => queue_faults::daemon(),
            "bench-billing" => bench_billing::daemon(),
            "bench-console" => bench_console::daemon(),
            "bench-idle" => bench_idle::daemon(),
            "bench-takeover" => bench_takeover::daemon(),
            unknown => panic!("{DAEMON} is `{unknown}`, which starts no daemon"),
        };
    }
    let command = Cli::parse().command;
    let runtime = Runtime::new().expect("a runtime starts");
    let figures = match command {
        Command::Faults(args) => return runtime.block_on(faults::run(args)),
        Command::Prepaid(args) => return runtime.block_on(prepaid::run(args)),
        Command::QueueFaults(args) => return runtime.block_on(Box::pin(queue_faults::run(&args))),
        Command::Cluster(args) => return runtime.block_on(cluster::run(args)),
        Command::BenchBilling(args) => return bench_billing::run(args, &runtime),
        Command::ScratchDatabase(args) => return runtime.block_on(scratch_database::run(&args)),
        Command::BenchFleet(args) => runtime.block_on(bench_fleet::run(&args)),
        Command::BenchAudit(args) => runtime.block_on(bench_audit::run(&args)),
        Command::BenchConsole(args) => runtime.block_on(bench_console::run(&args)),
        Command::BenchIdle(args) => runtime.block_on(bench_idle::run(&args)),
        Command::BenchPanelGuard(args) => runtime.block_on(bench_panel_guard::run(&args)),
        Command::BenchPrepaid(args) => runtime.block_on(bench_prepaid::run(&args)),
        Command::BenchTakeover(args) => runtime.block_on(bench_takeover::run(&args)),
        Command::BenchStatus(args) => runtime.block_on(Box::pin(bench_status::run(&args))),
        Command::BenchQueue(args) => runtime.block_on(bench_queue::run(&args)),
        Command::BenchLeaseCycle(args) => runtime.block_on(bench_lease_cycle::run(&args)),
    };
    println!("{figures}");
    ExitCode::SUCCESS
}

/// The path of this program.
fn this_program() -> PathBuf {
    env::current_exe().expect("the path of a running program is known")
}

/// A release build of billing-daemon at `path`, or else this program as the daemon of the command `daemon`.
fn shipped_or_this(path: Option<&Path>, daemon: &str) -> Program {
    match path {
        // A program works in a separate folder.
        Some(path) => Program::new(path.canonicalize().expect("the option names a program")),
        None => Program::new(this_program()).env(DAEMON, daemon),
    }
}

/// A new database.
async fn database(engine: Engine) -> Db {
    match engine {
        Engine::Sqlite => Db::sqlite().await,
        Engine::Postgres => Db::postgres().await,
    }
}

/// The first value of the first row, a number.
async fn number(db: &Db, sql: &str) -> i64 {
    use sea_orm::{ConnectionTrait as _, Statement};
    let row = db.admin().query_one_raw(Statement::from_string(db.backend(), sql)).await;
    row.expect("the statement is valid").expect("there is a row").try_get("", "n").expect("a number")
}
