//! `charges`: why an amount was charged.

mod report;

use chrono::{DateTime, Utc};
use clap::Subcommand;

use super::{
    args::{JsonArgs, parse_time},
    session::Session,
};
use crate::{
    charges::explain,
    exit::Failure,
    output::{self, json as say_json},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ChargesCommand {
    /// Explain one charge or hold: hours, price, carry, balance and run
    #[command(after_help = "Example:\n  billing-daemon charges explain web-1 --at 2026-05-01T12:30:00Z")]
    Explain {
        /// The instance's id, or its label if it is unique
        instance: String,
        /// An instant within the charged or held hours [default: the last charge]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        at: Option<DateTime<Utc>>,
        #[command(flatten)]
        format: JsonArgs,
    },
}

pub(super) async fn execute(session: &Session<'_>, action: ChargesCommand) -> Result<(), Failure> {
    let ChargesCommand::Explain { instance, at, format } = action;
    let opened = session.panel_for_reading().await?;
    let explanation = explain(&opened, &instance, at).await?;
    if format.json {
        say_json(&explanation);
    } else {
        output::report(&report::report(&explanation));
    }
    Ok(())
}
