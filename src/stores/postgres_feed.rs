//! What Postgres tells of changes: notifications by the tables' triggers, on a connection that does nothing but listen.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::poll_fn;
use licensing::tenant::TenantId;
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};

use super::postgres::position;
use super::postgres_server::{dial, failure, unavailable};
use super::{Change, CrossingNotice, Position, StoreError};

/// On which batches of usage notify: a channel of its own, since replicas of another version take what they can't read on that
/// of the changes for a change.
macro_rules! thresholds_channel {
    () => {
        "dotmac_license_thresholds"
    };
}
pub(super) use thresholds_channel;

/// On which the triggers notify.
pub(super) const CHANGES: &str = "dotmac_license_changes";

/// The comment that `migrate` leaves on a table of licences that it had to create again: somebody had dropped it to turn
/// licensing off, and until it holds a licence, everybody would be denied.
pub(crate) const RECREATED: &str =
    "dotmac-license-proxy: created again after a drop; enforces nothing until it holds a licence";

/// How many notices may wait. More than that is "everything".
const QUEUE: usize = 10_000;

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Notice {
    /// One licence has changed.
    Change(Change),
    /// One licence has to be asked for again, whether or not it has changed.
    Doubt(TenantId),
    /// Any may have changed.
    Everything,
    /// Tenants were added.
    Added,
    /// A share of a limit is used up.
    Threshold(CrossingNotice),
    /// Our own notification has come back: all that was committed before it was sent has been told.
    Beat(Vitals),
}

/// How the primary was when a beat was sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vitals {
    /// How far it had written its log.
    pub(crate) position: Position,
    /// Whether the tables were dropped, or created again after that and not filled yet.
    pub(crate) off: bool,
    /// Which table `tenant_licenses` is (its OID; 0: there is none). A restore puts another one in its place and tells nobody.
    pub(crate) table: i64,
}

/// Two connections to the primary: one that listens, and one that sends the beats, so that a connection that only seems to
/// listen is found out.
pub(crate) struct PostgresFeed {
    /// Kept: dropping it would end the connection that listens.
    _listening: Client,
    beats: Client,
    beat_channel: String,
    notices: mpsc::Receiver<Notice>,
    overflowed: Arc<AtomicBool>,
    timeout: Duration,
    /// Whether the tables have been there since this program began.
    tables_seen: Arc<AtomicBool>,
}

impl PostgresFeed {
    /// Connect and listen: from when this returns, every commit is told. `session` is ours alone.
    ///
    /// # Errors
    /// When the primary can't be reached or refuses.
    pub(crate) async fn open(
        url: &SecretString,
        session: &str,
        tables_seen: &Arc<AtomicBool>,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        let beat_channel = format!("dotmac_license_beat_{session}");
        let (sender, notices) = mpsc::channel(QUEUE);
        let overflowed = Arc::new(AtomicBool::new(false));
        let work = async {
            let (listening, mut connection) = dial(url).await?;
            let (overflows, beat) = (Arc::clone(&overflowed), beat_channel.clone());
            tokio::spawn(async move {
                // The receiver sees the end, whatever its cause: the sender is dropped.
                while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                    if let AsyncMessage::Notification(notification) = message
                        && let Some(notice) = Notice::read(notification.channel(), notification.payload(), &beat)
                        && sender.try_send(notice).is_err()
                    {
                        overflows.store(true, Ordering::Release);
                    }
                }
            });
            let listen = format!("LISTEN {CHANGES}; LISTEN {}; LISTEN {beat_channel}", thresholds_channel!());
            listening.batch_execute(&listen).await.map_err(|error| failure(&error))?;
            let (beats, connection) = dial(url).await?;
            tokio::spawn(connection);
            Ok((listening, beats))
        };
        let (listening, beats) = within(limit, work).await?;
        let tables_seen = Arc::clone(tables_seen);
        Ok(Self { _listening: listening, beats, beat_channel, notices, overflowed, timeout: limit, tables_seen })
    }

    /// The next notice; none once the connection has ended. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Notice> {
        if self.overflowed.swap(false, Ordering::AcqRel) {
            return Some(Notice::Everything);
        }
        self.notices.recv().await
    }

    /// A notice that is here already.
    pub(crate) fn next_now(&mut self) -> Option<Notice> {
        if self.overflowed.load(Ordering::Acquire) {
            return None;
        }
        self.notices.try_recv().ok()
    }

    /// Send a beat, which comes back as a notice.
    ///
    /// # Errors
    /// When the primary does not answer in time, or is a standby.
    pub(crate) async fn beat(&self) -> Result<(), StoreError> {
        within(self.timeout, async {
            let (channel, payload) = (&self.beat_channel, self.vitals().await?.to_string());
            let notify = "SELECT pg_notify($1, $2)";
            let sent = self.beats.query_typed(notify, &[(channel, Type::TEXT), (&payload, Type::TEXT)]).await;
            sent.map(drop).map_err(|error| failure(&error))
        })
        .await
    }

    /// How far the primary has written its log now: at least as far as everything that has been told.
    ///
    /// # Errors
    /// When the primary does not answer in time.
    pub(crate) async fn position(&self) -> Result<Position, StoreError> {
        within(self.timeout, async { Ok(self.vitals().await?.position) }).await
    }

    async fn vitals(&self) -> Result<Vitals, StoreError> {
        const VITALS: &str = "SELECT lsn::text, (pg_walfile_name_offset(lsn)).file_offset, coalesce(to_regclass('tenant_licenses')::oid::int8, 0), \
             to_regclass('feature_usage') IS NOT NULL, to_regclass('refinery_schema_history') IS NOT NULL, \
             coalesce(obj_description(to_regclass('tenant_licenses'), 'pg_class') = $1, false) \
             FROM pg_current_wal_insert_lsn() AS lsn";
        let failed = |error| failure(&error);
        let row = self.beats.query_typed(VITALS, &[(&RECREATED, Type::TEXT)]).await.map_err(failed)?;
        let row = row.first().ok_or_else(|| unavailable("no answer".to_owned()))?;
        let (table, usage, history, recreated): (i64, bool, bool, bool) =
            (row.get(2), row.get(3), row.get(4), row.get(5));
        if table != 0 {
            self.tables_seen.store(true, Ordering::Relaxed);
        }
        let off = if recreated {
            let any = self.beats.query_typed("SELECT FROM tenant_licenses LIMIT 1", &[]).await.map_err(failed)?;
            any.is_empty()
        } else {
            // Both gone is what the rollback does. A database that never had them is a mistake of another kind.
            table == 0 && !usage && (history || self.tables_seen.load(Ordering::Relaxed))
        };
        Ok(Vitals { position: position(row)?, off, table })
    }
}

