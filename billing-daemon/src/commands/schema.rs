//! `schema`: what editors complete and check jobs.toml by.

use crate::{Plugins, config, output::layout as say_lines, reload::known_kinds};

pub(super) fn execute(plugins: &Plugins) {
    say_lines(&format!("{:#}", config::schema(&known_kinds(plugins))));
}
