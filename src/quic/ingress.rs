//! One peer's incoming streams: bytes to frames, pushed bodies, requests and replies.
//!
//! Small batches usually arrive whole: such a stream is read in one go and leaves no state behind.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::{Connection, Dir, ReadError, StreamId};

use super::keys::{Keys, Role};
use super::link::{ABANDONED, Io, Shared, UNKNOWN_TOPIC, UNWANTED};
use super::pace::Pace;
use super::places::Places;
use crate::types::{BodyReader, HashKind, PeerIndex, StreamKey, TopicId};
use crate::wire::{
    BatchReader, FetchRequest, Incoming, PushHead, Reply, ReplyHead, STREAM_BATCH, STREAM_PUSH, WireError,
};

/// Streams that a peer may reset at once, and the time between further ones: an honest peer resets large
/// pushes only, of which not even 20,000 fit into a second of a 10 Gbit/s path.
const RESET_BURST: u32 = 4096;
const RESET_INTERVAL: Duration = Duration::from_micros(50);

/// Why reading ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offence {
    /// Bytes that are no frames, or break a limit.
    Fault(WireError),
    /// Streams reset too fast.
    Flood,
}

impl From<WireError> for Offence {
    fn from(error: WireError) -> Offence {
        Offence::Fault(error)
    }
}

/// A stream that has begun and not ended.
enum Reading {
    /// Unidirectional, no byte yet.
    New,
    Batch(BatchReader),
    PushHead(Vec<u8>),
    /// A push that waits for a place, with what was read of it.
    Deferred {
        topic: TopicId,
        bytes: Bytes,
    },
    Push(Box<Push>),
    /// A push whose topic is unknown: stopped.
    Stopped,
    Request(Vec<u8>),
    Reply(Box<ReplyReading>),
}

struct Push {
    key: StreamKey,
    head: PushHead,
    body: BodyReader,
}

struct ReplyReading {
    key: StreamKey,
    kind: HashKind,
    limit: u32,
    head: Vec<u8>,
    body: Option<BodyReader>,
    /// The turn of the last `Progress`.
    turn: u64,
}

/// How reading a stream paused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Blocked,
    Finished,
    Reset,
    /// Nothing more is to be read now, or ever.
    Enough,
}

#[derive(Default)]
pub(super) struct Ingress {
    reading: BTreeMap<StreamId, Reading>,
    /// Pushes that wait unread, the oldest first.
    deferred: VecDeque<(StreamId, TopicId)>,
    places: Places,
    resets: Pace,
}

impl Ingress {
    /// A stream of ours on which a reply will come.
    pub(super) fn expect_reply(&mut self, stream: StreamId, key: StreamKey, kind: HashKind, limit: u32) {
        let reply = ReplyReading { key, kind, limit, head: Vec::new(), body: None, turn: 0 };
        self.reading.insert(stream, Reading::Reply(Box::new(reply)));
    }

    /// Streams that have begun and not ended.
    pub(super) fn reading(&self) -> usize {
        self.reading.len()
    }

    /// Pushes being gathered.
    pub(super) fn assembling(&self) -> usize {
        self.places.taken()
    }

    /// Reads every stream that the peer opened since.
    pub(super) fn accept(&mut self, io: &mut Io<'_>, dir: Dir) -> Result<(), Offence> {
        while let Some(stream) = io.connection.streams().accept(dir) {
            let fresh = match dir {
                Dir::Uni => Reading::New,
                Dir::Bi => Reading::Request(Vec::new()),
            };
            self.read_as(io, stream, fresh)?;
        }
        Ok(())
    }

    /// Reads a stream that has news.
    pub(super) fn read(&mut self, io: &mut Io<'_>, stream: StreamId) -> Result<(), Offence> {
        match self.reading.remove(&stream) {
            Some(Reading::Deferred { topic, bytes }) => self.check_deferred(io, stream, topic, bytes),
            Some(reading) => self.read_as(io, stream, reading),
            // Stopped, or over.
            None => Ok(()),
        }
    }

