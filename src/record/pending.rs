//! What waits to be written: lines that merge where they are about the same, in bounded memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use licensing::tenant::TenantId;
use parking_lot::Mutex;
use prometheus::IntCounter;
use smallvec::SmallVec;

/// Into how many parts the lines are divided, so that the threads that add to them seldom meet.
const SHARDS: usize = 64;

/// Whose lines, and of which day or minute.
type Slot = (TenantId, i64);

type Shard<L> = HashMap<Slot, SmallVec<[L; 1]>>;

/// A number of something that there can be more of.
pub(super) trait Line {
    /// Whether both are about the same: then one line is enough for them.
    fn is_like(&self, other: &Self) -> bool;

    /// Count the other in.
    fn merge(&mut self, other: Self);

    /// How many it counts.
    fn amount(&self) -> u64;
}

/// Lines of all tenants. Where there is no room for another, what is new is dropped and counted; what is like a line that is
/// there is counted by that line all the same.
pub(super) struct Pending<L> {
    shards: [Mutex<Shard<L>>; SHARDS],
    lines: AtomicUsize,
    most: usize,
    /// Where the next taking begins: no tenant waits for ever behind others.
    next: AtomicUsize,
    dropped: IntCounter,
}

impl<L: Line> Pending<L> {
    /// Room for so many lines. What finds none is counted by `dropped`.
    pub(super) fn new(most: usize, dropped: IntCounter) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, lines: AtomicUsize::new(0), most, next: AtomicUsize::new(0), dropped }
    }

    /// Add a line of `tenant` and of the day or minute `unit`.
    pub(super) fn add(&self, tenant: TenantId, unit: i64, line: L) {
        let mut shard = self.shards[usize::from(tenant.as_uuid().as_bytes()[15]) % SHARDS].lock();
        if let Some(lines) = shard.get_mut(&(tenant, unit)) {
            // As many as there are features, roughly.
            match lines.iter_mut().find(|earlier| earlier.is_like(&line)) {
                Some(earlier) => earlier.merge(line),
                None if self.finds_room(&line) => lines.push(line),
                None => {}
            }
        } else if self.finds_room(&line) {
            shard.insert((tenant, unit), SmallVec::from_buf([line]));
        }
    }

    fn finds_room(&self, line: &L) -> bool {
        let fits = self.lines.fetch_add(1, Ordering::AcqRel) < self.most;
        if !fits {
            self.lines.fetch_sub(1, Ordering::AcqRel);
            self.dropped.inc_by(line.amount());
        }
        fits
    }

    /// Take out about so many lines; rather a few more than to tear apart what is of one tenant and day. They take up their
    /// room until they have [left](Self::left).
    pub(super) fn take(&self, about: usize) -> Vec<(Slot, L)> {
        let mut taken = Vec::new();
        let first = self.next.load(Ordering::Acquire);
        for number in first..first + SHARDS {
            if taken.len() >= about {
                break;
            }
            let mut shard = self.shards[number % SHARDS].lock();
            let mut left = about - taken.len();
            let out = shard.extract_if(|_, lines| {
                let fits = left > 0;
                left = left.saturating_sub(lines.len());
                fits
            });
            taken.extend(out.flat_map(|(slot, lines)| lines.into_iter().map(move |line| (slot, line))));
            if shard.len() * 4 < shard.capacity() {
                // What a rush took, it shall not hold for ever.
                let room = shard.len() * 2;
                shard.shrink_to(room);
            }
            // One that is empty is not begun with again; one that is not is gone on with.
            self.next.store((number + usize::from(shard.is_empty())) % SHARDS, Ordering::Release);
        }
        taken
    }

    /// So many of those that were taken out are gone for good.
    pub(super) fn left(&self, lines: usize) {
        self.lines.fetch_sub(lines, Ordering::AcqRel);
    }

    /// How many lines there are, with those that were taken out and may come to nothing yet.
    pub(super) fn len(&self) -> usize {
        self.lines.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Of(char, u64);

    impl Line for Of {
        fn is_like(&self, other: &Self) -> bool {
            self.0 == other.0
        }

        fn merge(&mut self, other: Self) {
            self.1 += other.1;
        }

        fn amount(&self) -> u64 {
            self.1
        }
    }

    fn pending(most: usize) -> Pending<Of> {
        Pending::new(most, IntCounter::new("dropped", "What found no room.").expect("a counter"))
    }

    fn tenant(id: u128) -> TenantId {
        TenantId::new(Uuid::from_u128(id))
    }

    /// Take out lines for good.
    fn take(pending: &Pending<Of>, about: usize) -> Vec<(Slot, Of)> {
        let taken = pending.take(about);
        pending.left(taken.len());
        taken
    }

    #[test]
    fn what_is_alike_becomes_one_line() {
        let pending = pending(100);
        for (id, unit, feature) in [(1, 5, 'a'), (1, 5, 'a'), (1, 5, 'b'), (1, 6, 'a'), (2, 5, 'a'), (1, 5, 'a')] {
            pending.add(tenant(id), unit, Of(feature, 1));
        }
        assert_eq!(pending.len(), 4);
        let mut taken = pending.take(100);
        assert_eq!(pending.len(), 4, "they may come to nothing yet");
        pending.left(4);
        taken.sort_by_key(|(slot, line)| (*slot, line.0));
        let expected = [((1, 5), 'a', 3), ((1, 5), 'b', 1), ((1, 6), 'a', 1), ((2, 5), 'a', 1)]
            .map(|((id, unit), feature, count)| ((tenant(id), unit), Of(feature, count)));
        assert_eq!(taken, expected);
        assert_eq!((pending.len(), take(&pending, 100).len()), (0, 0));
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted_and_known_lines_go_on() {
        let pending = pending(2);
        for (id, feature, count) in [(1, 'a', 1), (2, 'a', 1), (3, 'a', 5), (1, 'b', 7), (2, 'a', 4)] {
            pending.add(tenant(id), 0, Of(feature, count));
        }
        assert_eq!((pending.len(), pending.dropped.get()), (2, 12));
        let counted: u64 = take(&pending, 9).iter().map(|(_, line)| line.1).sum();
        assert_eq!(counted, 6);
        pending.add(tenant(3), 0, Of('a', 1));
        assert_eq!(pending.len(), 1, "there is room again");
    }

    #[test]
    fn each_taking_goes_on_where_the_last_one_ended() {
        let pending = pending(10_000);
        let busy = || (0..10).for_each(|id| pending.add(tenant(id << 64), 0, Of('a', 1)));
        busy();
        (1..64).for_each(|id| pending.add(tenant(id), 0, Of('a', 1)));
        // The first shard is full again before each taking.
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            let taken = take(&pending, 20);
            assert!(taken.len() <= 20);
            seen.extend(taken.into_iter().map(|((tenant, _), _)| tenant));
            busy();
        }
        assert_eq!(seen.len(), 73, "nobody is passed over for ever");
    }

    #[test]
    fn what_a_rush_took_is_given_back() {
        let pending = pending(100_000);
        (0..100_000).for_each(|id| pending.add(tenant(id), 0, Of('a', 1)));
        while !take(&pending, 1_000).is_empty() {}
        let held: usize = pending.shards.iter().map(|shard| shard.lock().capacity()).sum();
        assert!(held < 1_000, "{held}");
    }
}
