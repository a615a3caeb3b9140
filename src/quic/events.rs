//! What waits to be told: events in their order, the small bodies among them hashed together when the first is asked for.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Event;
use crate::types::{Attribute, HashKind, PeerIndex, Slot, TopicId, Verified, Version};
use crate::wire::Incoming;

/// Bounded by what one call brings: the caller drains it after each.
#[derive(Default)]
pub(super) struct Events {
    queue: VecDeque<(PeerIndex, Queued)>,
    /// Bodies of the first pushes in the queue.
    verified: VecDeque<Verified>,
}

enum Queued {
    Event(Event),
    Push(SmallPush),
}

/// A push of a batch.
pub(super) struct SmallPush {
    pub(super) topic: TopicId,
    pub(super) slot: Slot,
    pub(super) version: Version,
    pub(super) attribute: Attribute,
    pub(super) body: Bytes,
    pub(super) kind: HashKind,
}

impl Events {
    /// Bodies that are hashed together: enough to fill the vector unit, and still in the second-level cache.
    const TOGETHER: usize = 128;

    pub(super) fn push(&mut self, peer: PeerIndex, event: Event) {
        self.queue.push_back((peer, Queued::Event(event)));
    }

    pub(super) fn push_small(&mut self, peer: PeerIndex, push: SmallPush) {
        self.queue.push_back((peer, Queued::Push(push)));
    }

    pub(super) fn pop(&mut self) -> Option<(PeerIndex, Event)> {
        if self.verified.is_empty()
            && let Some((_, Queued::Push(push))) = self.queue.front()
        {
            let kind = push.kind;
            self.verify(kind);
        }
        let (peer, queued) = self.queue.pop_front()?;
        let event = match queued {
            Queued::Event(event) => event,
            Queued::Push(SmallPush { topic, slot, version, attribute, .. }) => {
                let body = self.verified.pop_front()?;
                Event::Link(Incoming::PushedSmall { topic, slot, version, attribute, body })
            }
        };
        Some((peer, event))
    }

    /// Gives every event its peer's new number; without one it is dropped.
    pub(super) fn renumber(&mut self, number: impl Fn(PeerIndex) -> Option<PeerIndex>) {
        let mut kept = VecDeque::new();
        while let Some((peer, event)) = self.pop() {
            kept.extend(number(peer).map(|peer| (peer, Queued::Event(event))));
        }
        self.queue = kept;
    }

    /// Hashes the next pushes, up to one of another kind.
    fn verify(&mut self, kind: HashKind) {
        let pushes = self.queue.iter_mut().filter_map(|(_, queued)| match queued {
            Queued::Push(push) => Some(push),
            Queued::Event(_) => None,
        });
        let alike = pushes.take_while(|push| push.kind == kind).take(Self::TOGETHER);
        let bodies = alike.map(|push| std::mem::take(&mut push.body)).collect();
        self.verified.extend(Verified::hash_all(kind, bodies));
    }
}
