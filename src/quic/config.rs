//! What a lane's transport is told at its start, and the quinn configuration that follows. Every quinn
//! setting that has a meaning here is set, since its defaults are unbounded or meant for the open Internet.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn_proto::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, InvalidCid, MtuDiscoveryConfig,
    NoneTokenLog, NoneTokenStore, ServerConfig, TimeSource, TransportConfig, ValidationTokenConfig, VarInt,
};
use siphasher::sip::SipHasher13;

use super::congestion::Congestion;
use super::handshake::Handshakes;
use super::identity::Identity;
use crate::types::{HashKind, Instant, Membership, NodeId, Rng, TopicId, Weights, largest_stream_window};

/// Tells which hash names a topic's artifacts; `None` for topics that this node does not know. Topics may be
/// added while the lane runs, so it is asked anew for every body.
pub type HashOf = Arc<dyn Fn(TopicId) -> Option<HashKind> + Send + Sync>;

/// Settings of one lane's [`Quic`](super::Quic). The payload that one peer can make us hold is at most
/// `connection_window + send_window + urgent_reserve`, plus `(pushes_in_assembly + topics + own fetches) × artifact_limit`;
/// quinn's bookkeeping comes on top, and what the engine has sent and `room` did not yet refuse.
#[derive(Clone)]
pub struct QuicConfig {
    /// This node's key.
    pub identity: Identity,
    /// The membership at the start.
    pub membership: Arc<Membership>,
    /// This lane.
    pub lane: u16,
    /// Bytes of UDP payload that the path is known to carry: 1,200 to 16,383. Full datagrams have up to 15 bytes less, so that
    /// they end with a whole AES block.
    pub mtu: u16,
    /// Probe for larger datagrams up to this many bytes, less as much.
    pub mtu_discovery_bound: Option<u16>,
    /// Bytes that a peer may send on one stream before they are read. At most [`largest_stream_window`]: beyond that,
    /// losing every second packet of a window makes quinn-proto 0.11.19 close the connection ("too many
    /// chunks").
    pub stream_window: u64,
    /// Bytes that a peer may send on all streams before they are read. At least 8/7 of `send_window +
    /// urgent_reserve`, so that a peer with the same settings never finds bulk in the way of urgent data.
    pub connection_window: u64,
    /// Bytes that may wait for acknowledgement, per peer.
    pub send_window: u64,
    /// Bytes beyond `send_window` that `Critical` and `High` alone may fill.
    pub urgent_reserve: u64,
    /// How classes share a link that is too narrow for all.
    pub weights: Weights,
    /// Unidirectional streams that a peer may have open.
    pub uni_streams: u32,
    /// Bidirectional streams (fetches) that a peer may have open.
    pub bidi_streams: u32,
    /// A connection without a sign of life for this long is lost.
    pub idle_timeout: Duration,
    /// An idle connection shows a sign of life this often.
    pub keep_alive: Duration,
    /// A handshake that a peer began takes at most this long.
    pub handshake_timeout: Duration,
    /// One that we began does: a peer that comes back answers the first packet of the next, not the repeated ones of the last,
    /// which come ever more rarely (RFC 9002 §6.2.1).
    pub dial_timeout: Duration,
    /// The first wait between dials of a peer, doubled from then on (the first redial after a loss does not
    /// wait).
    pub dial_backoff_min: Duration,
    /// The longest wait between dials of a peer.
    pub dial_backoff_max: Duration,
    /// Bytes of the largest body that is taken at all, pushed or fetched.
    pub artifact_limit: u32,
    /// Pushed bodies of one peer that are gathered at once, beyond one of each topic; further ones wait unread.
    pub pushes_in_assembly: usize,
    /// Which hash names a topic's artifacts.
    pub hash_of: HashOf,
    /// Drop datagrams from addresses of no member before anything else looks at them.
    pub prefilter: bool,
    /// Determines all randomness of this lane but that of TLS. Drawn anew for every start.
    pub seed: u64,
    /// The clock reading that [`Instant::ZERO`] stands for.
    pub epoch: std::time::Instant,
}

