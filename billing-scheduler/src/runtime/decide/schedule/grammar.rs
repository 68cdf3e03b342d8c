//! The grammar of cron texts: which texts are valid, what each field selects, and how to correct invalid ones. Parsing is pure and
//! linear in the length of a text. The cron library gets only normalized texts that this module has accepted.

use std::{
    fmt::{self, Write as _},
    ops::Range,
};

use super::cron_error::{CronError, CronField, Refused, Word};

/// The maximum length of a cron text in bytes, several times that of the longest useful text.
pub(super) const MAX_TEXT: usize = 1_024;

/// The values that a valid text selects. Bit `n` of a mask is the value `n`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CronFields {
    pub(super) seconds: u64,
    pub(super) minutes: u64,
    pub(super) hours: u64,
    pub(super) days: Days,
    pub(super) months: u64,
    pub(super) weekdays: Weekdays,
    /// The second, minute or hour field begins with `*`: the job repeats over the day instead of having times of day.
    pub(super) repeats: bool,
}

/// The days of a month.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Days {
    /// The field is `*` or `?`.
    pub(super) open: bool,
    pub(super) listed: u64,
    /// `15W`: the day from Monday to Friday that is nearest to this day of the same month.
    pub(super) nearest: u64,
    /// `L`: the last day of the month.
    pub(super) last: bool,
    /// `LW`: the last day from Monday to Friday.
    pub(super) last_workday: bool,
}

/// The days of a week; Sunday is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Weekdays {
    /// The field is `*` or `?`.
    pub(super) open: bool,
    pub(super) listed: u64,
    /// `MON#2`: the masks of the first, second, ... fifth such day of a month.
    pub(super) nth: [u64; 5],
    /// `FRIL`: the last such day of a month.
    pub(super) last: u64,
}

/// The fields of a text without seconds.
const FIELDS: [CronField; 5] =
    [CronField::Minute, CronField::Hour, CronField::Day, CronField::Month, CronField::Weekday];
const ORDER: &str = "write 5 fields (minute, hour, day of month, month, day of week), 6 with the second first, or a nickname \
                     such as @hourly";
const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// Parses `text`, which may have surrounding spaces.
pub(super) fn parse(text: &str) -> Result<CronFields, CronError> {
    read(text).map_err(|refused| refused.in_text(text))
}

fn read(text: &str) -> Result<CronFields, Refused> {
    if text.len() > MAX_TEXT {
        let problem = format!("it has {} bytes, and at most {MAX_TEXT} are allowed", text.len());
        return Err(Refused::new(
            0..text.len(),
            problem,
            "use ranges and steps such as `10-50/10` instead of lists",
        ));
    }
    let words: Vec<Word<'_>> = Word::all(text);
    match words.as_slice() {
        [] => Err(Refused::new(0..text.len(), "it is empty", ORDER)),
        [first, ..] if first.text.starts_with('@') => nickname(&words),
        [zone, ..] if zone.text.starts_with("TZ=") || zone.text.starts_with("CRON_TZ=") => Err(Refused::new(
            zone.at..zone.end(),
            format!("`{}` is not a field", zone.text),
            "use `timezone` for the zone",
        )),
        words => fields(words),
    }
}