    /// The engine does not want the rest of `stream`.
    pub(super) fn stop(&mut self, connection: &mut Connection, stream: StreamId) {
        if let Some(Reading::Push(push)) = self.reading.remove(&stream) {
            self.places.give_back(push.head.topic);
        }
        let _ = connection.recv_stream(stream).stop(UNWANTED);
    }

    /// Takes up pushes that wait, as far as others have made room.
    pub(super) fn resume(&mut self, io: &mut Io<'_>) -> Result<(), Offence> {
        let shared = io.shared.limits.pushes_in_assembly;
        let next = |ingress: &Ingress| {
            ingress.deferred.iter().position(|(_, topic)| ingress.places.has_one(*topic, shared))
        };
        while let Some(at) = next(self) {
            let Some((stream, _)) = self.deferred.remove(at) else { break };
            if let Some(Reading::Deferred { bytes, .. }) = self.reading.remove(&stream) {
                let mut reading = Reading::PushHead(Vec::new());
                if self.feed(io, stream, &mut reading, &bytes)? == Pause::Blocked {
                    self.read_as(io, stream, reading)?;
                } else {
                    self.settle(io, stream, reading, Pause::Enough)?;
                }
            }
        }
        Ok(())
    }

    /// A push that waits stays unread; but its sender may have given it up.
    fn check_deferred(
        &mut self,
        io: &mut Io<'_>,
        stream: StreamId,
        topic: TopicId,
        bytes: Bytes,
    ) -> Result<(), Offence> {
        if let Ok(Some(_)) = io.connection.recv_stream(stream).received_reset() {
            self.deferred.retain(|&(other, _)| other != stream);
            return self.count_reset(io);
        }
        self.reading.insert(stream, Reading::Deferred { topic, bytes });
        Ok(())
    }

    fn count_reset(&mut self, io: &mut Io<'_>) -> Result<(), Offence> {
        io.shared.counters.traffic.streams_reset_by_peer += 1;
        match self.resets.take(io.shared.now, RESET_INTERVAL, RESET_BURST) {
            true => Ok(()),
            false => Err(Offence::Flood),
        }
    }

