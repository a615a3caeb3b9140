//! Frames: encode, and decode with limits.
//!
//! A frame in a batch is `type: u8 · length: u24 · payload`. `length` counts the payload alone and is at most [`MAX_FRAME`].

use bytes::{Buf, Bytes, BytesMut};

use super::cursor::Cursor;
use super::held::Held;
use crate::types::{ArtifactId, Attribute, HashKind, RegistryVersion, Slot, TopicId, Verified, Version};

/// First byte of a unidirectional stream of frames.
pub const STREAM_BATCH: u8 = 1;
/// First byte of a unidirectional stream that carries one large pushed body.
pub const STREAM_PUSH: u8 = 2;
/// First byte of a fetch.
const STREAM_FETCH: u8 = 3;

/// Bytes before a frame's payload.
pub const FRAME_HEADER: usize = 4;
/// The largest payload of a frame, in bytes. A body that does not fit travels on a stream of its own.
pub const MAX_FRAME: usize = 64 << 10;
/// The most bytes that one batch stream carries.
pub const MAX_BATCH: usize = 1 + FRAME_HEADER + MAX_FRAME;
/// The most slots of one topic in one lane: a bitmap of all of them fits a frame.
pub const MAX_SLOTS: u32 = 1 << 16;

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const RESYNC: u8 = 3;
const PUSH: u8 = 4;
const ADVERT: u8 = 5;
const CLEAR: u8 = 6;
const REFUSED: u8 = 7;
const HELD: u8 = 8;

/// Why bytes of a peer are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a frame.
    #[error("a frame is truncated")]
    Truncated,
    /// More bytes than the frame has fields.
    #[error("a frame has {extra} bytes too many")]
    Trailing {
        /// Bytes left over.
        extra: usize,
    },
    /// A frame type that this version does not have.
    #[error("unknown frame type {0}")]
    UnknownFrame(u8),
    /// A first byte of a stream that this version does not have.
    #[error("unknown stream type {0}")]
    UnknownStream(u8),
    /// A length above its limit.
    #[error("a length of {found} is above the limit of {limit}")]
    TooLarge {
        /// What was announced.
        found: u64,
        /// What is allowed.
        limit: u64,
    },
    /// An attribute above [`Attribute::MAX`].
    #[error("an attribute has {found} bytes")]
    Attribute {
        /// Its announced length.
        found: usize,
    },
    /// A field whose value has no meaning.
    #[error("field {field} has the unknown value {found}")]
    Value {
        /// Its name.
        field: &'static str,
        /// What was found.
        found: u64,
    },
}

/// The first thing each side says: who speaks, and for which subnet. A mismatch closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// BLAKE3-256 of the subnet's name.
    pub subnet: [u8; 32],
    /// Lanes of the subnet.
    pub lanes: u16,
    /// The lane that speaks.
    pub lane: u16,
    /// The membership record in use.
    pub registry: RegistryVersion,
    /// Drawn at random when the node started: a restart shows.
    pub boot: u64,
}

/// "I take part in this topic, up to these limits." Before it has come, nothing of the topic is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The topic.
    pub topic: TopicId,
    /// Slots per sender that the receiver keeps.
    pub slots: u32,
    /// Bytes per artifact that the receiver accepts.
    pub artifact_bytes: u32,
}

/// A sender's whole table at one version: entries of earlier connections in slots outside `occupied` are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resync {
    /// The topic.
    pub topic: TopicId,
    /// The table's version.
    pub version: Version,
    /// One bit per slot, the lowest bit of the first byte for slot 0; slots beyond it are free.
    pub occupied: Bytes,
}

impl Resync {
    /// Whether `slot` is occupied.
    pub fn is_occupied(&self, slot: Slot) -> bool {
        self.occupied.get(slot.index() / 8).is_some_and(|byte| byte & (1 << (slot.index() % 8)) != 0)
    }
}

/// What became of one slot. A pushed body is bytes on the wire; who receives it hashes it ([`Frame::verified`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update<B = Bytes> {
    /// The topic.
    pub topic: TopicId,
    /// The slot.
    pub slot: Slot,
    /// The sender's table version at this change.
    pub version: Version,
    /// The change.
    pub change: Change<B>,
}

