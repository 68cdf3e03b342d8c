//! `schema`: what editors complete and check jobs.toml by.

use super::say;
use crate::{Plugins, config, reload::known_kinds};

pub(super) fn execute(plugins: &Plugins) {
    say(format!("{:#}", config::schema(&known_kinds(plugins))));
}
