//! One connection: its phase, and its streams as the engine's words.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionError, Dir, StreamEvent, StreamId, VarInt};

use super::config::HashOf;
use super::counters::QuicCounters;
use super::egress::{Egress, SendWindows, Unwritten};
use super::events::Events;
use super::ingress::{Ingress, Offence};
use super::keys::{Entry, Keys, Role};
use super::{Event, keys};
use crate::metrics::{Stage, Stages};
use crate::types::{
    Class, Classes, ConnectionNumber, HashKind, Instant, PeerIndex, PerClass, StreamKey, TopicId,
};
use crate::wire::{Frame, Incoming, Outgoing, Reply, ReplyHead};

/// Stream error code: the sender gave it up.
pub(super) const ABANDONED: VarInt = VarInt::from_u32(0);
/// Stream error code: the receiver does not know the topic.
pub(super) const UNKNOWN_TOPIC: VarInt = VarInt::from_u32(1);
/// Stream error code: the receiver does not want it, or no more of it.
pub(super) const UNWANTED: VarInt = VarInt::from_u32(2);

/// Keys that the transport chooses have this bit; keys that the engine chooses do not.
const TRANSPORT_KEY: u64 = 1 << 63;

/// The limits that apply to streams.
pub(super) struct StreamLimits {
    pub(super) artifact_limit: u32,
    pub(super) pushes_in_assembly: usize,
    pub(super) send_windows: SendWindows,
    pub(super) hash_of: HashOf,
}

/// What all links write to.
pub(super) struct Shared {
    pub(super) limits: StreamLimits,
    pub(super) events: Events,
    pub(super) counters: QuicCounters,
    pub(super) stages: Arc<PerClass<Stages>>,
    pub(super) now: Instant,
    pub(super) turn: u64,
    /// Kept for its capacity.
    pub(super) frames: Vec<Frame>,
    last_key: u64,
    /// The turn, the topic, and its hash.
    last_hash: Option<(u64, TopicId, HashKind)>,
}

impl Shared {
    pub(super) fn new(limits: StreamLimits) -> Shared {
        Shared {
            limits,
            events: Events::default(),
            counters: QuicCounters::default(),
            stages: Arc::default(),
            now: Instant::ZERO,
            turn: 1,
            frames: Vec::new(),
            last_key: TRANSPORT_KEY,
            last_hash: None,
        }
    }

    pub(super) fn emit(&mut self, peer: PeerIndex, incoming: Incoming) {
        self.events.push(peer, Event::Link(incoming));
    }

    /// A frame of a batch: a body that it pushes is hashed later, with others.
    pub(super) fn emit_frame(&mut self, peer: PeerIndex, mut frame: Frame) {
        let Some((topic, _)) = frame.pushed() else {
            // Nothing in it is hashed.
            return self.emit(peer, Incoming::Frame(frame.verified(HashKind::default())));
        };
        match self.hash_of(topic) {
            Some(kind) => self.events.push_body(peer, frame, kind),
            None => self.counters.traffic.unknown_topics += 1,
        }
    }

    /// How a topic's bodies are hashed. Who opens topics shares the table behind it, so it is asked once for many.
    fn hash_of(&mut self, topic: TopicId) -> Option<HashKind> {
        match self.last_hash {
            Some((turn, last, kind)) if (turn, last) == (self.turn, topic) => Some(kind),
            _ => {
                let kind = (self.limits.hash_of)(topic)?;
                self.last_hash = Some((self.turn, topic, kind));
                Some(kind)
            }
        }
    }

    /// Something was in a stage since `since`, and is not any more.
    pub(super) fn record(&self, class: Class, stage: Stage, since: Instant) {
        self.stages[class].record(stage, since, self.now);
    }

