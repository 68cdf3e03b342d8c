#![doc = include_str!("../README.md")]

pub mod check;
pub mod model;
pub mod properties;
pub mod state;
pub mod variant;
