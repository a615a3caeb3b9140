//! What a lane's transport counts. Plain numbers; the shell publishes them.

use crate::metrics::counters;
use crate::wire::WireError;

/// Why a handshake, or an attempt to begin one, came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// A datagram from an address of no member; dropped unread.
    UnknownSource,
    /// An address began handshakes faster than its members' share.
    RateLimited,
    /// Too many handshakes were pending.
    TooMany,
    /// The key is in no member's record.
    NotMember,
    /// A member with a higher id than the one it dialled.
    WrongDirection,
    /// The dialled address answered with another key.
    WrongKey,
    /// The client showed no key.
    NoClientKey,
    /// Not a lone Ed25519 raw public key, or a side that does not speak raw public keys.
    KeyType,
    /// The key's owner did not sign the handshake.
    BadSignature,
    /// Another application protocol.
    Alpn,
    /// The handshake's deadline passed.
    TimedOut,
    /// The other side rejected us.
    ByPeer,
    /// Anything else.
    Other,
}

impl Rejection {
    /// Every reason.
    pub const ALL: [Rejection; 13] = [
        Rejection::UnknownSource,
        Rejection::RateLimited,
        Rejection::TooMany,
        Rejection::NotMember,
        Rejection::WrongDirection,
        Rejection::WrongKey,
        Rejection::NoClientKey,
        Rejection::KeyType,
        Rejection::BadSignature,
        Rejection::Alpn,
        Rejection::TimedOut,
        Rejection::ByPeer,
        Rejection::Other,
    ];

    /// Its label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Rejection::UnknownSource => "unknown_source",
            Rejection::RateLimited => "rate_limited",
            Rejection::TooMany => "too_many",
            Rejection::NotMember => "not_member",
            Rejection::WrongDirection => "wrong_direction",
            Rejection::WrongKey => "wrong_key",
            Rejection::NoClientKey => "no_client_key",
            Rejection::KeyType => "key_type",
            Rejection::BadSignature => "bad_signature",
            Rejection::Alpn => "alpn",
            Rejection::TimedOut => "timed_out",
            Rejection::ByPeer => "by_peer",
            Rejection::Other => "other",
        }
    }
}

counters! {
    /// Frames of peers that broke the protocol, by what was wrong with them.
    Faults {
        /// Ended inside a frame.
        truncated,
        /// More bytes than fields.
        trailing,
        /// Unknown frame types.
        unknown_frame,
        /// Unknown stream types.
        unknown_stream,
        /// Lengths above their limit.
        too_large,
        /// Fields without meaning, attributes included.
        value,
    }
}

impl Faults {
    pub(super) fn count(&mut self, error: &WireError) {
        *match error {
            WireError::Truncated => &mut self.truncated,
            WireError::Trailing { .. } => &mut self.trailing,
            WireError::UnknownFrame(_) => &mut self.unknown_frame,
            WireError::UnknownStream(_) => &mut self.unknown_stream,
            WireError::TooLarge { .. } => &mut self.too_large,
            WireError::Attribute { .. } | WireError::Value { .. } => &mut self.value,
        } += 1;
    }
}

counters! {
    /// Datagrams, connections and streams since the start.
    Traffic {
        /// Datagrams given to `handle_received`.
        datagrams_in,
        /// Their bytes.
        bytes_in,
        /// Datagrams (GSO segments) taken from `poll_transmit`.
        datagrams_out,
        /// Their bytes.
        bytes_out,
        /// Transmits (GSO batches) taken from `poll_transmit`.
        transmits,
        /// Packets that loss detection gave up on.
        lost_packets,
        /// Dials begun.
        dials,
        /// Connections that completed their handshake.
        connections,
        /// Connections that ended, for whatever reason.
        disconnections,
        /// Of those, because a newer connection of the peer took their place.
        replaced,
        /// Of those, because the peer restarted (stateless reset).
        restarts,
        /// Of those, because the peer went silent.
        idle_timeouts,
        /// Of those, because the peer reset streams faster than any honest use.
        reset_floods,
        /// Retry packets sent.
        retries,
        /// Answers of the endpoint (Retry, reset, refusal) dropped because too many were waiting to be sent.
        responses_dropped,
        /// Streams whose sending we abandoned.
        streams_reset,
        /// Streams whose sending the peer abandoned.
        streams_reset_by_peer,
        /// Streams of ours that the peer no longer wanted.
        streams_stopped_by_peer,
        /// Pushes stopped because their topic is not known here.
        unknown_topics,
        /// Pushes that had to wait because too many were in assembly.
        pushes_deferred,
        /// Frames received in batches.
        frames_in,
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuicCounters {
    /// Datagrams, connections, streams.
    pub traffic: Traffic,
    /// Connections closed for a broken protocol.
    pub faults: Faults,
    rejections: [u64; Rejection::ALL.len()],
}

impl QuicCounters {
    /// Handshakes that came to nothing for this reason.
    pub fn rejected(&self, reason: Rejection) -> u64 {
        self.rejections.get(reason as usize).copied().unwrap_or(0)
    }

    /// Handshakes that came to nothing, for whatever reason.
    pub fn rejections(&self) -> u64 {
        self.rejections.iter().sum()
    }

    /// Adds another lane's counts.
    pub fn merge(&mut self, other: &QuicCounters) {
        self.traffic.merge(&other.traffic);
        self.faults.merge(&other.faults);
        for (count, other) in self.rejections.iter_mut().zip(other.rejections) {
            *count += other;
        }
    }

    pub(super) fn reject(&mut self, reason: Rejection) {
        self.reject_many(reason, 1);
    }

    pub(super) fn reject_many(&mut self, reason: Rejection, times: u64) {
        if let Some(count) = self.rejections.get_mut(reason as usize) {
            *count += times;
        }
    }
}
