//! Who is connected with whom, which directions are cut, and how long things take.

use std::collections::BTreeMap;
use std::time::Duration;

use super::flow::{Flow, FlowId};
use super::options::Links;
use super::world::Happening;
use crate::types::{Class, Classes, Instant, Rng};

/// What travels on a link.
#[derive(Debug, Clone)]
pub(super) enum Cargo {
    /// A whole stream of frames.
    Batch(bytes::Bytes),
    /// The head of a pushed body.
    PushHead(FlowId),
    /// Its end.
    PushEnd(FlowId),
    Request(FlowId),
    /// Some bytes of an answer.
    Drip(FlowId),
    /// An answer's end.
    Answer(FlowId),
    /// The near end was reset.
    Reset(FlowId),
    /// All was acknowledged, or is not wanted.
    Sent(FlowId, bool),
    /// The connection was closed.
    Close,
}

/// One direction of a pair.
#[derive(Debug, Default, Clone)]
struct Direction {
    cut: bool,
    /// When what was sent last has left.
    free_at: Instant,
    /// Bytes on their way.
    in_flight: u64,
    /// What waits for the cut to end.
    held: Vec<(u64, Cargo)>,
}

/// All links.
#[derive(Debug)]
pub(super) struct Net {
    links: Links,
    directions: BTreeMap<(usize, usize), Direction>,
    /// As `from` sees its link to `to`: which connection.
    sides: BTreeMap<(usize, usize), u64>,
    /// The latest connection that `from` ever had with `to`.
    latest: BTreeMap<(usize, usize), u64>,
    /// What came before its connection stood.
    early: BTreeMap<(usize, usize), Vec<(u64, Cargo)>>,
    connections: u64,
    rng: Rng,
}

impl Net {
    pub(super) fn new(links: Links, members: usize, rng: Rng) -> Net {
        let pairs = (0..members).flat_map(|a| (0..members).filter(move |b| *b != a).map(move |b| (a, b)));
        let directions = pairs.map(|pair| (pair, Direction::default())).collect();
        Net {
            links,
            directions,
            sides: BTreeMap::new(),
            latest: BTreeMap::new(),
            early: BTreeMap::new(),
            connections: 0,
            rng,
        }
    }

    /// The connection by which `from` reaches `to`, as `from` believes.
    pub(super) fn side(&self, from: usize, to: usize) -> Option<u64> {
        self.sides.get(&(from, to)).copied()
    }

    pub(super) fn new_connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// `node` has `connection` with `peer` from now on; what came early on it.
    pub(super) fn attach(&mut self, node: usize, peer: usize, connection: u64) -> Vec<Cargo> {
        self.sides.insert((node, peer), connection);
        self.latest.insert((node, peer), connection);
        if let Some(direction) = self.directions.get_mut(&(node, peer)) {
            direction.in_flight = 0;
        }
        let early = self.early.remove(&(node, peer)).unwrap_or_default();
        early.into_iter().filter(|(of, _)| *of == connection).map(|(_, cargo)| cargo).collect()
    }

    /// `node` has none.
    pub(super) fn detach(&mut self, node: usize, peer: usize) {
        self.sides.remove(&(node, peer));
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.directions.get(&(from, to)).is_some_and(|direction| direction.cut)
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        if let Some(direction) = self.directions.get_mut(&(from, to)) {
            direction.cut = true;
        }
    }

    /// Ends a cut: what was held arrives a moment later.
    pub(super) fn heal(&mut self, from: usize, to: usize, now: Instant) -> Vec<(Instant, Happening)> {
        let Some(direction) = self.directions.get_mut(&(from, to)) else { return Vec::new() };
        direction.cut = false;
        let held = std::mem::take(&mut direction.held);
        let arrive = |(connection, cargo)| {
            let at = now + self.links.latency + jitter(&mut self.rng, self.links.jitter);
            (at, Happening::Arrive { from, to, connection, cargo })
        };
        held.into_iter().map(arrive).collect()
    }

    /// The least urgent class that may be sent now.
    pub(super) fn room(&self, from: usize, to: usize) -> Classes {
        match self.directions.get(&(from, to)).map(|direction| direction.in_flight) {
            Some(in_flight) if in_flight < self.links.window => Classes::ALL,
            Some(in_flight) if in_flight < self.links.window * 3 / 2 => Classes::down_to(Class::High),
            Some(_) | None => Classes::NONE,
        }
    }

    /// What a cut holds, in the order of arrival.
    pub(super) fn held(&self, from: usize, to: usize) -> &[(u64, Cargo)] {
        self.directions.get(&(from, to)).map_or(&[], |direction| &direction.held)
    }

    /// Ends a cut: what was held is the caller's to bring.
    pub(super) fn release(&mut self, from: usize, to: usize) -> Vec<(u64, Cargo)> {
        let Some(direction) = self.directions.get_mut(&(from, to)) else { return Vec::new() };
        direction.cut = false;
        std::mem::take(&mut direction.held)
    }

    /// When `bytes` that are sent now have arrived.
    pub(super) fn arrival(&mut self, from: usize, to: usize, bytes: u64, now: Instant) -> Instant {
        let Links { latency, rate, lose_one_in, .. } = self.links;
        let Some(direction) = self.directions.get_mut(&(from, to)) else { return now };
        direction.in_flight += bytes;
        let start = direction.free_at.max(now);
        direction.free_at = start + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1));
        let mut at = direction.free_at + latency + jitter(&mut self.rng, self.links.jitter);
        while self.rng.one_in(lose_one_in) {
            at = at + 3 * latency + Duration::from_millis(25);
        }
        at
    }

    /// When a word without weight has arrived.
    pub(super) fn word(&mut self, now: Instant) -> Instant {
        now + self.links.latency + jitter(&mut self.rng, self.links.jitter)
    }

    /// So many bytes were acknowledged.
    pub(super) fn acknowledge(&mut self, from: usize, to: usize, connection: u64, bytes: u64) {
        if self.side(from, to) == Some(connection)
            && let Some(direction) = self.directions.get_mut(&(from, to))
        {
            direction.in_flight = direction.in_flight.saturating_sub(bytes);
        }
    }

    /// Gives cargo back if it can arrive now; a cut holds it, and so does a handshake that is not over.
    pub(super) fn pass(&mut self, from: usize, to: usize, connection: u64, cargo: Cargo) -> Option<Cargo> {
        if self.latest.get(&(to, from)).is_none_or(|latest| *latest < connection) {
            self.early.entry((to, from)).or_default().push((connection, cargo));
            return None;
        }
        if self.side(to, from) != Some(connection) {
            return None;
        }
        match self.directions.get_mut(&(from, to)) {
            Some(direction) if direction.cut => {
                direction.held.push((connection, cargo));
                None
            }
            _ => Some(cargo),
        }
    }
}

fn jitter(rng: &mut Rng, most: Duration) -> Duration {
    Duration::from_nanos(rng.below(most.as_nanos() as u64 + 1))
}

/// Bytes of an encoded request.
pub(super) const REQUEST_BYTES: u64 = 40;

/// Whether `node` still hears of a stream.
pub(super) fn listens(flow: &Flow, node: usize) -> bool {
    let end = if flow.opener.node == node { flow.opener } else { flow.other };
    !end.done
}
