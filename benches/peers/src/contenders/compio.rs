//! A flood over compio-quic: one long stream and a queue for each peer; a pinned io_uring runtime for each core, nodes in turn.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use compio::driver::ProactorBuilder;
use compio::net::UdpSocket;
use compio::runtime::{RuntimeBuilder, spawn};
use compio_quic::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use compio_quic::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig,
    TransportConfig, VarInt,
};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::links::{Links, QUEUE};
use super::raw_keys::Keys;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::intake::Intake;
use crate::message::Message;
use crate::options::Makers;
use crate::{Failure, host};

/// Bytes of each socket buffer.
const SOCKET_BUFFER: usize = 8 << 20;
/// Bytes that a peer may have in flight; with less it is slower, with more no faster.
const WINDOW: u32 = 1 << 20;
const SEND_WINDOW: u64 = 4 << 20;
/// Messages up to this size are copied together into blocks.
const COALESCE: usize = 16 << 10;
/// Bytes of such a block.
const BLOCK: usize = 64 << 10;
/// Chunks taken from a stream at a time.
const CHUNKS: usize = 64;
/// How long nodes may take to find one another.
const CONNECT: Duration = Duration::from_secs(30);

/// What all threads share.
struct Mesh {
    mtu: u16,
    keys: Keys,
    board: Arc<Board>,
    links: Links,
    addresses: Vec<SocketAddr>,
    /// Ends of connections that were started.
    ends: AtomicUsize,
}

struct Flood {
    mesh: Arc<Mesh>,
    one_maker: bool,
    threads: Vec<UnboundedSender<Command>>,
}

/// What a thread is told.
enum Command {
    Run(Task),
    Start { node: usize, peers: Vec<usize>, done: Done },
    Close { node: usize, done: Done },
}

type Done = oneshot::Sender<Result<(), String>>;

