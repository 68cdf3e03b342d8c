//! A store behind an unreliable connection.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, ControlReceipt, ControlRequest, JobRow, JobState, Lease, MemoryStore, RunFilter, RunRecord,
    RunRow, Store, StoreError, StorePoll,
    chrono::{DateTime, Utc},
};
use tokio::sync::oneshot;

use crate::{
    event_loop::{Life, World},
    random::Random,
};

/// The store of one process: a request may be late, lost or delivered twice, and its response late or lost.
pub(crate) struct FaultyStore {
    pub(crate) world: Arc<World>,
    pub(crate) life: Life,
    pub(crate) store: MemoryStore,
}

/// The faults of one request.
struct Faults {
    /// The number of times that the store gets the request, after `delay`.
    deliveries: u32,
    delay: Duration,
    /// The delay of the response; `None` if it is lost.
    answer: Option<Duration>,
    /// The time until a caller without a response fails.
    timeout: Duration,
}

impl World {
    fn faults(&self, life: Life, verb: &'static str, job: &str) -> Faults {
        let number = {
            let mut state = self.state();
            let sent = state.sent.entry((life, verb, job.to_owned())).or_default();
            *sent += 1;
            *sent
        };
        // The fault rate in percent depends on the seed.
        let bad = [2, 10, 30][usize::try_from(self.seed % 3).expect("small")];
        let mut random = Random::new(self.seed, (life, verb, job, number));
        let delay = random.time(0, 20);
        let answer = Some(random.time(0, 20));
        let reliable = Faults { deliveries: 1, delay, answer, timeout: random.time(10, 5_000) };
        if self.is_quiet() || random.below(100) >= bad {
            return reliable;
        }
        match random.below(6) {
            0 => Faults { delay: random.time(0, 15_000), ..reliable },
            1 => Faults { answer: Some(random.time(0, 15_000)), ..reliable },
            2 => Faults { deliveries: 2, ..reliable },
            3 => Faults { deliveries: 0, answer: None, ..reliable },
            4 => Faults { answer: None, ..reliable },
            // The request arrives after the caller has failed.
            _ => Faults { answer: None, delay: random.time(0, 15_000), ..reliable },
        }
    }
}

impl FaultyStore {
    /// Sends a request. `serve` is executed when it arrives, even if the caller no longer waits for the response.
    async fn send<T: Send + 'static>(
        &self,
        verb: &'static str,
        job: &str,
        serve: impl Fn() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Self { world, life, .. } = self;
        world.wait_while_paused(*life).await;
        let Faults { deliveries, delay, answer, timeout } = world.faults(*life, verb, job);
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
            // The caller may have failed.
            drop(answers.send(result));
        });
        let Some(late) = answer else {
            world.sleep(Some(*life), timeout).await;
            return Err(StoreError::Unavailable("no response".into()));
        };
        let result = answered.await.ok().flatten();
        world.sleep(Some(*life), late).await;
        result.unwrap_or_else(|| Err(StoreError::Unavailable("no response".into())))
    }
}

pub(crate) fn ready<T>(verb: impl Future<Output = T>) -> T {
    match pin!(verb).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("the memory store does not wait"),
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let (world, store, name) = (Arc::clone(&self.world), self.store.clone(), job.to_owned());
        self.send("acquires", job, move || {
            let claim = ready(store.acquire(&name, first_cursor))?;
            if let Claim::Held(lease) = &claim {
                world.check_claim(lease);
                world.record_pauses(lease);
            }
            Ok(claim)
        })
        .await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let (store, held) = (self.store.clone(), lease.clone());
        self.send("renews", &lease.job, move || ready(store.renew(&held))).await
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        let (world, store, life) = (Arc::clone(&self.world), self.store.clone(), self.life);
        let (lease, row, next) = (lease.cloned(), run.clone(), next.clone());
        self.send("records", &run.job, move || {
            if lease.is_none() && !world.is_first_of_node(life, &row) {
                return Err(StoreError::AlreadyFinished {
                    job: row.job.clone(),
                    scheduled_at: row.scheduled_at,
                });
            }
            let before = lease.as_ref().and_then(|lease| world.state_of(&lease.job));
            ready(store.record(lease.as_ref(), &row, &next))?;
            if lease.is_some() {
                let is_reset = world.state().operators.is_reset(&row);
                world.check_request_effects(&row, before.as_ref(), &next);
                world.check_record(&row, &next, is_reset);
            }
            Ok(())
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let (store, held) = (self.store.clone(), lease.clone());
        let world = Arc::clone(&self.world);
        self.send("releases", &lease.job, move || {
            world.note_removal(&held);
            ready(store.release(&held))
        })
        .await
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
        let store = self.store.clone();
        self.send("polls", "", move || ready(store.poll(known))).await
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        let (store, request) = (self.store.clone(), request.clone());
        let job = request.job.clone();
        self.send("requests", &job, move || ready(store.request(&request))).await
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.store.jobs().await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        Store::runs(&self.store, filter).await
    }
}
