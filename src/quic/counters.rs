//! What a lane's transport counts. Plain numbers; the shell publishes them.

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

/// Frames of peers that broke the protocol, by what was wrong with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Ended inside a frame.
    pub truncated: u64,
    /// More bytes than fields.
    pub trailing: u64,
    /// Unknown frame types.
    pub unknown_frame: u64,
    /// Unknown stream types.
    pub unknown_stream: u64,
    /// Lengths above their limit.
    pub too_large: u64,
    /// Fields without meaning, attributes included.
    pub value: u64,
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

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuicCounters {
    /// Datagrams given to `handle_received`.
    pub datagrams_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Datagrams (GSO segments) taken from `poll_transmit`.
    pub datagrams_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Transmits (GSO batches) taken from `poll_transmit`.
    pub transmits: u64,
    /// Packets that loss detection gave up on.
    pub lost_packets: u64,
    /// Dials begun.
    pub dials: u64,
    /// Connections that completed their handshake.
    pub connections: u64,
    /// Connections that ended, for whatever reason.
    pub disconnections: u64,
    /// Of those, because a newer connection of the peer took their place.
    pub replaced: u64,
    /// Of those, because the peer restarted (stateless reset).
    pub restarts: u64,
    /// Of those, because the peer went silent.
    pub idle_timeouts: u64,
    /// Of those, because the peer reset streams faster than any honest use.
    pub reset_floods: u64,
    /// Retry packets sent.
    pub retries: u64,
    /// Answers of the endpoint (Retry, reset, refusal) dropped because too many were waiting to be sent.
    pub responses_dropped: u64,
    /// Streams whose sending we abandoned.
    pub streams_reset: u64,
    /// Streams whose sending the peer abandoned.
    pub streams_reset_by_peer: u64,
    /// Streams of ours that the peer no longer wanted.
    pub streams_stopped_by_peer: u64,
    /// Pushes stopped because their topic is not known here.
    pub unknown_topics: u64,
    /// Pushes that had to wait because too many were in assembly.
    pub pushes_deferred: u64,
    /// Frames received in batches.
    pub frames_in: u64,
    /// Connections closed for a broken protocol.
    pub faults: Faults,
    rejections: [u64; Rejection::ALL.len()],
}

impl QuicCounters {
    /// Handshakes that came to nothing for this reason.
    pub fn rejected(&self, reason: Rejection) -> u64 {
        self.rejections.get(reason as usize).copied().unwrap_or(0)
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
