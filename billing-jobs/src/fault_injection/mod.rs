//! The switches of the fault campaign. Without the feature `testing` they are not compiled. A build of the whole workspace compiles
//! them into every program; there they do nothing, because only the programs of the tests call [`enable`]. The faults themselves are in
//! `billing/faulty`.
//!
//! | variable | effect |
//! |---|---|
//! | `BILLING_CLOCK` | a query whose column `now` is the time up to which billing is due, in microseconds; also the time of the prepaid policy |
//! | `BILLING_INTERVAL_SECONDS` | the interval of billing by that clock |
//! | `BILLING_CLOCK_RATE` | the seconds of that clock that pass in a second of the host's |
//! | `BILLING_MUTATION` | names of safeguards to leave out, separated by commas |
//! | `BILLING_LINGER_MS` | how long a batch waits before it begins, and between what it reads and what it writes |
//! | `BILLING_LOCK_TIMEOUT_MS` | the lock timeout of a billing transaction; on SQLite, of any |
//! | `BILLING_ABORT_AT` | the process aborts before this statement of a batch, counted from 1; the commit is one |

#[cfg(not(feature = "testing"))]
mod disabled;
#[cfg(feature = "testing")]
mod enabled;

#[cfg(not(feature = "testing"))]
pub(crate) use self::disabled::*;
#[cfg(feature = "testing")]
pub use self::enabled::*;
