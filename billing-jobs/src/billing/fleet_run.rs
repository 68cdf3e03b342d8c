//! One pass over the fleet: which range is next, and a batch from BEGIN to COMMIT, again, or taken apart.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use billing_scheduler::{FencingToken, StopReason};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, Value,
};
use tracing::{Instrument as _, debug};

use super::{
    BeyondLimit, Biller, BillingError, BillingOptions, Mode,
    approvals::Approvals,
    batch_sizing,
    decide::{BillingTerms, decide},
    fencing::is_newest,
    findings::Findings,
    id::Id,
    model::{Instance, Posting, Wallet},
    post::{BatchHeader, PostError, post, post_rows_separately},
    read,
    refusals::{Failing, Refusals},
    spend_limit::{Overrun, SpendLimit},
    totals::Totals,
};
use crate::{
    BILLING_JOB,
    currency::Currency,
    fault_injection,
    hold::{Hold, Reason},
    metrics,
    period::Micros,
    price::PriceList,
    spans,
    uncharged::Debt,
};
use billing_store::{
    ErrorClass, SQLITE_LOG_PAGES, begin, begin_deferred, begin_read, checkpoint, classify, code, statement,
    with_help,
};

/// No more findings of one kind are listed than these; the others are counted.
pub(super) const LISTED: usize = 10;
/// How often a batch is tried again before it is given up or taken apart.
const ATTEMPTS: u32 = 5;
/// The wait after the first conflict; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(20);

/// A run under way, with what it read once.
pub(super) struct FleetRun<'a> {
    pub(super) biller: &'a Biller,
    /// Where it writes; see [`alone`](billing_store::exclusive_writer).
    pub(super) db: DatabaseConnection,
    pub(super) last_write: Mutex<LastWrite>,
    pub(super) run: &'a BillingOptions<'a>,
    pub(super) as_of: Micros,
    pub(super) prices: PriceList,
    pub(super) approvals: Approvals,
    pub(super) spend_limit: SpendLimit,
    pub(super) refusals: Mutex<Refusals>,
}

/// The last time that this pass was the one writer of SQLite.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastWrite {
    /// How long nobody else could write.
    held: Duration,
    /// Until when.
    ended: Option<Instant>,
    /// How long it had read before.
    reading: Duration,
}

/// What a pass has come to so far.
#[derive(Default)]
pub(super) struct RunSummary {
    pub(super) totals: Totals,
    /// Instances with more hours than the catch-up limit, if they are listed.
    pub(super) beyond_limit: Vec<BeyondLimit>,
    /// Why batches were left.
    pub(super) unposted: Vec<String>,
    /// Rows that cannot be read.
    pub(super) unreadable: Findings,
    pub(super) stopped: Option<StopReason>,
    /// Hours that a previous organization could not pay.
    pub(super) uncollected: Debt,
    /// By organization, the instances that it pays from now on.
    pub(super) transferred: BTreeMap<Id, Vec<Id>>,
}

impl RunSummary {
    fn of(posting: Posting<'_>) -> Self {
        let mut summary = Self { totals: posting.totals, ..Self::default() };
        let uncollected =
            posting.holds.iter().filter(|hold| hold.reason == Reason::InstanceTransferred.as_str());
        for hold in uncollected {
            let currency = hold.currency.unwrap_or(Currency::NONE);
            summary.uncollected.add(hold.hours.unwrap_or_default(), hold.amount, currency);
        }
        for (organization, instance) in posting.transferred {
            summary.transferred.entry(organization).or_default().push(instance);
        }
        summary
    }

    fn add(&mut self, part: Self) {
        self.totals += part.totals;
        self.beyond_limit.extend(part.beyond_limit);
        self.unposted.extend(part.unposted);
        self.unreadable.extend(part.unreadable, LISTED);
        self.stopped = self.stopped.or(part.stopped);
        self.uncollected += part.uncollected;
        for (organization, instances) in part.transferred {
            self.transferred.entry(organization).or_default().extend(instances);
        }
    }
}

