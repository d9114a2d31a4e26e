//! Points in time as the licence tables keep them: microseconds since the Unix epoch, with both infinities.

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: microseconds since 1970-01-01T00:00:00Z, or one of the two infinities that a Postgres `TIMESTAMP`
/// can hold (`valid_until = 'infinity'` is how operators write "never").
///
/// Written as RFC 3339 in UTC; the infinities as `infinity` and `-infinity`, as Postgres spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Why a text is no [`Timestamp`].
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no RFC 3339 time, date or `infinity`: {reason}")]
pub struct TimestampError {
    text: String,
    reason: String,
}

/// The first day of the calendar, which has no year 0.
pub const FIRST_DAY: Date = Date::constant(1, 1, 1);

impl Timestamp {
    /// Later than every other time.
    pub const INFINITY: Self = Self(i64::MAX);
    /// Earlier than every other time.
    pub const NEG_INFINITY: Self = Self(i64::MIN);

    /// From microseconds since the Unix epoch; the extreme values are the infinities.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch; the infinities are the extreme values.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whether this is neither infinity.
    pub const fn is_finite(self) -> bool {
        self.0 != i64::MAX && self.0 != i64::MIN
    }

    /// This time later by `span`. An infinity stays where it is, and so does what would pass one.
    #[must_use]
    pub fn plus(self, span: std::time::Duration) -> Self {
        if !self.is_finite() {
            return self;
        }
        Self(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This time earlier by `span`. An infinity stays where it is, and so does what would pass one.
    #[must_use]
    pub fn minus(self, span: std::time::Duration) -> Self {
        if !self.is_finite() {
            return self;
        }
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The day in UTC on which this time lies: of the years 1 to 9999, whose first and last day stand for all beyond, the
    /// infinities included. Postgres, RFC 3339 and the calendar used here agree on these years.
    pub fn day(self) -> Date {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => TimeZone::UTC.to_datetime(time).date().max(FIRST_DAY),
            Err(_) if self.0 > 0 => Date::MAX,
            Err(_) => FIRST_DAY,
        }
    }

    /// The beginning of `day` in UTC.
    pub fn midnight(day: Date) -> Self {
        Self(day.duration_since(Date::constant(1970, 1, 1)).as_secs().saturating_mul(1_000_000))
    }

    /// How many seconds it is until this time from `now`, of which a part counts as a whole one; zero where it has come.
    pub fn seconds_from(self, now: Self) -> u64 {
        let micros = self.0.saturating_sub(now.0).max(0);
        micros.unsigned_abs().div_ceil(1_000_000)
    }

    /// Read RFC 3339 (`2026-01-31T00:00:00Z`, any offset), a plain date (its midnight in UTC) or an infinity.
    ///
    /// # Errors
    /// When the text is none of these.
    pub fn parse(text: &str) -> Result<Self, TimestampError> {
        match text {
            "infinity" | "never" => return Ok(Self::INFINITY),
            "-infinity" => return Ok(Self::NEG_INFINITY),
            _ => {}
        }
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Self(time.as_microsecond()));
        }
        Date::strptime("%Y-%m-%d", text)
            .and_then(|date| date.to_zoned(TimeZone::UTC))
            .map(|midnight| Self(midnight.timestamp().as_microsecond()))
            .map_err(|error| TimestampError { text: text.to_owned(), reason: error.to_string() })
    }
}

