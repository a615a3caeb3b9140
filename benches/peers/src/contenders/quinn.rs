//! A flood over quinn on tokio, in three shapes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

use super::links::{Links, QUEUE};
use super::raw_keys::Keys;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::intake::Intake;
use crate::message::Message;
use crate::{Failure, host};

/// Bytes of each socket buffer; what tuning found to lose nothing with these windows.
const SOCKET_BUFFER: usize = 8 << 20;
/// Bytes that a peer may have in flight on a stream; more of them lie in socket buffers and only add latency.
const WINDOW: u32 = 512 << 10;
const SEND_WINDOW: u64 = 1 << 20;
/// Streams that a peer may have open.
const STREAMS: u32 = 1024;
/// Messages up to this size are copied together into blocks: quinn handles few large pieces far better than many small.
const COALESCE: usize = 16 << 10;
/// Bytes of such a block.
const BLOCK: usize = 64 << 10;

/// How streams are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One stream and a queue for each peer.
    Long,
    /// A stream for each artifact and peer.
    Uni,
    /// Two long streams for each peer, the urgent one with the higher priority.
    Priority,
}

struct Flood {
    runtime: Runtime,
    shape: Shape,
    mtu: u16,
    keys: Keys,
    board: Arc<Board>,
    links: Arc<Links>,
    endpoints: Mutex<Vec<Option<Endpoint>>>,
    addresses: Vec<SocketAddr>,
}

pub(crate) fn run(run: Run, shape: Shape) -> Result<Value, Failure> {
    let (nodes, mtu) = (run.choice.nodes, run.choice.mtu.min(super::QUINN_MTU));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(run.choice.cores).enable_all().build()?;
    let keys = Keys::new(nodes, rustls::crypto::ring::default_provider())?;
    let mut flood = Flood {
        runtime,
        shape,
        mtu,
        keys,
        board: run.board.clone(),
        links: Arc::new(Links::new(nodes)),
        endpoints: Mutex::new(vec![None; nodes]),
        addresses: Vec::new(),
    };
    for node in 0..nodes {
        let endpoint = flood.endpoint(node, SocketAddr::from(([127, 0, 0, 1], 0)))?;
        flood.addresses.push(endpoint.local_addr()?);
        flood.set(node, Some(endpoint));
    }
    flood.runtime.block_on(async {
        for low in 0..nodes {
            for high in low + 1..nodes {
                flood.connect(low, high).await?;
            }
        }
        Ok::<_, Failure>(())
    })?;
    drive(&Arc::new(flood), run)
}

impl Contender for Flood {
    async fn broadcast(&self, node: usize, message: Message) -> Result<(), Failure> {
        self.links.broadcast(node, message).await;
        Ok(())
    }

    fn spawn(&self, _node: usize, task: Task) {
        drop(self.runtime.spawn(task));
    }

    async fn close(&self, node: usize) -> Result<(), Failure> {
        self.links.close(node);
        let endpoint = self.get(node)?;
        self.set(node, None);
        endpoint.close(VarInt::from_u32(0), b"closed");
        endpoint.wait_idle().await;
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        let endpoint = self.endpoint(node, self.addresses[node])?;
        self.set(node, Some(endpoint));
        for peer in (0..self.addresses.len()).filter(|&peer| peer != node) {
            self.connect(node, peer).await?;
        }
        Ok(())
    }
}