/// What one transaction works on.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) owners: Owners,
    /// Of these, only the instances with these ids.
    only: Option<Vec<Id>>,
    /// They are to be held because the database refused them.
    refused: Option<String>,
}

/// Whose instances a transaction works on.
#[derive(Clone, Debug)]
pub(super) enum Owners {
    /// The organizations from the first to the last of a range, as the database has them: text, on SQLite bytes.
    Range { first: Value, last: Value },
    /// None: where the panel lets an instance have no organization, it is held.
    Missing,
}

impl Owners {
    fn only(organization: &Id, backend: DbBackend) -> Self {
        let end = || match backend {
            DbBackend::Sqlite => Value::from(organization.to_string().into_bytes()),
            _ => Value::from(organization.to_string()),
        };
        Self::Range { first: end(), last: end() }
    }
}

/// What a transaction has read under its locks.
#[derive(Clone)]
pub(super) struct LoadedBatch {
    pub(super) wallets: Vec<Wallet>,
    /// Ordered by organization.
    pub(super) instances: Vec<Instance>,
    /// Instances of which not even the id can be read, so that they cannot be held.
    nameless: Vec<String>,
    /// When all of it was there.
    at: Instant,
}

impl LoadedBatch {
    /// From the rows of `read_wallets` and of `read_due`.
    pub(super) fn of(wallets: &[QueryResult], instances: &[QueryResult]) -> Self {
        let mut nameless = Vec::new();
        let instances = instances.iter().filter_map(|row| {
            read::instance(row).map_err(|unreadable| nameless.push(format!("an instance: {unreadable}"))).ok()
        });
        Self {
            instances: instances.collect(),
            wallets: wallets.iter().filter_map(read::wallet).collect(),
            nameless,
            at: Instant::now(),
        }
    }

    /// What of it cannot be read, a sentence each.
    fn unreadable(&self) -> impl Iterator<Item = String> + '_ {
        let instances = self.instances.iter().filter_map(|instance| {
            instance.unreadable.as_ref().map(|unreadable| format!("instance {}: {unreadable}", instance.id))
        });
        let wallets = self.wallets.iter().filter_map(|wallet| match &wallet.balance {
            Err(Hold { reason: Reason::Unreadable, detail }) => {
                Some(format!("wallet of organization {}: {detail}", wallet.organization))
            }
            _ => None,
        });
        self.nameless.iter().cloned().chain(instances).chain(wallets)
    }
}

/// Why one attempt at a batch failed.
struct BatchFailure {
    kind: BatchFailureKind,
    message: String,
    /// What the batch had to do with.
    read: Option<LoadedBatch>,
}

enum BatchFailureKind {
    Fenced,
    /// The panel guard is gone.
    Unguarded,
    /// Another number of rows of this table was written than there should have been: what was read was no longer so, or something
    /// in the database discards rows.
    Stale {
        table: &'static str,
    },
    /// There are wallets that could not be locked: a policy hides them from writers, and they are not missing.
    HiddenWallets,
    /// The run would charge more than it may.
    Overrun(Overrun),
    Database(ErrorClass, DbErr),
}

/// What a pass waits for.
enum RunEvent {
    /// The next organizations, if there are any.
    Range(Option<Batch>),
    /// A range is done: with so many instances, in transactions that kept others waiting for so long.
    Billed(RunSummary, usize, Duration),
}

enum Posted {
    Done(Box<Done>),
    Split(Vec<Batch>),
    InTheWay(String),
}

/// A transaction that came to its end.
struct Done {
    summary: RunSummary,
    /// How many instances it read.
    instances: usize,
    /// For how long it kept others waiting.
    held: Duration,
}

