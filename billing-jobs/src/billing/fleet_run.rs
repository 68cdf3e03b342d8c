//! One run over the fleet: which range is next, and what follows an attempt at a batch that failed.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use sea_orm::{DbBackend, DbErr, Value};
use tracing::{Instrument as _, debug};

use super::{
    BillingError,
    batch::{BatchFailure, BatchFailureKind, BatchTimes, PostedBatch, post_batch},
    batch_sizing::{self, AdaptiveLimits},
    decide::decide,
    id::Id,
    range::{Batch, Owners, next_range, unowned_exist},
    read::LoadedBatch,
    refusals::{Failing, Refusals},
    run_context::{FIRST_WAIT, MAX_ATTEMPTS, RunContext},
    spend_limit::SpendLimit,
    summary::RunSummary,
    transaction::Writes,
};
use crate::spans;
use billing_store::ErrorClass;

const POSTING: &str = "post a batch";

/// One run over the fleet.
pub(super) struct FleetRun<'a> {
    context: &'a RunContext<'a>,
    spend_limit: SpendLimit,
    /// What earlier runs measured, and this run continues to measure.
    limits: &'a Mutex<AdaptiveLimits>,
    refusals: Mutex<Refusals>,
    /// The last batch that blocked the other writers of SQLite.
    last_batch: Mutex<Option<BatchTimes>>,
}

/// What a run waits for.
enum RunEvent {
    /// The next organizations, if there are any.
    Range(Option<Batch>),
    Billed(BilledRange),
}

/// A range whose instances are billed.
#[derive(Default)]
struct BilledRange {
    summary: RunSummary,
    instances: usize,
    /// How long its transactions blocked other writers.
    held: Duration,
}

/// What became of a batch.
enum Attempted {
    Posted(Box<PostedBatch>),
    /// The database refused it, so its parts are attempted instead.
    Split(Vec<Batch>),
    /// It conflicted with other transactions in every attempt.
    GivenUp(String),
}

