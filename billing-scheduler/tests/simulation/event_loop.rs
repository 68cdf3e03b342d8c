//! The event loop of the simulation: the time, the daemons and the scheduled events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use billing_scheduler::{
    ControlAction, JobContext, ManualClock, MemoryStore, Scheduler,
    chrono::{DateTime, TimeDelta, Utc},
};
use tokio::sync::{Notify, oneshot};

use crate::{membership::Membership, operators::Operators, random::Random};

/// The number of daemons.
pub(crate) const DAEMONS: usize = 3;
/// The period of the job `latest`, in seconds, until an operator edits it.
pub(crate) const PERIOD_S: u64 = 40;
/// The duration of the first phase, in which faults occur.
pub(crate) const FAULT_PHASE: Duration = Duration::from_mins(3);
/// The duration of the second phase, without faults.
pub(crate) const QUIET_PHASE: Duration = Duration::from_mins(2);
/// In the second phase, a job runs within this time.
pub(crate) const DEADLINE: TimeDelta = TimeDelta::minutes(1);

/// The simulated hosts, the store and the checks.
pub(crate) struct World {
    pub(crate) seed: u64,
    /// Nanoseconds since the beginning.
    pub(crate) now: AtomicU64,
    /// The error of each daemon's wall clock, in milliseconds.
    pub(crate) skew: [AtomicI64; DAEMONS],
    /// Whether the store has a clock, which the daemons follow: they correct their wall clocks if the difference is large.
    pub(crate) follows_store: bool,
    /// Whether a wall clock is set during the simulation.
    pub(crate) clocks_jump: AtomicBool,
    /// The period of the job `latest` in each daemon's configuration, in seconds.
    pub(crate) period_s: [AtomicU64; DAEMONS],
    /// Whether each daemon's configuration has the job `extra`.
    pub(crate) has_extra: [AtomicBool; DAEMONS],
    pub(crate) store: MemoryStore,
    pub(crate) store_clock: ManualClock,
    pub(crate) state: Mutex<WorldState>,
}

#[derive(Default)]
pub(crate) struct WorldState {
    pub(crate) log: String,
    pub(crate) logged: bool,
    pub(crate) wrong: Option<String>,
    /// The scheduled events, ordered by time and then by the order of scheduling.
    pub(crate) plan: BTreeMap<(Duration, u64), Event>,
    pub(crate) planned: u64,
    pub(crate) daemons: [Daemon; DAEMONS],
    /// The number of requests of each process, by operation and job.
    pub(crate) sent: HashMap<(Life, &'static str, String), u64>,
    /// The observed history of each job.
    pub(crate) jobs: HashMap<String, JobHistory>,
    pub(crate) finished: HashSet<(String, DateTime<Utc>)>,
    pub(crate) finished_by_node: HashMap<Life, HashSet<DateTime<Utc>>>,
    pub(crate) active_runs: Vec<(Life, JobContext)>,
    pub(crate) operators: Operators,
    pub(crate) membership: Membership,
}

#[derive(Default)]
pub(crate) struct Daemon {
    pub(crate) life: u64,
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) paused: bool,
    /// The latest observed time of its wall clock since the start.
    pub(crate) latest_wall: Option<DateTime<Utc>>,
    /// The tasks that are due during the pause.
    pub(crate) held: Vec<oneshot::Sender<()>>,
}

pub(crate) struct JobHistory {
    pub(crate) first: DateTime<Utc>,
    pub(crate) cursor: DateTime<Utc>,
    pub(crate) fencing_token: i64,
}

/// One process: a daemon from one start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    pub(crate) daemon: usize,
    pub(crate) life: u64,
}

