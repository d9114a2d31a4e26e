//! Points in time as the licence tables keep them: microseconds since the Unix epoch, with both infinities.

use std::fmt;

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
        jiff::civil::Date::strptime("%Y-%m-%d", text)
            .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC))
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
}
