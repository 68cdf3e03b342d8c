//! A deterministic simulation: several daemons with one failing store and with clocks that jump, from a seed. `SEED=7 cargo test`
//! repeats one simulation and prints its log; `SEEDS=100000` runs more of them.

mod checks;
mod clocks;
mod daemon;
mod event_loop;
mod membership;
mod operators;
mod random;
mod random_job;
mod store;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::{runtime::Builder, sync::Notify};

use event_loop::World;

/// The default number of simulations.
const SEEDS: u64 = 5_000;

#[test]
fn occurrences_finish_once_despite_failures() {
    if let Some(seed) = number("SEED") {
        let simulation = simulate(seed, true);
        println!("{}", simulation.log);
        assert_eq!(simulation.wrong, None);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if let Some(wrong) = simulate(seed, false).wrong {
                        next.store(seeds, Ordering::Relaxed);
                        panic!("{wrong}\n\nSEED={seed} repeats it");
                    }
                }
            });
        }
    });
}

#[test]
fn seed_reproduces_simulation() {
    for seed in 0..20 {
        assert!(simulate(seed, true).log == simulate(seed, true).log, "seed {seed} has two logs");
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

struct Simulation {
    log: String,
    wrong: Option<String>,
}

/// Runs the simulation of one seed.
fn simulate(seed: u64, logged: bool) -> Simulation {
    let idle = Arc::new(Notify::new());
    let parked = Arc::clone(&idle);
    let runtime = Builder::new_current_thread()
        .on_thread_park(move || parked.notify_one())
        .build()
        .expect("a runtime without drivers");
    let world = World::new(seed, logged);
    runtime.block_on(world.run(&idle));
    drop(runtime);
    // The daemons in the state refer to the world: this ends the cycle.
    let state = std::mem::take(&mut *world.state());
    Simulation { log: state.log, wrong: state.wrong }
}
