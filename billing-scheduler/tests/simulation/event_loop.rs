//! What time it is, who lives, and what happens next.

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

use crate::{operators::People, random::Dice};

/// How many daemons there are.
pub(crate) const DAEMONS: usize = 3;
/// How often the job `latest` runs, in seconds, until somebody edits it.
pub(crate) const PERIOD_S: u64 = 40;
/// How long things go wrong.
pub(crate) const STORM: Duration = Duration::from_mins(3);
/// How long they go right afterwards.
pub(crate) const CALM: Duration = Duration::from_mins(2);
/// By then at the latest, whatever was due is done.
pub(crate) const LATEST: TimeDelta = TimeDelta::minutes(1);

/// The one that knows everything: what time it is, who lives, what happens next, and what must never happen.
pub(crate) struct World {
    pub(crate) seed: u64,
    /// Nanoseconds since the story began.
    pub(crate) now: AtomicU64,
    /// How far each daemon's wall clock is off, in milliseconds.
    pub(crate) skew: [AtomicI64; DAEMONS],
    /// Whether anybody sets a clock during the storm.
    pub(crate) clocks_jump: AtomicBool,
    /// How often each daemon runs the job `latest`, in seconds.
    pub(crate) period_s: [AtomicU64; DAEMONS],
    pub(crate) store: MemoryStore,
    pub(crate) store_clock: ManualClock,
    pub(crate) plot: Mutex<Plot>,
}

#[derive(Default)]
pub(crate) struct Plot {
    pub(crate) log: String,
    pub(crate) logged: bool,
    pub(crate) wrong: Option<String>,
    /// What happens next; of things at the same time, the one that was planned first.
    pub(crate) plan: BTreeMap<(Duration, u64), Event>,
    pub(crate) planned: u64,
    pub(crate) daemons: [Daemon; DAEMONS],
    /// How often each operation was asked for.
    pub(crate) asked: HashMap<(Life, &'static str, String), u64>,
    /// Of each job: its first cursor, the last one, and the number of the newest claim.
    pub(crate) jobs: HashMap<String, Witnessed>,
    pub(crate) finished: HashSet<(String, DateTime<Utc>)>,
    pub(crate) finished_by_node: HashMap<Life, HashSet<DateTime<Utc>>>,
    pub(crate) runs_under_way: Vec<(Life, JobContext)>,
    pub(crate) people: People,
}

#[derive(Default)]
pub(crate) struct Daemon {
    pub(crate) life: u64,
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) paused: bool,
    /// The latest time that its wall clock has shown in this life, when it was looked at.
    pub(crate) latest_wall: Option<DateTime<Utc>>,
    /// Who would have gone on during the pause.
    pub(crate) held: Vec<oneshot::Sender<()>>,
}

pub(crate) struct Witnessed {
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
    Calm,
    /// Of a task of that process, or of a request on its way to the store.
    Wake(Option<Life>, oneshot::Sender<()>),
}

impl World {
    pub(crate) fn new(seed: u64, logged: bool) -> Arc<Self> {
        let store_clock = ManualClock::at(beginning());
        let store = MemoryStore::new(Arc::new(store_clock.clone()));
        let plot = Plot { logged, ..Plot::default() };
        Arc::new(Self {
            seed,
            now: AtomicU64::new(0),
            skew: Default::default(),
            clocks_jump: AtomicBool::new(false),
            period_s: std::array::from_fn(|_| AtomicU64::new(PERIOD_S)),
            store,
            store_clock,
            plot: Mutex::new(plot),
        })
    }

