//! The spans of billing, below the scheduler's `run`: each attempt at a batch, and each query in it. They are for traces, so their
//! level is `debug`: they cost nothing in a log at `info`, which does not contain them. Of a statement they contain the names of
//! tables and steps only.

use sea_orm::DbBackend;
use tracing::{
    Span, debug_span,
    field::{Empty, display},
};

use crate::billing::Totals;

/// One attempt at a batch, from BEGIN to COMMIT or ROLLBACK.
pub(crate) fn batch(attempt: u32) -> Span {
    debug_span!(
        "batch",
        attempt,
        instances = Empty,
        charged = Empty,
        charges = Empty,
        held = Empty,
        hours = Empty,
        amounts = Empty,
        error = Empty,
    )
}

/// Records the totals of a batch that read so many instances.
pub(crate) fn posted(batch: &Span, instances: usize, totals: &Totals) {
    batch
        .record("instances", instances)
        .record("charged", totals.charged)
        .record("charges", totals.charges)
        .record("held", totals.held)
        .record("hours", totals.hours)
        .record("amounts", display(totals.amounts()));
}

/// Why a batch was rolled back.
pub(crate) fn rolled_back(batch: &Span, reason: &str) {
    batch.record("error", reason);
}

/// One step at the database.
pub(crate) fn step(backend: DbBackend, doing: &'static str) -> Span {
    debug_span!("database", db.system.name = system(backend), db.operation.name = doing)
}

/// The rows of one table, written.
pub(crate) fn write(backend: DbBackend, table: &'static str) -> Span {
    debug_span!(
        "database",
        db.system.name = system(backend),
        db.operation.name = "write",
        db.collection.name = table,
    )
}

/// As OpenTelemetry calls it.
fn system(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Sqlite => "sqlite",
        _ => "postgresql",
    }
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn info_log_contains_no_spans() {
        for (level, enabled) in [(LevelFilter::INFO, false), (LevelFilter::DEBUG, true)] {
            tracing::subscriber::with_default(tracing_subscriber::registry().with(level), || {
                let batch = batch(1);
                let spans = [step(DbBackend::Sqlite, "commit"), write(DbBackend::Postgres, "wallets"), batch];
                assert!(spans.iter().all(|span| span.is_disabled() != enabled), "{level}: {spans:?}");
            });
        }
    }

    #[test]
    fn disabled_span_allocates_nothing() {
        let spent = allocation_counter::measure(|| {
            let batch = batch(1);
            posted(&batch, 3, &Totals::default());
            rolled_back(&batch, "no");
            let _inside = step(DbBackend::Sqlite, "commit").entered();
            drop(write(DbBackend::Postgres, "wallets"));
        });
        assert_eq!(spent.count_total, 0);
    }
}
