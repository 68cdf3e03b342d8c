//! `version`: what this program is.

use serde_json::json;

use super::say;

pub(super) fn execute(as_json: bool) {
    let (version, target, profile) = (env!("CARGO_PKG_VERSION"), env!("BUILD_TARGET"), env!("BUILD_PROFILE"));
    let features: Vec<&str> = env!("BUILD_FEATURES").split_whitespace().collect();
    let schema = migration::newest();
    if as_json {
        say(json!({
            "version": version,
            "target": target,
            "profile": profile,
            "features": features,
            "schema": schema,
        }));
    } else {
        let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
        say(format!("billing-daemon {version}"));
        say(format!("target    {target}"));
        say(format!("profile   {profile}"));
        say(format!("features  {features}"));
        say(format!("schema    {schema}"));
    }
}