/// Why a [`Quic`](super::Quic) cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// A datagram size out of range.
    #[error("mtu is {0}; a datagram has {min} to {max} bytes", min = QuicConfig::MIN_MTU, max = QuicConfig::MAX_MTU)]
    Mtu(u16),
    /// A stream window that loss could turn into a disconnect.
    #[error("stream_window is {found}; with an mtu of {mtu} it may be at most {limit}")]
    StreamWindow {
        /// What was asked for.
        found: u64,
        /// The datagram size.
        mtu: u16,
        /// The most.
        limit: u64,
    },
    /// Windows that let bulk stand in the way of urgent data.
    #[error(
        "connection_window is {found}; send_window + urgent_reserve ({sum}) must be at most 7/8 of it, \
         and urgent_reserve not 0"
    )]
    ConnectionWindow {
        /// What was asked for.
        found: u64,
        /// Send window and reserve.
        sum: u64,
    },
    /// A number that QUIC cannot carry, or that disables a limit.
    #[error("{setting} is out of range")]
    Range {
        /// Its name.
        setting: &'static str,
    },
    /// The TLS library refused its configuration.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    /// The TLS library lacks the cipher suite that QUIC begins with.
    #[error("the TLS provider lacks AES-128-GCM")]
    CipherSuite,
}

impl QuicConfig {
    /// The smallest datagram of QUIC (RFC 9000 §14).
    pub const MIN_MTU: u16 = 1200;
    /// The largest: quinn writes packet lengths as two bytes.
    pub const MAX_MTU: u16 = 16_383;
    /// Bytes of a full datagram that are not encrypted: flags, connection id, two bytes of packet number (as soon as
    /// 128 packets await acknowledgement), tag.
    const CLEAR: u16 = 1 + ConnectionIds::LEN as u16 + 2 + 16;

    /// Settings for Ethernet and a few dozen members.
    pub fn new(
        identity: Identity,
        membership: Arc<Membership>,
        lane: u16,
        hash_of: HashOf,
        seed: u64,
        epoch: std::time::Instant,
    ) -> QuicConfig {
        QuicConfig {
            identity,
            membership,
            lane,
            mtu: 1452,
            mtu_discovery_bound: None,
            stream_window: 2 << 20,
            connection_window: 4 << 20,
            send_window: 2 << 20,
            urgent_reserve: 1 << 20,
            weights: Weights::DEFAULT,
            uni_streams: 256,
            bidi_streams: 64,
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            dial_backoff_min: Duration::from_millis(50),
            dial_timeout: Duration::from_secs(1),
            dial_backoff_max: Duration::from_millis(250),
            artifact_limit: 16 << 20,
            pushes_in_assembly: 16,
            hash_of,
            prefilter: true,
            seed,
            epoch,
        }
    }

    pub(super) fn check(&self) -> Result<(), QuicError> {
        for mtu in [self.mtu, self.mtu_discovery_bound.unwrap_or(self.mtu)] {
            if !(Self::MIN_MTU..=Self::MAX_MTU).contains(&mtu) {
                return Err(QuicError::Mtu(mtu));
            }
        }
        let limit = largest_stream_window(self.mtu);
        if self.stream_window > limit {
            return Err(QuicError::StreamWindow { found: self.stream_window, mtu: self.mtu, limit });
        }
        let sum = self.send_window.saturating_add(self.urgent_reserve);
        if sum > self.connection_window / 8 * 7 || self.urgent_reserve == 0 {
            return Err(QuicError::ConnectionWindow { found: self.connection_window, sum });
        }
        let range = |holds: bool, setting| if holds { Ok(()) } else { Err(QuicError::Range { setting }) };
        // Above 32 bits quinn stops pacing.
        range(self.connection_window <= u64::from(u32::MAX), "connection_window")?;
        range(self.stream_window >= 64 << 10, "stream_window")?;
        range(self.uni_streams >= 8, "uni_streams")?;
        range(self.bidi_streams >= 1, "bidi_streams")?;
        range(self.pushes_in_assembly >= 4, "pushes_in_assembly")?;
        range(self.keep_alive < self.idle_timeout, "keep_alive")?;
        range(!self.handshake_timeout.is_zero(), "handshake_timeout")?;
        range(!self.dial_timeout.is_zero(), "dial_timeout")?;
        range(self.dial_backoff_min <= self.dial_backoff_max, "dial_backoff_min")?;
        range(!self.dial_backoff_min.is_zero(), "dial_backoff_min")
    }