pub(crate) fn run(run: Run) -> Result<Value, Failure> {
    let (nodes, threads) = (run.choice.nodes, run.choice.cores);
    let sockets: Vec<_> =
        (0..nodes).map(|_| std::net::UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses = sockets.iter().map(|socket| socket.local_addr()).collect::<Result<_, _>>()?;
    drop(sockets);
    let mesh = Arc::new(Mesh {
        mtu: run.choice.mtu.min(super::COMPIO_MTU),
        keys: Keys::new(nodes, rustls::crypto::ring::default_provider())?,
        board: run.board.clone(),
        links: Links::new(nodes),
        addresses,
        ends: AtomicUsize::new(0),
    });
    let failed = Arc::new(Mutex::new(None));
    let barrier = Arc::new(Barrier::new(threads + 1));
    let threads = (0..threads).map(|index| {
        let (sender, commands) = unbounded_channel();
        let (mesh, failed, barrier) = (mesh.clone(), failed.clone(), barrier.clone());
        std::thread::spawn(move || {
            if let Err(failure) = thread(index, mesh, commands, &barrier) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.to_string());
            }
        });
        sender
    });
    let flood = Flood { threads: threads.collect(), mesh, one_maker: run.choice.makers == Makers::First };
    barrier.wait();
    // All listen before any dials.
    let begin = |node: usize| flood.tell(node, |done| Command::Start { node, peers: Vec::new(), done });
    (0..nodes).try_for_each(begin)?;
    for node in 0..nodes {
        flood.tell(node, |done| Command::Start { node, peers: (node + 1..nodes).collect(), done })?;
    }
    let begin = Instant::now();
    while flood.mesh.ends.load(Ordering::Relaxed) < nodes * (nodes - 1) {
        if let Some(failure) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure.into());
        }
        if begin.elapsed() > CONNECT {
            return Err("the nodes did not connect".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drive(&Arc::new(flood), run)
}

impl Flood {
    fn thread(&self, node: usize) -> &UnboundedSender<Command> {
        let threads = self.threads.len();
        match node {
            // Who alone makes everything has a core to itself.
            node if self.one_maker && threads > 1 => {
                &self.threads[if node == 0 { 0 } else { 1 + (node - 1) % (threads - 1) }]
            }
            node => &self.threads[node % threads],
        }
    }

    /// Tells a node's thread something and waits until it is done.
    fn tell(&self, node: usize, command: impl FnOnce(Done) -> Command) -> Result<(), Failure> {
        let (done, answer) = oneshot::channel();
        self.thread(node).send(command(done)).map_err(|_| "a thread has ended")?;
        Ok(answer.blocking_recv()??)
    }

    async fn ask(&self, node: usize, command: impl FnOnce(Done) -> Command) -> Result<(), Failure> {
        let (done, answer) = oneshot::channel();
        self.thread(node).send(command(done)).map_err(|_| "a thread has ended")?;
        Ok(answer.await??)
    }
}

impl Contender for Flood {
    async fn broadcast(&self, node: usize, message: Message) -> Result<(), Failure> {
        self.mesh.links.broadcast(node, message).await;
        Ok(())
    }

    fn spawn(&self, node: usize, task: Task) {
        // An error: the run is over.
        let _ = self.thread(node).send(Command::Run(task));
    }

    async fn close(&self, node: usize) -> Result<(), Failure> {
        self.mesh.links.close(node);
        self.ask(node, |done| Command::Close { node, done }).await
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        let peers = (0..self.mesh.addresses.len()).filter(|&peer| peer != node).collect();
        self.ask(node, |done| Command::Start { node, peers, done }).await
    }
}

/// One core: a runtime with some of the nodes.
fn thread(
    index: usize,
    mesh: Arc<Mesh>,
    commands: UnboundedReceiver<Command>,
    barrier: &Barrier,
) -> Result<(), Failure> {
    let mut proactor = ProactorBuilder::new();
    // A thread's completions need not interrupt it.
    proactor.coop_taskrun(true).taskrun_flag(true);
    let mut builder = RuntimeBuilder::new();
    let runtime = builder.with_proactor(proactor).thread_affinity([index].into()).build();
    barrier.wait();
    runtime?.block_on(obey(mesh, commands));
    Ok(())
}

async fn obey(mesh: Arc<Mesh>, mut commands: UnboundedReceiver<Command>) {
    let mut endpoints: HashMap<usize, Rc<Endpoint>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Run(task) => spawn(task).detach(),
            Command::Start { node, peers, done } => {
                let started = begin(&mesh, &mut endpoints, node, peers).await;
                let _ = done.send(started.map_err(|failure| failure.to_string()));
            }
            Command::Close { node, done } => {
                if let Some(endpoint) = endpoints.remove(&node) {
                    endpoint.close(VarInt::from_u32(0), b"closed");
                    if let Ok(endpoint) = Rc::try_unwrap(endpoint) {
                        let _ = endpoint.shutdown().await;
                    }
                }
                let _ = done.send(Ok(()));
            }
        }
    }
}

/// Opens the node's endpoint if it is not open yet, and dials these peers.
async fn begin(
    mesh: &Arc<Mesh>,
    endpoints: &mut HashMap<usize, Rc<Endpoint>>,
    node: usize,
    peers: Vec<usize>,
) -> Result<(), Failure> {
    if let std::collections::hash_map::Entry::Vacant(place) = endpoints.entry(node) {
        let endpoint = Rc::new(mesh.endpoint(node)?);
        spawn(accept(mesh.clone(), node, endpoint.clone())).detach();
        place.insert(endpoint);
    }
    let Some(endpoint) = endpoints.get(&node) else { return Ok(()) };
    for peer in peers {
        let connecting = endpoint.connect(mesh.addresses[peer], "peer", None)?;
        let mesh = mesh.clone();
        spawn(async move {
            match connecting.await {
                Ok(connection) => start(&mesh, node, peer, connection),
                Err(error) => eprintln!("node {node} found no way to {peer}: {error}"),
            }
        })
        .detach();
    }
    Ok(())
}

