//! Counts what a store returns: claims, recorded runs, lost leases and errors of the database. Adds the id of its trace to a run.

use std::borrow::Cow;

use async_trait::async_trait;
use billing_scheduler::{
    Claim, ControlReceipt, ControlRequest, JobRow, JobState, LateJob, Lease, RunFilter, RunRecord, RunRow,
    Store, StoreError, StorePoll,
};
use billing_store::{QueryFailed, classify};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::telemetry::{metrics, otel::trace_id};

/// A store whose results are counted.
pub(crate) struct MeteredStore<S>(pub(crate) S);

fn counted<T>(result: Result<T, StoreError>) -> Result<T, StoreError> {
    match &result {
        Err(StoreError::LeaseLost { job, .. }) => metrics::fencing_rejected(job),
        Err(StoreError::Unavailable(error)) => {
            if let Some(QueryFailed(error)) = error.downcast_ref() {
                metrics::database_failed(classify(error));
            }
        }
        _ => {}
    }
    result
}

/// Returns the record with the id of its trace in its details, by which the steps of the run are found.
fn traced(run: &RunRecord) -> Cow<'_, RunRecord> {
    let Some(trace) = trace_id() else { return Cow::Borrowed(run) };
    let mut run = run.clone();
    match &mut run.details {
        details @ Value::Null => *details = json!({ "trace_id": trace }),
        Value::Object(details) => {
            details.insert("trace_id".to_owned(), trace.into());
        }
        _ => {}
    }
    Cow::Owned(run)
}

#[async_trait]
impl<S: Store> Store for MeteredStore<S> {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        let claim = counted(self.0.acquire(job, first_cursor).await);
        if matches!(claim, Ok(Claim::Held(_))) {
            metrics::claimed(job);
        }
        claim
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        counted(self.0.renew(lease).await)
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        counted(self.0.record(lease, &traced(run), next).await).inspect(|()| metrics::recorded(run))
    }

    async fn finish(&self, lease: &Lease, run: &RunRecord, next: &JobState) -> Result<(), StoreError> {
        counted(self.0.finish(lease, &traced(run), next).await).inspect(|()| metrics::recorded(run))
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        counted(self.0.release(lease).await)
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
        counted(self.0.poll(known).await)
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        counted(self.0.request(request).await)
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        counted(self.0.jobs().await)
    }

    async fn late(&self, now: DateTime<Utc>) -> Result<Vec<LateJob>, StoreError> {
        counted(self.0.late(now).await)
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        counted(self.0.runs(filter).await)
    }
}
