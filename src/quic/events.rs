//! What waits to be told: events in their order, the small bodies among them hashed together when the first is asked for.

use std::collections::VecDeque;

use super::Event;
use crate::types::{HashKind, PeerIndex, Verified};
use crate::wire::{Frame, Incoming};

/// Bounded by what one call brings: the caller drains it after each.
#[derive(Default)]
pub(super) struct Events {
    queue: VecDeque<(PeerIndex, Queued)>,
    /// Bodies of the first pushes in the queue.
    verified: VecDeque<Verified>,
}

enum Queued {
    Event(Event),
    /// With a body to be hashed so.
    Push(Frame, HashKind),
}

impl Events {
    /// Bodies that are hashed together: enough to fill the vector unit, and still in the second-level cache.
    const TOGETHER: usize = 128;

    pub(super) fn push(&mut self, peer: PeerIndex, event: Event) {
        self.queue.push_back((peer, Queued::Event(event)));
    }

    /// A frame that pushes a body, which is hashed later.
    pub(super) fn push_body(&mut self, peer: PeerIndex, frame: Frame, kind: HashKind) {
        self.queue.push_back((peer, Queued::Push(frame, kind)));
    }

    pub(super) fn pop(&mut self) -> Option<(PeerIndex, Event)> {
        if self.verified.is_empty()
            && let Some((_, Queued::Push(_, kind))) = self.queue.front()
        {
            let kind = *kind;
            self.verify(kind);
        }
        let (peer, queued) = self.queue.pop_front()?;
        let event = match queued {
            Queued::Event(event) => event,
            Queued::Push(frame, _) => {
                let body = self.verified.pop_front()?;
                Event::Link(Incoming::Frame(frame.map_body(|_| body)))
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
            Queued::Push(frame, kind) => Some((frame.pushed()?.1, *kind)),
            Queued::Event(_) => None,
        });
        let alike = pushes.take_while(|(_, of)| *of == kind).take(Self::TOGETHER);
        let bodies = alike.map(|(body, _)| std::mem::take(body)).collect();
        self.verified.extend(Verified::hash_all(kind, bodies));
    }
}
