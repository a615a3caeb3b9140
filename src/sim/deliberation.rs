//! Filters on threads of their own: their verdicts come late, in any order, and by the state that the filter was in when it was
//! asked; meanwhile adverts are withdrawn, filters are changed and swapped, and members start anew.

use std::time::Duration;

use super::options::Options;
use super::world::{Actor, Happening, World};
use crate::engine::Judged;
use crate::types::{Rng, TopicId};

impl Options {
    /// Draws for how long filters deliberate, if they do.
    pub(super) fn deliberate(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x6465_6c69_6265_7261);
        if rng.one_in(3) {
            self.habits.deliberation = Duration::from_millis(1 + rng.below(300));
        }
    }
}

impl World {
    /// Hands a member's questions to its filters; whether there was one.
    pub(super) fn ask_filters(&mut self, node: usize) -> bool {
        let mut asked = false;
        while let Some(Actor::Honest(member)) = self.actors.get_mut(node)
            && let Some((topic, judged)) = member.poll_question()
        {
            let boot = member.boot;
            let longest = self.options.habits.deliberation.as_nanos() as u64;
            let delay = Duration::from_nanos(self.asides.below(longest.max(1)));
            self.after(delay, Happening::Judged { node, boot, topic, judged });
            asked = true;
        }
        asked
    }

    /// A filter's verdict comes, unless the member has started anew since.
    pub(super) fn judged(
        &mut self,
        node: usize,
        boot: u64,
        topic: TopicId,
        judged: Judged,
    ) -> Result<(), String> {
        match self.actors.get(node) {
            Some(Actor::Honest(member)) if member.boot == boot => {
                self.with_member(node, |member, now, fx| member.judged(topic, judged, now, fx))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn mixed_runs_draw_filters_that_deliberate() {
        let all = (0..1_000).map(|seed| Options::mixed(seed, Level::Messages));
        assert!(all.filter(|options| !options.habits.deliberation.is_zero()).count() > 250);
    }
}
