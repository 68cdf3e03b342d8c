//! One binary without limitything end to end, so that one PostgreSQL server serves it all.

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