fn nickname(words: &[Word<'_>]) -> Result<CronFields, Refused> {
    let all = words[0].at..words[words.len() - 1].end();
    let lower = words[0].text.to_ascii_lowercase();
    let help = match (lower.as_str(), words.len()) {
        ("@every", _) => "use `every` for a period: { every = \"90m\" }",
        ("@reboot", _) => "use `run-at-start` for a run at the start",
        (_, 1) => match NICKNAMES.iter().find(|(name, _)| *name == lower) {
            Some((_, plain)) => return read(plain),
            None => "use @hourly, @daily, @midnight, @weekly, @monthly, @yearly or @annually",
        },
        _ => "write the nickname alone",
    };
    let what = if words.len() == 1 { "is an unknown nickname" } else { "is not a nickname" };
    let text: Vec<&str> = words.iter().map(|word| word.text).collect();
    Err(Refused::new(all, format!("`{}` {what}", text.join(" ")), help))
}

fn fields(words: &[Word<'_>]) -> Result<CronFields, Refused> {
    spaced_list(words)?;
    let (second, rest) = match words {
        [second, rest @ ..] if rest.len() == 5 => (Some(second), rest),
        rest if rest.len() == 5 => (None, rest),
        _ => {
            let at = words.get(6).unwrap_or(&words[0]).at..words[words.len() - 1].end();
            let help = match words.len() {
                7.. => "remove the seventh field: the years are limited by `not-before` and `not-after`",
                _ => ORDER,
            };
            return Err(Refused::new(at, format!("it has {} fields", words.len()), help));
        }
    };
    let begins_open = |word: &Word<'_>| word.text.starts_with('*');
    let fields = CronFields {
        seconds: second.map_or(Ok(1), |second| numbers(CronField::Second, second))?,
        minutes: numbers(CronField::Minute, &rest[0])?,
        hours: numbers(CronField::Hour, &rest[1])?,
        days: days(&rest[2])?,
        months: numbers(CronField::Month, &rest[3])?,
        weekdays: weekdays(&rest[4])?,
        repeats: second.is_some_and(begins_open) || begins_open(&rest[0]) || begins_open(&rest[1]),
    };
    some_day(&fields, &rest[2], &rest[3])?;
    Ok(fields)
}

/// Rejects a list with spaces in it: `15, 45 * * * *` would be six fields.
fn spaced_list(words: &[Word<'_>]) -> Result<(), Refused> {
    let mut lists: Vec<Range<usize>> = Vec::new();
    for (place, word) in words.iter().enumerate() {
        let continues = place > 0 && (word.text.starts_with(',') || words[place - 1].text.ends_with(','));
        match lists.last_mut().filter(|_| continues) {
            Some(list) => list.end = place + 1,
            None => lists.push(place..place + 1),
        }
    }
    let Some(place) = lists.iter().position(|list| list.len() > 1) else { return Ok(()) };
    let missing = match lists.len() {
        5 => 0,
        6 => 1,
        // A superfluous comma is reported by its field.
        _ => return Ok(()),
    };
    let field = if place < missing { CronField::Second } else { FIELDS[place - missing] };
    let parts: Vec<&str> = words[lists[place].clone()].iter().map(|word| word.text).collect();
    let list = &words[lists[place].clone()];
    let at = list[0].at..list[list.len() - 1].end();
    let help = format!("write `{}` without a space", parts.concat());
    Err(Refused::new(at, "has a space in its list", help).of(field, &parts.join(" ")))
}

/// Returns the mask of a field that has numbers and names only.
fn numbers(field: CronField, word: &Word<'_>) -> Result<u64, Refused> {
    let mut mask = 0;
    for item in items(field, word)? {
        mask |= range(field, &item)?;
    }
    Ok(mask)
}

fn days(word: &Word<'_>) -> Result<Days, Refused> {
    let field = CronField::Day;
    let mut days = Days { open: is_open(word), ..Days::default() };
    for item in items(field, word)? {
        let upper = item.text.to_ascii_uppercase();
        match upper.as_str() {
            "L" => days.last = true,
            "LW" => days.last_workday = true,
            _ => match upper.strip_suffix('W') {
                Some(day) if !day.contains(['-', '/', '*']) => {
                    days.nearest |= 1 << value(field, &item.until(day.len()))?;
                }
                _ => days.listed |= range(field, &item)?,
            },
        }
    }
    if days.last && days.last_workday {
        let help = "write `L` or `LW`, or a schedule for each of them";
        return Err(word.refused(field, "has both `L` and `LW`", help));
    }
    Ok(days)
}

fn weekdays(word: &Word<'_>) -> Result<Weekdays, Refused> {
    let field = CronField::Weekday;
    let mut weekdays = Weekdays { open: is_open(word), ..Weekdays::default() };
    for item in items(field, word)? {
        let is_list = item.text.contains(['-', '/', '*', '?']);
        if let Some((day, nth)) = item.text.split_once('#').filter(|_| !is_list) {
            let day = weekday(&item.until(day.len()))?;
            let place = nth.parse::<usize>().ok().filter(|nth| (1..=5).contains(nth));
            let Some(place) = place else {
                let help = "write a number from 1 to 5 after `#`, such as `MON#1` for the first Monday";
                return Err(item.refused(field, "does not say which one of a month", help));
            };
            weekdays.nth[place - 1] |= 1 << day;
        } else if let Some(day) = item.text.strip_suffix(['L', 'l']).filter(|_| !is_list) {
            if day.is_empty() {
                let help = "write the day before `L`, such as `FRIL` for the last Friday of a month";
                return Err(item.refused(field, "does not say which day", help));
            }
            weekdays.last |= 1 << weekday(&item.until(day.len()))?;
        } else {
            let mask = range(field, &item)?;
            weekdays.listed |= mask & 0x7f | mask >> 7;
        }
    }
    Ok(weekdays)
}

fn is_open(word: &Word<'_>) -> bool {
    matches!(word.text, "*" | "?")
}

/// Returns the day of the week; Sunday is 0 or 7 in the text, and 0 in the result.
fn weekday(word: &Word<'_>) -> Result<u8, Refused> {
    Ok(value(CronField::Weekday, word)? % 7)
}

/// Returns the items of a list. An item that selects the whole field must be the only one.
fn items<'t>(field: CronField, word: &Word<'t>) -> Result<Vec<Word<'t>>, Refused> {
    let items: Vec<Word<'t>> = word.split(|c| c == ',');
    for (place, item) in items.iter().enumerate() {
        if item.text.is_empty() {
            let problem = match place {
                0 => "begins with a comma",
                _ if place + 1 == items.len() => "ends with a comma",
                _ => "has an empty item in its list",
            };
            return Err(word.refused(field, problem, "remove the comma"));
        }
        if items.len() > 1 && item.text.starts_with(['*', '?']) {
            let help = match item.text.split_once('/') {
                Some((_, step)) => format!("write it as a range: `{}/{step}`", field.all()),
                None => format!("write `{}` alone, which includes every value", item.text),
            };
            return Err(item.refused(field, "is in a list", help));
        }
    }
    if word.text.starts_with('?') {
        let may = matches!(field, CronField::Day | CronField::Weekday);
        if !may || word.text != "?" {
            let problem = if may { "is not valid" } else { "is for day of month and day of week only" };
            return Err(word.refused(field, problem, "write `*`"));
        }
    }
    Ok(items)
}

/// Returns the mask of `*`, `5`, `5-9`, `*/5` or `10-50/10`.
fn range(field: CronField, item: &Word<'_>) -> Result<u64, Refused> {
    let parts = item.split(|c| c == '/');
    let (base, step) = match parts.as_slice() {
        [base] => (base, None),
        [base, step] => (base, Some(step_of(field, item, step)?)),
        _ => return Err(item.refused(field, "has more than one `/`", format!("write `{}/5`", field.all()))),
    };
    let (low, high) = field.bounds();
    let (first, last) = if matches!(base.text, "*" | "?") {
        (low, field.last())
    } else {
        let ends = base.split(|c| c == '-');
        match ends.as_slice() {
            [only] => {
                if let Some(step) = step.filter(|_| only.text.is_empty()) {
                    return Err(item.refused(
                        field,
                        "has a step without a range",
                        format!("write `*/{step}`"),
                    ));
                }
                let only = value(field, only)?;
                if let Some(step) = step {
                    let help = format!("write `{}-{}/{step}`", base.text, field.last());
                    return Err(item.refused(field, "has a step without a range", help));
                }
                (only, only)
            }
            [first, last] if first.text.is_empty() || last.text.is_empty() => {
                return Err(item.refused(field, "is a range without both ends", field.expected()));
            }
            [first, last] => ends_of(field, item, (first, last), step)?,
            _ => {
                let help = format!("write one range such as `{low}-{high}`, or a list of ranges");
                return Err(item.refused(field, "has more than one `-`", help));
            }
        }
    };
    let values = (first..=last).step_by(usize::from(step.unwrap_or(1)));
    Ok(values.fold(0, |mask, value| mask | 1 << value))
}

fn step_of(field: CronField, item: &Word<'_>, step: &Word<'_>) -> Result<u8, Refused> {
    let high = field.values();
    let number = number(step.text);
    if let Some(step) =
        number.and_then(|step| u8::try_from(step).ok()).filter(|step| (1..=high).contains(step))
    {
        return Ok(step);
    }
    let unit = match field {
        CronField::Second => Some("s"),
        CronField::Minute => Some("m"),
        CronField::Hour => Some("h"),
        CronField::Day => Some("d"),
        CronField::Month | CronField::Weekday => None,
    };
    let mut help = format!("use a step from 1 to {high}");
    if let (Some(unit), Some(step)) = (unit, number.filter(|step| *step > u32::from(high))) {
        // Writing to a String cannot fail.
        let _ = write!(help, ", or `every = \"{step}{unit}\"` for such a period");
    }
    let problem = match number {
        Some(0) => "has a step of 0".to_owned(),
        Some(_) => format!("has a step above the {high} values of the field"),
        None => "has a step that is not a number".to_owned(),
    };
    Err(item.refused(field, problem, help))
}

/// Returns the ends of a range, which must be ascending. A Sunday at the end of a range is 7 unless the range begins with it.
fn ends_of(
    field: CronField,
    item: &Word<'_>,
    (first_word, last_word): (&Word<'_>, &Word<'_>),
    step: Option<u8>,
) -> Result<(u8, u8), Refused> {
    let (first, mut last) = (value(field, first_word)?, value(field, last_word)?);
    if field == CronField::Weekday && first > 0 && last_word.text.eq_ignore_ascii_case("SUN") {
        last = 7;
    }
    if first <= last {
        return Ok((first, last));
    }
    let wrapped = match step {
        None => wrapped(field, (first, first_word.text), (last, last_word.text)),
        Some(step) => wrapped_values(field, first, last, step),
    };
    Err(item.refused(field, "is a range that goes backwards", format!("write `{wrapped}`")))
}

/// Returns the first value after a wrap and the highest value: Monday follows Sunday as 7.
fn after_wrap(field: CronField) -> (u8, u8) {
    let (low, high) = field.bounds();
    (if field == CronField::Weekday { 1 } else { low }, high)
}

/// Formats a range across the end of a field as two ascending ranges.
fn wrapped(field: CronField, (first, first_text): (u8, &str), (last, last_text): (u8, &str)) -> String {
    let (low, high) = after_wrap(field);
    let (low_text, high_text) = (field.shown(low, first_text), field.shown(high, first_text));
    let range = |from: u8, from_text: &str, to: u8, to_text: &str| {
        if from == to { to_text.to_owned() } else { format!("{from_text}-{to_text}") }
    };
    let head = range(first, first_text, high, &high_text);
    if last < low { head } else { format!("{head},{}", range(low, &low_text, last, last_text)) }
}

/// Formats the values of a range with a step across the end of a field.
fn wrapped_values(field: CronField, first: u8, last: u8, step: u8) -> String {
    let (low, high) = after_wrap(field);
    let count = u16::from(high - low) + 1;
    let values = (u16::from(first)..=u16::from(last) + count).step_by(usize::from(step));
    list(values.map(|value| if value > u16::from(high) { value - count } else { value }))
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// Returns the value of a number or a name.
fn value(field: CronField, word: &Word<'_>) -> Result<u8, Refused> {
    let (low, high) = field.bounds();
    if let Some(number) = number(word.text) {
        let value = u8::try_from(number).ok().filter(|value| (low..=high).contains(value));
        return value
            .ok_or_else(|| word.refused(field, format!("is not within {low}-{high}"), field.expected()));
    }
    if let Some(value) = field.named(word.text) {
        return Ok(value);
    }
    let other =
        [CronField::Month, CronField::Weekday].into_iter().find(|other| other.named(word.text).is_some());
    if let Some(other) = other {
        let place = if other == CronField::Month { "last but one" } else { "last one" };
        let problem = format!(
            "is the name of a {}",
            if other == CronField::Month { "month" } else { "day of the week" }
        );
        return Err(word.refused(
            field,
            problem,
            format!("move it to the field `{other}`, which is the {place}"),
        ));
    }
    if let Some(short) = word.text.get(..3).filter(|short| field.named(short).is_some()) {
        return Err(word.refused(field, "is not a known name", format!("write `{short}`")));
    }
    let (problem, help) = match (field, word.text) {
        (_, "") => ("is not complete".to_owned(), field.expected()),
        (CronField::Day, text)
            if text.to_ascii_uppercase().starts_with("L-") || text.eq_ignore_ascii_case("L") =>
        {
            (
                "is not supported".to_owned(),
                "write `L` alone for the last day, or the days as numbers".to_owned(),
            )
        }
        _ => (format!("is not within {low}-{high}"), field.expected()),
    };
    Err(word.refused(field, problem, help))
}

/// Rejects texts that match no day of any year: days of the month that none of the months has. Every month has each day of the
/// week, and a leap February that begins with a day has it five times.
fn some_day(fields: &CronFields, day: &Word<'_>, month: &Word<'_>) -> Result<(), Refused> {
    let CronFields { days, months, weekdays, .. } = fields;
    if days.open || days.last || days.last_workday || !weekdays.open {
        return Ok(());
    }
    let longest = (1..=12_u32).filter(|month| months >> month & 1 == 1).map(|month| match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    });
    let longest = longest.max().unwrap_or(31);
    if (days.listed | days.nearest).trailing_zeros() <= longest {
        return Ok(());
    }
    let problem = format!("never comes: month `{}` has at most {longest} days", month.text);
    Err(day.refused(CronField::Day, problem, "write an earlier day, or `L` for the last day of a month"))
}

/// Writes the unambiguous form for the cron library: six fields of numbers in ascending order. A list of all values is not
/// written as `*`, which would leave the field open.
impl fmt::Display for CronFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, minutes, hours, days, months, weekdays, .. } = self;
        for mask in [*seconds, *minutes, *hours] {
            write!(f, "{} ", list(values(mask)))?;
        }
        if days.open {
            f.write_str("*")?;
        } else {
            let nearest = values(days.nearest).map(|day| format!("{day}W"));
            let last = days.last.then(|| "L".to_owned()).into_iter();
            let last_workday = days.last_workday.then(|| "LW".to_owned());
            let days = values(days.listed).map(|day| day.to_string());
            f.write_str(&list(days.chain(nearest).chain(last).chain(last_workday)))?;
        }
        write!(f, " {} ", list(values(*months)))?;
        if weekdays.open {
            return f.write_str("*");
        }
        let nth = (1..).zip(weekdays.nth);
        let nth = nth.flat_map(|(nth, mask)| values(mask).map(move |day| format!("{day}#{nth}")));
        let last = values(weekdays.last).map(|day| format!("{day}L"));
        let days = values(weekdays.listed).map(|day| day.to_string());
        f.write_str(&list(days.chain(nth).chain(last)))
    }
}

fn values(mask: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |value| mask >> value & 1 == 1)
}

fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
    let mut list = String::new();
    for item in items {
        // Writing to a String cannot fail.
        let _ = write!(list, "{}{item}", if list.is_empty() { "" } else { "," });
    }
    list
}
