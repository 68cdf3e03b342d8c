//! The problems of `status`, for the job that notifies operators of them.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use billing_jobs::ProblemSource;

use crate::{
    panel_database::PanelDatabase,
    status::{self, Expected},
};

/// Reads the status as the command and the HTTP interface do.
#[derive(Debug)]
pub(super) struct StatusProblems {
    pub(super) opened: PanelDatabase,
    /// What the status is compared with; a reload replaces it.
    pub(super) expected: Arc<RwLock<Arc<Expected>>>,
}

#[async_trait]
impl ProblemSource for StatusProblems {
    async fn problems(&self) -> Result<Vec<(&'static str, String)>, String> {
        let expected = Arc::clone(&self.expected.read().unwrap_or_else(PoisonError::into_inner));
        let status = status::read(&self.opened, &expected).await.map_err(|failure| failure.message)?;
        Ok(status.problems.into_iter().map(|problem| (problem.kind, problem.message)).collect())
    }
}
