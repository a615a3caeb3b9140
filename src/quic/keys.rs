//! Which stream a key names, so that the engine can abandon it.

use std::collections::BTreeMap;

use quinn_proto::StreamId;

use super::link::Shared;
use crate::types::{Class, Instant, PeerIndex, StreamKey};
use crate::wire::Incoming;

/// What a named stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A body that we push.
    Push,
    /// A body that the peer pushes.
    Assembly,
    /// Our request and its reply.
    Fetch,
    /// The peer's request, not yet answered.
    Request,
    /// Our answer to the peer's request.
    Reply,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) role: Role,
    /// `None` until there is stream credit.
    pub(super) stream: Option<StreamId>,
    /// Its last event is queued and not yet polled.
    pub(super) over: bool,
    /// When it was wholly written, if it was, and of which class it is.
    pub(super) written: Option<(Class, Instant)>,
}

/// The named streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Keys {
    entries: BTreeMap<StreamKey, Entry>,
    streams: BTreeMap<StreamId, StreamKey>,
}

impl Keys {
    pub(super) fn insert(&mut self, key: StreamKey, role: Role, stream: Option<StreamId>) {
        self.entries.insert(key, Entry { role, stream, over: false, written: None });
        if let Some(stream) = stream {
            self.streams.insert(stream, key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// `key` travels on `stream` now.
    pub(super) fn opened(&mut self, key: StreamKey, stream: StreamId) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.stream = Some(stream);
            self.streams.insert(stream, key);
        }
    }

    /// What `key` names is wholly in QUIC's send buffer.
    pub(super) fn written(&mut self, key: StreamKey, class: Class, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.written = Some((class, now));
        }
    }

    pub(super) fn get(&self, key: StreamKey) -> Option<Entry> {
        self.entries.get(&key).copied()
    }

    /// What `stream` carries, if it is named.
    pub(super) fn on(&self, stream: StreamId) -> Option<(StreamKey, Role)> {
        let key = *self.streams.get(&stream)?;
        Some((key, self.entries.get(&key)?.role))
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        if let Some(stream) = entry.stream {
            self.streams.remove(&stream);
        }
        Some(entry)
    }

    /// Queues the last event of `key`, which stays known until that is polled.
    pub(super) fn end(&mut self, key: StreamKey, last: Incoming, peer: PeerIndex, shared: &mut Shared) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.over = true;
            if let Some(stream) = entry.stream {
                self.streams.remove(&stream);
            }
        }
        shared.emit(peer, last);
    }
}

/// The key whose last event this is.
pub(super) fn ended_by(incoming: &Incoming) -> Option<StreamKey> {
    match incoming {
        Incoming::Pushed { key, .. }
        | Incoming::PushBroken { key, .. }
        | Incoming::Reply { key, .. }
        | Incoming::Sent { key, .. } => Some(*key),
        Incoming::Frame(_)
        | Incoming::PushStarted { .. }
        | Incoming::Request { .. }
        | Incoming::Progress { .. }
        | Incoming::Fault(_) => None,
    }
}