type Events<'a> = FuturesUnordered<BoxFuture<'a, Result<RunEvent, BillingError>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> FleetRun<'a> {
    pub(super) fn new(
        context: &'a RunContext<'a>,
        spend_limit: SpendLimit,
        limits: &'a Mutex<AdaptiveLimits>,
    ) -> Self {
        Self { context, spend_limit, limits, refusals: Mutex::default(), last_batch: Mutex::default() }
    }

    pub(super) fn into_refusals(self) -> Refusals {
        self.refusals.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bills all organizations in order, with as many concurrent transactions as the adaptive limits allow. It always waits for the
    /// running ones: a dropped transaction would leave its connection in the middle of a reply.
    pub(super) async fn run(&self, summary: &mut RunSummary) -> Result<(), BillingError> {
        let mut limits = locked(self.limits).clone();
        limits.begin();
        let began = Instant::now();
        let mut error = None;
        let mut next: Option<Batch> = None;
        let mut running = 0;
        let mut events = Events::new();
        // The next range is found while the one before it is billed.
        events.push(Box::pin(self.prefetch_range(None, limits.batch())));
        if unowned_exist(self.context).await? {
            events.push(Box::pin(self.bill_range(Batch::of(Owners::Missing))));
            running += 1;
        }
        while let Some(event) = events.next().await {
            match event {
                Ok(RunEvent::Range(range)) => next = range,
                Ok(RunEvent::Billed(range)) => {
                    running -= 1;
                    limits.done(range.instances, range.held, began.elapsed());
                    summary.add(range.summary);
                }
                Err(failed) => error = error.or(Some(failed)),
            }
            if error.is_none() && summary.stopped.is_none() && running < limits.connections() {
                summary.stopped = next.as_ref().and_then(|_| (self.context.options.stop)());
                if let Some(range) = next.take().filter(|_| summary.stopped.is_none()) {
                    events.push(Box::pin(self.prefetch_range(range.last(), limits.batch())));
                    events.push(Box::pin(self.bill_range(range)));
                    running += 1;
                }
            }
        }
        *locked(self.limits) = limits;
        error.map_or(Ok(()), Err)
    }

    /// Bills the instances that another organization had until now, once all hours of that one are settled.
    pub(super) async fn bill_new_organizations(&self, summary: &mut RunSummary) -> Result<(), BillingError> {
        for (organization, instances) in std::mem::take(&mut summary.transferred) {
            summary.stopped = summary.stopped.or_else(|| (self.context.options.stop)());
            if summary.stopped.is_some() {
                break;
            }
            let batch = Batch::of_organization(&organization, instances, self.context.panel.backend);
            if let RunEvent::Billed(range) = self.bill_range(batch).await? {
                summary.add(range.summary);
            }
        }
        Ok(())
    }

    async fn prefetch_range(&self, after: Option<Value>, size: u32) -> Result<RunEvent, BillingError> {
        next_range(self.context, after, size).await.map(RunEvent::Range)
    }

    /// Bills the instances of a range, in one transaction unless the database refuses some of them.
    async fn bill_range(&self, range: Batch) -> Result<RunEvent, BillingError> {
        let mut billed = BilledRange::default();
        let mut work = vec![range];
        while let Some(batch) = work.pop() {
            match self.post_or_split(batch).await? {
                Attempted::Posted(posted) => {
                    billed.summary.add(posted.summary);
                    billed.instances += posted.instances;
                    billed.held += posted.times.held;
                }
                Attempted::Split(parts) => work.extend(parts.into_iter().rev()),
                Attempted::GivenUp(reason) => billed.summary.unposted.push(reason),
            }
            if !work.is_empty() {
                billed.summary.stopped = (self.context.options.stop)();
            }
            if billed.summary.stopped.is_some() {
                break;
            }
        }
        Ok(RunEvent::Billed(billed))
    }

    /// Posts a batch, in several attempts if it conflicts with other transactions; splits it if the database refuses its rows.
    async fn post_or_split(&self, batch: Batch) -> Result<Attempted, BillingError> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        let mut before: Option<LoadedBatch> = None;
        // Reading and deciding before the transaction becomes SQLite's only writer lets others write meanwhile. If another one does,
        // that work is lost, so the next attempt becomes the writer at once.
        let mut writes = match self.context.panel.backend {
            DbBackend::Sqlite => Writes::AfterReads,
            _ => Writes::AtOnce,
        };
        loop {
            if writes == Writes::AfterReads {
                self.yield_to_writers().await;
            }
            let span = spans::batch(attempt);
            let posted = post_batch(self.context, &self.spend_limit, &batch, writes);
            let failure = match posted.instrument(span.clone()).await {
                Ok(posted) => {
                    spans::posted(&span, posted.instances, &posted.summary.totals);
                    self.note_posted(&posted);
                    return Ok(Attempted::Posted(Box::new(posted)));
                }
                Err(failure) => failure,
            };
            spans::rolled_back(&span, &failure.message);
            drop(span);
            debug!(attempt, "a batch was rolled back: {}", failure.message);
            let again = attempt < MAX_ATTEMPTS;
            if std::mem::replace(&mut writes, Writes::AtOnce) == Writes::AfterReads
                && matches!(failure.kind, BatchFailureKind::Database(ErrorClass::Conflict, _))
            {
                continue;
            }
            failure.count();
            match failure.kind {
                BatchFailureKind::Fenced => return Err(BillingError::Fenced),
                BatchFailureKind::Unguarded => return Err(BillingError::Unguarded),
                BatchFailureKind::CeilingExceeded(exceeded) => return Err(exceeded.into()),
                // Ends the run, unless an operator has accepted the restore meanwhile.
                BatchFailureKind::Restored if again => self.context.restores.check().await?,
                BatchFailureKind::HiddenWallets
                | BatchFailureKind::Database(ErrorClass::Conflict | ErrorClass::Lost, _)
                    if again => {}
                // Another process may have deleted or charged a row after it was read, so it is read once more before the batch is
                // split. The parts of a batch that was split need that only for the last row.
                BatchFailureKind::Stale { .. } | BatchFailureKind::Database(ErrorClass::Rows, _)
                    if attempt == 1 && (batch.only.is_none() || failure.instances() == 1) =>
                {
                    before = failure.loaded;
                    attempt += 1;
                    continue;
                }
                // The rows differ from those of the attempt before: it was a race.
                BatchFailureKind::Stale { .. }
                    if again && before.as_ref().is_some_and(|before| failure.read_other_rows(before)) =>
                {
                    before = failure.loaded;
                }
                BatchFailureKind::Database(
                    ErrorClass::Broken | ErrorClass::Lost | ErrorClass::Storage,
                    source,
                ) => {
                    return Err(BillingError::Database { doing: POSTING, source });
                }
                BatchFailureKind::Restored
                | BatchFailureKind::HiddenWallets
                | BatchFailureKind::Database(ErrorClass::Conflict, _) => {
                    return Ok(Attempted::GivenUp(failure.message));
                }
                BatchFailureKind::Stale { .. } | BatchFailureKind::Database(ErrorClass::Rows, _) => {
                    return self.bisect(&batch, failure);
                }
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
            attempt += 1;
        }
    }

    fn note_posted(&self, posted: &PostedBatch) {
        *locked(&self.last_batch) = Some(posted.times);
        locked(&self.refusals).charged(posted.summary.totals.charged);
        (self.context.options.progress)(posted.instances as u64);
    }

    /// Waits until every process that wants to write to SQLite has polled once, unless reading takes as long.
    async fn yield_to_writers(&self) {
        let Some(BatchTimes { held, reading, ended }) = *locked(&self.last_batch) else { return };
        tokio::time::sleep(batch_sizing::pause_after(held).saturating_sub(ended.elapsed() + reading)).await;
    }

    /// Halves a refused batch until the instance that is refused is alone. That one is held.
    fn bisect(&self, batch: &Batch, failure: BatchFailure) -> Result<Attempted, BillingError> {
        let code = failure.code();
        let BatchFailure { loaded, message, kind } = failure;
        let Some(loaded) = loaded else { return Err(unpostable(kind, &message)) };
        // Both sides of an instance that changed its organization may have been read.
        let mut seen = HashSet::new();
        let ids = loaded.instances.iter().map(|instance| instance.id.clone());
        let mut ids: Vec<Id> = ids.filter(|id| seen.insert(id.clone())).collect();
        let part = |only: Vec<Id>, refused: Option<String>| Batch {
            owners: batch.owners.clone(),
            only: Some(only),
            refused,
        };
        match (&ids[..], batch.refused.is_some()) {
            // Not even the hold can be written, or nothing was read: its parts would fail as well.
            ([], _) | (_, true) => Err(unpostable(kind, &message)),
            ([instance], false) => {
                let terms = self.context.terms(None);
                match decide(&terms, &loaded.wallets, &loaded.instances).charges.first() {
                    Some(charge) => {
                        let customer = &charge.instance.organization;
                        locked(&self.refusals).refused_charge(customer, instance, &code, &message)?;
                    }
                    None => locked(&self.refusals).refused(instance, &message),
                }
                Ok(Attempted::Split(vec![part(ids, Some(message))]))
            }
            (many, false) => {
                let second = ids.split_off(many.len() / 2);
                Ok(Attempted::Split(vec![part(ids, None), part(second, None)]))
            }
        }
    }
}

impl From<Failing> for BillingError {
    fn from(Failing { instances, complaint }: Failing) -> Self {
        Self::Refused { instances, complaint }
    }
}

fn unpostable(kind: BatchFailureKind, message: &str) -> BillingError {
    let source = match kind {
        BatchFailureKind::Database(_, source) => source,
        BatchFailureKind::Stale { .. } => DbErr::Custom(message.to_owned()),
        BatchFailureKind::Fenced
        | BatchFailureKind::Restored
        | BatchFailureKind::Unguarded
        | BatchFailureKind::HiddenWallets
        | BatchFailureKind::CeilingExceeded(_) => DbErr::RecordNotUpdated,
    };
    debug!("{message}");
    BillingError::Database { doing: POSTING, source }
}
