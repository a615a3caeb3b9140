//! How far each peer is behind this node's active artifacts, as lanes publish it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::NodeId;

/// How far a peer is behind ([`Topic::lag`](super::Topic::lag)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerLag {
    /// Which peer.
    pub peer: NodeId,
    /// Whether it is connected on every lane.
    pub connected: bool,
    /// Slots of this node's tables of which it must still be told: artifacts, and ends of those that it was told of before. Of a
    /// peer that is away, or does not take part in the topic, every active artifact; when it comes back it says which it has.
    /// What it is told counts as told once it is written to the connection.
    pub updates: u64,
}

/// One entry per lane and peer: twice the updates, and 1 if the peer is connected.
#[derive(Debug)]
pub(in crate::node) struct LagBoard {
    lanes: Vec<Vec<AtomicU64>>,
}

impl LagBoard {
    pub(in crate::node) fn new(lanes: u16, peers: usize) -> LagBoard {
        let lane = || (0..peers).map(|_| AtomicU64::new(0)).collect();
        LagBoard { lanes: (0..lanes).map(|_| lane()).collect() }
    }

    /// A lane's figures, by peer; the sum of what those that are connected must be told.
    pub(in crate::node) fn publish(&self, lane: u16, lags: impl Iterator<Item = (bool, usize)>) -> usize {
        let Some(places) = self.lanes.get(usize::from(lane)) else { return 0 };
        let mut sum = 0;
        for (place, (connected, updates)) in places.iter().zip(lags) {
            place.store(2 * updates as u64 + u64::from(connected), Ordering::Relaxed);
            sum += if connected { updates } else { 0 };
        }
        sum
    }

    /// The sum over the lanes.
    pub(in crate::node) fn of(&self, peer: NodeId, index: usize) -> PeerLag {
        let mut lag = PeerLag { peer, connected: true, updates: 0 };
        for place in self.lanes.iter().filter_map(|lane| lane.get(index)) {
            let published = place.load(Ordering::Relaxed);
            lag.updates += published / 2;
            lag.connected &= published % 2 == 1;
        }
        lag
    }
}
