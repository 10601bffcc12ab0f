//! Dates, times, timestamps and intervals in text, as PostgreSQL reads and prints them (ISO, MDY; UTC unless a zone is
//! given; `IntervalStyle = postgres`).
//!
//! Pure functions. The calendar is the proleptic Gregorian one, counted from 1970-01-01.

use std::fmt::Write as _;

use super::Interval;
use crate::sql::error::{SqlError, code};

/// Microseconds in a second.
pub const SECOND: i64 = 1_000_000;
/// Microseconds in a day.
pub const DAY: i64 = 86_400 * SECOND;
/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
pub const PG_EPOCH_DAYS: i32 = 10_957;

/// Days since 1970-01-01 of a date (algorithm: Howard Hinnant, days_from_civil).
#[must_use]
pub fn days_from_civil(year: i32, month: u32, day: u32) -> i32 {
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let month = i64::from(month);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era - 719_468) as i32
}

/// The date of a day counted from 1970-01-01.
#[must_use]
pub fn civil_from_days(days: i32) -> (i32, u32, u32) {
    let shifted = i64::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = (if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 }) as u32;
    ((year_of_era + era * 400 + i64::from(month <= 2)) as i32, month, day)
}

fn days_in_month(year: i32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// A timestamp (microseconds since 1970) plus an interval: months first (clipped to the month's end), then days, then time.
#[must_use]
pub fn add_interval(timestamp: i64, interval: Interval) -> Option<i64> {
    let mut days = timestamp.div_euclid(DAY);
    let time = timestamp.rem_euclid(DAY);
    if interval.months != 0 {
        let (year, month, day) = civil_from_days(i32::try_from(days).ok()?);
        let months = i64::from(year) * 12 + i64::from(month) - 1 + i64::from(interval.months);
        let (year, month) = (i32::try_from(months.div_euclid(12)).ok()?, months.rem_euclid(12) as u32 + 1);
        days = i64::from(days_from_civil(year, month, day.min(days_in_month(year, month))));
    }
    days.checked_add(i64::from(interval.days))?.checked_mul(DAY)?.checked_add(time)?.checked_add(interval.micros)
}

fn invalid(kind: &str, text: &str) -> SqlError {
    SqlError::new(code::INVALID_DATETIME_FORMAT, format!("invalid input syntax for type {kind}: \"{text}\""))
}

fn out_of_range(text: &str) -> SqlError {
    SqlError::new(code::DATETIME_FIELD_OVERFLOW, format!("date/time field value out of range: \"{text}\""))
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// What a date/time text holds.
#[derive(Default)]
struct Parts {
    date: Option<i32>,
    time: Option<i64>,
    /// Seconds east of Greenwich.
    zone: Option<i32>,
    infinite: Option<bool>,
    before_christ: bool,
}

/// Hours, minutes, seconds and microseconds of `1:02`, `1:02:03` or `1:02:03.5`: of any size.
fn clock_fields(text: &str) -> Option<[i64; 4]> {
    let mut pieces = text.split(':');
    let hour: i64 = pieces.next()?.parse().ok()?;
    let minute: i64 = pieces.next()?.parse().ok()?;
    let (second, fraction) = match pieces.next() {
        Some(seconds) => {
            let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
            (whole.parse::<i64>().ok()?, parse_fraction(fraction)?)
        }
        None => (0, 0),
    };
    pieces.next().is_none().then_some([hour, minute, second, fraction])
}

fn parse_clock(text: &str) -> Option<i64> {
    let [hour, minute, second, fraction] = clock_fields(text)?;
    if !(0..=24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    let micros = ((hour * 60 + minute) * 60 + second) * SECOND + fraction;
    (micros <= DAY).then_some(micros)
}

/// Microseconds of the digits behind a point, rounded.
fn parse_fraction(digits: &str) -> Option<i64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut micros = 0i64;
    for at in 0..6 {
        micros = micros * 10 + digits.as_bytes().get(at).map_or(0, |b| i64::from(b - b'0'));
    }
    Some(micros + i64::from(digits.as_bytes().get(6).is_some_and(|b| *b >= b'5')))
}

fn parse_zone(text: &str) -> Option<i32> {
    match text.to_ascii_lowercase().as_str() {
        "z" | "utc" | "gmt" | "ut" | "zulu" | "etc/utc" => return Some(0),
        _ => {}
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let digits = &text[1..];
    let numbers: Vec<i32> = if digits.contains(':') {
        digits.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?
    } else if digits.len() > 2 && digits.len() <= 4 {
        vec![digits[..digits.len() - 2].parse().ok()?, digits[digits.len() - 2..].parse().ok()?]
    } else {
        vec![digits.parse().ok()?]
    };
    let seconds = numbers.iter().zip([3600, 60, 1]).map(|(n, unit)| n * unit).sum::<i32>();
    (numbers.len() <= 3 && seconds < 16 * 3600).then_some(sign * seconds)
}

fn make_date(year: i32, month: u32, day: u32, text: &str) -> Result<i32, SqlError> {
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return Err(out_of_range(text));
    }
    Ok(days_from_civil(year, month, day))
}

fn parse_date_word(word: &str, text: &str) -> Option<Result<i32, SqlError>> {
    let pieces: Vec<&str> = word.split(['-', '/', '.']).collect();
    if pieces.len() == 3 {
        let month_of = |piece: &str| MONTHS.iter().position(|m| piece.to_ascii_lowercase().starts_with(m)).map(|m| m as u32 + 1);
        let number = |piece: &str| piece.parse::<u32>().ok().filter(|_| piece.bytes().all(|b| b.is_ascii_digit()));
        let (year, month, day) = if let Some(month) = month_of(pieces[1]) {
            if pieces[0].len() >= 3 {
                (number(pieces[0])?, month, number(pieces[2])?)
            } else {
                (number(pieces[2])?, month, number(pieces[0])?)
            }
        } else if pieces[0].len() >= 3 {
            (number(pieces[0])?, number(pieces[1])?, number(pieces[2])?)
        } else {
            (number(pieces[2])?, number(pieces[0])?, number(pieces[1])?)
        };
        return Some(make_date(year as i32, month, day, text));
    }
    if word.len() == 8 && word.bytes().all(|b| b.is_ascii_digit()) {
        let (year, month, day) = (word[..4].parse().ok()?, word[4..6].parse().ok()?, word[6..].parse().ok()?);
        return Some(make_date(year, month, day, text));
    }
    None
}

fn parse_parts(text: &str, kind: &str) -> Result<Parts, SqlError> {
    let mut parts = Parts::default();
    let lower = text.trim();
    match lower.to_ascii_lowercase().as_str() {
        "infinity" | "+infinity" => return Ok(Parts { infinite: Some(true), ..parts }),
        "-infinity" => return Ok(Parts { infinite: Some(false), ..parts }),
        "epoch" => return Ok(Parts { date: Some(0), time: Some(0), zone: Some(0), ..parts }),
        "" => return Err(invalid(kind, text)),
        _ => {}
    }
    // "2024-01-02T03:04:05" is the one form without a blank between date and time.
    let spaced = match lower.find(['T', 't']) {
        Some(at) if at >= 8 && lower.as_bytes()[at - 1].is_ascii_digit() => format!("{} {}", &lower[..at], &lower[at + 1..]),
        _ => lower.to_owned(),
    };
    let words: Vec<&str> = spaced.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        at += 1;
        if word.contains(':') && word.as_bytes()[0].is_ascii_digit() {
            let zone_at = word.find(['+', '-', 'Z', 'z']);
            let (clock, zone) = zone_at.map_or((word, None), |z| (&word[..z], Some(&word[z..])));
            parts.time = Some(parse_clock(clock).ok_or_else(|| {
                if clock.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.') {
                    out_of_range(text)
                } else {
                    invalid(kind, text)
                }
            })?);
            if let Some(zone) = zone {
                parts.zone = Some(parse_zone(zone).ok_or_else(|| invalid(kind, text))?);
            }
        } else if let Some(date) = parse_date_word(word, text) {
            parts.date = Some(date?);
        } else if let Some(month) = MONTHS.iter().position(|m| word.to_ascii_lowercase().starts_with(m)) {
            // "January 8, 1999" or "8 January 1999" (its day was taken as a number below).
            let numbers: Vec<&str> = words.iter().filter(|w| w.bytes().all(|b| b.is_ascii_digit())).copied().collect();
            let (year, day) = match numbers.as_slice() {
                [a, b] if a.len() >= 3 => (a, b),
                [a, b] => (b, a),
                _ => return Err(invalid(kind, text)),
            };
            let (year, day) = (year.parse().map_err(|_| invalid(kind, text))?, day.parse().map_err(|_| invalid(kind, text))?);
            parts.date = Some(make_date(year, month as u32 + 1, day, text)?);
        } else if word.eq_ignore_ascii_case("am") || word.eq_ignore_ascii_case("pm") {
            let time = parts.time.ok_or_else(|| invalid(kind, text))?;
            let half = 12 * 3600 * SECOND;
            parts.time = Some(match (word.eq_ignore_ascii_case("pm"), time >= half) {
                (true, false) => time + half,
                (false, true) => time - half,
                _ => time,
            });
        } else if word.eq_ignore_ascii_case("bc") {
            parts.before_christ = true;
        } else if let Some(zone) = parse_zone(word) {
            parts.zone = Some(zone);
        } else if !word.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid(kind, text));
        }
    }
    if parts.before_christ
        && let Some(date) = parts.date
    {
        let (year, month, day) = civil_from_days(date);
        parts.date = Some(make_date(1 - year, month, day, text)?);
    }
    Ok(parts)
}

