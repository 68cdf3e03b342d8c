#![doc = include_str!("../README.md")]

pub mod action;
pub mod check;
mod daemon;
mod locks;
pub mod model;
mod money;
mod panel;
pub mod prepaid;
pub mod properties;
pub mod queue;
pub mod state;
pub mod variant;
