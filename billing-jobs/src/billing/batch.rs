//! One batch in one transaction, from BEGIN to COMMIT.

use std::{
    collections::HashSet,
    sync::OnceLock,
    time::{Duration, Instant},
};

use sea_orm::{DbErr, Statement};
use tracing::{Instrument as _, debug};

use super::{
    BatchTransaction, BeyondLimit, Mode,
    decide::decide,
    error::CeilingExceeded,
    fencing::{self, Permission, permission},
    findings::{Findings, LISTED},
    id::{self, Id},
    model::Posting,
    post::{BatchHeader, post},
    range::Batch,
    read::LoadedBatch,
    run_context::RunContext,
    spend_limit::SpendLimit,
    summary::RunSummary,
    transaction::{Connection as _, PostError, Writes},
};
use crate::{BILLING_JOB, metrics, restore_detection::Batch as NotedBatch, spans};
use billing_store::{ErrorClass, SQLITE_LOG_PAGES, checkpoint, classify, code, with_help};

/// Why one attempt at a batch failed.
pub(super) struct BatchFailure {
    pub(super) kind: BatchFailureKind,
    pub(super) message: String,
    /// What the batch had read.
    pub(super) loaded: Option<LoadedBatch>,
}

pub(super) enum BatchFailureKind {
    Fenced,
    /// Billing is halted, or the database has lost the noted batch or its file.
    Restored,
    /// The panel guard is missing.
    Unguarded,
    /// Another number of rows of this table was written than expected: what was read has changed since, or an object of the database
    /// discards rows.
    Stale {
        table: &'static str,
    },
    /// There are wallets that cannot be locked: a policy hides them from writers, and they are not missing.
    HiddenWallets,
    CeilingExceeded(CeilingExceeded),
    Database(ErrorClass, DbErr),
}

/// A batch that was posted.
pub(super) struct PostedBatch {
    pub(super) summary: RunSummary,
    /// The number of instances that it read.
    pub(super) instances: usize,
    pub(super) times: BatchTimes,
}

/// When a batch read and wrote.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchTimes {
    /// How long it blocked other writers.
    pub(super) held: Duration,
    /// How long it read before.
    pub(super) reading: Duration,
    pub(super) ended: Instant,
}

/// Makes one attempt at `batch`.
pub(super) async fn post_batch(
    context: &RunContext<'_>,
    spend_limit: &SpendLimit,
    batch: &Batch,
    writes: Writes,
) -> Result<PostedBatch, BatchFailure> {
    let step = |doing| spans::step(context.panel.backend, doing);
    let began = Instant::now();
    let txn = BatchTransaction::begin(&context.writer, writes).instrument(step("begin")).await;
    let txn = txn.map_err(|error| BatchFailure::of(error, None))?;
    let loaded = OnceLock::new();
    let (posting, committed) = match load_and_post(context, spend_limit, &txn, batch, &loaded).await {
        Ok(posted) => posted,
        Err(kind) => {
            // The first error is the cause; an error of the rollback adds nothing.
            let _ = txn.rollback().instrument(step("roll back")).await;
            return Err(BatchFailure { message: kind.message(), kind, loaded: loaded.get().cloned() });
        }
    };
    let end = match context.options.mode {
        Mode::Commit(_) => txn.commit().instrument(step("commit")).await,
        Mode::DryRun => txn.rollback().instrument(step("roll back")).await,
    };
    // A charge that the database refuses only now is isolated like one that it refuses at once.
    end.map_err(|error| {
        spend_limit.cancel_reservation(&posting.totals.currencies);
        BatchFailure::of(error, loaded.get().cloned())
    })?;
    let ended = Instant::now();
    if context.options.mode != Mode::DryRun {
        context.restores.committed(committed);
    }
    if let Err(error) = checkpoint(&context.writer, SQLITE_LOG_PAGES).await {
        debug!("cannot write the log of the database back: {error}");
    }
    let loaded = loaded.get();
    let reading = loaded.map_or(Duration::ZERO, |loaded| loaded.at - began);
    let unblocked = if writes == Writes::AfterReads { reading } else { Duration::ZERO };
    let times = BatchTimes { held: (ended - began).saturating_sub(unblocked), reading, ended };
    let mut unreadable = Findings::default();
    for sentence in loaded.into_iter().flat_map(LoadedBatch::unreadable) {
        unreadable.add(sentence, LISTED);
    }
    let listed = if context.options.lists_beyond_limit { &posting.beyond_limit[..] } else { &[] };
    let beyond_limit = listed.iter().map(BeyondLimit::from).collect();
    let summary = RunSummary { beyond_limit, unreadable, ..RunSummary::of(posting) };
    let instances = loaded.map_or(0, |loaded| loaded.instances.len());
    Ok(PostedBatch { summary, instances, times })
}

