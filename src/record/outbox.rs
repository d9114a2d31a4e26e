//! What has been counted, on its way into the store: batch by batch, each posted until it is certainly written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use licensing::reason::Reason;
use tokio::time::timeout;
use uuid::Uuid;

use super::lease::{Idling, Lease};
use super::{DropCause, FlushOutcome, Moment, Recorder};
use crate::stores::{Batch, Posted, StoreError, StoreName};

/// How many lines of a kind make a batch, about: more would hold locks for too long.
const LINES: usize = 1_000;

/// How often the store may refuse a batch before it is divided, to find out what it is about.
const REFUSALS: u32 = 3;

/// The most that one attempt may take: the store has limits of its own, which are shorter.
const POST_WITHIN: Duration = Duration::from_secs(20);

/// How many asks that are in doubt are made again with one flush: requests wait for asks of their own behind them.
const DOUBTS: usize = 128;

/// The batches that are not known to be written, in the order in which they are posted. Nearly always none; one in doubt,
/// which nothing is merged into; or the parts of one that was refused.
#[derive(Default)]
pub(super) struct Outbox(VecDeque<Parcel>);

/// A batch, and the leases that it settles, in the order of the settlements.
struct Parcel {
    batch: Batch,
    leases: Vec<Arc<Lease>>,
    /// How often the store has refused it, or what it is a part of.
    refusals: u32,
}

impl Recorder {
    /// Write what there is at `now`. What is counted meanwhile waits for the next time. True: everything is written. Whoever
    /// stops waiting for this disturbs nothing.
    pub(crate) async fn flush(self: &Arc<Self>, now: Moment) -> bool {
        let mut outbox = self.outbox.lock().await;
        let idling = self.idling();
        let tidied = self.leases.tidy(&idling, now);
        if self.breaker.allows() {
            for lease in tidied.in_doubt.into_iter().take(DOUBTS) {
                let request = lease.holding().begin_ask(&lease.key, now.at);
                if let Some(request) = request {
                    self.ask(lease, request);
                }
            }
        }
        let denials = self.denials.len() + self.strangers.len();
        let mut batches = self.uses.len().max(tidied.due).max(denials).div_ceil(LINES);
        let mut written = loop {
            if outbox.is_empty() {
                let Some(left) = batches.checked_sub(1) else { break true };
                batches = left;
                outbox.0.extend(self.gather(&idling, now));
                continue;
            }
            if !self.breaker.allows() || !self.post_first(&mut outbox).await {
                break false;
            }
        };
        // After the denials that they are about.
        written = written && self.write_clicks().await;
        self.observe();
        written
    }

    /// The next batch; none: there is nothing to tell.
    fn gather(&self, idling: &Idling, now: Moment) -> Option<Parcel> {
        let counts = self.uses.take(LINES).into_iter().map(|((tenant, day), uses)| uses.on(tenant, day)).collect();
        let mut denials = self.denials.take(LINES);
        denials.extend(self.strangers.take(LINES.saturating_sub(denials.len())));
        let denials = denials.into_iter().map(|((tenant, minute), denied)| denied.in_minute(tenant, minute)).collect();
        let (leases, settlements) = self.leases.settle(LINES, idling, now.at).into_iter().unzip();
        let thresholds = Arc::clone(&self.options.thresholds);
        let parcel = Parcel {
            batch: Batch { id: Uuid::new_v4(), counts, settlements, denials, thresholds },
            leases,
            refusals: 0,
        };
        (parcel.lines() > 0).then_some(parcel)
    }

    /// Post the first batch. It leaves the outbox when it is certain what became of it. False: there is no point in going on
    /// for now.
    async fn post_first(&self, outbox: &mut Outbox) -> bool {
        let Some(parcel) = outbox.0.front_mut() else { return true };
        let timer = self.metrics.usage_flush_duration.start_timer();
        let unanswered = |message| Err(StoreError::late(StoreName::Postgres, message));
        let answer = tokio::select! {
            biased;
            answer = timeout(POST_WITHIN, self.store.post(&parcel.batch)) => {
                answer.unwrap_or_else(|_| unanswered("a batch was not answered"))
            }
            () = self.breaker.opened() => unanswered("a batch was given up"),
        };
        timer.observe_duration();
        let error = match answer {
            Ok(posted) => {
                self.breaker.answered();
                self.metrics.usage_flushes.of(FlushOutcome::Posted).inc();
                self.posted(parcel, posted);
                self.has_left(&parcel.batch);
                outbox.0.pop_front();
                return true;
            }
            Err(error) => error,
        };
        self.report(&error);
        if !matches!(error, StoreError::Refused { .. }) {
            self.metrics.usage_flushes.of(FlushOutcome::Failed).inc();
            return false;
        }
        self.metrics.usage_flushes.of(FlushOutcome::Refused).inc();
        parcel.refusals += 1;
        if parcel.refusals < REFUSALS {
            tracing::warn!(%error, lines = parcel.lines(), "a batch of usage was refused; it is posted again");
            return false;
        }
        let parcel = outbox.0.pop_front();
        for part in parcel.and_then(|parcel| self.divide(parcel, &error)).into_iter().flatten().rev() {
            outbox.0.push_front(part);
        }
        true
    }

