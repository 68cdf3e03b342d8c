//! The suites that every [`Store`] and every [`QueueStore`](crate::QueueStore) must pass. Call [`check_all`] and [`check_queue`] with
//! stores that share one empty database.

mod leases;
mod queue;
mod requests;
mod runs;
mod shared;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::queue::{QueueHarness, check_queue};
use crate::runtime::store::Store;

/// Provides the suite with a store as two processes use it, and expires leases.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Returns the store as one process uses it, and as another does.
    fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Store>);

    /// Makes every lease of `job` expired for the store.
    async fn expire(&self, job: &str);

    /// Returns the number of rows in the history of `job`.
    async fn runs(&self, job: &str) -> u64;
}

/// Runs the whole suite.
///
/// # Panics
/// If the store violates the contract of [`Store`], with a message that names the violated rule.
pub async fn check_all(harness: &dyn Harness) {
    leases::new_job_starts_at_first_cursor(harness).await;
    leases::held_lease_is_not_claimed(harness).await;
    leases::released_lease_is_free_immediately(harness).await;
    leases::expired_lease_is_claimed_with_greater_token(harness).await;
    leases::old_holder_cannot_record(harness).await;
    leases::old_holder_cannot_release(harness).await;
    leases::renewed_lease_is_kept(harness).await;
    runs::record_updates_state_with_history(harness).await;
    runs::occurrence_is_finished_once(harness).await;
    runs::every_attempt_is_recorded(harness).await;
    runs::any_text_is_recorded(harness).await;
    runs::node_run_needs_no_lease(harness).await;
    leases::one_of_concurrent_claims_wins(harness).await;
    leases::claim_hint_is_stored_at_release(harness).await;
    requests::reset_requires_future_cursor(harness).await;
    runs::finish_records_and_releases(harness).await;
    runs::history_is_read_as_written(harness).await;
    requests::polls_agree_about_time(harness).await;
    requests::pause_is_visible_to_claim_and_poll(harness).await;
    requests::request_is_open_until_answered(harness).await;
    requests::cancel_names_current_claim(harness).await;
    requests::job_row_shows_current_state(harness).await;
    requests::concurrent_requests_are_all_kept(harness).await;
}
