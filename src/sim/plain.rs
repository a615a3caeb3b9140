//! What quinn-proto wants from TLS, without secrets and without randomness: runs are bit-exact. Members name themselves, keys
//! follow from connection ids, and packets are not encrypted but sealed by a checksum, so that damage is noticed as by an AEAD.
//! Messages and keys come in TLS 1.3's order and length: hello and parameters; hello; name and parameters; name.

use std::any::Any;
use std::hash::Hasher;
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::crypto::{
    self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::quic::{Handshakes, QuicError, Rejection, alert_of, identity_of};
use crate::types::{Membership, NodeId};

/// See the module.
pub(super) struct Plain {
    pub(super) own: NodeId,
}

impl Handshakes for Plain {
    fn server(&self, membership: Arc<Membership>) -> Result<Arc<dyn crypto::ServerConfig>, QuicError> {
        Ok(Arc::new(Acceptor { own: self.own, membership }))
    }

    fn client(&self, peer: NodeId) -> Result<Arc<dyn crypto::ClientConfig>, QuicError> {
        Ok(Arc::new(Dialler { own: self.own, peer }))
    }
}

struct Dialler {
    own: NodeId,
    peer: NodeId,
}

impl crypto::ClientConfig for Dialler {
    fn start_session(
        self: Arc<Self>,
        _version: u32,
        _server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        Ok(Box::new(Session::new(Side::Client, self.own, Expected::Exactly(self.peer), params)))
    }
}

struct Acceptor {
    own: NodeId,
    membership: Arc<Membership>,
}

impl crypto::ServerConfig for Acceptor {
    fn initial_keys(&self, _version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        Ok(keys(Side::Server, initial_secret(dst_cid)))
    }

    fn retry_tag(&self, _version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; TAG] {
        checksum(0, 0, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let expected = Expected::Dialler(self.membership.clone());
        Box::new(Session::new(Side::Server, self.own, expected, params))
    }
}

/// Whom a side accepts.
enum Expected {
    Exactly(NodeId),
    /// Members whose id is lower than ours.
    Dialler(Arc<Membership>),
}

impl Expected {
    fn check(&self, own: &NodeId, peer: &NodeId) -> Result<(), Rejection> {
        match self {
            Expected::Exactly(id) if id == peer => Ok(()),
            Expected::Exactly(_) => Err(Rejection::WrongKey),
            Expected::Dialler(membership) if membership.index_of(peer).is_none() => Err(Rejection::NotMember),
            Expected::Dialler(_) if peer >= own => Err(Rejection::WrongDirection),
            Expected::Dialler(_) => Ok(()),
        }
    }
}

/// How far a handshake is: what was read and written, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Start,
    HelloSent,
    HelloRead,
    HandshakeKeys,
    ProofRead,
    DataKeys,
    Done,
}

struct Session {
    side: Side,
    own: NodeId,
    expected: Expected,
    params: Vec<u8>,
    peer: Option<NodeId>,
    peer_params: Option<Vec<u8>>,
    stage: Stage,
    /// What was read of a message that is not whole.
    partial: Vec<u8>,
    /// Key updates so far.
    updates: u64,
}

const HANDSHAKE_SECRET: u64 = 1;
const DATA_SECRET: u64 = 2;
const ID: usize = 32;

impl Session {
    fn new(side: Side, own: NodeId, expected: Expected, params: &TransportParameters) -> Session {
        let mut encoded = Vec::new();
        params.write(&mut encoded);
        let (peer, peer_params, partial) = (None, None, Vec::new());
        let stage = Stage::Start;
        Session { side, own, expected, params: encoded, peer, peer_params, stage, partial, updates: 0 }
    }

    /// The next whole message.
    fn take_message(&mut self) -> Option<Vec<u8>> {
        let ([len, padding], _) = self.partial.as_chunks::<2>().0.split_first_chunk::<2>()?;
        let (len, padding) =
            (usize::from(u16::from_be_bytes(*len)), usize::from(u16::from_be_bytes(*padding)));
        self.partial.get(..HEAD + len + padding)?;
        let message = self.partial.drain(..HEAD + len + padding).skip(HEAD).take(len).collect();
        Some(message)
    }

    fn prove(&mut self, message: &[u8]) -> Result<(), Rejection> {
        let id = NodeId(*message.first_chunk::<ID>().ok_or(Rejection::KeyType)?);
        self.expected.check(&self.own, &id)?;
        self.peer = Some(id);
        Ok(())
    }

    fn read_message(&mut self, message: &[u8]) -> Result<(), Rejection> {
        match (self.side, self.stage) {
            (Side::Client, Stage::HelloSent) => self.stage = Stage::HelloRead,
            (Side::Server, Stage::Start) => {
                self.peer_params = Some(message.to_vec());
                self.stage = Stage::HelloRead;
            }
            (Side::Client, Stage::HandshakeKeys) => {
                self.prove(message)?;
                self.peer_params = message.get(ID..).map(<[u8]>::to_vec);
                self.stage = Stage::ProofRead;
            }
            (Side::Server, Stage::DataKeys) => {
                self.prove(message)?;
                self.stage = Stage::Done;
            }
            _ => return Err(Rejection::Other),
        }
        Ok(())
    }
}

/// Bytes before a message: its length, and that of its padding.
const HEAD: usize = 4;

/// What TLS has beyond names and parameters, so that datagrams are as long as with TLS.
#[derive(Debug, Clone, Copy)]
enum Padding {
    ClientHello = 170,
    ServerHello = 86,
    ServerProof = 181,
    ClientProof = 129,
}

fn write_message(buf: &mut Vec<u8>, parts: &[&[u8]], padding: Padding) {
    let message = parts.concat();
    // Names and parameters are some hundred bytes.
    buf.extend_from_slice(&(message.len() as u16).to_be_bytes());
    buf.extend_from_slice(&(padding as u16).to_be_bytes());
    buf.extend_from_slice(&message);
    buf.resize(buf.len() + padding as usize, 0);
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        keys(side, initial_secret(dst_cid))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let id = self.peer.as_ref()?;
        Some(Box::new(identity_of(id)))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        match self.side {
            Side::Client => self.stage < Stage::ProofRead,
            Side::Server => self.stage < Stage::Done,
        }
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.partial.extend_from_slice(buf);
        while let Some(message) = self.take_message() {
            self.read_message(&message).map_err(|rejection| TransportError {
                code: TransportErrorCode::crypto(alert_of(rejection)),
                frame: None,
                reason: format!("{rejection:?}"),
            })?;
        }
        Ok(false)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(mut encoded) = self.peer_params.as_deref() else { return Ok(None) };
        Ok(Some(TransportParameters::read(self.side, &mut encoded)?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let (stage, secret) = match (self.side, self.stage) {
            (Side::Client, Stage::Start) => {
                write_message(buf, &[&self.params], Padding::ClientHello);
                self.stage = Stage::HelloSent;
                return None;
            }
            (Side::Client, Stage::HelloRead) => (Stage::HandshakeKeys, HANDSHAKE_SECRET),
            (Side::Client, Stage::ProofRead) => {
                write_message(buf, &[&self.own.0], Padding::ClientProof);
                (Stage::Done, DATA_SECRET)
            }
            (Side::Server, Stage::HelloRead) => {
                write_message(buf, &[], Padding::ServerHello);
                (Stage::HandshakeKeys, HANDSHAKE_SECRET)
            }
            (Side::Server, Stage::HandshakeKeys) => {
                write_message(buf, &[&self.own.0, &self.params], Padding::ServerProof);
                (Stage::DataKeys, DATA_SECRET)
            }
            _ => return None,
        };
        self.stage = stage;
        Some(keys(self.side, secret))
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.updates += 1;
        Some(keys(self.side, DATA_SECRET + self.updates).packet)
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        let Some((token, tag)) = payload.split_last_chunk::<TAG>() else { return false };
        checksum(0, 0, orig_dst_cid, &[header, token].concat()) == *tag
    }

    fn export_keying_material(
        &self,
        _output: &mut [u8],
        _label: &[u8],
        _context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

/// Bytes of a seal, as AES-GCM's.
pub(super) const TAG: usize = 16;
/// Bytes of a connection id, as members make them.
pub(super) const CONNECTION_ID: usize = 8;

fn checksum(secret: u64, number: u64, header: &[u8], payload: &[u8]) -> [u8; TAG] {
    let mut hasher = SipHasher13::new_with_keys(secret, number);
    hasher.write(header);
    hasher.write(payload);
    hasher.finish128().as_bytes()
}

fn initial_secret(dst_cid: &ConnectionId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = checksum(0, 1, dst_cid, &[]);
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn keys(side: Side, secret: u64) -> Keys {
    let seal = |by: Side| -> Box<dyn PacketKey> {
        Box::new(Seal { secret: secret.wrapping_mul(2).wrapping_add(u64::from(by.is_client())) })
    };
    Keys {
        header: KeyPair { local: Box::new(Open), remote: Box::new(Open) },
        packet: KeyPair { local: seal(side), remote: seal(!side) },
    }
}

/// Headers stay as they are.
struct Open;

impl HeaderKey for Open {
    fn decrypt(&self, _pn_offset: usize, _packet: &mut [u8]) {}

    fn encrypt(&self, _pn_offset: usize, _packet: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        TAG
    }
}

/// One direction's key.
struct Seal {
    secret: u64,
}

impl Seal {
    /// Packets until the next key update: few, so that updates happen. quinn-proto updates 10,000 packets early.
    const PACKETS: u64 = 10_000 + 2_000;
}

impl PacketKey for Seal {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let Some((sealed, tag)) = buf.split_last_chunk_mut::<TAG>() else { return };
        let (header, payload) = sealed.split_at(header_len.min(sealed.len()));
        *tag = checksum(self.secret, packet, header, payload);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        let (content, tag) = payload.split_last_chunk::<TAG>().ok_or(CryptoError)?;
        if checksum(self.secret, packet, header, content) != *tag {
            return Err(CryptoError);
        }
        let len = content.len();
        payload.truncate(len);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG
    }

    fn confidentiality_limit(&self) -> u64 {
        Self::PACKETS
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}
