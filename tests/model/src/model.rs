//! Who may do what next, in a world of some size.

use stateright::{Model, Property};

use crate::{
    action::Action,
    daemon::{lose_answer, roll_back},
    money::charged,
    panel::{listed, panel_reads, panel_records, panel_rolls_back},
    properties,
    state::{Daemon, Database, List, MAX_DAEMONS, MAX_HOURS, MAX_INSTANCES, Panel, State},
    variant::{Guards, PanelPresence, Size},
};

/// The protocol with some guards, in a world of some size.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// What is in place.
    pub guards: Guards,
    /// How much there is of everything.
    pub size: Size,
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
        if self.guards.panel != PanelPresence::Absent {
            actions.push(Action::HandBackTimePasses);
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
            Action::HandBackTimePasses => std::mem::take(&mut state.database.worked),
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

impl Protocol {
    fn hour_ends(&self, state: &mut State) -> bool {
        state.now += 1;
        state.now <= self.size.hours
    }

    /// The initial balance of the wallet: enough for everything.
    #[must_use]
    pub fn opening(&self) -> i8 {
        charged(0..self.size.hours) * i8::try_from(self.size.instances).unwrap_or(i8::MAX)
    }

    /// The instances that there are.
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
