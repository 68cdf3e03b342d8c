//! Several daemons over one failing store, on clocks that jump, from a seed: `SEED=7 cargo test` tells one story again,
//! `SEEDS=100000` tells more of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env, fmt,
    future::pending,
    hash::{DefaultHasher, Hash, Hasher},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, Clock, FencingToken, Job, JobContext, JobError, JobSpec, JobState, Lease, ManualClock,
    MemoryStore, Misfire, Occurrence, Outcome, Registry, Retry, RunRecord, RunStatus, Schedule, Scheduler,
    Scope, StopHandle, StopReason, Store, StoreError,
    chrono::{DateTime, TimeDelta, Utc},
    serde_json::{Value, json},
};
use tokio::{
    runtime::Builder,
    sync::{Notify, oneshot},
};

/// How many stories a plain `cargo test` tells.
const SEEDS: u64 = 10_000;
/// How many daemons there are.
const DAEMONS: usize = 3;
/// How long things go wrong.
const STORM: Duration = Duration::from_mins(3);
/// How long they go right afterwards.
const CALM: Duration = Duration::from_mins(2);
/// By then at the latest, whatever was due is done.
const LATEST: TimeDelta = TimeDelta::minutes(1);
/// How long a run may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often a failed occurrence is tried.
const MAX_ATTEMPTS: u32 = 3;

#[test]
fn whatever_fails_each_occurrence_is_finished_once_and_none_is_lost() {
    if let Some(seed) = number("SEED") {
        let story = tell(seed, true);
        println!("{}", story.log);
        assert_eq!(story.wrong, None);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if let Some(wrong) = tell(seed, false).wrong {
                        next.store(seeds, Ordering::Relaxed);
                        panic!("{wrong}\n\nSEED={seed} tells it again");
                    }
                }
            });
        }
    });
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in 0..20 {
        assert!(tell(seed, true).log == tell(seed, true).log, "seed {seed} does not");
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

struct Story {
    log: String,
    wrong: Option<String>,
}

/// Everything that happens under one seed.
fn tell(seed: u64, logged: bool) -> Story {
    let idle = Arc::new(Notify::new());
    let parked = Arc::clone(&idle);
    let runtime = Builder::new_current_thread()
        .on_thread_park(move || parked.notify_one())
        .build()
        .expect("a runtime without drivers");
    let world = World::new(seed, logged);
    runtime.block_on(world.run(&idle));
    drop(runtime);
    // The daemons in it know the world, and would keep it for ever.
    let plot = std::mem::take(&mut *world.plot());
    Story { log: plot.log, wrong: plot.wrong }
}

/// Chance that depends on the seed and on what it is for, and on nothing else: so a story does not change its course with the
/// order in which things are asked.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, what).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// One of `0..sides`, another one each time.
    fn roll(&mut self, sides: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % sides
    }

    /// Some time, to the nanosecond, so that no two things happen at once.
    fn time(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_nanos(from_ms * 1_000_000 + self.roll((to_ms - from_ms) * 1_000_000))
    }
}

/// The one that knows everything: what time it is, who lives, what happens next, and what must never happen.
struct World {
    seed: u64,
    /// Nanoseconds since the story began.
    now: AtomicU64,
    /// How far each daemon's wall clock is off, in milliseconds.
    skew: [AtomicI64; DAEMONS],
    store: MemoryStore,
    store_clock: ManualClock,
    plot: Mutex<Plot>,
}

#[derive(Default)]
struct Plot {
    log: String,
    logged: bool,
    wrong: Option<String>,
    /// What happens next; of things at the same time, the one that was planned first.
    plan: BTreeMap<(Duration, u64), Event>,
    planned: u64,
    daemons: [Daemon; DAEMONS],
    /// How often each operation was asked for.
    asked: HashMap<(Life, &'static str, String), u64>,
    /// Of each job: its first cursor, the last one, and the number of the newest claim.
    jobs: HashMap<String, Witnessed>,
    finished: HashSet<(String, DateTime<Utc>)>,
    finished_by_node: HashMap<Life, HashSet<DateTime<Utc>>>,
    runs_under_way: Vec<(Life, JobContext)>,
}

#[derive(Default)]
struct Daemon {
    life: u64,
    scheduler: Option<Scheduler>,
    paused: bool,
    /// The latest time that its wall clock has shown in this life, when it was looked at.
    latest_wall: Option<DateTime<Utc>>,
    /// Who would have gone on during the pause.
    held: Vec<oneshot::Sender<()>>,
}

struct Witnessed {
    first: DateTime<Utc>,
    cursor: DateTime<Utc>,
    fence: i64,
}

/// One process: a daemon from one start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Life {
    daemon: usize,
    life: u64,
}