/// Performs everything of one transaction but its end.
async fn load_and_post<'a>(
    context: &RunContext<'_>,
    spend_limit: &SpendLimit,
    txn: &BatchTransaction,
    batch: &'a Batch,
    loaded: &'a OnceLock<LoadedBatch>,
) -> Result<(Posting<'a>, NotedBatch), BatchFailureKind> {
    check_token_and_guard(context, txn).await?;
    let (lock, due) = batch.statements(context);
    let [wallets, instances] = txn.read_under_locks(lock, due).await?;
    let loaded = loaded.get_or_init(|| batch.restrict(LoadedBatch::of(&wallets, &instances)));
    if has_hidden_wallets(context, txn, loaded).await? {
        return Err(BatchFailureKind::HiddenWallets);
    }
    let terms = context.terms(batch.refused.as_deref());
    let posting = decide(&terms, &loaded.wallets, &loaded.instances);
    let header = BatchHeader {
        run: context.options.id,
        fencing_token: context.options.mode.token().map(|token| token.0).unwrap_or_default(),
        as_of: context.as_of,
    };
    match post(txn, context.sql, header, &posting).await {
        Ok(written) => {
            spend_limit.reserve(&posting.totals.currencies).map_err(BatchFailureKind::CeilingExceeded)?;
            Ok((posting, written))
        }
        Err(PostError::Database(error)) => Err(error.into()),
        Err(PostError::Count { table, expected, found }) => {
            debug!(table, expected, found, "{found} rows of {table} were written instead of {expected}");
            Err(BatchFailureKind::Stale { table })
        }
    }
}

/// Sets the limits of the transaction, and checks that the panel guard is in place, the fencing token is the newest one, and the database
/// has not lost the noted batch.
async fn check_token_and_guard(
    context: &RunContext<'_>,
    txn: &BatchTransaction,
) -> Result<(), BatchFailureKind> {
    let step = |doing| spans::step(context.panel.backend, doing);
    let (sql, backend, token) = (context.sql, context.panel.backend, context.options.mode.token());
    let guarded = sql.guarded_settings.as_ref().filter(|_| context.needs_guard && token.is_some());
    if let Some(settings) = guarded.or(sql.settings.as_ref()) {
        let values = [token.map(|token| token.0).into(), BILLING_JOB.into()];
        let settings = Statement::from_sql_and_values(backend, settings, values);
        let row = txn.query_one(settings).instrument(step("set limits")).await?;
        if guarded.is_some() && !row.map_or(Ok(false), |row| row.try_get("", "guarded"))? {
            return Err(BatchFailureKind::Unguarded);
        }
    }
    if let Some(token) = token {
        if context.restores.ensure_same_file().is_err() {
            return Err(BatchFailureKind::Restored);
        }
        let check = fencing::check(backend, &sql.check_fence, token, context.restores);
        let row = txn.query_one(check).instrument(step("check the fencing token")).await?;
        match permission(row.as_ref())? {
            Permission::Granted => {}
            Permission::Fenced => return Err(BatchFailureKind::Fenced),
            Permission::Restored => return Err(BatchFailureKind::Restored),
        }
    }
    Ok(())
}

/// Returns whether organizations that seem to have no wallet have one that is hidden from writers.
async fn has_hidden_wallets(
    context: &RunContext<'_>,
    txn: &BatchTransaction,
    loaded: &LoadedBatch,
) -> Result<bool, DbErr> {
    let Some(sql) = &context.sql.any_wallet else { return Ok(false) };
    let found: HashSet<&Id> = loaded.wallets.iter().map(|wallet| &wallet.organization).collect();
    let of_instances = loaded.instances.chunk_by(|one, next| one.organization == next.organization);
    let without: Vec<&Id> = of_instances
        .map(|instances| &instances[0].organization)
        .filter(|organization| !found.contains(organization))
        .collect();
    if without.is_empty() {
        return Ok(false);
    }
    let any = Statement::from_sql_and_values(txn.backend(), sql, [id::list(without)]);
    Ok(txn.query_one(any).await?.is_some())
}

impl From<DbErr> for BatchFailureKind {
    fn from(error: DbErr) -> Self {
        Self::Database(classify(&error), error)
    }
}

impl BatchFailureKind {
    fn message(&self) -> String {
        match self {
            Self::Fenced => "fenced".to_owned(),
            Self::Restored => "a committed batch is missing".to_owned(),
            Self::Unguarded => "the panel guard is missing".to_owned(),
            Self::CeilingExceeded(exceeded) => exceeded.to_string(),
            Self::Stale { table } => {
                format!("the database discards changes of {table}: look for a trigger or a policy there")
            }
            Self::HiddenWallets => {
                "row-level security lets this login see wallets and not change them".to_owned()
            }
            Self::Database(_, error) => with_help(error),
        }
    }
}

impl BatchFailure {
    fn of(error: DbErr, loaded: Option<LoadedBatch>) -> Self {
        Self { message: with_help(&error), kind: error.into(), loaded }
    }

    /// Counts the failure in the metrics.
    pub(super) fn count(&self) {
        match &self.kind {
            BatchFailureKind::Fenced => metrics::fencing_rejected(BILLING_JOB),
            BatchFailureKind::Database(class, _) => metrics::database_failed(*class),
            BatchFailureKind::CeilingExceeded(_)
            | BatchFailureKind::Stale { .. }
            | BatchFailureKind::HiddenWallets
            | BatchFailureKind::Restored
            | BatchFailureKind::Unguarded => {}
        }
    }

    pub(super) fn instances(&self) -> usize {
        self.loaded.as_ref().map_or(0, |loaded| loaded.instances.len())
    }

    /// Whether the attempt read other rows than the one `before`.
    pub(super) fn read_other_rows(&self, before: &LoadedBatch) -> bool {
        self.loaded
            .as_ref()
            .is_none_or(|loaded| loaded.wallets != before.wallets || loaded.instances != before.instances)
    }

    /// A code that is the same for two failures whose messages differ by a value.
    pub(super) fn code(&self) -> String {
        match &self.kind {
            BatchFailureKind::Database(_, error) => code(error).unwrap_or_else(|| self.message.clone()),
            _ => self.message.clone(),
        }
    }
}
