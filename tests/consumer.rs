//! A consumer that takes nothing holds back its own topic alone: real nodes, a counting allocator, and their printed bounds.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod live;
mod subnet;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use corecast::{
    ArtifactId, Attribute, Config, Deliveries, Event, Executors, Node, Topic, TopicConfig, TopicId,
};
use subnet::{Plan, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
const ACTIVE: usize = 200;
const STALLED: TopicId = TopicId(1);
const TAKEN: TopicId = TopicId(2);

/// A node with small bounds, and its two topics.
struct Member {
    node: Node,
    stalled: (Topic, Deliveries),
    taken: (Topic, Deliveries),
}

fn member(plan: &Plan, executors: &Executors, index: usize) -> Member {
    let mut config = Config::new(plan.identity(index), plan.membership.clone());
    config.settings.artifact_bytes = 64 << 10;
    config.settings.socket_buffer = 256 << 10;
    let node = Node::start_on(executors, config).unwrap();
    let topic = |id, queue| {
        let mut config = TopicConfig::new(id, "test");
        (config.slots, config.queue) = (2 * ACTIVE as u32, queue);
        (config.active_bytes, config.pending_bytes) = (8 << 20, 512 << 10);
        node.topic(config).unwrap()
    };
    Member { stalled: topic(STALLED, 16), taken: topic(TAKEN, 4096), node }
}

fn body(number: usize, size: usize) -> Vec<u8> {
    let mut body = vec![7; size];
    body[..8].copy_from_slice(&(number as u64).to_le_bytes());
    body
}

/// Makes artifacts, of which the last [`ACTIVE`] stay so. What is active then.
fn churn(topic: &Topic, numbers: std::ops::Range<usize>, size: usize) -> BTreeSet<ArtifactId> {
    let mut active = VecDeque::new();
    for number in numbers {
        active.push_back(topic.broadcast_wait(body(number, size), Attribute::EMPTY, PATIENCE).unwrap());
        if active.len() > ACTIVE {
            let oldest = active.pop_front().unwrap();
            while topic.abort(&oldest).is_err() {
                std::thread::yield_now();
            }
        }
    }
    active.into_iter().collect()
}

/// Takes events until all of these were delivered, each once.
fn take_all(topic: &Topic, deliveries: &Deliveries, wanted: &BTreeSet<ArtifactId>) {
    let (mut seen, mut left) = (BTreeSet::new(), wanted.clone());
    while !left.is_empty() {
        match deliveries.recv_timeout(PATIENCE) {
            Ok(Event::Delivered { artifact, .. }) => {
                assert!(seen.insert(artifact.id), "one came twice");
                left.remove(&artifact.id);
                while topic.release(&artifact.id).is_err() {
                    std::thread::yield_now();
                }
            }
            Ok(_) => (),
            other => panic!("{} of {} are missing: {other:?}", left.len(), wanted.len()),
        }
    }
    while let Ok(event) = deliveries.recv_timeout(Duration::from_millis(100)) {
        if let Event::Delivered { artifact, .. } = event {
            assert!(seen.insert(artifact.id), "one came twice");
        }
    }
}

/// One test, for the count is the whole process's.
#[test]
fn a_consumer_that_takes_nothing_holds_back_its_own_topic_alone() {
    // Below the threshold of pushes and above it.
    for size in [4 << 10, 16 << 10] {
        let before = live::bytes();
        let (plan, executors) = (subnet::plan(2, 2), subnet::executors());
        let (maker, receiver) = (member(&plan, &executors, 0), member(&plan, &executors, 1));
        wait_until("they are connected", || maker.node.stats().connected_peers == 1);
        let bound = (maker.node.limits().total_bytes() + receiver.node.limits().total_bytes()) as usize;

        // Both ends of the queue are full, and far more goes by than all bounds together.
        let rounds = 2 * bound / size;
        let active = churn(&maker.stalled.0, 0..rounds, size);
        wait_until("the queue is full", || receiver.stalled.1.len() >= 16);
        let gone_on = churn(&maker.taken.0, rounds..rounds + ACTIVE, size);
        take_all(&receiver.taken.0, &receiver.taken.1, &gone_on);
        let held = live::bytes() - before;
        assert!(held <= bound, "{held} bytes are live, the bounds allow {bound}");

        let lag = maker.stalled.0.lag();
        assert!(lag.len() == 1 && lag[0].connected && lag[0].updates <= ACTIVE as u64, "{lag:?}");
        take_all(&receiver.stalled.0, &receiver.stalled.1, &active);
    }
}