/// What a slot holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<B = Bytes> {
    /// An artifact, with its body.
    Push {
        /// What the filter may look at.
        attribute: Attribute,
        /// The body; its hash is the id.
        body: B,
    },
    /// An artifact, by name.
    Advert {
        /// Its id.
        id: ArtifactId,
        /// Bytes of its body.
        size: u32,
        /// Whether the sender is not its maker.
        relayed: bool,
        /// What the filter may look at.
        attribute: Attribute,
    },
    /// Nothing.
    Clear,
}

/// "I did not take this update."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The topic.
    pub topic: TopicId,
    /// The slot.
    pub slot: Slot,
    /// The update's version.
    pub version: Version,
    /// Why.
    pub reason: Refusal,
}

/// Why an update was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The slot's number is above the receiver's limit.
    SlotLimit,
    /// The artifact is larger than the receiver accepts.
    ArtifactSize,
}

/// A frame of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<B = Bytes> {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Open`].
    Open(Open),
    /// See [`Resync`].
    Resync(Resync),
    /// See [`Update`].
    Update(Update<B>),
    /// See [`Refused`].
    Refused(Refused),
    /// See [`Held`].
    Held(Held),
}

impl<B> Frame<B> {
    /// The same with another form of the body that is pushed, if one is.
    pub fn map_body<C>(self, map: impl FnOnce(B) -> C) -> Frame<C> {
        match self {
            Frame::Hello(hello) => Frame::Hello(hello),
            Frame::Open(open) => Frame::Open(open),
            Frame::Resync(resync) => Frame::Resync(resync),
            Frame::Refused(refused) => Frame::Refused(refused),
            Frame::Held(held) => Frame::Held(held),
            Frame::Update(Update { topic, slot, version, change }) => {
                let change = match change {
                    Change::Push { attribute, body } => Change::Push { attribute, body: map(body) },
                    Change::Advert { id, size, relayed, attribute } => {
                        Change::Advert { id, size, relayed, attribute }
                    }
                    Change::Clear => Change::Clear,
                };
                Frame::Update(Update { topic, slot, version, change })
            }
        }
    }

    /// The topic and the body that is pushed, if one is.
    pub fn pushed(&mut self) -> Option<(TopicId, &mut B)> {
        match self {
            Frame::Update(Update { topic, change: Change::Push { body, .. }, .. }) => Some((*topic, body)),
            _ => None,
        }
    }
}

/// Appends one frame: its header, then what `payload` appends.
fn with_header(out: &mut BytesMut, kind: u8, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0]);
    payload(out);
    let len = out.len() - start - FRAME_HEADER;
    debug_assert!(len <= MAX_FRAME, "frame {kind} of {len} bytes");
    if let Some(field) = out.get_mut(start + 1..start + FRAME_HEADER) {
        field.copy_from_slice(&(len as u32).to_le_bytes()[..3]);
    }
}

fn put_attribute(out: &mut BytesMut, attribute: &Attribute) {
    out.extend_from_slice(&[attribute.as_bytes().len() as u8]);
    out.extend_from_slice(attribute.as_bytes());
}

/// Topic, slot and version: how every frame about a slot begins.
fn put_place(out: &mut BytesMut, topic: TopicId, slot: Slot, version: Version) {
    out.extend_from_slice(&topic.0.to_le_bytes());
    out.extend_from_slice(&slot.0.to_le_bytes());
    out.extend_from_slice(&version.0.to_le_bytes());
}

fn get_place(cursor: &mut Cursor<'_>) -> Result<(TopicId, Slot, Version), WireError> {
    Ok((TopicId(cursor.u16()?), Slot(cursor.u32()?), Version(cursor.u64()?)))
}

/// Bytes of a place: topic, slot, version.
const PLACE: usize = 2 + 4 + 8;

impl Frame {
    /// The same with its pushed body hashed, if it has one.
    pub fn verified(self, kind: HashKind) -> Frame<Verified> {
        self.map_body(|body| Verified::hash(kind, body))
    }