/// Reads a date.
///
/// # Errors
/// `22007` for what is no date, `22008` for one out of range.
pub fn parse_date(text: &str) -> Result<i32, SqlError> {
    let parts = parse_parts(text, "date")?;
    match parts.infinite {
        Some(true) => Ok(i32::MAX),
        Some(false) => Ok(i32::MIN),
        None => parts.date.ok_or_else(|| invalid("date", text)),
    }
}

/// Reads a time of day; a date before it and a zone behind it are ignored.
///
/// # Errors
/// As [`parse_date`].
pub fn parse_time(text: &str) -> Result<i64, SqlError> {
    parse_parts(text, "time")?.time.ok_or_else(|| invalid("time", text))
}

/// Reads a timestamp; `with_zone` applies the zone (UTC when none is given), else a zone is ignored.
///
/// # Errors
/// As [`parse_date`].
pub fn parse_timestamp(text: &str, with_zone: bool) -> Result<i64, SqlError> {
    let kind = if with_zone { "timestamp with time zone" } else { "timestamp" };
    let parts = parse_parts(text, kind)?;
    match parts.infinite {
        Some(true) => return Ok(i64::MAX),
        Some(false) => return Ok(i64::MIN),
        None => {}
    }
    let date = parts.date.ok_or_else(|| invalid(kind, text))?;
    let local = i64::from(date).checked_mul(DAY).and_then(|d| d.checked_add(parts.time.unwrap_or(0)));
    let zone = if with_zone { i64::from(parts.zone.unwrap_or(0)) } else { 0 };
    local.and_then(|l| l.checked_sub(zone * SECOND)).ok_or_else(|| out_of_range(text))
}

