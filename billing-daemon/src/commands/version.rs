//! `version`: the version, the build target and the required schema.

use serde_json::json;

use crate::{
    commands::args::JsonArgs,
    output::{json as say_json, line as say},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TARGET: &str = env!("BUILD_TARGET");
const PROFILE: &str = env!("BUILD_PROFILE");

pub(super) fn execute(format: JsonArgs) {
    if format.json {
        say_json(&json!({
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

/// The same facts as lines of text.
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
