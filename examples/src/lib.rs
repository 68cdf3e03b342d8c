//! The examples are the files next to `Cargo.toml`: `cargo run --example NAME -p examples` runs one.
//!
//! `cargo test -p examples --doc` compiles the Rust code of the book.

/// The pages of the book that contain Rust code.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../docs/embed.md")]
    struct Embed;

    #[doc = include_str!("../../docs/write-a-job.md")]
    struct WriteAJob;
}