    fn read_as(&mut self, io: &mut Io<'_>, stream: StreamId, mut reading: Reading) -> Result<(), Offence> {
        let Io { connection, shared, keys, peer } = io;
        let mut receiver = connection.recv_stream(stream);
        let Ok(mut chunks) = receiver.read(true) else { return Ok(()) };
        let mut arrived = false;
        let pause = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    arrived = true;
                    let mut sink = Sink { shared, keys, places: &mut self.places, peer: *peer, stream };
                    match sink.take(&mut reading, &chunk.bytes) {
                        Ok(Pause::Blocked) => (),
                        Ok(enough) => break enough,
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(None) => break Pause::Finished,
                Err(ReadError::Blocked) => break Pause::Blocked,
                Err(ReadError::Reset(_)) => break Pause::Reset,
            }
        };
        // Whether it asks for a packet does not matter: whoever reads polls the connection for packets
        // afterwards.
        let _ = chunks.finalize();
        if let (Reading::Reply(reply), true, Pause::Blocked) = (&mut reading, arrived, pause)
            && std::mem::replace(&mut reply.turn, shared.turn) != shared.turn
        {
            shared.emit(*peer, Incoming::Progress { key: reply.key });
        }
        self.settle(io, stream, reading, pause)
    }

    fn feed(
        &mut self,
        io: &mut Io<'_>,
        stream: StreamId,
        reading: &mut Reading,
        bytes: &Bytes,
    ) -> Result<Pause, Offence> {
        let Io { shared, keys, peer, .. } = io;
        let mut sink = Sink { shared, keys, places: &mut self.places, peer: *peer, stream };
        Ok(sink.take(reading, bytes)?)
    }

    /// Does what follows from a stream's pause or end.
    fn settle(
        &mut self,
        io: &mut Io<'_>,
        stream: StreamId,
        reading: Reading,
        pause: Pause,
    ) -> Result<(), Offence> {
        if let (Reading::Deferred { topic, .. }, Pause::Enough) = (&reading, pause) {
            self.deferred.push_back((stream, *topic));
            self.reading.insert(stream, reading);
            return Ok(());
        }
        if pause == Pause::Blocked {
            self.reading.insert(stream, reading);
            return Ok(());
        }
        if pause == Pause::Reset {
            self.count_reset(io)?;
        }
        let whole = pause == Pause::Finished;
        match reading {
            Reading::New | Reading::PushHead(_) if whole => return Err(WireError::Truncated.into()),
            Reading::Batch(batch) if whole => batch.end()?,
            Reading::Push(push) => {
                let Push { key, head, body } = *push;
                self.places.give_back(head.topic);
                let incoming = match body.finish() {
                    Some(body) if whole => Incoming::Pushed { key, head, body },
                    _ => Incoming::PushBroken { key, head },
                };
                io.keys.end(key, incoming, io.peer, io.shared);
            }
            Reading::Stopped => {
                io.shared.counters.traffic.unknown_topics += 1;
                let _ = io.connection.recv_stream(stream).stop(UNKNOWN_TOPIC);
            }
            Reading::Request(bytes) if whole => {
                let request = FetchRequest::decode(&bytes)?;
                let key = io.shared.fresh_key();
                io.keys.insert(key, Role::Request, Some(stream));
                io.shared.emit(io.peer, Incoming::Request { key, request });
            }
            // Given up before it was asked: nothing will be answered.
            Reading::Request(_) => drop(io.connection.send_stream(stream).reset(ABANDONED)),
            Reading::Reply(reply) => {
                let _ = io.connection.recv_stream(stream).stop(UNWANTED);
                let (key, answer) = reply.finish(whole);
                io.keys.end(key, Incoming::Reply { key, reply: answer }, io.peer, io.shared);
            }
            Reading::New | Reading::Batch(_) | Reading::PushHead(_) | Reading::Deferred { .. } => (),
        }
        Ok(())
    }
}

/// Where the content of one stream goes.
struct Sink<'a> {
    shared: &'a mut Shared,
    keys: &'a mut Keys,
    places: &'a mut Places,
    peer: PeerIndex,
    stream: StreamId,
}

