//! One endpoint, one connection with each peer, and a bidirectional stream for each request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::receiver::Received;
use super::wire::{self, FETCH, HttpRequest, HttpResponse, SlotUpdate, UPDATE};
use super::{Pool, lock};
use crate::contenders::raw_keys::Keys;
use crate::{Failure, host};

const SOCKET_BUFFER: usize = 25_000_000;
const RECEIVE_WINDOW: u32 = 200_000_000;
const SEND_WINDOW: u64 = 100_000_000;
const STREAM_RECEIVE_WINDOW: u32 = 4_000_000;
const STREAMS: u32 = 1_000;
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_RETRY: Duration = Duration::from_secs(5);
const LARGEST: usize = 128 << 20;
/// The code of a stream whose request was dropped.
const CANCELLED: u32 = 0x8000_0006;

/// Connections of this process; each end counts its own.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// What requests of peers go to.
#[derive(Clone)]
pub(super) struct Handlers {
    pub(super) updates: mpsc::Sender<Received>,
    pub(super) pool: Pool,
}

pub(super) struct Transport {
    node: usize,
    endpoint: Endpoint,
    peers: Vec<Mutex<Option<(u64, Connection)>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Transport {
    /// Listens, and dials every node above.
    pub(super) fn start(
        node: usize,
        keys: &Arc<Keys>,
        addresses: &[SocketAddr],
        handlers: &Handlers,
    ) -> Result<Arc<Transport>, Failure> {
        let config = config()?;
        let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(keys.server(node)?)?));
        server.transport_config(config.clone());
        let socket = host::socket(addresses[node], SOCKET_BUFFER)?;
        let mut endpoint =
            Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))?;
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(keys.client(node)?)?));
        client.transport_config(config);
        endpoint.set_default_client_config(client);
        let peers = addresses.iter().map(|_| Mutex::new(None)).collect();
        let transport = Arc::new(Transport { node, endpoint, peers, tasks: Mutex::default() });
        let accept = tokio::spawn(transport.clone().accept(keys.clone(), handlers.clone()));
        let mut tasks = vec![accept];
        for (peer, &address) in addresses.iter().enumerate().skip(node + 1) {
            tasks.push(tokio::spawn(transport.clone().dial(peer, address, handlers.clone())));
        }
        *lock(&transport.tasks) = tasks;
        Ok(transport)
    }

    pub(super) fn node(&self) -> usize {
        self.node
    }

    /// Peers with a connection, and which connection it is.
    pub(super) fn peers(&self) -> Vec<(usize, u64)> {
        let peers = self.peers.iter().enumerate();
        peers.filter_map(|(peer, link)| lock(link).as_ref().map(|(id, _)| (peer, *id))).collect()
    }

    pub(super) async fn close(&self) {
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
        self.endpoint.close(VarInt::from_u32(0), b"closed");
        self.endpoint.wait_idle().await;
    }

    /// One request and its response, on a stream of its own.
    pub(super) async fn rpc(&self, peer: usize, uri: &str, body: &[u8]) -> Result<(u32, Vec<u8>), Failure> {
        let link = lock(&self.peers[peer]).as_ref().map(|(_, connection)| connection.clone());
        let (send, mut receive) = link.ok_or("no connection")?.open_bi().await?;
        let mut send = ResetOnDrop(send);
        send.0.set_priority(0)?;
        send.0.write_all(&wire::request(uri, body.to_vec())).await?;
        send.0.finish()?;
        send.0.stopped().await?;
        let response = HttpResponse::decode(receive.read_to_end(LARGEST).await?.as_slice())?;
        Ok((response.status_code, response.body))
    }

    async fn accept(self: Arc<Transport>, keys: Arc<Keys>, handlers: Handlers) {
        while let Some(incoming) = self.endpoint.accept().await {
            let (transport, keys, handlers) = (self.clone(), keys.clone(), handlers.clone());
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                let identity = connection.peer_identity().and_then(|any| any.downcast().ok());
                let peer =
                    identity.and_then(|key: Box<Vec<CertificateDer<'static>>>| keys.node_of(key.first()?));
                // Only a lower node may dial.
                if let Some(peer) = peer.filter(|&peer| peer < transport.node) {
                    transport.serve(peer, connection, handlers).await;
                }
            });
        }
    }

    async fn dial(self: Arc<Transport>, peer: usize, address: SocketAddr, handlers: Handlers) {
        loop {
            if let Ok(connecting) = self.endpoint.connect(address, "irrelevant")
                && let Ok(Ok(connection)) = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await
            {
                self.clone().serve(peer, connection, handlers.clone()).await;
            } else {
                tokio::time::sleep(CONNECT_RETRY).await;
            }
        }
    }

    /// Answers a peer's requests until the connection ends.
    async fn serve(self: Arc<Transport>, peer: usize, connection: Connection, handlers: Handlers) {
        let id = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        if let Some((_, old)) = lock(&self.peers[peer]).replace((id, connection.clone())) {
            old.close(VarInt::from_u32(0), b"using newer connection");
        }
        while let Ok((send, receive)) = connection.accept_bi().await {
            let handlers = handlers.clone();
            tokio::spawn(async move {
                // A stream that breaks off concerns nobody but who sent it.
                let _ = answer(send, receive, peer, id, handlers).await;
            });
        }
        let mut link = lock(&self.peers[peer]);
        if link.as_ref().is_some_and(|(other, _)| *other == id) {
            *link = None;
        }
    }
}

async fn answer(
    send: SendStream,
    mut receive: RecvStream,
    peer: usize,
    connection: u64,
    handlers: Handlers,
) -> Result<(), Failure> {
    let request = HttpRequest::decode(receive.read_to_end(LARGEST).await?.as_slice())?;
    let response = match request.uri.as_str() {
        UPDATE => match SlotUpdate::decode(request.body.as_slice()) {
            Ok(update) => {
                handlers.updates.send(Received { peer, connection, update }).await?;
                wire::response(wire::OK, Vec::new())
            }
            Err(_) => wire::response(wire::BAD_REQUEST, Vec::new()),
        },
        FETCH => {
            let found = tokio::task::spawn_blocking(move || {
                let id: super::Id = request.body.try_into().ok()?;
                lock(&handlers.pool).get(&id).cloned()
            });
            match found.await? {
                Some(artifact) => wire::response(wire::OK, artifact.to_vec()),
                None => wire::response(wire::NO_CONTENT, Vec::new()),
            }
        }
        _ => wire::response(wire::BAD_REQUEST, Vec::new()),
    };
    let mut send = ResetOnDrop(send);
    send.0.write_all(&response).await?;
    send.0.finish()?;
    send.0.stopped().await?;
    Ok(())
}

/// A stream that is reset, not finished, when its request is dropped half way.
struct ResetOnDrop(SendStream);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        // An error: it has ended properly.
        let _ = self.0.reset(VarInt::from_u32(CANCELLED));
    }
}

/// Its windows and timers; all else is quinn's default.
fn config() -> Result<Arc<TransportConfig>, Failure> {
    let mut config = TransportConfig::default();
    config
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT)?));
    Ok(Arc::new(config))
}