enum Event {
    Start(usize),
    Tick(Life),
    Pause(usize, Duration),
    Resume(usize),
    Die(usize),
    Drain(usize),
    Jump(usize, i64),
    Calm,
    /// Of a task of that process, or of a request on its way to the store.
    Wake(Option<Life>, oneshot::Sender<()>),
}

impl World {
    fn new(seed: u64, logged: bool) -> Arc<Self> {
        let store_clock = ManualClock::at(beginning());
        let store = MemoryStore::new(Arc::new(store_clock.clone()));
        let plot = Plot { logged, ..Plot::default() };
        Arc::new(Self {
            seed,
            now: AtomicU64::new(0),
            skew: Default::default(),
            store,
            store_clock,
            plot: Mutex::new(plot),
        })
    }

    fn plot(&self) -> MutexGuard<'_, Plot> {
        self.plot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn wall(&self, daemon: usize) -> DateTime<Utc> {
        let skew = TimeDelta::milliseconds(self.skew[daemon].load(Ordering::Relaxed));
        beginning() + TimeDelta::from_std(self.now()).expect("minutes") + skew
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        let mut plot = self.plot();
        if plot.logged {
            let line = format!("{:>14.9} {line}\n", self.now().as_secs_f64());
            plot.log.push_str(&line);
        }
    }

    /// The story ends here.
    fn wrong(&self, what: String) {
        self.log(format_args!("WRONG: {what}"));
        self.plot().wrong.get_or_insert(what);
    }

    /// Tells the story to its end. `idle` is told when nobody can do anything until something happens.
    async fn run(self: &Arc<Self>, idle: &Notify) {
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

    fn plan(&self, after: Duration, event: Event) {
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
                    3 | 4 => Event::Jump(daemon, i64::try_from(dice.roll(600_000)).expect("small") - 300_000),
                    _ => Event::Pause(daemon, dice.time(500, 40_000)),
                };
                self.plan(at, event);
            }
        }
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
            Event::Calm => {
                self.log(format_args!("the storm is over"));
                for daemon in 0..DAEMONS {
                    self.look_at_the_wall(daemon);
                    self.skew[daemon].store(0, Ordering::Relaxed);
                    self.resume(daemon);
                    self.start(daemon);
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

    fn scheduler(self: &Arc<Self>, life: Life) -> Scheduler {
        let mut registry = Registry::new();
        let world = Arc::clone(self);
        registry.register("act", move |_: Value| Act { world: Arc::clone(&world), life });
        let spec = |name: &str, seconds, misfire, scope| {
            let schedule = Schedule::every(Duration::from_secs(seconds)).expect("a period");
            let retry = Retry {
                max_attempts: MAX_ATTEMPTS,
                backoff: Duration::from_secs(2),
                max_backoff: Duration::from_secs(5),
            };
            let spec = JobSpec::new(name, "act", schedule);
            (JobSpec { misfire, scope, timeout: TIMEOUT, retry, ..spec }, json!({}))
        };
        let specs = [
            spec("each", 15, Misfire::CatchUp, Scope::Cluster),
            spec("latest", 40, Misfire::Coalesce, Scope::Cluster),
            spec("own", 20, Misfire::CatchUp, Scope::Node),
        ];
        let holder = format!("{}.{}", life.daemon, life.life);
        let store = FaultyStore { world: Arc::clone(self), life, store: self.store.as_holder(holder) };
        Scheduler::build(&registry, specs, Arc::new(store), self.clock(life)).expect("a known kind")
    }

    fn look_at_the_wall(&self, daemon: usize) {
        let wall = self.wall(daemon);
        let mut plot = self.plot();
        let latest = &mut plot.daemons[daemon].latest_wall;
        *latest = (*latest).max(Some(wall));
    }

    fn clock(self: &Arc<Self>, life: Life) -> Arc<dyn Clock> {
        Arc::new(DaemonClock { world: Arc::clone(self), life })
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
    async fn sleep(&self, life: Option<Life>, after: Duration) {
        let (sleeper, woken) = oneshot::channel();
        self.plan(after, Event::Wake(life, sleeper));
        if woken.await.is_err() {
            pending::<()>().await;
        }
    }

    /// Returns at once, unless the process is paused or dead.
    async fn pass(&self, life: Life) {
        let free = {
            let plot = self.plot();
            plot.lives(life) && !plot.daemons[life.daemon].paused
        };
        if !free {
            self.sleep(Some(life), Duration::ZERO).await;
        }
    }

    fn is_calm(&self) -> bool {
        self.now() >= STORM
    }

    /// What must be so when everything has been well for a while.
    fn look_back(&self) {
        let mut plot = self.plot();
        let due = self.wall(0) - LATEST;
        let mut wrong = Vec::new();
        for name in ["each", "latest"] {
            let Some(job) = plot.jobs.get(name) else {
                wrong.push(format!("job `{name}` never ran"));
                continue;
            };
            if job.cursor < due {
                wrong.push(format!("job `{name}` is stuck at {}", job.cursor));
            }
        }
        if let Some(each) = plot.jobs.get("each") {
            let mut at = each.first;
            let schedule = Schedule::every(Duration::from_secs(15)).expect("a period");
            while let Ok(Some(next)) = schedule.next_after(at) {
                at = next;
                if at > each.cursor {
                    break;
                }
                if !plot.finished.contains(&("each".to_owned(), at)) {
                    wrong.push(format!("{at} of job `each` is lost"));
                }
            }
        }
        for (daemon, of) in plot.daemons.iter().enumerate() {
            let life = Life { daemon, life: of.life };
            // A clock that was ahead has made it run what is not due yet.
            if of.latest_wall.is_some_and(|latest| latest > due) {
                continue;
            }
            let last = plot.finished_by_node.get(&life).and_then(|times| times.iter().max());
            if last.is_none_or(|last| *last < due) {
                wrong.push(format!("job `own` of {daemon} is stuck at {last:?}"));
            }
        }
        if !wrong.is_empty() {
            plot.wrong = Some(wrong.join("; "));
        }
    }
}

impl Plot {
    fn lives(&self, life: Life) -> bool {
        let daemon = &self.daemons[life.daemon];
        daemon.life == life.life && daemon.scheduler.is_some()
    }
}

fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_772_366_400, 0).expect("noon on a day in March")
}

