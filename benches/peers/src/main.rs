//! Measures billing-scheduler next to other job schedulers in one run: see README.md.

mod database;
mod queue;
mod recurring;
mod report;
mod starts;

use std::{env, path::PathBuf, process::Command};

use clap::{Parser, Subcommand, ValueEnum as _};
use database::TestDatabase;
use report::Row;

/// Measure billing-scheduler next to other job schedulers
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
    /// Number of rounds; each round measures every engine once
    #[arg(long, default_value_t = 3, global = true)]
    rounds: u32,
    /// File for every measurement, as JSON
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Server with the administrator's login, such as postgres://postgres@127.0.0.1:5432; without it, SQLite alone is measured
    #[arg(long, global = true)]
    postgres: Option<String>,
    /// Engines to measure with queued jobs
    #[arg(long, global = true, value_enum, value_delimiter = ',')]
    queues: Option<Vec<queue::Engine>>,
}

#[derive(Subcommand)]
enum Measurement {
    /// Measure everything
    All,
    /// Measure how late recurring jobs start that are due at one instant
    Recurring {
        /// Numbers of jobs
        #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
        jobs: Vec<usize>,
    },
    /// Measure how many queued jobs per second are added, run and recorded
    Throughput {
        /// Number of jobs
        #[arg(long, default_value_t = 20_000)]
        jobs: u64,
    },
    /// Measure how late queued jobs start that are due at one instant
    Queued {
        /// Numbers of jobs
        #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
        jobs: Vec<u64>,
    },
    /// Measure how long a queued job that is due at once waits for an idle worker
    Latency {
        /// Number of jobs
        #[arg(long, default_value_t = 100)]
        jobs: u64,
    },
    /// Measure the memory of recurring jobs that are not due, each engine in its own process
    Memory {
        /// Number of jobs
        #[arg(long, default_value_t = 100_000)]
        jobs: usize,
        /// Measure one engine in this process
        #[arg(long, value_enum, hide = true)]
        engine: Option<recurring::Engine>,
    },
}

#[tokio::main]
async fn main() {
    let cli = Cli::parse();
    if let Measurement::Memory { jobs, engine: Some(engine) } = cli.measurement {
        println!("{}", recurring::memory_per_idle_job(engine, jobs).await);
        return;
    }
    let queues = cli.queues.unwrap_or_else(|| queue::Engine::value_variants().to_vec());
    let mut rows = Vec::new();
    for measurement in cli.measurement.parts() {
        for round in 0..cli.rounds {
            let mut measured = Round { round, rows: &mut rows };
            measurement.measure(&mut measured, &databases(cli.postgres.as_deref(), &queues, round)).await;
        }
    }
    if let Some(path) = &cli.json {
        report::write_json(path, &rows);
    }
    println!("{}", report::tables(&rows));
    // A worker that did not stop must not keep this process.
    std::process::exit(0);
}

impl Measurement {
    fn parts(self) -> Vec<Self> {
        match self {
            Self::All => vec![
                Self::Recurring { jobs: vec![1_000, 10_000] },
                Self::Throughput { jobs: 20_000 },
                Self::Queued { jobs: vec![1_000, 10_000] },
                Self::Latency { jobs: 100 },
                Self::Memory { jobs: 100_000, engine: None },
            ],
            part => vec![part],
        }
    }

