//! The store over a bad line.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use billing_scheduler::{
    Claim, ControlReceipt, ControlRequest, ControlState, JobRow, JobState, Lease, MemoryStore, RunFilter,
    RunRecord, RunRow, Store, StoreError,
    chrono::{DateTime, Utc},
};
use tokio::sync::oneshot;

use crate::{
    event_loop::{Life, World},
    random::Dice,
};

/// The store as one process sees it: a request may be late, lost or delivered twice, and so may its answer.
pub(crate) struct FaultyStore {
    pub(crate) world: Arc<World>,
    pub(crate) life: Life,
    pub(crate) store: MemoryStore,
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

pub(crate) fn at_once<T>(verb: impl Future<Output = T>) -> T {
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
                world.note_pauses(lease);
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
            let before = lease.as_ref().and_then(|lease| world.state_of(&lease.job));
            at_once(store.record(lease.as_ref(), &row, &next))?;
            if lease.is_some() {
                let is_reset = world.plot().people.is_reset(&row);
                world.witness_for_people(&row, before.as_ref(), &next);
                world.witness_record(&row, &next, is_reset);
            }
            Ok(())
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let (store, held) = (self.store.clone(), lease.clone());
        self.ask("releases", &lease.job, move || at_once(store.release(&held))).await
    }

    async fn control_state(&self, known: Option<i64>) -> Result<Option<ControlState>, StoreError> {
        let store = self.store.clone();
        self.ask("asks", "", move || at_once(store.control_state(known))).await
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        let (store, request) = (self.store.clone(), request.clone());
        let job = request.job.clone();
        self.ask("requests", &job, move || at_once(store.request(&request))).await
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.store.jobs().await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        Store::runs(&self.store, filter).await
    }
}
