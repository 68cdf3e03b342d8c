//! The `[http]` table: whether and where questions are answered.

use super::report::Section;
use crate::http::HttpSettings;

pub(super) const KEYS: [&str; 3] = ["listen", "allowed-hosts", "allowed-uids"];

/// What `[http]` says, if it is there.
pub(super) fn read(root: &Section<'_, '_>) -> Option<HttpSettings> {
    let section = root.table("http", "a table", &KEYS)?;
    section.require(&["listen"]);
    let allowed_hosts = section.strings("allowed-hosts").unwrap_or_default();
    let allowed_uids = section.numbers("allowed-uids").unwrap_or_default();
    let text = section.string("listen")?;
    let listen = section.parsed("listen", &text, str::parse)?;
    Some(HttpSettings { listen: listen.into_inner(), allowed_hosts, allowed_uids })
}
