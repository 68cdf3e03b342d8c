//! What a run or an adoption finds wrong with rows, by kind: how many there are, and the first of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The findings of one kind that a run lists; it counts the others.
pub(super) const LISTED: usize = 10;

/// Findings of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// The number of all of them.
    pub count: u64,
    /// The first of them, a sentence each.
    pub listed: Vec<String>,
}

impl Findings {
    /// Adds one, and lists it while no more than `most` are.
    pub(super) fn add(&mut self, sentence: impl Into<String>, most: usize) {
        self.count += 1;
        if self.listed.len() < most {
            self.listed.push(sentence.into());
        }
    }

    /// Adds what `others` found elsewhere.
    pub(super) fn extend(&mut self, others: Self, most: usize) {
        self.count += others.count;
        self.listed.extend(others.listed);
        self.listed.truncate(most);
    }
}

/// The findings of each kind, such as `unreadable`.
pub type FindingsByKind = BTreeMap<String, Findings>;
