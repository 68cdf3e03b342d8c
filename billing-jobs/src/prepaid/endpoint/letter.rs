//! The texts of mails to customers: pure.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::prepaid::event_type::TEST;

/// The columns of a line of plain text.
const WIDTH: usize = 72;

const PAGE: &str = include_str!("letter.html");

/// A mail without its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) html: String,
}

/// The body of an event, as far as a mail needs it.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    name: String,
    currency: Option<String>,
    balance: Option<String>,
    owed: Option<String>,
    burn_per_hour: Option<String>,
    runway_hours: Option<i64>,
    empty_at: Option<DateTime<Utc>>,
    suspend_at: Option<DateTime<Utc>>,
    grace_hours: Option<i64>,
}

/// Writes the mail of an event, whose `body` is JSON.
pub(super) fn letter(body: &str, company: &str, top_up_url: Option<&str>) -> Result<Letter, String> {
    let Event { kind, data } =
        serde_json::from_str(body).map_err(|error| format!("cannot read the event: {error}"))?;
    let (subject, paragraphs) = content(&kind, &data)?;
    let mut text = format!("Hello {},\n", data.name);
    for paragraph in &paragraphs {
        let _ = writeln!(text, "\n{}", wrapped(paragraph));
    }
    let facts = facts(&data);
    if !facts.is_empty() {
        text.push('\n');
        for (name, value) in &facts {
            let _ = writeln!(text, "  {:<18}{value}", format!("{name}:"));
        }
    }
    if let Some(url) = top_up_url {
        let _ = writeln!(text, "\nAdd money: {url}");
    }
    let _ = writeln!(text, "\n{company}");
    let rows = facts.iter().map(|(name, value)| {
        format!("<tr><td class=\"name\">{}</td><td>{}</td></tr>", escaped(name), escaped(value))
    });
    let button =
        top_up_url.map(|url| format!("<p><a class=\"button\" href=\"{}\">Add money</a></p>", escaped(url)));
    let html = PAGE
        .replace(
            "{paragraphs}",
            &paragraphs.iter().map(|text| format!("<p>{}</p>", escaped(text))).collect::<Vec<_>>().concat(),
        )
        .replace("{facts}", &rows.collect::<Vec<_>>().concat())
        .replace("{button}", &button.unwrap_or_default())
        // The last ones, because what they insert comes from other people and may contain a placeholder.
        .replace("{title}", &escaped(&subject))
        .replace("{company}", &escaped(company))
        .replace("{name}", &escaped(&data.name));
    Ok(Letter { subject, text, html })
}

/// The subject and the paragraphs.
fn content(kind: &str, data: &Data) -> Result<(String, Vec<String>), String> {
    let required = |at: Option<DateTime<Utc>>| at.map(time).ok_or("the event contains no time");
    let nothing_is_deleted = "Nothing is deleted, and everything continues as soon as you add money.";
    Ok(match kind {
        "billing.wallet.low" => {
            let hours = data.runway_hours.unwrap_or_default().max(0);
            let left = duration(hours);
            let covers = match data.empty_at {
                Some(at) if hours > 0 => format!("for another {left}, until about {}", time(at)),
                _ => format!("for {left}"),
            };
            (
                format!("Your balance lasts for {left}"),
                vec![
                    format!("Your balance covers your servers {covers}. Please add money before then."),
                    "If you do not, your servers keep running for a while, and we write to you again before \
                     they are switched off."
                        .to_owned(),
                ],
            )
        }
        "billing.wallet.exhausted" => {
            let grace = data
                .grace_hours
                .map(duration)
                .map_or_else(String::new, |grace| format!(" for at least {grace}"));
            (
                "Your balance is used up".to_owned(),
                vec![
                    "Your balance no longer covers the hours that are due. Please add money now.".to_owned(),
                    format!(
                        "Your servers keep running{grace}. We write to you again before they are switched off. {nothing_is_deleted}"
                    ),
                ],
            )
        }
        "billing.wallet.final_notice" => {
            let at = required(data.suspend_at)?;
            (
                format!("Your servers will be switched off on {at}"),
                vec![
                    format!(
                        "Your balance is used up. If no money arrives, your servers are switched off on {at} or later."
                    ),
                    nothing_is_deleted.to_owned(),
                ],
            )
        }
        "billing.service.suspend" => (
            "Your servers are switched off".to_owned(),
            vec![
                "Your balance was used up, and no money arrived. Your servers are now switched off."
                    .to_owned(),
                nothing_is_deleted.to_owned(),
            ],
        ),
        "billing.service.resume" | "billing.wallet.recovered" => (
            "Your servers are switched on again".to_owned(),
            vec!["Thank you: money has arrived, and your servers are switched on again.".to_owned()],
        ),
        TEST => (
            "Test of the mails about your balance".to_owned(),
            vec![
                "This mail tests whether messages about your balance arrive. Your balance is unchanged."
                    .to_owned(),
            ],
        ),
        other => return Err(format!("no mail is written for events of type {other}")),
    })
}

