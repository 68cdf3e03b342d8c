//! `console token`: makes a token with which a person signs in to the console.

use std::collections::BTreeSet;

use clap::Subcommand;
use serde_json::json;

use super::{args::JsonArgs, complain};
use crate::{
    console::{Right, TokenLine, hex},
    exit::{Exit, Failure},
    output::{json as say_json, line as say},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ConsoleCommand {
    /// Print a new token, and its line for `tokens-file`
    #[command(after_help = "Example:\n  billing-daemon console token --name ada --rights view,operate")]
    Token {
        /// The person's name, for the audit log
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Rights with commas between them: view, operate, approve, audit-log [default: view]
        #[arg(long, value_name = "RIGHTS", default_value = "view", hide_default_value = true)]
        rights: String,
        #[command(flatten)]
        format: JsonArgs,
    },
}

pub(super) fn execute(action: &ConsoleCommand) -> Result<(), Failure> {
    let ConsoleCommand::Token { name, rights, format } = action;
    let usage = |error: String| Failure::new(Exit::Usage, error);
    let rights = Right::parse_list(rights).map_err(usage)?;
    let (token, line) = new_token(name, rights.clone()).map_err(usage)?;
    if format.json {
        say_json(&json!({ "name": name, "rights": rights, "token": token, "line": line }));
        return Ok(());
    }
    complain("give the token to the person, and add the line to `tokens-file`; the token is not shown again");
    say(format!("token  {token}"));
    say(format!("line   {line}"));
    Ok(())
}

/// Returns a new token of 256 random bits, and its line for the file with the tokens.
pub(super) fn new_token(name: &str, rights: BTreeSet<Right>) -> Result<(String, String), String> {
    let token = hex(&rand::random::<[u8; 32]>());
    let line = TokenLine::new(name, rights, &token)?.to_string();
    Ok((token, line))
}
