//! Workers in virtual time on one store, with crashes, suspended processes, lost requests and lost answers. A seed decides everything.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
};
use uuid::Uuid;

use super::{claims::MAX_UNRECORDED, kind::QueueJob, worker::Queue};
use crate::{
    clock::{Clock, ManualClock},
    job::{FencingToken, JobContext, JobError, Outcome},
    registry::Registry,
    runtime::{
        decide::Retry,
        memory_store::MemoryStore,
        store::{
            NewQueuedJob, QueueNext, QueueResult, QueueStore, QueueTime, QueuedJob, RunStatus, StoreError,
        },
        surroundings::Surroundings,
    },
};

const PROCESSES: usize = 3;
const STEPS: usize = 400;
const MAX_ATTEMPTS: u32 = 4;

/// A splitmix64 generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// What the checks know of a job.
#[derive(Default)]
struct Known {
    due: DateTime<Utc>,
    /// The number of its last claim.
    token: i64,
    /// The end of the last claim by the monotonic clock; zero without one.
    claimed_until: Duration,
    starts: u32,
    end: Option<RunStatus>,
}

struct World {
    clock: ManualClock,
    store: MemoryStore,
    random: Mutex<Random>,
    known: Mutex<HashMap<Uuid, Known>>,
    is_quiet: AtomicBool,
}

impl World {
    fn below(&self, limit: u64) -> u64 {
        self.random.lock().expect("no check failed").below(limit)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Uuid, Known>> {
        self.known.lock().expect("no check failed")
    }

    fn check_claimed(&self, jobs: &[QueuedJob]) {
        let (now, wall, mut known) = (self.clock.monotonic(), self.clock.now(), self.known());
        for job in jobs {
            let known = known.get_mut(&job.id).expect("it was added");
            assert!(known.due <= wall, "{} is claimed at {wall}, before {}", job.id, known.due);
            assert!(known.end.is_none(), "{} is claimed after its end", job.id);
            assert!(known.claimed_until <= now, "{} is claimed while another claim holds it", job.id);
            assert!(known.token < job.fencing_token.0, "the token of {} did not increase", job.id);
            (known.token, known.claimed_until) = (job.fencing_token.0, now + self.store.claim_ttl());
        }
    }

    fn check_renewed(&self, claims: &[(Uuid, FencingToken)], held: &[Uuid]) {
        let (now, mut known) = (self.clock.monotonic(), self.known());
        for (id, token) in claims.iter().filter(|(id, _)| held.contains(id)) {
            let known = known.get_mut(id).expect("it was added");
            assert_eq!((known.token, known.end), (token.0, None), "an old claim of {id} was renewed");
            assert!(known.claimed_until > now, "an expired claim of {id} was renewed");
            known.claimed_until = now + self.store.claim_ttl();
        }
    }

    fn check_settled(&self, results: &[QueueResult], written: &[Uuid]) {
        let mut known = self.known();
        for QueueResult { id, run, next } in results.iter().filter(|result| written.contains(&result.id)) {
            let known = known.get_mut(id).expect("it was added");
            assert_eq!(known.token, run.fencing_token.0, "an old claim of {id} wrote a result");
            assert_eq!(known.end, None, "{id} has two results");
            known.claimed_until = Duration::ZERO;
            match next {
                QueueNext::Finished => known.end = Some(run.status),
                QueueNext::Again { .. } => known.due = DateTime::UNIX_EPOCH,
            }
        }
    }

    /// The code of the job: it takes a while, and may fail. It is started once for each attempt.
    async fn execute(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let id = ctx.request_id.expect("a queued job has an id");
        {
            let mut known = self.known();
            let known = known.get_mut(&id).expect("it was added");
            known.starts += 1;
        }
        self.clock.sleep(Duration::from_millis(self.below(15_000))).await;
        match self.below(10) {
            0..=1 => Err(JobError::retry("it may succeed later")),
            2 if !self.is_quiet.load(Ordering::SeqCst) => panic!("a bug"),
            _ => Ok(Outcome::done(1)),
        }
    }
}

/// The store of one process, behind an unreliable connection.
struct Link {
    world: Arc<World>,
    store: MemoryStore,
    is_suspended: watch::Receiver<bool>,
}

impl Link {
    async fn send<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let no_answer = || Err(StoreError::Unavailable("no answer".into()));
        self.resumed().await;
        let fault = if self.world.is_quiet.load(Ordering::SeqCst) { 2 } else { self.world.below(20) };
        if fault == 0 {
            return no_answer();
        }
        let answer = call.await;
        self.resumed().await;
        if fault == 1 { no_answer() } else { answer }
    }

