//! One pass over the fleet: which range is next, and a batch from BEGIN to COMMIT, again, or taken apart.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use billing_scheduler::StopReason;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Value};
use tracing::{Instrument as _, debug, warn};

use super::{
    BeyondLimit, Biller, BillingError, Mode, Run,
    approvals::Approvals,
    brake::{Brake, Overrun},
    decide::{Instance as Machine, Posting, Terms, Wallet, decide},
    id::Id,
    pace,
    post::{PostError, Stamp, post, post_apart},
    read,
    totals::Totals,
};
use crate::{
    BILLING_JOB,
    currency::Currency,
    db::{Fault, SQLITE_LOG_PAGES, begin, begin_read, begin_reading, fault, statement, write_back},
    fence, measured,
    panel::Panel,
    period::Micros,
    price::PriceList,
    testing, trace,
    uncharged::Debt,
};

/// How often a batch is tried again before it is given up or taken apart.
const ATTEMPTS: u32 = 5;
/// The wait after the first conflict; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(20);

/// A run under way, with what it read once.
pub(super) struct Pass<'a> {
    pub(super) biller: &'a Biller,
    /// Where it writes; see [`alone`](crate::db::alone).
    pub(super) db: DatabaseConnection,
    pub(super) turn: Mutex<Turn>,
    pub(super) run: &'a Run<'a>,
    pub(super) as_of: Micros,
    pub(super) prices: PriceList,
    pub(super) approvals: Approvals,
    pub(super) brake: Brake,
}

/// The last time that this pass was the one writer of SQLite.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// How long nobody else could write.
    held: Duration,
    /// Until when.
    ended: Option<Instant>,
    /// How long it had read before.
    reading: Duration,
}

/// What a pass has come to so far.
#[derive(Default)]
pub(super) struct Over {
    pub(super) totals: Totals,
    /// Instances with more hours than the catch-up limit, if they are listed.
    pub(super) beyond_limit: Vec<BeyondLimit>,
    /// Why batches were left.
    pub(super) unposted: Vec<String>,
    pub(super) stopped: Option<StopReason>,
    /// Hours that a previous organization could not pay.
    pub(super) uncollected: Debt,
    /// By organization, the instances that it pays from now on.
    pub(super) transferred: BTreeMap<Id, Vec<Id>>,
}

impl Over {
    fn of(posting: Posting<'_>) -> Self {
        let mut over = Self { totals: posting.totals, ..Self::default() };
        let uncollected = posting.holds.iter().filter(|hold| posting.uncollected.contains(&hold.instance.id));
        for hold in uncollected {
            let currency = hold.currency.unwrap_or(Currency::NONE);
            over.uncollected.add(hold.hours.unwrap_or_default(), hold.amount, currency);
        }
        for (organization, instance) in posting.transferred {
            over.transferred.entry(organization).or_default().push(instance);
        }
        over
    }

