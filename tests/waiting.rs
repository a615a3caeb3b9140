//! Broadcasts that wait for room, in real nodes.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod subnet;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use corecast::{
    ArtifactId, Attribute, BroadcastError, Broadcasting, CommandError, Event, Topic, TopicConfig, TopicId,
};
use subnet::{Running, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// One node, with so many slots.
fn node(slots: u32) -> Running {
    let mut config = TopicConfig::new(TopicId(1), "test");
    config.slots = slots;
    subnet::start(1, 1, &config).pop().unwrap()
}

fn wait(topic: &Topic, body: &str, timeout: Duration) -> Result<ArtifactId, BroadcastError> {
    topic.broadcast_wait(body.to_owned(), Attribute::EMPTY, timeout)
}

fn later(topic: &Topic, body: &str) -> Broadcasting {
    topic.broadcast_async(body.to_owned(), Attribute::EMPTY)
}

/// Counts how often a task is woken, and wakes this thread.
struct Task {
    thread: thread::Thread,
    woken: AtomicU32,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Task {
    fn new() -> (Arc<Task>, Waker) {
        let task = Arc::new(Task { thread: thread::current(), woken: AtomicU32::new(0) });
        (task.clone(), Waker::from(task))
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst) > 0
    }
}

fn poll(broadcasting: &mut Broadcasting, waker: &Waker) -> Poll<Result<ArtifactId, BroadcastError>> {
    pin!(broadcasting).poll(&mut Context::from_waker(waker))
}

/// Runs a broadcast to its end, as a runtime would.
fn block_on(mut broadcasting: Broadcasting) -> Result<ArtifactId, BroadcastError> {
    let (_, waker) = Task::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Poll::Ready(done) = poll(&mut broadcasting, &waker) {
            return done;
        }
        assert!(Instant::now() < deadline, "it was never woken");
        thread::park_timeout(PATIENCE);
    }
}

#[test]
fn with_room_nobody_waits() {
    let node = node(2);
    wait(&node.topic, "a thread's", Duration::ZERO).unwrap();
    block_on(later(&node.topic, "a task's")).unwrap();
    assert_eq!(node.topic.broadcast("third"), Err(BroadcastError::Full));
}

#[test]
fn the_deadline_passes_and_the_place_in_line_is_free() {
    let node = node(1);
    let first = node.topic.broadcast("first").unwrap();
    let start = Instant::now();
    assert_eq!(wait(&node.topic, "second", SHORT), Err(BroadcastError::Timeout));
    assert!(start.elapsed() >= SHORT);
    node.topic.abort(&first).unwrap();
    wait_until("nobody is before us", || node.topic.broadcast("third").is_ok());
}

#[test]
fn what_can_never_be_broadcast_does_not_wait() {
    let node = node(1);
    let (limit, size) = (node.topic.artifact_bytes(), node.topic.artifact_bytes() as usize + 1);
    let body = vec![0; size];
    let error = Err(BroadcastError::TooLarge { size, limit });
    assert_eq!(node.topic.broadcast_wait(body.clone(), Attribute::EMPTY, PATIENCE), error);
    assert_eq!(block_on(node.topic.broadcast_async(body, Attribute::EMPTY)), error);
}

#[test]
fn an_abort_wakes_a_thread_and_a_task() {
    let node = node(1);
    let first = node.topic.broadcast("first").unwrap();
    let (started, waiting) = mpsc::channel();
    let topic = node.topic.clone();
    let thread = thread::spawn(move || {
        started.send(()).unwrap();
        wait(&topic, "a thread's", PATIENCE)
    });
    waiting.recv().unwrap();
    thread::sleep(SHORT);
    node.topic.abort(&first).unwrap();
    let second = thread.join().unwrap().unwrap();

    let (task, waker) = Task::new();
    let mut third = later(&node.topic, "a task's");
    assert!(poll(&mut third, &waker).is_pending());
    node.topic.abort(&second).unwrap();
    wait_until("the task is woken", || task.is_woken());
    assert!(matches!(poll(&mut third, &waker), Poll::Ready(Ok(_))));
}

#[test]
fn bytes_are_waited_for_as_slots_are_and_nobody_overtakes_who_needs_more() {
    let mut config = TopicConfig::new(TopicId(1), "test");
    config.active_bytes = 8 << 20;
    let node = subnet::start(1, 1, &config).pop().unwrap();
    let all: Vec<_> = (0..4u8).map(|n| node.topic.broadcast(vec![n; 2 << 20]).unwrap()).collect();
    let (task, waker) = Task::new();
    let mut large = node.topic.broadcast_async(vec![9; 4 << 20], Attribute::EMPTY);
    assert!(poll(&mut large, &waker).is_pending());
    node.topic.abort(&all[0]).unwrap();
    wait_until("it is called", || task.is_woken());
    assert!(poll(&mut large, &waker).is_pending());
    assert_eq!(node.topic.broadcast("small"), Err(BroadcastError::Full));
    assert_eq!(node.topic.validate(&all[1]), Err(CommandError::Full));
    node.topic.abort(&all[1]).unwrap();
    assert!(block_on(large).is_ok());
    assert_eq!(node.topic.broadcast("small"), Err(BroadcastError::Full));
}

