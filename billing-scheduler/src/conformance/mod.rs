//! The suite that every [`Store`] must pass. Call [`check_all`] with stores that share one empty database.

mod leases;
mod requests;
mod runs;
mod shared;

use std::sync::Arc;

use async_trait::async_trait;

use crate::runtime::store::Store;

/// Gives the suite two processes' views of one store, and lets leases run out.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The store as one process sees it, and as another does.
    fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Store>);

    /// Makes every lease of `job` look expired to the store.
    async fn expire(&self, job: &str);

    /// How many rows the history of `job` has.
    async fn runs(&self, job: &str) -> u64;
}

/// Runs the whole suite.
///
/// # Panics
/// At the first promise of [`Store`] that is broken, with a sentence that names it.
pub async fn check_all(harness: &dyn Harness) {
    leases::a_new_job_begins_with_the_first_cursor(harness).await;
    leases::a_held_lease_is_not_given_twice(harness).await;
    leases::a_released_lease_is_free_at_once(harness).await;
    leases::an_expired_lease_goes_to_the_next_under_a_greater_fence(harness).await;
    leases::an_old_holder_records_nothing(harness).await;
    leases::an_old_holder_releases_nothing(harness).await;
    leases::a_renewed_lease_is_kept(harness).await;
    runs::recording_moves_the_state_with_the_row(harness).await;
    runs::an_occurrence_is_finished_once(harness).await;
    runs::every_attempt_leaves_a_row(harness).await;
    runs::no_text_of_a_job_keeps_its_run_from_being_recorded(harness).await;
    runs::a_node_run_needs_no_lease(harness).await;
    leases::of_many_claims_one_wins(harness).await;
    leases::a_plan_is_left_with_the_lease(harness).await;
    requests::reset_needs_a_cursor_in_the_future(harness).await;
    runs::the_last_record_of_a_turn_gives_the_lease_back(harness).await;
    runs::the_history_is_read_as_it_was_written(harness).await;
    requests::a_pause_is_seen_by_whoever_claims_and_by_whoever_asks(harness).await;
    requests::a_request_is_open_until_a_run_answers_it(harness).await;
    requests::a_wish_to_cancel_names_the_claim_in_force(harness).await;
    requests::a_job_shows_how_it_stands(harness).await;
    requests::of_many_requests_none_is_lost(harness).await;
}
