//! Transactions in Postgres: each has a name, and one place runs, retries and times them all.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use prometheus::{HistogramVec, IntCounterVec};
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::postgres::{PRIMARY_POSITION, position};
use super::postgres_server::{PoolOptions, Server, explain, failure, unavailable};
use super::{Position, StoreError, UrlError};
use crate::secret::Secret;

/// How long a transaction may take, its retries included, where nobody is held up by it.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// The same where requests wait.
pub(super) const SHORT_LIMIT: Duration = Duration::from_secs(1);

/// How often one is tried.
const ATTEMPTS: u32 = 4;

/// Between two attempts, times the number of those that failed.
const PAUSE: Duration = Duration::from_millis(25);

/// The isolation level is said, since in another a statement that has waited for a lock would not see what it waited for. The
/// time zone is that of the tables. The trigger on `features` leaves to us what we know better (V005).
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = '5s'; \
     SET LOCAL timezone = 'UTC'; SELECT set_config('dotmac_license.managed', '1', true)";

/// The same for what is sent at once. Somebody else's lock ends it early, since the next attempt is no worse than going on to
/// wait. What was granted or counted must survive a crash of the server, even where other commits need not.
macro_rules! begin_at_once {
    ($statement_timeout:literal, $lock_timeout:literal) => {
        concat!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = '",
            $statement_timeout,
            "'; SET LOCAL lock_timeout = '",
            $lock_timeout,
            "'; SET LOCAL timezone = 'UTC'; SELECT set_config('synchronous_commit', 'local', true) \
             WHERE current_setting('synchronous_commit') = 'off'"
        )
    };
}

/// Which transaction, as the label `name` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TransactionName {
    /// A licence is changed, or the change refused.
    Amend,
    /// A change is asked for.
    Request,
    /// Listeners are told something.
    Notify,
    /// Licences are listed.
    Report,
    /// A part of a limit is taken, to be used without asking again.
    Lease,
    /// The window of a limit begins, or the day is put down on which a tenant's windows do.
    Window,
    /// Usage and denials of some seconds are written.
    Usage,
    /// Somebody has followed the way to an upgrade.
    Click,
}

/// How a transaction ended, as the label `outcome` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TransactionOutcome {
    /// What it did is done.
    Committed,
    /// Nothing of it is done.
    Failed,
    /// Nobody can tell: the connection was lost while it was committed.
    Unknown,
    /// An attempt failed, and another was made.
    Retried,
}

/// Where transactions are counted.
#[derive(Clone)]
pub(crate) struct TransactionMetrics {
    /// By name and outcome.
    pub total: IntCounterVec,
    /// By name, in seconds.
    pub duration: HistogramVec,
}

/// Why a transaction did not end well.
#[derive(Debug)]
pub(super) enum TransactionError {
    /// Nothing of it is done.
    Failed(StoreError),
    /// The connection was lost after its end was asked for: it is done, or it is not.
    Unknown(String),
}

/// Why the work of a transaction can't go on.
pub(super) enum Interrupted {
    /// A statement failed.
    Postgres(Error),
    /// What was found there can't be used.
    Store(StoreError),
}

/// What a transaction does between its begin and its end. It may be done several times, each time from the beginning.
#[async_trait]
pub(super) trait Work: Sync {
    /// What is answered.
    type Done: Send;

    /// Do it. What it returns is committed, unless it is an error.
    ///
    /// # Errors
    /// When it can't go on: then all that it did is undone.
    async fn work(&self, client: &Client) -> Result<Self::Done, Interrupted>;
}

/// Runs transactions on a small pool of their own, opened lazily.
pub(super) struct Transactions {
    server: Server,
    metrics: TransactionMetrics,
}

/// How the statements of a transaction follow each other.
#[derive(Clone, Copy)]
enum Manner {
    /// Each after the answer to the one before.
    StepByStep,
    /// Without waiting in between.
    AtOnce,
}

/// How one attempt failed.
enum Failure {
    /// Another may succeed.
    Again(StoreError),
    /// Another would not.
    Final(TransactionError),
}

impl Transactions {
    /// Prepare a pool. Nothing is connected yet. `patience`: how long it may take to get a connection, and to answer a probe.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used.
    pub(super) fn new(url: &Secret, patience: Duration, metrics: TransactionMetrics) -> Result<Self, UrlError> {
        let options = PoolOptions { max_connections: 2, idle_timeout: Duration::from_secs(60), timeout: patience };
        Ok(Self { server: Server::new(url, options)?, metrics })
    }

