//! A flood over s2n-quic on tokio: one long stream and a queue for each peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use s2n_quic::client::Connect;
use s2n_quic::connection::{Handle, StreamAcceptor};
use s2n_quic::provider::io::tokio::Provider as Io;
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls::rustls as tls;
use s2n_quic::stream::{ReceiveStream, SendStream};
use s2n_quic::{Client, Connection, Server};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;

use super::links::{Links, QUEUE};
use super::raw_keys::Keys;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::intake::Intake;
use crate::message::Message;
use crate::{Failure, host};

/// Bytes of each socket buffer.
const SOCKET_BUFFER: usize = 8 << 20;
/// Bytes that a peer may have in flight.
const WINDOW: u64 = 2 << 20;
/// Bytes of a stream that are unsent or not acknowledged.
const SEND_BUFFER: u32 = 2 << 20;
/// Bytes of IPv4 and UDP headers, which s2n-quic counts into the MTU.
const HEADERS: u16 = 28;
/// Messages up to this size are copied together into blocks.
const COALESCE: usize = 16 << 10;
/// Bytes of such a block.
const BLOCK: usize = 64 << 10;
/// Chunks taken from a stream at a time.
const CHUNKS: usize = 64;

struct Flood {
    runtime: Runtime,
    mtu: u16,
    keys: Keys,
    board: Arc<Board>,
    links: Links,
    nodes: Vec<Mutex<Option<Node>>>,
}

/// s2n-quic has an endpoint for each direction of dialling.
struct Node {
    client: Client,
    server: Server,
    connections: Vec<Handle>,
}

pub(crate) fn run(run: Run) -> Result<Value, Failure> {
    let nodes = run.choice.nodes;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(run.choice.cores).enable_all().build()?;
    let flood = Flood {
        runtime,
        mtu: run.choice.mtu,
        keys: Keys::new(nodes, rustls::crypto::aws_lc_rs::default_provider())?,
        board: run.board.clone(),
        links: Links::new(nodes),
        nodes: (0..nodes).map(|_| Mutex::new(None)).collect(),
    };
    flood.runtime.block_on(async {
        for node in 0..nodes {
            *flood.nodes[node].lock().await = Some(flood.node(node)?);
        }
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
        let closed = self.nodes[node].lock().await.take().ok_or("the node is closed")?;
        for connection in closed.connections {
            connection.close(0_u8.into());
        }
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        *self.nodes[node].lock().await = Some(self.node(node)?);
        for peer in (0..self.nodes.len()).filter(|&peer| peer != node) {
            self.connect(node, peer).await?;
        }
        Ok(())
    }
}

impl Flood {
    fn node(&self, node: usize) -> Result<Node, Failure> {
        let server = Server::builder()
            .with_tls(tls::Server::from(self.keys.server(node)?))?
            .with_io(self.io()?)?
            .with_limits(limits()?)?
            .start()?;
        let client = Client::builder()
            .with_tls(tls::Client::from(self.keys.client(node)?))?
            .with_io(self.io()?)?
            .with_limits(limits()?)?
            .start()?;
        Ok(Node { client, server, connections: Vec::new() })
    }

    fn io(&self) -> Result<Io, Failure> {
        let packet = self.mtu + HEADERS;
        let socket = host::socket(SocketAddr::from(([127, 0, 0, 1], 0)), SOCKET_BUFFER)?;
        let builder = Io::builder()
            .with_rx_socket(socket)?
            .with_max_mtu(packet)?
            .with_initial_mtu(packet)?
            .with_base_mtu(packet)?;
        Ok(builder.build()?)
    }

    /// Connects two nodes and starts both directions. Only one pair connects at a time, so each end knows who the other is.
    async fn connect(&self, from: usize, to: usize) -> Result<(), Failure> {
        let (mut dialler, mut listener) = (self.nodes[from].lock().await, self.nodes[to].lock().await);
        let (Some(dialler), Some(listener)) = (dialler.as_mut(), listener.as_mut()) else {
            return Err("the node is closed".into());
        };
        let address = listener.server.local_addr()?;
        let dialled = dialler.client.connect(Connect::new(address).with_server_name("peer"));
        let accepted = async { listener.server.accept().await.ok_or("closed") };
        let (dialled, accepted) = tokio::join!(dialled, accepted);
        dialler.connections.push(self.start(from, to, dialled?)?);
        listener.connections.push(self.start(to, from, accepted?)?);
        Ok(())
    }

    fn start(&self, node: usize, peer: usize, connection: Connection) -> Result<Handle, Failure> {
        let (mut handle, acceptor) = connection.split();
        handle.keep_alive(true)?;
        let messages = self.links.open(node, peer);
        self.runtime.spawn(receive(acceptor, node, self.board.clone()));
        drop(self.runtime.spawn(send(handle.clone(), messages)));
        Ok(handle)
    }
}

fn limits() -> Result<Limits, Failure> {
    let limits = Limits::new()
        .with_data_window(WINDOW)
        .and_then(|limits| limits.with_unidirectional_data_window(WINDOW))
        .and_then(|limits| limits.with_max_send_buffer_size(SEND_BUFFER))
        .and_then(|limits| limits.with_max_keep_alive_period(Duration::from_secs(5)));
    limits.map_err(|error| error.to_string().into())
}

async fn send(mut connection: Handle, mut messages: Receiver<Message>) -> Result<(), Failure> {
    let mut stream = connection.open_send_stream().await?;
    let mut batch = Vec::with_capacity(QUEUE);
    while messages.recv_many(&mut batch, QUEUE).await > 0 {
        let mut block = BytesMut::new();
        for message in batch.drain(..) {
            if message.len() <= COALESCE {
                message.put(&mut block);
                if block.len() >= BLOCK {
                    stream.send(block.split().freeze()).await?;
                }
            } else {
                let [first, second] = message.chunks();
                write(&mut stream, [block.split().freeze(), first, second]).await?;
            }
        }
        if !block.is_empty() {
            stream.send(block.freeze()).await?;
        }
    }
    Ok(())
}

async fn write(stream: &mut SendStream, chunks: [Bytes; 3]) -> Result<(), Failure> {
    for chunk in chunks {
        if !chunk.is_empty() {
            stream.send(chunk).await?;
        }
    }
    Ok(())
}

async fn receive(mut streams: StreamAcceptor, node: usize, board: Arc<Board>) {
    while let Ok(Some(stream)) = streams.accept_receive_stream().await {
        let board = board.clone();
        tokio::spawn(async move {
            let mut stream = stream;
            // An end before the end of a message: the run is over, or a node has gone.
            let _ = read(&mut stream, node, board).await;
        });
    }
}

async fn read(stream: &mut ReceiveStream, node: usize, board: Arc<Board>) -> Result<(), Failure> {
    let mut intake = Intake::new(board.clone(), node);
    let mut chunks = vec![Bytes::new(); CHUNKS];
    loop {
        board.gate(node).await;
        let (count, open) = stream.receive_vectored(&mut chunks).await?;
        for chunk in &mut chunks[..count] {
            intake.take(std::mem::take(chunk));
        }
        if !open {
            return Ok(());
        }
    }
}