    fn add(&mut self, part: Self) {
        self.totals += part.totals;
        self.beyond_limit.extend(part.beyond_limit);
        self.unposted.extend(part.unposted);
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
    /// The first and the last organization of a range.
    pub(super) first: String,
    pub(super) last: String,
    /// Of these, only the instances with these ids.
    only: Option<Vec<Id>>,
    /// They are to be held because the database refused them.
    refused: Option<String>,
}

/// What a transaction has read under its locks.
pub(super) struct Read {
    pub(super) wallets: Vec<Wallet>,
    /// Ordered by organization.
    pub(super) instances: Vec<Machine>,
    /// When all of it was there.
    pub(super) at: Instant,
}

/// Why one attempt at a batch failed.
struct Failure {
    kind: Kind,
    message: String,
    /// What the batch had to do with.
    instances: Vec<Id>,
}

enum Kind {
    Fenced,
    /// The panel guard is gone.
    Unguarded,
    /// What was read was no longer so when it was written.
    Stale,
    /// There are wallets that could not be locked: a policy hides them from writers, and they are not missing.
    HiddenWallets,
    /// The run would charge more than it may.
    Overrun(Overrun),
    Database(Fault, DbErr),
}

/// What a pass waits for.
enum Step {
    /// The next organizations, if there are any.
    Range(Option<Batch>),
    /// A range is done: with so many instances, in transactions that kept others waiting for so long.
    Billed(Over, usize, Duration),
}

enum Posted {
    Done(Done),
    Split(Vec<Batch>),
    InTheWay(String),
}

/// A transaction that came to its end.
struct Done {
    over: Over,
    /// How many instances it read.
    instances: usize,
    /// For how long it kept others waiting.
    held: Duration,
}

impl Pass<'_> {
    /// Goes through all organizations in order, with as many transactions under way as the pace allows. Whatever happens, those
    /// that are under way are waited for: one that is dropped would leave its connection in the middle of an answer.
    pub(super) async fn whole_fleet(&self, over: &mut Over) -> Result<(), BillingError> {
        let mut pace = self.biller.pace().clone();
        pace.begin();
        let began = Instant::now();
        let mut error = None;
        let mut next: Option<Batch> = None;
        let mut billing = 0;
        let mut steps: FuturesUnordered<BoxFuture<'_, Result<Step, BillingError>>> = FuturesUnordered::new();
        // The next range is looked for while the one before is billed.
        steps.push(Box::pin(self.look_ahead(None, pace.batch())));
        while let Some(step) = steps.next().await {
            match step {
                Ok(Step::Range(range)) => next = range,
                Ok(Step::Billed(part, instances, took)) => {
                    billing -= 1;
                    pace.done(instances, took, began.elapsed());
                    over.add(part);
                }
                Err(failed) => error = error.or(Some(failed)),
            }
            if error.is_none() && over.stopped.is_none() && billing < pace.connections() {
                over.stopped = next.as_ref().and_then(|_| (self.run.stop)());
                if let Some(range) = next.take().filter(|_| over.stopped.is_none()) {
                    steps.push(Box::pin(self.look_ahead(Some(range.last.clone()), pace.batch())));
                    steps.push(Box::pin(self.bill_range(range)));
                    billing += 1;
                }
            }
        }
        *self.biller.pace() = pace;
        error.map_or(Ok(()), Err)
    }

    /// Bills the instances that another organization had until now, once all hours of that one are settled.
    pub(super) async fn bill_new_organizations(&self, over: &mut Over) -> Result<(), BillingError> {
        for (organization, instances) in std::mem::take(&mut over.transferred) {
            over.stopped = over.stopped.or_else(|| (self.run.stop)());
            if over.stopped.is_some() {
                break;
            }
            let only = Some(instances);
            let (first, last) = (organization.to_string(), organization.to_string());
            if let Step::Billed(part, ..) =
                self.bill_range(Batch { first, last, only, refused: None }).await?
            {
                over.add(part);
            }
        }
        Ok(())
    }

    async fn look_ahead(&self, after: Option<String>, batch: u32) -> Result<Step, BillingError> {
        self.next_range(after, batch).await.map(Step::Range)
    }

    /// Bills the instances of a range, in one transaction unless the database refuses some of them.
    async fn bill_range(&self, range: Batch) -> Result<Step, BillingError> {
        let mut over = Over::default();
        let (mut instances, mut held) = (0, Duration::ZERO);
        let mut work = vec![range];
        while let Some(batch) = work.pop() {
            match self.post_or_split(batch).await? {
                Posted::Done(done) => {
                    over.add(done.over);
                    instances += done.instances;
                    held += done.held;
                }
                Posted::Split(halves) => work.extend(halves.into_iter().rev()),
                Posted::InTheWay(reason) => over.unposted.push(reason),
            }
            if !work.is_empty() {
                over.stopped = (self.run.stop)();
            }
            if over.stopped.is_some() {
                break;
            }
        }
        Ok(Step::Billed(over, instances, held))
    }

    /// The next organizations with about one batch of instances to look at.
    pub(super) async fn next_range(
        &self,
        after: Option<String>,
        batch: u32,
    ) -> Result<Option<Batch>, BillingError> {
        let Biller { sql, panel, .. } = self.biller;
        let db = &self.db;
        let (query, after) = match after {
            Some(after) => (sql.next_organizations.clone(), after),
            None => (
                sql.next_organizations.replace("organization_id > ", "organization_id >= "),
                smallest_id(*panel).to_owned(),
            ),
        };
        let values = [self.as_of.into(), after.into(), i64::from(batch).into()];
        let query = statement(db, &query, values);
        let read = || async {
            let txn = begin_read(db).await?;
            if let Some(settings) = &sql.plan_settings {
                txn.query_one_raw(statement(&txn, settings, [])).await?;
            }
            let row = txn.query_one_raw(query.clone()).await?;
            txn.commit().await?;
            Ok(row)
        };
        let row = self.insist("find who is due", read).await?;
        let ends = || -> Result<Option<(String, String)>, DbErr> {
            let Some(row) = row else { return Ok(None) };
            let (first, last): (Option<String>, Option<String>) =
                (row.try_get("", "first")?, row.try_get("", "last")?);
            Ok(first.zip(last))
        };
        let ends = ends().map_err(BillingError::database("read who is due"))?;
        Ok(ends.map(|(first, last)| Batch { first, last, only: None, refused: None }))
    }