    /// Do `work` and commit it; answers what it answered, and where the primary's log was afterwards, if that could be asked.
    /// It is done again where another transaction was in its way, or where the connection was lost, but never once its end
    /// was asked for. Whoever calls this must not give up waiting: the connection would go back into the pool as it is.
    ///
    /// # Errors
    /// When nothing of it is done, or nobody can tell.
    pub(super) async fn run<W: Work>(
        &self,
        name: TransactionName,
        work: &W,
    ) -> Result<(W::Done, Option<Position>), TransactionError> {
        self.conduct(name, work, Manner::StepByStep).await
    }

    /// Do `work` and commit it in one round trip: it sends all that it has to say when it is first polled, its end is sent
    /// behind it, and so whoever gives up waiting leaves nothing half done. It is done again whatever was in its way, a lost
    /// connection too: that it has been done already is for it to find out.
    ///
    /// # Errors
    /// When nobody can tell whether it is done.
    pub(super) async fn at_once<W: Work>(&self, name: TransactionName, work: &W) -> Result<W::Done, StoreError> {
        match self.conduct(name, work, Manner::AtOnce).await {
            Ok((done, _)) => Ok(done),
            Err(TransactionError::Failed(error)) => Err(error),
            Err(TransactionError::Unknown(message)) => Err(unavailable(message)),
        }
    }

    /// Ask without a transaction, within its limit.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn ask<T>(&self, query: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T, StoreError> {
        self.server.run(Instant::now() + LIMIT, query).await
    }

    /// Run a statement without parameters apart from all others: see [`Server::probe`].
    ///
    /// # Errors
    /// When it fails, or there is no answer in time.
    pub(super) async fn probe(&self, sql: &str) -> Result<(), StoreError> {
        self.server.probe(sql).await.map(drop)
    }

    /// Close what lies idle.
    pub(super) fn close_idle(&self) {
        self.server.close_idle();
    }

    /// Attempts, until one ends it; timed and counted.
    async fn conduct<W: Work>(
        &self,
        name: TransactionName,
        work: &W,
        manner: Manner,
    ) -> Result<(W::Done, Option<Position>), TransactionError> {
        let begun = Instant::now();
        let count = |outcome: TransactionOutcome| {
            self.metrics.total.with_label_values(&[name.as_str(), outcome.as_str()]).inc();
        };
        let mut attempts = 1;
        let ended = loop {
            let deadline = begun + name.limit();
            let attempt = match manner {
                Manner::StepByStep => self.attempt(deadline, work).await,
                Manner::AtOnce => self.attempt_at_once(deadline, name.begin(), work).await.map(|done| (done, None)),
            };
            match attempt {
                Ok(done) => break Ok(done),
                Err(Failure::Again(_)) if attempts < ATTEMPTS && begun.elapsed() < name.limit() => {
                    count(TransactionOutcome::Retried);
                    sleep(PAUSE * attempts).await;
                    attempts += 1;
                }
                Err(Failure::Again(error)) => break Err(TransactionError::Failed(error)),
                Err(Failure::Final(error)) => break Err(error),
            }
        };
        self.metrics.duration.with_label_values(&[name.as_str()]).observe(begun.elapsed().as_secs_f64());
        count(match &ended {
            Ok(_) => TransactionOutcome::Committed,
            Err(TransactionError::Failed(_)) => TransactionOutcome::Failed,
            Err(TransactionError::Unknown(_)) => TransactionOutcome::Unknown,
        });
        ended
    }

    async fn attempt<W: Work>(&self, deadline: Instant, work: &W) -> Result<(W::Done, Option<Position>), Failure> {
        let committing = AtomicBool::new(false);
        let whole = async |client: &Client| Ok(through(client, work, &committing).await);
        match self.server.run(deadline, whole).await {
            Ok(done) => done,
            Err(error) if committing.load(Ordering::Relaxed) => {
                Err(Failure::Final(TransactionError::Unknown(error.to_string())))
            }
            // There was no connection, or no answer in time; then there is no time for another attempt either.
            Err(error) => Err(Failure::Again(error)),
        }
    }

    async fn attempt_at_once<W: Work>(&self, deadline: Instant, begin: &str, work: &W) -> Result<W::Done, Failure> {
        let whole = async |client: &Client| Ok(sent_at_once(client, begin, work).await);
        self.server.run(deadline, whole).await.unwrap_or_else(|error| Err(Failure::Again(error)))
    }
}

