//! The steps of the panel's own biller, with what the trigger makes of them. Each returns whether it can be made now or has to wait.

use crate::{
    locks::wallet_is_locked,
    model::Protocol,
    money::{charged, take},
    state::{Debit, FencingRowLock, Instance, List, Panel, Payer, Posting, State},
    variant::{PanelPresence, Raises},
};

impl Protocol {
    pub(crate) fn panel_lists(&self, state: &mut State) -> bool {
        if self.guards.panel == PanelPresence::PanelByHeartbeat && state.database.worked {
            return false;
        }
        let mut list = List::default();
        for instance in self.instances() {
            let anchor = state.database.instances[usize::from(instance)].mark.anchor;
            if anchor < state.now {
                list.due |= 1 << instance;
                list.anchors[usize::from(instance)] = anchor;
            }
        }
        state.panel = Panel::Listed(list);
        list.due != 0
    }

    pub(crate) fn panel_writes(&self, state: &mut State) -> bool {
        let Panel::Debiting(list, debit) = state.panel else { return false };
        if wallet_is_locked(state) {
            return false;
        }
        let place = usize::from(debit.instance);
        let PanelPresence::PanelByTrigger(trigger) = self.guards.panel else {
            let posting = Posting { start: list.anchors[place], fencing_token: FencingRowLock::None };
            state.panel = Panel::Posting(list, debit, posting);
            return true;
        };
        let database = &state.database;
        let raises = match trigger.raises_token {
            Raises::Always => true,
            Raises::AboveClaims => database.lease >= database.fencing_token,
            Raises::AboveHolder => database.lease == database.fencing_token,
            Raises::Never => false,
        };
        if !database.worked && raises && self.fencing_row_is_locked(state) {
            return false;
        }
        let Instance { mark, starts, .. } = database.instances[place];
        let start = if trigger.moves_meter { mark.start() } else { mark.anchor };
        let refused = database.worked
            || trigger.refuses_future && start + debit.hours > state.now
            || trigger.compares_balance && debit.balance != database.balance
            || trigger.writes_ledger && self.guards.key && starts & 1 << start != 0;
        let fencing_token = if raises {
            FencingRowLock::Raised(database.next_number())
        } else if trigger.raises_token == Raises::Never {
            FencingRowLock::None
        } else {
            FencingRowLock::Shared
        };
        state.panel = if refused {
            listed(list)
        } else {
            Panel::Posting(list, debit, Posting { start, fencing_token })
        };
        true
    }

    pub(crate) fn panel_commits(&self, state: &mut State) -> bool {
        let Panel::Posting(list, debit, Posting { start, fencing_token }) = state.panel else { return false };
        let end = start + debit.hours;
        let database = &mut state.database;
        database.balance = debit.balance - charged(start..end);
        let starts = database.instances[usize::from(debit.instance)].starts;
        take(database, debit.instance, start..end, Payer::Panel);
        let instance = &mut database.instances[usize::from(debit.instance)];
        instance.starts = starts;
        if let PanelPresence::PanelByTrigger(trigger) = self.guards.panel {
            if trigger.moves_meter {
                instance.mark.meter = end;
            }
            if trigger.writes_ledger {
                instance.starts |= 1 << start;
            }
            if let FencingRowLock::Raised(number) = fencing_token {
                database.fencing_token = number;
            }
            // From now on, nothing is to be committed under a claim that was the newest before.
            let since = if let FencingRowLock::Raised(number) = fencing_token {
                number
            } else {
                database.fencing_token + 1
            };
            database.newest_commit = database.newest_commit.max(since);
        }
        state.panel = Panel::Debited(list, debit);
        true
    }
}

pub(crate) fn panel_reads(state: &mut State, instance: u8) -> bool {
    let Panel::Listed(mut list) = state.panel else { return false };
    if list.due & 1 << instance == 0 {
        return false;
    }
    list.due &= !(1 << instance);
    let hours = state.now - list.anchors[usize::from(instance)];
    state.panel = Panel::Debiting(list, Debit { instance, hours, balance: state.database.balance });
    true
}

pub(crate) fn panel_rolls_back(state: &mut State) -> bool {
    let (Panel::Debiting(list, _) | Panel::Posting(list, _, _)) = state.panel else { return false };
    state.panel = listed(list);
    true
}

pub(crate) fn panel_records(state: &mut State) -> bool {
    let Panel::Debited(list, debit) = state.panel else { return false };
    let place = usize::from(debit.instance);
    // Whatever it is by now.
    state.database.instances[place].mark.anchor = list.anchors[place] + debit.hours;
    state.panel = listed(list);
    true
}

/// The list with the anchors that are still needed.
pub(crate) fn listed(mut list: List) -> Panel {
    for (place, anchor) in list.anchors.iter_mut().enumerate() {
        if list.due & 1 << place == 0 {
            *anchor = 0;
        }
    }
    Panel::Listed(list)
}
