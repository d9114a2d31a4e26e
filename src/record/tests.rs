//! The recorder against a store that is slow, gone, refuses or loses answers, by a clock that the tests set.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use licensing::quota::Period;
use licensing::time::Timestamp;
use tokio::time::{Instant, sleep};

use super::model::{DEADLINE, Everybody, MARCH, World, tenant};
use super::reservation::Remaining;
use super::*;
use crate::stores::{BreakerState, Standing};

const SECOND: Duration = Duration::from_secs(1);

fn leases(world: &World) -> usize {
    world.store.leases.load(Ordering::Relaxed)
}

fn reserved(attempt: Attempt) -> Reservation {
    match attempt {
        Attempt::Reserved(reservation) => reservation,
        other => panic!("reserved, not {other:?}"),
    }
}

/// Use up `limit` and let it be known that nothing is left.
async fn use_up(world: &World, replica: &Arc<Recorder>, limit: u64) {
    for _ in 0..limit {
        world.reserve(replica, &world.ask(tenant(1), limit)).await.expect("a lease").expect("some of it").consume();
    }
    world.reserve(replica, &world.ask(tenant(1), limit)).await.expect("an answer").expect_err("nothing is left");
}

#[tokio::test(start_paused = true)]
async fn far_from_a_limit_one_request_waits_and_few_ask() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(2));
    let replica = world.replica();
    let ask = world.ask(tenant(1), 10_000_000);
    let mut waited = 0;
    for number in 0..20_000_u32 {
        match replica.reserve_now(&ask, world.now()) {
            Attempt::Reserved(reservation) => reservation.consume(),
            Attempt::Wait => {
                waited += 1;
                world.reserve(&replica, &ask).await.expect("a lease").expect("some").consume();
            }
            Attempt::Exhausted(_) => panic!("far from the limit"),
        }
        // 20,000 a second.
        if number % 20 == 19 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(waited, 1, "the first");
    let asked = world.store.asked.lock().clone();
    assert!(asked.len() <= 20, "{} questions", asked.len());
    assert!(asked.iter().skip(1).all(|request| request.needed == 0), "in advance");
    assert_eq!(asked[0].wished, 256);
    assert!(asked.iter().any(|request| request.wished > 4_096), "the more is used, the more is asked for");
    let of_slow = |asked: &[_]| asked.last().map(|request: &crate::stores::LeaseRequest| request.wished);
    let before = of_slow(&asked);
    for _ in 0..30_000 {
        sleep(Duration::from_millis(20)).await;
        reserved(replica.reserve_now(&ask, world.now())).consume();
    }
    assert!(of_slow(&world.store.asked.lock()) < before, "and the less");
    assert!(replica.finish(Instant::now() + SECOND).await);
    assert_eq!((world.standing(tenant(1)), world.counted(tenant(1))), ((50_000, 0), 50_000));
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_used_up_exactly_by_all_replicas_together() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(1));
    let replicas: Vec<_> = (0..4).map(|_| world.replica()).collect();
    let ask = world.ask(tenant(1), 100);
    let (mut taken, mut denied) = (0, 0);
    for _ in 0..20 {
        let asked = replicas.iter().flat_map(|replica| (0..10).map(|_| world.reserve(replica, &ask)));
        for got in join_all(asked).await {
            match got.expect("an answer") {
                Ok(reservation) => {
                    taken += 1;
                    reservation.consume();
                }
                Err(exhausted) => {
                    denied += 1;
                    let period = world.key(tenant(1), Window::Day, MARCH).period;
                    assert_eq!(exhausted, Exhausted { limit: 100, used: 100, period });
                }
            }
        }
        // What lies idle with one is wanted by others.
        sleep(3 * SECOND).await;
        for replica in &replicas {
            replica.flush(world.now()).await;
        }
    }
    assert_eq!((taken, denied), (100, 700));
    assert_eq!(world.standing(tenant(1)), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn many_who_wait_share_one_question() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(20));
    let replica = world.replica();
    let ask = world.ask(tenant(1), 1_000_000);
    let got = join_all((0..200).map(|_| world.reserve(&replica, &ask))).await;
    assert!(got.iter().all(|got| matches!(got, Ok(Ok(_)))));
    assert_eq!(leases(&world), 1);

    // Near the limit they are counted: the second question is for all who still wait.
    let ask = world.ask(tenant(2), 150);
    let got = join_all((0..200).map(|_| world.reserve(&replica, &ask))).await;
    assert_eq!(got.iter().filter(|got| matches!(got, Ok(Ok(_)))).count(), 150);
    assert!(leases(&world) <= 3, "{}", leases(&world));
}

