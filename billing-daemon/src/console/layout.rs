//! The frame of every page, and the parts that several pages share.

use std::{fmt::Display, time::Duration};

use billing_jobs::{hold::Reason, prepaid::State};
use billing_scheduler::RunStatus;
use chrono::{DateTime, SecondsFormat, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};
use uuid::Uuid;

use super::{
    assets::{ICON, SCRIPT, STYLE},
    problem::Problem,
    visit::Visit,
};
use crate::{
    format::{age_of, ago},
    status::{JobState, RunView, Status},
};

/// What a state means for an operator. Each has a shape, so that none is shown by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Busy,
    Idle,
    Warning,
    Bad,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }

    fn shape(self) -> &'static str {
        match self {
            Self::Good => "●",
            Self::Busy => "▶",
            Self::Idle => "○",
            Self::Warning => "▲",
            Self::Bad => "■",
        }
    }

    pub(super) fn of_run(status: RunStatus) -> Self {
        match status {
            RunStatus::Done => Self::Good,
            RunStatus::Retrying | RunStatus::Interrupted => Self::Warning,
            RunStatus::Dead | RunStatus::Missed => Self::Bad,
            _ => Self::Idle,
        }
    }

    pub(super) fn of_job(state: JobState) -> Self {
        match state {
            JobState::Waiting => Self::Good,
            JobState::Running => Self::Busy,
            JobState::NotConfigured => Self::Idle,
            JobState::Paused | JobState::Retrying => Self::Warning,
            JobState::Late => Self::Bad,
        }
    }
}

/// A word with the shape and the colour of its meaning.
pub(super) fn badge(tone: Tone, word: &str) -> Markup {
    html! { span.badge.(tone.class()) { span aria-hidden="true" { (tone.shape()) } " " (word) } }
}

pub(super) fn run_badge(run: &RunView) -> Markup {
    badge(Tone::of_run(run.status), run.status.as_str())
}

/// An instant. The script adds the local time as a title.
pub(super) fn time(at: DateTime<Utc>) -> Markup {
    let exact = at.to_rfc3339_opts(SecondsFormat::Secs, true);
    html! { time datetime=(exact) { (at.format("%Y-%m-%d %H:%M:%S")) } }
}

/// A duration of milliseconds: `0.42 s`, `1h 30m`.
pub(super) fn milliseconds(ms: u64) -> String {
    if ms < 60_000 {
        return format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10);
    }
    age_of(Duration::from_millis(ms))
}

/// The age of `at`, by the clock that the status was read with.
pub(super) fn since(status: &Status, at: DateTime<Utc>) -> Markup {
    let exact = at.to_rfc3339_opts(SecondsFormat::Secs, true);
    html! { time datetime=(exact) title=(exact) { (ago((status.observed_at - at).to_std().unwrap_or_default())) } }
}