/// A process's clocks: the wall clock may be wrong, and whoever sleeps sleeps through a pause.
struct DaemonClock {
    world: Arc<World>,
    life: Life,
}

impl fmt::Debug for DaemonClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the clock of {}", self.life.daemon)
    }
}

#[async_trait]
impl Clock for DaemonClock {
    fn now(&self) -> DateTime<Utc> {
        self.world.wall(self.life.daemon)
    }

    fn monotonic(&self) -> Duration {
        self.world.now()
    }

    async fn sleep(&self, duration: Duration) {
        self.world.sleep(Some(self.life), duration).await;
    }
}

/// A job that does anything that a job may do.
struct Act {
    world: Arc<World>,
    life: Life,
}

#[async_trait]
impl Job for Act {
    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let Self { world, life } = self;
        let job = ctx.occurrence.job.as_str();
        let mut dice = Dice::new(world.seed, (life, &ctx.occurrence, ctx.attempt, ctx.fence));
        let _under_way = UnderWay::begin(world, *life, ctx);
        world.log(format_args!(
            "{} runs {}, attempt {}, fence {}",
            life.daemon, ctx.occurrence, ctx.attempt, ctx.fence
        ));
        if let Some(reason) = ctx.stop_requested() {
            world.wrong(format!("a run of `{job}` began although {reason}"));
        }
        if ctx.attempt > MAX_ATTEMPTS {
            world.wrong(format!("attempt {} of {}", ctx.attempt, ctx.occurrence));
        }
        let part = if world.is_calm() { 0 } else { dice.roll(100) };
        let (steps, listens) = match part {
            0..70 => (1 + dice.roll(3), true),
            70..85 => (5 + dice.roll(20), true),
            85..95 => (5 + dice.roll(20), false),
            95..98 => {
                ctx.stopped().await;
                if ctx.stop_requested().is_none() {
                    world.wrong(format!("a run of `{job}` was told to stop for no reason"));
                }
                return Ok(Outcome::Interrupted { items: 0 });
            }
            _ => pending().await,
        };
        for _ in 0..steps {
            ctx.clock().sleep(dice.time(50, 1_500)).await;
            world.check_alone(*life, ctx);
            if listens && ctx.stop_requested().is_some() {
                return Ok(Outcome::Interrupted { items: 0 });
            }
        }
        let result = if world.is_calm() { 0 } else { dice.roll(10) };
        match result {
            0..7 => Ok(Outcome::done(1)),
            7 | 8 => Err(JobError::retry("boom")),
            _ => Err(JobError::fatal("never")),
        }
    }
}