    pub(super) fn fresh_key(&mut self) -> StreamKey {
        self.last_key += 1;
        StreamKey(self.last_key)
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until `deadline`; `dialled` is whom we dialled, if we did and it is still a member.
    Handshake { deadline: Instant, client: bool, dialled: Option<PeerIndex> },
    /// The engine knows it.
    Live { peer: PeerIndex, number: ConnectionNumber },
    /// Closed; kept until late packets can no longer arrive.
    Closing,
}

/// What a connection's events come to, beyond its streams.
#[derive(Debug)]
pub(super) enum Milestone {
    Connected,
    Lost(ConnectionError),
    Offence(Offence),
}

/// One connection's parts, as stream code needs them.
pub(super) struct Io<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) shared: &'a mut Shared,
    pub(super) keys: &'a mut Keys,
    pub(super) peer: PeerIndex,
}

/// A fetch that waits for a bidirectional stream.
pub(super) struct Fetch {
    key: StreamKey,
    request: Bytes,
    kind: crate::types::HashKind,
    limit: u32,
}

pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) phase: Phase,
    /// When it stands in the timers.
    pub(super) deadline: Option<Instant>,
    /// Whether it stands in line to transmit, and in that of the urgent.
    pub(super) ready: bool,
    pub(super) urged: bool,
    /// Something was queued and nothing written since.
    pub(super) unflushed: bool,
    /// The turn that `transmits` counts.
    pub(super) turn: u64,
    pub(super) transmits: u32,
    /// Lost packets that are in the counters.
    pub(super) lost_counted: u64,
    streams: Streams,
}

#[derive(Default)]
pub(super) struct Streams {
    pub(super) ingress: Ingress,
    pub(super) egress: Egress,
    pub(super) keys: Keys,
    pub(super) fetches: PerClass<VecDeque<Fetch>>,
}

/// The rest of a link, and its streams' view of it; `None` unless it is live.
macro_rules! io {
    ($link:expr, $shared:expr) => {{
        let Phase::Live { peer, .. } = $link.phase else { return Default::default() };
        let Streams { ingress, egress, keys, fetches } = &mut $link.streams;
        let io = Io { connection: &mut $link.connection, shared: $shared, keys, peer };
        (io, ingress, egress, fetches)
    }};
}