    async fn resumed(&self) {
        // The process owns the sender as long as it lives.
        let _ = self.is_suspended.clone().wait_for(|suspended| !suspended).await;
    }
}

#[async_trait]
impl QueueStore for Link {
    fn claim_ttl(&self) -> Duration {
        self.store.claim_ttl()
    }

    async fn enqueue(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, StoreError> {
        self.store.enqueue(jobs).await
    }

    async fn claim(&self, limits: &[(String, u32)]) -> Result<Vec<QueuedJob>, StoreError> {
        self.send(async {
            let jobs = self.store.claim(limits).await?;
            self.world.check_claimed(&jobs);
            Ok(jobs)
        })
        .await
    }

    async fn renew_claims(&self, claims: &[(Uuid, FencingToken)]) -> Result<Vec<Uuid>, StoreError> {
        self.send(async {
            let held = self.store.renew_claims(claims).await?;
            self.world.check_renewed(claims, &held);
            Ok(held)
        })
        .await
    }

    async fn settle(&self, results: &[QueueResult]) -> Result<Vec<Uuid>, StoreError> {
        self.send(async {
            let written = self.store.settle(results).await?;
            self.world.check_settled(results, &written);
            Ok(written)
        })
        .await
    }

    async fn prune(&self, age: Duration) -> Result<u64, StoreError> {
        self.store.prune(age).await
    }
}

/// A worker that can be killed and suspended.
struct Process {
    queue: Arc<Queue>,
    is_suspended: watch::Sender<bool>,
    /// The worker and its renewals.
    tasks: JoinSet<()>,
}

impl Process {
    fn start(world: &Arc<World>, name: String) -> Self {
        let is_suspended = watch::Sender::new(false);
        let link = Link {
            world: Arc::clone(world),
            store: world.store.as_holder(name),
            is_suspended: is_suspended.subscribe(),
        };
        let execute = Arc::clone(world);
        let job = QueueJob::new("job", move |ctx: JobContext, ()| {
            let world = Arc::clone(&execute);
            async move { world.execute(&ctx).await }
        });
        let backoff = Duration::from_secs(1);
        let retry = Retry { max_attempts: MAX_ATTEMPTS, backoff, ..Retry::default() };
        let surroundings = Arc::new(Surroundings::new(&Registry::new()));
        let clock = Arc::new(world.clock.clone());
        let kinds = vec![job.retry(retry).concurrency(3)];
        let queue =
            Arc::new(Queue::new(Arc::new(link), clock, surroundings, kinds, Duration::from_hours(24)));
        let (mut tasks, worker) = (JoinSet::new(), Arc::clone(&queue));
        tasks.spawn(async move {
            worker.work(std::future::pending()).await;
        });
        Self { queue, is_suspended, tasks }
    }

    /// Starts a renewal. A failed check of the worker or of an earlier renewal fails the test.
    fn renew(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.expect("no check failed");
        }
        let queue = Arc::clone(&self.queue);
        self.tasks.spawn(async move {
            queue.renew_claims().await;
        });
    }
}

/// Lets every task run until it waits.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