/// That a run is under way, until it ends or is aborted.
struct UnderWay {
    world: Arc<World>,
    run: uuid::Uuid,
}

impl UnderWay {
    fn begin(world: &Arc<World>, life: Life, ctx: &JobContext) -> Self {
        world.check_alone(life, ctx);
        world.plot().runs_under_way.push((life, ctx.clone()));
        Self { world: Arc::clone(world), run: ctx.run_id }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.world.plot().runs_under_way.retain(|(_, ctx)| ctx.run_id != self.run);
    }
}

impl World {
    /// Two runs of a job that both trust their leases must not be under way at once.
    fn check_alone(&self, life: Life, ctx: &JobContext) {
        if ctx.occurrence.job == "own" || ctx.stop_requested().is_some() {
            return;
        }
        let others: Vec<_> = self.plot().runs_under_way.clone();
        for (other, context) in others {
            let same = context.occurrence.job == ctx.occurrence.job && context.run_id != ctx.run_id;
            if same && context.stop_requested().is_none() {
                let (a, b) = (life.daemon, other.daemon);
                self.wrong(format!(
                    "{a} and {b} run `{}` at once, and both trust their leases",
                    ctx.occurrence.job
                ));
            }
        }
    }
}

/// The store over a bad line: a request may be late, lost or delivered twice, and so may its answer.
struct FaultyStore {
    world: Arc<World>,
    life: Life,
    store: MemoryStore,
}

/// What becomes of one request.
struct Fate {
    /// How often it is delivered, and after how long.
    deliveries: u32,
    delay: Duration,
    /// After how long its answer is there; `None`: it gets lost.
    answer: Option<Duration>,
    /// How long one waits who will get no answer.
    patience: Duration,
}

impl World {
    fn fate(&self, life: Life, verb: &'static str, job: &str) -> Fate {
        let nth = {
            let mut plot = self.plot();
            let asked = plot.asked.entry((life, verb, job.to_owned())).or_default();
            *asked += 1;
            *asked
        };
        // Some seeds have a good line, some a bad one.
        let bad = [2, 10, 30][usize::try_from(self.seed % 3).expect("small")];
        let mut dice = Dice::new(self.seed, (life, verb, job, nth));
        let delay = dice.time(0, 20);
        let answer = Some(dice.time(0, 20));
        let good = Fate { deliveries: 1, delay, answer, patience: dice.time(10, 5_000) };
        if self.is_calm() || dice.roll(100) >= bad {
            return good;
        }
        match dice.roll(6) {
            0 => Fate { delay: dice.time(0, 15_000), ..good },
            1 => Fate { answer: Some(dice.time(0, 15_000)), ..good },
            2 => Fate { deliveries: 2, ..good },
            3 => Fate { deliveries: 0, answer: None, ..good },
            4 => Fate { answer: None, ..good },
            // It arrives after it was given up.
            _ => Fate { answer: None, delay: dice.time(0, 15_000), ..good },
        }
    }
}

impl FaultyStore {
    /// Sends a request. `serve` is what the store does when it arrives, whoever still waits for the answer.
    async fn ask<T: Send + 'static>(
        &self,
        verb: &'static str,
        job: &str,
        serve: impl Fn() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Self { world, life, .. } = self;
        world.pass(*life).await;
        let Fate { deliveries, delay, answer, patience } = world.fate(*life, verb, job);
        let (daemon, job) = (life.daemon, job.to_owned());
        let (answers, answered) = oneshot::channel();
        let server = Arc::clone(world);
        tokio::spawn(async move {
            server.sleep(None, delay).await;
            let mut result = None;
            for _ in 0..deliveries {
                let reply = serve();
                let outcome = reply.as_ref().err();
                server.log(format_args!(
                    "{daemon} {verb} `{job}`: {}",
                    outcome.map_or(String::from("ok"), ToString::to_string)
                ));
                result = Some(reply);
            }
            // Nobody may be waiting any more.
            drop(answers.send(result));
        });
        let Some(late) = answer else {
            world.sleep(Some(*life), patience).await;
            return Err(StoreError::Unavailable("no answer".into()));
        };
        let result = answered.await.ok().flatten();
        world.sleep(Some(*life), late).await;
        result.unwrap_or_else(|| Err(StoreError::Unavailable("no answer".into())))
    }
}

