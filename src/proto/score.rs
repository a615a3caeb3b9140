//! What each peer has done wrong: exact counts by kind, and a standing that heals with time.
//!
//! A standing only orders peers (who is asked last); by itself it never ends a connection or drops a word,
//! for then a hostile member could provoke faults to part two honest ones.

use std::time::Duration;

use crate::types::{Instant, PeerIndex};

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A body that does not hash to the id that was asked for or announced.
    WrongBytes,
    /// Bytes that are not a frame, or a frame out of place.
    Protocol,
    /// An update beyond the limits that this node has stated.
    OverLimit,
    /// A request that it advertised to serve was answered "not found", or broke. Happens between honest
    /// peers, too.
    Unserved,
    /// It let a request wait until another peer was asked, or a push while others waited for its room. Happens
    /// between honest peers, too.
    Silence,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 5] =
        [Fault::WrongBytes, Fault::Protocol, Fault::OverLimit, Fault::Unserved, Fault::Silence];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Fault::WrongBytes => "wrong_bytes",
            Fault::Protocol => "protocol",
            Fault::OverLimit => "over_limit",
            Fault::Unserved => "unserved",
            Fault::Silence => "silence",
        }
    }

    /// Points: what an honest peer never does weighs most.
    fn weight(self) -> u64 {
        match self {
            Fault::WrongBytes | Fault::Protocol => 1000,
            Fault::OverLimit => 100,
            Fault::Unserved | Fault::Silence => 10,
        }
    }
}

/// What a peer's faults add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing that does not happen between honest peers.
    Good,
    /// To be asked only when no other could be.
    Poor,
}

/// Counts and standings of all peers. Fixed memory: about 70 bytes per peer.
#[derive(Debug)]
pub struct Score {
    peers: Vec<Record>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    counts: [u64; Fault::ALL.len()],
    /// Points at `at`.
    points: u64,
    at: Instant,
}

/// Points from which a standing is poor.
const POOR: u64 = 500;
/// Points beyond which faults add nothing: the worst standing heals in [`MOST`]` / `[`HEAL_PER_SECOND`]
/// seconds.
const MOST: u64 = 3000;
/// Points that a second without faults takes away.
const HEAL_PER_SECOND: u64 = 10;
const _: () = assert!(POOR < MOST);

impl Score {
    /// All in good standing.
    pub fn new(peers: usize) -> Score {
        Score { peers: vec![Record::default(); peers] }
    }

    /// Counts a fault; returns the standing when it has changed.
    pub fn handle_fault(&mut self, peer: PeerIndex, fault: Fault, now: Instant) -> Option<Standing> {
        let record = self.peers.get_mut(peer.index())?;
        let before = record.standing(now);
        record.counts[fault as usize] += 1;
        record.points = (record.points_at(now) + fault.weight()).min(MOST);
        record.at = record.at.max(now);
        let after = record.standing(now);
        (before != after).then_some(after)
    }

    /// Forgets a peer that has left the membership.
    pub fn handle_removed(&mut self, peer: PeerIndex) {
        if let Some(record) = self.peers.get_mut(peer.index()) {
            *record = Record::default();
        }
    }

    /// A peer's standing; it heals with time.
    pub fn standing(&self, peer: PeerIndex, now: Instant) -> Standing {
        self.peers.get(peer.index()).map_or(Standing::Good, |record| record.standing(now))
    }

    /// When a poor standing will be good again, if nothing is added.
    pub fn heals_at(&self, peer: PeerIndex, now: Instant) -> Option<Instant> {
        let points = self.peers.get(peer.index())?.points_at(now);
        let above = points.checked_sub(POOR)? + 1;
        Some(now + Duration::from_secs(above.div_ceil(HEAL_PER_SECOND)))
    }

    /// How often `peer` has committed `fault`.
    pub fn count(&self, peer: PeerIndex, fault: Fault) -> u64 {
        self.peers.get(peer.index()).map_or(0, |record| record.counts[fault as usize])
    }
}

impl Record {
    fn points_at(&self, now: Instant) -> u64 {
        let healed = now.saturating_since(self.at).as_millis() * u128::from(HEAL_PER_SECOND) / 1000;
        self.points.saturating_sub(u64::try_from(healed).unwrap_or(u64::MAX))
    }

    fn standing(&self, now: Instant) -> Standing {
        if self.points_at(now) >= POOR { Standing::Poor } else { Standing::Good }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerIndex = PeerIndex(0);

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn what_no_honest_peer_does_costs_standing_at_once() {
        let mut score = Score::new(2);
        assert_eq!(score.handle_fault(PEER, Fault::WrongBytes, at(0)), Some(Standing::Poor));
        assert_eq!(score.handle_fault(PEER, Fault::WrongBytes, at(0)), None);
        assert_eq!(score.count(PEER, Fault::WrongBytes), 2);
        assert_eq!(score.standing(PeerIndex(1), at(0)), Standing::Good);
    }

    #[test]
    fn what_happens_between_honest_peers_costs_standing_only_in_masses() {
        let mut score = Score::new(1);
        for second in 0..100 {
            assert_eq!(score.handle_fault(PEER, Fault::Unserved, at(second)), None);
        }
        let mut changes = (0..100).filter_map(|_| score.handle_fault(PEER, Fault::Silence, at(100)));
        assert_eq!(changes.next(), Some(Standing::Poor));
    }

    #[test]
    fn a_poor_standing_heals_when_it_was_said_to() {
        let mut score = Score::new(1);
        for _ in 0..1000 {
            score.handle_fault(PEER, Fault::Protocol, at(0));
        }
        let healed = score.heals_at(PEER, at(0)).unwrap();
        assert_eq!(healed, at(251), "the worst standing is bounded");
        assert_eq!(score.standing(PEER, at(249)), Standing::Poor);
        assert_eq!(score.standing(PEER, healed), Standing::Good);
        assert_eq!(score.heals_at(PEER, healed), None);
    }

    #[test]
    fn a_peer_that_left_is_forgotten_and_unknown_ones_are_ignored() {
        let mut score = Score::new(1);
        score.handle_fault(PEER, Fault::WrongBytes, at(0));
        score.handle_removed(PEER);
        assert_eq!((score.standing(PEER, at(0)), score.count(PEER, Fault::WrongBytes)), (Standing::Good, 0));
        assert_eq!(score.handle_fault(PeerIndex(9), Fault::WrongBytes, at(0)), None);
    }

    #[test]
    fn kinds_are_numbered_in_order() {
        assert!(Fault::ALL.iter().enumerate().all(|(number, fault)| *fault as usize == number));
    }
}
