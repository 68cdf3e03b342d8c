//! `billing-daemon fence` and what it changes.
