//! Limits: how much of a feature a licence allows, over which period that is counted, and how it is said.

use std::fmt::Write;

use jiff::civil::Date;
use serde_json::Value;

use crate::config::Window;
use crate::time::{FIRST_DAY, Timestamp};

/// The largest limit: what a `BIGINT` holds.
const MAX_LIMIT: u64 = i64::MAX as u64;

/// The largest integer of a structured field (RFC 9651 section 3.3.1).
const MAX_FIELD_INTEGER: u64 = 999_999_999_999_999;

/// How much of a feature a licence allows in one period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As much as is asked for.
    Unlimited,
    /// So many metered requests; zero is none.
    AtMost(u64),
}

/// What stands in place of a limit is none. Nothing is guessed of it; that nobody is denied what was paid for, it counts as
/// unlimited, and whoever wrote it must hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit is neither a whole number nor null")]
pub struct UnreadableLimit;

/// One window of counting: it begins and ends at 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period {
    /// Of which kind it is.
    pub window: Window,
    /// Its first day. The first day of the calendar (0001-01-01) for a lifetime.
    pub start: Date,
    /// The day after its last; none: it never ends.
    pub end: Option<Date>,
}

/// A limit that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// How many the licence allows.
    pub limit: u64,
    /// How many are used, those included that are under way.
    pub used: u64,
    /// Over which period that is counted.
    pub period: Period,
}

/// How the limit of a feature stands, as `RateLimit` and `RateLimit-Policy` tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota<'a> {
    /// The feature: the policy's name.
    pub feature: &'a str,
    /// How many the licence allows.
    pub limit: u64,
    /// How many of them are left, as far as is known here.
    pub remaining: u64,
    /// Over which period that is counted.
    pub period: Period,
}

impl Limit {
    /// Read a value of `usage_limits`. Absent, null and whatever is negative is unlimited; numbers may be written as `100.0`
    /// or as text, as spreadsheets and old billing systems do.
    ///
    /// # Errors
    /// For all else: fractions, text that is no number, booleans, lists and objects.
    pub fn of(value: Option<&Value>) -> Result<Self, UnreadableLimit> {
        match value {
            None | Some(Value::Null) => Ok(Self::Unlimited),
            Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
                (Some(limit), _) => Ok(Self::AtMost(limit.min(MAX_LIMIT))),
                (None, Some(limit)) => Self::of_float(limit),
                (None, None) => Err(UnreadableLimit),
            },
            // As a float only what is no whole number from 0: those would lose their last digits.
            Some(Value::String(text)) => match (text.trim().parse::<u64>(), text.trim().parse()) {
                (Ok(limit), _) => Ok(Self::AtMost(limit.min(MAX_LIMIT))),
                (Err(_), Ok(limit)) => Self::of_float(limit),
                (Err(_), Err(_)) => Err(UnreadableLimit),
            },
            Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => Err(UnreadableLimit),
        }
    }

    /// What there is to say once `used` of it are used; none: some are left.
    pub fn exhausted(self, used: u64, period: Period) -> Option<Exhausted> {
        match self {
            Self::AtMost(limit) if used >= limit => Some(Exhausted { limit, used, period }),
            Self::AtMost(_) | Self::Unlimited => None,
        }
    }

    fn of_float(limit: f64) -> Result<Self, UnreadableLimit> {
        if limit.fract() != 0.0 {
            // A fraction; or no number, or infinite, whose fractional part is no number either.
            return Err(UnreadableLimit);
        }
        // The cast saturates.
        if limit < 0.0 { Ok(Self::Unlimited) } else { Ok(Self::AtMost((limit as u64).min(MAX_LIMIT))) }
    }
}