    /// Bytes that [`Frame::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let payload = match self {
            Frame::Hello(_) => 32 + 2 + 2 + 8 + 8,
            Frame::Open(_) => 2 + 4 + 4,
            Frame::Resync(resync) => 2 + 8 + resync.occupied.len(),
            Frame::Update(update) => return Update::encoded_len(&update.change),
            Frame::Refused(_) => PLACE + 1,
            Frame::Held(held) => held.payload_len(),
        };
        FRAME_HEADER + payload
    }

    /// Appends the frame. A [`Resync`] covers at most [`MAX_SLOTS`], a pushed body fits [`MAX_FRAME`] with its fields: larger
    /// ones are a bug of the caller (asserted in debug builds).
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Frame::Hello(hello) => with_header(out, HELLO, |out| {
                out.extend_from_slice(&hello.subnet);
                out.extend_from_slice(&hello.lanes.to_le_bytes());
                out.extend_from_slice(&hello.lane.to_le_bytes());
                out.extend_from_slice(&hello.registry.0.to_le_bytes());
                out.extend_from_slice(&hello.boot.to_le_bytes());
            }),
            Frame::Open(open) => with_header(out, OPEN, |out| {
                out.extend_from_slice(&open.topic.0.to_le_bytes());
                out.extend_from_slice(&open.slots.to_le_bytes());
                out.extend_from_slice(&open.artifact_bytes.to_le_bytes());
            }),
            Frame::Resync(resync) => with_header(out, RESYNC, |out| {
                out.extend_from_slice(&resync.topic.0.to_le_bytes());
                out.extend_from_slice(&resync.version.0.to_le_bytes());
                out.extend_from_slice(&resync.occupied);
            }),
            Frame::Update(update) => update.encode(out),
            Frame::Refused(refused) => with_header(out, REFUSED, |out| {
                put_place(out, refused.topic, refused.slot, refused.version);
                out.extend_from_slice(&[match refused.reason {
                    Refusal::SlotLimit => 1,
                    Refusal::ArtifactSize => 2,
                }]);
            }),
            Frame::Held(held) => with_header(out, HELD, |out| held.encode(out)),
        }
    }

    /// Decodes one payload. A pushed body is copied out of it.
    fn decode(kind: u8, payload: &[u8]) -> Result<Frame, WireError> {
        let mut cursor = Cursor::new(payload);
        let frame = match kind {
            HELLO => Frame::Hello(Hello {
                subnet: cursor.array()?,
                lanes: cursor.u16()?,
                lane: cursor.u16()?,
                registry: RegistryVersion(cursor.u64()?),
                boot: cursor.u64()?,
            }),
            OPEN => Frame::Open(Open {
                topic: TopicId(cursor.u16()?),
                slots: cursor.u32()?,
                artifact_bytes: cursor.u32()?,
            }),
            RESYNC => {
                let (topic, version) = (TopicId(cursor.u16()?), Version(cursor.u64()?));
                let limit = MAX_SLOTS as usize / 8;
                if cursor.remaining() > limit {
                    return Err(WireError::TooLarge {
                        found: cursor.remaining() as u64,
                        limit: limit as u64,
                    });
                }
                let occupied = Bytes::copy_from_slice(cursor.rest());
                return Ok(Frame::Resync(Resync { topic, version, occupied }));
            }
            PUSH => {
                let (topic, slot, version) = get_place(&mut cursor)?;
                let attribute = cursor.attribute()?;
                let body = Bytes::copy_from_slice(cursor.rest());
                return Ok(Frame::Update(Update {
                    topic,
                    slot,
                    version,
                    change: Change::Push { attribute, body },
                }));
            }
            ADVERT => {
                let (topic, slot, version) = get_place(&mut cursor)?;
                let (id, size, relayed) = (cursor.id()?, cursor.u32()?, cursor.u8()?);
                let relayed = match relayed {
                    0 => false,
                    1 => true,
                    found => return Err(WireError::Value { field: "relayed", found: found.into() }),
                };
                let change = Change::Advert { id, size, relayed, attribute: cursor.attribute()? };
                Frame::Update(Update { topic, slot, version, change })
            }
            CLEAR => {
                let (topic, slot, version) = get_place(&mut cursor)?;
                Frame::Update(Update { topic, slot, version, change: Change::Clear })
            }
            REFUSED => {
                let (topic, slot, version) = get_place(&mut cursor)?;
                let reason = match cursor.u8()? {
                    1 => Refusal::SlotLimit,
                    2 => Refusal::ArtifactSize,
                    found => return Err(WireError::Value { field: "refusal", found: found.into() }),
                };
                Frame::Refused(Refused { topic, slot, version, reason })
            }
            HELD => return Held::decode(cursor).map(Frame::Held),
            unknown => return Err(WireError::UnknownFrame(unknown)),
        };
        cursor.end().map(|()| frame)
    }
}

