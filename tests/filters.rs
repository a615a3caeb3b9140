//! Admission filters in real nodes: swapped, slow, blocked for ever, panicking.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod subnet;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use corecast::{
    Advert, ArtifactId, Attribute, Class, Deliveries, Event, Executors, FilterThread, RecvError, Topic,
    TopicConfig, TopicId, Verdict,
};
use subnet::{Plan, Running, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

fn topic(number: u16) -> TopicConfig {
    TopicConfig::new(TopicId(number), "filtered")
}

/// A maker, which filters nothing, and a receiver.
struct Pair {
    maker: Running,
    receiver: Running,
    // Executors end with their last handle.
    _executors: Executors,
}

fn pair(lanes: u16, config: &TopicConfig) -> Pair {
    let (plan, executors): (Plan, Executors) = (subnet::plan(2, lanes), subnet::executors());
    let plain = TopicConfig::new(config.id, "plain").class(config.class);
    let maker = plan.start(&executors, 0, &plain);
    let receiver = plan.start(&executors, 1, config);
    wait_until("they are connected", || maker.node.stats().connected_peers == 1);
    Pair { maker, receiver, _executors: executors }
}

impl Pair {
    /// Another topic, without a filter.
    fn other(&self, number: u16) -> (Topic, Deliveries) {
        let maker = self.maker.node.topic(topic(number)).unwrap().0;
        (maker, self.receiver.node.topic(topic(number)).unwrap().1)
    }
}

fn make(topic: &Topic, count: u32) -> BTreeSet<ArtifactId> {
    let body = |number: u32| [&number.to_le_bytes()[..], &topic.id().0.to_le_bytes()].concat();
    let all =
        (0..count).map(|number| topic.broadcast_wait(body(number), Attribute::EMPTY, PATIENCE).unwrap());
    all.collect()
}

/// The next `count` deliveries, all different.
fn take(deliveries: &Deliveries, count: usize) -> BTreeSet<ArtifactId> {
    let mut taken = BTreeSet::new();
    while taken.len() < count {
        match deliveries.recv_timeout(PATIENCE) {
            Ok(Event::Delivered { artifact, .. }) => assert!(taken.insert(artifact.id), "one came twice"),
            other => panic!("{} of {count} came, then {other:?}", taken.len()),
        }
    }
    taken
}

fn nothing_comes(deliveries: &Deliveries) {
    assert_eq!(deliveries.recv_timeout(Duration::from_millis(100)), Err(RecvError::Empty));
}

/// On which CPUs the threads of this name may run.
fn threads(name: &str) -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let line = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    tasks
        .filter_map(|task| status(task.unwrap()))
        .filter(|text| line(text, "Name:") == name)
        .map(|text| line(&text, "Cpus_allowed_list:"))
        .collect()
}

/// Calls wait until the sender is dropped, and then say this.
fn blocking(verdict: Verdict) -> (mpsc::Sender<()>, impl Fn(&Advert) -> Verdict + Send + Sync) {
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    (release, move |_: &Advert| {
        let _ = blocked.lock().unwrap().recv();
        verdict
    })
}

#[test]
fn a_filter_that_blocks_for_ever_holds_back_its_own_topic_alone_and_can_be_replaced() {
    let (release, filter) = blocking(Verdict::Discard);
    let blocked = pair(2, &topic(100).filter(filter).filter_thread(FilterThread::Own));
    let (other, deliveries) = blocked.other(101);
    let held = make(&blocked.maker.topic, 50);
    wait_until("the filter is asked", || threads("filter-100").len() == 1);
    let gone_on = make(&other, 500);
    assert_eq!(take(&deliveries, 500), gone_on);
    nothing_comes(&blocked.receiver.deliveries);
    let stats = blocked.receiver.topic.filter_stats();
    assert!(
        stats.on_own_thread && stats.calls == 0 && stats.longest >= Duration::from_millis(50),
        "{stats:?}"
    );

    blocked.receiver.topic.set_filter(|_| Verdict::Want);
    assert_eq!(take(&blocked.receiver.deliveries, 50), held);
    // The verdict of the one before comes at last, and is no verdict any more.
    drop(release);
    wait_until("its thread ends", || threads("filter-100").len() == 1);
    let late = blocked.maker.topic.broadcast("late").unwrap();
    assert_eq!(take(&blocked.receiver.deliveries, 1), BTreeSet::from([late]));
    nothing_comes(&blocked.receiver.deliveries);
    assert!(blocked.receiver.node.shutdown(Duration::from_secs(5)));
    wait_until("the filter's thread ends with the node", || threads("filter-100").is_empty());
}