/// The figures below the paragraphs.
fn facts(data: &Data) -> Vec<(&'static str, String)> {
    let currency = data.currency.as_deref().unwrap_or_default();
    let amount = |amount: &Option<String>| amount.as_ref().map(|amount| format!("{amount} {currency}"));
    let is_due = data.owed.as_deref().is_some_and(|owed| owed.contains(|c| ('1'..='9').contains(&c)));
    [
        ("Balance", amount(&data.balance)),
        ("Due and unpaid", amount(&data.owed).filter(|_| is_due)),
        ("Cost per hour", amount(&data.burn_per_hour.as_deref().map(shortened))),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// A price without zeros at its end, but with at least two digits after the point.
fn shortened(price: &str) -> String {
    let Some(point) = price.find('.') else { return price.to_owned() };
    let rest = price.trim_end_matches('0').len();
    price[..rest.max((point + 3).min(price.len()))].to_owned()
}

/// The words for a number of hours.
fn duration(hours: i64) -> String {
    match hours {
        0 => "less than one hour".to_owned(),
        1 => "1 hour".to_owned(),
        2..48 => format!("{hours} hours"),
        _ if hours % 24 == 0 => format!("{} days", hours / 24),
        _ => format!("about {} days", (hours + 12) / 24),
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%-d %B %Y at %H:%M UTC").to_string()
}

/// The text in lines.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        if length > 0 && length + 1 + word.chars().count() > WIDTH {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(word);
        length += word.chars().count();
    }
    lines
}

fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::prepaid::event_type::{TYPES, is_for_operators};

    fn body(kind: &str, more: &Value) -> String {
        let mut data = json!({
            "name": "Acme & Söhne", "currency": "EUR", "balance": "1.55", "owed": "0.00", "burn_per_hour": "0.1000",
            "runway_hours": 15, "empty_at": "2026-11-28T05:00:00Z", "grace_hours": 24,
            "suspend_at": "2026-11-29T09:00:00Z",
        });
        data.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({ "type": kind, "timestamp": "2026-11-27T14:00:00Z", "data": data }).to_string()
    }

    #[test]
    fn customer_types_have_texts() {
        for kind in TYPES.iter().filter(|kind| !is_for_operators(kind)) {
            let letter =
                letter(&body(kind, &json!({})), "Example Hosting", Some("https://panel.example/pay?a=1&b=2"));
            let Letter { subject, text, html } = letter.expect(kind);
            assert!(
                !subject.is_empty() && text.contains("Acme & Söhne") && html.contains("Acme &amp; Söhne"),
                "{text}\n{html}"
            );
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            assert!(!html.contains('{') || !html.contains("{name}"), "{html}");
            assert!(html.contains("href=\"https://panel.example/pay?a=1&amp;b=2\""), "{html}");
        }
        letter(&body("billing.problem.appeared", &json!({})), "Example", None)
            .expect_err("an event for operators");
    }

    #[test]
    fn low_notice_reads_well() {
        let letter =
            letter(&body("billing.wallet.low", &json!({})), "Example Hosting", None).expect("a mail");
        assert_eq!(letter.subject, "Your balance lasts for 15 hours");
        assert_eq!(
            letter.text,
            "Hello Acme & Söhne,\n\nYour balance covers your servers for another 15 hours, until about 28\n\
             November 2026 at 05:00 UTC. Please add money before then.\n\n\
             If you do not, your servers keep running for a while, and we write to\n\
             you again before they are switched off.\n\n  Balance:          1.55 EUR\n  Cost per hour:    0.10 EUR\n\n\
             Example Hosting\n"
        );
    }

    #[test]
    fn names_cannot_change_the_page() {
        let name = json!({ "name": "<script>alert(1)</script>{company}", "owed": "0.55" });
        let letter = letter(&body("billing.wallet.exhausted", &name), "{name}", None).expect("a mail");
        assert!(!letter.html.contains("<script>"), "{}", letter.html);
        assert!(
            letter.html.contains("Due and unpaid") && letter.text.contains("0.55 EUR"),
            "{}",
            letter.text
        );
    }

    #[test]
    fn prices_have_two_digits_at_least() {
        for (price, shown) in [("0.1000", "0.10"), ("0.0137", "0.0137"), ("12.0000", "12.00"), ("10", "10")] {
            assert_eq!(shortened(price), shown);
        }
    }

    #[test]
    fn durations_are_words() {
        for (hours, words) in
            [(0, "less than one hour"), (1, "1 hour"), (24, "24 hours"), (72, "3 days"), (71, "about 3 days")]
        {
            assert_eq!(duration(hours), words);
        }
    }
}