fn write_clock(out: &mut String, micros: i64) {
    let (seconds, fraction) = (micros / SECOND, micros % SECOND);
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    write_fraction(out, fraction);
}

fn write_fraction(out: &mut String, fraction: i64) {
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
}

/// Prints a date.
pub fn write_date(out: &mut String, days: i32) {
    match days {
        i32::MAX => out.push_str("infinity"),
        i32::MIN => out.push_str("-infinity"),
        _ => {
            let (year, month, day) = civil_from_days(days);
            if year > 0 {
                let _ = write!(out, "{year:04}-{month:02}-{day:02}");
            } else {
                let _ = write!(out, "{:04}-{month:02}-{day:02} BC", 1 - year);
            }
        }
    }
}

/// Prints a time of day.
pub fn write_time(out: &mut String, micros: i64) {
    write_clock(out, micros);
}

/// Prints a timestamp; `with_zone` in UTC with its `+00`.
pub fn write_timestamp(out: &mut String, micros: i64, with_zone: bool) {
    match micros {
        i64::MAX => return out.push_str("infinity"),
        i64::MIN => return out.push_str("-infinity"),
        _ => {}
    }
    let (year, month, day) = civil_from_days(micros.div_euclid(DAY) as i32);
    let shown = if year > 0 { year } else { 1 - year };
    let _ = write!(out, "{shown:04}-{month:02}-{day:02} ");
    write_clock(out, micros.rem_euclid(DAY));
    if with_zone {
        out.push_str("+00");
    }
    if year <= 0 {
        out.push_str(" BC");
    }
}

/// Prints an interval (`1 year 2 mons 3 days 04:05:06.7`).
pub fn write_interval(out: &mut String, interval: Interval) {
    let start = out.len();
    let mut negative_before = false;
    let mut part = |out: &mut String, value: i32, unit: &str| {
        if value != 0 {
            let gap = if out.len() > start { " " } else { "" };
            let sign = if negative_before && value > 0 { "+" } else { "" };
            let _ = write!(out, "{gap}{sign}{value} {unit}{}", if value == 1 { "" } else { "s" });
            negative_before = value < 0;
        }
    };
    part(out, interval.months / 12, "year");
    part(out, interval.months % 12, "mon");
    part(out, interval.days, "day");
    if interval.micros != 0 || out.len() == start {
        if out.len() > start {
            out.push(' ');
        }
        if interval.micros < 0 {
            out.push('-');
        } else if negative_before {
            out.push('+');
        }
        let micros = interval.micros.unsigned_abs();
        let (seconds, fraction) = (micros / SECOND as u64, (micros % SECOND as u64) as i64);
        let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        write_fraction(out, fraction);
    }
}

