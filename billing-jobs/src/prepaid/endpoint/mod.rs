//! Where events are sent, as jobs.toml configures it, and how each kind of receiver gets one.

mod answer;
mod command;
mod letter;
mod mail;
mod webhook;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use billing_kinds::{Secret, check_url};
use billing_scheduler::{Clock as _, SystemClock};
use lettre::message::Mailbox;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use tokio::task::spawn_blocking;

pub(super) use self::answer::settle;
pub use self::answer::{Answer, Status, Verdict};
use self::{mail::MailTarget, webhook::WebhookTarget};
use super::{
    event_type::{TYPES, is_for_operators},
    params::PrepaidParams,
};

/// How long a program may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// The endpoints of a configuration, and the rules for what is sent to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliverySettings {
    /// The endpoints of the job of kind `deliver`.
    pub endpoints: std::sync::Arc<[Endpoint]>,
    /// The parameters of the job of kind `prepaid`.
    pub params: PrepaidParams,
}

/// The parameters of kind `deliver`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DeliverParams {
    /// The receivers of events.
    #[serde(deserialize_with = "endpoints")]
    #[schemars(with = "Vec<EndpointParams>")]
    pub endpoint: Vec<Endpoint>,
}

impl DeliverParams {
    /// Returns the current values of all parameters that come from the environment or a file, to be masked in every output.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        self.endpoint.iter().flat_map(Endpoint::secrets).filter_map(|secret| secret.read().ok()).collect()
    }
}

/// How an endpoint receives events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointKind {
    /// By HTTP, signed as Standard Webhooks describes.
    Webhook,
    /// As a mail to the customer.
    Mail,
    /// On the standard input of a program.
    Command,
}

/// A receiver as jobs.toml contains it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EndpointParams {
    /// The name of the endpoint; deliveries are stored under it.
    pub name: String,
    /// How it receives events.
    pub kind: EndpointKind,
    /// The types of events that it receives, such as `billing.service.*`.
    pub types: Vec<String>,
    /// Whether a notice counts as delivered, and an order as acknowledged, only once this endpoint has accepted it.
    #[serde(default)]
    pub needed: bool,
    /// Of a webhook: the URL, https unless it is on this host.
    pub url: Option<Secret>,
    /// Of a webhook: the secrets that sign, each `whsec_` and base64; two while one replaces the other.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// Of a webhook: a PEM file of certificate authorities, which replace the public ones.
    pub ca_file: Option<PathBuf>,
    /// Of mail: the server, such as `smtps://user:password@mail.example.com`.
    pub smtp: Option<Secret>,
    /// Of mail: the sender, such as `Example Hosting <billing@example.com>`.
    pub from: Option<String>,
    /// Of mail: the page where customers add money.
    pub top_up_url: Option<String>,
    /// Of a command: the program and its arguments.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Of a command: its environment, in addition to `PATH`.
    #[serde(default)]
    pub environment: BTreeMap<String, Secret>,
}

/// Who gets a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Where the mail server sends it: a contact of the policy, or what the panel has of the owner.
    pub address: String,
    /// The name of the person; empty if it is unknown.
    pub name: String,
}

impl From<String> for Recipient {
    fn from(address: String) -> Self {
        Self { address, name: String::new() }
    }
}

/// A receiver of events.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "EndpointParams")]
pub struct Endpoint {
    /// The name under which its deliveries are stored.
    pub name: String,
    /// Whether notices and orders wait for its answer.
    pub needed: bool,
    types: Vec<String>,
    target: Target,
}

/// What an event is handed to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Webhook(WebhookTarget),
    Mail(MailTarget),
    Command { argv: Vec<String>, environment: BTreeMap<String, Secret> },
}

impl Endpoint {
    /// Whether it receives events of this type.
    #[must_use]
    pub fn receives(&self, kind: &str) -> bool {
        // A mail is sent to a customer.
        !(self.is_mail() && is_for_operators(kind)) && self.types.iter().any(|pattern| matches(pattern, kind))
    }

    /// Whether it gets mails, each to the customer of its event.
    #[must_use]
    pub fn is_mail(&self) -> bool {
        matches!(self.target, Target::Mail(_))
    }

    /// Hands an event over, and returns the answer: within a minute in any case.
    pub async fn send(&self, id: &str, body: &str, recipient: Option<Recipient>) -> Answer {
        let (id, body) = (id.to_owned(), body.to_owned());
        let sent = match &self.target {
            Target::Webhook(target) => {
                let (target, now) = (target.clone(), SystemClock.now().timestamp());
                spawn_blocking(move || target.send(&id, &body, now)).await
            }
            Target::Mail(target) => {
                let target = target.clone();
                spawn_blocking(move || target.send(&id, &body, recipient.as_ref())).await
            }
            Target::Command { argv, environment } => {
                return command::send(argv, environment, body, COMMAND_LIMIT).await;
            }
        };
        sent.unwrap_or_else(|error| Answer::none(error.to_string()))
    }

    fn secrets(&self) -> Vec<&Secret> {
        match &self.target {
            Target::Webhook(target) => target.secrets.iter().chain([&target.url]).collect(),
            Target::Mail(target) => vec![&target.smtp],
            Target::Command { environment, .. } => environment.values().collect(),
        }
    }
}

impl TryFrom<EndpointParams> for Endpoint {
    type Error = String;

