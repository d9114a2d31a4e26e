//! What is published in Redis for everyone: changes, and the beats of the feeds that announce them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use licensing::tenant::TenantId;
use serde::{Deserialize, Serialize};

use super::coverage::LIVE_FOR;
use crate::stores::{Change, CrossingNotice, Position};

/// A published message: `{tenant}:{revision}`, `?{tenant}`, `*`, `+`, `@` and a position, `%` and a threshold, or `~` and a pulse,
/// both as JSON.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// One licence has changed.
    Change(Change),
    /// One licence has to be asked for again, whether or not it has changed.
    Doubt(TenantId),
    /// Any may have changed.
    Everything,
    /// Tenants were added.
    Added,
    /// How far the primary had written its log when it told what follows.
    Position(Position),
    /// A share of a limit is used up.
    Threshold(CrossingNotice),
    /// A feed is in order.
    Pulse(Pulse),
}

/// One beat of a feed that has announced all that it has heard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pulse {
    /// The feed's present connection: another one after each gap.
    pub(super) session: String,
    /// How far the primary had written its log.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) position: Option<Position>,
    /// Whether licensing is off, since its tables are gone.
    #[serde(default)]
    pub(super) off: bool,
}

impl FromStr for Heard {
    type Err = ();

    fn from_str(message: &str) -> Result<Self, ()> {
        match message {
            "*" => Ok(Self::Everything),
            "+" => Ok(Self::Added),
            _ => match message.split_at_checked(1) {
                Some(("~", pulse)) => serde_json::from_str(pulse).map(Self::Pulse).map_err(drop),
                Some(("%", notice)) => serde_json::from_str(notice).map(Self::Threshold).map_err(drop),
                Some(("?", tenant)) => tenant.parse().map(Self::Doubt).map_err(drop),
                Some(("@", position)) => position.parse().map(Self::Position).map_err(drop),
                _ => message.parse().map(Self::Change),
            },
        }
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(change) => write!(f, "{change}"),
            Self::Doubt(tenant) => write!(f, "?{tenant}"),
            Self::Everything => f.write_str("*"),
            Self::Added => f.write_str("+"),
            Self::Position(position) => write!(f, "@{position}"),
            Self::Threshold(notice) => write!(f, "%{}", serde_json::to_string(notice).map_err(|_| fmt::Error)?),
            Self::Pulse(pulse) => write!(f, "~{}", serde_json::to_string(pulse).map_err(|_| fmt::Error)?),
        }
    }
}

/// How long the feed that is followed may be silent before another takes over without a gap. One of its beats comes in before
/// the silence ends what is live.
const SILENT_FOR: Duration = Duration::from_millis(1500);

/// The feeds that are heard, of which one is followed. Another takes over without a gap if it was heard while the one that
/// was followed still was: then both have announced what happened meanwhile.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    followed: Option<(String, Instant)>,
    others: HashMap<String, (Instant, Instant)>,
}

/// What one beat means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// It comes from a feed that is not followed.
    Aside,
    /// Nothing was missed up to now.
    Continues,
    /// Nothing is missed from now on; before, something may have been.
    Begins,
}

impl Sessions {
    /// A beat of `session` arrives.
    pub(super) fn heard(&mut self, session: &str, now: Instant) -> Beat {
        let recent = |at: Instant| now.saturating_duration_since(at) < LIVE_FOR;
        self.others.retain(|_, (_, last)| recent(*last));
        if let Some((followed, last)) = &mut self.followed {
            if followed.as_str() == session {
                *last = now;
                return Beat::Continues;
            }
            let since = self.others.get(session).map(|(first, _)| *first);
            let takes_over = since.is_some_and(|since| since <= *last);
            let patience = if takes_over { SILENT_FOR } else { LIVE_FOR };
            if now.saturating_duration_since(*last) < patience {
                self.others.entry(session.to_owned()).or_insert((now, now)).1 = now;
                return Beat::Aside;
            }
            if takes_over {
                self.follow(session, now);
                return Beat::Continues;
            }
        }
        self.follow(session, now);
        Beat::Begins
    }

    fn follow(&mut self, session: &str, now: Instant) {
        self.others.remove(session);
        self.followed = Some((session.to_owned(), now));
    }
}

#[cfg(test)]
mod tests {
    use licensing::view::Threshold;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let change: Heard = "3f2504e0-4f89-41d3-9a0c-0305e82c3301:1700000000000000".parse().expect("a change");
        let pulse = Pulse { session: "a".into(), position: Some(Position::new(0x16_b374_d848)), off: false };
        let position = Heard::Position(Position::new(7));
        let doubt = Heard::Doubt("3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().expect("a tenant"));
        let threshold = Threshold { feature: "crm".into(), percent: 80, used: 8, limit: 10, resets_at: None };
        let tenant = "3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().expect("a tenant");
        let threshold = Heard::Threshold(CrossingNotice { batch: Uuid::from_u128(7), tenant, threshold });
        for heard in [change, doubt, Heard::Everything, Heard::Added, position, threshold, Heard::Pulse(pulse)] {
            assert_eq!(heard.to_string().parse(), Ok(heard));
        }
        for foreign in
            ["", "~", "~{}", "x", "?", "?x", "%", "%{}", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "~{\"session\":1}"]
        {
            assert_eq!(foreign.parse::<Heard>(), Err(()), "{foreign}");
        }
    }

    #[test]
    fn another_feed_takes_over_without_a_gap_only_if_both_were_heard() {
        let origin = Instant::now();
        let at = |tenths: u64| origin + Duration::from_millis(100 * tenths);
        let mut sessions = Sessions::default();
        assert_eq!(sessions.heard("a", at(0)), Beat::Begins);
        assert_eq!(sessions.heard("a", at(10)), Beat::Continues);
        assert_eq!(sessions.heard("b", at(15)), Beat::Aside);
        assert_eq!(sessions.heard("a", at(20)), Beat::Continues);
        assert_eq!(sessions.heard("b", at(25)), Beat::Aside, "a may still beat");
        assert_eq!(sessions.heard("b", at(35)), Beat::Continues, "b was there when a was");
        assert_eq!(sessions.heard("a", at(36)), Beat::Aside, "a was only late");
        for tenths in [45, 55] {
            assert_eq!(sessions.heard("b", at(tenths)), Beat::Continues);
        }

        assert_eq!(sessions.heard("c", at(70)), Beat::Aside);
        assert_eq!(sessions.heard("c", at(84)), Beat::Aside);
        assert_eq!(sessions.heard("c", at(86)), Beat::Begins, "c came after b's last beat");
        assert_eq!(sessions.heard("c", at(150)), Beat::Continues, "late, but nothing of it was missed");
    }
}
