//! Where one artifact is, and what happened to it: a lane's answer, for people and programs.

use std::fmt;
use std::time::Duration;

use crate::engine::{self, ArtifactState, TracedPeer};
use crate::metrics::Happening;
use crate::types::{ArtifactId, Instant, NodeId, TopicId};

/// Why there is no answer. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Too many commands wait for the lane: try again.
    #[error("too many commands wait for the lane")]
    Busy,
    /// The lane did not answer within [`Trace::PATIENCE`].
    #[error("the lane did not answer in time")]
    Timeout,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// One event of an artifact's story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceEvent {
    /// How long before the answer it was.
    pub ago: Duration,
    /// What happened.
    pub what: Happening,
    /// With which peer, if with one.
    pub peer: Option<NodeId>,
}

/// Where an artifact is at this node and what happened to it ([`Topic::trace`](super::Topic::trace)). Prints as a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trace {
    /// The artifact.
    pub id: ArtifactId,
    /// In which topic.
    pub topic: TopicId,
    /// In which lane.
    pub lane: u16,
    /// Where it is; `None`: nothing is known of it now.
    pub state: Option<ArtifactState>,
    /// How long it has been there; a body that is here counts from when it came, whatever was done with it since.
    pub since: Option<Duration>,
    /// Bytes of its body; of one that is not here, the smallest that an advertiser has said.
    pub size: Option<u32>,
    /// Its slot in this node's table, if it is active.
    pub slot: Option<u32>,
    /// How things stand between it and every other member.
    pub peers: Vec<TracedPeer>,
    /// What happened, the oldest first, as far as the lane's journal goes back
    /// ([`Journal::EVENTS`](crate::metrics::Journal::EVENTS) events of all its artifacts).
    pub events: Vec<TraceEvent>,
    /// What happened earlier than this ago is forgotten.
    pub forgotten: Option<Duration>,
}

impl Trace {
    /// How long a lane may take to answer.
    pub const PATIENCE: Duration = Duration::from_secs(1);

    pub(super) fn new(
        (topic, id, lane): (TopicId, ArtifactId, u16),
        own: NodeId,
        now: Instant,
        trace: engine::Trace,
    ) -> Trace {
        let ago = |at| now.saturating_since(at);
        let event = |(at, what, peer)| TraceEvent { ago: ago(at), what, peer };
        Trace {
            id,
            topic,
            lane,
            state: trace.state,
            since: trace.since.map(ago),
            size: trace.size,
            slot: trace.slot.map(|slot| slot.0),
            peers: trace.peers.into_iter().filter(|peer| peer.peer != own).collect(),
            events: trace.events.into_iter().map(event).collect(),
            forgotten: trace.forgotten_before.map(ago),
        }
    }

    /// Whether nothing is known of it, nor remembered.
    pub fn is_unknown(&self) -> bool {
        self.state.is_none() && self.events.is_empty()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in topic {}, lane {}: ", self.id, self.topic, self.lane)?;
        match self.state {
            None => write!(f, "not here now")?,
            Some(state) => write!(f, "{state}")?,
        }
        if let Some(since) = self.since {
            write!(f, " for {since:.1?}")?;
        }
        if let Some(size) = self.size {
            write!(f, ", {size} bytes")?;
        }
        if let Some(slot) = self.slot {
            write!(f, ", slot {slot}")?;
        }
        for peer in &self.peers {
            let marks = [
                (peer.connected, "connected", "away"),
                (peer.told, "told", ""),
                (peer.sending, "being sent it", ""),
                (peer.acknowledged, "has acknowledged it", ""),
                (peer.refused, "refuses it", ""),
                (peer.advertises, "advertises it", ""),
            ];
            let marks = marks.map(|(is, yes, no)| if is { yes } else { no });
            let marks: Vec<_> = marks.into_iter().filter(|mark| !mark.is_empty()).collect();
            write!(f, "\n  {}  {}", peer.peer, marks.join(", "))?;
        }
        if let Some(forgotten) = self.forgotten {
            write!(f, "\n  {:>14}  before, nothing is remembered", ago(forgotten))?;
        }
        for event in &self.events {
            write!(f, "\n  {:>14}  {}", ago(event.ago), event.what)?;
            event.peer.iter().try_for_each(|peer| write!(f, " {peer}"))?;
        }
        Ok(())
    }
}

fn ago(duration: Duration) -> String {
    format!("-{:.3} ms", duration.as_nanos() as f64 / 1e6)
}
