//! The claims of queued jobs, whose runs finish their job in one transaction with their effect. A claim may expire at any time, and a
//! worker may pause without limit, crash, or lose the answer to its COMMIT between any two steps.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// The number of jobs.
const JOBS: usize = 2;
/// The number of workers.
const WORKERS: usize = 3;
/// The most claims of one job.
const CLAIMS: u8 = 3;

/// No job has its effect twice.
pub const ONCE: &str = "no job is executed twice";
/// A job that was finished without an error has its effect.
pub const EXECUTED: &str = "no job is lost";
/// A worker whose job was claimed again neither finishes it nor gives it up.
pub const NEWEST: &str = "a job ends under its newest claim";

/// The safeguards of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each can be removed alone")]
pub struct Guards {
    /// Each claim has a greater token than the last.
    pub token_raised: bool,
    /// The end of a job compares the token.
    pub token_compared: bool,
    /// A job that is finished is not finished again.
    pub finished_compared: bool,
    /// The row of the job is locked from that comparison to the commit.
    pub row_locked: bool,
    /// The effect is committed together with the end of the job.
    pub one_transaction: bool,
}

/// The queue as it is, with every safeguard.
pub const ALL: Guards = Guards {
    token_raised: true,
    token_compared: true,
    finished_compared: true,
    row_locked: true,
    one_transaction: true,
};

/// Each safeguard removed alone, with the property that then breaks.
pub const MUTATIONS: [(Guards, &str); 5] = [
    (Guards { token_raised: false, ..ALL }, NEWEST),
    (Guards { token_compared: false, ..ALL }, NEWEST),
    (Guards { finished_compared: false, ..ALL }, ONCE),
    (Guards { row_locked: false, ..ALL }, ONCE),
    (Guards { one_transaction: false, ..ALL }, ONCE),
];

/// The row of a job, and what happened to it.
#[expect(clippy::struct_excessive_bools, reason = "they are independent")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Job {
    token: u8,
    is_held: bool,
    is_expired: bool,
    is_finished: bool,
    is_dead: bool,
    /// The number of claims.
    claims: u8,
    effects: u8,
    /// Whether an older claim than the newest ended it.
    ended_by_old: bool,
}

/// A claim in a worker's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    job: usize,
    token: u8,
    /// Which claim of the job it is.
    claim: u8,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Worker {
    /// It has no job.
    Idle,
    /// It runs a job.
    Running(Run),
    /// Its transaction has compared the row and changed it.
    Begun(Run),
    /// Its effect is committed alone.
    Effected(Run),
    /// Its run failed, as far as it knows.
    Failed(Run),
}

/// All jobs and workers, and a COMMIT without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    jobs: [Job; JOBS],
    workers: [Worker; WORKERS],
    in_flight: Option<Run>,
}

/// One step of a worker, of the network or of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is a method of the queue or a fault")]
pub enum Action {
    Claim(usize, usize),
    Expire(usize),
    Begin(usize),
    Commit(usize),
    LoseAnswer(usize),
    Arrive,
    Vanish,
    Fail(usize),
    Repeat(usize),
    Settle(usize, End),
    Crash(usize),
}

/// What a worker records of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Success, after which nothing is left to do.
    Done,
    /// It failed, and is retried.
    Again,
    /// It failed for the last time.
    Dead,
}

impl Guards {
    /// Whether the row permits the end of a job under this claim.
    fn may_end(self, state: &State, run: Run) -> bool {
        let job = &state.jobs[run.job];
        (!self.token_compared || job.token == run.token) && (!self.finished_compared || !job.is_finished)
    }

    fn is_locked(self, state: &State, job: usize) -> bool {
        let holds = |worker: &Worker| matches!(worker, Worker::Begun(run) if run.job == job);
        let in_flight = state.in_flight.is_some_and(|run| run.job == job);
        self.row_locked && (state.workers.iter().any(holds) || in_flight)
    }

    fn claim(self, state: &mut State, worker: usize, place: usize) -> bool {
        let is_free = !self.is_locked(state, place);
        let job = &mut state.jobs[place];
        if !is_free || job.is_finished || job.is_held && !job.is_expired || job.claims == CLAIMS {
            return false;
        }
        job.claims += 1;
        job.token += u8::from(self.token_raised || job.token == 0);
        (job.is_held, job.is_expired) = (true, false);
        state.workers[worker] = Worker::Running(Run { job: place, token: job.token, claim: job.claims });
        true
    }

    fn begin(self, state: &mut State, worker: usize, run: Run) -> bool {
        // Another transaction that holds the row is waited for.
        if self.is_locked(state, run.job) {
            return false;
        }
        state.workers[worker] = if !self.one_transaction {
            state.jobs[run.job].effects += 1;
            Worker::Effected(run)
        } else if self.may_end(state, run) {
            Worker::Begun(run)
        } else {
            Worker::Failed(run)
        };
        true
    }

