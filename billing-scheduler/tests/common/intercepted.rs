//! A store in memory whose calls a test delays or fails. It has no queue.

use async_trait::async_trait;
use billing_scheduler::{
    Claim, ControlReceipt, ControlRequest, JobRow, JobState, Lease, MemoryStore, RunFilter, RunRecord,
    RunRow, Store, StoreError, StorePoll,
    chrono::{DateTime, Utc},
};

/// What a test does around each call, which has the name of its method.
#[async_trait]
pub(crate) trait Around: Send + Sync + 'static {
    /// Fails a call before it reaches the store.
    fn before(&self, _call: &'static str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Delays the response of a call.
    async fn after(&self, _call: &'static str) {}
}

/// Does nothing around a call.
impl Around for () {}

#[derive(Clone)]
pub(crate) struct Intercepted<A> {
    pub(crate) store: MemoryStore,
    pub(crate) around: A,
}

impl<A: Around> Intercepted<A> {
    async fn call<T>(
        &self,
        call: &'static str,
        response: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.around.before(call)?;
        let response = response.await;
        self.around.after(call).await;
        response
    }
}

#[async_trait]
impl<A: Around> Store for Intercepted<A> {
    async fn acquire(&self, job: &str, first_cursor: DateTime<Utc>) -> Result<Claim, StoreError> {
        self.call("acquire", self.store.acquire(job, first_cursor)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.call("renew", self.store.renew(lease)).await
    }

    async fn record(
        &self,
        lease: Option<&Lease>,
        run: &RunRecord,
        next: &JobState,
    ) -> Result<(), StoreError> {
        self.call("record", self.store.record(lease, run, next)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.call("release", self.store.release(lease)).await
    }

    async fn poll(&self, known: Option<i64>) -> Result<StorePoll, StoreError> {
        self.call("poll", self.store.poll(known)).await
    }

    async fn request(&self, request: &ControlRequest) -> Result<ControlReceipt, StoreError> {
        self.call("request", self.store.request(request)).await
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.call("jobs", self.store.jobs()).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
        self.call("runs", Store::runs(&self.store, filter)).await
    }
}
