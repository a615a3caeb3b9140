//! The places in which a link's pushed bodies are gathered: one is each topic's own, the others are for whoever comes.
//!
//! So no topic's bodies can keep another's from coming, however slowly they come themselves.

use crate::types::TopicId;

/// See the module. Topics are few, so they are searched in turn.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Topics that have any.
    taken: Vec<(TopicId, usize)>,
}

impl Places {
    /// Whether a body of `topic` may be gathered, when so many places are `shared`.
    pub(super) fn has_one(&self, topic: TopicId, shared: usize) -> bool {
        let beyond: usize = self.taken.iter().map(|(_, places)| places - 1).sum();
        beyond < shared || self.taken.iter().all(|(other, _)| *other != topic)
    }

    pub(super) fn take(&mut self, topic: TopicId) {
        match self.taken.iter_mut().find(|(other, _)| *other == topic) {
            Some((_, places)) => *places += 1,
            None => self.taken.push((topic, 1)),
        }
    }

    pub(super) fn give_back(&mut self, topic: TopicId) {
        if let Some((_, places)) = self.taken.iter_mut().find(|(other, _)| *other == topic) {
            *places -= 1;
        }
        self.taken.retain(|(_, places)| *places > 0);
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.iter().map(|(_, places)| places).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_its_own_place_whatever_others_have_taken() {
        let (slow, other) = (TopicId(1), TopicId(2));
        let mut places = Places::default();
        for taken in 0..5 {
            assert_eq!(places.taken(), taken);
            assert!(places.has_one(slow, 4));
            places.take(slow);
        }
        assert!(!places.has_one(slow, 4), "its own and the shared ones are taken");
        assert!(places.has_one(other, 4));
        places.take(other);
        assert!(!places.has_one(other, 4));
        places.give_back(slow);
        assert!(places.has_one(other, 4), "what is given back is shared");
        places.take(other);
        assert!(!places.has_one(slow, 4));
        for topic in [slow, slow, slow, slow, other, other] {
            places.give_back(topic);
        }
        assert_eq!(places.taken(), 0);
    }
}
