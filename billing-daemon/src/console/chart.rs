//! Charts as inline SVG, made by pure functions. Each has a text for those who do not see it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    layout::{Tone, milliseconds},
    page::timeline::Timeline,
};
use crate::{format::instant, status::RunView};

const BAR: u64 = 9;
const HEIGHT: u64 = 40;
const WIDTH: i64 = 720;

/// The number of runs of each status, the most frequent first: `58 done · 1 retrying`.
pub(super) fn in_words(runs: &[RunView]) -> String {
    let mut counts = BTreeMap::new();
    for run in runs {
        *counts.entry(run.status.as_str()).or_insert(0_u32) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().map(|(status, count)| format!("{count} {status}")).collect::<Vec<_>>().join(" · ")
}

/// A bar for each run, the newest at the right. Its height is the duration, its colour the status; a run that did not succeed also has
/// a line across the whole height.
pub(super) fn bars(runs: &[RunView]) -> Markup {
    let longest = runs.iter().map(|run| run.duration_ms).max().unwrap_or_default().max(1);
    let width = BAR * runs.len().max(1) as u64;
    html! {
        svg.bars viewBox=(format!("0 0 {width} {HEIGHT}")) width=(width) height=(HEIGHT) role="img"
            aria-label=(format!("last {} runs: {}", runs.len(), in_words(runs))) {
            @for (index, run) in runs.iter().rev().enumerate() {
                @let height = (run.duration_ms * (HEIGHT - 6) / longest) + 6;
                @let x = index as u64 * BAR;
                @let tone = Tone::of_run(run.status);
                g.(tone.class()) {
                    title {
                        (instant(run.scheduled_at)) ": " (run.status.as_str()) ", " (milliseconds(run.duration_ms))
                    }
                    @if tone != Tone::Good { rect.mark x=(x + 3) y="0" width="1" height=(HEIGHT) {} }
                    rect x=(x) y=(HEIGHT - height) width=(BAR - 2) height=(height) {}
                }
            }
        }
    }
}

/// A line through values from 0 up, the newest at the right, each with its text, and a dashed line at the limit of these values.
pub(super) fn line(
    label: &str,
    points: &[(DateTime<Utc>, i64, String)],
    limit: Option<&(i64, String)>,
) -> Markup {
    const HIGH: i64 = 120;
    let first = points.first().map_or(0, |(at, ..)| at.timestamp());
    let span = points.last().map_or(1, |(at, ..)| at.timestamp() - first).max(1);
    let values = points.iter().map(|(_, value, _)| *value).chain(limit.map(|(value, _)| *value));
    let most = values.max().unwrap_or_default().max(1);
    let height = |value: i64| {
        let y = i128::from(HIGH - 16) * i128::from(value) / i128::from(most);
        HIGH - 8 - i64::try_from(y).unwrap_or_default()
    };
    let place = |(at, value, _): &(DateTime<Utc>, i64, String)| {
        ((at.timestamp() - first) * (WIDTH - 12) / span + 6, height(*value))
    };
    let path: Vec<_> = points.iter().map(place).map(|(x, y)| format!("{x},{y}")).collect();
    let newest = points.last().map_or("none", |(.., text)| text);
    html! {
        svg.timeline viewBox=(format!("0 0 {WIDTH} {HIGH}")) role="img" aria-label=(format!("{label}, newest {newest}")) {
            line.axis x1="0" x2=(WIDTH) y1=(HIGH - 8) y2=(HIGH - 8) {}
            @if let Some((value, text)) = limit {
                line.limit x1="0" x2=(WIDTH) y1=(height(*value)) y2=(height(*value)) { title { "limit: " (text) } }
            }
            polyline.line points=(path.join(" ")) {}
            @for point in points {
                @let (x, y) = place(point);
                circle.good cx=(x) cy=(y) r="3" { title { (instant(point.0)) ": " (point.2) } }
            }
        }
    }
}

/// When runs were scheduled, when they took place, and when the job was paused.
pub(super) fn timeline(timeline: &Timeline) -> Markup {
    let begin = timeline.planned.first().copied().unwrap_or_default();
    let end = timeline.runs.iter().map(|run| run.finished_at).chain(timeline.planned.last().copied()).max();
    let span = end.map_or(1, |end| (end - begin).num_milliseconds()).max(1);
    let x = |at: DateTime<Utc>| ((at - begin).num_milliseconds().clamp(0, span) * (WIDTH - 4) / span) + 2;
    html! {
        svg.timeline viewBox=(format!("0 0 {WIDTH} 56")) role="img"
            aria-label=(format!("timeline of {} runs of {}", timeline.runs.len(), timeline.job)) {
            @for pause in &timeline.pauses {
                @let from = x(pause.from);
                rect.pause x=(from) y="0" width=((x(pause.until.or(end).unwrap_or_default()) - from).max(2)) height="56" {
                    title { "paused by " (pause.by) }
                }
            }
            line.axis x1="0" x2=(WIDTH) y1="20" y2="20" {}
            line.axis x1="0" x2=(WIDTH) y1="46" y2="46" {}
            @for at in &timeline.planned { line.planned x1=(x(*at)) x2=(x(*at)) y1="6" y2="20" {} }
            @for run in &timeline.runs {
                @let from = x(run.started_at);
                rect.(Tone::of_run(run.status).class()) x=(from) y="28" width=((x(run.finished_at) - from).max(3)) height="18" {
                    title { (instant(run.scheduled_at)) ": " (run.status.as_str()) ", " (run.lateness_ms) " ms late" }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use billing_scheduler::RunStatus;

    use super::*;
    use crate::status::testing::run;

    #[test]
    fn bars_show_each_run_once() {
        let runs = [run(RunStatus::Done), run(RunStatus::Dead), run(RunStatus::Done)];
        assert_eq!(in_words(&runs), "2 done · 1 dead");
        let shown = bars(&runs).0;
        assert_eq!(
            (shown.matches("<g class=\"good\">").count(), shown.matches("class=\"mark\"").count()),
            (2, 1)
        );
        assert!(shown.contains("aria-label=\"last 3 runs: 2 done · 1 dead\""), "{shown}");
    }
}
