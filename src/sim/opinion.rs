//! Filters that judge by who speaks and by the size that is stated: the same artifact is wanted on one member's word, waits on
//! another's, and is not wanted on a third's. The friendliest of them counts.
//!
//! Besides, the replica changes what its filters go by first, and says so to the engine after a while: what comes in between is
//! judged by the new state, and what came before by the old one.

use std::time::Duration;

use super::member::SETTLED;
use super::options::{Options, TopicOptions};
use super::world::{Actor, Happening, World};
use crate::config::Verdict;
use crate::types::{ArtifactId, NodeId, Rng};

/// What a member says of an artifact.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub(super) id: ArtifactId,
    pub(super) from: NodeId,
    /// The size that a hostile one states. All honest ones state the same.
    pub(super) lie: Option<u32>,
}

impl Word {
    pub(super) fn honest(id: ArtifactId, from: NodeId) -> Word {
        Word { id, from, lie: None }
    }
}

impl Options {
    /// Draws how many artifacts are judged by this, and how late engines hear of a change.
    pub(super) fn sway(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x6f70_696e_696f);
        for topic in &mut self.topics {
            topic.sway_percent = if rng.one_in(3) { 1 + rng.below(100) } else { 0 };
        }
        if rng.one_in(2) {
            self.habits.notice = Duration::from_millis(1 + rng.below(500));
        }
    }
}

/// What the filter makes of a member's word on an artifact that it has nothing against. Of an honest member it is one for good
/// in the end, so that the last word on what that member has active does not depend on when it came.
pub(super) fn opinion(topic: &TopicOptions, word: &Word, generation: u64) -> Verdict {
    if u64::from(word.id.0[11]) * 100 / 256 >= topic.sway_percent {
        return Verdict::Want;
    }
    let seed = |bytes: &[u8; 32]| bytes.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let size = u64::from(word.lie.unwrap_or_default());
    let rng = &mut Rng::new(seed(&word.id.0) ^ seed(&word.from.0).rotate_left(7) ^ size);
    if word.lie.is_none() {
        let (never, waits) = (rng.one_in(4), rng.next_u64());
        return match () {
            () if never => Verdict::Discard,
            () if generation < SETTLED && waits >> generation & 1 == 1 => Verdict::Later,
            () => Verdict::Want,
        };
    }
    let draws: [u64; SETTLED as usize + 1] = std::array::from_fn(|_| rng.below(3));
    let draw = draws.get(generation as usize).copied().unwrap_or_default();
    [Verdict::Want, Verdict::Later, Verdict::Discard][draw as usize]
}

impl World {
    /// A replica's filters judge by another generation from now on; its engine hears of it a while later.
    pub(super) fn change_filter(&mut self, node: usize, generation: u64) -> Result<(), String> {
        let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return Ok(()) };
        member.set_filter(generation);
        if self.options.habits.notice.is_zero() {
            return self.tell_filter(node);
        }
        let delay = Duration::from_nanos(self.asides.below(self.options.habits.notice.as_nanos() as u64));
        self.after(delay, Happening::FilterChanged { node });
        Ok(())
    }

    /// The engine hears of it.
    pub(super) fn tell_filter(&mut self, node: usize) -> Result<(), String> {
        let deliberate = !self.options.habits.deliberation.is_zero();
        self.with_member(node, |member, now, fx| member.tell_filter(deliberate, now, fx))
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn mixed_runs_draw_filters_that_judge_by_sender_and_late_notice() {
        let all: Vec<Options> = (0..1_000).map(|seed| Options::mixed(seed, Level::Messages)).collect();
        let swayed = |options: &&Options| options.topics.iter().any(|topic| topic.sway_percent > 0);
        assert!(all.iter().filter(|options| options.hostile > 0).filter(swayed).count() > 50);
        assert!(all.iter().filter(|options| !options.habits.notice.is_zero()).count() > 100);
    }

    #[test]
    fn opinions_differ_by_sender_and_by_the_size_that_a_hostile_one_states() {
        let topic =
            TopicOptions { sway_percent: 100, ..Options::mixed(0, Level::Messages).topics[0].clone() };
        let verdicts = |word: fn(u8) -> Word| {
            let all: Vec<Verdict> = (0..64).map(|n| opinion(&topic, &word(n), SETTLED)).collect();
            [Verdict::Want, Verdict::Later, Verdict::Discard].map(|one| all.contains(&one))
        };
        let honest: fn(u8) -> Word = |n| Word::honest(ArtifactId([7; 32]), NodeId([n; 32]));
        assert_eq!(verdicts(honest), [true, false, true]);
        let hostile: fn(u8) -> Word =
            |n| Word { id: ArtifactId([7; 32]), from: NodeId([1; 32]), lie: Some(n.into()) };
        assert_eq!(verdicts(hostile), [true; 3]);
    }
}
