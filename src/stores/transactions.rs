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
use super::postgres_server::{PoolOptions, Server, explain, failure};
use super::{Position, StoreError, UrlError};
use crate::secret::Secret;

/// How long a transaction may take, its retries included.
const LIMIT: Duration = Duration::from_secs(5);

/// How often one is tried.
const ATTEMPTS: u32 = 4;

/// Between two attempts, times the number of those that failed.
const PAUSE: Duration = Duration::from_millis(25);

/// The isolation level is said, since in another a statement that has waited for a lock would not see what it waited for. The
/// time zone is that of the tables. The trigger on `features` leaves to us what we know better (V005).
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = '5s'; \
     SET LOCAL timezone = 'UTC'; SELECT set_config('dotmac_license.managed', '1', true)";

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

/// How one attempt failed.
enum Failure {
    /// Another may succeed.
    Again(StoreError),
    /// Another would not.
    Final(TransactionError),
}

impl Transactions {
    /// Prepare a pool. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used.
    pub(super) fn new(url: &Secret, metrics: TransactionMetrics) -> Result<Self, UrlError> {
        let options = PoolOptions { max_connections: 2, idle_timeout: Duration::from_secs(60), timeout: LIMIT };
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
        let begun = Instant::now();
        let count = |outcome: TransactionOutcome| {
            self.metrics.total.with_label_values(&[name.as_str(), outcome.as_str()]).inc();
        };
        let mut attempt = 1;
        let ended = loop {
            match self.attempt(begun + LIMIT, work).await {
                Ok(done) => break Ok(done),
                Err(Failure::Again(_)) if attempt < ATTEMPTS && begun.elapsed() < LIMIT => {
                    count(TransactionOutcome::Retried);
                    sleep(PAUSE * attempt).await;
                    attempt += 1;
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

    /// Ask without a transaction, within its limit.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn ask<T>(&self, query: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T, StoreError> {
        self.server.run(Instant::now() + LIMIT, query).await
    }

    /// Close what lies idle.
    pub(super) fn close_idle(&self) {
        self.server.close_idle();
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
            // Conflicts with others, a row or key that was put there meanwhile, and a server that ends or closes connections.
            let transient =
                code.code().starts_with("40") || code.code().starts_with("08") || code.code().starts_with("57P");
            transient || *code == SqlState::UNIQUE_VIOLATION
        }
    };
    if again { Failure::Again(failure(error)) } else { Failure::Final(TransactionError::Failed(failure(error))) }
}

impl TransactionName {
    /// Every name.
    pub(crate) const ALL: [Self; 4] = [Self::Amend, Self::Request, Self::Notify, Self::Report];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Amend => "amend",
            Self::Request => "request",
            Self::Notify => "notify",
            Self::Report => "report",
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
