//! Several daemons over one failing store, on clocks that jump, from a seed: `SEED=7 cargo test` tells one story again,
//! `SEEDS=100000` tells more of them.

mod checks;
mod clocks;
mod daemon;
mod event_loop;
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

/// How many stories a plain `cargo test` tells.
const SEEDS: u64 = 10_000;

#[test]
fn occurrences_finish_once_despite_failures() {
    if let Some(seed) = number("SEED") {
        let story = tell(seed, true);
        println!("{}", story.log);
        assert_eq!(story.wrong, None);
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
                    if let Some(wrong) = tell(seed, false).wrong {
                        next.store(seeds, Ordering::Relaxed);
                        panic!("{wrong}\n\nSEED={seed} tells it again");
                    }
                }
            });
        }
    });
}

#[test]
fn seed_reproduces_simulation() {
    for seed in 0..20 {
        assert!(tell(seed, true).log == tell(seed, true).log, "seed {seed} does not");
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

struct Story {
    log: String,
    wrong: Option<String>,
}

/// Everything that happens under one seed.
fn tell(seed: u64, logged: bool) -> Story {
    let idle = Arc::new(Notify::new());
    let parked = Arc::clone(&idle);
    let runtime = Builder::new_current_thread()
        .on_thread_park(move || parked.notify_one())
        .build()
        .expect("a runtime without drivers");
    let world = World::new(seed, logged);
    runtime.block_on(world.run(&idle));
    drop(runtime);
    // The daemons in it know the world, and would keep it for ever.
    let plot = std::mem::take(&mut *world.plot());
    Story { log: plot.log, wrong: plot.wrong }
}
