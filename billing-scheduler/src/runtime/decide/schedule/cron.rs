//! Cron texts on a calendar: the grammar validates texts, croner matches local times, and the transitions of the zone map local
//! times to instants.

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use chrono::{DateTime, NaiveDateTime, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::tz::TimeZone;

use super::{
    Dst, DstFold, DstGap, ScheduleError,
    cron_error::CronError,
    grammar::{self, CronFields},
    zone,
};

/// A cron text in a time zone.
#[derive(Clone)]
pub(super) struct CronSchedule {
    parsed: Arc<Parsed>,
    zone: TimeZone,
    gap: DstGap,
    fold: DstFold,
}

/// The local times that a text selects. Equal texts share it, because it takes about 6 kB.
struct Parsed {
    text: String,
    cron: Cron,
    /// The time of day is left open with `*`, which decides what a repeated or skipped hour means.
    repeats: bool,
}

/// The range that croner searches, in seconds since 1970: from a week into the year 1 to the year 5000.
const CALENDAR: RangeInclusive<i64> = -62_135_000_000..=95_617_584_000;

/// The parsed form of every text in use.
static PARSED: Mutex<Option<HashMap<String, Weak<Parsed>>>> = Mutex::new(None);

impl CronSchedule {
    pub(super) fn parse(text: &str, zone_name: &str, dst: Dst) -> Result<Self, ScheduleError> {
        let parsed = Parsed::shared(text.trim()).map_err(|error| error.within(text))?;
        let zone = zone::named(zone_name)?;
        let (gap, fold) = parsed.like_cron();
        Ok(Self { parsed, zone, gap: dst.gap.unwrap_or(gap), fold: dst.fold.unwrap_or(fold) })
    }

    /// Returns the values that the text selects.
    pub(super) fn fields(&self) -> Option<CronFields> {
        grammar::parse(&self.parsed.text).ok()
    }

    pub(super) fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    pub(super) fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Searches one period of constant offset after another. Within each, a local time is one instant.
    pub(super) fn next_after(&self, instant: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, ScheduleError> {
        if instant.timestamp() > *CALENDAR.end() {
            let reason = "no time is known after the year 4999".to_owned();
            return Err(ScheduleError::Search { text: self.parsed.text.clone(), after: instant, reason });
        }
        let start = instant.timestamp().max(*CALENDAR.start());
        let mut from = DateTime::from_timestamp(start, 0).expect("chrono's range is wider than croner's");
        let mut inclusive = false;
        loop {
            let offset = zone::offset_at(&self.zone, from);
            let local = self.next_local((from + offset).naive_utc(), inclusive, instant)?;
            let at = local.and_utc() - offset;
            let end = zone::next_transition(&self.zone, from);
            if let Some(end) = end.filter(|end| at >= *end) {
                let skipped = local < (end + zone::offset_at(&self.zone, end)).naive_utc();
                if skipped && self.gap == DstGap::Shift {
                    return Ok(Some(end));
                }
                (from, inclusive) = (end, true);
                continue;
            }
            (from, inclusive) = match self.fold {
                DstFold::First => match zone::repeated_until(&self.zone, from, offset) {
                    Some(unique) if at < unique => (unique, true),
                    _ => return Ok(Some(at)),
                },
                DstFold::Last => match end {
                    Some(end) if at >= end - (offset - zone::offset_at(&self.zone, end)) => (end, true),
                    _ => return Ok(Some(at)),
                },
                DstFold::Both => return Ok(Some(at)),
            };
        }
    }

    fn next_local(
        &self,
        from: NaiveDateTime,
        inclusive: bool,
        after: DateTime<Utc>,
    ) -> Result<NaiveDateTime, ScheduleError> {
        self.parsed.cron.find_next_occurrence(&from, inclusive).map_err(|error| ScheduleError::Search {
            text: self.parsed.text.clone(),
            after,
            reason: error.to_string(),
        })
    }
}

impl PartialEq for CronSchedule {
    fn eq(&self, other: &Self) -> bool {
        self.parsed.text == other.parsed.text
            && self.zone == other.zone
            && (self.gap, self.fold) == (other.gap, other.fold)
    }
}

impl Eq for CronSchedule {}

impl Hash for CronSchedule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parsed.text.hash(state);
    }
}

impl fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.parsed.text, self.zone.iana_name().unwrap_or("?"))?;
        let (gap, fold) = self.parsed.like_cron();
        match self.gap {
            own if own == gap => {}
            DstGap::Shift => f.write_str(", dst-gap shift")?,
            DstGap::Skip => f.write_str(", dst-gap skip")?,
        }
        match self.fold {
            own if own == fold => Ok(()),
            DstFold::First => f.write_str(", dst-fold first"),
            DstFold::Last => f.write_str(", dst-fold last"),
            DstFold::Both => f.write_str(", dst-fold both"),
        }
    }
}

impl Parsed {
    fn shared(text: &str) -> Result<Arc<Self>, CronError> {
        let mut texts = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = texts.get_or_insert_default();
        if let Some(known) = texts.get(text).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let parsed = Arc::new(Self::read(text)?);
        if texts.len() == texts.capacity() {
            texts.retain(|_, known| known.strong_count() > 0);
        }
        texts.insert(text.to_owned(), Arc::downgrade(&parsed));
        Ok(parsed)
    }

    fn read(text: &str) -> Result<Self, CronError> {
        let fields = grammar::parse(text)?;
        let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Disallowed).build();
        let cron = parser.parse(&fields.to_string()).map_err(|error| CronError {
            text: text.to_owned(),
            at: 0..text.len(),
            field: None,
            problem: format!("the cron library rejects it: {error}"),
            help: "write it in another way".to_owned(),
        })?;
        Ok(Self { text: text.to_owned(), cron, repeats: fields.repeats })
    }

    /// The policy of cron(8): a job with times of day runs once at a skipped and once at a repeated time, and a job that
    /// repeats over the day follows the wall clock.
    fn like_cron(&self) -> (DstGap, DstFold) {
        if self.repeats { (DstGap::Skip, DstFold::Both) } else { (DstGap::Shift, DstFold::First) }
    }
}
