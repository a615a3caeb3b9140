//! Everything at once over a bad path: every stream comes to exactly one end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use corecast::quic::Event;
use corecast::types::{Class, HashKind, Rng, StreamKey};
use corecast::wire::{Incoming, Outgoing, Reply};

use super::net::*;
use super::streams::{answer, batch, fetch, push, small};

const BAD: Path = Path {
    delay: Duration::from_millis(2),
    jitter: Duration::from_millis(1),
    lose_one_in: 50,
    damage_one_in: 100,
    repeat_one_in: 30,
};

/// What one node still waits to hear of its own streams, and what it gave up.
#[derive(Default)]
struct Ledger {
    open: BTreeMap<(usize, StreamKey), &'static str>,
    given_up: BTreeSet<(usize, StreamKey)>,
    frames: usize,
    /// Events of the node that were looked at.
    seen: usize,
    ends: usize,
}

impl Ledger {
    fn end(&mut self, to: usize, key: StreamKey, kind: &str) {
        assert!(!self.given_up.contains(&(to, key)), "{kind} {key:?} ended after it was given up");
        assert_eq!(self.open.remove(&(to, key)), Some(kind), "{key:?}");
        self.ends += 1;
    }
}

/// Looks at `node`'s news and answers requests.
fn settle(net: &mut Net, node: usize, ledger: &mut Ledger, rng: &mut Rng) {
    let mut answers = Vec::new();
    for (from, event) in &net.nodes[node].events[ledger.seen..] {
        let other = from.index();
        match event {
            Event::Connected { .. } => (),
            Event::Disconnected { .. } => panic!("{event:?}"),
            Event::Link(Incoming::Frame(_)) => ledger.frames += 1,
            Event::Link(Incoming::Sent { key, .. }) => ledger.end(other, *key, "sent"),
            Event::Link(Incoming::Reply { key, .. }) => ledger.end(other, *key, "fetch"),
            Event::Link(Incoming::PushStarted { key, .. }) => {
                ledger.open.insert((other, *key), "push");
            }
            Event::Link(Incoming::Pushed { key, head, body }) => {
                ledger.end(other, *key, "push");
                assert_eq!(body.id(), head.id);
            }
            Event::Link(Incoming::PushBroken { key, .. }) => ledger.end(other, *key, "push"),
            Event::Link(Incoming::Request { key, .. }) => {
                ledger.open.insert((other, *key), "sent");
                answers.push((other, *key));
            }
            Event::Link(Incoming::Progress { .. }) => (),
            Event::Link(Incoming::Fault(error)) => panic!("{error}"),
        }
    }
    ledger.seen = net.nodes[node].events.len();
    for (other, key) in answers {
        let reply = match rng.below(4) {
            0 => Reply::NotFound,
            1 => Reply::Busy,
            _ => Reply::Found(body(key.0, 1 + rng.below(300 << 10) as usize)),
        };
        net.nodes[node].queue.push((peer(other), answer(key, reply)));
    }
}

/// Begins something, or gives something up.
fn act(net: &mut Net, node: usize, ledger: &mut Ledger, rng: &mut Rng, key: u64) -> usize {
    let other = (node + 1 + rng.below(2) as usize) % 3;
    let class = Class::ALL[rng.below(4) as usize];
    let outgoing = match rng.below(8) {
        0 => {
            ledger.open.insert((other, StreamKey(key)), "sent");
            push(class, key, body(key, 1 + rng.below(200 << 10) as usize))
        }
        1 => {
            ledger.open.insert((other, StreamKey(key)), "fetch");
            fetch(key, HashKind::Blake3.id(&[]), 200 << 10)
        }
        2 => {
            let at = rng.below(1 + ledger.open.len() as u64) as usize;
            let Some((&(other, key), _)) = ledger.open.iter().nth(at) else { return 0 };
            // What the engine has not sent yet it does not reset either.
            let waits = |(to, outgoing): &(_, Outgoing)| match outgoing {
                Outgoing::Push { key: k, .. }
                | Outgoing::Fetch { key: k, .. }
                | Outgoing::Reply { key: k, .. } => (*to, *k) == (peer(other), key),
                Outgoing::Batch { .. } => false,
            };
            if !net.nodes[node].queue.iter().any(waits) {
                ledger.open.remove(&(other, key));
                ledger.given_up.insert((other, key));
                net.quic(node).reset(peer(other), key);
            }
            return 0;
        }
        _ => {
            net.nodes[node].queue.push((peer(other), batch(class, &[small(1), small(2)])));
            return 2;
        }
    };
    net.nodes[node].queue.push((peer(other), outgoing));
    0
}

#[test]
fn every_stream_comes_to_exactly_one_end() {
    for seed in 0..4 {
        let (mut net, _) = connected(BAD, 3);
        let mut rng = Rng::new(seed);
        let mut ledgers: [Ledger; 3] = Default::default();
        let mut frames = 0;
        for key in 1..600 {
            let node = rng.below(3) as usize;
            frames += act(&mut net, node, &mut ledgers[node], &mut rng, key);
            net.run_for(Duration::from_micros(rng.below(4000)));
            for (node, ledger) in ledgers.iter_mut().enumerate() {
                settle(&mut net, node, ledger, &mut rng);
            }
        }
        net.run(Duration::from_secs(60), |net| {
            for (node, ledger) in ledgers.iter_mut().enumerate() {
                settle(net, node, ledger, &mut rng);
            }
            let open: usize = ledgers.iter().map(|ledger| ledger.open.len()).sum();
            let arrived: usize = ledgers.iter().map(|ledger| ledger.frames).sum();
            open == 0 && arrived == frames && net.nodes.iter().all(|node| node.queue.is_empty())
        });
        let ends: usize = ledgers.iter().map(|ledger| ledger.ends).sum();
        assert!(ends > 150, "{ends} ends");
    }
}
