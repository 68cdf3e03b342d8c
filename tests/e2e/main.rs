//! One binary for everything end to end, so that one PostgreSQL server serves it all.

mod harness;
