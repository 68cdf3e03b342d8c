//! Events as mails to customers.

use std::time::Duration;

use billing_kinds::Secret;
use lettre::{
    Message, SmtpTransport, Transport as _,
    message::{
        Mailbox, MultiPart,
        header::{HeaderName, HeaderValue},
    },
};
use url::Url;

use super::{
    Recipient,
    answer::{Answer, Verdict},
    letter::{Letter, letter},
    webhook::is_loopback,
};

/// The limit for each command of the connection.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A mail server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MailTarget {
    pub(super) smtp: Secret,
    pub(super) from: Mailbox,
    pub(super) top_up_url: Option<String>,
}

impl MailTarget {
    /// Sends the event `body` to a customer. Blocks its thread.
    pub(super) fn send(&self, id: &str, body: &str, to: Option<&Recipient>) -> Answer {
        let refused = |reason: String| Answer::new(Verdict::Refused, None, reason);
        let Some(to) = to else { return refused("the organization has no mail address".to_owned()) };
        let Recipient { address, name } = to;
        let Ok(mut to) = address.parse::<Mailbox>() else {
            return refused("the mail address of the organization is not valid".to_owned());
        };
        to.name = to.name.or_else(|| Some(name.trim().to_owned()).filter(|name| !name.is_empty()));
        let company = self.from.name.clone().unwrap_or_else(|| self.from.email.domain().to_owned());
        let letter = match letter(body, &company, self.top_up_url.as_deref()) {
            Ok(letter) => letter,
            Err(problem) => return refused(problem),
        };
        let message = match self.message(id, to, letter) {
            Ok(message) => message,
            Err(error) => return refused(format!("cannot write the mail: {error}")),
        };
        match self.transport() {
            Ok(transport) => answer(transport.send(&message)),
            Err(problem) => Answer::none(problem),
        }
    }

    fn message(&self, id: &str, to: Mailbox, letter: Letter) -> Result<Message, lettre::error::Error> {
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(letter.subject)
            // A mail that is sent again after a crash is shown once.
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .multipart(MultiPart::alternative_plain_html(letter.text, letter.html))?;
        let name = HeaderName::new_from_ascii_str("Auto-Submitted");
        message.headers_mut().insert_raw(HeaderValue::new(name, "auto-generated".to_owned()));
        Ok(message)
    }

    fn transport(&self) -> Result<SmtpTransport, String> {
        let url = self.smtp.read().map_err(|error| error.to_string())?;
        let parsed = Url::parse(url.trim()).map_err(|_| "the URL of the mail server is not valid")?;
        let is_encrypted = parsed.scheme() == "smtps"
            || parsed.query_pairs().any(|(name, value)| name == "tls" && value == "required");
        if !is_encrypted && !is_loopback(&parsed) {
            return Err(
                "the URL of the mail server must begin with smtps:// or end with ?tls=required, unless \
                        the server is on this host"
                    .to_owned(),
            );
        }
        let builder = SmtpTransport::from_url(url.trim());
        Ok(builder.map_err(|_| "the URL of the mail server is not valid")?.timeout(Some(TIMEOUT)).build())
    }
}

fn answer(
    sent: Result<lettre::transport::smtp::response::Response, lettre::transport::smtp::Error>,
) -> Answer {
    match sent {
        Ok(response) => Answer::new(Verdict::Done, Some(u16::from(response.code()).into()), None),
        Err(error) => {
            let verdict = if error.is_permanent() { Verdict::Refused } else { Verdict::Failed };
            let code = error.status().map(|code| u16::from(code).into());
            Answer::new(verdict, code, error.to_string())
        }
    }
}
