//! One binary for all end-to-end tests, so that they share one PostgreSQL server.

mod bench;
mod billing;
mod broken;
mod campaign;
mod cancelled;
mod clocks;
mod commands;
mod control;
mod daemon;
mod embed;
mod guide;
mod harness;
mod idle;
mod leases;
mod panel_guard;
mod pooler;
mod restore;
mod schema;
mod store;