impl Flood {
    fn get(&self, node: usize) -> Result<Endpoint, Failure> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(endpoints[node].clone().ok_or("the node is closed")?)
    }

    fn set(&self, node: usize, endpoint: Option<Endpoint>) {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)[node] = endpoint;
    }

    fn endpoint(&self, node: usize, address: SocketAddr) -> Result<Endpoint, Failure> {
        let _runtime = self.runtime.enter();
        let transport = transport(self.mtu, self.shape);
        let crypto = QuicServerConfig::try_from(self.keys.server(node)?)?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(transport.clone()).migration(false);
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(self.mtu.max(1472))?;
        let socket = host::socket(address, SOCKET_BUFFER)?;
        let mut endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?;
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(self.keys.client(node)?)?));
        client.transport_config(transport);
        endpoint.set_default_client_config(client);
        Ok(endpoint)
    }

    /// Connects two nodes and starts both directions. Only one pair connects at a time, so each end knows who the other is.
    async fn connect(&self, from: usize, to: usize) -> Result<(), Failure> {
        let (dialler, listener) = (self.get(from)?, self.get(to)?);
        let dialled = dialler.connect(self.addresses[to], "peer")?;
        let accepted = async { listener.accept().await.ok_or("closed")?.await.map_err(Failure::from) };
        let (dialled, accepted) = tokio::join!(dialled, accepted);
        self.start(from, to, dialled?);
        self.start(to, from, accepted?);
        Ok(())
    }

    fn start(&self, node: usize, peer: usize, connection: Connection) {
        self.runtime.spawn(receive(connection.clone(), node, self.board.clone()));
        match self.shape {
            Shape::Long => {
                let messages = self.links.open(node, peer);
                drop(self.runtime.spawn(send_long(connection, messages, 0)));
            }
            Shape::Uni => {
                let messages = self.links.open(node, peer);
                drop(self.runtime.spawn(send_uni(connection, messages)));
            }
            Shape::Priority => {
                let [messages, urgent] = self.links.open_two(node, peer);
                drop(self.runtime.spawn(send_long(connection.clone(), messages, 0)));
                drop(self.runtime.spawn(send_long(connection, urgent, 1)));
            }
        }
    }
}

fn transport(mtu: u16, shape: Shape) -> Arc<TransportConfig> {
    // Bulk must not fill the connection's windows, or what is urgent cannot even enter them.
    let room = if shape == Shape::Priority { 2 } else { 1 };
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(mtu)
        .min_mtu(mtu)
        .mtu_discovery_config(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(room * WINDOW))
        .send_window(u64::from(room) * SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

async fn send_long(
    connection: Connection,
    mut messages: Receiver<Message>,
    priority: i32,
) -> Result<(), Failure> {
    let mut stream = connection.open_uni().await?;
    stream.set_priority(priority)?;
    let mut batch = Vec::with_capacity(QUEUE);
    while messages.recv_many(&mut batch, QUEUE).await > 0 {
        let mut block = BytesMut::new();
        for message in batch.drain(..) {
            if message.len() <= COALESCE {
                message.put(&mut block);
                if block.len() >= BLOCK {
                    stream.write_chunk(block.split().freeze()).await?;
                }
            } else {
                let [first, second] = message.chunks();
                write(&mut stream, [block.split().freeze(), first, second]).await?;
            }
        }
        if !block.is_empty() {
            stream.write_chunk(block.freeze()).await?;
        }
    }
    Ok(())
}

async fn send_uni(connection: Connection, mut messages: Receiver<Message>) -> Result<(), Failure> {
    while let Some(message) = messages.recv().await {
        let mut stream = connection.open_uni().await?;
        tokio::spawn(async move {
            let [first, second] = message.chunks();
            write(&mut stream, [first, second, Bytes::new()]).await?;
            stream.finish()?;
            Ok::<_, Failure>(())
        });
    }
    Ok(())
}

async fn write(stream: &mut SendStream, chunks: [Bytes; 3]) -> Result<(), Failure> {
    for chunk in chunks {
        if !chunk.is_empty() {
            stream.write_chunk(chunk).await?;
        }
    }
    Ok(())
}

/// Takes every stream of a peer and checks off what comes.
async fn receive(connection: Connection, node: usize, board: Arc<Board>) {
    while let Ok(stream) = connection.accept_uni().await {
        let board = board.clone();
        tokio::spawn(async move {
            let mut stream = stream;
            // An end before the end of a message: the run is over, or a node has gone.
            let _ = read(&mut stream, node, board).await;
            let _ = stream.stop(VarInt::from_u32(0));
        });
    }
}

async fn read(stream: &mut RecvStream, node: usize, board: Arc<Board>) -> Result<(), Failure> {
    let mut intake = Intake::new(board.clone(), node);
    loop {
        board.gate(node).await;
        match stream.read_chunk(usize::MAX, true).await? {
            Some(chunk) => intake.take(chunk.bytes),
            None => return Ok(()),
        }
    }
}
