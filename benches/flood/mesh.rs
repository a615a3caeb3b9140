//! Nodes of quinn endpoints, every one connected with every other, keys pinned as corecast pins them.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use ring::signature::Ed25519KeyPair;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version::TLS13,
};

use crate::{Failure, host};

/// Bytes of each socket buffer; what tuning found to lose nothing with these windows.
const SOCKET_BUFFER: usize = 8 << 20;
/// Bytes that a peer may have in flight on a stream and on a connection.
const WINDOW: u32 = 2 << 20;
const SEND_WINDOW: u64 = 4 << 20;
/// Streams that a peer may have open.
const STREAMS: u32 = 1024;

/// All connections, both ways.
pub(crate) struct Mesh {
    /// `links[a][b]`: the end at node `a` of its connection with node `b`.
    pub(crate) links: Vec<Vec<Option<Connection>>>,
    /// Kept open.
    _endpoints: Vec<Endpoint>,
}

/// Connects `nodes` with one another; the lower one dials.
pub(crate) async fn connect(nodes: usize, mtu: u16) -> Result<Mesh, Failure> {
    let keys = (0..nodes).map(|_| key()).collect::<Result<Vec<_>, Failure>>()?;
    let pins: Arc<Vec<Vec<u8>>> = Arc::new(keys.iter().map(|key| key.cert[0].to_vec()).collect());
    let mut endpoints = Vec::new();
    for key in &keys {
        let transport = transport(mtu);
        let mut server = ServerConfig::with_crypto(Arc::new(server_crypto(key, &pins)?));
        server.transport_config(transport.clone()).migration(false);
        let config = {
            let mut config = EndpointConfig::default();
            config.max_udp_payload_size(mtu.max(1472)).map_err(|_| "the MTU is out of range")?;
            config
        };
        let socket = host::socket(SOCKET_BUFFER)?;
        let mut endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?;
        let mut client = ClientConfig::new(Arc::new(client_crypto(key, &pins)?));
        client.transport_config(transport);
        endpoint.set_default_client_config(client);
        endpoints.push(endpoint);
    }
    let mut links: Vec<Vec<Option<Connection>>> = (0..nodes).map(|_| vec![None; nodes]).collect();
    for low in 0..nodes {
        for high in low + 1..nodes {
            let dialled = endpoints[low].connect(endpoints[high].local_addr()?, "peer")?;
            let accepted =
                async { endpoints[high].accept().await.ok_or("closed")?.await.map_err(Failure::from) };
            let (dialled, accepted) = tokio::join!(dialled, accepted);
            links[low][high] = Some(dialled?);
            links[high][low] = Some(accepted?);
        }
    }
    Ok(Mesh { links, _endpoints: endpoints })
}

fn transport(mtu: u16) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(mtu)
        .min_mtu(mtu)
        .mtu_discovery_config(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

fn key() -> Result<Arc<CertifiedKey>, Failure> {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| "no randomness")?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
    let signer = provider::sign::any_supported_type(&der)?;
    let public = signer.public_key().ok_or("a key without its public half")?.to_vec();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], signer)))
}

/// AES-128 before the others: on these CPUs the fastest, and what corecast uses.
fn suites() -> Arc<CryptoProvider> {
    let mut provider = provider::default_provider();
    provider.cipher_suites = vec![provider::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn server_crypto(key: &Arc<CertifiedKey>, pins: &Arc<Vec<Vec<u8>>>) -> Result<QuicServerConfig, Failure> {
    let mut config = rustls::ServerConfig::builder_with_provider(suites())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Pinned { pins: pins.clone(), provider: suites() }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key.clone())));
    config.alpn_protocols = vec![b"flood".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config.try_into()?)
}

fn client_crypto(key: &Arc<CertifiedKey>, pins: &Arc<Vec<Vec<u8>>>) -> Result<QuicClientConfig, Failure> {
    let mut config = rustls::ClientConfig::builder_with_provider(suites())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pins: pins.clone(), provider: suites() }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key.clone())));
    config.alpn_protocols = vec![b"flood".to_vec()];
    Ok(config.try_into()?)
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
