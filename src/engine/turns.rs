//! Whose turn it is when room for bodies comes: start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996) over the members
//! that name them, by bytes. A member that names much waits for itself; others do not wait for it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{ArtifactId, Instant, PeerIndex};

/// What waits for room. Memory: 16 bytes a member, and about 60 for each artifact.
pub(super) struct Turns {
    queue: BTreeMap<Turn, ArtifactId>,
    serial: u64,
    /// Where the last that got room had stood.
    clock: u64,
    /// Where the next one that a member names will stand, as of an era. It is `clock` when that is over.
    next: Vec<(u64, u64)>,
    /// Ends whenever nothing waits.
    era: u64,
    /// Which has been the first in turn, and since when.
    first: Option<(ArtifactId, Instant)>,
}

/// A place in the queue: bytes that its member had named before, and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    start: u64,
    serial: u64,
}

impl Turns {
    /// How long the first in turn is overtaken by what is smaller.
    const OVERTAKEN: Duration = Duration::from_secs(1);

    pub(super) fn new(peers: usize) -> Turns {
        Turns { queue: BTreeMap::new(), serial: 0, clock: 0, next: vec![(0, 0); peers], era: 0, first: None }
    }

    /// Lets an artifact of `size` bytes wait, as early as one of those who name it is entitled to.
    pub(super) fn insert(
        &mut self,
        id: ArtifactId,
        size: u32,
        named_by: impl Iterator<Item = PeerIndex>,
    ) -> Turn {
        let earliest = named_by.map(|peer| (self.next_of(peer), peer)).min();
        let start = earliest.map_or(self.clock, |(start, _)| start);
        if let Some((_, peer)) = earliest
            && let Some(next) = self.next.get_mut(peer.index())
        {
            *next = (self.era, start + u64::from(size) + 1);
        }
        self.serial += 1;
        let turn = Turn { start, serial: self.serial };
        self.queue.insert(turn, id);
        turn
    }

    /// Another member names what waits: the turn that it has from now on.
    pub(super) fn hasten(&mut self, turn: Turn, size: u32, peer: PeerIndex) -> Turn {
        if self.next_of(peer) >= turn.start {
            return turn;
        }
        match self.queue.remove(&turn) {
            Some(id) => self.insert(id, size, [peer].into_iter()),
            None => turn,
        }
    }

    /// It does not wait any more.
    pub(super) fn remove(&mut self, turn: Turn) {
        self.queue.remove(&turn);
        if self.queue.is_empty() {
            self.era += 1;
        }
    }

    /// It gets room.
    pub(super) fn serve(&mut self, turn: Turn) {
        self.clock = self.clock.max(turn.start);
        self.remove(turn);
    }

    /// Whether others may get room before `first`, which is first in turn and does not fit.
    pub(super) fn may_overtake(&mut self, first: ArtifactId, now: Instant) -> bool {
        match self.first {
            Some((id, since)) if id == first => now < since + Self::OVERTAKEN,
            _ => {
                self.first = Some((first, now));
                true
            }
        }
    }

    /// In turn.
    pub(super) fn iter(&self) -> impl Iterator<Item = ArtifactId> {
        self.queue.values().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn next_of(&self, peer: PeerIndex) -> u64 {
        match self.next.get(peer.index()) {
            Some((era, next)) if *era == self.era => self.clock.max(*next),
            _ => self.clock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerIndex = PeerIndex(0);
    const B: PeerIndex = PeerIndex(1);

    fn id(byte: u8) -> ArtifactId {
        ArtifactId([byte; 32])
    }

    fn order(turns: &Turns) -> Vec<u8> {
        turns.iter().map(|id| id.0[0]).collect()
    }

    #[test]
    fn who_names_much_waits_for_itself() {
        let mut turns = Turns::new(2);
        for number in 0..4 {
            turns.insert(id(number), 100, [A].into_iter());
        }
        turns.insert(id(10), 100, [B].into_iter());
        turns.insert(id(11), 150, [B].into_iter());
        assert_eq!(order(&turns), [0, 10, 1, 11, 2, 3]);
    }

    #[test]
    fn who_had_its_share_has_no_claim_from_when_it_was_away() {
        let mut turns = Turns::new(2);
        let served: Vec<Turn> = (0..4).map(|number| turns.insert(id(number), 100, [A].into_iter())).collect();
        turns.insert(id(4), 100, [A].into_iter());
        served.into_iter().for_each(|turn| turns.serve(turn));
        for number in 10..13 {
            turns.insert(id(number), 100, [B].into_iter());
        }
        assert_eq!(order(&turns), [10, 4, 11, 12]);
    }

    #[test]
    fn what_another_names_too_has_the_earlier_of_two_turns() {
        let mut turns = Turns::new(2);
        let all: Vec<Turn> = (0..4).map(|number| turns.insert(id(number), 100, [A].into_iter())).collect();
        let hastened = turns.hasten(all[3], 100, B);
        assert_eq!(order(&turns), [0, 3, 1, 2]);
        assert_eq!(turns.hasten(hastened, 100, A), hastened, "not later for a member that named more");
        turns.remove(hastened);
        assert_eq!(order(&turns), [0, 1, 2]);
    }

    #[test]
    fn after_nothing_waited_all_begin_anew() {
        let mut turns = Turns::new(2);
        let turn = turns.insert(id(0), 1_000_000, [A].into_iter());
        turns.serve(turn);
        turns.insert(id(1), 1, [A].into_iter());
        turns.insert(id(2), 1, [B].into_iter());
        assert_eq!(order(&turns), [1, 2]);
    }

    #[test]
    fn the_first_is_overtaken_for_a_while_only() {
        let mut turns = Turns::new(2);
        let at = |millis| Instant::ZERO + Duration::from_millis(millis);
        assert!(turns.may_overtake(id(0), at(0)));
        assert!(turns.may_overtake(id(0), at(999)));
        assert!(!turns.may_overtake(id(0), at(1000)));
        assert!(turns.may_overtake(id(1), at(1000)));
    }
}
