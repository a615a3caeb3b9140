//! The seam between engine and transport: what the engine gives a peer's link to carry, and what the link brings.
//!
//! The engine never sees a stream or a connection, the transport never sees a table. Node, tests and simulator put any
//! carrier between the two.

use bytes::{Bytes, BytesMut};

use super::{FetchRequest, Frame, MAX_BATCH, PushHead, STREAM_BATCH, Update, WireError};
use crate::types::{Attribute, Class, Slot, StreamKey, TopicId, Verified, Version};

/// Something for the transport to send to one peer. Made when the link has room, from the tables as they are then.
#[derive(Debug)]
pub enum Outgoing {
    /// Frames, on a stream of their own.
    Batch {
        /// The most urgent class in it.
        class: Class,
        /// The whole stream.
        bytes: Bytes,
    },
    /// A large body, on a resettable stream of its own. Answered by [`Incoming::Sent`].
    Push {
        /// Its class.
        class: Class,
        /// Chosen by the engine.
        key: StreamKey,
        /// An encoded [`PushHead`].
        head: Bytes,
        /// The body.
        body: Bytes,
    },
    /// A request. Answered by [`Incoming::Reply`].
    Fetch {
        /// Its class.
        class: Class,
        /// Chosen by the engine.
        key: StreamKey,
        /// What is asked for.
        request: FetchRequest,
        /// The largest body that will be taken, in bytes.
        limit: u32,
    },
    /// The answer to an [`Incoming::Request`]. Answered by [`Incoming::Sent`].
    Reply {
        /// Its class.
        class: Class,
        /// The request's key.
        key: StreamKey,
        /// The body, or why there is none.
        reply: Reply<Bytes>,
    },
}

impl Outgoing {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Outgoing::Batch { class, .. }
            | Outgoing::Push { class, .. }
            | Outgoing::Fetch { class, .. }
            | Outgoing::Reply { class, .. } => *class,
        }
    }
}

/// An answer to a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<B> {
    /// The body.
    Found(B),
    /// The peer does not have it.
    NotFound,
    /// The peer serves too much already.
    Busy,
    /// The stream broke before the body was whole: reset by the peer, cut short, or over its limit.
    Broken,
}

/// What a link brings from one peer.
#[derive(Debug)]
pub enum Incoming {
    /// A frame of a batch, its pushed body hashed.
    Frame(Frame<Verified>),
    /// A large pushed body begins. The engine may refuse it by resetting `key`.
    PushStarted {
        /// Chosen by the transport.
        key: StreamKey,
        /// What is pushed.
        head: PushHead,
    },
    /// It is whole.
    Pushed {
        /// As in `PushStarted`.
        key: StreamKey,
        /// As in `PushStarted`.
        head: PushHead,
        /// The body, hashed; not yet compared with `head.id`.
        body: Verified,
    },
    /// It was reset or cut short.
    PushBroken {
        /// As in `PushStarted`.
        key: StreamKey,
        /// As in `PushStarted`.
        head: PushHead,
    },
    /// The peer asks for a body. To be answered by [`Outgoing::Reply`] with the same key.
    Request {
        /// Chosen by the transport.
        key: StreamKey,
        /// What is asked for.
        request: FetchRequest,
    },
    /// Bytes of a reply arrived: the peer is not silent. At most once per turn and stream.
    Progress {
        /// The request's key.
        key: StreamKey,
    },
    /// The answer to [`Outgoing::Fetch`].
    Reply {
        /// The request's key.
        key: StreamKey,
        /// The body, hashed; not yet compared with the id that was asked for.
        reply: Reply<Verified>,
    },
    /// A push or reply of ours is over: the peer has acknowledged all of it, or does not want the rest. Or a request of the
    /// peer, which is not to be answered any more.
    Sent {
        /// Its key.
        key: StreamKey,
        /// Whether the peer has all of it.
        whole: bool,
    },
    /// The peer broke the protocol. The transport closes the connection.
    Fault(WireError),
}

/// Packs frames into the bytes of one batch stream. One that lives on builds batch after batch in the same memory, which so stays
/// in the cache and never has to grow: [`begin`](BatchBuilder::begin), `push`, [`take`](BatchBuilder::take).
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
}

impl BatchBuilder {
    /// From this many bytes on a batch keeps the memory it was built in.
    const HAND_OVER: usize = MAX_BATCH / 2;

    /// An empty batch, with room reserved for `capacity` bytes.
    pub fn new(capacity: usize) -> BatchBuilder {
        let mut bytes = BytesMut::with_capacity(capacity.min(MAX_BATCH));
        bytes.extend_from_slice(&[STREAM_BATCH]);
        BatchBuilder { bytes }
    }

    /// Begins anew, with room for the largest batch.
    pub fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.reserve(MAX_BATCH);
        self.bytes.extend_from_slice(&[STREAM_BATCH]);
    }

    /// Whether a frame of `encoded_len` bytes still fits.
    pub fn fits(&self, encoded_len: usize) -> bool {
        self.bytes.len() + encoded_len <= MAX_BATCH
    }

    /// Appends a frame that fits.
    pub fn push(&mut self, frame: &Frame) {
        debug_assert!(self.fits(frame.encoded_len()));
        frame.encode(&mut self.bytes);
    }

    /// Appends the push of a body that fits, which someone else keeps.
    pub fn push_body(
        &mut self,
        topic: TopicId,
        slot: Slot,
        version: Version,
        attribute: &Attribute,
        body: &[u8],
    ) {
        debug_assert!(self.fits(Update::push_len(attribute, body.len())));
        Update::encode_push(&mut self.bytes, (topic, slot, version), attribute, body);
    }

    /// Whether no frame was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() <= 1
    }

    /// The stream's bytes. They pin at most twice their number, for they live until the peer has acknowledged them.
    pub fn take(&mut self) -> Bytes {
        match self.bytes.len() < Self::HAND_OVER {
            true => Bytes::copy_from_slice(&self.bytes),
            false => std::mem::take(&mut self.bytes).freeze(),
        }
    }

    /// The stream's bytes, of a builder that is not used again.
    pub fn finish(mut self) -> Bytes {
        self.take()
    }
}

/// Why a connection was closed, as its QUIC application error code (RFC 9000 §20.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The node stops.
    Shutdown,
    /// A newer connection of the same peer took its place.
    Replaced,
    /// Frames that do not decode, or break a limit.
    Protocol,
    /// Another subnet, lane or lane count.
    Mismatch,
    /// The peer is no member (any more).
    NotMember,
}

impl CloseCode {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            CloseCode::Shutdown => 0,
            CloseCode::Replaced => 1,
            CloseCode::Protocol => 2,
            CloseCode::Mismatch => 3,
            CloseCode::NotMember => 4,
        }
    }
}