async fn simulate(seed: u64) {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let world = Arc::new(World {
        store: MemoryStore::new(Arc::new(clock.clone())),
        clock,
        random: Mutex::new(Random(seed)),
        known: Mutex::default(),
        is_quiet: AtomicBool::new(false),
    });
    let mut processes: Vec<_> =
        (0..PROCESSES).map(|place| Process::start(&world, format!("{place}.0"))).collect();
    for step in 0..STEPS {
        let place = usize::try_from(world.below(PROCESSES as u64)).expect("it is small");
        match world.below(12) {
            0..=4 => world.clock.advance(Duration::from_millis(world.below(3_000))),
            5..=6 => {
                let after = Duration::from_millis(world.below(8_000));
                let job = NewQueuedJob::new("job", serde_json::Value::Null);
                let known = Known { due: world.clock.now() + after, ..Known::default() };
                world.known().insert(job.id, known);
                let job = NewQueuedJob { time: QueueTime::After(after), ..job };
                world.store.enqueue(&[job]).await.expect("it is reliable");
            }
            7 => {
                // The old process is killed.
                processes[place] = Process::start(&world, format!("{place}.{step}"));
            }
            8 => {
                processes[place].is_suspended.send_modify(|suspended| *suspended = !*suspended);
            }
            _ => processes[place].renew(),
        }
        settle().await;
    }
    world.is_quiet.store(true, Ordering::SeqCst);
    for _ in 0..600 {
        for process in &mut processes {
            process.is_suspended.send_replace(false);
            process.renew();
        }
        world.clock.advance(Duration::from_secs(1));
        settle().await;
    }
    let known = world.known();
    let most = known.values().map(|known| known.starts).max();
    assert!(most <= Some(MAX_ATTEMPTS), "a job was started {most:?} times");
    let lost: Vec<_> = known.iter().filter(|(_, known)| known.end.is_none()).map(|(id, _)| id).collect();
    assert!(lost.is_empty(), "never finished: {lost:?}");
    let given_up = known.values().filter(|known| known.end == Some(RunStatus::Dead)).count();
    assert!(given_up * 2 < known.len(), "most jobs are done, and {given_up} of {} are not", known.len());
}

#[tokio::test]
async fn queued_jobs_survive_faults() {
    for seed in 0..25 {
        eprintln!("seed {seed}");
        simulate(seed).await;
    }
}

/// A store whose first record waits until the worker waits for it.
struct SlowRecord {
    store: MemoryStore,
    claimed: AtomicUsize,
    recorded: AtomicUsize,
}

#[async_trait]
impl QueueStore for SlowRecord {
    fn claim_ttl(&self) -> Duration {
        self.store.claim_ttl()
    }

    async fn enqueue(&self, jobs: &[NewQueuedJob]) -> Result<Vec<Uuid>, StoreError> {
        self.store.enqueue(jobs).await
    }

    async fn claim(&self, limits: &[(String, u32)]) -> Result<Vec<QueuedJob>, StoreError> {
        let claimed = self.store.claim(limits).await?;
        self.claimed.fetch_add(claimed.len(), Ordering::SeqCst);
        Ok(claimed)
    }

    async fn renew_claims(&self, claims: &[(Uuid, FencingToken)]) -> Result<Vec<Uuid>, StoreError> {
        self.store.renew_claims(claims).await
    }

    async fn settle(&self, results: &[QueueResult]) -> Result<Vec<Uuid>, StoreError> {
        while self.claimed.load(Ordering::SeqCst) < MAX_UNRECORDED {
            yield_now().await;
        }
        // The runs end meanwhile: each of these lets every other task make a step.
        settle().await;
        self.recorded.fetch_add(results.len(), Ordering::SeqCst);
        self.store.settle(results).await
    }

    async fn prune(&self, age: Duration) -> Result<u64, StoreError> {
        self.store.prune(age).await
    }
}

/// The clock does not move, so no poll claims them.
#[tokio::test]
async fn recorded_results_make_room_for_claims() {
    const JOBS: usize = 3 * MAX_UNRECORDED;
    let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH));
    let store = MemoryStore::new(clock.clone());
    let store = Arc::new(SlowRecord { store, claimed: AtomicUsize::new(0), recorded: AtomicUsize::new(0) });
    let jobs: Vec<_> = (0..JOBS).map(|n| NewQueuedJob::new("small", n.into())).collect();
    store.enqueue(&jobs).await.expect("the store answers");
    let surroundings = Arc::new(Surroundings::new(&Registry::new()));
    let kind = QueueJob::new("small", |_, _: usize| async {}).concurrency(1_000);
    let queue = Arc::new(Queue::new(store.clone(), clock, surroundings, vec![kind], Queue::RETENTION));
    let all_recorded = async {
        while store.recorded.load(Ordering::SeqCst) < JOBS {
            yield_now().await;
        }
        Duration::ZERO
    };
    // Only a failed test takes so long.
    let abandoned = tokio::time::timeout(Duration::from_mins(2), queue.work(all_recorded)).await;
    assert_eq!(abandoned.ok(), Some(0), "{} of {JOBS} are recorded", store.recorded.load(Ordering::SeqCst));
}
