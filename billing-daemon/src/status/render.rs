//! A status as text for a terminal.

use std::time::Duration;

use billing_jobs::billing::Totals;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{
    AmountDue, BillingRole, Daemon, JobStatus, Liveness, PanelGuardView, RunStatus, Status, Uncharged,
};
use crate::escape::escaped;

/// Stopped daemons are listed for this long.
const STOPPED_SHOWN: TimeDelta = TimeDelta::days(1);
/// The narrowest column of text that is still read.
const NARROWEST: usize = 30;

/// The status in lines of at most `width` columns, where words allow it.
pub(crate) fn in_words(status: &Status, width: usize) -> String {
    let mut lines = Lines { width, text: String::new() };
    let is_paused = status.problems.iter().any(|problem| problem.kind == "billing_paused");
    lines.add(
        "billing",
        &match status.problems.len() {
            1 if is_paused => "paused".to_owned(),
            many if is_paused => format!("paused, {many} problems"),
            0 if !status.has_billing => "not configured, and no other problems".to_owned(),
            0 => "all is well".to_owned(),
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        },
    );
    for problem in &status.problems {
        lines.add("", &format!("- {}", problem.message));
    }
    let since = |at: DateTime<Utc>| (status.observed_at - at).to_std().unwrap_or_default();
    let panel_bills = status.panel.present && !status.panel.billing_off;
    lines.add("last run", &status.last_run.as_ref().map_or("none yet".to_owned(), |last| run(last, &since)));
    if let Some(totals) = status.last_run.as_ref().and_then(|last| last.totals.as_ref()) {
        let (amounts, Totals { charged, held, hours, .. }) = (totals.amounts(), totals);
        lines.add("", &format!("charged {amounts} for {hours} hours of {charged} machines, {held} held"));
    }
    let worked = status.last_success_at.map_or("never yet".to_owned(), |at| ago(since(at)));
    let hand_back = of_length(Duration::from_secs(status.hand_back_after_seconds));
    let panel_next =
        if panel_bills { format!("; the panel may bill after {hand_back}") } else { String::new() };
    lines.add("worked", &format!("{worked}{panel_next}"));
    if status.holds.is_empty() {
        lines.add("held", "nothing");
    }
    let widths = [
        status.holds.iter().map(|held| held.owed.instances.to_string().len()).max().unwrap_or(0),
        status.holds.iter().map(|held| held.reason.len()).max().unwrap_or(0),
    ];
    for (n, held) in status.holds.iter().enumerate() {
        let [count, reason] = widths;
        let owed = &held.owed;
        let accepted = match held.accepted {
            0 => String::new(),
            accepted if accepted == owed.instances => ", accepted".to_owned(),
            accepted => format!(", {accepted} accepted"),
        };
        let line = format!(
            "{:>count$}  {:reason$}  {} h, {}, since {}{accepted}",
            owed.instances,
            held.reason,
            owed.hours,
            amount(owed),
            ago(since(held.since))
        );
        lines.add(if n == 0 { "held" } else { "" }, &line);
    }
    for (n, Uncharged { reason, owed }) in status.uncharged.iter().enumerate() {
        let up_to = if reason == "instance_deleted" { "up to " } else { "" };
        let instances = if owed.instances == 1 { "instance" } else { "instances" };
        let (hours, count, amount) = (owed.hours, owed.instances, amount(owed));
        let line = format!("{up_to}{hours} h of {count} {instances}, {amount}: {reason}");
        lines.add(if n == 0 { "uncharged" } else { "" }, &line);
    }
    let panel = &status.panel;
    let whose = if panel.present { "a panel lives here" } else { "our own tables" };
    let off = if panel.billing_off { "; its billing is said to be off" } else { "" };
    lines.add("panel", &format!("{}, {whose}{off}", panel.generation));
    let unneeded = !panel.present && !panel.guard.installed;
    lines.add("guard", if unneeded { "not needed (no panel found)" } else { guard(panel.guard) });
    lines.add(
        "schema",
        &format!("{} on {}, read by version {}", status.schema, status.engine, status.version),
    );
    daemons(&mut lines, status, &since);
    for (n, job) in status.jobs.iter().enumerate() {
        let width = status.jobs.iter().map(|job| job.name.len()).max().unwrap_or(0);
        let line = format!("{:width$}  {}", job.name, of_job(job, status.observed_at, &since));
        lines.add(if n == 0 { "jobs" } else { "" }, &line);
    }
    lines.text
}

/// The amount, and that a part of it is unknown.
fn amount(owed: &AmountDue) -> String {
    let AmountDue { instances, amounts, unpriced, .. } = owed;
    match *unpriced {
        0 => amounts.to_string(),
        unpriced if unpriced == *instances => "unknown".to_owned(),
        unpriced => format!("{amounts} and unknown for {unpriced}"),
    }
}

