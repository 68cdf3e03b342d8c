//! `version`: what this program is.

use serde_json::json;

use super::say;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TARGET: &str = env!("BUILD_TARGET");
const PROFILE: &str = env!("BUILD_PROFILE");

pub(super) fn execute(as_json: bool) {
    if as_json {
        say(json!({
            "version": VERSION,
            "target": TARGET,
            "profile": PROFILE,
            "features": features(),
            "schema": migration::newest(),
        }));
    } else {
        for line in in_words() {
            say(line);
        }
    }
}

/// The same, a line each.
pub(super) fn in_words() -> [String; 5] {
    let features = features();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    [
        format!("billing-daemon {VERSION}"),
        format!("target    {TARGET}"),
        format!("profile   {PROFILE}"),
        format!("features  {features}"),
        format!("schema    {}", migration::newest()),
    ]
}

fn features() -> Vec<&'static str> {
    env!("BUILD_FEATURES").split_whitespace().collect()
}