#[tokio::test(start_paused = true)]
async fn that_nothing_is_left_is_remembered_for_a_second_and_forgotten_when_the_limit_changes() {
    let world = World::new();
    let replica = world.replica();
    use_up(&world, &replica, 3).await;
    let asked = leases(&world);
    let begun = Instant::now();
    while begun.elapsed() < 10 * SECOND {
        let got = world.reserve(&replica, &world.ask(tenant(1), 3)).await.expect("an answer");
        assert_eq!(got.expect_err("nothing is left").used, 3);
        sleep(Duration::from_millis(1)).await;
    }
    assert!((8..=11).contains(&(leases(&world) - asked)), "a flood costs one question a second");

    assert!(matches!(world.reserve(&replica, &world.ask(tenant(1), 3)).await, Ok(Err(_))));
    assert!(matches!(replica.reserve_now(&world.ask(tenant(1), 3), world.now()), Attempt::Exhausted(_)));
    assert!(matches!(replica.reserve_now(&world.ask(tenant(1), 4), world.now()), Attempt::Wait), "raised");
    world.reserve(&replica, &world.ask(tenant(1), 4)).await.expect("a lease").expect("the fourth").consume();
    // Somewhere else the limit is lowered, and raised, and some is given back.
    assert!(matches!(
        world.reserve(&replica, &world.ask(tenant(1), 2)).await,
        Ok(Err(Exhausted { limit: 2, used: 4, .. }))
    ));
}

#[tokio::test(start_paused = true)]
async fn what_is_refunded_is_usable_at_once() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 1);
    let first = world.reserve(&replica, &ask).await.expect("a lease").expect("one");
    assert_eq!(first.remaining().map(|remaining| remaining.left), Some(0));
    assert!(matches!(world.reserve(&replica, &ask).await, Ok(Err(Exhausted { used: 1, .. }))));
    first.refund();
    let asked = leases(&world);
    reserved(replica.reserve_now(&ask, world.now())).consume();
    assert_eq!(leases(&world), asked, "nobody was asked for it");
    assert!(matches!(replica.reserve_now(&ask, world.now()), Attempt::Exhausted(_)));

    // One who waits for an answer gets what comes back meanwhile.
    let ask = world.ask(tenant(2), 1);
    let second = world.reserve(&replica, &ask).await.expect("a lease").expect("one");
    sleep(2 * SECOND).await;
    world.store.set(|mood| mood.takes = 10 * SECOND);
    let waiting = async {
        let begun = Instant::now();
        world.reserve(&replica, &ask).await.expect("a refund").expect("one").consume();
        begun.elapsed()
    };
    let refund = async {
        sleep(Duration::from_millis(50)).await;
        second.refund();
    };
    let (waited, ()) = tokio::join!(waiting, refund);
    assert_eq!(waited.as_millis(), 50);
}

#[tokio::test(start_paused = true)]
async fn what_remains_is_told() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 1_000);
    let mut held = Vec::new();
    for left in (990..1_000).rev() {
        let reservation = world.reserve(&replica, &ask).await.expect("a lease").expect("some");
        let period = world.key(tenant(1), Window::Day, MARCH).period;
        assert_eq!(reservation.remaining(), Some(Remaining { limit: 1_000, left, period }));
        held.push(reservation);
    }
    held.drain(..5).for_each(Reservation::refund);
    replica.flush(world.now()).await;
    let next = world.reserve(&replica, &ask).await.expect("a lease").expect("some");
    assert_eq!(next.remaining().map(|remaining| remaining.left), Some(994));
    next.consume();

    // What others have taken is known with the next flush.
    let other = world.replica();
    for _ in 0..300 {
        world.reserve(&other, &ask).await.expect("a lease").expect("some").consume();
    }
    replica.flush(world.now()).await;
    let next = world.reserve(&replica, &ask).await.expect("a lease").expect("some");
    assert!(next.remaining().is_some_and(|remaining| remaining.left <= 693), "{next:?}");
    assert_eq!(replica.unleased(tenant(1), &world.feature, MARCH).remaining(), None);
}