impl Sink<'_> {
    /// Takes the stream's next bytes. `Pause::Blocked` asks for more.
    fn take(&mut self, reading: &mut Reading, bytes: &Bytes) -> Result<Pause, WireError> {
        match reading {
            Reading::New => self.first(reading, bytes),
            Reading::Batch(batch) => self.frames(batch, bytes).map(|()| Pause::Blocked),
            Reading::PushHead(_) => self.push_head(reading, bytes),
            Reading::Push(push) => {
                append(&mut push.body, bytes)?;
                Ok(Pause::Blocked)
            }
            Reading::Request(request) => {
                let extra = (request.len() + bytes.len()).saturating_sub(FetchRequest::LEN);
                if extra > 0 {
                    return Err(WireError::Trailing { extra });
                }
                request.extend_from_slice(bytes);
                Ok(Pause::Blocked)
            }
            Reading::Reply(reply) => self.reply(reply, bytes),
            Reading::Deferred { .. } | Reading::Stopped => Ok(Pause::Enough),
        }
    }

    fn first(&mut self, reading: &mut Reading, bytes: &Bytes) -> Result<Pause, WireError> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(Pause::Blocked) };
        match first {
            STREAM_BATCH => {
                let mut batch = BatchReader::default();
                self.frames(&mut batch, rest)?;
                *reading = Reading::Batch(batch);
                Ok(Pause::Blocked)
            }
            STREAM_PUSH => {
                *reading = Reading::PushHead(Vec::new());
                self.push_head(reading, rest)
            }
            unknown => Err(WireError::UnknownStream(unknown)),
        }
    }

    fn frames(&mut self, batch: &mut BatchReader, bytes: &[u8]) -> Result<(), WireError> {
        let mut frames = std::mem::take(&mut self.shared.frames);
        let read = batch.read(bytes, &mut frames);
        self.shared.counters.traffic.frames_in += frames.len() as u64;
        for frame in frames.drain(..) {
            self.shared.emit_frame(self.peer, frame);
        }
        self.shared.frames = frames;
        read
    }

    fn push_head(&mut self, reading: &mut Reading, bytes: &[u8]) -> Result<Pause, WireError> {
        let Reading::PushHead(before) = reading else { return Ok(Pause::Enough) };
        let gathered: Vec<u8>;
        let all = if before.is_empty() {
            bytes
        } else {
            gathered = [before.as_slice(), bytes].concat();
            &gathered
        };
        let Some((head, len)) = PushHead::decode(all)? else {
            // Incomplete: shorter than a head can be, so the copy is small.
            before.extend_from_slice(bytes);
            return Ok(Pause::Blocked);
        };
        let Some(kind) = (self.shared.limits.hash_of)(head.topic) else {
            *reading = Reading::Stopped;
            return Ok(Pause::Enough);
        };
        let limit = self.shared.limits.artifact_limit;
        if head.size > limit {
            return Err(WireError::TooLarge { found: head.size.into(), limit: limit.into() });
        }
        if !self.places.has_one(head.topic, self.shared.limits.pushes_in_assembly) {
            self.shared.counters.traffic.pushes_deferred += 1;
            // A copy, so that what waits does not pin a receive buffer.
            *reading = Reading::Deferred { topic: head.topic, bytes: Bytes::copy_from_slice(all) };
            return Ok(Pause::Enough);
        }
        self.places.take(head.topic);
        let mut body = BodyReader::new(kind, head.size as usize);
        let key = self.shared.fresh_key();
        self.keys.insert(key, Role::Assembly, Some(self.stream));
        self.shared.emit(self.peer, Incoming::PushStarted { key, head: head.clone() });
        append(&mut body, all.get(len..).unwrap_or_default())?;
        *reading = Reading::Push(Box::new(Push { key, head, body }));
        Ok(Pause::Blocked)
    }

    fn reply(&mut self, reply: &mut ReplyReading, bytes: &[u8]) -> Result<Pause, WireError> {
        if let Some(body) = &mut reply.body {
            append(body, bytes)?;
            return Ok(Pause::Blocked);
        }
        reply.head.extend_from_slice(bytes.get(..bytes.len().min(ReplyReading::HEAD)).unwrap_or_default());
        let before = reply.head.len() - bytes.len().min(ReplyReading::HEAD);
        match ReplyHead::decode(&reply.head)? {
            None => Ok(Pause::Blocked),
            Some((ReplyHead::Found { size }, len)) if size <= reply.limit => {
                let mut body = BodyReader::new(reply.kind, size as usize);
                append(&mut body, bytes.get(len.saturating_sub(before)..).unwrap_or_default())?;
                reply.body = Some(body);
                Ok(Pause::Blocked)
            }
            // No body follows, or one that is not wanted.
            Some(_) => Ok(Pause::Enough),
        }
    }
}

impl ReplyReading {
    /// The longest head.
    const HEAD: usize = 5;

    fn finish(self, whole: bool) -> (StreamKey, Reply<crate::types::Verified>) {
        let answer = match (self.body, ReplyHead::decode(&self.head)) {
            (Some(body), _) if whole => body.finish().map_or(Reply::Broken, Reply::Found),
            (None, Ok(Some((ReplyHead::NotFound, _)))) => Reply::NotFound,
            (None, Ok(Some((ReplyHead::Busy, _)))) => Reply::Busy,
            _ => Reply::Broken,
        };
        (self.key, answer)
    }
}

fn append(body: &mut BodyReader, bytes: &[u8]) -> Result<(), WireError> {
    let found = (body.len() + bytes.len()) as u64;
    body.append(bytes).map_err(|long| WireError::TooLarge { found, limit: long.announced as u64 })
}
