//! Everything that a plugin does not need: decisions, the store's contract, the engine.

pub(crate) mod control;
pub(crate) mod decide;
pub(crate) mod engine;
pub(crate) mod memory_store;
pub(crate) mod middleware;
pub(crate) mod spans;
pub(crate) mod store;