    /// Measures every engine once.
    async fn measure(&self, round: &mut Round<'_>, databases: &[(queue::Engine, Kind<'_>)]) {
        match self {
            Self::All => unreachable!("it was replaced by its parts"),
            Self::Recurring { jobs } => {
                for jobs in jobs {
                    for engine in in_turn(recurring::Engine::value_variants(), round.round) {
                        let values = recurring::lateness(engine, *jobs).await;
                        round.add(&format!("{jobs} recurring jobs at one instant"), engine.name(), values);
                    }
                }
            }
            Self::Throughput { jobs } => {
                for (engine, database) in databases {
                    let (name, database) = database.create(&engine.name()).await;
                    let values = queue::throughput(*engine, &database, *jobs).await;
                    database.drop().await;
                    round.add(&format!("queued jobs per second on {name}"), engine.name(), values);
                }
            }
            Self::Queued { jobs } => {
                for jobs in jobs {
                    for (engine, database) in databases {
                        let (name, database) = database.create(&engine.name()).await;
                        let values = queue::lateness(*engine, &database, *jobs).await;
                        database.drop().await;
                        let case = format!("{jobs} queued jobs at one instant on {name}");
                        round.add(&case, engine.name(), values);
                    }
                }
            }
            Self::Latency { jobs } => {
                for elsewhere in [false, true] {
                    for (engine, database) in databases {
                        let (name, database) = database.create(&engine.name()).await;
                        let values = queue::start_latency(*engine, &database, *jobs, elsewhere).await;
                        database.drop().await;
                        let by = if elsewhere { "another" } else { "the worker's" };
                        let case = format!("start of a queued job that {by} process adds on {name}");
                        round.add(&case, engine.name(), values);
                    }
                }
            }
            Self::Memory { jobs, .. } => {
                for engine in in_turn(recurring::Engine::value_variants(), round.round) {
                    let bytes = memory_in_new_process(engine, *jobs);
                    let values =
                        serde_json::json!({ "bytes_per_job": bytes, "mb": bytes * *jobs as f64 / 1e6 });
                    round.add(&format!("memory of {jobs} idle recurring jobs"), engine.name(), values);
                }
            }
        }
    }
}

/// One round, and the measurements of all rounds.
struct Round<'a> {
    round: u32,
    rows: &'a mut Vec<Row>,
}

impl Round<'_> {
    /// Adds a measurement and prints it: others may take minutes.
    fn add(&mut self, case: &str, engine: String, values: impl serde::Serialize) {
        let row = Row::new(case, engine, self.round, values);
        eprintln!("round {}: {case}: {}: {}", row.round, row.engine, row.values);
        self.rows.push(row);
    }
}

/// A kind of database, to be created for one measurement.
enum Kind<'a> {
    Postgres(&'a str),
    Sqlite,
}

impl Kind<'_> {
    async fn create(&self, engine: &str) -> (&'static str, TestDatabase) {
        match self {
            Self::Postgres(server) => {
                ("PostgreSQL", TestDatabase::postgres(server, &format!("peers_{engine}")).await)
            }
            Self::Sqlite => ("SQLite", TestDatabase::sqlite().await),
        }
    }
}

/// Returns each engine with each database that it supports.
fn databases<'a>(
    postgres: Option<&'a str>,
    queues: &[queue::Engine],
    round: u32,
) -> Vec<(queue::Engine, Kind<'a>)> {
    let engines = || in_turn(queue::Engine::value_variants(), round).filter(|engine| queues.contains(engine));
    let on_postgres =
        postgres.into_iter().flat_map(|server| engines().map(move |engine| (engine, Kind::Postgres(server))));
    let on_sqlite = engines().filter(|engine| *engine != queue::Engine::GraphileWorker);
    on_postgres.chain(on_sqlite.map(|engine| (engine, Kind::Sqlite))).collect()
}

/// Returns the engines in another order in each round.
fn in_turn<T: Copy>(engines: &'static [T], round: u32) -> impl Iterator<Item = T> {
    let first = usize::try_from(round).expect("small") % engines.len();
    engines[first..].iter().chain(&engines[..first]).copied()
}

fn memory_in_new_process(engine: recurring::Engine, jobs: usize) -> f64 {
    let program = env::current_exe().expect("the path of this program is known");
    let output = Command::new(program)
        .args(["memory", "--jobs", &jobs.to_string(), "--engine", &engine.name()])
        .output()
        .expect("this program starts again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("the process prints a number")
}