#[test]
fn a_node_stops_while_its_filter_blocks_and_the_thread_ends_once_it_returns() {
    let (release, filter) = blocking(Verdict::Want);
    let blocked = pair(1, &topic(102).filter(filter).filter_thread(FilterThread::Own));
    make(&blocked.maker.topic, 50);
    wait_until("the filter is asked", || threads("filter-102").len() == 1);
    let Running { node, topic, .. } = blocked.receiver;
    assert!(node.shutdown(Duration::from_secs(5)));
    drop(release);
    wait_until("its thread ends", || threads("filter-102").is_empty());
    // With a handle that outlives the node, and at most the call that it was in.
    assert!(topic.filter_stats().calls <= 1, "{:?}", topic.filter_stats());
}

#[test]
fn a_slow_filter_is_taken_off_the_lane_and_then_may_block() {
    let blocks = Arc::new(AtomicBool::new(false));
    let sleeps = blocks.clone();
    let slow = pair(
        2,
        &topic(103).filter(move |_| {
            std::thread::sleep(Duration::from_millis(2));
            while sleeps.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
            }
            Verdict::Want
        }),
    );
    assert!(!slow.receiver.topic.filter_stats().on_own_thread);
    let (other, deliveries) = slow.other(104);
    let made = make(&slow.maker.topic, 200);
    assert_eq!(take(&slow.receiver.deliveries, 200), made);
    let stats = slow.receiver.topic.filter_stats();
    assert!(stats.on_own_thread && stats.calls == 200 && stats.overruns == 200, "{stats:?}");
    // A lane started it, and yet it may run where the test may.
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    assert_eq!(threads("filter-103"), [own]);
    blocks.store(true, Ordering::Relaxed);
    let held = slow.maker.topic.broadcast("held").unwrap();
    let gone_on = make(&other, 500);
    assert_eq!(take(&deliveries, 500), gone_on);
    nothing_comes(&slow.receiver.deliveries);
    blocks.store(false, Ordering::Relaxed);
    assert_eq!(take(&slow.receiver.deliveries, 1), BTreeSet::from([held]));
}

#[test]
fn more_than_the_filters_queue_holds_is_asked_in_turn_and_nothing_is_lost() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let config = topic(105).filter_thread(FilterThread::Own).filter(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Verdict::Want
    });
    let pair = pair(2, &config);
    let made = make(&pair.maker.topic, 4_000);
    assert_eq!(take(&pair.receiver.deliveries, 4_000), made);
    assert_eq!(asked.load(Ordering::Relaxed), 4_000);
}

#[test]
fn a_filter_that_panics_means_later_is_counted_and_may_be_replaced() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some("as the test wants") {
            hook(panic);
        }
    }));
    for (number, thread) in [(106, FilterThread::Lane), (107, FilterThread::Own)] {
        let config = topic(number).filter_thread(thread).filter(|advert| {
            assert!(advert.attribute.as_bytes() != b"bad", "as the test wants");
            Verdict::Want
        });
        let pair = pair(1, &config);
        let bad = pair.maker.topic.broadcast_with("bad", Attribute::new(b"bad").unwrap()).unwrap();
        let good = pair.maker.topic.broadcast("good").unwrap();
        assert_eq!(take(&pair.receiver.deliveries, 1), BTreeSet::from([good]));
        wait_until("it is counted", || pair.receiver.node.stats().engine.filter_panics == 1);
        assert_eq!(pair.receiver.topic.filter_stats().panics, 1);
        assert!(pair.receiver.node.is_healthy());
        pair.receiver.topic.set_filter(|_| Verdict::Want);
        assert_eq!(take(&pair.receiver.deliveries, 1), BTreeSet::from([bad]));
    }
}

