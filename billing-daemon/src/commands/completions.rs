//! `completions`: prints the completion script of a shell.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::print;
use crate::commands::cli::Cli;

pub(super) fn execute(shell: Shell) {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "billing-daemon", &mut script);
    // clap_complete 4.6 writes the hyphen of a program's name in two ways, and then its script finds no command.
    let script = String::from_utf8_lossy(&script).replace("billing__subcmd__daemon", "billing__daemon");
    print(script.as_bytes());
}
