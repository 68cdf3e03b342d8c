//! `charges`: what was taken, and why.

mod explanation;

use chrono::{DateTime, Utc};
use clap::Subcommand;

use super::{
    args::{JsonArgs, parse_time},
    database, environment, log, quiet_filter,
};
use crate::{
    commands::cli::Common,
    exit::Failure,
    output::{json as say_json, layout as say_lines},
    panel_database,
    plugins::Plugins,
    telemetry::LogOutput,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ChargesCommand {
    /// Explain one charge or hold: hours, price, carry, wallet and run
    #[command(after_help = "Example:\n  billing-daemon charges explain web-1 --at 2026-05-01T12:30:00Z")]
    Explain {
        /// The instance: its id, or a label that is unique
        instance: String,
        /// An instant within the hours in question [default: the last charge]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        at: Option<DateTime<Utc>>,
        #[command(flatten)]
        format: JsonArgs,
    },
}

pub(super) async fn execute(
    common: &Common,
    plugins: &Plugins,
    action: ChargesCommand,
) -> Result<(), Failure> {
    let ChargesCommand::Explain { instance, at, format } = action;
    let environment = environment(common)?;
    let database = database(common, plugins, &environment)?;
    log(common, LogOutput::Stderr, &quiet_filter(&environment), Some(&database))?;
    let opened = panel_database::open_without_retry(&database).await?;
    let explanation = explanation::explain(&opened, &instance, at).await?;
    if format.json {
        say_json(&explanation);
    } else {
        say_lines(explanation::in_words(&explanation).trim_end());
    }
    Ok(())
}
