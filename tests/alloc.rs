//! Allocations of the data path in the steady state: how many each artifact costs its maker and each receiver, in the engine and
//! the transport together. The bounds only ever shrink.
//!
//! `CORECAST_ALLOC_SITES=1 cargo test --test alloc -- --nocapture --test-threads 1` lists where they come from.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod mesh;
mod tally;

use std::time::Duration;

use bytes::Bytes;
use corecast::config::{TopicConfig, Verdict};
use corecast::types::{ArtifactId, Class};
use mesh::{Mesh, Step, TOPIC};
use tally::Tally;

const NODES: usize = 4;

/// Bodies of `size` bytes, `at_once` of them active at a time.
struct Load {
    size: usize,
    at_once: usize,
    /// Rounds before counting, and rounds counted.
    rounds: (usize, usize),
    delivers: bool,
}

impl Load {
    const fn small(at_once: usize) -> Load {
        Load { size: 1 << 10, at_once, rounds: (40, 40), delivers: true }
    }

    const BULK: Load = Load { size: 1 << 20, at_once: 16, rounds: (6, 4), delivers: true };
    /// Nothing but names: the receivers' filter wants none of it.
    const NAMES: Load = Load { size: 1 << 10, at_once: 64, rounds: (40, 40), delivers: false };
}

/// Allocations of a maker for all its receivers together, and of each receiver.
#[derive(Debug, Clone, Copy)]
struct Cost {
    maker: f64,
    receiver: f64,
}

impl Cost {
    /// Fails when there are more than `bound`.
    fn check(self, what: &str, bound: Cost) {
        println!("{what}: {:.3} at the maker, {:.3} at each receiver", self.maker, self.receiver);
        for (who, found, bound) in
            [("the maker", self.maker, bound.maker), ("each receiver", self.receiver, bound.receiver)]
        {
            assert!(found <= bound, "{what}: {found:.3} allocations of {who}; {bound} at most");
        }
    }

    fn per(self, divisor: f64) -> Cost {
        Cost { maker: self.maker / divisor, receiver: self.receiver / divisor }
    }
}

fn bound(maker: f64, receiver: f64) -> Cost {
    Cost { maker, receiver }
}

fn topic() -> TopicConfig {
    TopicConfig::new(TOPIC, "test")
}

fn mesh(topic: &TopicConfig) -> Mesh {
    Mesh::new(NODES, topic, tally::enter)
}

/// Whether to list where allocations come from.
fn lists() -> bool {
    std::env::var_os("CORECAST_ALLOC_SITES").is_some()
}

/// Node 0 broadcasts, and all others have what they want of it.
fn tell(mesh: &mut Mesh, load: &Load, round: usize) -> Vec<ArtifactId> {
    let body = |number: usize| {
        let mut body = vec![7; load.size];
        body[..8].copy_from_slice(&((round * load.at_once + number) as u64).to_le_bytes());
        Bytes::from(body)
    };
    let bodies: Vec<_> = (0..load.at_once).map(body).collect();
    let ids = bodies.into_iter().map(|body| mesh.broadcast(0, body)).collect();
    if load.delivers {
        let all = |mesh: &Mesh| (1..NODES).all(|node| mesh.delivered(node) == load.at_once);
        mesh.run(Duration::from_secs(5), all);
        (1..NODES).for_each(|node| drop(mesh.take_delivered(node)));
    }
    // Until the last acknowledgement.
    mesh.run_for(Duration::from_millis(60));
    ids
}

fn abort(mesh: &mut Mesh, ids: &[ArtifactId]) {
    ids.iter().for_each(|id| mesh.abort(0, *id));
    mesh.run_for(Duration::from_millis(60));
    for node in 0..NODES {
        assert_eq!(mesh.census(node).artifacts, 0, "node {node} still knows of what was aborted");
    }
}

/// Counts what `work` costs for each of `artifacts`.
fn count(artifacts: usize, mut work: impl FnMut()) -> Cost {
    tally::clear();
    work();
    let sum = |node: usize| tally::of_node(node).iter().map(|tally| tally.calls).sum::<u64>() as f64;
    let (maker, receivers) = (sum(0), (1..NODES).map(sum).sum::<f64>());
    if lists() {
        list("maker", artifacts, tally::sites(|node| node == 0));
        list("each receiver", artifacts * (NODES - 1), tally::sites(|node| node > 0));
    }
    Cost { maker, receiver: receivers / (NODES - 1) as f64 }.per(artifacts as f64)
}

fn list(who: &str, per: usize, sites: Vec<(Step, String, Tally)>) {
    println!("  of {who}:");
    for (step, site, Tally { calls, bytes }) in sites {
        let (each, bytes) = (calls as f64 / per as f64, bytes as f64 / calls as f64);
        println!("  {each:9.4} × {bytes:.0} B  {step:?}  {site}");
    }
}

/// Counts only what `work` does.
fn counted<T>(work: impl FnOnce() -> T) -> T {
    tally::count(true, lists());
    let done = work();
    tally::count(false, false);
    done
}

/// What an artifact costs until all have it, and what it costs to abort it. Warmed up before.
fn costs(mesh: &mut Mesh, load: &Load) -> (Cost, Cost) {
    let (warm, rounds) = load.rounds;
    for round in 0..warm {
        let ids = tell(mesh, load, round);
        abort(mesh, &ids);
    }
    let told = count(rounds * load.at_once, || {
        for round in warm..warm + rounds {
            let ids = counted(|| tell(mesh, load, round));
            abort(mesh, &ids);
        }
    });
    let aborted = count(rounds * load.at_once, || {
        for round in warm + rounds..warm + 2 * rounds {
            let ids = tell(mesh, load, round);
            counted(|| abort(mesh, &ids));
        }
    });
    (told, aborted)
}

