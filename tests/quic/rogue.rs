//! A QUIC client that does as it pleases: any key, any application protocol, any bytes on its streams.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use corecast::quic::Identity;
use corecast::types::{Instant, NodeId, Received, Transmit};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, StreamId, TransportConfig,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// What the rogue shows.
pub(crate) struct Guise<'a> {
    /// What it signs with; `None` for a client that knows of no client keys.
    pub(crate) key: Option<&'a Identity>,
    /// The key that it shows, if that is another one.
    pub(crate) shows: Shows,
    pub(crate) alpn: &'static [u8],
}

/// The key in the certificate message.
#[derive(Clone, Copy)]
pub(crate) enum Shows {
    Own,
    Nothing,
    Other(NodeId),
}

/// Shows no key where one is asked for.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

pub(crate) struct Rogue {
    epoch: std::time::Instant,
    endpoint: Endpoint,
    connection: Connection,
    handle: ConnectionHandle,
    pub(crate) connected: bool,
    pub(crate) lost: Option<ConnectionError>,
    waiting: VecDeque<(Transmit, Vec<u8>)>,
}

impl Rogue {
    pub(crate) fn dial(epoch: std::time::Instant, now: Instant, to: SocketAddr, guise: &Guise<'_>) -> Rogue {
        let config = Arc::new(EndpointConfig::default());
        let mut endpoint = Endpoint::new(config, None, true, Some([3; 32]));
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls(guise)).unwrap()));
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(1)));
        client.transport_config(Arc::new(transport));
        let at = epoch + now.since_epoch();
        let (handle, connection) = endpoint.connect(at, client, to, "corecast").unwrap();
        let waiting = VecDeque::new();
        Rogue { epoch, endpoint, connection, handle, connected: false, lost: None, waiting }
    }

    fn at(&self, now: Instant) -> std::time::Instant {
        self.epoch + now.since_epoch()
    }

    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Opens a stream, writes `bytes`, and ends it if told to.
    pub(crate) fn write(&mut self, dir: Dir, bytes: &[u8], end: bool) -> StreamId {
        let stream = self.connection.streams().open(dir).expect("stream credit");
        let mut sender = self.connection.send_stream(stream);
        assert_eq!(sender.write(bytes).unwrap_or(0), bytes.len());
        if end {
            sender.finish().unwrap();
        }
        stream
    }

    pub(crate) fn handle_received(&mut self, now: Instant, mut received: Received) {
        while !received.data.is_empty() {
            let datagram = received.data.split_to(received.stride.min(received.data.len()));
            let mut answer = Vec::new();
            let at = self.at(now);
            match self.endpoint.handle(at, received.from, None, None, datagram, &mut answer) {
                Some(DatagramEvent::ConnectionEvent(_, event)) => self.connection.handle_event(event),
                Some(DatagramEvent::Response(transmit)) => {
                    let (to, len) = (transmit.destination, transmit.size);
                    self.waiting.push_back((Transmit { to, ecn: None, segment: len, len }, answer));
                }
                Some(DatagramEvent::NewConnection(incoming)) => self.endpoint.ignore(incoming),
                None => (),
            }
        }
        self.drive();
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let at = self.at(now);
        self.connection.handle_timeout(at);
        self.drive();
    }

    fn drive(&mut self) {
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => self.connected = true,
                Event::ConnectionLost { reason } => self.lost = Some(reason),
                _ => (),
            }
        }
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        buf.clear();
        if let Some((transmit, bytes)) = self.waiting.pop_front() {
            buf.extend_from_slice(&bytes);
            return Some(transmit);
        }
        let at = self.at(now);
        let transmit = self.connection.poll_transmit(at, 1, buf)?;
        let len = transmit.size;
        Some(Transmit { to: transmit.destination, ecn: None, segment: len, len })
    }

    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        let at = self.connection.poll_timeout()?;
        Some(Instant::ZERO + at.saturating_duration_since(self.epoch))
    }
}

fn tls(guise: &Guise<'_>) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match guise.key {
        None => builder.with_no_client_auth(),
        Some(_) if matches!(guise.shows, Shows::Nothing) => {
            builder.with_client_cert_resolver(Arc::new(Nothing))
        }
        Some(key) => {
            let der = PrivatePkcs8KeyDer::from(key.pkcs8());
            let signer = rustls::crypto::ring::sign::any_eddsa_type(&der).unwrap();
            let mut spki = signer.public_key().unwrap().as_ref().to_vec();
            if let Shows::Other(id) = guise.shows {
                let at = spki.len() - 32;
                spki[at..].copy_from_slice(&id.0);
            }
            let certified = rustls::sign::CertifiedKey::new(vec![CertificateDer::from(spki)], signer);
            builder.with_client_cert_resolver(Arc::new(
                rustls::client::AlwaysResolvesClientRawPublicKeys::new(Arc::new(certified)),
            ))
        }
    };
    config.alpn_protocols = vec![guise.alpn.to_vec()];
    config.enable_early_data = true;
    config
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
