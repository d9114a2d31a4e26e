//! Renewal: where the end of a licence goes that is due.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::ToSpan;
use jiff::tz::TimeZone;

use crate::config;
use crate::time::Timestamp;

/// By how much a licence is extended at a time: `30d`, `72h`, `1mon`, `12mon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Months of the calendar: the day of the month stays. Where a month has no such day its last one is taken, and then that
    /// day stays: from 31 January to 28 February, and on to 28 March.
    Months(u32),
    /// A fixed span, longer than zero. Whole days leave the time of day as it is, in UTC.
    Span(config::Duration),
}

/// A text is no [`Period`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no period: expected days such as 30d, months such as 1mon, or 1h, 1m, 1s; longer than zero")]
pub struct InvalidPeriod(String);

/// The end of a licence after its renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The new end.
    pub end: Timestamp,
    /// How many periods after the former one it is.
    pub periods: u32,
}

/// Which licences are due, as spans of `valid_until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The latest end that is due; a renewed licence ends after it, so that it is not due again.
    pub until: Timestamp,
    /// Licences that ended at this moment or before are past their grace: see [`crate::license::Validity::Expired`].
    pub lapsed: Timestamp,
}

impl Due {
    /// What ends within `within` from `now`, where licences are served for `grace` past their end.
    pub fn new(now: Timestamp, within: Duration, grace: Duration) -> Self {
        Self { until: now.plus(within), lapsed: now.minus(grace) }
    }
}

impl Period {
    /// The first end after `due` that is a whole number of periods, at least one, after the former `end`. None if that end
    /// is not due, is infinite, or the calendar ends before.
    pub fn renew(self, end: Timestamp, due: Timestamp) -> Option<Renewed> {
        if !end.is_finite() || !due.is_finite() || due < end {
            return None;
        }
        let lacking = due.as_micros().checked_sub(end.as_micros())?.unsigned_abs();
        match self {
            Self::Span(span) => {
                let span = u64::try_from(span.get().as_micros()).ok().filter(|span| *span > 0)?;
                let periods = u32::try_from(lacking / span + 1).ok()?;
                let end = end.plus(Duration::from_micros(span.checked_mul(periods.into())?));
                end.is_finite().then_some(Renewed { end, periods })
            }
            Self::Months(months) => {
                /// No month is longer, in microseconds.
                const LONGEST: u64 = 31 * 86_400_000_000;
                let former = jiff::Timestamp::from_microsecond(end.as_micros()).ok()?;
                let former = former.to_zoned(TimeZone::UTC).datetime();
                // From as many periods as it takes at least; months are shorter than that by two days a month at most.
                let first = lacking / LONGEST.checked_mul(months.into()).filter(|longest| *longest > 0)?;
                let first = u32::try_from(first).ok()?.max(1);
                (first..)
                    .map_while(|periods| {
                        let later = former.checked_add(i64::from(months.checked_mul(periods)?).months()).ok()?;
                        let later = later.to_zoned(TimeZone::UTC).ok()?.timestamp();
                        Some(Renewed { end: Timestamp::from_micros(later.as_microsecond()), periods })
                    })
                    .find(|renewed| due < renewed.end)
            }
        }
    }

    /// The least time that one period can be.
    pub fn shortest(self) -> Duration {
        match self {
            Self::Months(months) => Duration::from_hours(28 * 24) * months,
            Self::Span(span) => span.get(),
        }
    }
}

impl FromStr for Period {
    type Err = InvalidPeriod;