#[test]
fn who_waits_is_served_in_turn_and_who_gives_up_holds_up_nobody() {
    let node = node(1);
    let mut active = node.topic.broadcast("active").unwrap();
    let mut waiting: Vec<_> = (0..6)
        .map(|n| {
            let (task, waker) = Task::new();
            let mut broadcasting = later(&node.topic, &n.to_string());
            assert!(poll(&mut broadcasting, &waker).is_pending());
            (broadcasting, task, waker)
        })
        .collect();
    // One in the middle, then the first.
    drop(waiting.remove(3));
    drop(waiting.remove(0));
    for (mut broadcasting, task, waker) in waiting {
        assert!(node.topic.broadcast("a newcomer").is_err());
        node.topic.abort(&active).unwrap();
        wait_until("the next is called", || task.is_woken());
        // It may have been called before, when it became the first.
        let deadline = Instant::now() + PATIENCE;
        active = loop {
            match poll(&mut broadcasting, &waker) {
                Poll::Ready(done) => break done.unwrap(),
                Poll::Pending => thread::park_timeout(Duration::from_millis(1)),
            }
            assert!(Instant::now() < deadline, "it is not served");
        };
    }
    node.topic.abort(&active).unwrap();
    wait_until("the line is empty", || node.topic.broadcast("a newcomer").is_ok());
}

#[test]
fn a_full_queue_of_commands_is_waited_for() {
    let topic = TopicConfig::new(TopicId(1), "test");
    let (plan, executors) = (subnet::plan(1, 1), subnet::executors());
    let mut config = corecast::Config::new(plan.identity(0), plan.membership);
    config.settings.commands = 1;
    let node = corecast::Node::start_on(&executors, config).unwrap();
    let (topic, _deliveries) = node.topic(topic).unwrap();
    let ids: Vec<BTreeSet<ArtifactId>> = thread::scope(|scope| {
        let make = |thread: u32| {
            let body = move |n: u32| [thread.to_le_bytes(), n.to_le_bytes()].concat();
            let topic = &topic;
            move || {
                (0..500).map(|n| topic.broadcast_wait(body(n), Attribute::EMPTY, PATIENCE).unwrap()).collect()
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(make(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ids.iter().map(BTreeSet::len).sum::<usize>(), 2_000);
    wait_until("all are active", || node.stats().engine.broadcasts == 2_000);
}

#[test]
fn who_waits_when_the_node_stops_is_told_so() {
    let Running { node, topic, deliveries } = node(1);
    topic.broadcast("first").unwrap();
    let (task, waker) = Task::new();
    let mut tasks: Vec<_> = (0..3).map(|n| later(&topic, &n.to_string())).collect();
    tasks.iter_mut().for_each(|task| assert!(poll(task, &waker).is_pending()));
    let threads: Vec<_> = (3..6)
        .map(|n| {
            let topic = topic.clone();
            thread::spawn(move || wait(&topic, &n.to_string(), Duration::MAX))
        })
        .collect();
    thread::sleep(SHORT);
    assert!(node.shutdown(Duration::from_secs(5)));
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Err(BroadcastError::Stopped));
    }
    assert_eq!(task.woken.load(Ordering::SeqCst), 3);
    for mut task in tasks {
        assert_eq!(poll(&mut task, &waker), Poll::Ready(Err(BroadcastError::Stopped)));
    }
    assert_eq!(wait(&topic, "late", PATIENCE), Err(BroadcastError::Stopped));
    assert_eq!(topic.broadcast("late"), Err(BroadcastError::Stopped));
    assert_eq!(deliveries.recv(), None);
}

/// Threads and tasks at once, with a slot for each fourth of them, and a receiver that counts.
#[test]
fn many_waiters_get_in_exactly_once_each() {
    const WAITERS: u32 = 32;
    const EACH: u32 = 100;
    let mut config = TopicConfig::new(TopicId(1), "test");
    config.slots = WAITERS / 4;
    let subnet = subnet::start(2, 2, &config);
    let (topic, deliveries) = (&subnet[0].topic, &subnet[1].deliveries);
    let got = thread::scope(|scope| {
        for waiter in 0..WAITERS {
            scope.spawn(move || {
                for n in 0..EACH {
                    let body = [waiter.to_le_bytes(), n.to_le_bytes()].concat();
                    let broadcasting = topic.broadcast_async(body.clone(), Attribute::EMPTY);
                    if waiter % 2 == 0 {
                        block_on(broadcasting).unwrap();
                    } else {
                        drop(broadcasting);
                        topic.broadcast_wait(body, Attribute::EMPTY, PATIENCE).unwrap();
                    }
                }
            });
        }
        let (mut got, mut bodies) = (0, BTreeSet::new());
        while got < WAITERS * EACH {
            match deliveries.recv_timeout(PATIENCE) {
                Ok(Event::Delivered { artifact, .. }) => {
                    got += 1;
                    assert!(bodies.insert(artifact.bytes.clone()), "one came twice");
                    while topic.abort(&artifact.id).is_err() {
                        thread::yield_now();
                    }
                }
                Ok(Event::Withdrawn { .. }) => (),
                other => panic!("{got} came, then {other:?}"),
            }
        }
        got
    });
    assert_eq!(got, WAITERS * EACH);
    wait_until("all have gone", || subnet[0].node.stats().engine.aborts == u64::from(WAITERS * EACH));
    assert_eq!(subnet[0].node.stats().engine.broadcasts, u64::from(WAITERS * EACH));
}
