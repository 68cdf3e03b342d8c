//! What is taken from the wallet, and written down.

use std::ops::Range;

use crate::state::{Database, Hour, Payer};

/// Writes the money of `hours` down, as taken by `payer`, and the ledger's row.
pub(crate) fn take(database: &mut Database, instance: u8, hours: Range<Hour>, payer: Payer) {
    database.taken += charged(hours.clone());
    let instance = &mut database.instances[usize::from(instance)];
    instance.starts |= 1 << hours.start;
    for hour in hours {
        instance.pay(hour, payer);
    }
}

/// What hours cost.
pub(crate) fn charged(hours: Range<Hour>) -> i8 {
    i8::try_from(hours.len()).unwrap_or(i8::MAX)
}