impl Link {
    pub(super) fn new(connection: Connection, phase: Phase, egress: Egress) -> Link {
        Link {
            connection,
            phase,
            deadline: None,
            ready: false,
            urged: false,
            unflushed: false,
            turn: 0,
            transmits: 0,
            lost_counted: 0,
            streams: Streams { egress, ..Streams::default() },
        }
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// No event of a stream follows, and their memory goes at once.
    pub(super) fn close_streams(&mut self) {
        self.phase = Phase::Closing;
        self.streams = Streams::default();
    }

    /// Handles the connection's events up to the next milestone.
    pub(super) fn next_milestone(&mut self, shared: &mut Shared) -> Option<Milestone> {
        // Readable events come once per packet, but one read takes all that is there.
        let mut just_read = None;
        while let Some(event) = self.connection.poll() {
            use quinn_proto::Event as Quinn;
            match event {
                Quinn::Connected => return Some(Milestone::Connected),
                Quinn::ConnectionLost { reason } => return Some(Milestone::Lost(reason)),
                Quinn::Stream(StreamEvent::Readable { id }) if just_read == Some(id) => (),
                Quinn::Stream(event) => {
                    if let StreamEvent::Readable { id } = event {
                        just_read = Some(id);
                    }
                    if let Some(offence) = self.handle_stream(&event, shared) {
                        return Some(Milestone::Offence(offence));
                    }
                }
                Quinn::HandshakeDataReady | Quinn::DatagramReceived | Quinn::DatagramsUnblocked => (),
            }
        }
        self.resume_deferred(shared).map(Milestone::Offence)
    }

    fn resume_deferred(&mut self, shared: &mut Shared) -> Option<Offence> {
        let (mut io, ingress, ..) = io!(self, shared);
        ingress.resume(&mut io).err()
    }

    /// Takes up the streams that a peer opened before its handshake was seen to end.
    pub(super) fn accept_all(&mut self, shared: &mut Shared) -> Option<Offence> {
        let (mut io, ingress, ..) = io!(self, shared);
        ingress.accept(&mut io, Dir::Uni).and_then(|()| ingress.accept(&mut io, Dir::Bi)).err()
    }

    fn handle_stream(&mut self, event: &StreamEvent, shared: &mut Shared) -> Option<Offence> {
        let (mut io, ingress, egress, _) = io!(self, shared);
        match *event {
            StreamEvent::Opened { dir } => ingress.accept(&mut io, dir).err(),
            StreamEvent::Readable { id } => ingress.read(&mut io, id).err(),
            StreamEvent::Finished { id } => {
                let mut written = egress.take_timed(id);
                if let Some((key, Role::Push | Role::Reply)) = io.keys.on(id) {
                    written = io.keys.get(key).and_then(|entry| entry.written);
                    io.keys.end(key, Incoming::Sent { key, whole: true }, io.peer, io.shared);
                }
                if let Some((class, written)) = written {
                    io.shared.record(class, Stage::Flight, written);
                }
                None
            }
            StreamEvent::Stopped { id, .. } => {
                handle_stop(&mut io, egress, id);
                None
            }
            // What waits is tried again after every packet, whatever unblocked it.
            StreamEvent::Writable { .. } | StreamEvent::Available { .. } => None,
        }
    }

    /// The classes that take something now.
    pub(super) fn room(&self) -> Classes {
        match self.phase {
            Phase::Live { .. } => self.streams.egress.room(),
            Phase::Handshake { .. } | Phase::Closing => Classes::NONE,
        }
    }

    /// Queues `outgoing`.
    pub(super) fn send(&mut self, outgoing: Outgoing, shared: &mut Shared) {
        self.unflushed = true;
        let (io, _, egress, fetches) = io!(self, shared);
        let since = io.shared.now;
        let unwritten = |stream, key, head, body| Unwritten { stream, key, head, body, since };
        match outgoing {
            Outgoing::Batch { class, bytes } => {
                egress.queue(io.connection, class, unwritten(None, None, bytes, Bytes::new()));
            }
            Outgoing::Push { class, key, head, body } => {
                debug_assert!(key.0 & TRANSPORT_KEY == 0, "{key:?} is of the transport's keys");
                io.keys.insert(key, Role::Push, None);
                egress.queue(io.connection, class, unwritten(None, Some(key), head, body));
            }
            Outgoing::Fetch { class, key, request, limit } => {
                debug_assert!(key.0 & TRANSPORT_KEY == 0, "{key:?} is of the transport's keys");
                io.keys.insert(key, Role::Fetch, None);
                match (io.shared.limits.hash_of)(request.topic) {
                    Some(kind) => {
                        let limit = limit.min(io.shared.limits.artifact_limit);
                        fetches[class].push_back(Fetch { key, request: request.encode(), kind, limit });
                    }
                    None => {
                        let broken = Incoming::Reply { key, reply: Reply::Broken };
                        io.keys.end(key, broken, io.peer, io.shared);
                    }
                }
            }
            Outgoing::Reply { class, key, reply } => {
                let stream = match io.keys.get(key) {
                    Some(Entry { role: Role::Request, stream: Some(stream), over: false, .. }) => stream,
                    // Answered already, or given up by the peer.
                    Some(_) | None => return,
                };
                io.keys.insert(key, Role::Reply, Some(stream));
                let (head, body) = encode_reply(reply);
                egress.queue(io.connection, class, unwritten(Some(stream), Some(key), head, body));
            }
        }
    }

    /// Moves queued bytes into quinn's buffer, as far as they go. Whether any went.
    pub(super) fn write(&mut self, shared: &mut Shared) -> bool {
        self.unflushed = false;
        let (mut io, ingress, egress, fetches) = io!(self, shared);
        for class in Class::ALL {
            while !fetches[class].is_empty() {
                let Some(stream) = io.connection.streams().open(Dir::Bi) else { break };
                let Some(fetch) = fetches[class].pop_front() else { break };
                io.keys.opened(fetch.key, stream);
                ingress.expect_reply(stream, fetch.key, fetch.kind, fetch.limit);
                let (head, body, since) = (fetch.request, Bytes::new(), io.shared.now);
                let request = Unwritten { stream: Some(stream), key: None, head, body, since };
                egress.queue(io.connection, class, request);
            }
        }
        egress.write(&mut io)
    }

    /// Urgent bytes that wait for a datagram.
    pub(super) fn urgent(&self) -> usize {
        self.streams.egress.urgent()
    }

    /// These datagrams were transmitted; `None` when there was nothing, or the path takes no more now. Whether there may be more.
    pub(super) fn transmitted(&mut self, transmit: Option<&quinn_proto::Transmit>) -> bool {
        let egress = &mut self.streams.egress;
        match transmit {
            Some(transmit) => {
                let datagrams = transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size.max(1)));
                egress.transmitted(datagrams, transmit.size);
            }
            None if egress.nothing_transmitted() => (),
            None => return false,
        }
        self.unflushed |= egress.waits_for_share();
        true
    }

    /// Abandons what `key` names.
    pub(super) fn reset(&mut self, key: StreamKey, shared: &mut Shared) -> Abandoned {
        let (io, ingress, egress, fetches) = io!(self, shared);
        let Some(entry) = io.keys.remove(key) else { return Abandoned::Unknown };
        if entry.over {
            return Abandoned::EventQueued;
        }
        io.shared.counters.traffic.streams_reset += 1;
        egress.remove(|unwritten| {
            unwritten.key == Some(key) || (entry.stream.is_some() && unwritten.stream == entry.stream)
        });
        let Some(stream) = entry.stream else {
            fetches.0.iter_mut().for_each(|queue| queue.retain(|fetch| fetch.key != key));
            return Abandoned::Silently;
        };
        if let Role::Assembly | Role::Fetch = entry.role {
            ingress.stop(io.connection, stream);
        }
        if let Role::Push | Role::Reply | Role::Request | Role::Fetch = entry.role {
            let _ = io.connection.send_stream(stream).reset(ABANDONED);
        }
        Abandoned::Silently
    }

    /// An event of this link was polled.
    pub(super) fn polled(&mut self, incoming: &Incoming) {
        if let Some(key) = keys::ended_by(incoming) {
            self.streams.keys.remove(key);
        }
    }
}

