//! Accounted and real memory: a counting allocator beside the engine's own books and the bounds that a node prints.

mod carrier;
mod live;

use carrier::{Subnet, topic};
use corecast::config::{Granted, Limits, Settings, TopicConfig};
use corecast::types::ArtifactId;

const NODES: usize = 3;
const SLOTS: u32 = 2_000;

/// What the printed bounds allow the tables of one node.
fn table_bytes(topic: &TopicConfig) -> u64 {
    let granted = Granted { receive: 8 << 20, send: 8 << 20 };
    let mut limits = Limits::derive(&Settings::default(), NODES, 1, granted);
    limits.add_topic(topic);
    let tables = limits.lines().iter().filter(|line| line.what.ends_with("slot tables"));
    tables.map(|line| line.bytes).sum()
}

fn live() -> u64 {
    live::bytes() as u64
}

/// Every node broadcasts as much as its table holds, and holds what the others broadcast.
fn fill(subnet: &mut Subnet, body_bytes: usize) -> Vec<Vec<ArtifactId>> {
    let mut made = Vec::new();
    for node in 0..NODES {
        let body = |number: u32| {
            let mut body = vec![node as u8; body_bytes];
            body[1..5].copy_from_slice(&number.to_le_bytes());
            body
        };
        made.push((0..SLOTS).map(|number| subnet.broadcast(node, &body(number))).collect());
    }
    subnet.settle();
    for node in 0..NODES {
        assert_eq!(subnet.delivered(node).len(), (NODES - 1) * SLOTS as usize);
    }
    made
}

fn empty(subnet: &mut Subnet, made: &[Vec<ArtifactId>]) {
    for (node, ids) in made.iter().enumerate() {
        ids.iter().for_each(|id| subnet.abort(node, id));
    }
    subnet.settle();
    for node in 0..NODES {
        drop(subnet.events(node));
    }
}

/// One test, for the count is the whole process's.
#[test]
fn real_memory_follows_the_books_stays_under_the_bounds_and_comes_back() {
    let mut topic = topic();
    topic.slots = SLOTS;
    // Pushed, so that every node has a copy of its own.
    for body_bytes in [200, 1_000] {
        let mut subnet = Subnet::new(NODES, &topic);
        let before = live();
        let made = fill(&mut subnet, body_bytes);
        let (held, books) = (live() - before, subnet.pool_bytes());
        let bound = books + NODES as u64 * table_bytes(&topic);
        assert!(held >= books, "{held} bytes are live, the books say {books}: they count what is not there");
        assert!(held <= bound, "{held} bytes are live; bodies have {books}, the bounds allow {bound} in all");
        empty(&mut subnet, &made);
        drop(made);
        assert_eq!(subnet.pool_bytes(), 0);
        // Tables keep their capacity, as the bounds say; bodies are gone.
        let kept = live() - before;
        assert!(kept <= NODES as u64 * table_bytes(&topic), "{kept} bytes are left of {held}");
        let made = fill(&mut subnet, body_bytes);
        empty(&mut subnet, &made);
        drop(made);
        let again = live() - before;
        assert!(
            again <= kept + kept / 10,
            "{again} bytes are left after a second time, {kept} after the first"
        );
    }
}
