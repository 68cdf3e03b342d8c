//! Passes the target and the profile to the program: only Cargo knows them, and only during the build.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let cargo = |name: &str| env::var(name).unwrap_or_default();
    println!("cargo::rustc-env=BUILD_TARGET={}", cargo("TARGET"));
    println!("cargo::rustc-env=BUILD_PROFILE={}", cargo("PROFILE"));
    // `CARGO_FEATURE_SOME_THING` is set for each feature `some-thing` that is on.
    let feature = |(name, _): (String, String)| {
        let name = name.strip_prefix("CARGO_FEATURE_").filter(|name| *name != "DEFAULT")?;
        Some(name.to_lowercase().replace('_', "-"))
    };
    let mut features: Vec<String> = env::vars().filter_map(feature).collect();
    features.sort();
    println!("cargo::rustc-env=BUILD_FEATURES={}", features.join(" "));
}
