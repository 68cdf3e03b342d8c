//! Who may do what next: each step of a daemon, of the panel and of the world around them.

use stateright::{Model, Property};

use crate::{
    properties,
    state::{
        Charge, Daemon, Database, Debit, FenceLock, Hour, Instance, List, MAX_DAEMONS, MAX_HOURS,
        MAX_INSTANCES, Mark, Panel, Payer, Posting, Run, State,
    },
    variant::{Beside, Check, Guards, Raises, Size},
};

/// The protocol with some guards, in a world of some size.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// What is in place.
    pub guards: Guards,
    /// How much there is of everything.
    pub size: Size,
}

/// A step. A daemon is named by its place in the state before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An hour ends.
    HourEnds,
    /// Billing of ours has not worked for 90 minutes.
    NinetyMinutesPass,
    /// A daemon claims the lease row, which is free or expired.
    Claim(usize),
    /// The second row of a claim; waits for transactions that hold it.
    Raise(usize),
    /// A transaction begins, with its check.
    Begin(usize),
    /// It locks the wallet and reads one instance.
    Read(usize, u8),
    /// Its COMMIT is answered.
    Commit(usize),
    /// Its COMMIT is sent and never answered: it may arrive or not, at any time.
    LoseAnswer(usize),
    /// It is rolled back, by whatever.
    RollBack(usize),
    /// A run ends well: `worked_at` is set and the lease released.
    Finish(usize),
    /// A daemon dies. Another one starts sooner or later.
    Die(usize),
    /// A COMMIT that nobody waits for any more arrives.
    Arrive,
    /// It does not.
    Vanish,
    /// The panel reads its list.
    PanelLists,
    /// It reads the balance for the next one.
    PanelReads(u8),
    /// It writes the wallet and the ledger row, and the trigger has its say.
    PanelWrites,
    /// Its debit is committed.
    PanelCommits,
    /// Its debit is rolled back, by whatever.
    PanelRollsBack,
    /// Its second transaction: cycle and `last_billed_at`.
    PanelRecords,
    /// It has done its list.
    PanelEnds,
    /// The panel dies.
    PanelDies,
    /// The replica has everything.
    Replicate,
    /// The replica takes over; what it has not got is lost.
    FailOver,
}