/// Reads an interval in PostgreSQL's verbose, clock and ISO 8601 forms.
///
/// # Errors
/// `22007` when it is none.
pub fn parse_interval(text: &str) -> Result<Interval, SqlError> {
    let fail = || invalid("interval", text);
    let trimmed = text.trim().trim_start_matches('@').trim();
    if let Some(iso) = trimmed.strip_prefix('P') {
        return parse_iso_interval(iso).ok_or_else(fail);
    }
    let mut total = Parser::default();
    let mut ago = false;
    let words: Vec<&str> = trimmed.split_whitespace().collect();
    if words.is_empty() {
        return Err(fail());
    }
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        at += 1;
        if word.eq_ignore_ascii_case("ago") {
            ago = true;
            continue;
        }
        if word.contains(':') {
            let (sign, clock) = match word.as_bytes()[0] {
                b'-' => (-1, &word[1..]),
                b'+' => (1, &word[1..]),
                _ => (1, word),
            };
            total.micros += sign * parse_interval_clock(clock).ok_or_else(fail)?;
            continue;
        }
        let split = word.find(|c: char| c.is_ascii_alphabetic());
        let (number, unit) = match split {
            Some(0) => return Err(fail()),
            Some(split) => (&word[..split], &word[split..]),
            None => match words.get(at) {
                Some(unit) if unit.as_bytes()[0].is_ascii_alphabetic() && !unit.eq_ignore_ascii_case("ago") => {
                    at += 1;
                    (word, *unit)
                }
                Some(unit) if unit.contains(':') => (word, "day"),
                _ => (word, "second"),
            },
        };
        total.add(number.parse().map_err(|_| fail())?, unit).ok_or_else(fail)?;
    }
    let interval = total.finish().ok_or_else(fail)?;
    Ok(if ago { Interval { months: -interval.months, days: -interval.days, micros: -interval.micros } } else { interval })
}

fn parse_interval_clock(text: &str) -> Option<i64> {
    let [hour, minute, second, fraction] = clock_fields(text)?;
    let minutes = hour.checked_mul(60)?.checked_add(minute)?;
    minutes.checked_mul(60)?.checked_add(second)?.checked_mul(SECOND)?.checked_add(fraction)
}

#[derive(Default)]
struct Parser {
    months: f64,
    days: f64,
    micros: i64,
}

impl Parser {
    fn add(&mut self, number: f64, unit: &str) -> Option<()> {
        let lower = unit.to_ascii_lowercase();
        let (months, days, micros) = match lower.trim_end_matches(',') {
            "millennium" | "millennia" | "millenniums" => (12_000.0, 0.0, 0.0),
            "century" | "centuries" => (1_200.0, 0.0, 0.0),
            "decade" | "decades" => (120.0, 0.0, 0.0),
            "y" | "yr" | "yrs" | "year" | "years" => (12.0, 0.0, 0.0),
            "mon" | "mons" | "month" | "months" => (1.0, 0.0, 0.0),
            "w" | "week" | "weeks" => (0.0, 7.0, 0.0),
            "d" | "day" | "days" => (0.0, 1.0, 0.0),
            "h" | "hr" | "hrs" | "hour" | "hours" => (0.0, 0.0, 3.6e9),
            "m" | "min" | "mins" | "minute" | "minutes" => (0.0, 0.0, 6e7),
            "s" | "sec" | "secs" | "second" | "seconds" => (0.0, 0.0, 1e6),
            "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" => (0.0, 0.0, 1e3),
            "us" | "usec" | "usecs" | "microsecond" | "microseconds" => (0.0, 0.0, 1.0),
            _ => return None,
        };
        let whole_months = (number * months).trunc();
        self.months += whole_months;
        // A fraction of a month spills into days of 30 to the month, a fraction of a day into time.
        self.days += number * days + (number * months - whole_months) * 30.0;
        self.micros = self.micros.checked_add((number * micros).round() as i64)?;
        Some(())
    }

    fn finish(self) -> Option<Interval> {
        let days = self.days.trunc();
        let micros = self.micros.checked_add(((self.days - days) * DAY as f64).round() as i64)?;
        let fits = |v: f64| (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&v).then_some(v as i32);
        Some(Interval { months: fits(self.months)?, days: fits(days)?, micros })
    }
}

fn parse_iso_interval(text: &str) -> Option<Interval> {
    let mut total = Parser::default();
    let mut in_time = false;
    let mut number = String::new();
    for c in text.chars() {
        match c {
            'T' => in_time = true,
            '0'..='9' | '.' | '-' | '+' => number.push(c),
            unit => {
                let value: f64 = number.parse().ok()?;
                number.clear();
                let unit = match (unit, in_time) {
                    ('Y', false) => "year",
                    ('M', false) => "month",
                    ('W', false) => "week",
                    ('D', false) => "day",
                    ('H', true) => "hour",
                    ('M', true) => "minute",
                    ('S', true) => "second",
                    _ => return None,
                };
                total.add(value, unit)?;
            }
        }
    }
    number.is_empty().then_some(())?;
    total.finish()
}