    /// Reads something, however often somebody is in the way.
    pub(super) async fn insist<T, F: Future<Output = Result<T, DbErr>>>(
        &self,
        doing: &'static str,
        read: impl Fn() -> F,
    ) -> Result<T, BillingError> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            match read().instrument(trace::step(self.biller.panel.backend, doing)).await {
                Ok(result) => return Ok(result),
                Err(error) if attempt < ATTEMPTS && fault(&error) != Fault::Broken => {
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
        // To read and to decide before the one place for a writer is taken leaves it free meanwhile. If somebody else writes
        // just then it was in vain, so the next attempt takes it first.
        let mut reading_first = self.biller.panel.backend == DbBackend::Sqlite;
        loop {
            if reading_first {
                self.give_way().await;
            }
            let span = trace::batch(attempt);
            let failure = match self.try_post(&batch, reading_first).instrument(span.clone()).await {
                Ok(done) => {
                    trace::posted(&span, done.instances, &done.over.totals);
                    return Ok(Posted::Done(done));
                }
                Err(failure) => failure,
            };
            trace::rolled_back(&span, &failure.message);
            drop(span);
            debug!(attempt, "a batch was rolled back: {}", failure.message);
            let again = attempt < ATTEMPTS;
            if std::mem::take(&mut reading_first)
                && matches!(failure.kind, Kind::Database(Fault::Conflict, _))
            {
                continue;
            }
            failure.count();
            match failure.kind {
                Kind::Fenced => return Err(BillingError::Fenced),
                Kind::Unguarded => return Err(BillingError::Unguarded),
                Kind::Overrun(overrun) => return Err(overrun.into()),
                Kind::Stale | Kind::HiddenWallets | Kind::Database(Fault::Conflict | Fault::Lost, _)
                    if again => {}
                // A row that was read may have been deleted or charged by somebody meanwhile: once more before judging.
                Kind::Database(Fault::Rows, _) if attempt == 1 => {}
                Kind::Database(Fault::Broken | Fault::Lost, source) => {
                    return Err(BillingError::Database { doing: "post a batch", source });
                }
                Kind::HiddenWallets | Kind::Database(Fault::Conflict, _) => {
                    return Ok(Posted::InTheWay(failure.message));
                }
                Kind::Stale | Kind::Database(Fault::Rows, _) => return take_apart(&batch, failure),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
            attempt += 1;
        }
    }

    /// One transaction.
    async fn try_post(&self, batch: &Batch, reading_first: bool) -> Result<Done, Failure> {
        let step = |doing| trace::step(self.biller.panel.backend, doing);
        testing::linger().await;
        testing::batch_begins();
        testing::before_statement();
        let began = Instant::now();
        let txn = async { if reading_first { begin_reading(&self.db).await } else { begin(&self.db).await } };
        let txn = txn.instrument(step("begin")).await;
        let txn = txn.map_err(|error| Failure::of(error, Vec::new()))?;
        let (read, again) = (OnceLock::new(), OnceLock::new());
        let mut result = self.fill(&txn, batch, &read).await;
        if testing::mutated("retry-without-rollback") && matches!(result, Err(Kind::Stale)) {
            result = self.fill(&txn, batch, &again).await;
        }
        let read_instances = || read.get().map_or(&[][..], |read: &Read| &read.instances);
        let instances = || {
            // Of one that changed its organization both sides may have been read.
            let mut ids: Vec<Id> = read_instances().iter().map(|instance| instance.id.clone()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        match result {
            Ok(posting) => {
                testing::before_statement();
                let end = match self.run.mode {
                    Mode::Commit(_) => txn.commit().instrument(step("commit")).await,
                    Mode::DryRun => txn.rollback().instrument(step("roll back")).await,
                };
                // What is refused only now is taken apart like what is refused at once.
                end.map_err(|error| {
                    self.brake.give_back(&posting.totals.sums);
                    Failure::of(error, instances())
                })?;
                let ended = Instant::now();
                if let Err(PostError::Database(error)) =
                    post_apart(&self.biller.db, &self.biller.sql, &posting).await
                {
                    return Err(Failure::of(error, Vec::new()));
                }
                let reading = read.get().map_or(Duration::ZERO, |read| read.at - began);
                let held =
                    (ended - began).saturating_sub(if reading_first { reading } else { Duration::ZERO });
                *self.turn() = Turn { held, ended: Some(ended), reading };
                if let Err(error) = write_back(&self.db, SQLITE_LOG_PAGES).await {
                    debug!("the log of the database was not written back: {error}");
                }
                (self.run.progress)(read_instances().len() as u64);
                let listed = if self.run.lists_beyond_limit { &posting.beyond_limit[..] } else { &[] };
                let beyond_limit = listed.iter().map(BeyondLimit::from).collect();
                let over = Over { beyond_limit, ..Over::of(posting) };
                Ok(Done { over, instances: read_instances().len(), held })
            }
            Err(kind) => {
                // The first error is the one to tell; after it a rollback has nothing to add.
                let _ = txn.rollback().instrument(step("roll back")).await;
                let message = match &kind {
                    Kind::Fenced => "fenced".to_owned(),
                    Kind::Unguarded => "the panel guard is gone".to_owned(),
                    Kind::Overrun(_) => "more would be charged than was announced".to_owned(),
                    Kind::Stale => "what was read had changed when it was written".to_owned(),
                    Kind::HiddenWallets => {
                        "row-level security lets this login see wallets and not change them".to_owned()
                    }
                    Kind::Database(_, error) => error.to_string(),
                };
                Err(Failure { kind, message, instances: instances() })
            }
        }
    }

    /// Leaves the place of SQLite's one writer free for as long as somebody who waits for it may sleep, unless reading takes as long.
    async fn give_way(&self) {
        let Turn { held, ended, reading } = *self.turn();
        let Some(ended) = ended else { return };
        tokio::time::sleep(pace::pause_after(held).saturating_sub(ended.elapsed() + reading)).await;
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of one transaction but its end.
    async fn fill<'a>(
        &self,
        txn: &sea_orm::DatabaseTransaction,
        batch: &Batch,
        read: &'a OnceLock<Read>,
    ) -> Result<Posting<'a>, Kind> {
        let Biller { sql, panel, .. } = self.biller;
        let step = |doing| trace::step(panel.backend, doing);
        let fence = match self.run.mode {
            Mode::Commit(fence) => Some(fence.0),
            Mode::DryRun => None,
        };
        let guarded = sql.guarded_settings.as_ref().filter(|_| self.biller.needs_guard && fence.is_some());
        if let Some(limits) = guarded.or(sql.settings.as_ref()) {
            testing::before_statement();
            let limits = statement(txn, limits, [fence.into(), BILLING_JOB.into()]);
            let row = txn.query_one_raw(limits).instrument(step("set limits")).await?;
            if guarded.is_some() && !row.map_or(Ok(false), |row| row.try_get("", "guarded"))? {
                return Err(Kind::Unguarded);
            }
        }
        testing::before_statement();
        if let Mode::Commit(fence) = self.run.mode
            && !fence::is_newest(txn, &sql.check_fence, fence).instrument(step("check the fence")).await?
        {
            return Err(Kind::Fenced);
        }
        let range: [Value; 2] = [batch.first.as_str().into(), batch.last.as_str().into()];
        let mut values = vec![self.as_of.into()];
        values.extend(range.clone());
        let query = match &batch.only {
            None => &sql.read_due,
            Some(only) => {
                values.push(serde_json::to_string(only).expect("text is always JSON").into());
                &sql.read_due_of
            }
        };
        let query = statement(txn, query, values);
        let mut stale = None;
        if testing::mutated("stale-due-list") {
            stale = Some(txn.query_all_raw(query.clone()).await?);
            testing::linger().await;
        }
        testing::before_statement();
        let wallets = txn.query_all_raw(statement(txn, &sql.lock_wallets, range));
        let wallets = wallets.instrument(step("lock wallets")).await?;
        let wallets = wallets.iter().map(read::wallet).collect::<Result<Vec<_>, _>>()?;
        testing::before_statement();
        let instances = match stale {
            Some(stale) => stale,
            None => txn.query_all_raw(query).instrument(step("read what is due")).await?,
        };
        let instances = instances.iter().map(read::instance).collect::<Result<Vec<_>, _>>()?;
        let read = read.get_or_init(|| Read { wallets, instances, at: Instant::now() });
        if self.hides_wallets(txn, read).await? {
            return Err(Kind::HiddenWallets);
        }
        let posting = self.decide(batch, read);
        testing::linger().await;
        let stamp = Stamp { run: self.run.id, fence: fence.unwrap_or_default(), as_of: self.as_of };
        match post(txn, sql, stamp, &posting).await {
            Ok(()) => self.brake.admit(&posting.totals.sums).map(|()| posting).map_err(Kind::Overrun),
            Err(PostError::Database(error)) => Err(error.into()),
            Err(PostError::Count { table, expected, found }) => {
                debug!(table, expected, found, "{found} rows of {table} were written instead of {expected}");
                Err(Kind::Stale)
            }
        }
    }
}

impl Pass<'_> {
    pub(super) fn decide<'a>(&self, batch: &Batch, read: &'a Read) -> Posting<'a> {
        let Biller { settings, panel, .. } = self.biller;
        let limit = i64::from(settings.max_catch_up_hours);
        let terms = Terms {
            as_of: self.as_of,
            prices: &self.prices,
            unit: panel.unit,
            max_catch_up_hours: limit,
            approvals: &self.approvals,
            refused: batch.refused.as_deref(),
        };
        decide(&terms, &read.wallets, &read.instances)
    }

