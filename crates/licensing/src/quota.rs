//! Limits: how much of a feature a licence allows, over which period that is counted, and how it is said.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::config::Window;
use crate::license::License;
use crate::time::Timestamp;

/// How much of a feature a licence allows in one period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As much as is asked for.
    Unlimited,
    /// So many metered requests; zero is none.
    AtMost(u64),
}

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
    /// When counting begins anew; none: never.
    pub resets_at: Option<Timestamp>,
}