fn daemons(lines: &mut Lines, status: &Status, since: &impl Fn(DateTime<Utc>) -> Duration) {
    let is_recent = |daemon: &&Daemon| {
        daemon.liveness != Liveness::Stopped
            || daemon.last_seen_at.is_some_and(|at| status.observed_at - at <= STOPPED_SHOWN)
    };
    let recent: Vec<_> = status.daemons.iter().filter(is_recent).collect();
    if recent.is_empty() {
        lines.add("daemons", "none");
    }
    for (n, daemon) in recent.iter().enumerate() {
        let heard = daemon.last_seen_at.map_or("never".to_owned(), |at| ago(since(at)));
        let state = match daemon.liveness {
            Liveness::Alive => format!("alive, heard of {heard}"),
            Liveness::Failing => format!("alive and failing, heard of {heard}"),
            Liveness::Stopped => format!("stopped {heard}"),
            Liveness::Dead => format!("dead, heard of {heard}"),
        };
        let bills = match daemon.billing_role {
            BillingRole::Active => ", bills now",
            BillingRole::Standby => ", may bill next",
            BillingRole::None => "",
        };
        let host = daemon.host.as_deref().unwrap_or("an unknown host");
        let version = daemon.version.as_deref().unwrap_or("unknown");
        lines.add(if n == 0 { "daemons" } else { "" }, &daemon.daemon_id);
        lines.add("", &format!("  {state}{bills}; on {host}, version {version}"));
    }
}

fn run(run: &RunStatus, since: &impl Fn(DateTime<Utc>) -> Duration) -> String {
    let took = (run.finished_at - run.started_at).num_milliseconds();
    let took = format!("{}.{} s", took / 1_000, took % 1_000 / 100);
    let by_hand = if run.cause == "manual" { " by hand" } else { "" };
    format!(
        "{}{by_hand} for {}, {} in {took}",
        run.status,
        run.scheduled_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        ago(since(run.finished_at)),
    )
}

fn of_job(job: &JobStatus, observed_at: DateTime<Utc>, since: &impl Fn(DateTime<Utc>) -> Duration) -> String {
    let last = job
        .last_run
        .as_ref()
        .map_or("never ran".to_owned(), |run| format!("{} {}", run.status, ago(since(run.finished_at))));
    if let Some(paused) = &job.paused {
        return format!("{last}; {paused}");
    }
    let next = match (job.late_seconds, &job.holder, job.due_at) {
        (Some(late), _, _) => format!("; {} late", of_length(Duration::from_secs(late))),
        (None, Some(holder), _) => format!("; run by {holder}"),
        (None, None, Some(due)) if due > observed_at => {
            format!("; next in {}", of_length((due - observed_at).to_std().unwrap_or_default()))
        }
        (None, None, Some(_)) => "; due".to_owned(),
        (None, None, None) => String::new(),
    };
    format!("{last}{next}")
}

fn guard(guard: PanelGuardView) -> &'static str {
    match guard {
        PanelGuardView { installed: false, .. } => "off",
        PanelGuardView { enabled: false, .. } => "there, but disabled",
        PanelGuardView { effective: false, .. } => "there, but not the one of this version",
        PanelGuardView { outdated: true, .. } => "on, but outdated",
        _ => "on",
    }
}

/// `12 s ago`.
pub(crate) fn ago(length: Duration) -> String {
    format!("{} ago", of_length(length))
}

/// A length of time in its two largest units: `12 s`, `4 min`, `3 h 20 min`, `5 d 2 h`.
pub(crate) fn of_length(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let two = |many: u64, unit: &str, rest: u64, part: &str| {
        if rest == 0 { format!("{many} {unit}") } else { format!("{many} {unit} {rest} {part}") }
    };
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => two(hours, "h", minutes % 60, "min"),
        _ => two(days, "d", hours % 24, "h"),
    }
}

/// A column of words and one of text, which is wrapped.
struct Lines {
    width: usize,
    text: String,
}

impl Lines {
    const WORDS: usize = 11;

    fn add(&mut self, word: &str, text: &str) {
        let room = self.width.saturating_sub(Self::WORDS).max(NARROWEST);
        let indent = text.len() - text.trim_start().len();
        let mut word = word;
        for line in wrapped(&escaped(text), room, indent + 2) {
            self.text += format!("{word:width$}{line}", width = Self::WORDS).trim_end();
            self.text.push('\n');
            word = "";
        }
    }
}

/// Lines of at most `room` characters; each but the first begins with `indent` blanks. A longer word is left whole.
pub(crate) fn wrapped(text: &str, room: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_inclusive(' ') {
        let fits = line.chars().count() + word.trim_end().chars().count() <= room;
        if !fits && !line.trim().is_empty() {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        }
        line += word;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_told_in_its_two_largest_units() {
        for (seconds, told) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (12_000, "3 h 20 min"),
            (172_799, "47 h 59 min"),
            (172_800, "2 d"),
            (180_000, "2 d 2 h"),
        ] {
            assert_eq!(of_length(Duration::from_secs(seconds)), told);
        }
    }

    #[test]
    fn text_is_wrapped_between_words() {
        let text = "one two three four";
        assert_eq!(wrapped(text, 9, 2), ["one two ", "  three ", "  four"]);
        assert_eq!(wrapped("  a-very-long-word", 5, 4), ["  a-very-long-word"]);
        assert_eq!(wrapped("", 5, 2), [""]);
    }
}