impl Update {
    /// Bytes that the update of `change` takes in a batch, header included.
    pub fn encoded_len(change: &Change) -> usize {
        match change {
            Change::Push { attribute, body } => Self::push_len(attribute, body.len()),
            Change::Advert { attribute, .. } => {
                FRAME_HEADER + PLACE + 32 + 4 + 1 + 1 + attribute.as_bytes().len()
            }
            Change::Clear => FRAME_HEADER + PLACE,
        }
    }

    /// Bytes that the push of a body of `body_len` takes in a batch, header included.
    pub fn push_len(attribute: &Attribute, body_len: usize) -> usize {
        FRAME_HEADER + PLACE + 1 + attribute.as_bytes().len() + body_len
    }

    /// Appends the push of a body that someone else keeps.
    pub(super) fn encode_push(
        out: &mut BytesMut,
        (topic, slot, version): (TopicId, Slot, Version),
        attribute: &Attribute,
        body: &[u8],
    ) {
        with_header(out, PUSH, |out| {
            put_place(out, topic, slot, version);
            put_attribute(out, attribute);
            out.extend_from_slice(body);
        });
    }

    fn encode(&self, out: &mut BytesMut) {
        let place = |out: &mut BytesMut| put_place(out, self.topic, self.slot, self.version);
        match &self.change {
            Change::Push { attribute, body } => {
                Self::encode_push(out, (self.topic, self.slot, self.version), attribute, body);
            }
            Change::Advert { id, size, relayed, attribute } => with_header(out, ADVERT, |out| {
                place(out);
                out.extend_from_slice(&id.0);
                out.extend_from_slice(&size.to_le_bytes());
                out.extend_from_slice(&[u8::from(*relayed)]);
                put_attribute(out, attribute);
            }),
            Change::Clear => with_header(out, CLEAR, place),
        }
    }
}

/// Cuts a batch stream into frames as its bytes arrive. Holds at most one incomplete frame.
#[derive(Debug, Default)]
pub struct BatchReader {
    buffer: BytesMut,
    taken: usize,
}

impl BatchReader {
    /// Adds the stream's next bytes (without the stream's first byte) and appends every frame that is complete now.
    ///
    /// Bodies of pushed artifacts are copied, each into memory of its own: one that is kept pins neither a receive buffer nor
    /// the batch it came in. After an error the stream is useless; frames before the bad one have been appended.
    pub fn read(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), WireError> {
        self.taken += bytes.len();
        if self.taken > MAX_BATCH {
            return Err(WireError::TooLarge { found: self.taken as u64, limit: MAX_BATCH as u64 });
        }
        if self.buffer.is_empty() {
            let rest = cut(bytes, frames)?;
            self.buffer.extend_from_slice(rest);
        } else {
            self.buffer.extend_from_slice(bytes);
            let rest = cut(&self.buffer, frames)?.len();
            self.buffer.advance(self.buffer.len() - rest);
        }
        Ok(())
    }

    /// To be called at the stream's end: fails when it ends inside a frame.
    pub fn end(&self) -> Result<(), WireError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(WireError::Truncated) }
    }
}

/// Appends the frames that `bytes` begins with; returns what is left, an incomplete frame or nothing.
fn cut<'a>(mut bytes: &'a [u8], frames: &mut Vec<Frame>) -> Result<&'a [u8], WireError> {
    while let Some((&[kind, a, b, c], rest)) = bytes.split_first_chunk::<FRAME_HEADER>() {
        let len = u32::from_le_bytes([a, b, c, 0]) as usize;
        if len > MAX_FRAME {
            return Err(WireError::TooLarge { found: len as u64, limit: MAX_FRAME as u64 });
        }
        let Some((payload, rest)) = rest.split_at_checked(len) else { break };
        frames.push(Frame::decode(kind, payload)?);
        bytes = rest;
    }
    Ok(bytes)
}

