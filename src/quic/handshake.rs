//! Who proves to whom which member it is. On every network that is TLS; the simulator, whose runs are bit-exact, brings its own.

use std::sync::Arc;

use quinn_proto::crypto;
use rustls::pki_types::CertificateDer;

use super::config::QuicError;
use super::counters::Rejection;
use super::identity::{named_by, spki};
use crate::types::{Membership, NodeId};

/// What a client must call the server by the API; it is not sent, and means nothing.
pub(super) const SERVER_NAME: &str = "corecast";

/// What a node brings to every handshake.
pub(crate) trait Handshakes: Send {
    /// Accepts the members of `membership` whose id is lower than ours: the lower one dials.
    fn server(&self, membership: Arc<Membership>) -> Result<Arc<dyn crypto::ServerConfig>, QuicError>;

    /// Accepts `peer` and nobody else.
    fn client(&self, peer: NodeId) -> Result<Arc<dyn crypto::ClientConfig>, QuicError>;
}

/// What a session must give as its peer's identity: a member's raw public key, as TLS has it.
pub(crate) type PeerIdentity = Vec<CertificateDer<'static>>;

/// A member's id as its session's [`PeerIdentity`].
pub(crate) fn identity_of(id: &NodeId) -> PeerIdentity {
    vec![CertificateDer::from(spki(id))]
}

/// Whom the other side of a completed handshake proved to be.
pub(super) fn peer_of(connection: &quinn_proto::Connection) -> Option<NodeId> {
    let identity = connection.crypto_session().peer_identity()?;
    let keys = identity.downcast::<PeerIdentity>().ok()?;
    match keys.as_slice() {
        [key] => named_by(key),
        _ => None,
    }
}

/// By which TLS alert (RFC 8446 §6) a handshake ends for which reason.
const ALERTS: [(u8, Rejection); 8] = [
    (40, Rejection::KeyType),
    (43, Rejection::KeyType),
    (42, Rejection::WrongKey),
    (48, Rejection::NotMember),
    (49, Rejection::WrongDirection),
    (51, Rejection::BadSignature),
    (116, Rejection::NoClientKey),
    (120, Rejection::Alpn),
];

/// The alert that tells the other side of this reason.
pub(crate) fn alert_of(rejection: Rejection) -> u8 {
    ALERTS.iter().find(|(_, known)| *known == rejection).map_or(40, |(alert, _)| *alert)
}

/// Why a handshake failed that ended with this QUIC error code, which carries the alert (RFC 9001 §4.8).
pub(super) fn rejection_of(code: u64) -> Rejection {
    let alert = code.checked_sub(0x100);
    let found = ALERTS.iter().find(|(known, _)| Some(u64::from(*known)) == alert);
    found.map_or(Rejection::Other, |(_, rejection)| *rejection)
}