#[test]
fn the_count_sees_every_kind_of_allocation() {
    let allocate = || {
        let mut grown = Vec::<u64>::with_capacity(1);
        grown.reserve_exact(100);
        std::hint::black_box((grown, Box::new(1), vec![0_u8; 10]));
    };
    tally::clear();
    tally::enter(Some((2, Step::Links)));
    allocate();
    counted(allocate);
    tally::enter(None);
    counted(allocate);
    let tally = tally::of_node(2)[Step::Links as usize];
    assert_eq!((tally.calls, tally.bytes), (4, 8 + 800 + 4 + 10));
    assert_eq!(tally::of_node(1).iter().map(|tally| tally.calls).sum::<u64>(), 0);
}

#[test]
fn small_artifacts_many_at_a_time() {
    let (told, aborted) = costs(&mut mesh(&topic()), &Load::small(64));
    told.check("1 KiB, 64 at a time", bound(0.92, 2.4));
    aborted.check("aborting them", bound(0.3, 0.03));
}

#[test]
fn a_small_artifact_alone() {
    let (told, aborted) = costs(&mut mesh(&topic()), &Load::small(1));
    told.check("1 KiB, one at a time", bound(18.6, 8.5));
    aborted.check("aborting it", bound(18.8, 3.4));
}

/// Also for each datagram, which the maker sends one by one and a receiver gets in batches.
fn bulk(name: &str, topic: &TopicConfig, told_bound: Cost, datagram_bound: Cost, aborted_bound: Cost) {
    let (mut mesh, load) = (mesh(topic), Load::BULK);
    let (told, aborted) = costs(&mut mesh, &load);
    let (maker, receiver) = (mesh.quic_counters(0).traffic, mesh.quic_counters(1).traffic);
    let artifacts = (load.at_once * (load.rounds.0 + 2 * load.rounds.1)) as f64;
    told.check(name, told_bound);
    let datagrams = Cost {
        maker: told.maker * artifacts / maker.datagrams_out as f64,
        receiver: told.receiver * artifacts / receiver.datagrams_in as f64,
    };
    datagrams.check(&format!("{name}, for each datagram"), datagram_bound);
    aborted.check("aborting them", aborted_bound);
}

#[test]
fn bodies_that_are_fetched() {
    bulk("1 MiB, fetched", &topic(), bound(434.0, 36.6), bound(0.196, 0.05), bound(1.2, 0.2));
}

#[test]
fn bodies_that_are_pushed() {
    let topic = topic().class(Class::Critical);
    bulk("1 MiB, pushed", &topic, bound(425.0, 34.2), bound(0.192, 0.047), bound(1.15, 0.2));
}

#[test]
fn names_alone() {
    let mut topic = topic().filter(|_| Verdict::Discard);
    topic.push_threshold = 0;
    let (told, aborted) = costs(&mut mesh(&topic), &Load::NAMES);
    told.check("an advert that nobody wants", bound(0.3, 0.1));
    aborted.check("aborting it", bound(0.31, 0.06));
}

/// Every receiver relays what it has: its advert goes to the others that have not named it, and theirs come.
#[test]
fn relays() {
    let mut mesh = mesh(&topic());
    mesh.validates = true;
    let load = Load::small(64);
    let round = |mesh: &mut Mesh, round: usize| {
        let ids = tell(mesh, &load, round);
        for id in ids {
            (0..NODES).for_each(|node| mesh.abort(node, id));
        }
        mesh.run_for(Duration::from_millis(60));
        (0..NODES).for_each(|node| assert_eq!(mesh.census(node).artifacts, 0));
    };
    (0..load.rounds.0).for_each(|number| round(&mut mesh, number));
    let relayed = count(load.rounds.1 * load.at_once, || {
        (0..load.rounds.1).for_each(|number| counted(|| round(&mut mesh, number)));
    });
    relayed.check("1 KiB, relayed by all, and aborted", bound(1.25, 4.2));
}

#[test]
fn aborted_before_it_was_told() {
    let mut mesh = mesh(&topic());
    let load = Load::small(64);
    let round = |mesh: &mut Mesh, round: usize| {
        for number in 0..load.at_once {
            let id = mesh.broadcast(0, Bytes::from(vec![(round + number) as u8; load.size]));
            mesh.abort(0, id);
        }
        mesh.run_for(Duration::from_millis(1));
    };
    (0..load.rounds.0).for_each(|number| round(&mut mesh, number));
    let aborted = count(load.rounds.1 * load.at_once, || {
        (0..load.rounds.1).for_each(|number| counted(|| round(&mut mesh, number)));
    });
    assert_eq!(mesh.engine_counters(0).pushes_sent, 0);
    aborted.check("1 KiB, aborted before it was told", bound(0.0, 0.0));
}

#[test]
fn turns_without_work() {
    const TURNS: usize = 1000;
    let mut mesh = mesh(&topic());
    let ids = tell(&mut mesh, &Load::small(64), 0);
    let idle = count(TURNS, || counted(|| (0..TURNS).for_each(|_| assert!(!mesh.turn()))));
    idle.check("a turn without work", bound(0.0, 0.0));
    abort(&mut mesh, &ids);
}

/// Signs of life, and nothing else, for a minute.
#[test]
fn a_connection_at_rest() {
    let mut mesh = mesh(&topic());
    mesh.run_for(Duration::from_secs(60));
    let rest = count(60, || counted(|| mesh.run_for(Duration::from_secs(60))));
    rest.check("a second of rest", bound(3.2, 3.1));
}
