//! The reference pages of the book, `docs/reference/`: generated from the code and compared with the files.
//!
//! `UPDATE_DOCS=1 cargo test -p billing-daemon --test reference` writes them.

#![expect(clippy::format_push_string, reason = "a page is short, and appending to it reads best with `+=`")]

mod commands;
mod exit_codes;
mod http;
mod jobs_toml;
mod markdown;
mod metrics;
mod tables;

use std::{env, fs, path::PathBuf};

/// The root of the repository, where the book and the statements of the migrations are.
fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn source(path: &str) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
fn check(page: &str, generated: &str) {
    let path = repository().join("docs/reference").join(page);
    let note =
        "<!-- Generated; UPDATE_DOCS=1 cargo test -p billing-daemon --test reference writes this page. -->";
    let generated = format!("{note}\n\n{}\n", generated.trim_end());
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, generated).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(generated.lines()).find(|(old, new)| old != new);
    assert!(
        committed == generated,
        "docs/reference/{page} is stale, at {differs:?}; run UPDATE_DOCS=1 cargo test -p billing-daemon --test reference"
    );
}

#[test]
fn jobs_toml_page_follows_schema() {
    check("jobs-toml.md", &jobs_toml::page());
}

#[test]
fn commands_page_follows_command_line() {
    check("commands.md", &commands::page());
}

#[test]
fn exit_codes_page_follows_enum() {
    check("exit-codes.md", &exit_codes::page(&source("billing-daemon/src/exit.rs")));
}

#[test]
fn http_page_follows_openapi_document() {
    check("http.md", &http::page());
}

#[test]
fn metrics_page_follows_descriptions() {
    check("metrics.md", &metrics::page());
}

#[test]
fn tables_page_follows_migrations() {
    check("tables.md", &tables::page());
}
