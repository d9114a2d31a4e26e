//! Durations and sizes, always written with their unit.

use std::fmt;
use std::str::FromStr;

use super::text_type::text_type;

/// A span of time, written as a whole number and a unit: `250ms`, `5s`, `5m`, `72h`, `30d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

/// A number of bytes, written as a whole number and a unit: `512B`, `16KiB`, `64MiB`, `1GiB`, `10MB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidQuantity(String);

/// Units of time with their milliseconds, the largest first.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size with their bytes, the largest first.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

impl Duration {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// The span itself.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// Whether it is none at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl ByteSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many units of 1024 bytes.
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// So many units of 1024 × 1024 bytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The same as what lies in memory is counted; what no memory could hold is as much as can be counted.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text, &TIMES, "a duration", ["ms", "s", "m", "h"]).map(Self::from_millis)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text, &SIZES, "a size", ["B", "KiB", "MiB", "GiB"]).map(Self)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hours are the largest unit written: operators say 72h.
        write(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &TIMES[1..], "0s")
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &SIZES, "0B")
    }
}

text_type!(Duration, pattern: "^[0-9]+(ms|s|m|h|d)$", examples: ["250ms", "5s", "5m", "72h"]);
text_type!(ByteSize, pattern: "^[0-9]+(B|kB|KiB|MB|MiB|GB|GiB)$", examples: ["16KiB", "64MiB"]);

fn parse(text: &str, units: &[(&str, u64)], what: &str, usual: [&str; 4]) -> Result<u64, InvalidQuantity> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let [a, b, c, d] = usual;
    let wrong = |why: String| Err(InvalidQuantity(why));
    if number.is_empty() {
        return wrong(format!("{text:?} is no {}: write a whole number and its unit, such as 5{b}", &what[2..]));
    }
    if unit.is_empty() {
        return wrong(format!("{text} has no unit: write {what} as {text}{a}, {text}{b}, {text}{c} or {text}{d}"));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return wrong(format!("{unit:?} in {text:?} is no unit of {what}: expected {a}, {b}, {c} or {d}"));
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)) {
        // Later arithmetic on clocks must not overflow.
        Some(total) if total <= u64::MAX >> 16 => Ok(total),
        _ => wrong(format!("{text} is too large")),
    }
}

/// In the largest unit that leaves no rest.
fn write(f: &mut fmt::Formatter<'_>, total: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    match units.iter().find(|(_, factor)| total.is_multiple_of(*factor)) {
        Some((unit, factor)) if total > 0 => write!(f, "{}{unit}", total / factor),
        _ => f.write_str(zero),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis, written) in [
            ("250ms", 250, "250ms"),
            ("5s", 5_000, "5s"),
            ("90s", 90_000, "90s"),
            ("60s", 60_000, "1m"),
            ("3d", 259_200_000, "72h"),
            ("0s", 0, "0s"),
        ] {
            let duration: Duration = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((duration, duration.to_string().as_str()), (Duration::from_millis(millis), written));
        }
        for (text, message) in [
            ("200", "200 has no unit: write a duration as 200ms, 200s, 200m or 200h"),
            ("5 s", "\" s\" in \"5 s\" is no unit of a duration: expected ms, s, m or h"),
            ("1h30m", "\"h30m\" in \"1h30m\" is no unit of a duration: expected ms, s, m or h"),
            ("-5s", "\"-5s\" is no duration: write a whole number and its unit, such as 5s"),
            ("1.5s", "\".5s\" in \"1.5s\" is no unit of a duration: expected ms, s, m or h"),
            ("", "\"\" is no duration: write a whole number and its unit, such as 5s"),
            ("99999999999999999999s", "99999999999999999999s is too large"),
            ("999999999999d", "999999999999d is too large"),
        ] {
            assert_eq!(text.parse::<Duration>().expect_err(text).to_string(), message);
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, written) in [
            ("64MiB", 64 << 20, "64MiB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("10MB", 10_000_000, "10MB"),
            ("1500B", 1_500, "1500B"),
            ("0B", 0, "0B"),
        ] {
            let size: ByteSize = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, written));
        }
        for text in ["64", "64M", "64 MiB", "MiB", "64mib", "17179869184GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