    fn try_from(params: EndpointParams) -> Result<Self, String> {
        let EndpointParams { name, kind, types, needed, url, secrets, ca_file, .. } = params;
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(format!("invalid endpoint name `{name}`: use a-z, 0-9, _ and -"));
        }
        let of = |message: &str| format!("endpoint `{name}`: {message}");
        if types.is_empty() {
            return Err(of("`types` is empty: write for example [\"billing.wallet.*\"]"));
        }
        if let Some(unknown) = types.iter().find(|pattern| !TYPES.iter().any(|kind| matches(pattern, kind))) {
            return Err(of(&format!("no event has the type `{unknown}` (known: {})", TYPES.join(", "))));
        }
        let (has_webhook, has_mail, has_command) = (
            url.is_some() || !secrets.is_empty() || ca_file.is_some(),
            params.smtp.is_some() || params.from.is_some() || params.top_up_url.is_some(),
            !params.argv.is_empty() || !params.environment.is_empty(),
        );
        let target = match kind {
            EndpointKind::Webhook if !has_mail && !has_command => {
                let url = url.ok_or_else(|| of("`url` is missing"))?;
                if let Secret::Text(text) = &url {
                    check_url(text).map_err(|error| of(&error.to_string()))?;
                    webhook::check_transport(text).map_err(|error| of(&error))?;
                }
                if secrets.is_empty() {
                    return Err(of("`secrets` is missing: a receiver could not verify the events"));
                }
                for secret in &secrets {
                    if let Secret::Text(text) = secret {
                        webhook::key(text).map_err(|error| of(&error))?;
                    }
                }
                Target::Webhook(WebhookTarget { url, secrets, ca_file })
            }
            EndpointKind::Mail if !has_webhook && !has_command => {
                let smtp = params.smtp.ok_or_else(|| of("`smtp` is missing"))?;
                let from = params.from.ok_or_else(|| of("`from` is missing"))?;
                let from: Mailbox =
                    from.parse().map_err(|_| of(&format!("`{from}` is not a mail address")))?;
                Target::Mail(MailTarget { smtp, from, top_up_url: params.top_up_url })
            }
            EndpointKind::Command if !has_webhook && !has_mail => {
                if params.argv.first().is_none_or(String::is_empty) {
                    return Err(of("`argv` is missing: write for example [\"/usr/local/bin/suspend\"]"));
                }
                Target::Command { argv: params.argv, environment: params.environment }
            }
            _ => return Err(of("it has parameters of another kind of endpoint")),
        };
        Ok(Self { name, needed, types, target })
    }
}

/// Whether a type matches a pattern, which may end with `.*`.
fn matches(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => prefix.ends_with('.') && kind.starts_with(prefix),
        None => pattern == kind,
    }
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
    let endpoints = Vec::<Endpoint>::deserialize(deserializer)?;
    for (n, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..n].iter().any(|earlier| earlier.name == endpoint.name) {
            return Err(D::Error::custom(format!("two endpoints are named `{}`", endpoint.name)));
        }
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read(endpoints: &Value) -> Result<DeliverParams, String> {
        from_value(json!({ "endpoint": endpoints })).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_of_each_kind_are_read() {
        let params = read(&json!([
            { "name": "panel", "kind": "webhook", "types": ["billing.service.*"], "needed": true,
              "url": "http://127.0.0.1:8080/hooks", "secrets": [SECRET, { "env": "NEXT_SECRET" }] },
            { "name": "mail", "kind": "mail", "types": ["billing.wallet.low"], "smtp": { "file": "/etc/smtp" },
              "from": "Example <billing@example.com>" },
            { "name": "cli", "kind": "command", "types": ["billing.*"], "argv": ["/bin/cat"] },
        ]))
        .expect("endpoints");
        let received = |kind: &str| {
            let receives = params.endpoint.iter().filter(|endpoint| endpoint.receives(kind));
            receives.map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(received("billing.service.suspend"), ["panel", "cli"]);
        assert_eq!(received("billing.wallet.low"), ["mail", "cli"]);
        assert!(!format!("{params:?}").contains("whsec_"), "{params:?}");
    }

    #[test]
    fn unusable_endpoints_are_rejected() {
        let webhook = |url: &str, secret: &str| json!([{ "name": "a", "kind": "webhook", "types": ["billing.*"], "url": url, "secrets": [secret] }]);
        let mail = json!({ "name": "a", "kind": "mail", "types": ["billing.*"], "smtp": "smtp://localhost", "from": "a@b.example" });
        let with = |key: &str, value: Value| {
            let mut mail = mail.clone();
            mail[key] = value;
            json!([mail])
        };
        read(&json!([mail.clone()])).expect("usable");
        read(&webhook("https://panel.example/", SECRET)).expect("usable");
        for (endpoints, message) in [
            (webhook("http://panel.example/", SECRET), "https"),
            (webhook("panel.example", SECRET), "invalid URL"),
            (webhook("https://panel.example/", "whsec_c2hvcnQ="), "24 to 64 bytes"),
            (webhook("https://panel.example/", "secret"), "whsec_"),
            (
                json!([{ "name": "a", "kind": "webhook", "types": ["billing.*"], "url": "https://a/" }]),
                "`secrets`",
            ),
            (json!([{ "name": "a", "kind": "command", "types": ["billing.*"] }]), "`argv`"),
            (with("types", json!([])), "`types` is empty"),
            (with("types", json!(["billing.wallets.*"])), "no event has the type"),
            (with("types", json!(["*"])), "no event has the type"),
            (with("name", json!("A b")), "invalid endpoint name"),
            (with("from", json!("unknown")), "not a mail address"),
            (with("argv", json!(["x"])), "another kind"),
            (json!([mail.clone(), mail.clone()]), "two endpoints"),
        ] {
            let error = read(&endpoints).expect_err(message);
            assert!(error.contains(message), "{error}");
        }
    }
}
