//! The in-memory store passes the suite that every store must pass.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use billing_scheduler::{
    ManualClock, MemoryStore, QueueStore, RunRecord, Store,
    chrono::DateTime,
    conformance::{Harness, QueueHarness, check_all, check_queue},
};

struct MemoryHarness {
    clock: ManualClock,
    store: MemoryStore,
}

#[async_trait]
impl Harness for MemoryHarness {
    fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Store>) {
        (Arc::new(self.store.as_holder("a")), Arc::new(self.store.as_holder("b")))
    }

    async fn expire(&self, _job: &str) {
        self.clock.advance(Duration::from_secs(10));
    }

    async fn runs(&self, job: &str) -> u64 {
        self.store.runs().iter().filter(|run| run.job == job).count() as u64
    }
}

#[async_trait]
impl QueueHarness for MemoryHarness {
    fn stores(&self) -> (Arc<dyn QueueStore>, Arc<dyn QueueStore>) {
        (Arc::new(self.store.as_holder("a")), Arc::new(self.store.as_holder("b")))
    }

    async fn expire(&self, _kind: &str) {
        self.clock.advance(Duration::from_secs(10));
    }

    async fn runs(&self, kind: &str) -> Vec<RunRecord> {
        self.store.runs().into_iter().filter(|run| run.job == kind).collect()
    }
}

#[tokio::test]
async fn memory_queue_passes_conformance_suite() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let store = MemoryStore::new(Arc::new(clock.clone()));
    check_queue(&MemoryHarness { clock, store }).await;
}

#[tokio::test]
async fn memory_store_passes_conformance_suite() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let store = MemoryStore::new(Arc::new(clock.clone()));
    check_all(&MemoryHarness { clock, store }).await;
}
