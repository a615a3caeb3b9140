//! What becomes of artifacts whose advertisers' words the filter is asked about again, or elsewhere.

use crate::config::{Advert, Verdict};
use crate::metrics::Happening;
use crate::proto::Question;
use crate::types::{ArtifactId, Instant, NodeId, TopicId};

use super::Engine;
use super::topic::{Stage, Topic};

/// An answer to a [`Question`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// Of which artifact.
    pub id: ArtifactId,
    /// On whose word.
    pub from: NodeId,
    /// The question's.
    pub ticket: u64,
    /// What the filter says; `None`: it panicked, which counts as `Later`.
    pub verdict: Option<Verdict>,
}

impl Engine {
    /// Questions that a filter is asked in one go; the others follow at once, after whatever else is to be done.
    const QUESTIONS: usize = 1024;

    /// The next question for a filter that is asked elsewhere, each to be answered with
    /// [`Command::Judged`](super::Command::Judged). To be called when there is room for one.
    pub fn poll_question(&mut self, topic: TopicId) -> Option<Question> {
        let index = self.index_of(topic)?;
        self.topics.get_mut(index)?.admission.poll_question()
    }

    /// Whether [`Engine::poll_question`] has one.
    pub fn has_questions(&self, topic: TopicId) -> bool {
        let topic = self.index_of(topic).and_then(|index| self.topics.get(index));
        topic.is_some_and(|topic| topic.admission.has_questions())
    }

    /// The filter has changed: everything it wanted later is judged again.
    pub(super) fn judge_again(&mut self, index: usize, now: Instant) {
        if let Some(topic) = self.topics.get_mut(index) {
            topic.admission.handle_filter_changed();
        }
        self.ask_open(index, now);
    }

    /// Another filter judges from now on, here or elsewhere.
    pub(super) fn filter_replaced(&mut self, index: usize, elsewhere: bool, now: Instant) {
        if let Some(topic) = self.topics.get_mut(index) {
            topic.admission.handle_filter_replaced(elsewhere);
        }
        self.ask_open(index, now);
    }

    /// Asks the filter what it is to be asked here, as much as may be at a time.
    pub(super) fn ask_open(&mut self, index: usize, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let (panics, mut judged) = (topic.admission.panics(), Vec::new());
        topic.admission.ask(Self::QUESTIONS, &mut judged);
        topic.asked_at = now;
        self.counters.filter_panics += topic.admission.panics() - panics;
        self.follow_verdicts(index, judged, now);
    }

    /// A verdict has come from elsewhere.
    pub(super) fn judged(&mut self, index: usize, judged: &Judged, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let Judged { id, from, ticket, verdict } = judged;
        self.counters.filter_panics += u64::from(verdict.is_none());
        let counts = topic.admission.handle_verdict(id, from, *ticket, *verdict);
        self.follow_verdicts(index, counts.into_iter().collect(), now);
    }

    fn follow_verdicts(&mut self, index: usize, judged: Vec<(Advert, Verdict)>, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let (wanted, discarded): (Vec<_>, Vec<_>) =
            judged.into_iter().partition(|(_, verdict)| *verdict == Verdict::Want);
        let later = |topic: &Topic, id: &ArtifactId| topic.stage(id) == Some(Stage::Later);
        for (Advert { id, .. }, _) in wanted {
            if later(topic, &id) {
                topic.admission.forget(&id);
                topic.starve(&id, now);
                self.journal.note(now, topic.id(), &id, Happening::Wanted, None);
            }
        }
        // Unless somebody's word is good enough.
        for (Advert { id, .. }, _) in discarded {
            if later(topic, &id) && !topic.admission.remembers(&id) {
                topic.advance(&id, Stage::Discarded, now);
                self.journal.note(now, topic.id(), &id, Happening::Discarded, None);
            }
        }
        self.feed(index, now);
    }
}
