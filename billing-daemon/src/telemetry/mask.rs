//! The secrets of this process, which its log and its traces mask.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    io,
    sync::{Arc, PoisonError, RwLock},
};

use billing_scheduler::Mask;

/// Secrets that are masked wherever the process writes. Clones share them: what a later configuration adds is masked everywhere.
#[derive(Clone, Debug, Default)]
pub struct Concealed(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    secrets: BTreeSet<String>,
    mask: Mask,
}

impl Concealed {
    /// Returns a list with these secrets.
    #[must_use]
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let concealed = Self::default();
        concealed.add(secrets);
        concealed
    }

    /// Masks `secrets` as well.
    pub fn add(&self, secrets: impl IntoIterator<Item = String>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = secrets.into_iter().filter(|secret| known.secrets.insert(secret.clone())).collect();
        known.mask.add(new);
    }

    /// Returns `text` with every secret masked.
    #[must_use]
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).mask.apply(text)
    }
}

/// Masks the secrets in what is written to `sink`.
pub(super) struct MaskingWriter<'a> {
    pub(super) sink: Box<dyn io::Write + 'a>,
    pub(super) secrets: &'a Concealed,
}

impl io::Write for MaskingWriter<'_> {
    /// Receives a whole event, so no secret is cut in two.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.sink.write_all(self.secrets.apply(&String::from_utf8_lossy(event)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
