//! Why an amount was charged: one charge or hold with the hours, the price, the carry, the balance and the run.

mod prices;
mod read;
mod recent;
mod search;
mod views;

pub(crate) use read::explain;
pub(crate) use recent::{RecentCharge, recent};
pub(crate) use views::{ChargeExplanation, ChargeView, HoldView};