    fn settle(self, state: &mut State, worker: usize, run: Run, end: End) -> bool {
        if self.is_locked(state, run.job) {
            return false;
        }
        if self.may_end(state, run) && state.jobs[run.job].is_held {
            let job = &mut state.jobs[run.job];
            job.is_held = false;
            job.ended_by_old |= run.claim < job.claims;
            job.is_finished = end != End::Again;
            job.is_dead = end == End::Dead;
        }
        state.workers[worker] = Worker::Idle;
        true
    }
}

fn commit(state: &mut State, run: Run) {
    let job = &mut state.jobs[run.job];
    job.effects += 1;
    (job.is_held, job.is_finished) = (false, true);
    job.ended_by_old |= run.claim < job.claims;
}

impl Model for Guards {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { jobs: [Job::default(); JOBS], workers: [Worker::Idle; WORKERS], in_flight: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend((0..JOBS).map(Action::Expire));
        for (place, worker) in state.workers.iter().enumerate() {
            match worker {
                Worker::Idle => actions.extend((0..JOBS).map(|job| Action::Claim(place, job))),
                Worker::Running(_) => actions.extend([Action::Begin(place), Action::Fail(place)]),
                Worker::Begun(_) => {
                    actions.extend([Action::Commit(place), Action::LoseAnswer(place), Action::Fail(place)]);
                }
                Worker::Effected(_) => actions.push(Action::Settle(place, End::Done)),
                Worker::Failed(_) => actions.extend([
                    Action::Repeat(place),
                    Action::Settle(place, End::Again),
                    Action::Settle(place, End::Dead),
                ]),
            }
            if *worker != Worker::Idle {
                actions.push(Action::Crash(place));
            }
        }
        if state.in_flight.is_some() {
            actions.extend([Action::Arrive, Action::Vanish]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        let run = |worker: usize| match last.workers[worker] {
            Worker::Idle => None,
            Worker::Running(run) | Worker::Begun(run) | Worker::Effected(run) | Worker::Failed(run) => {
                Some(run)
            }
        };
        let done = match action {
            Action::Claim(worker, job) => self.claim(&mut state, worker, job),
            Action::Expire(job) => {
                let job = &mut state.jobs[job];
                job.is_held && !std::mem::replace(&mut job.is_expired, true)
            }
            Action::Begin(worker) => self.begin(&mut state, worker, run(worker)?),
            Action::Commit(worker) => {
                commit(&mut state, run(worker)?);
                state.workers[worker] = Worker::Idle;
                true
            }
            Action::LoseAnswer(worker) => {
                state.workers[worker] = Worker::Failed(run(worker)?);
                state.in_flight.replace(run(worker)?).is_none()
            }
            Action::Arrive => {
                commit(&mut state, last.in_flight?);
                state.in_flight = None;
                true
            }
            Action::Vanish => state.in_flight.take().is_some(),
            Action::Fail(worker) => {
                state.workers[worker] = Worker::Failed(run(worker)?);
                true
            }
            Action::Repeat(worker) => {
                state.workers[worker] = Worker::Running(run(worker)?);
                true
            }
            Action::Settle(worker, end) => self.settle(&mut state, worker, run(worker)?, end),
            Action::Crash(worker) => {
                state.workers[worker] = Worker::Idle;
                true
            }
        };
        // Which worker is which makes no difference.
        state.workers.sort_unstable_by_key(|worker| format!("{worker:?}"));
        done.then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONCE, |_, state: &State| state.jobs.iter().all(|job| job.effects <= 1)),
            Property::always(EXECUTED, |_, state: &State| {
                state.jobs.iter().all(|job| !job.is_finished || job.is_dead || job.effects > 0)
            }),
            Property::always(NEWEST, |_, state: &State| state.jobs.iter().all(|job| !job.ended_by_old)),
            Property::sometimes("every job is executed", |_, state: &State| {
                state.jobs.iter().all(|job| job.effects == 1)
            }),
            Property::sometimes("a successor executes while its predecessor sleeps", |_, state: &State| {
                let sleeps = |worker: &Worker| match worker {
                    Worker::Running(run) => {
                        let job = &state.jobs[run.job];
                        job.effects == 1 && run.claim < job.claims
                    }
                    _ => false,
                };
                state.workers.iter().any(sleeps)
            }),
        ]
    }
}

/// Visits every state, or until `breaks` is broken. Returns the number of states, the broken properties, and those that should be
/// possible and are not.
#[must_use]
pub fn explore(
    guards: Guards,
    breaks: Option<&'static str>,
) -> (usize, Vec<&'static str>, Vec<&'static str>) {
    let until = breaks.map_or(HasDiscoveries::AnyFailures, |name| HasDiscoveries::AllOf([name].into()));
    let checker = guards.checker().finish_when(until).spawn_bfs().join();
    let found = checker.discoveries();
    let broken = [ONCE, EXECUTED, NEWEST].into_iter().filter(|name| found.contains_key(name)).collect();
    let possible = guards.properties().into_iter().map(|property| property.name);
    let impossible = possible
        .filter(|name| ![ONCE, EXECUTED, NEWEST].contains(name) && !found.contains_key(name))
        .collect();
    (checker.unique_state_count(), broken, impossible)
}
