//! TLS 1.3 with raw public keys (RFC 7250): no X.509, no chains, no names. A peer is its key.

use std::sync::Arc;

use quinn_proto::crypto;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring as backend;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::config::QuicError;
use super::counters::Rejection;
use super::handshake::Handshakes;
use super::identity::{Identity, named_by, spki};
use crate::types::{Membership, NodeId};

/// The only application protocol.
pub(super) const ALPN: &[u8] = b"corecast/1";

/// What this node brings to every handshake.
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    own: NodeId,
}

impl Tls {
    pub(super) fn new(identity: &Identity) -> Result<Tls, QuicError> {
        let provider = CryptoProvider {
            // Best first: AES-128-GCM takes a quarter of ChaCha20's time on CPUs with AES instructions.
            cipher_suites: vec![
                backend::cipher_suite::TLS13_AES_128_GCM_SHA256,
                backend::cipher_suite::TLS13_AES_256_GCM_SHA384,
                backend::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![backend::kx_group::X25519],
            ..backend::default_provider()
        };
        let signer = backend::sign::any_eddsa_type(&identity.private_key()).map_err(QuicError::Tls)?;
        let key = CertifiedKey::new(vec![CertificateDer::from(spki(&identity.id()))], signer);
        Ok(Tls { provider: Arc::new(provider), key: Arc::new(key), own: identity.id() })
    }
}

impl Handshakes for Tls {
    /// Accepts the members of `membership` whose id is lower than ours: the lower one dials.
    fn server(&self, membership: Arc<Membership>) -> Result<Arc<dyn crypto::ServerConfig>, QuicError> {
        let algorithms = self.provider.signature_verification_algorithms;
        let verifier = MayDial { membership, own: self.own, algorithms };
        let mut config = rustls::ServerConfig::builder_with_details(self.provider.clone(), Arc::new(NoClock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(QuicError::Tls)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.send_half_rtt_data = false;
        let config = QuicServerConfig::try_from(config).map_err(|_| QuicError::CipherSuite)?;
        Ok(Arc::new(config))
    }

    /// Accepts `peer` and nobody else.
    fn client(&self, peer: NodeId) -> Result<Arc<dyn crypto::ClientConfig>, QuicError> {
        let algorithms = self.provider.signature_verification_algorithms;
        let mut config = rustls::ClientConfig::builder_with_details(self.provider.clone(), Arc::new(NoClock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(QuicError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Exactly { peer, algorithms }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        let config = QuicClientConfig::try_from(config).map_err(|_| QuicError::CipherSuite)?;
        Ok(Arc::new(config))
    }
}

/// Nothing in a raw public key expires, so TLS needs no wall clock.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::ZERO))
    }
}

/// Why a peer's key was not accepted, as the error whose TLS alert [`rejection_of`](super::handshake::rejection_of) recognises on
/// both sides.
fn refuse(rejection: Rejection) -> Error {
    Error::InvalidCertificate(match rejection {
        Rejection::NotMember => CertificateError::UnknownIssuer,
        Rejection::WrongDirection => CertificateError::ApplicationVerificationFailure,
        Rejection::WrongKey => CertificateError::NotValidForName,
        _ => CertificateError::InvalidPurpose,
    })
}

/// The one Ed25519 key in a certificate message, and nothing besides.
fn only_key(first: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<NodeId, Error> {
    match (named_by(first), rest) {
        (Some(id), []) => Ok(id),
        _ => Err(refuse(Rejection::KeyType)),
    }
}

fn check_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(Error::InvalidCertificate(CertificateError::BadSignature));
    }
    let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signed, algorithms)
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

/// Server side: members that are to dial us.
#[derive(Debug)]
struct MayDial {
    membership: Arc<Membership>,
    own: NodeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for MayDial {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let id = only_key(end_entity, intermediates)?;
        if self.membership.index_of(&id).is_none() {
            return Err(refuse(Rejection::NotMember));
        }
        if id >= self.own {
            return Err(refuse(Rejection::WrongDirection));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Client side: the peer that was dialled.
#[derive(Debug)]
struct Exactly {
    peer: NodeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if only_key(end_entity, intermediates)? != self.peer {
            return Err(refuse(Rejection::WrongKey));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
