//! `schema`: what editors complete and check jobs.toml by.

use crate::{config, output::layout as say_lines, plugins::Plugins, runtime::reload::known_kinds};

pub(super) fn execute(plugins: &Plugins) {
    say_lines(&format!("{:#}", config::schema(&known_kinds(plugins))));
}
