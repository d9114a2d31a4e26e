//! The wall clock: what validity is judged by, and nothing else. Ages run on `Instant`.

use std::time::{SystemTime, UNIX_EPOCH};

use licensing::time::Timestamp;

/// Now, by this machine's clock.
pub(crate) fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