impl FleetRun<'_> {
    /// Goes through all organizations in order, with as many transactions under way as the pace allows. Whatever happens, those
    /// that are under way are waited for: one that is dropped would leave its connection in the middle of an answer.
    pub(super) async fn run(&self, summary: &mut RunSummary) -> Result<(), BillingError> {
        let mut limits = self.biller.limits().clone();
        limits.begin();
        let began = Instant::now();
        let mut error = None;
        let mut next: Option<Batch> = None;
        let mut billing = 0;
        let mut steps: FuturesUnordered<BoxFuture<'_, Result<RunEvent, BillingError>>> =
            FuturesUnordered::new();
        // The next range is looked for while the one before is billed.
        steps.push(Box::pin(self.prefetch_range(None, limits.batch())));
        if self.unowned_exist().await? {
            steps.push(Box::pin(self.bill_range(Batch::of(Owners::Missing))));
            billing += 1;
        }
        while let Some(step) = steps.next().await {
            match step {
                Ok(RunEvent::Range(range)) => next = range,
                Ok(RunEvent::Billed(part, instances, took)) => {
                    billing -= 1;
                    limits.done(instances, took, began.elapsed());
                    summary.add(part);
                }
                Err(failed) => error = error.or(Some(failed)),
            }
            if error.is_none() && summary.stopped.is_none() && billing < limits.connections() {
                summary.stopped = next.as_ref().and_then(|_| (self.run.stop)());
                if let Some(range) = next.take().filter(|_| summary.stopped.is_none()) {
                    steps.push(Box::pin(self.prefetch_range(range.last(), limits.batch())));
                    steps.push(Box::pin(self.bill_range(range)));
                    billing += 1;
                }
            }
        }
        *self.biller.limits() = limits;
        error.map_or(Ok(()), Err)
    }

    /// Bills the instances that another organization had until now, once all hours of that one are settled.
    pub(super) async fn bill_new_organizations(&self, summary: &mut RunSummary) -> Result<(), BillingError> {
        for (organization, instances) in std::mem::take(&mut summary.transferred) {
            summary.stopped = summary.stopped.or_else(|| (self.run.stop)());
            if summary.stopped.is_some() {
                break;
            }
            let owners = Owners::only(&organization, self.biller.panel.backend);
            let batch = Batch { only: Some(instances), ..Batch::of(owners) };
            if let RunEvent::Billed(part, ..) = self.bill_range(batch).await? {
                summary.add(part);
            }
        }
        Ok(())
    }

    async fn prefetch_range(&self, after: Option<Value>, batch: u32) -> Result<RunEvent, BillingError> {
        self.next_range(after, batch).await.map(RunEvent::Range)
    }

    /// Bills the instances of a range, in one transaction unless the database refuses some of them.
    async fn bill_range(&self, range: Batch) -> Result<RunEvent, BillingError> {
        let mut summary = RunSummary::default();
        let (mut instances, mut held) = (0, Duration::ZERO);
        let mut work = vec![range];
        while let Some(batch) = work.pop() {
            match self.post_or_split(batch).await? {
                Posted::Done(done) => {
                    summary.add(done.summary);
                    instances += done.instances;
                    held += done.held;
                }
                Posted::Split(halves) => work.extend(halves.into_iter().rev()),
                Posted::InTheWay(reason) => summary.unposted.push(reason),
            }
            if !work.is_empty() {
                summary.stopped = (self.run.stop)();
            }
            if summary.stopped.is_some() {
                break;
            }
        }
        Ok(RunEvent::Billed(summary, instances, held))
    }

    /// The next organizations with about one batch of instances to look at.
    pub(super) async fn next_range(
        &self,
        after: Option<Value>,
        batch: u32,
    ) -> Result<Option<Batch>, BillingError> {
        let Biller { sql, panel, .. } = self.biller;
        let sqlite = panel.backend == DbBackend::Sqlite;
        let (query, after) = match after {
            Some(after) => (sql.next_organizations.clone(), after),
            None => (
                sql.next_organizations.replace("organization_id > ", "organization_id >= "),
                smallest_id(sqlite),
            ),
        };
        let row = self.read_alone(&query, [self.as_of.into(), after, i64::from(batch).into()]).await?;
        let ends = || -> Result<Option<(Value, Value)>, DbErr> {
            let Some(row) = row else { return Ok(None) };
            let end = |name| -> Result<Option<Value>, DbErr> {
                if sqlite {
                    Ok(row.try_get::<Option<Vec<u8>>>("", name)?.map(Value::from))
                } else {
                    Ok(row.try_get::<Option<String>>("", name)?.map(Value::from))
                }
            };
            Ok(end("first")?.zip(end("last")?))
        };
        let ends = ends().map_err(BillingError::database("read who is due"))?;
        Ok(ends.map(|(first, last)| Batch::of(Owners::Range { first, last })))
    }

    /// Whether there are instances without an organization.
    async fn unowned_exist(&self) -> Result<bool, BillingError> {
        let sql = "SELECT 1 AS found FROM vps_instances WHERE organization_id IS NULL LIMIT 1";
        Ok(self.read_alone(sql, []).await?.is_some())
    }

    /// The first row of a query, in a transaction of its own.
    async fn read_alone<const N: usize>(
        &self,
        query: &str,
        values: [Value; N],
    ) -> Result<Option<QueryResult>, BillingError> {
        let query = statement(&self.db, query, values);
        let read = || async {
            let txn = begin_read(&self.db).await?;
            if let Some(settings) = &self.biller.sql.plan_settings {
                txn.query_one_raw(statement(&txn, settings, [])).await?;
            }
            let row = txn.query_one_raw(query.clone()).await?;
            txn.commit().await?;
            Ok(row)
        };
        self.retry_read("find who is due", read).await
    }

    /// Begins a transaction outside of the batches that writes under the panel guard of the run; none if that is no longer the newest.
    pub(super) async fn begin_fenced(
        &self,
        token: FencingToken,
    ) -> Result<Option<DatabaseTransaction>, DbErr> {
        let sql = &self.biller.sql;
        let txn = begin(&self.db).await?;
        if let Some(settings) = &sql.settings {
            txn.query_one_raw(statement(&txn, settings, [token.0.into(), BILLING_JOB.into()])).await?;
        }
        if !is_newest(&txn, &sql.check_fence, token).await? {
            txn.rollback().await?;
            return Ok(None);
        }
        Ok(Some(txn))
    }

    /// Reads something, however often somebody is in the way.
    pub(super) async fn retry_read<T, F: Future<Output = Result<T, DbErr>>>(
        &self,
        doing: &'static str,
        read: impl Fn() -> F,
    ) -> Result<T, BillingError> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            match read().instrument(spans::step(self.biller.panel.backend, doing)).await {
                Ok(result) => return Ok(result),
                Err(error) if attempt < ATTEMPTS && classify(&error) != ErrorClass::Broken => {
                    debug!(attempt, "could not {doing}: {error}");
                }
                Err(source) => return Err(BillingError::Database { doing, source }),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
            attempt += 1;
        }
    }

    /// Posts a batch, however often somebody is in the way; takes it apart if the database refuses its rows.
    async fn post_or_split(&self, batch: Batch) -> Result<Posted, BillingError> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        let mut before: Option<LoadedBatch> = None;
        // To read and to decide before the one place for a writer is taken leaves it free meanwhile. If somebody else writes
        // just then it was in vain, so the next attempt takes it first.
        let mut reading_first = self.biller.panel.backend == DbBackend::Sqlite;
        loop {
            if reading_first {
                self.yield_to_writers().await;
            }
            let span = spans::batch(attempt);
            let failure = match self.post_batch(&batch, reading_first).instrument(span.clone()).await {
                Ok(done) => {
                    spans::posted(&span, done.instances, &done.summary.totals);
                    return Ok(Posted::Done(Box::new(done)));
                }
                Err(failure) => failure,
            };
            spans::rolled_back(&span, &failure.message);
            drop(span);
            debug!(attempt, "a batch was rolled back: {}", failure.message);
            let again = attempt < ATTEMPTS;
            if std::mem::take(&mut reading_first)
                && matches!(failure.kind, BatchFailureKind::Database(ErrorClass::Conflict, _))
            {
                continue;
            }
            failure.count();
            match failure.kind {
                BatchFailureKind::Fenced => return Err(BillingError::Fenced),
                BatchFailureKind::Unguarded => return Err(BillingError::Unguarded),
                BatchFailureKind::Overrun(overrun) => return Err(overrun.into()),
                BatchFailureKind::HiddenWallets
                | BatchFailureKind::Database(ErrorClass::Conflict | ErrorClass::Lost, _)
                    if again => {}
                // A row that was read may have been deleted or charged by another process meanwhile, so it is read once more before
                // it is judged; the parts of a batch that was judged need that only for the last row.
                BatchFailureKind::Stale { .. } | BatchFailureKind::Database(ErrorClass::Rows, _)
                    if attempt == 1 && (batch.only.is_none() || failure.instances() == 1) =>
                {
                    before = failure.read;
                    attempt += 1;
                    continue;
                }
                // Over other rows than before: it was a race.
                BatchFailureKind::Stale { .. }
                    if again && before.as_ref().is_some_and(|before| failure.is_of_other(before)) =>
                {
                    before = failure.read;
                }
                BatchFailureKind::Database(ErrorClass::Broken | ErrorClass::Lost, source) => {
                    return Err(BillingError::Database { doing: "post a batch", source });
                }
                BatchFailureKind::HiddenWallets | BatchFailureKind::Database(ErrorClass::Conflict, _) => {
                    return Ok(Posted::InTheWay(failure.message));
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

    /// One transaction.
    async fn post_batch(&self, batch: &Batch, reading_first: bool) -> Result<Done, BatchFailure> {
        let step = |doing| spans::step(self.biller.panel.backend, doing);
        fault_injection::linger().await;
        fault_injection::batch_begins();
        fault_injection::before_statement();
        let began = Instant::now();
        let txn =
            async { if reading_first { begin_deferred(&self.db).await } else { begin(&self.db).await } };
        let txn = txn.instrument(step("begin")).await;
        let txn = txn.map_err(|error| BatchFailure::of(error, None))?;
        let (read, again) = (OnceLock::new(), OnceLock::new());
        let mut result = self.load_and_post(&txn, batch, &read).await;
        if fault_injection::mutated("retry-without-rollback")
            && matches!(result, Err(BatchFailureKind::Stale { .. }))
        {
            result = self.load_and_post(&txn, batch, &again).await;
        }
        let read_instances = || read.get().map_or(&[][..], |read: &LoadedBatch| &read.instances);
        match result {
            Ok(posting) => {
                fault_injection::before_statement();
                let end = match self.run.mode {
                    Mode::Commit(_) => txn.commit().instrument(step("commit")).await,
                    Mode::DryRun => txn.rollback().instrument(step("roll back")).await,
                };
                // What is refused only now is taken apart like what is refused at once.
                end.map_err(|error| {
                    self.spend_limit.cancel_reservation(&posting.totals.currencies);
                    BatchFailure::of(error, read.get().cloned())
                })?;
                let ended = Instant::now();
                if let Err(PostError::Database(error)) =
                    post_rows_separately(&self.biller.db, &self.biller.sql, &posting).await
                {
                    return Err(BatchFailure::of(error, None));
                }
                let reading = read.get().map_or(Duration::ZERO, |read| read.at - began);
                let held =
                    (ended - began).saturating_sub(if reading_first { reading } else { Duration::ZERO });
                *self.last_write() = LastWrite { held, ended: Some(ended), reading };
                if let Err(error) = checkpoint(&self.db, SQLITE_LOG_PAGES).await {
                    debug!("the log of the database was not written back: {error}");
                }
                let instances = read_instances().len();
                self.refusals().charged(posting.totals.charged);
                (self.run.progress)(instances as u64);
                let mut unreadable = Findings::default();
                for sentence in read.get().into_iter().flat_map(LoadedBatch::unreadable) {
                    unreadable.add(sentence, LISTED);
                }
                let listed = if self.run.lists_beyond_limit { &posting.beyond_limit[..] } else { &[] };
                let beyond_limit = listed.iter().map(BeyondLimit::from).collect();
                let summary = RunSummary { beyond_limit, unreadable, ..RunSummary::of(posting) };
                Ok(Done { summary, instances, held })
            }
            Err(kind) => {
                // The first error is the one to tell; after it a rollback has nothing to add.
                let _ = txn.rollback().instrument(step("roll back")).await;
                let message = match &kind {
                    BatchFailureKind::Fenced => "fenced".to_owned(),
                    BatchFailureKind::Unguarded => "the panel guard is gone".to_owned(),
                    BatchFailureKind::Overrun(_) => "more would be charged than was announced".to_owned(),
                    BatchFailureKind::Stale { table } => {
                        format!(
                            "the database discards changes of {table}: look for a trigger or a policy there"
                        )
                    }
                    BatchFailureKind::HiddenWallets => {
                        "row-level security lets this login see wallets and not change them".to_owned()
                    }
                    BatchFailureKind::Database(_, error) => with_help(error),
                };
                Err(BatchFailure { kind, message, read: read.get().cloned() })
            }
        }
    }

    /// Leaves the place of SQLite's one writer free for as long as somebody who waits for it may sleep, unless reading takes as long.
    async fn yield_to_writers(&self) {
        let LastWrite { held, ended, reading } = *self.last_write();
        let Some(ended) = ended else { return };
        tokio::time::sleep(batch_sizing::pause_after(held).saturating_sub(ended.elapsed() + reading)).await;
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_write(&self) -> MutexGuard<'_, LastWrite> {
        self.last_write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of one transaction but its end.
    async fn load_and_post<'a>(
        &self,
        txn: &DatabaseTransaction,
        batch: &Batch,
        read: &'a OnceLock<LoadedBatch>,
    ) -> Result<Posting<'a>, BatchFailureKind> {
        let Biller { sql, panel, .. } = self.biller;
        let step = |doing| spans::step(panel.backend, doing);
        let fencing_token = match self.run.mode {
            Mode::Commit(fencing_token) => Some(fencing_token.0),
            Mode::DryRun => None,
        };
        let guarded =
            sql.guarded_settings.as_ref().filter(|_| self.biller.needs_guard && fencing_token.is_some());
        if let Some(limits) = guarded.or(sql.settings.as_ref()) {
            fault_injection::before_statement();
            let limits = statement(txn, limits, [fencing_token.into(), BILLING_JOB.into()]);
            let row = txn.query_one_raw(limits).instrument(step("set limits")).await?;
            if guarded.is_some() && !row.map_or(Ok(false), |row| row.try_get("", "guarded"))? {
                return Err(BatchFailureKind::Unguarded);
            }
        }
        fault_injection::before_statement();
        if let Mode::Commit(fencing_token) = self.run.mode
            && !is_newest(txn, &sql.check_fence, fencing_token)
                .instrument(step("check the panel guard"))
                .await?
        {
            return Err(BatchFailureKind::Fenced);
        }
        let (lock_wallets, due) = self.queries(txn, batch);
        let mut stale = None;
        if fault_injection::mutated("stale-due-list") {
            stale = Some(txn.query_all_raw(due.clone()).await?);
            fault_injection::linger().await;
        }
        fault_injection::before_statement();
        let wallets = match lock_wallets {
            Some(lock) => txn.query_all_raw(lock).instrument(step("lock wallets")).await?,
            None => Vec::new(),
        };
        fault_injection::before_statement();
        let instances = match stale {
            Some(stale) => stale,
            None => txn.query_all_raw(due).instrument(step("read what is due")).await?,
        };
        let read = read.get_or_init(|| batch.restrict(LoadedBatch::of(&wallets, &instances)));
        if self.has_hidden_wallets(txn, read).await? {
            return Err(BatchFailureKind::HiddenWallets);
        }
        let posting = self.decide(batch, read);
        fault_injection::linger().await;
        let stamp = BatchHeader {
            run: self.run.id,
            fencing_token: fencing_token.unwrap_or_default(),
            as_of: self.as_of,
        };
        match post(txn, sql, stamp, &posting).await {
            Ok(()) => self
                .spend_limit
                .reserve(&posting.totals.currencies)
                .map(|()| posting)
                .map_err(BatchFailureKind::Overrun),
            Err(PostError::Database(error)) => Err(error.into()),
            Err(PostError::Count { table, expected, found }) => {
                debug!(table, expected, found, "{found} rows of {table} were written instead of {expected}");
                Err(BatchFailureKind::Stale { table })
            }
        }
    }
}

impl FleetRun<'_> {
    /// How the wallets of a batch are locked, and how its instances are read.
    fn queries(&self, txn: &DatabaseTransaction, batch: &Batch) -> (Option<Statement>, Statement) {
        let sql = &self.biller.sql;
        let as_of = Value::from(self.as_of);
        let Owners::Range { first, last } = &batch.owners else {
            return (None, statement(txn, &sql.read_unowned, [as_of]));
        };
        let range = [first.clone(), last.clone()];
        let lock = statement(txn, &sql.lock_wallets, range.clone());
        let values = [as_of].into_iter().chain(range);
        let due = match &batch.only {
            None => statement(txn, &sql.read_due, values),
            Some(only) => {
                let only = serde_json::to_string(only).expect("text is always JSON");
                statement(txn, &sql.read_due_of, values.chain([only.into()]))
            }
        };
        (Some(lock), due)
    }

    pub(super) fn decide<'a>(&self, batch: &Batch, read: &'a LoadedBatch) -> Posting<'a> {
        self.decide_at(&self.prices, batch, read)
    }

    /// The same at other prices.
    pub(super) fn decide_at<'a>(
        &self,
        prices: &PriceList,
        batch: &Batch,
        read: &'a LoadedBatch,
    ) -> Posting<'a> {
        let Biller { settings, panel, .. } = self.biller;
        let limit = i64::from(settings.max_catch_up_hours);
        let terms = BillingTerms {
            as_of: self.as_of,
            prices,
            unit: panel.unit,
            max_catch_up_hours: limit,
            approvals: &self.approvals,
            refused: batch.refused.as_deref(),
        };
        decide(&terms, &read.wallets, &read.instances)
    }

    /// Whether organizations of `instances` that seem to have no wallet have one which only a writer does not see.
    async fn has_hidden_wallets(&self, txn: &DatabaseTransaction, read: &LoadedBatch) -> Result<bool, DbErr> {
        let Some(sql) = &self.biller.sql.any_wallet else { return Ok(false) };
        let found: HashSet<&Id> = read.wallets.iter().map(|wallet| &wallet.organization).collect();
        let of_instances = read.instances.chunk_by(|one, next| one.organization == next.organization);
        let without: Vec<&Id> = of_instances
            .map(|instances| &instances[0].organization)
            .filter(|organization| !found.contains(organization))
            .collect();
        if without.is_empty() {
            return Ok(false);
        }
        let without = serde_json::to_string(&without).expect("text is always JSON");
        fault_injection::before_statement();
        Ok(txn.query_one_raw(statement(txn, sql, [without.into()])).await?.is_some())
    }
}

