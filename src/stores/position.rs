//! How far a Postgres has come: positions in its log of changes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A position in a primary's write-ahead log (an LSN, in bytes), written as Postgres does: `16/B374D848`. Later ones are
/// greater, as long as the timeline is the same. The default, zero, is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

/// A text is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position in the write-ahead log is two hexadecimal numbers, such as 16/B374D848")]
pub(crate) struct InvalidPosition;

impl Position {
    /// The position this many bytes into the log.
    pub(crate) const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The same before the header of a page, if there is nothing but that header between them. The next record will begin
    /// after it, so that is what a primary says; a standby that has all the records says where the last one ended.
    /// `in_segment`: how many bytes into its segment the position is.
    pub(crate) const fn before_header(self, in_segment: u64) -> Self {
        /// Of a page, and its header; the first of a segment has a longer one (PostgreSQL's `xlog_internal.h`).
        const PAGE: u64 = 8192;
        const HEADER: u64 = 24;
        const LONG_HEADER: u64 = 40;
        match in_segment {
            LONG_HEADER => Self(self.0 - LONG_HEADER),
            _ if in_segment % PAGE == HEADER => Self(self.0 - HEADER),
            _ => self,
        }
    }

    /// How many bytes of the log are before it.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        // `from_str_radix` would take a sign.
        let half = |text: &str| match text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => u32::from_str_radix(text, 16).map_err(|_| InvalidPosition),
            false => Err(InvalidPosition),
        };
        let (high, low) = text.split_once('/').ok_or(InvalidPosition)?;
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & u64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_postgres_writes_them() {
        for (text, bytes) in
            [("0/0", 0), ("0/3000148", 0x300_0148), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)]
        {
            assert_eq!(text.parse(), Ok(Position::new(bytes)));
            assert_eq!(Position::new(bytes).to_string(), text);
        }
        assert_eq!("16/b374d848".parse(), Ok(Position::new(0x16_B374_D848)));
        for text in ["", "16", "16/", "/16", "+1/0", "1/-0", "1/2/3", "16/B374D8480", "x/0", " 1/0"] {
            assert_eq!(text.parse::<Position>(), Err(InvalidPosition), "{text:?}");
        }
        for (position, in_segment, before) in [
            ("0/3000028", 0x28, "0/3000000"),
            ("0/3002018", 0x2018, "0/3002000"),
            ("0/3002028", 0x2028, "0/3002028"),
            ("0/3000148", 0x148, "0/3000148"),
        ] {
            let position: Position = position.parse().expect("a position");
            assert_eq!(position.before_header(in_segment).to_string(), before);
        }
        // Not as texts, of which "9/0" is the greater.
        assert!("10/0".parse().is_ok_and(|later: Position| later > Position::new(0x9_FFFF_FFFF)));
    }
}
