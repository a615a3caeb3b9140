//! A node's own key: the name that peers pin, and the secrets that follow from it.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{hkdf, hmac};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use crate::types::NodeId;

/// DER of a PKCS#8 version 1 Ed25519 key (RFC 8410 §7) up to its 32-byte seed.
const PKCS8_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// DER of an Ed25519 SubjectPublicKeyInfo (RFC 8410 §4) up to its 32-byte key.
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// A node's Ed25519 key pair. Wiped when dropped; never printed.
#[derive(Clone)]
pub struct Identity {
    id: NodeId,
    pkcs8: Zeroizing<Vec<u8>>,
    seed: Zeroizing<[u8; 32]>,
}

/// Why bytes are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No Ed25519 key in PKCS#8, or one whose halves do not match.
    #[error("not an Ed25519 private key in PKCS#8 (RFC 8410)")]
    Malformed,
    /// The system gave no randomness.
    #[error("the system's random number generator failed")]
    Randomness,
}

impl Identity {
    /// Draws a new key. The one place here that asks the system for randomness: a key must not follow from a
    /// seed.
    pub fn generate() -> Result<Identity, IdentityError> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| IdentityError::Randomness)?;
        Identity::from_seed(seed)
    }

    /// The key whose RFC 8032 private seed is `seed`: for tests and simulations, which want the same names
    /// every run.
    pub fn from_seed(seed: [u8; 32]) -> Result<Identity, IdentityError> {
        let seed = Zeroizing::new(seed);
        let mut pkcs8 = Zeroizing::new(Vec::with_capacity(PKCS8_HEAD.len() + seed.len()));
        pkcs8.extend_from_slice(&PKCS8_HEAD);
        pkcs8.extend_from_slice(seed.as_slice());
        Identity::from_pkcs8(&pkcs8)
    }

    /// Reads DER: PKCS#8 version 1 (OpenSSL) or 2 (ring).
    pub fn from_pkcs8(der: &[u8]) -> Result<Identity, IdentityError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| IdentityError::Malformed)?;
        // Both versions have the seed behind a head of this length; the check below catches any other layout.
        let seed = der.get(PKCS8_HEAD.len()..).and_then(|rest| rest.first_chunk::<32>());
        let seed = Zeroizing::new(*seed.ok_or(IdentityError::Malformed)?);
        let public = pair.public_key().as_ref();
        Ed25519KeyPair::from_seed_and_public_key(seed.as_slice(), public)
            .map_err(|_| IdentityError::Malformed)?;
        let id = NodeId(public.try_into().map_err(|_| IdentityError::Malformed)?);
        Ok(Identity { id, pkcs8: Zeroizing::new(der.to_vec()), seed })
    }

    /// The public key.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The private key as PKCS#8 DER, for a key file.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(super) fn private_key(&self) -> PrivatePkcs8KeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.pkcs8())
    }

    /// 32 secret bytes that only this key and `info` determine (HKDF-SHA256, RFC 5869).
    fn derive(&self, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut secret = Zeroizing::new([0; 32]);
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"corecast/1").extract(self.seed.as_slice());
        // Cannot fail: the length is the hash's own. A zero key would merely disable what is derived from it.
        if let Ok(material) = key.expand(info, hkdf::HKDF_SHA256) {
            let _ = material.fill(secret.as_mut_slice());
        }
        secret
    }

    /// The key of one endpoint's stateless resets. It outlives restarts, so that a restarted node's resets
    /// are recognised. It differs between lanes and subnets: an endpoint that would sign another one's
    /// connection ids could be used by anybody to reset that one's connections (RFC 9000 §21.11).
    pub(super) fn reset_key(&self, subnet: &[u8; 32], lane: u16) -> hmac::Key {
        let secret = self.derive(&[b"reset", subnet, &lane.to_le_bytes()]);
        hmac::Key::new(hmac::HMAC_SHA256, secret.as_slice())
    }

    /// The key of connection ids; see [`ConnectionIds`](super::config::ConnectionIds). It outlives restarts.
    pub(super) fn connection_id_key(&self, subnet: &[u8; 32], lane: u16) -> (u64, u64) {
        let secret = self.derive(&[b"cid", subnet, &lane.to_le_bytes()]);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = *secret;
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p]))
    }

    /// The key of Retry tokens: good for one start only, so an old token proves nothing.
    pub(super) fn token_key(&self, subnet: &[u8; 32], lane: u16, start: u64) -> hkdf::Prk {
        let secret = self.derive(&[b"token", subnet, &lane.to_le_bytes(), &start.to_le_bytes()]);
        hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret.as_slice())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.id)
    }
}

/// The only SubjectPublicKeyInfo that names `id`.
pub(super) fn spki(id: &NodeId) -> Vec<u8> {
    [SPKI_HEAD.as_slice(), &id.0].concat()
}

/// Whom a SubjectPublicKeyInfo names; `None` unless it is exactly an Ed25519 key.
pub(super) fn named_by(spki: &[u8]) -> Option<NodeId> {
    let key = spki.strip_prefix(SPKI_HEAD.as_slice())?;
    key.try_into().ok().map(NodeId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_after_a_round_trip_through_its_file() {
        let key = Identity::generate().unwrap();
        let read = Identity::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(read.id(), key.id());
        assert_eq!(read.derive(&[b"x"]), key.derive(&[b"x"]));
    }

    #[test]
    fn a_seed_names_the_published_public_key() {
        // RFC 8032 §7.1, test 1.
        let seed =
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse::<NodeId>().unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(Identity::from_seed(seed.0).unwrap().id().to_string(), public);
    }

    #[test]
    fn a_damaged_key_is_refused() {
        // Version 2 carries the public half, too, so that a flipped bit of either shows.
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        for whole in [document.as_ref(), Identity::generate().unwrap().pkcs8()] {
            assert!(Identity::from_pkcs8(whole).is_ok());
            for cut in 0..whole.len() {
                assert!(Identity::from_pkcs8(&whole[..cut]).is_err(), "{cut}");
            }
        }
        let mut wrong = document.as_ref().to_vec();
        wrong[20] ^= 1;
        assert_eq!(Identity::from_pkcs8(&wrong).unwrap_err(), IdentityError::Malformed);
    }

    #[test]
    fn lanes_do_not_share_reset_keys() {
        let key = Identity::from_seed([7; 32]).unwrap();
        let of = |lane| hmac::sign(&key.reset_key(&[0; 32], lane), b"cid").as_ref().to_vec();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn printing_shows_no_secret() {
        let key = Identity::from_seed([7; 32]).unwrap();
        assert_eq!(format!("{key:?}"), format!("Identity({:?})", key.id()));
    }
}
