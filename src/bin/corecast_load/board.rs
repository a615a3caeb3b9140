//! Artifacts by number and who lacks them, for runs in which not every node is there all the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corecast::types::{ArtifactId, Rng};

use crate::subnet::fault::Fault;
use crate::subnet::flow::{Flaws, Measured, faulty};

/// Bytes at the start of each artifact that hold its number.
const STAMP: usize = 8;

/// One artifact.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: ArtifactId,
    pub(crate) maker: usize,
    start: Instant,
    /// One bit for each node that is to get it and has not.
    pub(crate) missing: u128,
    /// Not aborted.
    pub(crate) active: bool,
    /// In which it was made.
    phase: usize,
    /// A quorum had it once; everyone that counts had it once.
    reached: (bool, bool),
}

/// What a delivery was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// One that was waited for.
    Due,
    /// Of an artifact that was aborted while it was under way.
    Late,
    /// One that should not have come; it is counted.
    Flaw,
}

/// See the module.
pub(crate) struct Board {
    nodes: usize,
    template: Vec<u8>,
    entries: Vec<Entry>,
    /// One bit for each node whose deliveries count for the latency to the last receiver.
    pub(crate) counted: u128,
    pub(crate) measured: Measured,
    /// The same by the phase in which an artifact was made, of the nodes that count alone.
    phases: Vec<Measured>,
    pub(crate) flaws: Flaws,
}

impl Board {
    /// For artifacts of `size` bytes, at least the 8 that hold a number.
    pub(crate) fn new(nodes: usize, size: usize) -> Result<Board, Fault> {
        let mut template = vec![0; size];
        Rng::new(0x636f_7265_6361_7374).fill(&mut template);
        let (measured, phases, flaws) = (Measured::new()?, vec![Measured::new()?], Flaws::default());
        let mut board = Board { nodes, template, entries: Vec::new(), counted: 0, measured, phases, flaws };
        board.counted = board.everyone();
        Ok(board)
    }

    fn everyone(&self) -> u128 {
        u128::MAX >> (128 - self.nodes.clamp(1, 128))
    }

    /// The number of the next artifact, which is how many there are.
    pub(crate) fn next(&self) -> usize {
        self.entries.len()
    }

    /// What is made from here on belongs to the next phase; the one before the first call is phase 0.
    pub(crate) fn begin_phase(&mut self) -> Result<(), Fault> {
        self.phases.push(Measured::new()?);
        Ok(())
    }

    /// What was measured of a phase that has begun.
    pub(crate) fn phase(&self, phase: usize) -> &Measured {
        &self.phases[phase]
    }

    /// The next artifact's body.
    pub(crate) fn body(&self) -> Bytes {
        self.stamped(BytesMut::from(&self.template[..]))
    }

    /// The same in the memory of an old body, if nobody else holds one.
    pub(crate) fn body_from(&self, old: &mut VecDeque<Bytes>) -> Bytes {
        match old.pop_front().map(Bytes::try_into_mut) {
            Some(Ok(body)) => self.stamped(body),
            Some(Err(held)) => {
                old.push_back(held);
                self.body()
            }
            None => self.body(),
        }
    }

    fn stamped(&self, mut body: BytesMut) -> Bytes {
        body[..STAMP].copy_from_slice(&(self.next() as u64).to_le_bytes());
        body.freeze()
    }

