//! What the fetches of a lane know of one peer: what waits for it, what is in flight to it, and how it has
//! answered.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::latency::Latency;
use crate::types::{Instant, PeerIndex, PerClass, Rng, StreamKey};

#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) connected: bool,
    /// Its link took nothing when it was last looked at.
    pub(super) full: bool,
    /// Asked only when no other could be.
    pub(super) poor: bool,
    pub(super) queues: PerClass<Queue>,
    pub(super) load: PerClass<Load>,
    pub(super) busy: PerClass<Busy>,
    /// Requests in flight to it, and the slots of their tasks.
    pub(super) flights: BTreeMap<StreamKey, usize>,
    pub(super) latency: Latency,
}

/// Fetches that wait for a peer, first come first served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Some have lost their meaning, because their fetch is over or its advertiser gone; they are skipped
    /// when met.
    pub(super) tickets: VecDeque<Ticket>,
    /// How many of those there are: never more than half of the queue and a few, so memory follows what is
    /// advertised.
    pub(super) stale: usize,
}

/// A fetch's place in a peer's queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    /// The task's slot.
    pub(super) slot: usize,
    /// Stands in the task's advertiser, too, while the ticket has a meaning.
    pub(super) number: u64,
}

/// Requests in flight and the bytes they announce.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) requests: u32,
    pub(super) bytes: u64,
}

/// A peer that said "busy" is left alone for a while, twice as long each time.
#[derive(Debug, Default)]
pub(super) struct Busy {
    pub(super) until: Instant,
    times: u32,
}

impl Peer {
    /// Lower is better. An exploring fetch ranks by its own dice instead of by latency.
    pub(super) fn rank(&self, index: PeerIndex, explore: Option<u64>) -> (bool, u64) {
        let rank = match explore {
            Some(dice) => Rng::new(dice ^ u64::from(index.0)).next_u64(),
            None => self.latency.rank(),
        };
        (self.poor, rank)
    }
}

impl Load {
    pub(super) fn add(&mut self, size: u32) {
        self.requests += 1;
        self.bytes += u64::from(size);
    }

    pub(super) fn subtract(&mut self, size: u32) {
        self.requests -= 1;
        self.bytes -= u64::from(size);
    }

    /// Whether `size` more bytes fit; one body of any size does when nothing else is in flight.
    pub(super) fn fits(&self, size: u64, limit: u64) -> bool {
        self.requests == 0 || self.bytes + size <= limit
    }
}

impl Busy {
    const FIRST: Duration = Duration::from_millis(10);
    const DOUBLINGS: u32 = 7;

    /// Returns the end of the pause before, and of the one that begins now.
    pub(super) fn extend(&mut self, now: Instant) -> (Instant, Instant) {
        let pause = Self::FIRST * (1 << self.times.min(Self::DOUBLINGS));
        self.times = self.times.saturating_add(1);
        let was = self.until;
        self.until = was.max(now + pause);
        (was, self.until)
    }

    /// The peer served again.
    pub(super) fn relax(&mut self) {
        self.times = 0;
    }
}