    fn from_str(text: &str) -> Result<Self, InvalidPeriod> {
        /// A thousand years: nobody means more.
        const MOST: u32 = 12_000;
        let wrong = || InvalidPeriod(text.to_owned());
        if let Some(months) = text.strip_suffix("mon") {
            let months = Some(months).filter(|months| months.bytes().all(|byte| byte.is_ascii_digit()));
            let months = months.and_then(|months| months.parse().ok());
            return months.filter(|months| (1..=MOST).contains(months)).map(Self::Months).ok_or_else(wrong);
        }
        let span: config::Duration = text.parse().map_err(|_| wrong())?;
        // Finer than Postgres's microseconds none can be written.
        if span.is_zero() { Err(wrong()) } else { Ok(Self::Span(span)) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: u64 = 24 * 60 * 60;
        match self {
            Self::Months(months) => write!(f, "{months}mon"),
            Self::Span(span) => match (span.get().as_secs() / DAY, span.get().as_secs() % DAY) {
                (days, 0) if days > 0 && span.get().subsec_nanos() == 0 => write!(f, "{days}d"),
                _ => span.fmt(f),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::license::Validity;

    fn time(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn period(text: &str) -> Period {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn by_as_many_periods_as_it_takes() {
        for (by, end, due, renewed, periods) in [
            ("30d", "2026-01-01T10:30:00Z", "2026-01-01T12:00:00Z", "2026-01-31T10:30:00Z", 1),
            ("30d", "2026-01-01T10:30:00Z", "2026-01-01T10:30:00Z", "2026-01-31T10:30:00Z", 1),
            ("30d", "2026-01-01", "2026-01-31", "2026-03-02", 2),
            ("30d", "2026-01-01", "2026-01-30T23:59:59.999999Z", "2026-01-31", 1),
            ("1h", "2016-01-01", "2026-01-01", "2026-01-01T01:00:00Z", 87_673),
            ("1mon", "2026-01-15T10:30:00.123456Z", "2026-01-16", "2026-02-15T10:30:00.123456Z", 1),
            ("1mon", "2026-01-31", "2026-02-01", "2026-02-28", 1),
            ("1mon", "2026-01-31", "2026-03-01", "2026-03-31", 2),
            ("1mon", "2028-01-31", "2028-02-01", "2028-02-29", 1),
            ("12mon", "2024-02-29", "2024-03-01", "2025-02-28", 1),
            ("12mon", "2024-02-29", "2027-03-01", "2028-02-29", 4),
            ("1mon", "1926-01-15", "2026-01-15", "2026-02-15", 1_201),
            ("1mon", "1960-12-31T23:59:59Z", "1961-01-01", "1961-01-31T23:59:59Z", 1),
        ] {
            let expected = Some(Renewed { end: time(renewed), periods });
            assert_eq!(period(by).renew(time(end), time(due)), expected, "{by} from {end} past {due}");
        }
        for (by, end, due) in [
            ("30d", "infinity", "2026-01-01"),
            ("30d", "-infinity", "2026-01-01"),
            ("30d", "2026-01-01", "infinity"),
            ("30d", "2026-01-02", "2026-01-01"),
            ("1mon", "9999-12-15", "9999-12-20"),
        ] {
            assert_eq!(period(by).renew(time(end), time(due)), None, "{by} from {end} past {due}");
        }
    }

    #[test]
    fn periods_are_read_and_written() {
        for (text, written) in
            [("30d", "30d"), ("24h", "1d"), ("25h", "25h"), ("1mon", "1mon"), ("12mon", "12mon"), ("90m", "90m")]
        {
            assert_eq!(period(text).to_string(), written);
        }
        for text in ["", "30", "0d", "0mon", "mon", "-1mon", "+1mon", "1.5mon", "1 mon", "12001mon", "month", "1month"]
        {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    /// What is past its grace is what the gate says has expired.
    #[test]
    fn lapsed_is_what_is_not_served_any_more() {
        let (now, hour) = (time("2026-01-10"), Duration::from_hours(1));
        let due = Due::new(now, hour, hour);
        let license = |end: Timestamp| {
            let row = crate::license::LicenseRow {
                features: "{}".to_owned(),
                usage_limits: "{}".to_owned(),
                features_until: "{}".to_owned(),
                valid_from: i64::MIN,
                valid_until: end.as_micros(),
                auto_renew: true,
                ..Default::default()
            };
            crate::license::License::from_row(crate::tenant::TenantId::new(uuid::Uuid::nil()), &row).expect("a licence")
        };
        for (micros, lapsed) in [(-1, true), (0, true), (1, false)] {
            let end = Timestamp::from_micros(now.minus(hour).as_micros() + micros);
            assert_eq!(end <= due.lapsed, lapsed);
            assert_eq!(license(end).validity(hour, now) == Validity::Expired, lapsed);
        }
    }

    proptest! {
        /// It is due no more, by no more periods than needed, and renewing it again changes nothing.
        #[test]
        fn nobody_is_extended_twice(
            end in 0_i64..4_000_000_000_000_000, late in 0_i64..400_000_000_000_000, months in 0_u32..30, seconds in 1_u64..10_000_000,
        ) {
            let by = match months {
                0 => Period::Span(config::Duration::from_secs(seconds)),
                months => Period::Months(months),
            };
            let (end, due) = (Timestamp::from_micros(end), Timestamp::from_micros(end + late));
            let renewed = by.renew(end, due).expect("the calendar is long enough");
            prop_assert!(renewed.end > due && renewed.periods >= 1);
            prop_assert_eq!(by.renew(renewed.end, due), None);
            if renewed.periods > 1 {
                let one_less = match by {
                    Period::Span(span) => end.plus(span.get() * (renewed.periods - 1)),
                    Period::Months(months) => {
                        let at_once = Period::Months(months * (renewed.periods - 1));
                        at_once.renew(end, end).expect("it ends before").end
                    }
                };
                prop_assert!(one_less <= due);
            }
        }
    }
}
