//! One topic's settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{ArtifactId, Attribute, Class, HashKind, NodeId, TopicId};
use crate::wire::MAX_SLOTS;

/// What a filter sees of an artifact before its body is taken. Nothing but `id` is proven, and that only once the body has
/// come: another peer may announce the same id with another size or attribute, so each one's word is judged by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// Its topic.
    pub topic: TopicId,
    /// Its id.
    pub id: ArtifactId,
    /// Bytes of its body, as the sender says.
    pub size: u32,
    /// The sender's attribute.
    pub attribute: Attribute,
    /// Who told us.
    pub from: NodeId,
}

/// What the replica says of an advert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Fetch it, or take the pushed body.
    Want,
    /// Keep the id, free the body, ask again when the filter has changed.
    Later,
    /// Remember that it was offered; spend nothing else on it.
    Discard,
}

/// Which thread asks a topic's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilterThread {
    /// The lane's own, as adverts come: about 70 ns beside the filter's own time, and a pushed body that is wanted is delivered
    /// as it came. Nothing else of the lane's executor goes on meanwhile, so it must not block. One that exceeds
    /// [`TopicConfig::FILTER_BUDGET`] three times within a thousand calls of a lane, or once a hundredfold, is asked on a
    /// thread of its own from then on, until it is replaced.
    #[default]
    Lane,
    /// One of its own for the topic, shared by its lanes: for a filter that takes a lock, or looks something up. It may block for
    /// as long as it likes; only what it has not judged waits. Each verdict costs two changes of threads, and a pushed body is
    /// let go before it and fetched after it: a round trip, and its bytes once more. So have the makers of such a topic
    /// advertise ([`TopicConfig::push_threshold`] of 0).
    Own,
}

/// The replica's admission filter: for each advert a verdict. Called on the lane's thread, or on one of its own
/// ([`FilterThread`]); with several lanes, on several threads at a time. A panic in it counts as `Later`.
pub type Filter = Arc<dyn Fn(&Advert) -> Verdict + Send + Sync>;

/// One application protocol's artifacts: own limits, own class, own filter, own consumer.
///
/// Every member must give a topic the same `id` and `hash`; the rest is local. Limits are per lane: a subnet of L lanes has L
/// times as many slots and bytes.
#[derive(Clone)]
#[non_exhaustive]
pub struct TopicConfig {
    /// The topic's number on the wire.
    pub id: TopicId,
    /// How logs and metrics call it.
    pub name: String,
    /// How urgent it is here. Default: `Normal`. `Critical` pushes bodies of every size.
    pub class: Class,
    /// Which hash names its artifacts. Default: BLAKE3-256.
    pub hash: HashKind,
    /// Active artifacts of this node, and of each peer as far as we listen, per lane. 1 to 65,536; default 4,096.
    pub slots: u32,
    /// Bodies below this many bytes are pushed, others adverted and fetched. Default 8,192: a push saves a
    /// round trip, and a body of a few datagrams is cheaper to send than to ask for. At 0 all are adverted.
    pub push_threshold: u32,
    /// Bytes of the active bodies that this node made, per lane; `broadcast` answers `Full` above. As many again for those that
    /// it relays; a validated artifact above is not relayed, and counted. Default 256 MiB.
    pub active_bytes: u64,
    /// Bytes of received bodies that the replica has neither validated nor released, per lane; above, fetching waits. Default
    /// 256 MiB.
    pub pending_bytes: u64,
    /// Events that wait for the replica; above, they wait in the lane. Default 4,096.
    pub queue: usize,
    /// Decides by advert what is fetched. Default: everything.
    pub filter: Option<Filter>,
    /// Where that is asked. Default: on the lane's thread.
    pub filter_thread: FilterThread,
}

/// Which setting of a topic is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic}: {setting} is {found}; allowed is {allowed}")]
pub struct TopicConfigError {
    /// The topic.
    pub topic: TopicId,
    /// The setting.
    pub setting: &'static str,
    /// Its value.
    pub found: u64,
    /// The range.
    pub allowed: String,
}

impl TopicConfig {
    /// How long a call of a filter may take on the lane's thread. Longer ones are counted as overruns.
    pub const FILTER_BUDGET: Duration = Duration::from_millis(1);

    /// A topic with the defaults.
    pub fn new(id: TopicId, name: &str) -> TopicConfig {
        TopicConfig {
            id,
            name: name.to_owned(),
            class: Class::Normal,
            hash: HashKind::default(),
            slots: 4096,
            push_threshold: 8192,
            active_bytes: 256 << 20,
            pending_bytes: 256 << 20,
            queue: 4096,
            filter: None,
            filter_thread: FilterThread::Lane,
        }
    }

    /// The same with another class.
    pub fn class(mut self, class: Class) -> TopicConfig {
        self.class = class;
        self
    }

    /// The same with a filter.
    pub fn filter(mut self, filter: impl Fn(&Advert) -> Verdict + Send + Sync + 'static) -> TopicConfig {
        self.filter = Some(Arc::new(filter));
        self
    }

    /// The same with a filter that is asked on another thread.
    pub fn filter_thread(mut self, thread: FilterThread) -> TopicConfig {
        self.filter_thread = thread;
        self
    }

    /// Checks the ranges. A node's artifacts may have up to `artifact_bytes`.
    pub fn check(&self, artifact_bytes: u32) -> Result<(), TopicConfigError> {
        let wrong = |setting, found, allowed: String| {
            Err(TopicConfigError { topic: self.id, setting, found, allowed })
        };
        if self.slots == 0 || self.slots > MAX_SLOTS {
            return wrong("slots", self.slots.into(), format!("1 to {MAX_SLOTS}"));
        }
        if self.queue == 0 || self.queue > 1 << 20 {
            return wrong("queue", self.queue as u64, format!("1 to {}", 1 << 20));
        }
        let least = u64::from(artifact_bytes);
        for (setting, found) in [("active_bytes", self.active_bytes), ("pending_bytes", self.pending_bytes)] {
            if found < least {
                return wrong(setting, found, format!("{least} (one artifact of the node's limit) and more"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TopicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicConfig({} {:?}, {}, {} slots)", self.id, self.name, self.class, self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass() {
        assert_eq!(TopicConfig::new(TopicId(1), "t").check(8 << 20), Ok(()));
    }

    #[test]
    fn a_topic_must_hold_one_artifact() {
        let mut topic = TopicConfig::new(TopicId(1), "t");
        topic.pending_bytes = 100;
        let error = topic.check(1000).unwrap_err().to_string();
        assert_eq!(
            error,
            "topic 1: pending_bytes is 100; allowed is 1000 (one artifact of the node's limit) and more"
        );
    }
}