/// What precedes a large pushed body on its own stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushHead {
    /// The topic.
    pub topic: TopicId,
    /// The slot.
    pub slot: Slot,
    /// The sender's table version at this change.
    pub version: Version,
    /// The artifact's id.
    pub id: ArtifactId,
    /// Bytes of the body.
    pub size: u32,
    /// What the filter may look at.
    pub attribute: Attribute,
}

impl PushHead {
    /// The stream's bytes before the body, its first byte included.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(1 + PLACE + 32 + 4 + 1 + Attribute::MAX);
        out.extend_from_slice(&[STREAM_PUSH]);
        put_place(&mut out, self.topic, self.slot, self.version);
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.size.to_le_bytes());
        put_attribute(&mut out, &self.attribute);
        out.freeze()
    }

    /// Decodes the bytes behind the stream's first byte. `Ok(None)` asks for more; else the head and its length.
    pub fn decode(bytes: &[u8]) -> Result<Option<(PushHead, usize)>, WireError> {
        let mut cursor = Cursor::new(bytes);
        more_or(|| {
            let (topic, slot, version) = get_place(&mut cursor)?;
            let (id, size, attribute) = (cursor.id()?, cursor.u32()?, cursor.attribute()?);
            Ok((PushHead { topic, slot, version, id, size, attribute }, bytes.len() - cursor.remaining()))
        })
    }
}

/// "Send me this artifact."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchRequest {
    /// Its topic.
    pub topic: TopicId,
    /// Its id.
    pub id: ArtifactId,
}

impl FetchRequest {
    /// Bytes of an encoded request.
    pub const LEN: usize = 1 + 2 + 32;

    /// The whole request.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::LEN);
        out.extend_from_slice(&[STREAM_FETCH]);
        out.extend_from_slice(&self.topic.0.to_le_bytes());
        out.extend_from_slice(&self.id.0);
        out.freeze()
    }

    /// Decodes a whole request.
    pub fn decode(bytes: &[u8]) -> Result<FetchRequest, WireError> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u8()? {
            STREAM_FETCH => (),
            unknown => return Err(WireError::UnknownStream(unknown)),
        }
        let request = FetchRequest { topic: TopicId(cursor.u16()?), id: cursor.id()? };
        cursor.end().map(|()| request)
    }
}

/// What precedes the body of a reply, or stands in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    /// The body follows.
    Found {
        /// Its bytes.
        size: u32,
    },
    /// It is not here (any more): ask another.
    NotFound,
    /// Too many requests of yours are being served: ask later.
    Busy,
}

impl ReplyHead {
    /// The bytes before the body.
    pub fn encode(&self) -> Bytes {
        match self {
            ReplyHead::Found { size } => {
                let mut out = BytesMut::with_capacity(5);
                out.extend_from_slice(&[0]);
                out.extend_from_slice(&size.to_le_bytes());
                out.freeze()
            }
            ReplyHead::NotFound => Bytes::from_static(&[1]),
            ReplyHead::Busy => Bytes::from_static(&[2]),
        }
    }

    /// Decodes the front of a reply. `Ok(None)` asks for more; else the head and its length.
    pub fn decode(bytes: &[u8]) -> Result<Option<(ReplyHead, usize)>, WireError> {
        let mut cursor = Cursor::new(bytes);
        more_or(|| match cursor.u8()? {
            0 => Ok((ReplyHead::Found { size: cursor.u32()? }, 5)),
            1 => Ok((ReplyHead::NotFound, 1)),
            2 => Ok((ReplyHead::Busy, 1)),
            found => Err(WireError::Value { field: "reply", found: found.into() }),
        })
    }
}

/// A head that is merely incomplete is `None`.
fn more_or<T>(decode: impl FnOnce() -> Result<T, WireError>) -> Result<Option<T>, WireError> {
    match decode() {
        Ok(head) => Ok(Some(head)),
        Err(WireError::Truncated) => Ok(None),
        Err(error) => Err(error),
    }
}
