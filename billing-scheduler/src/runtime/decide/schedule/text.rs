//! Schedules from the text that [`Schedule`] is formatted as: a store keeps the text of a schedule that was replaced.

use chrono::{DateTime, Utc};

use super::{Dst, DstFold, DstGap, Schedule};
use crate::duration;

impl Schedule {
    /// Returns the schedule that is formatted as `text`; `None` for any other text.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        parse(text).filter(|schedule| schedule.reads(text))
    }
}

fn parse(text: &str) -> Option<Schedule> {
    let parts = parts(text);
    if parts.len() > 1 {
        return Schedule::any(parts.into_iter().map(parse).collect::<Option<Vec<_>>>()?).ok();
    }
    if let Some(list) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        return parse(list);
    }
    if let Some((schedule, limit)) = text.rsplit_once(", not ") {
        let schedule = parse(schedule)?;
        return match limit.split_once(' ')? {
            ("before", at) => schedule.within(Some(instant(at)?), None).ok(),
            ("after", at) => schedule.within(None, Some(instant(at)?)).ok(),
            _ => None,
        };
    }
    if let Some(at) = text.strip_prefix("at ") {
        return Schedule::at(instant(at)?).ok();
    }
    if let Some(every) = text.strip_prefix("every ") {
        let offset = every.strip_suffix(" after").and_then(|text| text.split_once(", "));
        let (period, offset) = offset.map_or((every, None), |(period, offset)| (period, Some(offset)));
        let schedule = Schedule::every(duration::parse(period).ok()?).ok()?;
        return match offset {
            None => Some(schedule),
            Some(offset) => schedule.offset(duration::parse(offset).ok()?).ok(),
        };
    }
    parse_cron(text)
}

fn parse_cron(text: &str) -> Option<Schedule> {
    let mut settings = text.split(", ");
    let (cron, zone) = settings.next()?.rsplit_once(" in ")?;
    let mut dst = Dst::default();
    for setting in settings {
        match setting {
            "dst-gap shift" => dst.gap = Some(DstGap::Shift),
            "dst-gap skip" => dst.gap = Some(DstGap::Skip),
            "dst-fold first" => dst.fold = Some(DstFold::First),
            "dst-fold last" => dst.fold = Some(DstFold::Last),
            "dst-fold both" => dst.fold = Some(DstFold::Both),
            _ => return None,
        }
    }
    Schedule::cron_with(cron, zone, dst).ok()
}

/// Splits a list at each semicolon outside of parentheses.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b';' if depth == 0 => {
                parts.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim_start).collect()
}

fn instant(text: &str) -> Option<DateTime<Utc>> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn formatted_schedule_parses_to_itself() {
        let every = |seconds| Schedule::every(Duration::from_secs(seconds)).unwrap();
        let offset = every(5_400).offset(Duration::from_secs(61)).unwrap();
        let once = Schedule::at(instant("2026-12-01T00:00:00Z").unwrap()).unwrap();
        let berlin = |dst| Schedule::cron_with("30 2 * * MON#2,FRIL", "Europe/Berlin", dst).unwrap();
        let skip = berlin(Dst { gap: Some(DstGap::Skip), fold: Some(DstFold::Last) });
        let within = |schedule: Schedule, from: Option<&str>, until: Option<&str>| {
            schedule.within(from.and_then(instant), until.and_then(instant)).unwrap()
        };
        let (from, until) = (Some("2026-01-01T00:00:00Z"), Some("2027-01-01T00:00:00Z"));
        let list = Schedule::any([every(60), berlin(Dst::default()), within(every(10), from, None)]).unwrap();
        let limited = within(list.clone(), from, until);
        let nested = Schedule::any([limited.clone(), skip.clone(), within(every(7), None, until)]).unwrap();
        for schedule in [every(1), every(86_400), offset, once, skip, list, limited, nested] {
            let text = schedule.to_string();
            let parsed = Schedule::from_text(&text).unwrap_or_else(|| panic!("`{text}` is not parsed"));
            let mut at = instant("2026-06-01T00:00:00Z").unwrap();
            for _ in 0..50 {
                assert_eq!(parsed.next_after(at), schedule.next_after(at), "of `{text}` after {at}");
                let Some(next) = schedule.next_after(at).unwrap() else { break };
                at = next;
            }
        }
        for text in
            ["no schedule", "", "every", "every soon", "at noon", "* * * * *", "every 1h;", "(every 1h"]
        {
            assert_eq!(Schedule::from_text(text), None, "`{text}`");
        }
    }
}
