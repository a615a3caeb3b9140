//! Mutual TLS 1.3 with pinned raw public keys, as corecast has it, for every QUIC stack that takes rustls.

use std::sync::Arc;

use ring::signature::Ed25519KeyPair;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    ServerConfig, SignatureScheme, version::TLS13,
};

use crate::Failure;

/// The keys of all nodes, each pinned by every other.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: Vec<Arc<CertifiedKey>>,
    pins: Arc<Vec<Vec<u8>>>,
    provider: Arc<CryptoProvider>,
}

impl Keys {
    /// New keys; `provider` with AES-128-GCM alone, the fastest suite here and what corecast uses.
    pub(crate) fn new(nodes: usize, mut provider: CryptoProvider) -> Result<Keys, Failure> {
        provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
        let keys = (0..nodes).map(|_| key(&provider)).collect::<Result<Vec<_>, _>>()?;
        let pins = keys.iter().map(|key| key.cert[0].to_vec()).collect();
        Ok(Keys { keys, pins: Arc::new(pins), provider: Arc::new(provider) })
    }

    pub(crate) fn server(&self, node: usize) -> Result<ServerConfig, Failure> {
        let resolver = AlwaysResolvesServerRawPublicKeys::new(self.keys[node].clone());
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.pinned())
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    pub(crate) fn client(&self, node: usize) -> Result<ClientConfig, Failure> {
        let resolver = AlwaysResolvesClientRawPublicKeys::new(self.keys[node].clone());
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.pinned())
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }

    /// Whose key it is.
    #[cfg(any(feature = "compio", feature = "predecessor"))]
    pub(crate) fn node_of(&self, key: &CertificateDer<'_>) -> Option<usize> {
        self.pins.iter().position(|pin| pin.as_slice() == key.as_ref())
    }

    fn pinned(&self) -> Arc<Pinned> {
        Arc::new(Pinned { pins: self.pins.clone(), provider: self.provider.clone() })
    }
}

/// The protocol of every flood.
const ALPN: &[u8] = b"flood";

fn key(provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Failure> {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| "no randomness")?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
    let signer = provider.key_provider.load_private_key(der)?;
    let public = signer.public_key().ok_or("a key without its public half")?.to_vec();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], signer)))
}

/// Accepts the raw public keys of the mesh, and no others.
#[derive(Debug)]
struct Pinned {
    pins: Arc<Vec<Vec<u8>>>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        let known = self.pins.iter().any(|pin| pin.as_slice() == key.as_ref());
        known.then_some(()).ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &key,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// What both directions of verification share.
macro_rules! raw_keys {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.3 only".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.check_signature(message, key, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    raw_keys!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    raw_keys!();
}
