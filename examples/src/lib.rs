//! The examples are the files beside `Cargo.toml`; `cargo run --example NAME -p examples` runs one.