    /// What is in `batch` waits no longer.
    fn has_left(&self, batch: &Batch) {
        let strangers = batch.denials.iter().filter(|denial| denial.reason == Reason::NoLicense).count();
        self.uses.left(batch.counts.len());
        self.strangers.left(strangers);
        self.denials.left(batch.denials.len() - strangers);
    }

    fn posted(&self, parcel: &Parcel, posted: Posted) {
        let Posted { without_license, standings, crossings } = posted;
        let counted: u64 = parcel.batch.counts.iter().map(|count| count.count).sum();
        self.metrics.usage_recorded.inc_by(counted.saturating_sub(without_license));
        self.metrics.usage_dropped.of(DropCause::NoLicense).inc_by(without_license);
        for (lease, standing) in parcel.leases.iter().zip(standings) {
            if let Some(standing) = standing {
                lease.holding().stands(standing);
            }
        }
        for crossing in crossings {
            let (feature, percent) = (&*crossing.key.feature, crossing.percent);
            tracing::info!(
                tenant = %crossing.key.tenant, feature, percent, used = crossing.used, limit = crossing.limit,
                "a limit has passed a threshold"
            );
            self.metrics.threshold_crossed(feature, percent);
            // Nobody may be listening.
            let _ = self.crossings.send(crossing);
        }
    }

    /// Halve a batch that is refused for good, so that what it is about spoils nothing else; none: it has come down to one
    /// line, which is dropped.
    fn divide(&self, parcel: Parcel, error: &StoreError) -> Option<[Parcel; 2]> {
        if parcel.lines() > 1 {
            tracing::warn!(%error, lines = parcel.lines(), "a batch of usage was refused; it is divided");
            return Some(parcel.halves());
        }
        self.has_left(&parcel.batch);
        let Batch { counts, settlements, denials, .. } = parcel.batch;
        for count in counts {
            let (tenant, feature) = (count.tenant, &*count.feature);
            tracing::error!(%error, %tenant, feature, day = %count.day, count = count.count, "usage was refused, and is lost");
            self.metrics.usage_dropped.of(DropCause::Refused).inc_by(count.count);
        }
        for settlement in settlements {
            let (tenant, feature) = (settlement.key.tenant, &*settlement.key.feature);
            let (spent, returned) = (settlement.spent, settlement.returned);
            tracing::error!(%error, %tenant, feature, spent, returned, "what became of a lease was refused, and stays reserved");
        }
        for denial in denials {
            let (tenant, feature) = (denial.tenant, &*denial.feature);
            tracing::error!(%error, %tenant, feature, reason = %denial.reason, count = denial.count, "a denial was refused, and is lost");
            self.metrics.denial_events_dropped.inc_by(denial.count);
        }
        None
    }
}

impl Outbox {
    /// Whether everything in it is written.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Parcel {
    fn lines(&self) -> usize {
        self.batch.counts.len() + self.batch.settlements.len() + self.batch.denials.len()
    }

    /// Two batches in place of one that is certainly not written.
    fn halves(mut self) -> [Self; 2] {
        let half = self.lines() / 2;
        let Batch { counts, settlements, denials, thresholds, .. } = &mut self.batch;
        // The first half is what remains here.
        let kept = half.min(counts.len());
        let later_counts = counts.split_off(kept);
        let kept_settlements = (half - kept).min(settlements.len());
        let later_settlements = settlements.split_off(kept_settlements);
        let later_leases = self.leases.split_off(kept_settlements);
        let later_denials = denials.split_off((half - kept - kept_settlements).min(denials.len()));
        let later = Batch {
            id: Uuid::new_v4(),
            counts: later_counts,
            settlements: later_settlements,
            denials: later_denials,
            thresholds: Arc::clone(thresholds),
        };
        self.batch.id = Uuid::new_v4();
        // One more refusal is enough for each.
        self.refusals = REFUSALS - 1;
        [Self { batch: later, leases: later_leases, refusals: self.refusals }, self]
    }
}
