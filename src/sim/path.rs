//! Datagrams on their way: each member's link has a rate and a buffer in either direction, which all its peers share, and what
//! lies between delays, loses, repeats, damages and reorders.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::options::{Datagrams, Links};
use crate::types::{Instant, Rng};

/// The least that any path carries (RFC 9000 §14).
const LEAST_MTU: usize = 1_200;

/// See the module.
#[derive(Debug)]
pub(super) struct Paths {
    links: Links,
    datagrams: Datagrams,
    /// Until when each member's link is busy.
    up: Vec<Instant>,
    down: Vec<Instant>,
    cut: BTreeSet<(usize, usize)>,
    /// Those that carry no datagram above [`LEAST_MTU`].
    narrow: BTreeSet<(usize, usize)>,
    rng: Rng,
    carried: u64,
    carried_bytes: u64,
}

impl Paths {
    pub(super) fn new(links: Links, datagrams: Datagrams, members: usize, rng: Rng) -> Paths {
        let idle = vec![Instant::ZERO; members];
        // The rate of a pair, as ideal links have it, for as many pairs as share the link.
        let rate = links.rate * (members as u64 - 1);
        let links = Links { rate, ..links };
        let (cut, narrow) = (BTreeSet::new(), BTreeSet::new());
        Paths {
            links,
            datagrams,
            up: idle.clone(),
            down: idle,
            cut,
            narrow,
            rng,
            carried: 0,
            carried_bytes: 0,
        }
    }

    /// Faults are over: nothing is lost, repeated or damaged any more, but for what does not fit the buffers.
    pub(super) fn calm(&mut self) {
        self.datagrams = Datagrams {
            lose_one_in: 0,
            repeat_one_in: 0,
            damage_one_in: 0,
            reorder_one_in: 0,
            ..self.datagrams
        };
        self.cut.clear();
        self.narrow.clear();
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(super) fn narrow(&mut self, from: usize, to: usize) {
        self.narrow.insert((from, to));
    }

    pub(super) fn heal(&mut self, from: usize, to: usize) {
        self.cut.remove(&(from, to));
        self.narrow.remove(&(from, to));
    }

    /// Datagrams that were sent, and their bytes.
    pub(super) fn carried(&self) -> (u64, u64) {
        (self.carried, self.carried_bytes)
    }

    /// A datagram leaves: when what comes of it reaches the far member's link.
    pub(super) fn carry(
        &mut self,
        from: usize,
        to: usize,
        datagram: &[u8],
        now: Instant,
    ) -> Vec<(Instant, Bytes)> {
        self.carried += 1;
        self.carried_bytes += datagram.len() as u64;
        let Some(left) = self.pass(from, datagram.len(), now, |paths| &mut paths.up) else {
            return Vec::new();
        };
        let too_long = self.narrow.contains(&(from, to)) && datagram.len() > LEAST_MTU;
        if self.cut.contains(&(from, to)) || too_long || self.rng.one_in(self.datagrams.lose_one_in) {
            return Vec::new();
        }
        let mut datagram = datagram.to_vec();
        if self.rng.one_in(self.datagrams.damage_one_in) {
            let at = self.rng.below(datagram.len() as u64) as usize;
            datagram[at] ^= 1 << self.rng.below(8);
        }
        let (datagram, copies) =
            (Bytes::from(datagram), 1 + usize::from(self.rng.one_in(self.datagrams.repeat_one_in)));
        (0..copies).map(|_| (left + self.delay(), datagram.clone())).collect()
    }

    fn delay(&mut self) -> Duration {
        let Links { latency, jitter, .. } = self.links;
        let late = self.rng.one_in(self.datagrams.reorder_one_in);
        latency
            + if late {
                Duration::from_nanos(self.rng.below(jitter.as_nanos() as u64 + 1))
            } else {
                Duration::ZERO
            }
    }

    /// A datagram reaches the link of `to`: when it is through, unless the link is too busy.
    pub(super) fn receive(&mut self, to: usize, len: usize, now: Instant) -> Option<Instant> {
        self.pass(to, len, now, |paths| &mut paths.down)
    }

    fn pass(
        &mut self,
        node: usize,
        len: usize,
        now: Instant,
        direction: fn(&mut Paths) -> &mut Vec<Instant>,
    ) -> Option<Instant> {
        let (rate, buffer) = (self.links.rate.max(1), self.datagrams.buffer);
        let span = |bytes: u64| Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        let busy = direction(self).get_mut(node)?;
        if busy.saturating_since(now) > span(buffer) {
            return None;
        }
        *busy = (*busy).max(now) + span(len as u64);
        Some(*busy)
    }
}
