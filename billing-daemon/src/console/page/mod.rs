//! One page a file: what is read, and how it is shown.

pub(super) mod job;
pub(super) mod jobs;
pub(super) mod overview;
pub(super) mod run;
pub(super) mod timeline;
