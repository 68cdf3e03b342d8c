//! `schema`: what editors complete and check jobs.toml by.

use crate::output::layout as say_lines;
use crate::{Plugins, config, reload::known_kinds};

pub(super) fn execute(plugins: &Plugins) {
    say_lines(&format!("{:#}", config::schema(&known_kinds(plugins))));
}