pub(crate) enum Event {
    Start(usize),
    Tick(Life),
    Pause(usize, Duration),
    Resume(usize),
    Die(usize),
    Drain(usize),
    Jump(usize, i64),
    Request(&'static str, ControlAction),
    Edit(usize, u64),
    /// Adds the job `extra` to a daemon, or removes it.
    Put(usize, bool),
    Quiet,
    /// Wakes a task of the process, or a request on its way to the store.
    Wake(Option<Life>, oneshot::Sender<()>),
}

impl World {
    pub(crate) fn new(seed: u64, logged: bool) -> Arc<Self> {
        let store_clock = ManualClock::at(beginning());
        let store = MemoryStore::new(Arc::new(store_clock.clone()));
        let follows_store = seed.is_multiple_of(2);
        let store = if follows_store { store.reporting_time() } else { store };
        let state = WorldState { logged, ..WorldState::default() };
        Arc::new(Self {
            seed,
            now: AtomicU64::new(0),
            skew: Default::default(),
            follows_store,
            clocks_jump: AtomicBool::new(false),
            period_s: std::array::from_fn(|_| AtomicU64::new(PERIOD_S)),
            has_extra: std::array::from_fn(|_| AtomicBool::new(true)),
            store,
            store_clock,
            state: Mutex::new(state),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }

    pub(crate) fn wall(&self, daemon: usize) -> DateTime<Utc> {
        let skew = TimeDelta::milliseconds(self.skew[daemon].load(Ordering::Relaxed));
        beginning() + TimeDelta::from_std(self.now()).expect("minutes") + skew
    }

    pub(crate) fn log(&self, line: fmt::Arguments<'_>) {
        let mut state = self.state();
        if state.logged {
            let line = format!("{:>14.9} {line}\n", self.now().as_secs_f64());
            state.log.push_str(&line);
        }
    }

    /// Records a failed check, which ends the simulation.
    pub(crate) fn wrong(&self, what: String) {
        self.log(format_args!("WRONG: {what}"));
        self.state().wrong.get_or_insert(what);
    }

    /// Runs the simulation. `idle` is notified when every task waits for an event.
    pub(crate) async fn run(self: &Arc<Self>, idle: &Notify) {
        self.plan_faults();
        loop {
            idle.notified().await;
            let next = {
                let mut state = self.state();
                if state.wrong.is_some() { None } else { state.plan.pop_first() }
            };
            let Some(((at, _), event)) = next else { return };
            if at > FAULT_PHASE + QUIET_PHASE {
                break;
            }
            let passed = at.saturating_sub(self.now());
            self.now.fetch_add(u64::try_from(passed.as_nanos()).expect("minutes"), Ordering::Relaxed);
            self.store_clock.advance(passed);
            self.apply(event);
        }
        self.check_at_end();
    }

    pub(crate) fn plan(&self, after: Duration, event: Event) {
        let mut state = self.state();
        state.planned += 1;
        let key = (self.now() + after, state.planned);
        state.plan.insert(key, event);
    }

    fn plan_faults(&self) {
        for daemon in 0..DAEMONS {
            let mut random = Random::new(self.seed, ("storm", daemon));
            self.skew[daemon]
                .store(i64::try_from(random.below(4_000)).expect("small") - 2_000, Ordering::Relaxed);
            self.plan(random.time(0, 5_000), Event::Start(daemon));
            for _ in 0..random.below(7) {
                let at = random.time(0, 170_000);
                let event = match random.below(8) {
                    0 | 1 => Event::Die(daemon),
                    2 => Event::Drain(daemon),
                    3 | 4 => {
                        self.clocks_jump.store(true, Ordering::Relaxed);
                        Event::Jump(daemon, i64::try_from(random.below(600_000)).expect("small") - 300_000)
                    }
                    _ => Event::Pause(daemon, random.time(500, 40_000)),
                };
                self.plan(at, event);
            }
        }
        self.plan_requests();
        self.plan_resets();
        self.plan_membership();
        self.plan(FAULT_PHASE, Event::Quiet);
    }

    fn apply(self: &Arc<Self>, event: Event) {
        match event {
            Event::Start(daemon) => self.start(daemon),
            Event::Tick(life) => self.tick(life),
            Event::Pause(daemon, duration) => {
                self.log(format_args!("{daemon} is paused"));
                self.state().daemons[daemon].paused = true;
                self.plan(duration, Event::Resume(daemon));
            }
            Event::Resume(daemon) => self.resume(daemon),
            Event::Die(daemon) => {
                self.log(format_args!("{daemon} dies"));
                self.end(daemon);
            }
            Event::Drain(daemon) => self.drain(daemon),
            Event::Jump(daemon, ms) => {
                self.log(format_args!("the clock of {daemon} jumps by {ms} ms"));
                self.observe_wall(daemon);
                self.skew[daemon].fetch_add(ms, Ordering::Relaxed);
            }
            Event::Request(job, what) => self.send(job, what),
            Event::Edit(daemon, period_s) => self.edit(daemon, period_s),
            Event::Put(daemon, is_present) => self.put_extra(daemon, is_present),
            Event::Quiet => {
                self.log(format_args!("the faults end"));
                for job in ["each", "latest", "own"] {
                    self.send(job, ControlAction::Resume);
                }
                for daemon in 0..DAEMONS {
                    self.observe_wall(daemon);
                    self.skew[daemon].store(0, Ordering::Relaxed);
                    self.resume(daemon);
                    self.start(daemon);
                    self.edit(daemon, self.period_s[0].load(Ordering::Relaxed));
                    self.put_extra(daemon, true);
                }
            }
            Event::Wake(life, sleeper) => {
                let mut state = self.state();
                match life {
                    Some(life) if !state.is_alive(life) => {}
                    Some(life) if state.daemons[life.daemon].paused => {
                        state.daemons[life.daemon].held.push(sleeper);
                    }
                    // The task may have been cancelled.
                    _ => drop(sleeper.send(())),
                }
            }
        }
    }

    fn start(self: &Arc<Self>, daemon: usize) {
        let life = {
            let mut state = self.state();
            let daemon_of = &mut state.daemons[daemon];
            if daemon_of.scheduler.is_some() {
                return;
            }
            *daemon_of = Daemon { life: daemon_of.life + 1, ..Daemon::default() };
            Life { daemon, life: daemon_of.life }
        };
        self.log(format_args!("{daemon} starts"));
        self.observe_wall(daemon);
        let scheduler = self.scheduler(life);
        self.state().daemons[daemon].scheduler = Some(scheduler.clone());
        self.plan(Duration::from_nanos(life.life), Event::Tick(life));
        let clock = self.clock(life);
        tokio::spawn(async move {
            loop {
                clock.sleep(Duration::from_secs(3)).await;
                scheduler.renew_leases().await;
            }
        });
    }

    fn observe_wall(&self, daemon: usize) {
        let wall = self.wall(daemon);
        let mut state = self.state();
        let latest = &mut state.daemons[daemon].latest_wall;
        *latest = (*latest).max(Some(wall));
    }

    fn tick(&self, life: Life) {
        let scheduler = {
            let state = self.state();
            if !state.is_alive(life) {
                return;
            }
            let daemon = &state.daemons[life.daemon];
            daemon.scheduler.clone().filter(|_| !daemon.paused)
        };
        if let Some(scheduler) = scheduler {
            scheduler.tick();
        }
        self.plan(Duration::from_secs(1), Event::Tick(life));
    }

    fn resume(&self, daemon: usize) {
        let (life, held) = {
            let mut state = self.state();
            let daemon_of = &mut state.daemons[daemon];
            daemon_of.paused = false;
            (Life { daemon, life: daemon_of.life }, std::mem::take(&mut daemon_of.held))
        };
        self.log(format_args!("{daemon} is resumed"));
        for (place, sleeper) in held.into_iter().enumerate() {
            self.plan(Duration::from_nanos(place as u64), Event::Wake(Some(life), sleeper));
        }
    }

    fn end(&self, daemon: usize) {
        let mut state = self.state();
        let daemon_of = &mut state.daemons[daemon];
        if daemon_of.scheduler.take().is_none() {
            return;
        }
        let ended = Life { daemon, life: daemon_of.life };
        daemon_of.held.clear();
        state.active_runs.retain(|(life, _)| *life != ended);
        drop(state);
        let pause = Random::new(self.seed, ("restart", ended)).time(0, 20_000);
        self.plan(pause, Event::Start(daemon));
    }

    fn drain(self: &Arc<Self>, daemon: usize) {
        let world = Arc::clone(self);
        let (life, scheduler) = {
            let state = self.state();
            (Life { daemon, life: state.daemons[daemon].life }, state.daemons[daemon].scheduler.clone())
        };
        self.log(format_args!("{daemon} is drained"));
        let Some(scheduler) = scheduler else { return };
        tokio::spawn(async move {
            world.wait_while_paused(life).await;
            scheduler.drain(Duration::from_secs(5)).await;
            if world.state().is_alive(life) {
                world.log(format_args!("{daemon} has ended"));
                world.end(daemon);
            }
        });
    }

    /// Returns after `after`; for a process, not while it is paused, and never if it is dead.
    pub(crate) async fn sleep(&self, life: Option<Life>, after: Duration) {
        let (sleeper, woken) = oneshot::channel();
        self.plan(after, Event::Wake(life, sleeper));
        if woken.await.is_err() {
            pending::<()>().await;
        }
    }

    /// Returns at once, unless the process is paused or dead.
    pub(crate) async fn wait_while_paused(&self, life: Life) {
        let free = {
            let state = self.state();
            state.is_alive(life) && !state.daemons[life.daemon].paused
        };
        if !free {
            self.sleep(Some(life), Duration::ZERO).await;
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.now() >= FAULT_PHASE
    }
}

impl WorldState {
    pub(crate) fn is_alive(&self, life: Life) -> bool {
        let daemon = &self.daemons[life.daemon];
        daemon.life == life.life && daemon.scheduler.is_some()
    }
}

pub(crate) fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_772_366_400, 0).expect("noon on a day in March")
}