#[tokio::test(start_paused = true)]
async fn one_who_leaves_disturbs_nobody() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(30));
    let replica = world.replica();
    let ask = world.ask(tenant(1), 4);
    for _ in 0..3 {
        let left = tokio::time::timeout(Duration::from_millis(10), world.reserve(&replica, &ask)).await;
        assert!(left.is_err());
    }
    sleep(Duration::from_millis(30)).await;
    assert_eq!((leases(&world), world.standing(tenant(1))), (1, (0, 1)), "the question went on without them");
    reserved(replica.reserve_now(&ask, world.now())).consume();
    for _ in 1..4 {
        world.reserve(&replica, &ask).await.expect("a lease").expect("some").consume();
    }
    assert!(matches!(world.reserve(&replica, &ask).await, Ok(Err(_))));
    assert!(replica.finish(Instant::now() + SECOND).await);
    assert_eq!(world.standing(tenant(1)), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_asked_for_again() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 100);
    // Done, and not answered.
    world.store.set(|mood| mood.fails = (0, 100));
    let waiting = world.reserve(&replica, &ask);
    let heals = async {
        sleep(Duration::from_millis(60)).await;
        world.store.set(|mood| mood.fails = (0, 0));
    };
    let (got, ()) = tokio::join!(waiting, heals);
    got.expect("a lease").expect("some").consume();
    let asked = world.store.asked.lock().clone();
    assert!(asked.len() > 1 && asked.iter().all(|request| request.id == asked[0].id), "as it was");
    assert_eq!(world.standing(tenant(1)), (0, 12), "granted once");

    // Nobody waits any more: it is asked again with a flush, or by the next who needs it.
    world.store.set(|mood| mood.fails = (0, 100));
    let ask = world.ask(tenant(2), 100);
    assert_eq!(world.reserve(&replica, &ask).await.err(), Some(NoLease { certain: false }), "probes are answered");
    sleep(SECOND).await;
    world.store.set(|mood| mood.fails = (0, 0));
    sleep(SECOND).await;
    assert_eq!(world.standing(tenant(2)), (0, 12));
    assert!(matches!(replica.reserve_now(&ask, world.now()), Attempt::Wait));
    replica.flush(world.now()).await;
    sleep(Duration::from_millis(1)).await;
    reserved(replica.reserve_now(&ask, world.now())).consume();
    assert!(replica.finish(Instant::now() + SECOND).await);
    assert_eq!((world.standing(tenant(1)), world.standing(tenant(2))), ((1, 0), (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_leases_at_hand_are_used_and_nobody_waits() {
    let world = World::new();
    let replica = world.replica();
    let (held, cold) = (world.ask(tenant(1), 1_000), world.ask(tenant(2), 1_000));
    world.reserve(&replica, &held).await.expect("a lease").expect("some").consume();
    world.store.set(|mood| mood.is_down = true);
    assert_eq!(world.reserve(&replica, &cold).await.err(), Some(NoLease { certain: true }));
    let (begun, asked) = (Instant::now(), leases(&world));
    assert_eq!(world.reserve(&replica, &cold).await.err(), Some(NoLease { certain: true }));
    for _ in 1..125 {
        reserved(replica.reserve_now(&held, world.now())).consume();
    }
    assert!(matches!(replica.reserve_now(&held, world.now()), Attempt::Wait));
    assert_eq!(world.reserve(&replica, &held).await.err(), Some(NoLease { certain: true }));
    assert_eq!((begun.elapsed(), leases(&world)), (Duration::ZERO, asked), "nobody waits or asks");
    assert!(!replica.flush(world.now()).await);
    assert_eq!(world.store.posts.load(Ordering::Relaxed), 0);
    let text = String::from_utf8(replica.metrics.render().expect("metrics")).expect("a text");
    assert!(text.contains("dotmac_store_breaker_state{store=\"usage\"} 2\n"));

    world.store.set(|mood| mood.is_down = false);
    sleep(2 * SECOND).await;
    world.reserve(&replica, &cold).await.expect("a lease").expect("some").refund();
    assert!(replica.finish(Instant::now() + SECOND).await);
    assert_eq!((world.standing(tenant(1)), world.standing(tenant(2))), ((125, 0), (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn lateness_alone_is_no_outage_and_silence_is() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 1_000);
    world.store.set(|mood| mood.is_late = true);
    for _ in 0..10 {
        assert_eq!(world.reserve(&replica, &ask).await.err(), Some(NoLease { certain: false }));
        assert_eq!(replica.breaker.state(), BreakerState::Closed);
    }
    world.store.set(|mood| (mood.is_late, mood.takes) = (false, 10 * SECOND));
    assert_eq!(world.reserve(&replica, &world.ask(tenant(2), 9)).await.err(), Some(NoLease { certain: false }));
    // Whoever waits has somebody look, in time for an answer.
    world.store.set(|mood| mood.is_down = true);
    let begun = Instant::now();
    assert_eq!(world.reserve(&replica, &world.ask(tenant(3), 9)).await.err(), Some(NoLease { certain: true }));
    assert!(begun.elapsed() < DEADLINE / 2);
}

#[tokio::test(start_paused = true)]
async fn what_lies_idle_is_given_back_and_forgotten() {
    let world = World::new();
    let replica = world.replica();
    for id in 0..1_000 {
        world.reserve(&replica, &world.ask(tenant(id), 10_000)).await.expect("a lease").expect("some").consume();
    }
    // Nearly used up: of these every unit counts.
    world.reserve(&replica, &world.ask(tenant(5_000), 100)).await.expect("a lease").expect("some").consume();
    let held = || replica.leases.count();
    assert_eq!(held(), 1_001);
    replica.flush(world.now()).await;
    assert_eq!(world.standing(tenant(5_000)), (1, 11));
    sleep(5 * SECOND).await;
    replica.flush(world.now()).await;
    assert_eq!(world.standing(tenant(5_000)), (1, 0), "after one flush");
    assert_eq!(world.standing(tenant(7)), (1, 255), "others may be needed again");
    for _ in 0..6 {
        sleep(5 * SECOND).await;
        reserved(replica.reserve_now(&world.ask(tenant(7), 10_000), world.now())).consume();
        replica.flush(world.now()).await;
    }
    sleep(5 * SECOND).await;
    replica.flush(world.now()).await;
    assert_eq!(world.standing(tenant(8)), (1, 0));
    assert_eq!(world.standing(tenant(7)), (7, 249), "this one is used");
    assert_eq!(held(), 1, "nothing is kept of others");
    assert_eq!(world.counted(tenant(8)), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_holds_at_once_and_a_higher_one_does() {
    let world = World::new();
    let replica = world.replica();
    let other = world.replica();
    world.reserve(&replica, &world.ask(tenant(1), 10_000)).await.expect("a lease").expect("some").consume();
    let under_way = world.reserve(&replica, &world.ask(tenant(1), 10_000)).await.expect("a lease").expect("some");
    assert_eq!(world.standing(tenant(1)), (0, 256));
    // Lowered: what is left here was granted under another.
    assert!(matches!(replica.reserve_now(&world.ask(tenant(1), 3), world.now()), Attempt::Wait));
    world.reserve(&replica, &world.ask(tenant(1), 3)).await.expect("a lease").expect("the third").consume();
    assert!(matches!(world.reserve(&replica, &world.ask(tenant(1), 3)).await, Ok(Err(_))));
    assert!(matches!(world.reserve(&other, &world.ask(tenant(1), 3)).await, Ok(Err(_))));
    under_way.refund();
    assert!(
        matches!(replica.reserve_now(&world.ask(tenant(1), 3), world.now()), Attempt::Exhausted(_)),
        "it was had under another"
    );
    replica.flush(world.now()).await;
    assert_eq!(world.standing(tenant(1)), (2, 0));

    for _ in 0..50 {
        world.reserve(&replica, &world.ask(tenant(1), 60)).await.expect("a lease").expect("some of more").consume();
    }
    assert!(replica.finish(Instant::now() + SECOND).await);
    assert_eq!(world.standing(tenant(1)), (52, 0));
}

/// A grant that was asked for under a limit that has been lowered since.
#[tokio::test(start_paused = true)]
async fn what_is_granted_under_a_limit_that_holds_no_longer_is_not_used() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(20));
    let replica = world.replica();
    let (high, low) = (world.ask(tenant(1), 1_000), world.ask(tenant(1), 2));
    let early = world.reserve(&replica, &high);
    let late = async {
        sleep(Duration::from_millis(10)).await;
        join_all((0..5).map(|_| world.reserve(&replica, &low))).await
    };
    let (early, late) = tokio::join!(early, late);
    let taken = late.iter().filter(|got| matches!(got, Ok(Ok(_)))).count();
    assert!(matches!(early, Ok(Ok(_))), "{early:?}");
    assert!(taken <= 2, "{taken}");
    drop((early, late));
    assert!(replica.finish(Instant::now() + SECOND).await);
    assert_eq!(world.standing(tenant(1)), (1 + taken as u64, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_settled_where_it_was_reserved() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 10);
    let yesterday = world.key(tenant(1), Window::Day, MARCH);
    use_up(&world, &replica, 10).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        // Counted as used up until now.
        world.put_forward(Duration::from_hours(24));
        held.push(world.reserve(&replica, &ask).await.expect("a lease").expect("a new day"));
    }
    let [second, third] = <[Reservation; 2]>::try_from(held).expect("two");
    replica.flush(world.now()).await;
    second.consume();
    third.refund();
    assert!(replica.finish(Instant::now() + SECOND).await);
    let stands = |days: u64| {
        let day = MARCH.plus(Duration::from_hours(24 * days));
        world.store.kept.standing(&world.key(tenant(1), Window::Day, day))
    };
    assert_eq!(world.store.kept.standing(&yesterday), Some(Standing { used: 10, reserved: 0 }));
    assert_eq!([stands(1), stands(2)], [1, 0].map(|used| Some(Standing { used, reserved: 0 })));
    let counted = |days: u64| {
        let day = MARCH.plus(Duration::from_hours(24 * days)).day();
        world.store.kept.count_on(tenant(1), &world.feature, day)
    };
    assert_eq!([counted(0), counted(1), counted(2)], [10, 1, 0]);

    // What nobody can use any more is not kept until it lies idle.
    let replica = world.replica();
    world.reserve(&replica, &world.ask(tenant(2), 10_000)).await.expect("a lease").expect("some").consume();
    let yesterday = world.key(tenant(2), Window::Day, world.now().wall);
    assert_eq!(world.store.kept.standing(&yesterday), Some(Standing { used: 0, reserved: 256 }));
    world.put_forward(Duration::from_hours(24));
    replica.flush(world.now()).await;
    assert_eq!(world.store.kept.standing(&yesterday), Some(Standing { used: 1, reserved: 0 }));
}

#[tokio::test(start_paused = true)]
async fn anchored_windows_begin_where_the_licence_did_and_it_is_asked_once() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(5));
    let replica = world.replica();
    let ask = QuotaAsk { window: Window::Anchored, ..world.ask(tenant(1), 1_000) };
    let got = join_all((0..50).map(|_| world.reserve(&replica, &ask))).await;
    for got in got {
        let Period { start, end, .. } = got.expect("a lease").expect("some").remaining().expect("a lease").period;
        assert_eq!(
            (start.to_string(), end.map(|end| end.to_string())),
            ("2026-02-28".into(), Some("2026-03-31".into()))
        );
    }
    world.put_forward(Duration::from_hours(24 * 30));
    let next = world.reserve(&replica, &ask).await.expect("a lease").expect("some").remaining().expect("a lease");
    assert_eq!(next.period.start.to_string(), "2026-03-31");
    assert_eq!(world.store.anchors.load(Ordering::Relaxed), 1);

    // What can't be told is no reason to give up at once.
    let ask = QuotaAsk { window: Window::Anchored, ..world.ask(tenant(2), 1_000) };
    world.store.set(|mood| mood.fails = (100, 0));
    let heals = async {
        sleep(Duration::from_millis(60)).await;
        world.store.set(|mood| mood.fails = (0, 0));
    };
    let (got, ()) = tokio::join!(world.reserve(&replica, &ask), heals);
    got.expect("an anchor").expect("some").consume();
}

#[tokio::test(start_paused = true)]
async fn every_use_is_written_once_with_answers_lost_and_flushes_given_up() {
    let world = World::new();
    world.store.set(|mood| mood.takes = Duration::from_millis(10));
    let replica = world.replica();
    for id in 0..2_500 {
        replica.unleased(tenant(id), &world.feature, MARCH).consume();
        replica.unleased(tenant(id), &world.feature, MARCH).refund();
        drop(replica.unleased(tenant(id), &world.feature, MARCH));
    }
    replica.observe();
    assert_eq!(replica.metrics.usage_pending.get(), 2_500);
    // Given up while the batch is under way, and done, and not answered.
    let flush = tokio::time::timeout(Duration::from_millis(5), replica.flush(world.now())).await;
    assert!(flush.is_err());
    world.store.set(|mood| mood.fails = (0, 100));
    assert!(!replica.flush(world.now()).await);
    replica.unleased(tenant(1), &world.feature, MARCH).consume();
    assert!(!replica.flush(world.now()).await);
    world.store.set(|mood| mood.fails = (0, 0));
    sleep(2 * SECOND).await;
    assert!(replica.is_busy());
    assert!(replica.flush(world.now()).await);
    assert!(!replica.is_busy());
    assert!((0..2_500).all(|id| world.counted(tenant(id)) == if id == 1 { 3 } else { 2 }));
    let posted = world.store.posted.lock();
    assert!(posted.iter().all(|batch| batch.counts.len() <= 1_000));
    let ids: HashSet<_> = posted.iter().map(|batch| batch.id).collect();
    let firsts = posted.iter().take_while(|batch| batch.id == posted[0].id).count();
    assert!(firsts >= 3 && posted.len() == ids.len() + firsts - 1, "the first again and again, all others once");
    assert_eq!(replica.metrics.usage_recorded.get(), 5_001);
}

#[tokio::test(start_paused = true)]
async fn what_can_t_be_written_spoils_nothing_else() {
    let world = World::with(Everybody { but: HashSet::from([tenant(3)]) });
    let replica = world.replica();
    world.store.set(|mood| mood.refuses = Some(tenant(7)));
    for id in 0..1_000 {
        replica.unleased(tenant(id), &world.feature, MARCH).consume();
        replica.denied(tenant(id), &world.feature, Reason::LicenseExpired, false, MARCH);
    }
    for _ in 0..2 {
        assert!(!replica.flush(world.now()).await, "it may have been a mistake");
    }
    assert!(replica.flush(world.now()).await);
    let counted = (0..1_000).filter(|id| world.counted(tenant(*id)) == 1).count();
    assert_eq!((counted, world.counted(tenant(7)), world.counted(tenant(3))), (998, 0, 0));
    let metrics = &replica.metrics;
    let dropped = DropCause::ALL.map(|cause| metrics.usage_dropped.of(cause).get());
    assert_eq!((dropped, metrics.denial_events_dropped.get(), metrics.usage_recorded.get()), ([0, 1, 1], 1, 998));
    assert_eq!(metrics.usage_flushes.of(FlushOutcome::Failed).get(), 0);
    assert_eq!(replica.breaker.state(), BreakerState::Closed, "it answers");
    let denials = |posted: &crate::stores::Batch| posted.denials.len();
    assert!(world.store.posted.lock().iter().map(denials).sum::<usize>() >= 1_000);
    assert!(world.store.posts.load(Ordering::Relaxed) < 60, "it is found by halves");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_refused_for_what_it_tells_is_had_without() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 20);
    world.store.set(|mood| mood.refuses_reports = true);
    for _ in 0..20 {
        world.reserve(&replica, &ask).await.expect("a lease").expect("some").consume();
    }
    assert!(replica.flush(world.now()).await);
    assert_eq!(world.standing(tenant(1)), (20, 0));
    assert!(replica.metrics.quota_leases.of(LeaseOutcome::Failed).get() > 0, "some were refused");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_is_asked_again() {
    let world = World::new();
    let replica = world.replica();
    let ask = world.ask(tenant(1), 20);
    world.store.set(|mood| mood.panics = true);
    assert_eq!(world.reserve(&replica, &ask).await.err(), Some(NoLease { certain: false }));
    world.store.set(|mood| mood.panics = false);
    world.reserve(&replica, &ask).await.expect("a lease").expect("some").consume();
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_and_made_up_ids_push_out_nobody() {
    let world = World::new();
    let replica = world.replica_with(RecordOptions { pending: 100, ..World::options() });
    world.store.set(|mood| mood.is_down = true);
    for id in 0..150 {
        replica.unleased(tenant(id), &world.feature, MARCH).consume();
        replica.denied(tenant(id), &world.feature, Reason::FeatureNotInPlan, true, MARCH);
    }
    for id in 0..5_000 {
        replica.denied(tenant(id), &world.feature, Reason::NoLicense, false, MARCH);
        replica.denied(tenant(id), &world.feature, Reason::RouteDenied, false, MARCH);
    }
    for _ in 0..3 {
        replica.unleased(tenant(1), &world.feature, MARCH).consume();
        replica.denied(tenant(1), &world.feature, Reason::FeatureNotInPlan, true, MARCH.plus(SECOND));
    }
    replica.observe();
    let metrics = &replica.metrics;
    assert_eq!((metrics.usage_pending.get(), metrics.denial_events_pending.get()), (100, 1_100));
    assert_eq!(metrics.usage_dropped.of(DropCause::Full).get(), 50);
    assert_eq!(metrics.denial_events_dropped.get(), 50 + 4_000);
    world.store.set(|mood| mood.is_down = false);
    assert!(replica.finish(Instant::now() + 5 * SECOND).await);
    assert_eq!(world.counted(tenant(1)), 4);
    let posted = world.store.posted.lock();
    let denials: Vec<_> = posted.iter().flat_map(|batch| &batch.denials).filter(|d| d.tenant == tenant(1)).collect();
    let of = |reason, shadow| denials.iter().find(|d| d.reason == reason && d.shadow == shadow);
    let expected = (4, Timestamp::parse("2026-03-01T08:00:00Z").expect("a minute"));
    assert_eq!(of(Reason::FeatureNotInPlan, true).map(|d| (d.count, d.minute)), Some(expected));
    assert!(of(Reason::NoLicense, false).is_some() && denials.len() == 2);
}

#[tokio::test(start_paused = true)]
async fn each_threshold_is_told_once_by_one_replica() {
    let world = World::new();
    let replicas = [world.replica(), world.replica()];
    let mut heard = replicas.each_ref().map(|replica| replica.crossings());
    let mut crossings = Vec::new();
    for number in 0..20 {
        let replica = &replicas[number % 2];
        world.reserve(replica, &world.ask(tenant(1), 20)).await.expect("a lease").expect("some").consume();
        replica.flush(world.now()).await;
        for heard in &mut heard {
            while let Ok(crossing) = heard.try_recv() {
                crossings.push((number + 1, crossing.percent, crossing.used, crossing.limit));
            }
        }
    }
    assert_eq!(crossings, [(16, 80, 16, 20), (20, 100, 20, 20)]);
    let told =
        |percent| -> u64 { replicas.iter().map(|replica| replica.metrics.crossed_so_far("tickets", percent)).sum() };
    assert_eq!((told(80), told(100)), (1, 1));
}

/// A store that answers probes and nothing else, and more tenants than it can be asked about again.
#[tokio::test(start_paused = true)]
async fn asks_in_doubt_are_bounded() {
    let world = World::new();
    let replica = world.replica();
    world.store.set(|mood| mood.is_late = true);
    let asks: Vec<_> = (0..leases::DOUBTS as u128 + 500).map(|id| world.ask(tenant(id), 1_000)).collect();
    let got = join_all(asks.iter().map(|ask| world.reserve(&replica, ask))).await;
    assert!(got.iter().all(|got| matches!(got, Err(NoLease { certain: false }))));
    sleep(SECOND).await;
    let doubted = replica.leases.count();
    assert!(doubted > leases::DOUBTS, "{doubted}");
    for _ in 0..3 {
        sleep(SECOND).await;
        replica.flush(world.now()).await;
    }
    assert!(replica.leases.count() <= leases::DOUBTS, "{}", replica.leases.count());
    world.store.set(|mood| mood.is_late = false);
    assert!(replica.finish(Instant::now() + 10 * SECOND).await);
}

/// On threads, and by the real clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_use_up_a_limit_exactly() {
    const LIMIT: u64 = 20_000;
    let world = Arc::new(World::new());
    let replicas = [world.replica(), world.replica()];
    let requests = (0..8).map(|task| {
        let (world, replica) = (Arc::clone(&world), Arc::clone(&replicas[task % 2]));
        tokio::spawn(async move {
            let mut taken = 0;
            for number in 0..6_000 {
                // As one request's way is, where it waits.
                match replica.reserve(&world.ask(tenant(1), LIMIT), world.now(), Instant::now() + 10 * SECOND).await {
                    Ok(Ok(reservation)) if number % 7 == 0 => reservation.refund(),
                    Ok(Ok(reservation)) => {
                        reservation.consume();
                        taken += 1;
                    }
                    Ok(Err(exhausted)) => assert_eq!(exhausted.limit, LIMIT),
                    Err(error) => panic!("{error:?}"),
                }
            }
            taken
        })
    });
    let taken: Vec<u64> = join_all(requests).await.into_iter().map(|taken| taken.expect("no panic")).collect();
    for replica in &replicas {
        assert!(replica.finish(Instant::now() + 10 * SECOND).await);
    }
    let taken = taken.iter().sum::<u64>();
    assert!(taken <= LIMIT && taken > LIMIT * 9 / 10, "{taken}");
    assert_eq!((world.standing(tenant(1)), world.counted(tenant(1))), ((taken, 0), taken));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_for_the_interval_is_written_earlier() {
    let world = World::new();
    let options = RecordOptions { flush_interval: Duration::from_hours(1), pending: 100, ..World::options() };
    let replica = world.replica_with(options);
    let running = tokio::spawn(Arc::clone(&replica).run());
    // The first comes at any time within the interval.
    sleep(Duration::from_hours(1)).await;
    let write = async |number: u128| {
        for id in 0..number {
            replica.unleased(tenant(id), &world.feature, MARCH).consume();
        }
        sleep(11 * SECOND).await;
        world.counted(tenant(0))
    };
    assert_eq!((write(50).await, write(51).await), (0, 2));
    // One that fails is not left for an hour either.
    world.store.set(|mood| mood.fails = (100, 0));
    assert_eq!(write(51).await, 2);
    world.store.set(|mood| mood.fails = (0, 0));
    assert_eq!(write(1).await, 4);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn it_writes_by_itself_and_everything_at_the_end() {
    let world = World::new();
    let replica = world.replica();
    let running = tokio::spawn(Arc::clone(&replica).run());
    // It goes by the clock of the machine: a period that never ends is the same by either.
    let ask = QuotaAsk { window: Window::Lifetime, ..world.ask(tenant(1), 1_000_000) };
    let standing = || {
        let standing = world.store.kept.standing(&world.key(tenant(1), Window::Lifetime, MARCH)).expect("leased");
        (standing.used, standing.reserved)
    };
    world.reserve(&replica, &ask).await.expect("a lease").expect("some").consume();
    sleep(11 * SECOND).await;
    assert_eq!((world.counted(tenant(1)), standing()), (1, (1, 255)));

    let under_way = reserved(replica.reserve_now(&ask, world.now()));
    let finish = tokio::spawn({
        let replica = Arc::clone(&replica);
        async move { replica.finish(Instant::now() + 10 * SECOND).await }
    });
    sleep(SECOND).await;
    assert_eq!(standing(), (1, 1), "all but what is under way");
    assert!(!finish.is_finished());
    under_way.consume();
    assert!(finish.await.expect("no panic"));
    assert_eq!((world.counted(tenant(1)), standing()), (2, (2, 0)));
    running.abort();

    world.store.set(|mood| mood.is_down = true);
    replica.unleased(tenant(1), &world.feature, MARCH).consume();
    assert!(!replica.finish(Instant::now() + SECOND).await, "it can't be written");
    assert_eq!(world.counted(tenant(1)), 2);
}