impl Batch {
    pub(super) fn of(owners: Owners) -> Self {
        Self { owners, only: None, refused: None }
    }

    /// The last organization of its range.
    pub(super) fn last(&self) -> Option<Value> {
        match &self.owners {
            Owners::Range { last, .. } => Some(last.clone()),
            Owners::Missing => None,
        }
    }

    /// Of what was read, what it is to work on, where the query does not know.
    fn restrict(&self, mut read: LoadedBatch) -> LoadedBatch {
        if let (Owners::Missing, Some(only)) = (&self.owners, &self.only) {
            read.instances.retain(|instance| only.contains(&instance.id));
        }
        read
    }
}

impl From<DbErr> for BatchFailureKind {
    fn from(error: DbErr) -> Self {
        Self::Database(classify(&error), error)
    }
}

impl BatchFailure {
    /// Counts it for whoever watches.
    fn count(&self) {
        match &self.kind {
            BatchFailureKind::Fenced => metrics::fencing_rejected(BILLING_JOB),
            BatchFailureKind::Database(fault, _) => metrics::database_failed(*fault),
            BatchFailureKind::Overrun(_)
            | BatchFailureKind::Stale { .. }
            | BatchFailureKind::HiddenWallets
            | BatchFailureKind::Unguarded => {}
        }
    }

