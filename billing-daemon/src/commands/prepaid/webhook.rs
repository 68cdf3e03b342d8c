//! `webhook test`: whether an endpoint answers.

use billing_jobs::prepaid::{Recipient, TEST, Verdict};
use billing_scheduler::{Clock as _, SystemClock};
use chrono::SecondsFormat;
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    commands::{args::JsonArgs, session::Session},
    config::did_you_mean,
    exit::{Exit, Failure},
    output::{json as say_json, line as say},
};

#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Send a test event to an endpoint; exit 1 unless it accepts
    #[command(after_help = "Example:\n  billing-daemon webhook test panel --json | jq .answer.code")]
    Test(TestArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The name of the endpoint in jobs.toml
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// The recipient, which only an endpoint of kind `mail` needs
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    #[command(flatten)]
    format: JsonArgs,
}

pub(crate) async fn execute(session: &Session<'_>, action: &WebhookCommand) -> Result<(), Failure> {
    let WebhookCommand::Test(options) = action;
    let deliveries = session.load()?.config.deliveries();
    let mut endpoints = deliveries.endpoints.iter();
    let Some(endpoint) = endpoints.find(|endpoint| endpoint.name == options.endpoint) else {
        let names: Vec<&str> = deliveries.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        let failure = Failure::new(Exit::Usage, format!("no endpoint is named {:?}", options.endpoint));
        return Err(match did_you_mean(&options.endpoint, names.iter().copied()) {
            Some(help) => failure.help(help),
            None => failure.help(format!("known endpoints: {}", names.join(", "))),
        });
    };
    let data = match (&options.to, endpoint.is_mail()) {
        (Some(to), true) => json!({ "name": to }),
        (None, false) => json!({}),
        (None, true) => {
            let failure = Failure::new(
                Exit::Usage,
                format!("{} sends mails, so a test needs a recipient", endpoint.name),
            );
            return Err(failure.help("add --to ADDRESS"));
        }
        (Some(_), false) => {
            let failure = Failure::new(Exit::Usage, format!("{} sends no mails", endpoint.name));
            return Err(failure.help("remove --to"));
        }
    };
    let (clock, id) = (SystemClock, Uuid::now_v7().to_string());
    let now = clock.now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let body = json!({ "type": TEST, "timestamp": now, "data": data }).to_string();
    let started = clock.monotonic();
    let answer = endpoint.send(&id, &body, options.to.clone().map(Recipient::from)).await;
    let ms = clock.monotonic().saturating_sub(started).as_millis();
    let is_accepted = matches!(answer.verdict, Verdict::Done | Verdict::Begun);
    if options.format.json {
        say_json(
            &json!({ "event": id, "answer": { "code": answer.code, "ms": ms, "detail": answer.detail } }),
        );
    } else {
        let code = answer.code.map(|code| format!(" with {code}")).unwrap_or_default();
        let detail = answer.detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        let verb = if is_accepted { "accepted" } else { "did not accept" };
        say(format!("{} {verb} the test event{code} after {ms} ms{detail}", endpoint.name));
    }
    if is_accepted { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
