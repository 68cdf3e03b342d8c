//! One copy of equal values: most of very many jobs have the same settings.

use std::{collections::HashSet, hash::Hash, sync::Arc};

/// The values in use, each once.
#[derive(Debug)]
pub(super) struct Interner<T>(HashSet<Arc<T>>);

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    /// Returns the copy that all users of an equal value share.
    pub(super) fn intern(&mut self, value: &T) -> Arc<T> {
        if let Some(known) = self.0.get(value) {
            return Arc::clone(known);
        }
        let value = Arc::new(value.clone());
        self.0.insert(Arc::clone(&value));
        value
    }

    /// Ends one use of a value. The value is dropped with the last one.
    pub(super) fn release(&mut self, value: &Arc<T>) {
        // One count is that of the set, the other one that of the caller.
        if Arc::strong_count(value) == 2 {
            self.0.remove(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_while_used() {
        let mut texts = Interner::default();
        let first = texts.intern(&"every 1h".to_owned());
        let second = texts.intern(&"every 1h".to_owned());
        assert!(Arc::ptr_eq(&first, &second));
        texts.release(&first);
        drop(first);
        assert_eq!(texts.0.len(), 1, "another user has it");
        texts.release(&second);
        assert_eq!(texts.0.len(), 0);
    }
}