/// A number with commas: `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// A table that becomes a list of cards on a small screen. Each row has a cell for each heading. A heading that begins with `#` is of
/// figures, one that begins with `~` of text that stays on one line.
pub(super) fn table<const N: usize>(
    headings: [&'static str; N],
    rows: impl IntoIterator<Item = [Markup; N]>,
    empty: &str,
) -> Markup {
    let class = |heading: &str| match heading.chars().next() {
        Some('#') => Some("figure"),
        Some('~') => Some("short"),
        _ => None,
    };
    let label = |heading: &'static str| heading.trim_start_matches(['#', '~']);
    let mut rows = rows.into_iter().peekable();
    html! {
        @if rows.peek().is_none() {
            p.empty { (empty) }
        } @else {
            table {
                thead { tr {
                    @for heading in headings {
                        th scope="col" class=[class(heading)] { (label(heading)) }
                    }
                } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (heading, cell) in headings.into_iter().zip(row) {
                                td data-label=(label(heading)) class=[class(heading)] { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Keeps as many rows as a page shows; returns the last of them if there are more.
pub(super) fn keep<T>(rows: &mut Vec<T>, shown: usize) -> Option<&T> {
    let has_more = rows.len() > shown;
    rows.truncate(shown);
    rows.last().filter(|_| has_more)
}

/// Facts with their names.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, fact) in facts {
                div { dt { (name) } dd { (fact) } }
            }
        }
    }
}

/// A message for people, in which commands and names have backticks.
pub(super) fn prose(message: &str) -> Markup {
    html! {
        @for (place, part) in message.split('`').enumerate() {
            @if place % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Text as a fact.
pub(super) fn text(text: impl AsRef<str>) -> Markup {
    html! { (text.as_ref()) }
}

/// A link to a page.
pub(super) fn link(visit: &Visit, path: impl Display, label: impl Render) -> Markup {
    html! { a href=(visit.link(path)) { (label) } }
}

/// A link to the page of a run.
pub(super) fn run_link(visit: &Visit, run: Uuid, at: DateTime<Utc>) -> Markup {
    link(visit, format!("runs/{run}"), time(at))
}

/// A link to the wallet of an organization, which has its id as the label if it has no name.
pub(super) fn organization(visit: &Visit, id: &str, name: &str) -> Markup {
    link(visit, format!("wallets/{id}"), if name.is_empty() { id } else { name })
}

/// The pages in the menu: the first part of the path, the label, and how many things the page is about. Of the first three a person
/// should do something about each.
fn menu(status: &Status) -> [(&'static str, &'static str, u64, Tone); 10] {
    let held = |reason: &str| {
        let held = status.holds.iter().find(|held| held.reason == reason);
        held.map_or(0, |held| held.owed.instances)
    };
    let spike = status.last_run.as_ref().and_then(|run| run.billing_details().pending_amounts());
    let late = status.jobs.iter().filter(|job| job.late_seconds.is_some()).count() as u64;
    let approvals = u64::from(spike.is_some()) + held(Reason::CatchUpLimit.as_str());
    let held = status.holds.iter().map(|held| held.owed.instances).sum();
    let low = [State::Low, State::Exhausted, State::Suspended].map(State::as_str);
    let low = low.iter().filter_map(|state| status.prepaid.standings.get(state)).sum();
    [
        ("", "Overview", status.problems.len() as u64, Tone::Bad),
        ("approvals", "Approvals", approvals, Tone::Bad),
        ("jobs", "Jobs", late, Tone::Bad),
        ("schedule", "Schedule", 0, Tone::Idle),
        ("billing", "Billing", 0, Tone::Idle),
        ("holds", "Holds", held, Tone::Idle),
        ("wallets", "Wallets", low, Tone::Idle),
        ("events", "Events", 0, Tone::Idle),
        ("daemons", "Daemons", 0, Tone::Idle),
        ("audit-log", "Audit log", 0, Tone::Idle),
    ]
}

/// The part of the page that live refresh replaces.
pub(super) fn content(visit: &Visit, title: &str, body: &Markup) -> Markup {
    html! {
        h1 { (title) }
        @if visit.status.halt.is_some() {
            p.notice.bad role="status" { "Billing is halted: see " (link(visit, "", "the overview")) "." }
        }
        (body)
    }
}

/// The whole page with this content.
pub(super) fn document(visit: &Visit, title: &str, content: &Markup) -> Markup {
    let rights: Vec<_> = visit.person.rights.iter().filter(|right| visit.may(**right)).collect();
    let rights: Vec<_> = rights.into_iter().map(|right| right.as_str()).collect();
    let bar = html! {
        div.person {
            span { b { (visit.person.name) } " " small { (rights.join(", ")) } }
            @if visit.person.by_cookie {
                form method="post" action=(visit.link("sign-out")) { button.plain { "Sign out" } }
            }
            button.plain #refresh type="button" hidden { "Pause refresh" }
            button.plain #theme type="button" hidden { "Theme" }
        }
        nav aria-label="Pages" {
            ul {
                @for (path, label, count, tone) in menu(&visit.status) {
                    li {
                        a href=(visit.link(path)) aria-current=[(path == visit.section).then_some("page")] {
                            (label)
                            @if count > 0 { " " span.count.(tone.class()) { (grouped(count)) } }
                        }
                    }
                }
            }
        }
    };
    frame(&visit.root, visit.console.authentication.is_secure(), title, &bar, content)
}

/// The form to sign in, after a failed attempt with a message.
pub(super) fn sign_in(root: &str, secure: bool, message: &str) -> Markup {
    let content = html! {
        h1 { "Sign in" }
        @if !message.is_empty() { p.notice.bad role="alert" { "Not signed in: " (message) "." } }
        form.stacked method="post" action=(format!("{root}sign-in")) {
            label for="token" { "Token" }
            input #token name="token" type="password" autocomplete="current-password" required autofocus;
            button { "Sign in" }
        }
        p.hint { "An administrator makes a token with " code { "billing-daemon console token" } "." }
    };
    frame(root, secure, "Sign in", &html! {}, &content)
}

/// A page about a problem, with what the process last read if the database fails.
pub(super) fn problem(root: &str, problem: &Problem, last: Option<&Status>) -> Markup {
    let title = problem.status().canonical_reason().unwrap_or("Problem");
    let content = html! {
        h1 { (title) }
        p.notice.bad role="alert" { (prose(&sentence(&problem.message()))) }
        @if let Problem::NotFound { nearest: Some(path), .. } = problem {
            p { a href=(format!("{root}{path}")) { "Open " (path) } }
        }
        @if let Some(status) = last {
            h2 { "Last known status, of " (time(status.observed_at)) }
            (problems(status))
        }
        p { a href=(root) { "Overview" } }
    };
    frame(root, true, title, &html! {}, &content)
}

/// The problems of a status as text.
pub(super) fn problems(status: &Status) -> Markup {
    html! {
        @if status.problems.is_empty() { p { (badge(Tone::Good, "no problems")) } }
        ul.problems { @for problem in &status.problems { li { (badge(Tone::Bad, problem.kind)) " " (prose(&problem.message)) } } }
    }
}

/// A message as a sentence.
pub(super) fn sentence(message: &str) -> String {
    let mut chars = message.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if message.ends_with('?') { "" } else { "." };
    format!("{first}{}{end}", chars.as_str())
}

fn frame(root: &str, secure: bool, title: &str, bar: &Markup, content: &Markup) -> Markup {
    let asset = |name: &str| format!("{root}assets/{name}");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · billing-daemon" }
                link rel="stylesheet" href=(asset(&STYLE.name));
                link rel="icon" href=(asset(&ICON.name));
                script src=(asset(&SCRIPT.name)) {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header { a.brand href=(root) { "billing-daemon" } (bar) }
                @if !secure {
                    aside.banner aria-label="Connection" { "This console is served without https: use it on this host or through a tunnel only." }
                }
                main #main tabindex="-1" { (content) }
                footer { "All times are UTC · billing-daemon " (PreEscaped(env!("CARGO_PKG_VERSION"))) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_one_form() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 420, 59_999, 60_000].map(milliseconds), ["0.00 s", "0.42 s", "59.99 s", "1m"]);
    }

    #[test]
    fn hostile_text_is_escaped() {
        let shown = badge(Tone::Bad, "<b onload=\"x\">&").0;
        assert!(shown.ends_with(" &lt;b onload=&quot;x&quot;&gt;&amp;</span>"), "{shown}");
    }
}