impl Period {
    /// The period of `window` in which `now` lies. `anchor` is the day on which anchored windows began; none: it is not
    /// known, and so no anchored window either.
    ///
    /// An anchored window begins each month on the anchor's day of the month, or on the last day of a month that has no such
    /// day. The anchor itself is asked each time: after a short February the 31st is back.
    pub fn of(window: Window, anchor: Option<Date>, now: Timestamp) -> Option<Self> {
        let today = now.day();
        let (start, end) = match window {
            Window::Day => (today, today.tomorrow().ok()),
            Window::Month => (today.first_of_month(), today.last_of_month().tomorrow().ok()),
            Window::Anchored => around(today, anchor?.day()),
            Window::Lifetime => (FIRST_DAY, None),
        };
        Some(Self { window, start, end })
    }

    /// When counting begins anew; none: never.
    pub fn resets_at(&self) -> Option<Timestamp> {
        self.end.map(Timestamp::midnight)
    }

    /// Whether `day` is one of its days.
    pub fn contains(&self, day: Date) -> bool {
        self.start <= day && self.end.is_none_or(|end| day < end)
    }

    /// How long it is, in seconds; none: it never ends.
    pub fn seconds(&self) -> Option<u64> {
        Some(self.end?.duration_since(self.start).as_secs().unsigned_abs())
    }
}

impl Exhausted {
    /// From when on there is something to be had again; none: never, and neither is there for who waits where nothing is
    /// allowed at all.
    pub fn resets_at(&self) -> Option<Timestamp> {
        self.period.resets_at().filter(|_| self.limit > 0)
    }
}

/// The value of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11 section 3): what is allowed. A quota is `q`
/// requests in `w` seconds, where the window has an end.
pub fn rate_limit_policy(quotas: &[Quota<'_>]) -> String {
    let mut list = String::new();
    for quota in quotas {
        item(&mut list, quota.feature);
        parameter(&mut list, 'q', quota.limit);
        if let Some(seconds) = quota.period.seconds() {
            parameter(&mut list, 'w', seconds);
        }
    }
    list
}

/// The value of `RateLimit` (section 4 there): what is left at `now`. There are `r` requests for the next `t` seconds, where
/// the window has an end.
pub fn rate_limit(quotas: &[Quota<'_>], now: Timestamp) -> String {
    let mut list = String::new();
    for quota in quotas {
        item(&mut list, quota.feature);
        parameter(&mut list, 'r', quota.remaining);
        if let Some(reset) = quota.period.resets_at() {
            parameter(&mut list, 't', reset.seconds_from(now));
        }
    }
    list
}

/// The highest of `thresholds`, in percent of `limit`, that `used` has reached. Of a limit of zero each is reached by the
/// first use.
pub fn crossed(thresholds: &[u8], used: u64, limit: u64) -> Option<u8> {
    let (used, limit) = (u128::from(used), u128::from(limit));
    thresholds.iter().copied().filter(|percent| used > 0 && used * 100 >= limit * u128::from(*percent)).max()
}

/// The start and end around `today` of windows that begin on this day of each month.
fn around(today: Date, day: i8) -> (Date, Option<Date>) {
    // Such a day there always is.
    let begins_in =
        |of: Date| Date::new(of.year(), of.month(), day.min(of.days_in_month())).unwrap_or(of.first_of_month());
    let this = begins_in(today);
    if today < this {
        // Before the first month of all there is none: its window has begun with the calendar.
        (today.first_of_month().yesterday().map_or(FIRST_DAY, begins_in).max(FIRST_DAY), Some(this))
    } else {
        (this, today.last_of_month().tomorrow().ok().map(begins_in))
    }
}

/// A list's next item, a string (RFC 9651 sections 3.1 and 4.1.6). What a string can't hold becomes a question mark.
fn item(list: &mut String, text: &str) {
    list.push_str(if list.is_empty() { "\"" } else { ", \"" });
    for character in text.chars() {
        match character {
            '"' | '\\' => list.extend(['\\', character]),
            ' '..='~' => list.push(character),
            _ => list.push('?'),
        }
    }
    list.push('"');
}

fn parameter(list: &mut String, key: char, value: u64) {
    // Writing to a text never fails.
    let _ = write!(list, ";{key}={}", value.min(MAX_FIELD_INTEGER));
}

#[cfg(test)]
mod tests;
