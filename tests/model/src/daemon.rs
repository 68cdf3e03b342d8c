//! The steps of a daemon. Each returns whether it can be made now or has to wait.

use crate::{
    locks::{fencing_row_is_changing, wallet_is_locked},
    model::Protocol,
    money::{charged, take},
    state::{Charge, Daemon, Database, MAX_INSTANCES, Mark, Payer, Run, State},
    variant::Check,
};

impl Protocol {
    pub(crate) fn claim(&self, state: &mut State, daemon: usize) -> bool {
        let number = state.database.next_number();
        if !self.guards.lease_first && self.fencing_row_is_locked(state) {
            return false;
        }
        if self.guards.lease_first {
            state.database.lease = number;
        } else {
            state.database.fencing_token = number;
        }
        state.daemons[daemon] = if self.guards.check == Check::LeaseRowOnly {
            Daemon::Working(self.run(state, number))
        } else {
            Daemon::Claimed(number)
        };
        true
    }

    pub(crate) fn raise(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Claimed(number) = state.daemons[daemon] else { return false };
        if !self.guards.lease_first {
            state.database.lease = number;
            state.daemons[daemon] = Daemon::Working(self.run(state, number));
            return true;
        }
        if self.fencing_row_is_locked(state) {
            return false;
        }
        state.daemons[daemon] = if state.database.fencing_token < number {
            state.database.fencing_token = number;
            Daemon::Working(self.run(state, number))
        } else {
            Daemon::Idle
        };
        true
    }

    pub(crate) fn begin(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Working(run) = state.daemons[daemon] else { return false };
        // `FOR SHARE` waits for a transaction that changes the row.
        if self.guards.check == Check::Locked && fencing_row_is_changing(state) {
            return false;
        }
        let Database { lease, fencing_token, .. } = state.database;
        let newest = match self.guards.check {
            Check::Locked | Check::Unlocked => lease == run.number && fencing_token == run.number,
            Check::LeaseRowOnly => lease == run.number,
            Check::Nothing => true,
        };
        state.daemons[daemon] = if newest { Daemon::Begun(run) } else { Daemon::Idle };
        true
    }

    pub(crate) fn read(&self, state: &mut State, daemon: usize, instance: u8) -> bool {
        let Daemon::Begun(run) = state.daemons[daemon] else { return false };
        if wallet_is_locked(state) {
            return false;
        }
        let place = usize::from(instance);
        let read =
            if self.guards.reads_under_lock { state.database.instances[place].mark } else { run.list[place] };
        let charge = Charge { number: run.number, instance, read, until: run.as_of };
        let nothing_to_do = read.start() >= run.as_of && read.anchor >= read.meter;
        state.daemons[daemon] = Daemon::Charging(run, charge);
        !nothing_to_do
    }

    pub(crate) fn commit(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Charging(mut run, charge) = state.daemons[daemon] else { return false };
        let done = self.apply(&mut state.database, charge);
        if !self.guards.reads_under_lock {
            let place = usize::from(charge.instance);
            let billed = charge.read.start().max(charge.until);
            run.list[place] = if done {
                Mark { anchor: billed, meter: billed }
            } else {
                state.database.instances[place].mark
            };
        }
        state.daemons[daemon] = Daemon::Working(run);
        true
    }

    /// What a daemon's transaction writes, unless something refuses it.
    pub(crate) fn apply(&self, database: &mut Database, charge: Charge) -> bool {
        let instance = &mut database.instances[usize::from(charge.instance)];
        if self.guards.compares_watermark && instance.mark != charge.read {
            return false;
        }
        let start = charge.read.start();
        let end = start.max(charge.until);
        if end > start {
            if self.guards.key && instance.starts & 1 << start != 0 {
                return false;
            }
            take(database, charge.instance, start..end, Payer::Daemon);
            let cost = charged(start..end);
            database.balance -= cost;
            database.instances[usize::from(charge.instance)].mark.meter = end;
        }
        database.instances[usize::from(charge.instance)].mark.anchor = end;
        database.fell |= charge.number < database.newest_commit;
        database.newest_commit = database.newest_commit.max(charge.number);
        true
    }

    pub(crate) fn finish(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Working(run) = state.daemons[daemon] else { return false };
        if state.database.fencing_token == run.number {
            if self.fencing_row_is_locked(state) {
                return false;
            }
            state.database.worked = true;
        }
        state.daemons[daemon] = Daemon::Idle;
        true
    }

    fn run(&self, state: &State, number: u8) -> Run {
        let mut list = [Mark::default(); MAX_INSTANCES];
        if !self.guards.reads_under_lock {
            list = state.database.instances.map(|instance| instance.mark);
        }
        Run { number, as_of: state.now, list }
    }
}

pub(crate) fn lose_answer(state: &mut State, daemon: usize) -> bool {
    let Daemon::Charging(run, charge) = state.daemons[daemon] else { return false };
    state.in_flight = Some(charge);
    state.daemons[daemon] = Daemon::Working(run);
    true
}

pub(crate) fn roll_back(state: &mut State, daemon: usize) -> bool {
    let (Daemon::Begun(run) | Daemon::Charging(run, _)) = state.daemons[daemon] else { return false };
    state.daemons[daemon] = Daemon::Working(run);
    true
}