async fn accept(mesh: Arc<Mesh>, node: usize, endpoint: Rc<Endpoint>) {
    while let Some(incoming) = endpoint.wait_incoming().await {
        let mesh = mesh.clone();
        spawn(async move {
            let Ok(connection) = incoming.await else { return };
            let identity = connection.peer_identity();
            if let Some(peer) = identity.and_then(|keys| mesh.keys.node_of(keys.first()?)) {
                start(&mesh, node, peer, connection);
            }
        })
        .detach();
    }
}

fn start(mesh: &Arc<Mesh>, node: usize, peer: usize, connection: Connection) {
    let messages = mesh.links.open(node, peer);
    spawn(receive(connection.clone(), node, mesh.board.clone())).detach();
    spawn(async move {
        // An error: the connection has ended.
        let _ = send(connection, messages).await;
    })
    .detach();
    mesh.ends.fetch_add(1, Ordering::Relaxed);
}

impl Mesh {
    fn endpoint(&self, node: usize) -> Result<Endpoint, Failure> {
        let transport = self.transport();
        let crypto = QuicServerConfig::try_from(self.keys.server(node)?)?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(transport.clone()).migration(false);
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(self.keys.client(node)?)?));
        client.transport_config(transport);
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(self.mtu.max(1472))?;
        let socket = UdpSocket::from_std(host::socket(self.addresses[node], SOCKET_BUFFER)?)?;
        Ok(Endpoint::new(socket, config, Some(server), Some(client))?)
    }

    fn transport(&self) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        transport
            .initial_mtu(self.mtu)
            .min_mtu(self.mtu)
            .mtu_discovery_config(None)
            .stream_receive_window(VarInt::from_u32(WINDOW))
            .receive_window(VarInt::from_u32(WINDOW))
            .send_window(SEND_WINDOW)
            .keep_alive_interval(Some(Duration::from_secs(5)))
            .datagram_receive_buffer_size(None);
        Arc::new(transport)
    }
}

async fn send(connection: Connection, mut messages: Receiver<Message>) -> Result<(), Failure> {
    let mut stream = connection.open_uni_wait().await?;
    let mut batch = Vec::with_capacity(QUEUE);
    while messages.recv_many(&mut batch, QUEUE).await > 0 {
        let mut block = BytesMut::new();
        for message in batch.drain(..) {
            if message.len() <= COALESCE {
                message.put(&mut block);
                if block.len() >= BLOCK {
                    write(&mut stream, &mut [block.split().freeze()]).await?;
                }
            } else {
                let [first, second] = message.chunks();
                write(&mut stream, &mut [block.split().freeze(), first, second]).await?;
            }
        }
        if !block.is_empty() {
            write(&mut stream, &mut [block.freeze()]).await?;
        }
    }
    Ok(())
}

async fn write(stream: &mut SendStream, chunks: &mut [Bytes]) -> Result<(), Failure> {
    Ok(stream.write_all_chunks(chunks).await?)
}

async fn receive(connection: Connection, node: usize, board: Arc<Board>) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let board = board.clone();
        spawn(async move {
            // An end before the end of a message: the run is over, or a node has gone.
            let _ = read(&mut stream, node, board).await;
        })
        .detach();
    }
}

async fn read(stream: &mut RecvStream, node: usize, board: Arc<Board>) -> Result<(), Failure> {
    let mut intake = Intake::new(board.clone(), node);
    let mut chunks = vec![Bytes::new(); CHUNKS];
    loop {
        board.gate(node).await;
        let Some(count) = stream.read_chunks(&mut chunks).await? else { return Ok(()) };
        for chunk in &mut chunks[..count] {
            intake.take(std::mem::take(chunk));
        }
    }
}