fn at_once<T>(verb: impl Future<Output = T>) -> T {
    match pin!(verb).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("the memory store does not wait"),
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let (world, store, name) = (Arc::clone(&self.world), self.store.clone(), job.to_owned());
        self.ask("acquires", job, move || {
            let claim = at_once(store.acquire(&name, first_cursor))?;
            if let Claim::Held(lease) = &claim {
                world.witness_claim(lease);
            }
            Ok(claim)
        })
        .await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let (store, held) = (self.store.clone(), lease.clone());
        self.ask("renews", &lease.job, move || at_once(store.renew(&held))).await
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        let (world, store, life) = (Arc::clone(&self.world), self.store.clone(), self.life);
        let (lease, row, next) = (lease.cloned(), run.clone(), next.clone());
        self.ask("records", &run.job, move || {
            if lease.is_none() && !world.first_of_its_node(life, &row) {
                return Err(StoreError::AlreadyFinished {
                    job: row.job.clone(),
                    scheduled_at: row.scheduled_at,
                });
            }
            at_once(store.record(lease.as_ref(), &row, &next))?;
            if lease.is_some() {
                world.witness_record(&row, &next);
            }
            Ok(())
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let (store, held) = (self.store.clone(), lease.clone());
        self.ask("releases", &lease.job, move || at_once(store.release(&held))).await
    }
}

fn ends(run: &RunRecord) -> bool {
    matches!(run.status, RunStatus::Done | RunStatus::Dead)
}

/// What is checked at each change of the store.
impl World {
    fn witness_claim(&self, lease: &Lease) {
        let mut plot = self.plot();
        let state = &lease.state;
        let first = Witnessed { first: state.cursor, cursor: state.cursor, fence: 0 };
        let job = plot.jobs.entry(lease.job.clone()).or_insert(first);
        let wrong = if lease.fence.0 <= job.fence {
            Some(format!("claim {} of `{}` follows claim {}", lease.fence, lease.job, job.fence))
        } else if state.cursor < job.cursor {
            Some(format!(
                "a claim of `{}` finds the cursor at {}, not {}",
                lease.job, state.cursor, job.cursor
            ))
        } else {
            None
        };
        job.fence = lease.fence.0;
        drop(plot);
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    fn witness_record(&self, run: &RunRecord, next: &JobState) {
        let mut plot = self.plot();
        let Some(job) = plot.jobs.get_mut(&run.job) else { return };
        let mut wrong = Vec::new();
        if run.fence.0 != job.fence {
            wrong.push(format!(
                "`{}` is recorded under {}, and {} is the newest",
                run.job, run.fence, job.fence
            ));
        }
        if next.cursor < job.cursor {
            wrong.push(format!(
                "the cursor of `{}` goes back from {} to {}",
                run.job, job.cursor, next.cursor
            ));
        }
        job.cursor = job.cursor.max(next.cursor);
        if ends(run) && !plot.finished.insert((run.job.clone(), run.scheduled_at)) {
            wrong.push(format!("{} of `{}` is finished twice", run.scheduled_at, run.job));
        }
        drop(plot);
        for wrong in wrong {
            self.wrong(wrong);
        }
    }

    /// The databases' unique index: one finished run of each node at one scheduled time.
    fn first_of_its_node(&self, life: Life, run: &RunRecord) -> bool {
        !ends(run) || self.plot().finished_by_node.entry(life).or_default().insert(run.scheduled_at)
    }
}

#[tokio::test]
async fn a_run_that_only_waits_is_told_when_its_lease_ends() {
    let clock = ManualClock::at(beginning());
    let occurrence = Occurrence { job: "each".to_owned(), scheduled_at: beginning() };
    let ctx = JobContext::new(occurrence, 1, FencingToken(1), Arc::new(clock.clone()), StopHandle::new());
    ctx.stop_handle().trust_lease_until(Duration::from_secs(8));
    let told = pin!(ctx.stopped());
    let renewed = async {
        clock.advance(Duration::from_secs(7));
        tokio::task::yield_now().await;
        ctx.stop_handle().trust_lease_until(Duration::from_secs(11));
        for _ in 0..4 {
            clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        clock.monotonic()
    };
    let (reason, _) = tokio::join!(told, renewed);
    assert_eq!((reason, clock.monotonic()), (StopReason::LeaseLost, Duration::from_secs(11)));
}
