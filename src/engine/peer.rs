//! What a peer says of itself and of our tables: which start of it speaks, what it listens to, what it holds already, and what
//! it refuses to hold.

use crate::metrics::Happening;
use crate::types::{ConnectionNumber, Instant, PeerIndex};
use crate::wire::{CloseCode, Frame, Held, Hello, Open, Refused};

use super::{Effects, Engine, open_frame, resync_frame};

/// Which start of a peer spoke last, over all its connections since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot {
    /// As it said in its [`Hello`].
    pub(super) number: u64,
    /// The first connection on which it did: what was heard on an older one may be of another start.
    pub(super) since: ConnectionNumber,
}

impl Engine {
    /// What a new connection begins with. What we hold of the peer's tables comes before the `Open` that makes it tell them.
    pub(super) fn greet(&mut self, peer: PeerIndex) {
        let boot = self.boots.get(peer.index()).copied().flatten();
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        link.control.push_back(Frame::Hello(self.config.hello));
        for topic in &self.topics {
            if let Some(boot) = boot {
                // Whether it is still the start that speaks we do not know yet; the peer does.
                let held = Held::pack(topic.id(), boot.number, topic.view.held(peer, boot.since));
                link.control.extend(held.into_iter().map(Frame::Held));
            }
            link.control
                .push_back(Frame::Open(open_frame(topic.config(), self.config.limits.artifact_bytes)));
        }
    }

    pub(super) fn hello(&mut self, peer: PeerIndex, hello: Hello, fx: &mut Effects) {
        let ours = &self.config.hello;
        if (hello.subnet, hello.lanes, hello.lane) != (ours.subnet, ours.lanes, ours.lane) {
            return self.fault(peer, CloseCode::Mismatch, fx);
        }
        let (Some(link), Some(boot)) = (self.links.get_mut(peer.index()), self.boots.get_mut(peer.index()))
        else {
            return;
        };
        link.greeted = true;
        if let Some(since) = link.connection
            && boot.is_none_or(|boot| boot.number != hello.boot)
        {
            *boot = Some(Boot { number: hello.boot, since });
        }
    }

    /// The oldest connection on which the peer's claims were made by the start of it that speaks now.
    pub(super) fn heard_since(&self, peer: PeerIndex) -> Option<ConnectionNumber> {
        let link = self.links.get(peer.index())?;
        let boot = self.boots.get(peer.index()).copied().flatten().filter(|_| link.greeted);
        boot.map(|boot| boot.since).or(link.connection)
    }

    pub(super) fn open(&mut self, peer: PeerIndex, open: Open, fx: &mut Effects) {
        let index = self.index_of(open.topic);
        let Some(link) = self.links.get_mut(peer.index()) else { return };
        if link.opened.len() >= Self::MAX_TOPICS {
            return self.fault(peer, CloseCode::Protocol, fx);
        }
        let again = link.opened.insert(open.topic, open).is_some();
        if let (false, Some(topic)) = (again, index.and_then(|index| self.topics.get_mut(index))) {
            link.control.push_back(resync_frame(topic, peer));
        }
    }

    /// The peer still holds slots of our table, or of one that an earlier start of ours had.
    pub(super) fn held(&mut self, peer: PeerIndex, held: &Held) {
        let topic = self.index_of(held.topic).and_then(|index| self.topics.get_mut(index));
        let Some(topic) = topic.filter(|_| held.boot == self.config.hello.boot) else {
            self.counters.resumes_stale += 1;
            return;
        };
        let resumed = held.slots().filter(|(slot, version)| topic.slots.handle_held(peer, *slot, *version));
        self.counters.slots_resumed += resumed.count() as u64;
    }

    pub(super) fn refused(&mut self, peer: PeerIndex, refused: Refused, now: Instant) {
        self.counters.refused_by_peers += 1;
        let Refused { topic, slot, version, reason } = refused;
        if let Some(topic) = self.index_of(topic).and_then(|index| self.topics.get_mut(index)) {
            topic.counters.refused_by_peers += 1;
            let new = topic.slots.handle_refused(peer, slot, version, reason);
            let id = topic.slots.get_slot(slot).map(|(_, active)| active.id).filter(|_| new);
            let topic = topic.id();
            id.iter().for_each(|id| self.journal.note(now, topic, id, Happening::Refused, Some(peer)));
        }
    }
}
