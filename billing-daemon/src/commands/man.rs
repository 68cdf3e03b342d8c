//! `man`: prints or writes the manual pages, which are generated from the help.

use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use super::print;
use crate::{
    commands::cli::Cli,
    exit::{Exit, Failure},
};

pub(super) fn execute(folder: Option<&Path>) -> Result<(), Failure> {
    if let Some(folder) = folder {
        return clap_mangen::generate_to(Cli::command(), folder).map_err(|error| {
            Failure::new(Exit::Configuration, format!("cannot write to {}: {error}", folder.display()))
        });
    }
    let mut page = Vec::new();
    let written = Man::new(Cli::command()).render(&mut page);
    written
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot generate the manual page: {error}")))?;
    print(&page);
    Ok(())
}
