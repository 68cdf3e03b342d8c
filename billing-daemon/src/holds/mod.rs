//! Held instances: listed with what to do about each, accepted by an operator, or written off.

mod advice;
mod change;
mod read;

pub(crate) use advice::advice;
pub(crate) use change::{Acceptance, accept, write_off};
#[cfg(feature = "console")]
pub(crate) use read::page;
pub(crate) use read::{Filter, HeldInstance, Pages, is_accepted};
