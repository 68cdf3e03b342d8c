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
pub trait Bench: Send + Sync {
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
pub async fn check_all(bench: &dyn Bench) {
    leases::a_new_job_begins_with_the_first_cursor(bench).await;
    leases::a_held_lease_is_not_given_twice(bench).await;
    leases::a_released_lease_is_free_at_once(bench).await;
    leases::an_expired_lease_goes_to_the_next_under_a_greater_fence(bench).await;
    leases::an_old_holder_records_nothing(bench).await;
    leases::an_old_holder_releases_nothing(bench).await;
    leases::a_renewed_lease_is_kept(bench).await;
    runs::recording_moves_the_state_with_the_row(bench).await;
    runs::an_occurrence_is_finished_once(bench).await;
    runs::every_attempt_leaves_a_row(bench).await;
    runs::no_text_of_a_job_keeps_its_run_from_being_recorded(bench).await;
    runs::a_node_run_needs_no_lease(bench).await;
    leases::of_many_claims_one_wins(bench).await;
    leases::a_plan_is_left_with_the_lease(bench).await;
    requests::reset_needs_a_cursor_in_the_future(bench).await;
    runs::the_last_record_of_a_turn_gives_the_lease_back(bench).await;
    runs::the_history_is_read_as_it_was_written(bench).await;
    requests::a_pause_is_seen_by_whoever_claims_and_by_whoever_asks(bench).await;
    requests::a_request_is_open_until_a_run_answers_it(bench).await;
    requests::a_wish_to_cancel_names_the_claim_in_force(bench).await;
    requests::a_job_shows_how_it_stands(bench).await;
    requests::of_many_requests_none_is_lost(bench).await;
}
