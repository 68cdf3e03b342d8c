//! Everything that a plugin does not need: decisions, the store's contract, the engine.

pub(crate) mod builder;
pub(crate) mod control;
pub(crate) mod decide;
pub(crate) mod engine;
pub(crate) mod events;
pub(crate) mod executor;
mod interner;
pub(crate) mod memory_queue;
pub(crate) mod memory_store;
pub(crate) mod middleware;
pub(crate) mod queue;
pub(crate) mod running;
#[cfg(feature = "signals")]
pub(crate) mod signals;
pub(crate) mod spans;
pub(crate) mod store;
pub(crate) mod store_clock;
pub(crate) mod surroundings;
pub(crate) mod testing;