    /// The number in a body.
    pub(crate) fn number(body: &[u8]) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(*body.first_chunk()?)).ok()
    }

    /// The next artifact is active, since `start`.
    pub(crate) fn add(&mut self, maker: usize, id: ArtifactId, start: Instant) {
        let missing = self.everyone() & !(1 << maker);
        let phase = self.phases.len() - 1;
        self.entries.push(Entry { id, maker, start, missing, active: true, phase, reached: (false, false) });
    }

    pub(crate) fn entry(&self, number: usize) -> &Entry {
        &self.entries[number]
    }

    pub(crate) fn entry_mut(&mut self, number: usize) -> &mut Entry {
        &mut self.entries[number]
    }

    pub(crate) fn active(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.active)
    }

    /// A node that starts anew has nothing: it is to get what is active, and nothing else.
    pub(crate) fn forget(&mut self, node: usize) {
        for entry in &mut self.entries {
            if entry.active && entry.maker != node {
                entry.missing |= 1 << node;
            } else {
                entry.missing &= !(1 << node);
            }
        }
    }

    /// `node` has got the artifact of this number.
    pub(crate) fn deliver(&mut self, node: usize, number: Option<usize>, at: Instant) -> Delivery {
        let size = self.template.len();
        let entry = number.and_then(|number| self.entries.get_mut(number));
        let Some(entry) = entry else {
            self.flaws.foreign += 1;
            return Delivery::Flaw;
        };
        let bit = 1 << node;
        match (entry.missing & bit != 0, entry.active) {
            (true, true) => entry.missing &= !bit,
            (true, false) => {
                entry.missing &= !bit;
                return Delivery::Late;
            }
            (false, true) => {
                self.flaws.twice += 1;
                return Delivery::Flaw;
            }
            (false, false) => {
                self.flaws.revived += 1;
                return Delivery::Flaw;
            }
        }
        let took = at.saturating_duration_since(entry.start);
        let phase = &mut self.phases[entry.phase];
        self.measured.count_delivery(size, took);
        if bit & self.counted != 0 {
            phase.count_delivery(size, took);
        }
        if entry.missing.count_ones() as usize <= faulty(self.nodes) && !entry.reached.0 {
            entry.reached.0 = true;
            [&mut self.measured, &mut *phase].into_iter().for_each(|measured| measured.quorum.record(took));
        }
        if entry.missing & self.counted == 0 && !entry.reached.1 {
            entry.reached.1 = true;
            for measured in [&mut self.measured, phase] {
                measured.last.record(took);
                measured.artifacts += 1;
            }
        }
        Delivery::Due
    }

    /// Deliveries of active artifacts that have not come.
    pub(crate) fn lost(&self) -> u64 {
        self.active().map(|entry| u64::from(entry.missing.count_ones())).sum()
    }

    /// How long ago the artifact that was made last was to be made.
    pub(crate) fn count_late(&mut self, late: Duration) {
        self.measured.late.record(late);
        self.phases.iter_mut().rev().take(1).for_each(|phase| phase.late.record(late));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let mut board = Board::new(4, 16).unwrap();
        let id = corecast::HashKind::Blake3.id(&board.body());
        board.add(0, id, Instant::now());
        board
    }

    #[test]
    fn an_artifact_is_complete_when_every_counted_node_has_it() {
        let mut board = board();
        board.counted = 0b0111;
        let now = Instant::now();
        assert_eq!(Board::number(&board.body()), Some(1));
        assert_eq!(board.deliver(1, Some(0), now), Delivery::Due);
        assert_eq!(board.measured.artifacts, 0);
        assert_eq!(board.deliver(2, Some(0), now), Delivery::Due);
        assert_eq!((board.measured.artifacts, board.measured.deliveries, board.lost()), (1, 2, 1));
        assert_eq!(board.deliver(3, Some(0), now), Delivery::Due);
        assert_eq!((board.measured.artifacts, board.lost(), board.flaws), (1, 0, Flaws::default()));
    }

    #[test]
    fn a_delivery_counts_in_the_phase_in_which_its_artifact_was_made_if_its_node_counts() {
        let mut board = board();
        board.counted = 0b0111;
        board.begin_phase().unwrap();
        let id = corecast::HashKind::Blake3.id(&board.body());
        board.add(0, id, Instant::now());
        (1..4).for_each(|node| assert_eq!(board.deliver(node, Some(1), Instant::now()), Delivery::Due));
        assert_eq!(board.deliver(1, Some(0), Instant::now()), Delivery::Due);
        let counts = |measured: &Measured| (measured.artifacts, measured.deliveries);
        assert_eq!((counts(board.phase(0)), counts(board.phase(1))), ((0, 1), (1, 2)));
        assert_eq!(counts(&board.measured), (1, 4));
    }

    #[test]
    fn an_old_body_serves_again_once_nobody_holds_it() {
        let mut board = board();
        let (free, held) = (board.body(), board.body());
        let (place, holder) = (free.as_ptr(), held.clone());
        let mut old = VecDeque::from([held, free]);
        board.add(0, corecast::HashKind::Blake3.id(&holder), Instant::now());
        assert_eq!(Board::number(&board.body_from(&mut old)), Some(2));
        let body = board.body_from(&mut old);
        assert_eq!((body.as_ptr(), Board::number(&body), old.len()), (place, Some(2), 1));
    }

    #[test]
    fn what_should_not_come_is_told_apart() {
        let mut board = board();
        let now = Instant::now();
        board.deliver(1, Some(0), now);
        assert_eq!(board.deliver(1, Some(0), now), Delivery::Flaw);
        assert_eq!(board.deliver(1, Some(7), now), Delivery::Flaw);
        board.entry_mut(0).active = false;
        assert_eq!(board.deliver(2, Some(0), now), Delivery::Late);
        board.forget(3);
        assert_eq!(board.deliver(3, Some(0), now), Delivery::Flaw);
        assert_eq!(board.flaws, Flaws { lost: 0, twice: 1, foreign: 1, revived: 1 });
    }

    #[test]
    fn a_node_that_starts_anew_is_to_get_what_is_active() {
        let mut board = board();
        board.deliver(1, Some(0), Instant::now());
        board.forget(1);
        assert_eq!(board.lost(), 3);
        assert_eq!(board.deliver(1, Some(0), Instant::now()), Delivery::Due);
    }
}