    pub(super) fn congestion(&self) -> Arc<Congestion> {
        // Ten segments, as in TCP (RFC 6928): quinn's 14,720 bytes are fewer than one of the largest
        // datagrams, and with a window below one datagram nothing is ever sent.
        Arc::new(Congestion::new(10 * u64::from(whole_blocks(self.mtu))))
    }

    pub(super) fn transport(&self, congestion: &Arc<Congestion>) -> Result<Arc<TransportConfig>, QuicError> {
        let window = |bytes: u64, setting| VarInt::from_u64(bytes).map_err(|_| QuicError::Range { setting });
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| QuicError::Range { setting: "idle_timeout" })?;
        let mut probing = MtuDiscoveryConfig::default();
        // Without a larger bound this still climbs back to `mtu` after a black hole.
        probing.upper_bound(whole_blocks(self.mtu_discovery_bound.unwrap_or(self.mtu).max(self.mtu)));
        let mtu = whole_blocks(self.mtu);
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_uni_streams(self.uni_streams.into())
            .max_concurrent_bidi_streams(self.bidi_streams.into())
            .stream_receive_window(window(self.stream_window, "stream_window")?)
            .receive_window(window(self.connection_window, "connection_window")?)
            .send_window(self.send_window)
            // "Fair" is quinn's word for choosing the most urgent stream anew for every packet. Otherwise a
            // stream that has begun keeps its turn while it has bytes, and a long push would hold up
            // everything urgent. Streams of a class still go one after another: each has a priority of its
            // own.
            .send_fairness(true)
            .packet_threshold(3)
            .time_threshold(9.0 / 8.0)
            .persistent_congestion_threshold(3)
            // Subnets span data centres, not satellites: a lost first packet is repeated after 300 ms.
            .initial_rtt(Duration::from_millis(100))
            .initial_mtu(mtu)
            .min_mtu(Self::MIN_MTU)
            .mtu_discovery_config(Some(probing))
            .pad_to_mtu(false)
            // Worth 3 %, and an extension that had a remote panic (RUSTSEC-2026-0340).
            .ack_frequency_config(None)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            // A handshake with raw public keys takes about 1 KiB each way.
            .crypto_buffer_size(4 << 10)
            .allow_spin(false)
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .congestion_controller_factory(congestion.clone())
            .enable_segmentation_offload(true);
        Ok(Arc::new(transport))
    }

    pub(super) fn endpoint(&self) -> Result<Arc<EndpointConfig>, QuicError> {
        let subnet = self.membership.subnet_hash();
        let mut rng = Rng::new(self.seed ^ 0x656e_6470_6f69_6e74);
        let mut seed = [0; 32];
        rng.fill(&mut seed);
        let mut endpoint = EndpointConfig::new(Arc::new(self.identity.reset_key(&subnet, self.lane)));
        let largest = self.mtu.max(self.mtu_discovery_bound.unwrap_or(0)).max(1472);
        let ids = ConnectionIds { key: self.identity.connection_id_key(&subnet, self.lane), rng };
        // A restart meets every peer's packets at once. 20 ms is quinn's pace; a large subnet may go faster.
        let members = u32::try_from(self.membership.members().len()).unwrap_or(u32::MAX).max(1);
        let pace = Duration::from_millis(20).min(Duration::from_millis(200) / members);
        endpoint
            .max_udp_payload_size(largest)
            .map_err(|_| QuicError::Mtu(largest))?
            .cid_generator(move || Box::new(ids.clone()))
            .supported_versions(vec![1])
            .grease_quic_bit(true)
            .min_reset_interval(pace)
            .rng_seed(Some(seed));
        Ok(Arc::new(endpoint))
    }

    pub(super) fn server(
        &self,
        handshakes: &dyn Handshakes,
        membership: &Arc<Membership>,
        transport: &Arc<TransportConfig>,
        clock: Clock,
    ) -> Result<Arc<ServerConfig>, QuicError> {
        let token_key = self.identity.token_key(&self.membership.subnet_hash(), self.lane, self.seed);
        let mut server = ServerConfig::new(handshakes.server(membership.clone())?, Arc::new(token_key));
        let mut no_tokens = ValidationTokenConfig::default();
        no_tokens.sent(0).lifetime(Duration::ZERO).log(Arc::new(NoneTokenLog));
        server
            .transport_config(transport.clone())
            .retry_token_lifetime(self.handshake_timeout)
            .validation_token_config(no_tokens)
            .migration(false)
            // Each is accepted, sent a Retry, or ignored as it arrives: none ever waits.
            .max_incoming(1)
            .incoming_buffer_size(0)
            .incoming_buffer_size_total(0)
            .time_source(Arc::new(clock));
        Ok(Arc::new(server))
    }

    pub(super) fn client(
        &self,
        handshakes: &dyn Handshakes,
        peer: NodeId,
        transport: &Arc<TransportConfig>,
        first_ids: &Arc<FirstIds>,
    ) -> Result<quinn_proto::ClientConfig, QuicError> {
        let ids = first_ids.clone();
        let mut client = quinn_proto::ClientConfig::new(handshakes.client(peer)?);
        client
            .transport_config(transport.clone())
            .token_store(Arc::new(NoneTokenStore))
            .initial_dst_cid_provider(Arc::new(move || ids.next()));
        Ok(client)
    }
}

impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig")
            .field("identity", &self.identity)
            .field("lane", &self.lane)
            .field("mtu", &self.mtu)
            .field("mtu_discovery_bound", &self.mtu_discovery_bound)
            .field("stream_window", &self.stream_window)
            .field("connection_window", &self.connection_window)
            .field("send_window", &self.send_window)
            .field("urgent_reserve", &self.urgent_reserve)
            .finish_non_exhaustive()
    }
}

/// Our instants as the standard library's, for quinn.
#[derive(Clone)]
pub(super) struct Clock {
    epoch: std::time::Instant,
    /// Nanoseconds since the epoch at the last call: what Retry tokens are dated by.
    now: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new(epoch: std::time::Instant) -> Clock {
        Clock { epoch, now: Arc::default() }
    }

    pub(super) fn set(&self, now: Instant) {
        self.now.store(now.as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn to_std(&self, at: Instant) -> std::time::Instant {
        self.epoch.checked_add(at.since_epoch()).unwrap_or(self.epoch)
    }

    pub(super) fn of_std(&self, at: std::time::Instant) -> Instant {
        Instant::ZERO + at.saturating_duration_since(self.epoch)
    }
}

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }
}

/// Makes connection ids of eight bytes: four random, four that prove (under a key that outlives restarts)
/// that this node made them, so that garbage is not answered by resets but packets for an earlier start are.
#[derive(Clone)]
pub(super) struct ConnectionIds {
    key: (u64, u64),
    rng: Rng,
}

impl ConnectionIds {
    const LEN: usize = 8;