/// From `BEGIN` to the end.
async fn through<W: Work>(
    client: &Client,
    work: &W,
    committing: &AtomicBool,
) -> Result<(W::Done, Option<Position>), Failure> {
    client.batch_execute(BEGIN).await.map_err(|error| judge(&error))?;
    let value = match work.work(client).await {
        Ok(value) => value,
        Err(interrupted) => {
            // If that fails, the connection is at its end, and the transaction with it.
            let _ = client.batch_execute("ROLLBACK").await;
            return Err(match interrupted {
                Interrupted::Postgres(error) => judge(&error),
                Interrupted::Store(error) => Failure::Final(TransactionError::Failed(error)),
            });
        }
    };
    committing.store(true, Ordering::Relaxed);
    let (committed, row) = tokio::join!(
        biased;
        client.batch_execute("COMMIT"),
        client.query_typed_one(PRIMARY_POSITION, &[]),
    );
    match committed {
        Ok(()) => Ok((value, row.ok().and_then(|row| position(&row).ok()))),
        Err(error) if is_undone(&error) => Err(judge(&error)),
        Err(error) => Err(Failure::Final(TransactionError::Unknown(explain(&error)))),
    }
}

/// From `begin` to the end, without waiting in between.
async fn sent_at_once<W: Work>(client: &Client, begin: &str, work: &W) -> Result<W::Done, Failure> {
    let (begun, done, committed) = tokio::join!(
        biased;
        client.batch_execute(begin),
        work.work(client),
        client.batch_execute("COMMIT"),
    );
    begun.map_err(|error| judge(&error))?;
    let done = done.map_err(|interrupted| match interrupted {
        Interrupted::Postgres(error) => judge(&error),
        Interrupted::Store(error) => Failure::Final(TransactionError::Failed(error)),
    })?;
    committed.map_err(|error| judge(&error))?;
    Ok(done)
}

/// Whether a `COMMIT` that failed has certainly undone everything: a conflict with another transaction, or a constraint.
fn is_undone(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("40") || code.code().starts_with("23"))
}

/// Whether another attempt may succeed where nothing is done yet.
fn judge(error: &Error) -> Failure {
    let again = match error.code() {
        // The connection, not the server.
        None => true,
        Some(code) => {
            // Conflicts with others, a row or key that was put there or removed meanwhile, and a server that ends or closes
            // connections.
            let transient =
                code.code().starts_with("40") || code.code().starts_with("08") || code.code().starts_with("57P");
            transient || matches!(*code, SqlState::UNIQUE_VIOLATION | SqlState::FOREIGN_KEY_VIOLATION)
        }
    };
    // A conflict with others that stays one is as good as content that is refused.
    let error = failure(error);
    if again { Failure::Again(error) } else { Failure::Final(TransactionError::Failed(error)) }
}

impl TransactionName {
    /// Every name.
    pub(crate) const ALL: [Self; 8] =
        [Self::Amend, Self::Request, Self::Notify, Self::Report, Self::Lease, Self::Window, Self::Usage, Self::Click];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Amend => "amend",
            Self::Request => "request",
            Self::Notify => "notify",
            Self::Report => "report",
            Self::Lease => "lease",
            Self::Window => "window",
            Self::Usage => "usage",
            Self::Click => "click",
        }
    }

    /// How long it may take, its retries included.
    const fn limit(self) -> Duration {
        match self {
            Self::Lease | Self::Window => SHORT_LIMIT,
            _ => LIMIT,
        }
    }

    /// How it begins where it is sent at once.
    const fn begin(self) -> &'static str {
        match self {
            Self::Lease | Self::Window => begin_at_once!("800ms", "400ms"),
            _ => begin_at_once!("4s", "2s"),
        }
    }
}

impl TransactionOutcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 4] = [Self::Committed, Self::Failed, Self::Unknown, Self::Retried];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Retried => "retried",
        }
    }
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<StoreError> for Interrupted {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}
