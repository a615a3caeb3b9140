//! Whose turn it is when room for bodies comes: start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996) over the members
//! that name them, by bytes. A member that names much waits for itself; others do not wait for it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{ArtifactId, Instant, PeerIndex};

/// What waits for room. Memory: 16 bytes a member, and about 60 for each artifact.
pub(super) struct Turns {
    queue: BTreeMap<Turn, ArtifactId>,
    serial: u64,
    /// How far the queue has come, in bytes of virtual time.
    clock: u64,
    /// Where the next one that a member names will stand, as of an era. It is `clock` when that is over.
    next: Vec<(u64, u64)>,
    /// Ends whenever nothing waits.
    era: u64,
    first: Option<First>,
}

/// A place in the queue: when its member is entitled to room, in bytes of virtual time, and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    start: u64,
    serial: u64,
}

/// What is first in turn and has no room.
#[derive(Debug, Clone, Copy)]
struct First {
    id: ArtifactId,
    since: Instant,
    /// Whether it keeps others from room.
    blocks: bool,
}

impl Turns {
    /// How long the first in turn is overtaken by what is smaller.
    const OVERTAKEN: Duration = Duration::from_secs(1);
    /// How long it is first at most when what the replica holds is in its way.
    const STEPS_BACK: Duration = Duration::from_secs(4);

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
        let removed = self.queue.remove(&turn);
        if self.first.is_some_and(|first| removed == Some(first.id)) {
            self.first = None;
        }
        if self.queue.is_empty() {
            self.era += 1;
        }
    }

    /// It gets room, perhaps before others: that is no gain for those of its member that come after.
    pub(super) fn serve(&mut self, turn: Turn) {
        let first = self.queue.first_key_value().map_or(turn, |(first, _)| *first);
        self.clock = self.clock.max(first.start.min(turn.start));
        self.remove(turn);
    }

    /// `first` is first in turn, and has no room.
    pub(super) fn wait(&mut self, first: ArtifactId, now: Instant) {
        let since = self.first.filter(|one| one.id == first).map_or(now, |one| one.since);
        self.first = Some(First { id: first, since, blocks: false });
    }

    /// Whether the first in turn has been without room for longer than others may overtake it.
    pub(super) fn is_kept_free(&self, now: Instant) -> bool {
        self.first.is_some_and(|first| now >= first.since + Self::OVERTAKEN)
    }

    /// Something else had room, but for the first in turn.
    pub(super) fn block(&mut self) {
        if let Some(first) = &mut self.first {
            first.blocks = true;
        }
    }

    /// What is first in turn and keeps others from room, and when that has lasted for so long that it takes another turn.
    pub(super) fn steps_back(&self) -> Option<(ArtifactId, Instant)> {
        let first = self.first.filter(|first| first.blocks)?;
        Some((first.id, first.since + Self::STEPS_BACK))
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
        let turn = turns.insert(id(0), 1, [A].into_iter());
        turns.wait(id(0), at(0));
        turns.wait(id(0), at(999));
        assert!(!turns.is_kept_free(at(999)) && turns.is_kept_free(at(1000)));
        turns.remove(turn);
        assert!(!turns.is_kept_free(at(1000)));
    }

    #[test]
    fn what_overtakes_does_not_move_the_clock_past_the_first() {
        let mut turns = Turns::new(2);
        let all: Vec<Turn> = (0..4).map(|number| turns.insert(id(number), 100, [A].into_iter())).collect();
        turns.serve(all[3]);
        turns.insert(id(10), 100, [B].into_iter());
        assert_eq!(order(&turns), [0, 10, 1, 2]);
    }
}
