//! How many files and connections this process may open at once.

/// What billing needs: its connections to the database, the files of SQLite, the log, and the pipes of programs that jobs run.
pub(crate) const RESERVED_FOR_BILLING: u64 = 192;
/// What the daemon needs with HTTP.
pub(crate) const NEEDED: u64 = 256;

/// Returns the soft limit of open files; `None` if it is infinite or the platform reports no limit.
#[cfg(unix)]
pub(crate) fn limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
pub(crate) fn limit() -> Option<u64> {
    None
}

/// Raises the limit to [`NEEDED`] as far as this process may. A higher one stays, because programs that jobs run inherit it.
#[cfg(unix)]
pub(crate) fn raise_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = getrlimit(Resource::Nofile);
    if limits.current.is_some_and(|current| current < NEEDED) {
        limits.current = Some(limits.maximum.map_or(NEEDED, |maximum| maximum.min(NEEDED)));
        // The limit that stays is reported where it is too low.
        let _ = setrlimit(Resource::Nofile, limits);
    }
}

#[cfg(not(unix))]
pub(crate) fn raise_limit() {}