impl From<std::time::SystemTime> for Timestamp {
    /// A clock before 1970 shows 1970.
    fn from(time: std::time::SystemTime) -> Self {
        let since_epoch = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INFINITY => f.write_str("infinity"),
            Self::NEG_INFINITY => f.write_str("-infinity"),
            Self(micros) => match jiff::Timestamp::from_microsecond(micros) {
                Ok(time) => time.fmt(f),
                // Postgres reaches year 294276, RFC 3339 only 9999: beyond it nothing is lost by saying so.
                Err(_) if micros > 0 => f.write_str("infinity"),
                Err(_) => f.write_str("-infinity"),
            },
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_rfc_3339_dates_and_infinities() {
        for (text, micros, written) in [
            ("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z"),
            ("1970-01-01T01:00:00+01:00", 0, "1970-01-01T00:00:00Z"),
            ("2026-01-31", 1_769_817_600_000_000, "2026-01-31T00:00:00Z"),
            ("1969-12-31T23:59:59.5Z", -500_000, "1969-12-31T23:59:59.5Z"),
            ("infinity", i64::MAX, "infinity"),
            ("never", i64::MAX, "infinity"),
            ("-infinity", i64::MIN, "-infinity"),
        ] {
            let time = Timestamp::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((time.as_micros(), time.to_string().as_str()), (micros, written), "{text}");
        }
        for text in ["", "tomorrow", "2026-13-01", "2026-01-31T00:00:00", "1769817600"] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn adding_never_moves_or_passes_an_infinity() {
        let day = std::time::Duration::from_hours(24);
        assert_eq!(Timestamp::INFINITY.plus(day), Timestamp::INFINITY);
        assert_eq!(Timestamp::NEG_INFINITY.plus(day), Timestamp::NEG_INFINITY);
        assert_eq!(Timestamp::from_micros(i64::MAX - 1).plus(day), Timestamp::INFINITY);
        assert_eq!(Timestamp::from_micros(0).plus(day).as_micros(), 86_400_000_000);
        assert_eq!(Timestamp::INFINITY.minus(day), Timestamp::INFINITY);
        assert_eq!(Timestamp::from_micros(i64::MIN + 1).minus(day), Timestamp::NEG_INFINITY);
        assert_eq!(Timestamp::from_micros(0).minus(day).as_micros(), -86_400_000_000);
    }

    #[test]
    fn days_begin_at_midnight_in_utc_and_have_two_ends() {
        for (text, day) in [
            ("1970-01-01T00:00:00Z", (1970, 1, 1)),
            ("1969-12-31T23:59:59.999999Z", (1969, 12, 31)),
            ("2026-11-30T23:59:59.999999Z", (2026, 11, 30)),
            ("2026-12-01T00:00:00+01:00", (2026, 11, 30)),
            ("2028-02-29T12:00:00Z", (2028, 2, 29)),
            ("0001-01-01", (1, 1, 1)),
            ("0000-12-31", (1, 1, 1)),
            ("-infinity", (1, 1, 1)),
            ("infinity", (9999, 12, 31)),
        ] {
            let time = Timestamp::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let (year, month, day) = day;
            assert_eq!(time.day(), Date::constant(year, month, day), "{text}");
        }
        for day in [FIRST_DAY, Date::constant(1969, 12, 31), Date::constant(2028, 2, 29), Date::constant(9999, 12, 30)]
        {
            let midnight = Timestamp::midnight(day);
            assert_eq!(midnight.day(), day);
            assert!(day == FIRST_DAY || Timestamp::from_micros(midnight.as_micros() - 1).day() < day, "{day}");
        }
        assert_eq!(Timestamp::midnight(Date::constant(2026, 1, 31)).to_string(), "2026-01-31T00:00:00Z");
    }

    #[test]
    fn a_part_of_a_second_is_waited_for_as_a_whole_one() {
        let at = Timestamp::from_micros;
        for (until, now, seconds) in [
            (at(2_000_000), at(0), 2),
            (at(2_000_000), at(1), 2),
            (at(2_000_001), at(0), 3),
            (at(0), at(0), 0),
            (at(0), at(5), 0),
            (Timestamp::INFINITY, Timestamp::NEG_INFINITY, 9_223_372_036_855),
            (Timestamp::NEG_INFINITY, Timestamp::INFINITY, 0),
        ] {
            assert_eq!(until.seconds_from(now), seconds, "{until} from {now}");
        }
    }
}
