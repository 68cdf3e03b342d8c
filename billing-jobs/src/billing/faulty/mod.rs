//! Billing as the fault campaign breaks it: a transaction that dies before a statement, and parts without a safeguard.

mod statements;
mod transaction;

pub(super) use self::transaction::FaultyTransaction;
