//! The secrets of this process, which no line of its log and no trace shows.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use billing_scheduler::Mask;

/// Secrets that are hidden wherever the process writes. Clones share them: what a later configuration adds is hidden everywhere.
#[derive(Clone, Debug, Default)]
pub struct Concealed(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    secrets: BTreeSet<String>,
    mask: Mask,
}

impl Concealed {
    /// Hides `secrets`.
    #[must_use]
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let concealed = Self::default();
        concealed.add(secrets);
        concealed
    }

    /// Hides `secrets` as well.
    pub fn add(&self, secrets: impl IntoIterator<Item = String>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = secrets.into_iter().filter(|secret| known.secrets.insert(secret.clone())).collect();
        known.mask.add(new);
    }

    /// `text` without the secrets.
    #[must_use]
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).mask.apply(text)
    }
}
