//! `schema`: prints the JSON Schema of jobs.toml, for editors.

use crate::{
    config,
    output::layout as say_lines,
    plugins::{Plugins, kinds_for_validation},
};

pub(super) fn execute(plugins: &Plugins) {
    say_lines(&format!("{:#}", config::schema(&kinds_for_validation(plugins))));
}