    pub(crate) fn plot(&self) -> MutexGuard<'_, Plot> {
        self.plot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }

    pub(crate) fn wall(&self, daemon: usize) -> DateTime<Utc> {
        let skew = TimeDelta::milliseconds(self.skew[daemon].load(Ordering::Relaxed));
        beginning() + TimeDelta::from_std(self.now()).expect("minutes") + skew
    }

    pub(crate) fn log(&self, line: fmt::Arguments<'_>) {
        let mut plot = self.plot();
        if plot.logged {
            let line = format!("{:>14.9} {line}\n", self.now().as_secs_f64());
            plot.log.push_str(&line);
        }
    }

    /// The story ends here.
    pub(crate) fn wrong(&self, what: String) {
        self.log(format_args!("WRONG: {what}"));
        self.plot().wrong.get_or_insert(what);
    }

    /// Tells the story to its end. `idle` is told when nobody can do anything until something happens.
    pub(crate) async fn run(self: &Arc<Self>, idle: &Notify) {
        self.plan_the_storm();
        loop {
            idle.notified().await;
            let next = {
                let mut plot = self.plot();
                if plot.wrong.is_some() { None } else { plot.plan.pop_first() }
            };
            let Some(((at, _), event)) = next else { return };
            if at > STORM + CALM {
                break;
            }
            let passed = at.saturating_sub(self.now());
            self.now.fetch_add(u64::try_from(passed.as_nanos()).expect("minutes"), Ordering::Relaxed);
            self.store_clock.advance(passed);
            self.happen(event);
        }
        self.look_back();
    }

    pub(crate) fn plan(&self, after: Duration, event: Event) {
        let mut plot = self.plot();
        plot.planned += 1;
        let key = (self.now() + after, plot.planned);
        plot.plan.insert(key, event);
    }

    fn plan_the_storm(&self) {
        for daemon in 0..DAEMONS {
            let mut dice = Dice::new(self.seed, ("storm", daemon));
            self.skew[daemon]
                .store(i64::try_from(dice.roll(4_000)).expect("small") - 2_000, Ordering::Relaxed);
            self.plan(dice.time(0, 5_000), Event::Start(daemon));
            for _ in 0..dice.roll(7) {
                let at = dice.time(0, 170_000);
                let event = match dice.roll(8) {
                    0 | 1 => Event::Die(daemon),
                    2 => Event::Drain(daemon),
                    3 | 4 => {
                        self.clocks_jump.store(true, Ordering::Relaxed);
                        Event::Jump(daemon, i64::try_from(dice.roll(600_000)).expect("small") - 300_000)
                    }
                    _ => Event::Pause(daemon, dice.time(500, 40_000)),
                };
                self.plan(at, event);
            }
        }
        self.plan_what_people_do();
        self.plan_resets();
        self.plan(STORM, Event::Calm);
    }

    fn happen(self: &Arc<Self>, event: Event) {
        match event {
            Event::Start(daemon) => self.start(daemon),
            Event::Tick(life) => self.tick(life),
            Event::Pause(daemon, duration) => {
                self.log(format_args!("{daemon} is paused"));
                self.plot().daemons[daemon].paused = true;
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
                self.look_at_the_wall(daemon);
                self.skew[daemon].fetch_add(ms, Ordering::Relaxed);
            }
            Event::Request(job, what) => self.ask(job, what),
            Event::Edit(daemon, period_s) => self.edit(daemon, period_s),
            Event::Calm => {
                self.log(format_args!("the storm is over"));
                for job in ["each", "latest", "own"] {
                    self.ask(job, ControlAction::Resume);
                }
                for daemon in 0..DAEMONS {
                    self.look_at_the_wall(daemon);
                    self.skew[daemon].store(0, Ordering::Relaxed);
                    self.resume(daemon);
                    self.start(daemon);
                    self.edit(daemon, self.period_s[0].load(Ordering::Relaxed));
                }
            }
            Event::Wake(life, sleeper) => {
                let mut plot = self.plot();
                match life {
                    Some(life) if !plot.lives(life) => {}
                    Some(life) if plot.daemons[life.daemon].paused => {
                        plot.daemons[life.daemon].held.push(sleeper);
                    }
                    // Whoever slept may have been cancelled.
                    _ => drop(sleeper.send(())),
                }
            }
        }
    }

    fn start(self: &Arc<Self>, daemon: usize) {
        let life = {
            let mut plot = self.plot();
            let daemon_of = &mut plot.daemons[daemon];
            if daemon_of.scheduler.is_some() {
                return;
            }
            *daemon_of = Daemon { life: daemon_of.life + 1, ..Daemon::default() };
            Life { daemon, life: daemon_of.life }
        };
        self.log(format_args!("{daemon} starts"));
        self.look_at_the_wall(daemon);
        let scheduler = self.scheduler(life);
        self.plot().daemons[daemon].scheduler = Some(scheduler.clone());
        self.plan(Duration::from_nanos(life.life), Event::Tick(life));
        let clock = self.clock(life);
        tokio::spawn(async move {
            loop {
                clock.sleep(Duration::from_secs(3)).await;
                scheduler.renew_leases().await;
            }
        });
    }

    fn look_at_the_wall(&self, daemon: usize) {
        let wall = self.wall(daemon);
        let mut plot = self.plot();
        let latest = &mut plot.daemons[daemon].latest_wall;
        *latest = (*latest).max(Some(wall));
    }

    fn tick(&self, life: Life) {
        let scheduler = {
            let plot = self.plot();
            if !plot.lives(life) {
                return;
            }
            let daemon = &plot.daemons[life.daemon];
            daemon.scheduler.clone().filter(|_| !daemon.paused)
        };
        if let Some(scheduler) = scheduler {
            scheduler.tick();
        }
        self.plan(Duration::from_secs(1), Event::Tick(life));
    }

    fn resume(&self, daemon: usize) {
        let (life, held) = {
            let mut plot = self.plot();
            let daemon_of = &mut plot.daemons[daemon];
            daemon_of.paused = false;
            (Life { daemon, life: daemon_of.life }, std::mem::take(&mut daemon_of.held))
        };
        self.log(format_args!("{daemon} goes on"));
        for (place, sleeper) in held.into_iter().enumerate() {
            self.plan(Duration::from_nanos(place as u64), Event::Wake(Some(life), sleeper));
        }
    }

    fn end(&self, daemon: usize) {
        let mut plot = self.plot();
        let daemon_of = &mut plot.daemons[daemon];
        if daemon_of.scheduler.take().is_none() {
            return;
        }
        let ended = Life { daemon, life: daemon_of.life };
        daemon_of.held.clear();
        plot.runs_under_way.retain(|(life, _)| *life != ended);
        drop(plot);
        let pause = Dice::new(self.seed, ("restart", ended)).time(0, 20_000);
        self.plan(pause, Event::Start(daemon));
    }

    fn drain(self: &Arc<Self>, daemon: usize) {
        let world = Arc::clone(self);
        let (life, scheduler) = {
            let plot = self.plot();
            (Life { daemon, life: plot.daemons[daemon].life }, plot.daemons[daemon].scheduler.clone())
        };
        self.log(format_args!("{daemon} is drained"));
        let Some(scheduler) = scheduler else { return };
        tokio::spawn(async move {
            world.pass(life).await;
            scheduler.drain(Duration::from_secs(5)).await;
            if world.plot().lives(life) {
                world.log(format_args!("{daemon} has ended"));
                world.end(daemon);
            }
        });
    }

    /// Returns when `after` has passed; of a process, not before it goes on, and never if it is dead.
    pub(crate) async fn sleep(&self, life: Option<Life>, after: Duration) {
        let (sleeper, woken) = oneshot::channel();
        self.plan(after, Event::Wake(life, sleeper));
        if woken.await.is_err() {
            pending::<()>().await;
        }
    }

    /// Returns at once, unless the process is paused or dead.
    pub(crate) async fn pass(&self, life: Life) {
        let free = {
            let plot = self.plot();
            plot.lives(life) && !plot.daemons[life.daemon].paused
        };
        if !free {
            self.sleep(Some(life), Duration::ZERO).await;
        }
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.now() >= STORM
    }
}

impl Plot {
    pub(crate) fn lives(&self, life: Life) -> bool {
        let daemon = &self.daemons[life.daemon];
        daemon.life == life.life && daemon.scheduler.is_some()
    }
}

pub(crate) fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_772_366_400, 0).expect("noon on a day in March")
}