    fn proof(&self, nonce: [u8; 4]) -> [u8; 4] {
        let hash = SipHasher13::new_with_keys(self.key.0, self.key.1).hash(&nonce).to_le_bytes();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce = ((self.rng.next_u64() >> 32) as u32).to_le_bytes();
        ConnectionId::new([nonce, self.proof(nonce)].as_flattened())
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match cid.as_chunks::<4>() {
            ([nonce, proof], []) if self.proof(*nonce) == *proof => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        Self::LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The size nearest below `mtu` at which full packets end with a whole AES block: ring treats the rest of one apart, which
/// costs 34 ns to seal and 18 ns to open (of 266 and 243).
const fn whole_blocks(mtu: u16) -> u16 {
    let whole = mtu - mtu.saturating_sub(QuicConfig::CLEAR) % 16;
    if whole < QuicConfig::MIN_MTU { QuicConfig::MIN_MTU } else { whole }
}

/// Draws the connection ids that a client makes up for the server's first packets (RFC 9000 §7.2:
/// unpredictable).
pub(super) struct FirstIds {
    key: (u64, u64),
    count: AtomicU64,
}

impl FirstIds {
    pub(super) fn new(rng: &mut Rng) -> FirstIds {
        FirstIds { key: (rng.next_u64(), rng.next_u64()), count: AtomicU64::new(0) }
    }

    fn next(&self) -> ConnectionId {
        let count = self.count.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let half = |key| SipHasher13::new_with_keys(key, self.key.1).hash(&count).to_le_bytes();
        ConnectionId::new([half(self.key.0), half(!self.key.0)].as_flattened())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Member, RegistryVersion};

    fn config() -> QuicConfig {
        let identity = Identity::from_seed([1; 32]).unwrap();
        let member = Member { id: identity.id(), addresses: vec!["10.0.0.1:4100".parse().unwrap()] };
        let membership = Membership::new("test".into(), RegistryVersion(1), 1, vec![member]).unwrap();
        let hash_of: HashOf = Arc::new(|_| Some(HashKind::Blake3));
        QuicConfig::new(identity, Arc::new(membership), 0, hash_of, 0, std::time::Instant::now())
    }

    #[test]
    fn the_defaults_pass_their_own_check() {
        let config = config();
        config.check().unwrap();
        config.transport(&config.congestion()).unwrap();
        config.endpoint().unwrap();
    }

    #[test]
    fn a_stream_window_that_loss_could_turn_into_a_disconnect_is_refused() {
        let config = QuicConfig { stream_window: largest_stream_window(1452) + 1, ..config() };
        assert!(matches!(config.check(), Err(QuicError::StreamWindow { limit: 2_820_096, .. })));
    }

    #[test]
    fn bulk_must_leave_room_for_urgent_data_at_the_receiver() {
        let config = QuicConfig { send_window: 4 << 20, ..config() };
        assert!(matches!(config.check(), Err(QuicError::ConnectionWindow { .. })));
    }

    #[test]
    fn datagrams_beyond_what_quinn_can_begin_with_are_refused() {
        for mtu in [0, 1199, 16_384] {
            assert!(matches!(QuicConfig { mtu, ..config() }.check(), Err(QuicError::Mtu(_))), "{mtu}");
        }
    }

    #[test]
    fn full_packets_end_with_a_whole_block_unless_that_is_below_the_least_of_quic() {
        assert_eq!([1452, 1451, 1450, 1436, 8900].map(whole_blocks), [1451, 1451, 1435, 1435, 8891]);
        assert_eq!([1200, 1210, 1211].map(whole_blocks), [1200, 1200, 1211]);
    }

    #[test]
    fn a_connection_id_is_recognised_after_a_restart_and_by_no_other_lane() {
        let ids = |lane: u16, seed| ConnectionIds {
            key: config().identity.connection_id_key(&[0; 32], lane),
            rng: Rng::new(seed),
        };
        let id = ids(0, 1).generate_cid();
        assert!(ids(0, 2).validate(&id).is_ok());
        assert!(ids(1, 1).validate(&id).is_err());
    }
}