    /// Whether organizations of `instances` that seem to have no wallet have one which only a writer does not see.
    async fn hides_wallets(&self, txn: &sea_orm::DatabaseTransaction, read: &Read) -> Result<bool, DbErr> {
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
        testing::before_statement();
        Ok(txn.query_one_raw(statement(txn, sql, [without.into()])).await?.is_some())
    }
}

impl From<DbErr> for Kind {
    fn from(error: DbErr) -> Self {
        Self::Database(fault(&error), error)
    }
}

impl Failure {
    /// Counts it for whoever watches.
    fn count(&self) {
        match &self.kind {
            Kind::Fenced => measured::fenced_off(BILLING_JOB),
            Kind::Database(fault, _) => measured::failed(*fault),
            Kind::Overrun(_) | Kind::Stale | Kind::HiddenWallets | Kind::Unguarded => {}
        }
    }

    fn of(error: DbErr, instances: Vec<Id>) -> Self {
        Self { message: error.to_string(), kind: error.into(), instances }
    }
}

/// Halves a refused batch until the culprit is alone; that one is held.
fn take_apart(batch: &Batch, failure: Failure) -> Result<Posted, BillingError> {
    let Failure { mut instances, message, kind } = failure;
    let part = |only: Vec<Id>, refused: Option<String>| Batch {
        first: batch.first.clone(),
        last: batch.last.clone(),
        only: Some(only),
        refused,
    };
    match instances.len() {
        // Not even the hold can be written, or nothing was read: no half of it will do better.
        _ if batch.refused.is_some() => Err(unpostable(kind, &message)),
        0 => Err(unpostable(kind, &message)),
        1 => {
            warn!(instance.id = %instances[0], "instance {} is held: {message}", instances[0]);
            Ok(Posted::Split(vec![part(instances, Some(message))]))
        }
        many => {
            let second = instances.split_off(many / 2);
            Ok(Posted::Split(vec![part(instances, None), part(second, None)]))
        }
    }
}

fn unpostable(kind: Kind, message: &str) -> BillingError {
    let source = match kind {
        Kind::Database(_, source) => source,
        Kind::Fenced | Kind::Unguarded | Kind::Stale | Kind::HiddenWallets | Kind::Overrun(_) => {
            DbErr::RecordNotUpdated
        }
    };
    debug!("{message}");
    BillingError::Database { doing: "post a batch", source }
}

fn smallest_id(panel: Panel) -> &'static str {
    match panel.backend {
        DbBackend::Sqlite => "",
        _ => "00000000-0000-0000-0000-000000000000",
    }
}
