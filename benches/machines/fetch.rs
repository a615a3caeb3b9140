//! Whom to ask for what.

use std::collections::VecDeque;
use std::time::Duration;

use corecast::proto::{Fetch, FetchEffect, FetchLimits, Outcome};
use corecast::types::{Class, Instant, PeerIndex, PerClass, Rng, StreamKey, TopicId};

use super::operations::{Scale, Work};
use super::slots::fresh_id;

const TOPIC: TopicId = TopicId(1);
const SIZE: u32 = 64 << 10;

struct Requests {
    fetch: Fetch,
    peers: u16,
    /// Whether every peer names what is wanted, or one in turn.
    shared: bool,
    wanted: u64,
    asked: VecDeque<(PeerIndex, StreamKey)>,
    fx: Vec<FetchEffect>,
    now: Instant,
    rng: Rng,
}

impl Requests {
    fn new(scale: Scale, shared: bool) -> Requests {
        let mut requests = Requests::without(scale.peers, shared, 10);
        (0..scale.active).for_each(|_| requests.want());
        requests.ask();
        requests
    }

    fn without(peers: u16, shared: bool, explore_one_in: u64) -> Requests {
        // As a lane has them.
        let limits = FetchLimits {
            peers: peers.into(),
            per_peer: PerClass([64; 4]),
            per_peer_bytes: PerClass([8 << 20; 4]),
            lane_bytes: PerClass([32 << 20; 4]),
            hedge_min: Duration::from_millis(20),
            hedge_max: Duration::from_secs(2),
            explore_one_in,
        };
        let mut requests = Requests {
            fetch: Fetch::new(limits, Rng::new(1)),
            peers,
            shared,
            wanted: 0,
            asked: VecDeque::new(),
            fx: Vec::new(),
            now: Instant::ZERO + Duration::from_secs(1),
            rng: Rng::new(2),
        };
        (0..peers).for_each(|peer| requests.fetch.handle_connected(PeerIndex(peer)));
        requests
    }

    fn want(&mut self) {
        let id = fresh_id(&mut self.rng);
        self.fetch.handle_wanted(TOPIC, id, Class::Normal, None, self.now);
        let one = (self.wanted % u64::from(self.peers)) as u16;
        self.wanted += 1;
        let names = if self.shared { 0..self.peers } else { one..one + 1 };
        names.for_each(|peer| self.fetch.handle_advertiser(TOPIC, id, PeerIndex(peer), SIZE));
    }

    /// Every link with room asks.
    fn ask(&mut self) {
        for peer in (0..self.peers).map(PeerIndex) {
            if !self.fetch.has_requests(peer) {
                continue;
            }
            while let Some(request) = self.fetch.next_request(peer, Class::Normal, self.now) {
                self.asked.push_back((peer, request.key));
            }
        }
    }

    fn answer(&mut self) {
        let (peer, key) = self.asked.pop_front().expect("something is asked for");
        let found = self.fetch.handle_reply(peer, key, Outcome::Found, self.now, &mut self.fx);
        assert!(found.is_some());
        self.fx.clear();
    }
}

fn exchange(mut requests: Requests) -> Work {
    Box::new(move || {
        requests.answer();
        requests.want();
        requests.ask();
    })
}

/// The fastest peer has room, but its link does not; in a turn all others ask, and leave to it what it will be asked for.
pub(crate) fn declined(scale: Scale) -> Work {
    let mut requests = Requests::without(scale.peers, false, 0);
    let fastest = scale.peers - 1;
    for peer in 0..scale.peers {
        requests.want();
        requests.ask();
        requests.now = requests.now + Duration::from_millis(if peer == fastest { 1 } else { 10 });
        requests.answer();
    }
    requests.shared = true;
    (0..scale.active).for_each(|_| requests.want());
    Box::new(move || {
        for peer in (0..fastest).map(PeerIndex) {
            assert!(requests.fetch.next_request(peer, Class::Normal, requests.now).is_none());
        }
    })
}

/// One body comes, another is wanted, and every link asks for what it may.
pub(crate) fn single(scale: Scale) -> Work {
    exchange(Requests::new(scale, false))
}

/// The same when every peer has all of them.
pub(crate) fn shared(scale: Scale) -> Work {
    exchange(Requests::new(scale, true))
}