/// What abandoning a stream came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Abandoned {
    /// No such stream (any more).
    #[default]
    Unknown,
    /// No event of it follows.
    Silently,
    /// Its last event is queued already.
    EventQueued,
}

/// The peer does not want the rest of one of our streams.
fn handle_stop(io: &mut Io<'_>, egress: &mut Egress, stream: StreamId) {
    io.shared.counters.traffic.streams_stopped_by_peer += 1;
    egress.remove(|unwritten| unwritten.stream == Some(stream));
    egress.take_timed(stream);
    let _ = io.connection.send_stream(stream).reset(ABANDONED);
    match io.keys.on(stream) {
        Some((key, Role::Push | Role::Reply | Role::Request)) => {
            io.keys.end(key, Incoming::Sent { key, whole: false }, io.peer, io.shared);
        }
        Some((_, Role::Fetch | Role::Assembly)) | None => (),
    }
}

fn encode_reply(reply: Reply<Bytes>) -> (Bytes, Bytes) {
    match reply {
        Reply::Found(body) => match u32::try_from(body.len()) {
            Ok(size) => (ReplyHead::Found { size }.encode(), body),
            Err(_) => (ReplyHead::NotFound.encode(), Bytes::new()),
        },
        Reply::NotFound | Reply::Broken => (ReplyHead::NotFound.encode(), Bytes::new()),
        Reply::Busy => (ReplyHead::Busy.encode(), Bytes::new()),
    }
}
