//! Who has to wait for whom.

use crate::{
    model::Protocol,
    state::{Daemon, FencingRowLock, Panel, Posting, State},
    variant::Check,
};

impl Protocol {
    /// Whether changing the fencing row has to wait.
    pub(crate) fn fencing_row_is_locked(&self, state: &State) -> bool {
        let by_daemons = self.guards.check == Check::Locked
            && (state.in_flight.is_some()
                || state
                    .daemons
                    .iter()
                    .any(|daemon| matches!(daemon, Daemon::Begun(_) | Daemon::Charging(..))));
        by_daemons
            || matches!(
                state.panel,
                Panel::Posting(
                    _,
                    _,
                    Posting { fencing_token: FencingRowLock::Shared | FencingRowLock::Raised(_), .. }
                )
            )
    }
}

/// Whether a transaction has written the fencing row.
pub(crate) fn fencing_row_is_changing(state: &State) -> bool {
    matches!(state.panel, Panel::Posting(_, _, Posting { fencing_token: FencingRowLock::Raised(_), .. }))
}

/// Whether a transaction holds the wallet.
pub(crate) fn wallet_is_locked(state: &State) -> bool {
    state.in_flight.is_some()
        || matches!(state.panel, Panel::Posting(..))
        || state.daemons.iter().any(|daemon| matches!(daemon, Daemon::Charging(..)))
}