    fn of(error: DbErr, read: Option<LoadedBatch>) -> Self {
        Self { message: with_help(&error), kind: error.into(), read }
    }

    fn instances(&self) -> usize {
        self.read.as_ref().map_or(0, |read| read.instances.len())
    }

    /// Whether what it read differs from what was read `before`.
    fn is_of_other(&self, before: &LoadedBatch) -> bool {
        self.read
            .as_ref()
            .is_none_or(|read| read.wallets != before.wallets || read.instances != before.instances)
    }

    /// What tells complaints apart, whatever values are in their texts.
    fn code(&self) -> String {
        match &self.kind {
            BatchFailureKind::Database(_, error) => code(error).unwrap_or_else(|| self.message.clone()),
            _ => self.message.clone(),
        }
    }
}

impl FleetRun<'_> {
    /// Halves a refused batch until the culprit is alone; that one is held.
    fn bisect(&self, batch: &Batch, failure: BatchFailure) -> Result<Posted, BillingError> {
        let code = failure.code();
        let BatchFailure { read, message, kind } = failure;
        let Some(read) = read else { return Err(unpostable(kind, &message)) };
        // Of one that changed its organization both sides may have been read.
        let mut seen = HashSet::new();
        let ids = read.instances.iter().map(|instance| instance.id.clone());
        let mut ids: Vec<Id> = ids.filter(|id| seen.insert(id.clone())).collect();
        let part = |only: Vec<Id>, refused: Option<String>| Batch {
            owners: batch.owners.clone(),
            only: Some(only),
            refused,
        };
        match (&ids[..], batch.refused.is_some()) {
            // Not even the hold can be written, or nothing was read: no half of it will do better.
            ([], _) | (_, true) => Err(unpostable(kind, &message)),
            ([instance], false) => {
                match self.decide(batch, &read).charges.first() {
                    Some(charge) => {
                        let customer = &charge.instance.organization;
                        self.refusals().refused_charge(customer, instance, &code, &message)?;
                    }
                    None => self.refusals().refused(instance, &message),
                }
                Ok(Posted::Split(vec![part(ids, Some(message))]))
            }
            (many, false) => {
                let second = ids.split_off(many.len() / 2);
                Ok(Posted::Split(vec![part(ids, None), part(second, None)]))
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
        | BatchFailureKind::Unguarded
        | BatchFailureKind::HiddenWallets
        | BatchFailureKind::Overrun(_) => DbErr::RecordNotUpdated,
    };
    debug!("{message}");
    BillingError::Database { doing: "post a batch", source }
}

fn smallest_id(sqlite: bool) -> Value {
    if sqlite { Vec::<u8>::new().into() } else { "00000000-0000-0000-0000-000000000000".into() }
}