impl Action {
    /// What it does, as a sentence about `before`.
    #[must_use]
    pub fn in_words(self, before: &State) -> String {
        let claim = |daemon: usize| match before.daemons[daemon].number() {
            Some(number) => format!("the daemon under claim {number}"),
            None => "a daemon".to_owned(),
        };
        match self {
            Self::HourEnds => format!("hour {} ends", before.now),
            Self::NinetyMinutesPass => "90 minutes pass in which billing of ours does not work".to_owned(),
            Self::Claim(_) => format!("a daemon makes claim {}", before.database.next_number()),
            Self::Raise(daemon) => format!("{} makes it the newest, and its run begins", claim(daemon)),
            Self::Begin(daemon) => format!("{} begins a transaction", claim(daemon)),
            Self::Read(daemon, instance) => format!("{} locks and reads machine {instance}", claim(daemon)),
            Self::Commit(daemon) => format!("{} commits", claim(daemon)),
            Self::LoseAnswer(daemon) => format!("{} sends COMMIT and loses the connection", claim(daemon)),
            Self::RollBack(daemon) => format!("{} rolls back", claim(daemon)),
            Self::Finish(daemon) => format!("{} ends its run", claim(daemon)),
            Self::Die(daemon) => format!("{} dies", claim(daemon)),
            Self::Arrive => "the COMMIT in flight arrives".to_owned(),
            Self::Vanish => "the COMMIT in flight is lost".to_owned(),
            Self::PanelLists => "the panel lists what is due".to_owned(),
            Self::PanelReads(instance) => {
                format!(
                    "the panel turns to machine {instance} and reads a balance of {}",
                    before.database.balance
                )
            }
            Self::PanelWrites => "the panel writes the balance and its ledger row".to_owned(),
            Self::PanelCommits => "the panel commits its debit".to_owned(),
            Self::PanelRollsBack => "the panel rolls its debit back".to_owned(),
            Self::PanelRecords => "the panel writes cycle and last_billed_at".to_owned(),
            Self::PanelEnds => "the panel is through its list".to_owned(),
            Self::PanelDies => "the panel dies".to_owned(),
            Self::Replicate => "the replica catches up".to_owned(),
            Self::FailOver => "the replica takes over".to_owned(),
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let Size { daemons, instances, hours } = self.size;
        assert!(
            daemons <= MAX_DAEMONS && instances <= MAX_INSTANCES && hours <= MAX_HOURS,
            "too large a world"
        );
        let database = Database::new(self.opening());
        vec![State {
            now: 0,
            database,
            replica: self.guards.fail_over.then_some(database),
            daemons: [Daemon::Idle; MAX_DAEMONS],
            in_flight: None,
            panel: Panel::Idle,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !properties::sound(self, state) {
            return;
        }
        actions.push(Action::HourEnds);
        for daemon in self.places(state) {
            match state.daemons[daemon] {
                Daemon::Idle => actions.push(Action::Claim(daemon)),
                Daemon::Claimed(_) => actions.extend([Action::Raise(daemon), Action::Die(daemon)]),
                Daemon::Working(_) => {
                    actions.extend([Action::Begin(daemon), Action::Finish(daemon), Action::Die(daemon)]);
                }
                // A daemon that dies here has its transaction rolled back first.
                Daemon::Begun(_) => {
                    actions.extend(self.instances().map(|instance| Action::Read(daemon, instance)));
                    actions.push(Action::RollBack(daemon));
                }
                Daemon::Charging(..) => {
                    actions.extend([
                        Action::Commit(daemon),
                        Action::LoseAnswer(daemon),
                        Action::RollBack(daemon),
                    ]);
                }
            }
        }
        if state.in_flight.is_some() {
            actions.extend([Action::Arrive, Action::Vanish]);
        }
        if self.guards.beside != Beside::Nobody {
            actions.push(Action::NinetyMinutesPass);
            match state.panel {
                Panel::Idle => actions.push(Action::PanelLists),
                Panel::Listed(List { due: 0, .. }) => actions.push(Action::PanelEnds),
                Panel::Listed(_) => {
                    actions.extend(self.instances().map(Action::PanelReads));
                    actions.push(Action::PanelDies);
                }
                Panel::Debiting(..) => actions.extend([Action::PanelWrites, Action::PanelRollsBack]),
                Panel::Posting(..) => actions.extend([Action::PanelCommits, Action::PanelRollsBack]),
                Panel::Debited(..) => actions.extend([Action::PanelRecords, Action::PanelDies]),
            }
        }
        if self.guards.fail_over {
            actions.extend([Action::Replicate, Action::FailOver]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        let done = match action {
            Action::HourEnds => self.hour_ends(&mut state),
            Action::NinetyMinutesPass => std::mem::take(&mut state.database.worked),
            Action::Claim(daemon) => self.claim(&mut state, daemon),
            Action::Raise(daemon) => self.raise(&mut state, daemon),
            Action::Begin(daemon) => self.begin(&mut state, daemon),
            Action::Read(daemon, instance) => self.read(&mut state, daemon, instance),
            Action::Commit(daemon) => self.commit(&mut state, daemon),
            Action::LoseAnswer(daemon) => lose_answer(&mut state, daemon),
            Action::RollBack(daemon) => roll_back(&mut state, daemon),
            Action::Finish(daemon) => self.finish(&mut state, daemon),
            Action::Die(daemon) => {
                state.daemons[daemon] = Daemon::Idle;
                true
            }
            Action::Arrive => {
                state.in_flight.take().is_some_and(|charge| self.apply(&mut state.database, charge))
            }
            Action::Vanish => state.in_flight.take().is_some(),
            Action::PanelLists => self.panel_lists(&mut state),
            Action::PanelReads(instance) => panel_reads(&mut state, instance),
            Action::PanelWrites => self.panel_writes(&mut state),
            Action::PanelCommits => self.panel_commits(&mut state),
            Action::PanelRollsBack => panel_rolls_back(&mut state),
            Action::PanelRecords => panel_records(&mut state),
            Action::PanelEnds | Action::PanelDies => {
                state.panel = Panel::Idle;
                true
            }
            Action::Replicate => state.replica.replace(state.database) != Some(state.database),
            Action::FailOver => fail_over(&mut state),
        };
        done.then(|| state.canonical())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}

/// The steps. Each says whether it can be made, or has to wait.
impl Protocol {
    fn hour_ends(&self, state: &mut State) -> bool {
        state.now += 1;
        state.now <= self.size.hours
    }

    fn claim(&self, state: &mut State, daemon: usize) -> bool {
        let number = state.database.next_number();
        if !self.guards.lease_first && self.fence_is_held(state) {
            return false;
        }
        if self.guards.lease_first {
            state.database.lease = number;
        } else {
            state.database.fence = number;
        }
        state.daemons[daemon] = if self.guards.check == Check::LeaseRowOnly {
            Daemon::Working(self.run(state, number))
        } else {
            Daemon::Claimed(number)
        };
        true
    }

    fn raise(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Claimed(number) = state.daemons[daemon] else { return false };
        if !self.guards.lease_first {
            state.database.lease = number;
            state.daemons[daemon] = Daemon::Working(self.run(state, number));
            return true;
        }
        if self.fence_is_held(state) {
            return false;
        }
        state.daemons[daemon] = if state.database.fence < number {
            state.database.fence = number;
            Daemon::Working(self.run(state, number))
        } else {
            Daemon::Idle
        };
        true
    }

    fn begin(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Working(run) = state.daemons[daemon] else { return false };
        // `FOR SHARE` waits for whoever changes the row.
        if self.guards.check == Check::Locked && fence_is_changing(state) {
            return false;
        }
        let Database { lease, fence, .. } = state.database;
        let newest = match self.guards.check {
            Check::Locked | Check::Unlocked => lease == run.number && fence == run.number,
            Check::LeaseRowOnly => lease == run.number,
            Check::Nothing => true,
        };
        state.daemons[daemon] = if newest { Daemon::Begun(run) } else { Daemon::Idle };
        true
    }

    fn read(&self, state: &mut State, daemon: usize, instance: u8) -> bool {
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

    fn commit(&self, state: &mut State, daemon: usize) -> bool {
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
    fn apply(&self, database: &mut Database, charge: Charge) -> bool {
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

    fn finish(&self, state: &mut State, daemon: usize) -> bool {
        let Daemon::Working(run) = state.daemons[daemon] else { return false };
        if state.database.fence == run.number {
            if self.fence_is_held(state) {
                return false;
            }
            state.database.worked = true;
        }
        state.daemons[daemon] = Daemon::Idle;
        true
    }

    fn panel_lists(&self, state: &mut State) -> bool {
        if self.guards.beside == Beside::PanelByHeartbeat && state.database.worked {
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

    fn panel_writes(&self, state: &mut State) -> bool {
        let Panel::Debiting(list, debit) = state.panel else { return false };
        if wallet_is_locked(state) {
            return false;
        }
        let place = usize::from(debit.instance);
        let Beside::PanelByTrigger(trigger) = self.guards.beside else {
            let posting = Posting { start: list.anchors[place], fence: FenceLock::None };
            state.panel = Panel::Posting(list, debit, posting);
            return true;
        };
        let database = &state.database;
        let raises = match trigger.raises_fence {
            Raises::Always => true,
            Raises::AboveClaims => database.lease >= database.fence,
            Raises::AboveHolder => database.lease == database.fence,
            Raises::Never => false,
        };
        if !database.worked && raises && self.fence_is_held(state) {
            return false;
        }
        let Instance { mark, starts, .. } = database.instances[place];
        let start = if trigger.moves_meter { mark.start() } else { mark.anchor };
        let refused = database.worked
            || trigger.refuses_future && start + debit.hours > state.now
            || trigger.compares_balance && debit.balance != database.balance
            || trigger.writes_ledger && self.guards.key && starts & 1 << start != 0;
        let fence = if raises {
            FenceLock::Raised(database.next_number())
        } else if trigger.raises_fence == Raises::Never {
            FenceLock::None
        } else {
            FenceLock::Shared
        };
        state.panel =
            if refused { listed(list) } else { Panel::Posting(list, debit, Posting { start, fence }) };
        true
    }

    fn panel_commits(&self, state: &mut State) -> bool {
        let Panel::Posting(list, debit, Posting { start, fence }) = state.panel else { return false };
        let end = start + debit.hours;
        let database = &mut state.database;
        database.balance = debit.balance - charged(start..end);
        let starts = database.instances[usize::from(debit.instance)].starts;
        take(database, debit.instance, start..end, Payer::Panel);
        let instance = &mut database.instances[usize::from(debit.instance)];
        instance.starts = starts;
        if let Beside::PanelByTrigger(trigger) = self.guards.beside {
            if trigger.moves_meter {
                instance.mark.meter = end;
            }
            if trigger.writes_ledger {
                instance.starts |= 1 << start;
            }
            if let FenceLock::Raised(number) = fence {
                database.fence = number;
            }
            // From now on, nothing is to be committed under a claim that was the newest before.
            let since = if let FenceLock::Raised(number) = fence { number } else { database.fence + 1 };
            database.newest_commit = database.newest_commit.max(since);
        }
        state.panel = Panel::Debited(list, debit);
        true
    }

    /// Whether changing the fence row has to wait.
    fn fence_is_held(&self, state: &State) -> bool {
        let by_daemons = self.guards.check == Check::Locked
            && (state.in_flight.is_some()
                || state
                    .daemons
                    .iter()
                    .any(|daemon| matches!(daemon, Daemon::Begun(_) | Daemon::Charging(..))));
        by_daemons
            || matches!(
                state.panel,
                Panel::Posting(_, _, Posting { fence: FenceLock::Shared | FenceLock::Raised(_), .. })
            )
    }

    fn run(&self, state: &State, number: u8) -> Run {
        let mut list = [Mark::default(); MAX_INSTANCES];
        if !self.guards.reads_under_lock {
            list = state.database.instances.map(|instance| instance.mark);
        }
        Run { number, as_of: state.now, list }
    }

    /// What the wallet holds in the beginning: enough for everything.
    #[must_use]
    pub fn opening(&self) -> i8 {
        charged(0..self.size.hours) * i8::try_from(self.size.instances).unwrap_or(i8::MAX)
    }

    /// The machines that there are.
    pub fn instances(&self) -> impl Iterator<Item = u8> + use<> {
        0..u8::try_from(self.size.instances).unwrap_or(u8::MAX)
    }

    /// One daemon of each kind: those in the same place do the same.
    fn places<'a>(&self, state: &'a State) -> impl Iterator<Item = usize> + use<'a> {
        // Idle ones that do not take part sort first.
        let first = MAX_DAEMONS - self.size.daemons;
        (first..MAX_DAEMONS)
            .filter(move |&place| place == first || state.daemons[place] != state.daemons[place - 1])
    }
}

fn lose_answer(state: &mut State, daemon: usize) -> bool {
    let Daemon::Charging(run, charge) = state.daemons[daemon] else { return false };
    state.in_flight = Some(charge);
    state.daemons[daemon] = Daemon::Working(run);
    true
}

fn roll_back(state: &mut State, daemon: usize) -> bool {
    let (Daemon::Begun(run) | Daemon::Charging(run, _)) = state.daemons[daemon] else { return false };
    state.daemons[daemon] = Daemon::Working(run);
    true
}

fn panel_reads(state: &mut State, instance: u8) -> bool {
    let Panel::Listed(mut list) = state.panel else { return false };
    if list.due & 1 << instance == 0 {
        return false;
    }
    list.due &= !(1 << instance);
    let hours = state.now - list.anchors[usize::from(instance)];
    state.panel = Panel::Debiting(list, Debit { instance, hours, balance: state.database.balance });
    true
}

fn panel_rolls_back(state: &mut State) -> bool {
    let (Panel::Debiting(list, _) | Panel::Posting(list, _, _)) = state.panel else { return false };
    state.panel = listed(list);
    true
}

fn panel_records(state: &mut State) -> bool {
    let Panel::Debited(list, debit) = state.panel else { return false };
    let place = usize::from(debit.instance);
    // Whatever it is by now.
    state.database.instances[place].mark.anchor = list.anchors[place] + debit.hours;
    state.panel = listed(list);
    true
}

/// The list with the anchors that are still needed.
fn listed(mut list: List) -> Panel {
    for (place, anchor) in list.anchors.iter_mut().enumerate() {
        if list.due & 1 << place == 0 {
            *anchor = 0;
        }
    }
    Panel::Listed(list)
}

fn fail_over(state: &mut State) -> bool {
    let Some(replica) = state.replica.filter(|replica| *replica != state.database) else { return false };
    state.database = replica;
    state.in_flight = None;
    for daemon in &mut state.daemons {
        if let Daemon::Begun(run) | Daemon::Charging(run, _) = *daemon {
            *daemon = Daemon::Working(run);
        }
    }
    if let Panel::Debiting(list, _) | Panel::Posting(list, _, _) = state.panel {
        state.panel = listed(list);
    }
    true
}

/// Whether somebody's transaction has written the fence row.
fn fence_is_changing(state: &State) -> bool {
    matches!(state.panel, Panel::Posting(_, _, Posting { fence: FenceLock::Raised(_), .. }))
}

/// Writes the money of `hours` down, as taken by `payer`, and the ledger's row.
fn take(database: &mut Database, instance: u8, hours: std::ops::Range<Hour>, payer: Payer) {
    database.taken += charged(hours.clone());
    let instance = &mut database.instances[usize::from(instance)];
    instance.starts |= 1 << hours.start;
    for hour in hours {
        instance.pay(hour, payer);
    }
}

fn charged(hours: std::ops::Range<Hour>) -> i8 {
    i8::try_from(hours.len()).unwrap_or(i8::MAX)
}

/// Whether somebody's transaction holds the wallet.
fn wallet_is_locked(state: &State) -> bool {
    state.in_flight.is_some()
        || matches!(state.panel, Panel::Posting(..))
        || state.daemons.iter().any(|daemon| matches!(daemon, Daemon::Charging(..)))
}