#[test]
fn a_filter_is_set_and_removed_at_any_time_and_what_was_later_is_asked_at_once() {
    for (number, thread) in [(108, FilterThread::Lane), (109, FilterThread::Own)] {
        let pair = pair(2, &topic(number).filter_thread(thread).class(Class::High));
        let Running { topic, deliveries, .. } = &pair.receiver;
        let made = make(&pair.maker.topic, 20);
        assert_eq!(take(deliveries, 20), made);
        topic.set_filter(|_| Verdict::Later);
        let waits = pair.maker.topic.broadcast("waits").unwrap();
        wait_until("it is judged", || topic.filter_stats().calls >= 1);
        nothing_comes(deliveries);
        topic.set_filter(|advert| if advert.size == 5 { Verdict::Want } else { Verdict::Discard });
        assert_eq!(take(deliveries, 1), BTreeSet::from([waits]));
        let calls = topic.filter_stats().calls;
        let unwanted = pair.maker.topic.broadcast("not wanted").unwrap();
        let wanted = pair.maker.topic.broadcast("fives").unwrap();
        assert_eq!(take(deliveries, 1), BTreeSet::from([wanted]));
        wait_until("both are judged", || topic.filter_stats().calls == calls + 2);
        topic.remove_filter();
        let again = pair.maker.topic.broadcast("all again").unwrap();
        // What was discarded stays so. On another thread it may have been judged, and the lane not have heard of it.
        let came = take(deliveries, 1);
        assert!(came.contains(&again) || thread == FilterThread::Own && came.contains(&unwanted));
        assert!(!topic.filter_stats().on_own_thread);
    }
}

/// Each change finds the lanes parked, or about to be: none is missed.
#[test]
fn no_change_is_lost_however_it_falls() {
    for (number, thread) in [(110, FilterThread::Lane), (111, FilterThread::Own)] {
        let window = Arc::new(AtomicU64::new(0));
        let end = window.clone();
        let config = topic(number).filter_thread(thread).filter(move |advert| {
            let height = u64::from_le_bytes(advert.attribute.as_bytes().try_into().unwrap());
            if height < end.load(Ordering::SeqCst) { Verdict::Want } else { Verdict::Later }
        });
        let pair = pair(2, &config);
        for height in 0..300u64 {
            let attribute = Attribute::new(&height.to_le_bytes()).unwrap();
            let calls = pair.receiver.topic.filter_stats().calls;
            let id = pair.maker.topic.broadcast_with(height.to_le_bytes().to_vec(), attribute).unwrap();
            if height % 3 == 0 {
                wait_until("it is judged", || pair.receiver.topic.filter_stats().calls > calls);
            }
            std::thread::sleep(Duration::from_micros(height % 7 * 50));
            window.store(height + 1, Ordering::SeqCst);
            pair.receiver.topic.filter_changed();
            assert_eq!(take(&pair.receiver.deliveries, 1), BTreeSet::from([id]));
        }
    }
}

#[test]
fn the_verdict_on_what_was_withdrawn_meanwhile_does_no_harm() {
    let (release, filter) = blocking(Verdict::Want);
    let pair = pair(1, &topic(112).filter(filter).filter_thread(FilterThread::Own));
    let gone = pair.maker.topic.broadcast("gone").unwrap();
    wait_until("the filter is asked", || threads("filter-112").len() == 1);
    pair.maker.topic.abort(&gone).unwrap();
    wait_until("it is withdrawn", || pair.maker.node.stats().engine.clears_sent == 1);
    std::thread::sleep(Duration::from_millis(50));
    drop(release);
    let stays = pair.maker.topic.broadcast("stays").unwrap();
    assert_eq!(take(&pair.receiver.deliveries, 1), BTreeSet::from([stays]));
    nothing_comes(&pair.receiver.deliveries);
    let back = pair.maker.topic.broadcast("gone").unwrap();
    assert_eq!(take(&pair.receiver.deliveries, 1), BTreeSet::from([back]));
}
