//! What happened last in a lane, artifact by artifact.

use std::fmt;
use std::num::NonZeroU16;

use crate::types::{ArtifactId, Instant, PeerIndex, TopicId};

/// What happened to an artifact at this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Happening {
    /// The replica broadcast it.
    Broadcast,
    /// The replica validated it, and it is relayed from here.
    Relayed,
    /// Its body was put on its way to a peer.
    Pushed,
    /// A peer was told of it by name.
    Advertised,
    /// A peer asked for it, and its body was put on its way there.
    Answered,
    /// A peer acknowledged its body whole; known of bodies on streams of their own.
    Acknowledged,
    /// A peer refuses it, for a limit of its own.
    Refused,
    /// The replica aborted it.
    Aborted,
    /// A peer named it, or began to push it on a stream of its own.
    Heard,
    /// The filter wants it, after it did not.
    Wanted,
    /// The filter wants it later.
    Later,
    /// The filter does not want it.
    Discarded,
    /// A peer was asked for it.
    Requested,
    /// Its body came from a peer, perhaps with the first word of it, and is kept.
    Arrived,
    /// Its body came from a peer, and found no room.
    Dropped,
    /// It was given to the consumer, or into its queue.
    Delivered,
    /// The replica is done with it.
    Released,
    /// The last peer that named it does so no longer.
    Withdrawn,
}

impl Happening {
    /// Its label; what follows it names the peer.
    pub fn name(self) -> &'static str {
        match self {
            Happening::Broadcast => "broadcast",
            Happening::Relayed => "relayed",
            Happening::Pushed => "pushed to",
            Happening::Advertised => "advertised to",
            Happening::Answered => "sent on request to",
            Happening::Acknowledged => "acknowledged by",
            Happening::Refused => "refused by",
            Happening::Aborted => "aborted",
            Happening::Heard => "named by",
            Happening::Wanted => "wanted at last",
            Happening::Later => "wanted later",
            Happening::Discarded => "discarded",
            Happening::Requested => "asked for at",
            Happening::Arrived => "arrived from",
            Happening::Dropped => "dropped for want of room, from",
            Happening::Delivered => "delivered",
            Happening::Released => "released",
            Happening::Withdrawn => "withdrawn",
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The last [`Journal::EVENTS`] events of a lane, in a ring. An artifact is named by the first eight bytes of its id: to
/// make one that is taken for another's takes 2^64 tries.
#[derive(Debug)]
pub struct Journal {
    ring: Box<[Record]>,
    /// Events that were ever noted.
    noted: u64,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    at: Instant,
    id: u64,
    topic: TopicId,
    /// One more than its index.
    peer: Option<NonZeroU16>,
    what: Happening,
}

impl Default for Journal {
    fn default() -> Journal {
        let (at, id, topic, peer, what) = (Instant::ZERO, 0, TopicId(0), None, Happening::Broadcast);
        let record = Record { at, id, topic, peer, what };
        Journal { ring: vec![record; Self::EVENTS].into_boxed_slice(), noted: 0 }
    }
}

impl Journal {
    /// Events that a lane remembers.
    pub const EVENTS: usize = 4096;
    /// Memory that they take.
    pub const BYTES: u64 = (Self::EVENTS * size_of::<Record>()) as u64;

    fn short(id: &ArtifactId) -> u64 {
        id.0.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }

    /// Notes what happened now, and with which peer.
    pub fn note(
        &mut self,
        now: Instant,
        topic: TopicId,
        id: &ArtifactId,
        what: Happening,
        peer: Option<PeerIndex>,
    ) {
        let peer = peer.and_then(|peer| NonZeroU16::new(peer.0.wrapping_add(1)));
        let place = self.noted as usize % Self::EVENTS;
        if let Some(record) = self.ring.get_mut(place) {
            *record = Record { at: now, id: Self::short(id), topic, peer, what };
        }
        self.noted += 1;
    }

    /// What is remembered of an artifact, the oldest first.
    pub fn of(
        &self,
        topic: TopicId,
        id: &ArtifactId,
    ) -> impl Iterator<Item = (Instant, Happening, Option<PeerIndex>)> {
        let short = Self::short(id);
        let (newer, older) = self.ring.split_at(self.noted as usize % Self::EVENTS);
        let older = if self.noted < Self::EVENTS as u64 { &[] } else { older };
        let all = older.iter().chain(newer);
        let of = all.filter(move |record| (record.topic, record.id) == (topic, short));
        of.map(|record| (record.at, record.what, record.peer.map(|peer| PeerIndex(peer.get() - 1))))
    }

    /// How far back it goes: when the oldest event was that it remembers, if it has forgotten any.
    pub fn forgets_before(&self) -> Option<Instant> {
        let oldest = self.ring.get(self.noted as usize % Self::EVENTS);
        oldest.filter(|_| self.noted > Self::EVENTS as u64).map(|record| record.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_the_last_events_in_order_and_says_how_far_back() {
        let mut journal = Journal::default();
        let (topic, id) = (TopicId(7), |byte| ArtifactId([byte; 32]));
        let at = |nanos| Instant::from_nanos(nanos);
        journal.note(at(1), topic, &id(1), Happening::Heard, Some(PeerIndex(0)));
        journal.note(at(2), topic, &id(1), Happening::Delivered, None);
        let story: Vec<_> = journal.of(topic, &id(1)).collect();
        assert_eq!(
            story,
            [(at(1), Happening::Heard, Some(PeerIndex(0))), (at(2), Happening::Delivered, None)]
        );
        assert_eq!(journal.of(TopicId(8), &id(1)).count(), 0);
        assert_eq!(journal.forgets_before(), None);
        for nanos in 3..=Journal::EVENTS as u64 + 1 {
            journal.note(at(nanos), topic, &id(2), Happening::Heard, Some(PeerIndex(1)));
        }
        assert_eq!(journal.of(topic, &id(1)).map(|(at, ..)| at).collect::<Vec<_>>(), [at(2)]);
        assert_eq!(journal.forgets_before(), Some(at(2)));
        assert_eq!(journal.of(topic, &id(2)).count(), Journal::EVENTS - 1);
        assert_eq!(Journal::BYTES, 96 << 10);
    }
}