impl Notice {
    /// Read what was told on one of the channels; none: nothing that is understood, and nothing that matters.
    fn read(channel: &str, payload: &str, beat_channel: &str) -> Option<Self> {
        if channel == beat_channel {
            return payload.parse().ok().map(Self::Beat);
        }
        if channel == thresholds_channel!() {
            return serde_json::from_str(payload).ok().map(Self::Threshold);
        }
        Some(match payload {
            "+" => Self::Added,
            doubt if doubt.starts_with('?') => doubt[1..].parse().map_or(Self::Everything, Self::Doubt),
            // What a later version says in another form is a change all the same.
            payload => Change::from_str(payload).map_or(Self::Everything, Self::Change),
        })
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.position, self.off, self.table)
    }
}

impl FromStr for Vitals {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        Ok(Self {
            position: next()?.parse().map_err(drop)?,
            off: next()?.parse().map_err(drop)?,
            table: next()?.parse().map_err(drop)?,
        })
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(unavailable(format!("no answer within {limit:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_on_each_channel() {
        let read = |channel: &str, payload: &str| Notice::read(channel, payload, "beat");
        let tenant = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
        let change = |revision| Change { tenant: tenant.parse().expect("a tenant"), revision };
        assert_eq!(read(CHANGES, &format!("{tenant}:7")), Some(Notice::Change(change(7))));
        assert_eq!(read(CHANGES, &format!("?{tenant}")), Some(Notice::Doubt(change(0).tenant)));
        assert_eq!(read(CHANGES, "+"), Some(Notice::Added));
        for of_a_later_version in ["*", "!", "{}", ""] {
            assert_eq!(read(CHANGES, of_a_later_version), Some(Notice::Everything));
        }
        let threshold = format!(
            r#"{{"batch":"{tenant}","tenant":"{tenant}","feature":"crm","percent":80,"used":8,"limit":10,
                "resetsAt":"2026-12-01T00:00:00Z","of a later version":1}}"#
        );
        let Some(Notice::Threshold(notice)) = read(thresholds_channel!(), &threshold) else { panic!("a threshold") };
        assert_eq!((notice.tenant, notice.threshold.percent), (change(0).tenant, 80));
        assert_eq!(notice.threshold.resets_at.map(|at| at.to_string()), Some("2026-12-01T00:00:00Z".to_owned()));
        // What can't be read there is no change of a licence.
        for other in ["", "{}", "[80]", "*"] {
            assert_eq!(read(thresholds_channel!(), other), None);
        }
    }
}
